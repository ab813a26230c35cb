"""One thread per process: two test workers share two cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
