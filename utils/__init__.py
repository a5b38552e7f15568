"""Helpers that know none of the project's models, data sets or losses."""

import os

# PyTorch computes on CPUs with OpenMP threads. They spin while they wait, unless this variable says
# that they sleep; on a machine with other work, training was then 6 to 10 times faster
# (docs/benchmarks.md). It is read when PyTorch is imported, so the scripts import `utils` first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
