"""Plain torch: every operation launched by Python, one after the other."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nar_hw.runtimes.torch_module import TorchRuntime, prepared, to_device


class _Mark(Protocol):
    """A moment in the course of a run."""

    def elapsed_time(self, end: Any, /) -> float:
        """Milliseconds from here to ``end``."""
        ...


class _HostMark:
    def __init__(self) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: "_HostMark", /) -> float:
        return (end.seconds - self.seconds) * 1e3


def _device_mark() -> _Mark:
    make: Any = torch.cuda.Event  # untyped in torch
    event: Any = make(enable_timing=True)
    event.record()
    mark: _Mark = event
    return mark


class TorchEager(TorchRuntime):
    """Per-layer times come from hooks on the modules without children; what runs between them is in none of the nodes."""

    name = "torch_eager"
    layers = True

    def _load(self, network: nn.Module | Path) -> None:
        module = prepared(network, self.config, own=self.own)
        self._input = to_device(self.images, self.config)
        self._marks: list[list[tuple[str, _Mark, _Mark]]] = []  # of each inference: (node, start, end)
        self._forward = self._recorded(module) if self.profile else module

    def _recorded(self, module: nn.Module) -> Callable[[Tensor], Any]:
        """``module`` with hooks that fill a new entry of ``_marks`` each time it runs."""
        mark: Callable[[], _Mark] = _device_mark if self.config.device_type == "cuda" else _HostMark
        marks = self._marks
        started: list[_Mark] = []  # leaves do not nest

        def enter(leaf: nn.Module, inputs: Any) -> None:
            started.append(mark())

        def leave(name: str) -> Callable[[nn.Module, Any, Any], None]:
            return lambda leaf, inputs, output: marks[-1].append((name, started.pop(), mark()))

        for path, leaf in module.named_modules():
            if not list(leaf.children()):
                leaf.register_forward_pre_hook(enter)
                leaf.register_forward_hook(leave(f"{path}/{type(leaf).__name__}"))

        def forward(images: Tensor) -> Any:
            marks.append([])
            return module(images)

        return forward

    def _layer_ms(self) -> list[dict[str, float]]:
        self.synchronize()
        return [_summed(marks) for marks in self._marks]


def _summed(marks: list[tuple[str, _Mark, _Mark]]) -> dict[str, float]:
    times: dict[str, float] = {}
    for name, start, end in marks:  # a module that runs twice is one entry
        times[name] = times.get(name, 0.0) + start.elapsed_time(end)
    return times
