"""Bundles on disk, read with every value checked.

A bundle is a folder with model.onnx (and its other precisions), compiled files where they were asked for, weights.safetensors,
arch.json, manifest.json and README.md.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nar_hw.errors import RunError
from nar_hw.files import sha256
from nar_hw.records import Record, read_record, shown
from nar_hw.runtimes import runtime_class
from nar_hw.runtimes.exporting import Deployed, Exported

SCHEMA, ARCH_SCHEMA = 3, 2
"""Of the manifest and of arch.json."""
MANIFEST = "manifest.json"
_MOST_VALUES = 2**28
"""Of one input: more is no image, but a number that somebody changed."""
_FIX = "copy the whole bundle or export it again"


class Network(Record, frozen=True, kw_only=True):
    """Which network a bundle holds."""

    name: str
    """As given to --model."""
    operators: tuple[str, ...] = ()
    """Names, one per slot."""
    codes: tuple[int, ...] = ()
    """The same as codes."""
    parameters: int | None = None
    """Counted when it is exported."""

    def __post_init__(self) -> None:
        """Raises RunError when names and codes do not go together."""
        if len(self.operators) != len(self.codes):
            raise RunError(f"operators and codes must go together, but there are {len(self.operators)} and {len(self.codes)}")


class Arch(Network, frozen=True, kw_only=True):
    """arch.json: the network and the size of its images."""

    input_shape: tuple[int, int, int]
    """(C, H, W) of one image."""


class Input(Record, frozen=True, kw_only=True):
    """What the ONNX files take."""

    name: str = "input"
    shape: tuple[int, int, int]
    """(C, H, W) of one image."""
    batch: tuple[int, int]
    """Fewest and most images at once."""
    type: str = "float32"

    def __post_init__(self) -> None:
        """Raises RunError for sizes that no image and no batch has."""
        if not all(0 < size < 2**16 for size in self.shape):
            raise RunError(f"shape must be [C, H, W], but is {shown(list(self.shape))}")
        _check_batch(self.batch)


class Output(Record, frozen=True, kw_only=True):
    """One of the tensors that they give."""

    name: str = "output"
    shape: tuple[int, ...]
    """Of one image: (classes,), (D,) of an embedding, or anything."""
    scale: float | None = None
    """The largest absolute value that torch gave, by which errors are judged; None in bundles of schema 2."""
    type: str = "float32"

    def __post_init__(self) -> None:
        """Raises RunError for sizes that no tensor has."""
        if not all(0 < size < 2**31 for size in self.shape) or math.prod(self.shape) > _MOST_VALUES:
            raise RunError(f"the shape of {shown(self.name)} must be of positive sizes, but is {shown(list(self.shape))}")


class Preparation(Record, frozen=True, kw_only=True):
    """How an image becomes an input."""

    channels: str | None
    """Pillow's mode; None for images that Pillow does not know."""
    resize: str = "scaled until it covers the size (bilinear, antialiased), then its centre cut out"
    divide_by: int = 255
    mean: tuple[float, ...]
    """Per channel, for pixels in [0, 1]."""
    std: tuple[float, ...]


class Checked(Record, frozen=True, kw_only=True):
    """A file that was compared with torch."""

    file: str
    accuracy: float | None
    """Top-1 on the validation images, in [0, 1]; None where the bundle was made without images."""
    accuracy_delta: float | None
    """``accuracy`` minus torch's."""
    cosine: float | None
    """Mean cosine similarity of embeddings with torch's; None for classifiers."""
    max_abs_error: float | None
    """Against torch in fp32, over all images it was checked on; None for an engine that could not run where it was built."""
    reference_scale: float
    """The largest absolute output of torch on these images."""
    tolerance: float | None
    """What the error had to stay below; None for int8, which is judged by its accuracy."""

    def __post_init__(self) -> None:
        """Raises RunError for a scale of nothing."""
        if not self.reference_scale > 0:
            raise RunError(f"reference_scale must be positive, but is {self.reference_scale:g}")

    @property
    def names(self) -> tuple[str, ...]:
        """All files that belong to it."""
        return (self.file,)


class Calibrated(Record, frozen=True, kw_only=True):
    """How int8 found its ranges."""

    method: str
    images: int


