"""Helpers that know none of the project's models, data sets or losses."""

import os

# Threads of OpenMP, with which PyTorch computes on CPUs, must sleep while they wait: by default they
# spin, and on a machine with other work training was 6 to 10 times slower (docs/benchmarks.md).
# PyTorch reads this when it is imported, so the scripts import `utils` first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
