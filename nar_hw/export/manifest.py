"""Bundles on disk: read with every value checked, and tested again on any machine.

A bundle is a folder with model.onnx (and its other precisions), weights.safetensors, arch.json, manifest.json and README.md.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nar_hw.errors import ExportError, RunError
from nar_hw.export.onnx import Images, compare, open_session, run_session
from nar_hw.files import read_json, sha256

SCHEMA = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One precision of the network: one file."""

    file: str
    accuracy: float | None
    """Top-1 on the validation images, in [0, 1]; None where the bundle was made without images."""
    max_abs_error: float
    """Against torch in fp32, over all images it was checked on."""
    reference_scale: float
    """The largest absolute output of torch on these images."""
    tolerance: float | None
    """What the error had to stay below; None for int8, which is judged by its accuracy."""


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
    variants: Mapping[str, Variant]
    """By precision."""
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
        raise _damaged(f"{file} must have schema {SCHEMA}, but has {root.value.get('schema')!r}: export it again")
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
        variants=variants,
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


def verify_bundle(path: Path | str, *, images: Images | None = None, labels: NDArray[np.int64] | None = None) -> dict[str, Any]:
    """Check on this machine that every file of a bundle still computes what it did where it was made.

    Args:
        path: the bundle.
        images, labels: (N, C, H, W) normalised and (N,); with them the accuracies are computed again too.

    Returns:
        precision -> max_abs_error on `check_images` and, with images, accuracy.

    Raises:
        RunError: the bundle is not whole.
        ExportError: an output differs from torch's by more than the precision's tolerance.
    """
    bundle = load_bundle(path)
    reference = np.asarray(bundle.check_outputs, np.float32)
    found: dict[str, Any] = {}
    for precision, variant in bundle.variants.items():
        session = open_session(bundle.onnx(precision), threads=0)
        source = session.get_inputs()[0]
        if tuple(source.shape[1:]) != bundle.input_shape:
            raise ExportError(
                f"{variant.file} must take images of shape {bundle.input_shape}, but takes {tuple(source.shape[1:])}"
            )
        outputs = run_session(session, check_images(bundle.input_shape, len(reference)))
        share = math.inf if variant.tolerance is None else variant.tolerance / variant.reference_scale
        try:
            found[precision] = {"max_abs_error": compare(outputs, reference, tolerance=share)["max_abs_error"]}
        except ExportError as problem:
            raise ExportError(f"{bundle.onnx(precision)}: {problem}") from problem
        if images is not None and labels is not None:
            found[precision]["accuracy"] = accuracy(run_session(session, images), labels)
    return found


def accuracy(outputs: Images, labels: NDArray[np.int64]) -> float:
    """The share of outputs (N, classes) whose largest entry is the label (N,)."""
    return float((outputs.argmax(axis=1) == labels).mean())


class _Value:
    """One JSON object whose values are checked when they are taken; every error names the file and the field."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise _damaged(f"{where} must be a JSON object, but is {_short(value)}: the bundle was edited by hand")
        self.value: dict[str, Any] = value
        self.where = where

    def __getitem__(self, name: str) -> "_Value":
        return _Value(self._get(name), f"{self.where}: {name}")

    def _get(self, name: str) -> Any:
        if name not in self.value:
            raise _damaged(f"{self.where} must have {name!r}, but does not: the bundle is damaged, export it again")
        return self.value[name]

    def _wrong(self, name: str, what: str) -> RunError:
        return _damaged(f"{self.where}: {name} must be {what}, but is {_short(self.value[name])}")

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
    variant = Variant(
        file=value.text("file"),
        accuracy=value.optional_number("accuracy"),
        max_abs_error=value.number("max_abs_error"),
        reference_scale=value.number("reference_scale"),
        tolerance=value.optional_number("tolerance"),
    )
    if variant.file not in files:
        raise _damaged(f"{value.where}: file must be one of {', '.join(files)}, but is {_short(variant.file)}")
    if not variant.reference_scale > 0:
        raise _damaged(f"{value.where}: reference_scale must be positive, but is {variant.reference_scale:g}")
    return variant


def _shape(source: _Value) -> tuple[int, int, int]:
    sizes = source.items("shape", int)
    if len(sizes) != 3 or not all(0 < size < 2**16 for size in sizes):
        raise _damaged(f"{source.where}: shape must be [C, H, W], but is {_short(sizes)}")
    channels, height, width = sizes
    return channels, height, width


def _batch(source: _Value) -> tuple[int, int]:
    sizes = source.items("batch", int)
    if len(sizes) != 2 or not 1 <= sizes[0] <= sizes[1]:
        raise _damaged(f"{source.where}: batch must be [fewest, most] with 1 <= fewest <= most, but is {_short(sizes)}")
    return sizes[0], sizes[1]


def _check_sizes(bundle: Bundle, file: Path) -> None:
    channels, classes = bundle.input_shape[0], len(bundle.classes)
    if not len(bundle.mean) == len(bundle.std) == channels or not all(value > 0 for value in bundle.std):
        raise _damaged(f"{file}: mean and std must have {channels} values, std positive, but are {bundle.mean} and {bundle.std}")
    if len(bundle.arch) != len(bundle.codes):
        raise _damaged(f"{file}: operators and codes must go together, but there are {len(bundle.arch)} and {len(bundle.codes)}")
    if "fp32" not in bundle.variants:
        raise _damaged(f"{file}: variants must have fp32, but has {', '.join(bundle.variants) or 'none'}")
    if not bundle.check_outputs or any(len(row) != classes for row in bundle.check_outputs):
        raise _damaged(f"{file}: check must hold {classes} outputs for each image, one per class")


def _check_file(folder: Path, name: str, digest: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or (folder / name).is_symlink():
        raise _damaged(f"{folder / MANIFEST}: files must lie in the bundle itself, but {_short(name)} does not")
    try:
        actual = sha256(folder / name)
    except OSError:
        raise _damaged(f"bundle {folder} must hold {name}, but does not: copy the whole folder or export it again") from None
    if actual != digest:
        raise _damaged(f"bundle {folder}: {name} was changed after the export (SHA-256 {actual[:12]}..., not {digest[:12]!r})")


def _damaged(message: str) -> RunError:
    """The error with everything that comes from the file on one line, unable to steer a terminal."""
    return RunError("".join(char if char.isprintable() else repr(char)[1:-1] for char in message))