class Variant(Checked, frozen=True, kw_only=True, omit_defaults=True):
    """The network as ONNX in one precision."""

    calibration: Calibrated | None = None
    """Of int8."""


class Compiled(Checked, frozen=True, kw_only=True):
    """The network compiled for one runtime in one precision."""

    files: tuple[str, ...]
    """``file`` and what belongs to it."""
    batch: tuple[int, int]
    """Fewest and most images at once."""
    device: str
    """"cpu" or "cuda"."""
    requires: Mapping[str, str]
    """What it was compiled for: CPU or GPU, versions."""

    def __post_init__(self) -> None:
        """Raises RunError when the file is not one of its files, or no batch fits."""
        super().__post_init__()
        if self.file not in self.files:
            raise RunError(f"files must name {shown(self.file)}, but are {shown(list(self.files))}")
        _check_batch(self.batch)

    @property
    def names(self) -> tuple[str, ...]:
        """All files that belong to it."""
        return self.files

    @property
    def exported(self) -> Exported:
        """As its runtime knows it."""
        return Exported(self.files, self.batch, self.device, self.requires)


class Dense(Checked, frozen=True, kw_only=True):
    """The network for larger images, as ONNX: inputs of any size from ``smallest`` on, outputs "map" and "output" (its mean)."""

    smallest: tuple[int, int]
    """(H, W), the training's, where the map has one place."""
    stride: tuple[int, int]
    """Pixels from one place of the map to the next, down and to the right."""

    def __post_init__(self) -> None:
        """Raises RunError for sizes that are not positive."""
        super().__post_init__()
        if min(*self.smallest, *self.stride) < 1:
            raise RunError(f"smallest and stride must be positive, but are {shown([self.smallest, self.stride])}")


class Validation(Record, frozen=True, kw_only=True):
    """On what the files were compared, beside the check images."""

    images: int
    torch_accuracy: float | None


class Latency(Record, frozen=True, kw_only=True):
    """What is known of the network's latency."""

    predicted_ms: float | None = None
    """By the latency table with this hash."""
    measured: Mapping[str, float] = {}
    """Percentile ("p50_ms", ...) -> milliseconds; empty when it was not measured."""
    fingerprint: Mapping[str, Any] = {}
    """Of the device on which it was measured, or for which it was predicted."""
    table_hash: str | None = None


class Check(Record, frozen=True, kw_only=True):
    """What torch gave for `nar_hw.bundles.judge.check_images`."""

    outputs: tuple[tuple[float, ...], ...]
    """For each image all numbers, output by output."""


class Manifest(Record, frozen=True, kw_only=True):
    """manifest.json: everything about a bundle."""

    task: Literal["classification", "embedding", "own"]
    model: Network
    input: Input
    outputs: tuple[Output, ...]
    """In the order in which files give them."""
    preprocessing: Preparation
    classes: tuple[str, ...]
    """In the order of the outputs; none for a network that gives embeddings."""
    variants: Mapping[str, Variant]
    """The ONNX files by precision."""
    compiled: Mapping[str, Mapping[str, Compiled]]
    """By runtime and precision."""
    left_out: Mapping[str, str]
    """"<target> <precision>" that was asked for -> why it is not there."""
    tensorrt_parser: Mapping[str, str] = {}
    """What TensorRT's parser says of each ONNX file, by precision or "dense"; empty where none was installed."""
    dense: Dense | None
    validation: Validation
    latency: Latency
    check: Check
    versions: Mapping[str, str]
    files: Mapping[str, str]
    """Name -> SHA-256."""

    def __post_init__(self) -> None:
        """Raises RunError for values that do not go together."""
        channels, outputs = self.input.shape[0], sum(math.prod(output.shape) for output in self.outputs)
        smallest = max([self.input.batch[0], *(item.batch[0] for items in self.compiled.values() for item in items.values())])
        if smallest * math.prod(self.input.shape) > _MOST_VALUES:
            raise RunError(f"{smallest} images of {self.input.shape} must be at most {_MOST_VALUES:,} numbers: export it again")
        if outputs < 1 or (self.classes and [output.shape for output in self.outputs] != [(len(self.classes),)]):
            raise RunError(f"classes must be one for each of the {outputs} outputs, or none, but there are {len(self.classes)}")
        mean, std = self.preprocessing.mean, self.preprocessing.std
        if not len(mean) == len(std) == channels or not all(value > 0 for value in std):
            raise RunError(
                f"mean and std must have {channels} values, std positive, but are {shown(list(mean))} and {shown(list(std))}"
            )
        if "fp32" not in self.variants:
            raise RunError(f"variants must have fp32, but has {shown(list(self.variants))}")
        if not self.check.outputs or any(len(row) != outputs for row in self.check.outputs):
            raise RunError(f"check must hold {outputs} outputs for each image")
        for target, precision, item in self.entries():
            if missing := set(item.names) - self.files.keys():
                raise RunError(
                    f"the bundle must hold {shown(min(missing))} of {target} {precision}, but has {shown(list(self.files))}"
                )

    def entries(self) -> Iterator[tuple[str, str, Checked]]:
        """(target, precision, file) of every network: "onnx", "dense", and runtimes."""
        yield from (("onnx", precision, item) for precision, item in self.variants.items())
        if self.dense is not None:
            yield "dense", "fp32", self.dense
        for target, items in self.compiled.items():
            yield from ((target, precision, item) for precision, item in items.items())

    def deployed(self, runtime: str) -> Deployed:
        """What the README says of ``runtime`` stands on this."""
        exported = tuple(item.exported for item in self.compiled.get(runtime, {}).values())
        return Deployed(self.input.shape, self.input.batch, bool(self.classes), exported)


