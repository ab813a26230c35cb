"""Bundles on disk, read with every value checked.

A bundle is a folder with model.onnx (and its other precisions), compiled files where they were asked for, weights.safetensors,
arch.json, manifest.json and README.md.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nar_hw.errors import RunError
from nar_hw.export.onnx import Images
from nar_hw.files import read_json, sha256

SCHEMA = 2
MANIFEST = "manifest.json"
_MOST_VALUES = 2**28
"""Of one input: more is no image, but a number that somebody changed."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One precision of the network: one file."""

    file: str
    accuracy: float | None
    """Top-1 on the validation images, in [0, 1]; None where the bundle was made without images."""
    accuracy_delta: float | None
    """``accuracy`` minus torch's."""
    cosine: float | None
    """Mean cosine similarity of embeddings with torch's; None for classifiers."""
    max_abs_error: float | None
    """Against torch in fp32, over all images it was checked on; None for an engine that was built where it cannot run."""
    reference_scale: float
    """The largest absolute output of torch on these images."""
    tolerance: float | None
    """What the error had to stay below; None for int8, which is judged by its accuracy."""


@dataclass(frozen=True, kw_only=True)
class Compiled(Variant):
    """One precision of the network compiled for one runtime."""

    files: tuple[str, ...]
    """``file`` and what belongs to it."""
    batch: tuple[int, int]
    """Fewest and most images at once."""
    device: str
    """"cpu" or "cuda"."""
    requires: Mapping[str, str]
    """What it was compiled for: CPU or GPU, versions."""


