"""Speed and memory; run each module with `python -m benchmarks.NAME`."""
