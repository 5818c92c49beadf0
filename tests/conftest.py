"""One thread per test process: the models are tiny, and processes run beside each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
