"""From trained children to files, checked and timed: what `nar-hw export`, `bundle verify` and `bench` do, from Python."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from nar_hw.benchmark import bench, compare, to_json, unusable
from nar_hw.children import child_names, named_child
from nar_hw.errors import RunError, RuntimeUnavailableError, UserError
from nar_hw.export.bundle import export_bundle
from nar_hw.export.manifest import load_bundle
from nar_hw.export.quantize import Calibration
from nar_hw.export.verify import verify_bundle
from nar_hw.pipeline import load_task
from nar_hw.runs import Child
from nar_hw.runtimes import RuntimeConfig
from nar_hw.tasks import Task


def export_child(
    folder: Path,
    out: Path,
    *,
    targets: Sequence[str] = ("onnx",),
    precisions: Sequence[str] = ("fp32",),
    batch: tuple[int, int] = (1, 64),
    calibration: Calibration = "minmax",
    device: str = "cpu",
    dense: bool = False,
    data_root: Path | None = None,
) -> Path:
    """Export a trained child to a bundle, verified on its validation images.

    ``folder`` may also name a child that ships with nar_hw: it is exported with untrained weights, to be timed.

    Raises what `export_bundle` raises, and RunError.
    """
    shipped = not folder.exists() and str(folder) in child_names()
    child = named_child(str(folder)) if shipped else Child.load(folder)
    space = child.model.space()
    codes = space.parse(child.arch)
    common: dict[str, Any] = {
        "input_shape": child.model.input_shape,
        "classes": child.classes,
        "arch": child.arch,
        "codes": codes,
        "model": child.model.name,
        "mean": child.mean,
        "std": child.std,
        "targets": targets,
        "precisions": precisions,
        "batch": batch,
        "device": device,
        "dense": dense,
    }
    if not isinstance(child, Child):
        return export_bundle(space.build(codes).eval(), out, **common)
    task = load_task(child.data, root=data_root)
    images, labels = _validation(task)
    return export_bundle(
        child.network(folder, space),
        out,
        **common,
        images=images,
        labels=labels if child.classes else None,
        calibration_images=_calibration_images(task) if "int8" in precisions else None,
        calibration=calibration,
        predicted_ms=child.predicted_ms,
        fingerprint=child.fingerprint,
        table_hash=child.table_hash,
    )


def verify_again(bundle: Path, *, data: str | None = None, data_root: Path | None = None) -> dict[str, Any]:
    """`verify_bundle`, with accuracies on the validation split of ``data``. Raises what it raises, UserError and DataError."""
    if data is None:
        return verify_bundle(bundle)
    found, task = load_bundle(bundle), load_task(data, root=data_root)
    if (found.input_shape, found.classes) != (task.input_shape, tuple(task.data.classes)):
        raise UserError(
            f"--data must have the bundle's images {found.input_shape} and classes, but {data} has {task.input_shape}"
        )
    images, labels = _validation(task)
    return verify_bundle(bundle, images=images, labels=labels)


def _validation(task: Task) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    batches = list(task.eval_batches("valid"))
    return np.concatenate([images.numpy() for images, _ in batches]), np.concatenate([labels.numpy() for _, labels in batches])


def _calibration_images(task: Task, count: int = 512) -> NDArray[np.float32]:
    images: NDArray[np.float32] = next(iter(task.eval_batches("train", count)))[0].numpy()
    return images


def bench_bundles(
    bundles: Mapping[str, Path], configs: Sequence[RuntimeConfig], *, rounds: int = 30, progress: Progress | None = None
) -> dict[str, Any]:
    """The content of a bench.json: every bundle under every config that all of them can run, and the first against the second.

    "left_out" tells of the other configs and why.

    Raises RunError for a folder that is no bundle, RuntimeUnavailableError where no config is left, and MeasurementError as
    `nar_hw.benchmark.bench`.
    """
    opened = {name: load_bundle(path) for name, path in bundles.items()}
    shapes = {name: bundle.input_shape for name, bundle in opened.items()}
    if len(set(shapes.values())) > 1:
        raise RunError(f"bundles must have the same input shape to be compared, but have {shapes}")
    reasons = {config: [unusable(bundle, config) for bundle in opened.values()] for config in configs}
    left_out = [{**asdict(config), "reason": next(filter(None, why))} for config, why in reasons.items() if any(why)]
    possible = [config for config, why in reasons.items() if not any(why)]
    if left_out and not possible:
        raise RuntimeUnavailableError(left_out[0]["reason"])
    rows = bench(bundles, input_shape=next(iter(shapes.values())), configs=possible, rounds=rounds, progress=progress)
    subjects = [[row for row in rows if row.subject == name] for name in bundles]
    return {**to_json(rows, compare(*subjects) if len(subjects) == 2 else []), "left_out": left_out}
