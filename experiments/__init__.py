"""Runnable studies and benchmarks: `python -m experiments.train`, `.compare`, `.plot`, `.benchmarks.…`."""

import os

# LAPACK's own threads spin beside XLA's: without this a CPU step with an eigenvalue problem took twice as long. It is
# read when the library is loaded, so it stands before any other import; a value that is set already is kept.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
