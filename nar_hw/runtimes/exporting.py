"""What a runtime is given to make files for a bundle or a device, and what it says of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from nar_hw.records import Record
from nar_hw.runtimes.inputs import Shape

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Source:
    """The network and its ONNX files, from which a runtime makes files of its own."""

    network: "nn.Module"
    onnx: Mapping[str, Path]
    """By precision."""
    input_shape: Shape
    batch: tuple[int, int]
    """Fewest and most images at once."""
    metadata: Mapping[str, Any]
    """What the files shall say of themselves."""
    folder: Path
    """Where they shall lie."""
    gpus: tuple[str, ...] = ()
    """For which GPUs "tensorrt-rtx" builds: compute capabilities ("sm89"), cards ("RTX 4090") or "all"."""

    def path(self, precision: str, suffix: str) -> Path:
        """The file for a precision: model.engine in fp32, else model.int8.engine."""
        return self.folder / f"model{'' if precision == 'fp32' else f'.{precision}'}{suffix}"


class Exported(NamedTuple):
    """The files for one runtime in one precision."""

    files: tuple[str, ...]
    """Their names, the one to load first."""
    batch: tuple[int, int]
    """Fewest and most images at once."""
    device: str
    """"cpu" or "cuda"."""
    requires: Mapping[str, str]
    """What they were compiled for: CPU or GPU, versions."""


class Deployed(NamedTuple):
    """What a bundle's README says of how to run it stands on this."""

    input_shape: Shape
    batch: tuple[int, int]
    """Of the ONNX files."""
    classifies: bool
    """Whether the outputs are scores of classes."""
    exported: tuple[Exported, ...]
    """The runtime's own files."""

    @property
    def mode(self) -> str:
        """Pillow's name for images of so many channels."""
        channels = self.input_shape[0]
        return {1: "L", 3: "RGB"}.get(channels, f"{channels} channels")

    @property
    def repeat(self) -> str:
        """What makes of one image, in Python, as many as a run takes at least."""
        return f".repeat({self.batch[0]}, 0)" if self.batch[0] > 1 else ""


class Triton(NamedTuple):
    """How a Triton Inference Server runs a runtime's files."""

    backend: str
    file: str
    """The name under which it looks for the network."""


class DeviceLayers(Record, frozen=True, kw_only=True):
    """The profile of one network on a device, as it came from there (nar_hw/device)."""

    names: tuple[str, ...]
    """Of the nodes."""
    ms: tuple[tuple[float, ...], ...]
    """(runs, nodes), for every inference since loading."""
    nodes: tuple[dict[str, Any], ...] = ()
    """The graph that ran: name, op_type, domain, input and output of each node, where names must be joined here."""
    producers: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """Node -> the nodes that it reads from, where the runtime says so."""

    def named(self, names: Mapping[str, str]) -> list[dict[str, float]]:
        """The milliseconds of each node in every inference, under its other name in ``names``; what has one name is added."""
        found: list[dict[str, float]] = []
        for run in self.ms:
            found.append({})
            for own, ms in zip(self.names, run, strict=True):
                name = names.get(own, own)
                found[-1][name] = found[-1].get(name, 0.0) + ms
        return found
