"""A made-up device whose latency is known exactly, for tests of everything that is built on measurements.

A run takes the sum of its nodes' costs, which depend on nothing but the node's sizes, plus a reorder wherever a
convolution or pool follows one of another kind (the known interaction), plus a fixed part; noise, drift and faults are
added to what is observed. Time is virtual: nothing sleeps.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from nar_hw.errors import unknown_name
from nar_hw.runtimes.base import Images, Runtime, RuntimeConfig, Shape
from nar_hw.space.network import flat, inference_copy

FAULTS = ("", "nan", "zero", "negative", "drifting", "bimodal")


@dataclass(frozen=True, kw_only=True)
class FakeDevice:
    """How the made-up device behaves. Raises UnknownNameError for an unknown fault."""

    noise: float = 0.005
    """Relative standard deviation of one run."""
    drift: float = 0.0
    """Amplitude of a slow swing of the whole machine's speed, relative; the same for all runtimes on it."""
    period_ms: float = 5000.0
    """Virtual time that one swing takes."""
    interaction: float = 0.02
    """A reorder costs this share of the two nodes between which it stands."""
    fixed_ms: float = 0.05
    """Time of a run that belongs to no node."""
    profiling_ms: float = 0.0
    """What profiling adds to each node."""
    fault: str = ""
    """One of FAULTS: what every observed time suffers from."""
    seed: int = 0
    macs_per_ms: float = 4e7
    """Multiply-adds of a dense convolution; grouped ones run at an eighth of it, 3x3 pools at a quarter."""
    elements_per_ms: float = 2e6
    """Values read or written."""
    launch_ms: float = 0.004
    """Cost of any node, however small."""

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise unknown_name("fault", self.fault, FAULTS[1:])


@dataclass(kw_only=True)
class _Machine:
    device: FakeDevice
    clock_ms: float = 0.0
    loaded: int = 0


@dataclass(frozen=True)
class _Node:
    name: str
    kind: str
    ms: float


class FakeRuntime(Runtime):
    """Runs nothing when timed; `predict` runs the module. Node names are `<module path>/<class>`, and `ReorderInput...`."""

    name = "fake"
    consumes = "module"
    precisions = ("fp32",)
    devices = ("cpu",)
    layers = True
    simulated = True

    machine: ClassVar[_Machine] = _Machine(device=FakeDevice())

    @classmethod
    @contextmanager
    def on(cls, device: FakeDevice) -> Iterator[None]:
        """Within the block every FakeRuntime runs on ``device``, whose virtual clock starts at 0."""
        before = cls.machine
        cls.machine = _Machine(device=device)
        try:
            yield
        finally:
            cls.machine = before

    @classmethod
    def truth(cls, network: nn.Module, input_shape: Shape, *, batch: int = 1, device: FakeDevice | None = None) -> float:
        """The exact milliseconds of one run, without noise, drift and faults."""
        device = device or cls.machine.device
        return device.fixed_ms + sum(node.ms for node in _nodes(inference_copy(network), input_shape, batch, device))

    @classmethod
    def _missing(cls, config: RuntimeConfig) -> str | None:
        return None

    @classmethod
    def versions(cls) -> dict[str, str]:
        """A change of the costs raises it."""
        return {"fake": "1.0"}

    def _load(self, network: nn.Module | Path) -> None:
        assert isinstance(network, nn.Module)
        self._at = self.machine
        self._module = inference_copy(network)
        self._nodes = _nodes(self._module, self.input_shape, self.config.batch, self._at.device)
        self._random = random.Random(f"{self._at.device.seed} {self._at.loaded}")
        self._runs = 0
        self._profiled: list[float] = []
        self._at.loaded += 1

    def _infer(self, images: Images) -> Images:
        with torch.inference_mode():
            outputs = flat(self._module(torch.from_numpy(images)))
        self.run()
        return outputs.numpy()

    def run(self) -> None:
        """Advance the virtual clock by one inference."""
        self._observe()

    def time_ms(self, repeats: int) -> list[float]:
        """The virtual milliseconds of each of ``repeats`` inferences."""
        return [self._observe() for _ in range(repeats)]

    def _exact(self) -> float:
        device = self._at.device
        return device.fixed_ms + sum(node.ms + device.profiling_ms * self.profile for node in self._nodes)

    def _observe(self) -> float:
        device = self._at.device
        swing = 1 + device.drift * math.sin(2 * math.pi * self._at.clock_ms / device.period_ms)
        elapsed = self._exact() * swing * math.exp(self._random.gauss(0, device.noise))
        self._at.clock_ms += elapsed
        self._runs += 1
        observed = elapsed * self._fault(device.fault)
        if self.profile:
            self._profiled.append(observed)
        return observed

    def _fault(self, fault: str) -> float:
        if fault == "drifting":
            return 1 + 0.1 * self._runs
        if fault == "bimodal":
            return self._random.choice((1.0, 1.8))
        return {"": 1.0, "nan": math.nan, "zero": 0.0, "negative": -1.0}[fault]

    def _layer_ms(self) -> list[dict[str, float]]:
        extra, exact = self._at.device.profiling_ms, self._exact()
        times: dict[str, float] = {}
        for node in self._nodes:  # a module that runs twice is one entry
            times[node.name] = times.get(node.name, 0.0) + node.ms + extra
        return [{name: ms * observed / exact for name, ms in times.items()} for observed in self._profiled]

    def producers(self) -> dict[str, list[str]]:
        """The nodes as one chain, in the order in which they run."""
        chain: dict[str, list[str]] = {node.name: [] for node in self._nodes}
        for before, after in itertools.pairwise(self._nodes):
            chain[after.name].append(before.name)
        return chain

    def close(self) -> None:
        """Nothing is held."""
        return


