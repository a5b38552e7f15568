"""Results as tables, figures and web pages."""
