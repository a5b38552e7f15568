"""Helpers that know none of the project's models, data sets or losses."""
