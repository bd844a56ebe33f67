"""Importing this pins the numeric libraries to one thread; it must come before any of them is loaded.

They size their thread pools when they are loaded. One row is answered fastest by one thread: with two, scikit-learn's
OpenMP threads wait for each other, which made serving ten times slower.
"""

from __future__ import annotations

import os

for _pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"):
    os.environ[_pool] = "1"
