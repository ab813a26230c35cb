"""Bundles tested again, on any machine: hashes, and whether every file still computes what it did where it was made."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nar_hw.bundles.judge import accuracy, check_images
from nar_hw.bundles.manifest import Bundle, Checked, load_bundle
from nar_hw.bundles.targets import config_for
from nar_hw.errors import ExportError, RuntimeUnavailableError
from nar_hw.export.dense import run_dense
from nar_hw.export.onnx import Images, compare, open_session, run_session
from nar_hw.runtimes import runtime_class


def verify_bundle(path: Path | str, *, images: Images | None = None, labels: NDArray[np.int64] | None = None) -> dict[str, Any]:
    """Check on this machine that every file of a bundle still computes what it did where it was made.

    Args:
        path: the bundle.
        images, labels: (N, C, H, W) normalised and (N,); with them the accuracies are computed again too.

    Returns:
        precision (ONNX), "dense" or "target precision" (compiled files) -> file, max_abs_error on `check_images` and, with
        images, accuracy; or file and skipped: why a compiled file cannot run here.

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


def _checked(bundle: Bundle, entry: Checked, run: Any, images: Images | None, labels: NDArray[np.int64] | None) -> dict[str, Any]:
    reference = np.asarray(bundle.manifest.check.outputs, np.float32)
    # int8 kernels of other CPUs round and saturate differently
    allowed = 2 * entry.max_abs_error if entry.tolerance is None else entry.tolerance
    share = allowed / max(float(np.abs(reference).max()), 1e-30)
    try:
        error = compare(run(check_images(bundle.manifest.input.shape, len(reference))), reference, tolerance=share)[
            "max_abs_error"
        ]
    except ExportError as problem:
        raise ExportError(f"{bundle.path / entry.file}: {problem}") from problem
    found = {"file": entry.file, "max_abs_error": error}
    return found if images is None or labels is None else {**found, "accuracy": accuracy(run(images), labels)}