@dataclass(frozen=True)
class Bundle:
    """A bundle that is complete: every file exists and has the hash that the manifest says."""

    path: Path
    manifest: Manifest

    def onnx(self, precision: str = "fp32") -> Path:
        """The file of a precision. Raises RunError when the bundle does not have it."""
        variants = self.manifest.variants
        if precision not in variants:
            raise RunError(f"bundle {self.path} has {', '.join(variants)}, but {precision} is asked for: export it again")
        return self.path / variants[precision].file

    def file(self, runtime: str, precision: str, batch: int) -> Path:
        """What ``runtime`` loads: its compiled file if there is one for this precision and batch, else the ONNX file.

        Raises RunError when there is neither.
        """
        found = self.manifest.compiled.get(runtime, {}).get(precision)
        if found and found.batch[0] <= batch <= found.batch[1]:
            return self.path / found.file
        kind = runtime_class(runtime)
        if kind.exports and kind.consumes == "module":
            raise RunError(
                f"bundle {self.path} has no {runtime} file in {precision} for batch {batch}: export it with --to onnx,{runtime} "
                f"--precision {precision} --batch {batch}"
            )
        # Runtimes make fp16 and bf16 of an fp32 file themselves; int8 needs a file of its own.
        return self.onnx(precision if precision in self.manifest.variants or precision == "int8" else "fp32")


def load_bundle(path: Path | str) -> Bundle:
    """Read a bundle and check that it is whole.

    Raises:
        RunError: a file is missing, was changed, or lies outside the folder; the manifest is damaged or of another version.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    for name, digest in manifest.files.items():
        try:
            actual = sha256(folder / name)
        except (OSError, RunError):
            raise RunError(f"bundle {folder} must hold {name}, but does not: {_FIX}") from None
        if actual != digest:
            raise RunError(
                f"bundle {folder}: {name} was changed after the export (SHA-256 {actual[:12]}..., not {digest[:12]!r})"
            )
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle. Raises RunError when it is damaged, of another version, or names what is not in the folder."""
    file = folder / MANIFEST

    def current(content: dict[str, Any]) -> dict[str, Any]:
        if (found := content.pop("schema")) not in (2, SCHEMA):
            raise RunError(f"bundle manifest {file} must have schema {SCHEMA}, but has {found}: export it again")
        if found == 2 and "output" in content:
            content["outputs"] = [content.pop("output")]
        return content

    manifest = read_record(file, Manifest, what="bundle manifest", schema=SCHEMA, fix=_FIX, upgrade=current)
    for name in manifest.files:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or (folder / name).is_symlink():
            raise RunError(f"{file}: files must lie in the bundle itself, but {shown(name)} does not")
    return manifest


def _check_batch(batch: tuple[int, int]) -> None:
    fewest, most = batch
    if not 1 <= fewest <= most < 2**31:
        raise RunError(f"batch must be [fewest, most] with 1 <= fewest <= most, but is {shown(list(batch))}")
