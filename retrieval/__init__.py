"""Codes, ranking and metrics."""
