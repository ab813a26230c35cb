"""A trained network as one folder that runs without this package, each file compared with torch before it is handed over."""

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from torch import nn

from nar_hw._version import versions
from nar_hw.bundles.judge import COMPILED_FP32, TOLERANCES, Judge
from nar_hw.bundles.manifest import MANIFEST, SCHEMA, load_bundle
from nar_hw.bundles.readme import readme
from nar_hw.bundles.targets import Source, build, check_gpus, config_for, plan, runs_elsewhere
from nar_hw.bundles.verify import parsed
from nar_hw.errors import ExportError, RuntimeUnavailableError
from nar_hw.export.dense import DENSE_FILE, export_dense, run_dense
from nar_hw.export.onnx import Images, export_onnx, open_session, run_session
from nar_hw.export.quantize import Calibration, to_fp16, to_int8
from nar_hw.files import sha256, write_bytes, write_json, write_text
from nar_hw.runtimes import runtime_class

FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
"""Precision -> ONNX file."""


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
    device: str = "cpu",
    gpus: Sequence[str] = (),
    dense: bool = False,
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
        classes: their names, in the order of the outputs; none for a network that gives embeddings, which is judged by its
            error and, in int8, by the cosine similarity with torch's.
        arch: operator names, one per slot; ``codes``: the same as codes.
        model: the name of the network that was searched.
        mean, std: per channel, for pixels in [0, 1].
        targets: of "onnx" (which is always there), "tensorrt", "tensorrt-rtx", "aoti" and "openvino"; each in those of the
            precisions that it can have on this machine, and the manifest tells which are left out and why.
        precisions: of "fp32" (always there in ONNX), "fp16", "bf16" and "int8"; input and output are fp32 in all of them.
        batch: (fewest, most) images at once; AOTInductor packages are for the fewest only.
        dense: write model.dense.onnx too, for images of any size from the training's on: the class map, and its mean.
        device: where AOTInductor packages shall run: "cpu" or "cuda".
        gpus: for which GPUs "tensorrt-rtx" builds: compute capabilities ("sm89"), cards ("RTX 4090") or "all".
        images, labels: validation images (N, C, H, W), normalised, and their classes (N,): every precision is compared with
            torch on them, and its accuracy is noted.
        calibration_images: training images (N, C, H, W), normalised; needed for int8.
        calibration: how int8 ranges are found.
        max_accuracy_drop: by how much a file may be less accurate than torch on the validation images.
        predicted_ms, measured_ms, fingerprint, table_hash: kept in the manifest: the table's prediction, percentiles
            ("p50_ms", ...) of a measurement, the device of both, and the table.

    Raises:
        UnknownNameError: an unknown target, precision or GPU.
        RuntimeUnavailableError: a target that does not work here.
        DataError: images, labels and classes do not go together.
        ExportError: a file differs from torch by more than its tolerance, or ``out`` cannot be written.
    """
    out = Path(out)
    compiled, left_out = plan(targets, precisions, device)
    left_out |= check_gpus(gpus, targets, compiled)
    about = {
        "name": model,
        "operators": list(arch),
        "codes": [int(code) for code in codes],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    normalisation = {"mean": [float(value) for value in mean], "std": [float(value) for value in std]}
    properties = {"model": about, "classes": list(classes), "normalisation": normalisation, "table_hash": table_hash}
    judge = Judge(network, input_shape, classes, images, labels)
    samples = np.empty((0, *input_shape), np.float32) if calibration_images is None else calibration_images
    with _replacing(out) as folder:
        files = {precision: folder / name for precision, name in FILES.items() if precision in ("fp32", *precisions)}
        export_onnx(network, files["fp32"], input_shape=input_shape, batch=batch, metadata=properties)
        if "fp16" in files:
            to_fp16(files["fp32"], files["fp16"])
        if "int8" in files:
            to_int8(files["fp32"], files["int8"], samples, method=calibration)
        variants = {precision: _variant(judge, file, precision, max_accuracy_drop) for precision, file in files.items()}
        if "int8" in variants:
            variants["int8"]["calibration"] = {"method": calibration, "images": len(samples)}
        source = Source(
            network=network, onnx=files, input_shape=input_shape, batch=batch, device=device, gpus=gpus, metadata=properties
        )
        larger = _dense(judge, network, folder, input_shape, batch, properties) if dense else None
        made: dict[str, dict[str, Any]] = {}
        for target, precision in compiled:
            made.setdefault(target, {})[precision] = _compiled(judge, target, precision, source, folder, max_accuracy_drop)
        write_bytes(folder / "weights.safetensors", _weights(network))
        write_json(folder / "arch.json", {"schema": SCHEMA, "input_shape": list(input_shape), **about})
        manifest = {
            "schema": SCHEMA,
            "task": "classification" if classes else "embedding",
            "model": about,
            "input": {"name": "input", "shape": list(input_shape), "batch": list(batch), "type": "float32"},
            "output": {"name": "output", "shape": [judge.outputs], "type": "float32"},
            "preprocessing": {
                "channels": {1: "L", 3: "RGB"}.get(input_shape[0]),
                "resize": "scaled until it covers the size (bilinear, antialiased), then its centre cut out",
                "divide_by": 255,
                **normalisation,
            },
            "classes": list(classes),
            "variants": variants,
            "compiled": made,
            "left_out": left_out,
            "tensorrt_parser": parsed(files, folder / DENSE_FILE if dense else None),
            "dense": larger,
            "validation": {"images": 0 if images is None else len(images), "torch_accuracy": judge.accuracy},
            "latency": {
                "predicted_ms": predicted_ms,
                "measured": dict(measured_ms or {}),
                "fingerprint": dict(fingerprint or {}),
                "table_hash": table_hash,
            },
            "check": {"outputs": judge.check_outputs},
            "versions": {**versions("torch", "onnx", "numpy"), "onnxruntime": onnxruntime.__version__},
        }
        write_text(folder / "README.md", readme(manifest))
        hashes = {file.name: sha256(file) for file in sorted(folder.iterdir())}
        write_json(folder / MANIFEST, {**manifest, "files": hashes})
        load_bundle(folder)
    return out


def _variant(judge: Judge, file: Path, precision: str, max_drop: float) -> dict[str, Any]:
    """An ONNX file's entry in the manifest."""
    session = open_session(file, threads=0)
    drop = math.inf if precision == "fp32" else max_drop
    judged = judge(partial(run_session, session), precision, tolerance=TOLERANCES.get(precision), max_drop=drop)
    return {"file": file.name, **judged}


def _dense(
    judge: Judge,
    network: nn.Module,
    folder: Path,
    input_shape: tuple[int, int, int],
    batch: tuple[int, int],
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    """Make the dense file; its entry in the manifest. At the training size its one answer is the network's."""
    file = folder / DENSE_FILE
    sizes = export_dense(network, file, input_shape=input_shape, batch=batch, metadata=metadata)
    return {"file": file.name, **sizes, **judge(partial(run_dense, file), "dense", tolerance=TOLERANCES["fp32"])}


def _compiled(judge: Judge, target: str, precision: str, source: Source, folder: Path, max_drop: float) -> dict[str, Any]:
    """Make the files of a target; their entry in the manifest."""
    made = build(target, precision, source, folder)
    config = config_for(target, precision, source.device, made["batch"][0])
    tolerance = COMPILED_FP32 if precision == "fp32" else TOLERANCES.get(precision)
    try:
        with runtime_class(target)(folder / made["file"], source.input_shape, config) as runtime:
            return {**made, **judge(runtime.predict, f"{target} {precision}", tolerance=tolerance, max_drop=max_drop)}
    except RuntimeUnavailableError:
        if not runs_elsewhere(target):
            raise
        return {**made, **judge.not_run(tolerance)}


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