@dataclass(frozen=True, kw_only=True)
class DenseFile(Variant):
    """The network for larger images, as ONNX: inputs of any size from ``smallest`` on, outputs "map" and "output" (its mean)."""

    smallest: tuple[int, int]
    """(H, W), the training's, where the map has one place."""
    stride: tuple[int, int]
    """Pixels from one place of the map to the next, down and to the right."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle that is complete: every file exists and has the hash that the manifest says."""

    path: Path
    model: str
    """The network it was made from, as given to --model."""
    input_shape: tuple[int, int, int]
    """(C, H, W)."""
    batch: tuple[int, int]
    """Fewest and most images at once."""
    arch: tuple[str, ...]
    """Operator names, one per slot."""
    codes: tuple[int, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, for pixels in [0, 1]."""
    std: tuple[float, ...]
    outputs: int
    """Numbers per image: scores of the classes, or an embedding."""
    variants: Mapping[str, Variant]
    """The ONNX files by precision."""
    compiled: Mapping[str, Mapping[str, Compiled]]
    """By target (aoti, openvino, tensorrt) and precision."""
    dense: DenseFile | None
    tensorrt_parser: Mapping[str, str]
    """What TensorRT's parser says of each ONNX file, by precision or "dense"; empty where none was installed."""
    predicted_ms: float | None
    measured_ms: Mapping[str, float]
    """Percentile ("p50_ms", ...) -> milliseconds; empty when it was not measured."""
    fingerprint: Mapping[str, Any]
    """Of the device on which it was measured, or for which it was predicted."""
    table_hash: str | None
    versions: Mapping[str, str]
    files: Mapping[str, str]
    """Name -> SHA-256."""
    check_outputs: tuple[tuple[float, ...], ...]
    """What torch gave for `check_images`."""

    def onnx(self, precision: str = "fp32") -> Path:
        """The file of a precision. Raises RunError when the bundle does not have it."""
        if precision not in self.variants:
            raise RunError(f"bundle {self.path} has {', '.join(self.variants)}, but {precision} is asked for: export it again")
        return self.path / self.variants[precision].file

    def file(self, runtime: str, precision: str, batch: int) -> Path:
        """What ``runtime`` loads: its compiled file if there is one for this precision and batch, else the ONNX file.

        Raises RunError when there is neither.
        """
        found = self.compiled.get(runtime, {}).get(precision)
        if found and found.batch[0] <= batch <= found.batch[1]:
            return self.path / found.file
        if runtime == "aoti":
            raise RunError(
                f"bundle {self.path} has no aoti package in {precision} for batch {batch}: export it with --to onnx,aoti "
                f"--precision {precision} --batch {batch}"
            )
        # Runtimes make fp16 and bf16 of an fp32 file themselves; int8 needs a file of its own.
        return self.onnx(precision if precision in self.variants or precision == "int8" else "fp32")


def check_images(input_shape: tuple[int, int, int], count: int = 2) -> Images:
    """The random images (count, C, H, W) whose outputs every bundle keeps, the same on every machine."""
    size = count * math.prod(input_shape)
    noise = np.random.RandomState(0).random_sample(size)  # its stream is frozen, unlike default_rng's
    return (4 * noise - 2).astype(np.float32).reshape(count, *input_shape)


def load_bundle(path: Path | str) -> Bundle:
    """Read a bundle and check that it is whole.

    Raises:
        RunError: a file is missing, was changed, or lies outside the folder; the manifest is damaged or of another version.
    """
    folder = Path(path)
    file = folder / MANIFEST
    root = _Value(read_json(file, what="bundle manifest"), str(file))
    if root.value.get("schema") != SCHEMA:
        raise RunError(f"{file} must have schema {SCHEMA}, but has {_short(root.value.get('schema'))}: export it again")
    files = {name: root["files"].text(name) for name in root["files"].value}
    variants = {precision: _variant(root["variants"][precision], files) for precision in root["variants"].value}
    source, latency = root["input"], root["latency"]
    bundle = Bundle(
        path=folder,
        model=root["model"].text("name"),
        input_shape=_shape(source),
        batch=_batch(source),
        arch=tuple(root["model"].items("operators", str)),
        codes=tuple(root["model"].items("codes", int)),
        classes=tuple(root.items("classes", str)),
        mean=tuple(map(float, root["preprocessing"].items("mean", float))),
        std=tuple(map(float, root["preprocessing"].items("std", float))),
        outputs=root["output"].items("shape", int)[0] if root["output"].items("shape", int) else 0,
        variants=variants,
        compiled={target: _compiled(root["compiled"][target], files) for target in root["compiled"].value},
        dense=None if root._get("dense") is None else _dense(root["dense"], files),
        tensorrt_parser={name: root["tensorrt_parser"].text(name) for name in root.value.get("tensorrt_parser") or {}},
        predicted_ms=latency.optional_number("predicted_ms"),
        measured_ms={name: latency["measured"].number(name) for name in latency["measured"].value},
        fingerprint=latency["fingerprint"].value,
        table_hash=latency.optional_text("table_hash"),
        versions={name: root["versions"].text(name) for name in root["versions"].value},
        files=files,
        check_outputs=tuple(tuple(map(float, _Value({"row": row}, str(file)).items("row", float))) for row in _rows(root)),
    )
    _check_sizes(bundle, file)
    for name, digest in files.items():
        _check_file(folder, name, digest)
    return bundle


def accuracy(outputs: Images, labels: NDArray[np.int64]) -> float:
    """The share of outputs (N, classes) whose largest entry is the label (N,)."""
    return float((outputs.argmax(axis=1) == labels).mean())


def cosine(outputs: Images, reference: Images) -> float:
    """The mean cosine similarity of embeddings (N, D)."""
    lengths = np.linalg.norm(outputs, axis=1) * np.linalg.norm(reference, axis=1)
    return float(np.mean((outputs * reference).sum(axis=1) / np.maximum(lengths, 1e-12)))


class _Value:
    """One JSON object whose values are checked when they are taken; every error names the file and the field."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise RunError(f"{where} must be a JSON object, but is {_short(value)}: the bundle was edited by hand")
        self.value: dict[str, Any] = value
        self.where = where

    def __getitem__(self, name: str) -> "_Value":
        return _Value(self._get(name), f"{self.where}: {name}")

    def _get(self, name: str) -> Any:
        if name not in self.value:
            raise RunError(f"{self.where} must have {name!r}, but does not: the bundle is damaged, export it again")
        return self.value[name]

    def _wrong(self, name: str, what: str) -> RunError:
        return RunError(f"{self.where}: {name} must be {what}, but is {_short(self.value[name])}")

    def text(self, name: str) -> str:
        value = self._get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "a text")
        return value

    def optional_text(self, name: str) -> str | None:
        return None if self._get(name) is None else self.text(name)

    def number(self, name: str) -> float:
        value = self._get(name)
        if not _is_number(value):
            raise self._wrong(name, "a finite number")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        return None if self._get(name) is None else self.number(name)

    def items(self, name: str, kind: type) -> list[Any]:
        value = self._get(name)
        fits = _is_number if kind is float else lambda item: type(item) is kind
        if not isinstance(value, list) or not all(map(fits, value)):
            raise self._wrong(name, f"a list of {'numbers' if kind is float else kind.__name__}")
        return value


def _is_number(value: Any) -> bool:
    if type(value) not in (int, float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _short(value: Any) -> str:
    return repr(value)[:60]


def _rows(root: _Value) -> list[Any]:
    rows = root["check"].value.get("outputs")
    if not isinstance(rows, list):
        raise RunError(
            f"{root.where}: check must hold the outputs of {len(check_images((1, 1, 1)))} images, but holds {_short(rows)}"
        )
    return rows


def _variant(value: _Value, files: Mapping[str, str]) -> Variant:
    return Variant(**_judged(value, files))


def _judged(value: _Value, files: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a `Variant`."""
    optional = ("accuracy", "accuracy_delta", "cosine", "tolerance", *(["max_abs_error"] if "requires" in value.value else []))
    required = {"max_abs_error", "reference_scale"} - set(optional)
    numbers = {name: value.number(name) for name in sorted(required)}
    fields = {"file": value.text("file"), **numbers, **{name: value.optional_number(name) for name in optional}}
    if fields["file"] not in files:
        raise RunError(f"{value.where}: file must be one of {', '.join(files)}, but is {_short(fields['file'])}")
    if not numbers["reference_scale"] > 0:
        raise RunError(f"{value.where}: reference_scale must be positive, but is {numbers['reference_scale']:g}")
    return fields


def _compiled(value: _Value, files: Mapping[str, str]) -> dict[str, Compiled]:
    """The files of one target by precision."""
    found = {}
    for precision in value.value:
        item = value[precision]
        own, requires = tuple(item.items("files", str)), item["requires"]
        if item.text("file") not in own or not set(own) <= files.keys():
            raise RunError(
                f"{item.where}: files must be of the bundle and name {_short(item.text('file'))}, but are {_short(own)}"
            )
        found[precision] = Compiled(
            **_judged(item, files),
            files=own,
            batch=_batch(item),
            device=item.text("device"),
            requires={name: requires.text(name) for name in requires.value},
        )
    return found


def _dense(value: _Value, files: Mapping[str, str]) -> DenseFile:
    return DenseFile(**_judged(value, files), smallest=_pair(value, "smallest"), stride=_pair(value, "stride"))


def _shape(source: _Value) -> tuple[int, int, int]:
    sizes = source.items("shape", int)
    if len(sizes) != 3 or not all(0 < size < 2**16 for size in sizes):
        raise RunError(f"{source.where}: shape must be [C, H, W], but is {_short(sizes)}")
    channels, height, width = sizes
    return channels, height, width


def _batch(source: _Value) -> tuple[int, int]:
    fewest, most = _pair(source, "batch")
    if fewest > most:
        raise RunError(f"{source.where}: batch must be [fewest, most] with 1 <= fewest <= most, but is [{fewest}, {most}]")
    return fewest, most


def _pair(source: _Value, name: str) -> tuple[int, int]:
    sizes = source.items(name, int)
    if len(sizes) != 2 or not all(0 < size < 2**31 for size in sizes):
        raise RunError(f"{source.where}: {name} must be two positive whole numbers, but is {_short(sizes)}")
    return sizes[0], sizes[1]


def _check_sizes(bundle: Bundle, file: Path) -> None:
    channels, classes = bundle.input_shape[0], len(bundle.classes)
    smallest = max([bundle.batch[0], *(item.batch[0] for items in bundle.compiled.values() for item in items.values())])
    if smallest * math.prod(bundle.input_shape) > _MOST_VALUES:
        raise RunError(
            f"{file}: {smallest} images of {bundle.input_shape} are more than {_MOST_VALUES:,} numbers: export it again"
        )
    if bundle.outputs < 1 or classes not in (0, bundle.outputs):
        raise RunError(
            f"{file}: there must be a class for each of the {bundle.outputs} outputs, or none, but there are {classes}"
        )
    if not len(bundle.mean) == len(bundle.std) == channels or not all(value > 0 for value in bundle.std):
        raise RunError(f"{file}: mean and std must have {channels} values, std positive, but are {bundle.mean} and {bundle.std}")
    if len(bundle.arch) != len(bundle.codes):
        raise RunError(f"{file}: operators and codes must go together, but there are {len(bundle.arch)} and {len(bundle.codes)}")
    if "fp32" not in bundle.variants:
        raise RunError(f"{file}: variants must have fp32, but has {', '.join(bundle.variants) or 'none'}")
    if not bundle.check_outputs or any(len(row) != bundle.outputs for row in bundle.check_outputs):
        raise RunError(f"{file}: check must hold {bundle.outputs} outputs for each image")


def _check_file(folder: Path, name: str, digest: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or (folder / name).is_symlink():
        raise RunError(f"{folder / MANIFEST}: files must lie in the bundle itself, but {_short(name)} does not")
    try:
        actual = sha256(folder / name)
    except OSError:
        raise RunError(f"bundle {folder} must hold {name}, but does not: copy the whole folder or export it again") from None
    if actual != digest:
        raise RunError(f"bundle {folder}: {name} was changed after the export (SHA-256 {actual[:12]}..., not {digest[:12]!r})")