def _nodes(module: nn.Module, input_shape: Shape, batch: int, device: FakeDevice) -> list[_Node]:
    """What an evaluated ``module`` runs on (batch, *input_shape), in order; found by one run on one image of zeros."""
    nodes: list[_Node] = []
    neighbour: _Node | None = None  # the convolution or pool that ran last

    def record(path: str, leaf: nn.Module, read: int, written: int) -> None:
        nonlocal neighbour
        kind = _kind(leaf)
        node = _Node(f"{path}/{type(leaf).__name__}", kind, _cost(leaf, kind, read * batch, written * batch, device))
        if kind and neighbour and neighbour.kind != kind and device.interaction:
            nodes.append(_Node(f"ReorderInput_{len(nodes)}", "", device.interaction * (neighbour.ms + node.ms)))
        neighbour = node if kind else neighbour
        nodes.append(node)

    def hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda leaf, inputs, output: record(path, leaf, inputs[0].numel(), output.numel())

    hooks = [
        leaf.register_forward_hook(hook(path))
        for path, leaf in module.named_modules()
        if not list(leaf.children()) and not isinstance(leaf, nn.Identity | nn.Dropout)
    ]
    parameter = next(module.parameters(), torch.empty(0))
    try:
        with torch.inference_mode():
            module(torch.zeros((1, *input_shape), device=parameter.device, dtype=parameter.dtype))
    finally:
        for handle in hooks:
            handle.remove()
    return nodes


def _kind(leaf: nn.Module) -> str:
    """What decides whether two neighbours need a reorder between them; empty for a node that never does."""
    if isinstance(leaf, nn.Conv2d):
        return "dense" if leaf.groups == 1 else "grouped"
    return "pool" if isinstance(leaf, nn.MaxPool2d | nn.AvgPool2d) else ""


def _cost(leaf: nn.Module, kind: str, read: int, written: int, device: FakeDevice) -> float:
    work = 0.0
    if isinstance(leaf, nn.Conv2d):
        work = written * leaf.weight[0].numel() * (1 if kind == "dense" else 8)
    elif kind == "pool":
        work = written * 9 * 4
    elif isinstance(leaf, nn.Linear):
        work = written * leaf.in_features
    return device.launch_ms + work / device.macs_per_ms + (read + written) / device.elements_per_ms
