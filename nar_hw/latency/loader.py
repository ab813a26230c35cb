"""Children of a space as loaded networks."""

import itertools
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from nar_hw.device.machine import cores
from nar_hw.device.visits import at_once
from nar_hw.files import Scratch
from nar_hw.garbage import collector_paused
from nar_hw.latency.meters import memory_of
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.runtimes.base import Runtime
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch

if TYPE_CHECKING:
    from torch import nn

    from nar_hw.export.splice import ChildExporter

WEIGHED = 16
"""Children of which a loader measures the memory: each costs as much time as a visit."""


class ChildFiles:
    """Where loaders of the same space put their ONNX files, and what makes them: the network is exported once per batch size."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._exporters: dict[tuple[int, bool], ChildExporter] = {}
        self._numbers = itertools.count()
        scratch = Scratch()
        self._folder = Path(scratch.name)
        self.close = weakref.finalize(self, scratch.cleanup)

    def exporter(self, config: RuntimeConfig) -> "ChildExporter":
        """For the batch size of ``config``, with the weights of all children in one file where its runtime can read that."""
        from nar_hw.export.splice import ChildExporter  # pulls in onnx

        key = (config.batch, runtime_class(config.runtime).shares_weights(config))
        if key not in self._exporters:
            weights_in = self._folder if key[1] else None
            self._exporters[key] = ChildExporter(self._space, batch=config.batch, weights_in=weights_in)
        return self._exporters[key]

    def new(self) -> Path:
        """A name for another file."""
        return self._folder / f"{next(self._numbers)}.onnx"


class ChildLoader:
    """Loads children of a space in one runtime: ``loader(arch, profile)``; close it, or use it as a context.

    Their weights do not matter and are those of the network where they fit. Runtimes that read ONNX files get them by
    surgery on one export of the network.
    """

    def __init__(
        self, space: SearchSpace, config: RuntimeConfig, files: ChildFiles | None = None, *, memory: bool = False
    ) -> None:
        """``files``: shared with other loaders of the same space; ``memory``: what the first children take is measured
        (`Runtime.mib`)."""
        self.space, self.config = space, config
        self._runtime = runtime_class(config.runtime)
        self._exporter: ChildExporter | None = None
        self._opened = ExitStack()
        self._used: Callable[[], float | None] | None = None
        self._weighed = 0
        self._one = threading.Lock()
        if memory and not self._runtime.simulated:
            self._used = self._opened.enter_context(memory_of(config))
        if self._runtime.consumes == "onnx" and self._runtime.unavailable(config) is None:
            self._files = files or ChildFiles(space)
            self._exporter = self._files.exporter(config)
            if files is None:
                self._opened.callback(self._files.close)

    def threads(self) -> int:
        """How many threads may load children at the same time and gain by it: one while memory is measured."""
        beside = self._runtime.loads_beside and self.config.device_type == "cpu" and self._meter is None
        return (cores() or 1) if beside else 1

    def __call__(self, arch: Arch, profile: bool = False) -> Runtime:
        """The child, loaded. Raises SpaceError, RuntimeUnavailableError."""
        if self._exporter is None:
            return self._loaded(lambda: self.space.build(arch), profile)
        path = self._files.new()
        with self._one:  # its parts are made once and used again
            self._write(self._exporter, arch, path)
        runtime = self._loaded(lambda: path, profile)
        weakref.finalize(runtime, path.unlink, missing_ok=True)
        return runtime

    def _write(self, exporter: "ChildExporter", arch: Arch, path: Path) -> None:
        exporter.export(arch, path)
        if self.config.precision == "int8":
            from nar_hw.export.quantize import to_int8

            # Times do not depend on the ranges.
            to_int8(path, path, np.random.default_rng(0).standard_normal((1, *self.space.input_shape), dtype=np.float32))

    def incumbent(self) -> Runtime:
        """The network itself, loaded. Raises RuntimeUnavailableError."""
        return self(self.space.incumbent)

    @property
    def _meter(self) -> Callable[[], float | None] | None:
        """What reads the memory in use, while children are still weighed."""
        return self._used if self._weighed < WEIGHED else None

    def _loaded(self, network: "Callable[[], nn.Module | Path]", profile: bool) -> Runtime:
        def load() -> Runtime:
            return self._runtime(network(), self.space.input_shape, self.config, profile=profile, own=True)

        if profile or (used := self._meter) is None:
            return load()
        with collector_paused():
            before = used()
            runtime = load()
            runtime.time_ms(1)
            after = used()
        runtime.mib = None if before is None or after is None else max(0.0, after - before)
        self._weighed += 1
        return runtime

    def close(self) -> None:
        """Delete its own files; may be called twice."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def children_at_once(space: SearchSpace) -> int:
    """How many children may be loaded at the same time on this machine."""
    return at_once(weight_bytes(space))


def weight_bytes(space: SearchSpace) -> int:
    """What the network's weights take."""
    return sum(parameter.nbytes for parameter in space.model.parameters())
