"""Freed memory is used again inside kept_memory, and only there."""

import ctypes
import subprocess
import sys

import pytest

from nar_hw.training.memory import SETTINGS

SCRIPT = """
import resource
import numpy as np
from nar_hw.training.memory import kept_memory

images = np.ones(12 << 20, np.float32)  # 48 MiB

def page_faults(passes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(passes):
        np.negative(images)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with kept_memory():
    page_faults(10)  # until the heap has grown
    inside = page_faults(4)
print(inside, page_faults(4), 4 * images.nbytes // resource.getpagesize())
"""


# In a process of its own, whose heap is new
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the allocator is not glibc's")
def test_memory_is_kept_inside_and_given_back_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    def faults() -> tuple[int, int, int]:
        result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
        inside, outside, whole = map(int, result.stdout.split())
        return inside, outside, whole

    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NUMPY_MADVISE_HUGEPAGE", "0")  # else a fault is of 2 MiB
    inside, outside, whole = faults()
    assert inside < 0.1 * whole < whole <= outside
    monkeypatch.setenv(SETTINGS[0], "65536")
    assert faults()[0] >= whole
