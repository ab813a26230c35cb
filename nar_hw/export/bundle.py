"""A trained network as one folder that runs without this package, each file compared with torch before it is handed over."""

import math
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import nar_hw
from nar_hw.errors import DataError, ExportError, unknown_name
from nar_hw.export.manifest import MANIFEST, SCHEMA, accuracy, check_images, load_bundle
from nar_hw.export.onnx import Images, compare, export_onnx, open_session, run_session, run_torch
from nar_hw.export.quantize import Calibration, to_fp16, to_int8
from nar_hw.export.readme import readme
from nar_hw.files import sha256, write_bytes, write_json, write_text

TARGETS = ("onnx",)
FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
"""Precision -> file."""
TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3}
"""Precision -> largest error, as a share of the largest absolute output; int8 is judged by its accuracy."""


def export_bundle(
    network: nn.Module,
    out: Path | str,
    *,
    input_shape: tuple[int, int, int],
    classes: Sequence[str],
    arch: Sequence[str],
    codes: Sequence[int],
    model: str,
    mean: Sequence[float],
    std: Sequence[float],
    targets: Sequence[str] = ("onnx",),
    precisions: Sequence[str] = ("fp32",),
    batch: tuple[int, int] = (1, 64),
    images: Images | None = None,
    labels: NDArray[np.int64] | None = None,
    calibration_images: Images | None = None,
    calibration: Calibration = "minmax",
    max_accuracy_drop: float = 0.02,
    predicted_ms: float | None = None,
    measured_ms: Mapping[str, float] | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    table_hash: str | None = None,
) -> Path:
    """Write the bundle ``out``; when anything fails, what was there before stays as it was.

    Args:
        network: the trained network; it is left as it is.
        out: a folder that does not exist, is empty, or holds a bundle, which is replaced.
        input_shape: (C, H, W) of one image.
        classes: their names, in the order of the outputs.
        arch: operator names, one per slot; ``codes``: the same as codes.
        model: the name of the network that was searched.
        mean, std: per channel, for pixels in [0, 1].
        targets: file formats.
        precisions: of "fp32" (which is always there), "fp16" (fp32 input and output) and "int8".
        batch: (fewest, most) images at once.
        images, labels: validation images (N, C, H, W), normalised, and their classes (N,): every precision is compared with
            torch on them, and its accuracy is noted.
        calibration_images: training images (N, C, H, W), normalised; needed for int8.
        calibration: how int8 ranges are found.
        max_accuracy_drop: by how much int8 may be less accurate than torch on the validation images.
        predicted_ms, measured_ms, fingerprint, table_hash: kept in the manifest: the table's prediction, percentiles
            ("p50_ms", ...) of a measurement, the device of both, and the table.

    Raises:
        UnknownNameError: an unknown target or precision.
        DataError: images, labels and classes do not go together.
        ExportError: a file differs from torch by more than its tolerance, or ``out`` cannot be written.
    """
    out = Path(out)
    for kind, asked, known in (("export target", targets, TARGETS), ("precision", precisions, tuple(FILES))):
        for name in asked:
            if name not in known:
                raise unknown_name(kind, name, known)
    _check_images(input_shape, classes, images, labels)
    about = {
        "name": model,
        "operators": list(arch),
        "codes": [int(code) for code in codes],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    normalisation = {"mean": [float(value) for value in mean], "std": [float(value) for value in std]}
    properties = {"model": about, "classes": list(classes), "normalisation": normalisation, "table_hash": table_hash}
    judge = _Judge(network, input_shape, len(classes), images, labels)
    with _replacing(out) as folder:
        fp32 = folder / FILES["fp32"]
        export_onnx(network, fp32, input_shape=input_shape, batch=batch, metadata=properties)
        variants = {"fp32": judge(fp32, "fp32")}
        if "fp16" in precisions:
            to_fp16(fp32, folder / FILES["fp16"])
            variants["fp16"] = judge(folder / FILES["fp16"], "fp16")
        if "int8" in precisions:
            none = np.empty((0, *input_shape), np.float32)
            samples = none if calibration_images is None else calibration_images
            to_int8(fp32, folder / FILES["int8"], samples, method=calibration)
            variants["int8"] = judge(folder / FILES["int8"], "int8", max_accuracy_drop)
        write_bytes(folder / "weights.safetensors", _weights(network))
        write_json(folder / "arch.json", {"schema": SCHEMA, "input_shape": list(input_shape), **about})
        manifest = {
            "schema": SCHEMA,
            "model": about,
            "input": {"name": "input", "shape": list(input_shape), "batch": list(batch), "type": "float32"},
            "output": {"name": "output", "shape": [len(classes)], "type": "float32"},
            "preprocessing": {
                "channels": {1: "L", 3: "RGB"}.get(input_shape[0]),
                "resize": "scaled until it covers the size (bilinear, antialiased), then its centre cut out",
                "divide_by": 255,
                **normalisation,
            },
            "classes": list(classes),
            "variants": variants,
            "validation": {"images": 0 if images is None else len(images), "torch_accuracy": judge.accuracy},
            "latency": {
                "predicted_ms": predicted_ms,
                "measured": dict(measured_ms or {}),
                "fingerprint": dict(fingerprint or {}),
                "table_hash": table_hash,
            },
            "check": {"outputs": judge.check_outputs},
            "versions": _versions(),
        }
        write_text(folder / "README.md", readme(manifest))
        files = {file.name: sha256(file) for file in sorted(folder.iterdir())}
        write_json(folder / MANIFEST, {**manifest, "files": files})
        load_bundle(folder)
    return out


class _Judge:
    """Compares files with torch: on `check_images` and, where there are some, on the validation images."""

    def __init__(
        self,
        network: nn.Module,
        input_shape: tuple[int, int, int],
        classes: int,
        images: Images | None,
        labels: NDArray[np.int64] | None,
    ) -> None:
        checks = check_images(input_shape)
        reference = run_torch(network, checks)
        if reference.shape[1:] != (classes,):
            raise DataError(f"a classifier must give one output per class, ({classes},), but gives {reference.shape[1:]}")
        self.check_outputs = reference.astype(float).tolist()
        self._images = [checks] if images is None else [checks, images]
        self._labels = labels
        self._reference = reference if images is None else np.concatenate([reference, run_torch(network, images)])
        self.accuracy = self._accuracy(self._reference)

    def _accuracy(self, outputs: Images) -> float | None:
        return None if self._labels is None else accuracy(outputs[-len(self._labels) :], self._labels)

    def __call__(self, path: Path, precision: str, max_accuracy_drop: float = math.inf) -> dict[str, Any]:
        """The variant's entry in the manifest. Raises ExportError when it is not good enough."""
        session = open_session(path, threads=0)
        outputs = np.concatenate([run_session(session, images) for images in self._images])
        judged = precision in TOLERANCES
        try:
            found = compare(outputs, self._reference, tolerance=TOLERANCES[precision] if judged else math.inf)
        except ExportError as problem:
            raise ExportError(f"{precision}: {problem}") from problem
        reached = self._accuracy(outputs)
        if reached is not None and self.accuracy is not None and reached < self.accuracy - max_accuracy_drop:
            raise ExportError(
                f"{precision} may lose at most {100 * max_accuracy_drop:.1f} points of accuracy, but falls from "
                f"{100 * self.accuracy:.1f} % to {100 * reached:.1f} %: use other calibration images or another calibration"
            )
        return {"file": path.name, "accuracy": reached, **found, "tolerance": found["tolerance"] if judged else None}


def _check_images(
    input_shape: tuple[int, int, int], classes: Sequence[str], images: Images | None, labels: NDArray[np.int64] | None
) -> None:
    if (images is None) != (labels is None):
        raise DataError("validation images and labels must be given together")
    if images is None or labels is None:
        return
    if images.ndim != 4 or images.shape[1:] != input_shape or images.dtype != np.float32 or len(images) == 0:
        raise DataError(f"validation images must be float32 (N, {input_shape}), N > 0, but are {images.dtype} {images.shape}")
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(f"labels must be {len(images)} numbers from 0 to {len(classes) - 1}, but have shape {labels.shape}")


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A new folder beside ``out`` that takes its place when the block succeeds and vanishes when it does not."""
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"a bundle replaces only another bundle, but {out} holds something else: choose another folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as problem:
        raise ExportError(f"bundle {out} cannot be written: {problem}") from problem
    try:
        new = folder / "new"
        new.mkdir()
        yield new
        if out.exists():
            out.rename(folder / "old")
        new.rename(out)
    except OSError as problem:
        raise ExportError(f"bundle {out} cannot be written: {problem}") from problem
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _weights(network: nn.Module) -> bytes:
    from safetensors.torch import save

    # Modules that are reachable twice share their tensors, which the format refuses: each name gets its own copy.
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()})


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime

    packages = {"nar_hw": nar_hw, "torch": torch, "onnx": onnx, "onnxruntime": onnxruntime, "numpy": np}
    return {"python": platform.python_version(), **{name: str(module.__version__) for name, module in packages.items()}}
