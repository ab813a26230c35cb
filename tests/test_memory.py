"""Freed memory is used again inside kept_memory, and only there."""

import ctypes
import resource

import pytest
import torch

from nar_hw.training.memory import SETTINGS, kept_memory


def page_faults(images: torch.Tensor, passes: int) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(passes):
        torch.relu(images)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the allocator is not glibc's")
def test_memory_is_kept_inside_and_given_back_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    images = torch.zeros(12 << 20)  # 48 MiB
    pages = images.numel() * 4 // resource.getpagesize()
    with kept_memory():
        page_faults(images, 10)  # until the heap has grown
        assert page_faults(images, 4) < pages
    assert page_faults(images, 4) >= 4 * pages
    monkeypatch.setenv(SETTINGS[0], "65536")
    with kept_memory():
        assert page_faults(images, 4) >= 4 * pages
