"""Settings of the whole test run."""

from __future__ import annotations

import os

# Threads that wait for each other on a busy machine cost the tests' small tensors ten times their work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
