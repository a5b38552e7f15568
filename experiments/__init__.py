"""The evidence for the settings: see RESULTS.md."""
