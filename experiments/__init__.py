"""The experiments behind the default settings; docs/results.md has their results."""
