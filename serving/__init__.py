"""The page of `search.py serve`. It may import all packages, and needs Flask."""
