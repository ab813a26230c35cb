"""Bundles tested again, on any machine: hashes, and whether every file still computes what it did where it was made."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nar_hw.bundles.judge import accuracy, check_images, compared
from nar_hw.bundles.manifest import Bundle, Checked, load_bundle
from nar_hw.bundles.targets import config_for
from nar_hw.errors import ExportError, RuntimeUnavailableError
from nar_hw.export.dense import run_dense
from nar_hw.export.onnx import Images, open_session, run_session
from nar_hw.export.tensorrt import parser_verdicts
from nar_hw.records import replace
from nar_hw.runtimes import runtime_class


def verify_bundle(path: Path | str, *, images: Images | None = None, labels: NDArray[np.int64] | None = None) -> dict[str, Any]:
    """Check on this machine that every file of a bundle still computes what it did where it was made.

    Args:
        path: the bundle.
        images, labels: (N, C, H, W) normalised and (N,); with them the accuracies are computed again too.

    Returns:
        precision (ONNX), "dense" or "target precision" (compiled files) -> file, max_abs_error on `check_images` and, with
        images, accuracy; or file and skipped: why a compiled file cannot run here. ONNX files have tensorrt_parser where a
        TensorRT library is installed: what its parser says of them.

    Raises:
        RunError: the bundle is not whole.
        ExportError: an output differs from torch's by more than the precision's tolerance.
    """
    bundle = load_bundle(path)
    manifest = bundle.manifest
    found: dict[str, Any] = {}
    for precision, variant in manifest.variants.items():
        session = open_session(bundle.onnx(precision), threads=0)
        if (shape := tuple(session.get_inputs()[0].shape[1:])) != manifest.input.shape:
            raise ExportError(f"{variant.file} must take images of shape {manifest.input.shape}, but takes {shape}")
        found[precision] = _checked(bundle, variant, partial(run_session, session), images, labels)
    if (dense := manifest.dense) is not None:
        found["dense"] = _checked(bundle, dense, partial(run_dense, bundle.path / dense.file), images, labels)
    onnx = {name: bundle.onnx(name) for name in manifest.variants}
    for name, sentence in parsed(onnx, None if dense is None else bundle.path / dense.file).items():
        found[name]["tensorrt_parser"] = sentence
    for target, files in manifest.compiled.items():
        for precision, compiled in files.items():
            config = config_for(target, precision, compiled.device, compiled.batch[0])
            name, file = f"{target} {precision}", bundle.path / compiled.file
            try:
                with runtime_class(target)(file, manifest.input.shape, config) as runtime:
                    found[name] = _checked(bundle, compiled, runtime.predict, images, labels)
            except RuntimeUnavailableError as problem:
                found[name] = {"file": compiled.file, "skipped": str(problem)}
    return found


def parsed(files: Mapping[str, Path], dense: Path | None) -> dict[str, str]:
    """What TensorRT's parser says of ONNX files, by precision, and of the "dense" one; empty where none is installed."""
    every = {**files, **({} if dense is None else {"dense": dense})}
    return {name: verdict.sentence() for name, verdict in parser_verdicts(every).items()}


def _checked(bundle: Bundle, entry: Checked, run: Any, images: Images | None, labels: NDArray[np.int64] | None) -> dict[str, Any]:
    reference = np.asarray(bundle.manifest.check.outputs, np.float32)
    # int8 kernels of other CPUs round and saturate differently
    error = entry.max_abs_error if entry.max_abs_error is not None else bundle.manifest.variants["int8"].max_abs_error
    assert error is not None, "ONNX files are always run"
    allowed = 2 * error if entry.tolerance is None else entry.tolerance
    outputs = [output if output.scale else replace(output, scale=entry.reference_scale) for output in bundle.manifest.outputs]
    made = run(check_images(bundle.manifest.input.shape, len(reference)))
    try:
        error = compared(made, reference, outputs, tolerance=allowed / entry.reference_scale)["max_abs_error"]
    except ExportError as problem:
        raise ExportError(f"{bundle.path / entry.file}: {problem}") from problem
    found = {"file": entry.file, "max_abs_error": error}
    return found if images is None or labels is None else {**found, "accuracy": accuracy(run(images), labels)}
