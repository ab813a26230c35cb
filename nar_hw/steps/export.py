"""From trained children to files, checked and timed: what `nar-hw export`, `bundle verify` and `bench` do, from Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nar_hw.bundles.bundle import export_bundle
from nar_hw.bundles.children import child_names, named_child
from nar_hw.export.quantize import Calibration
from nar_hw.steps.task import calibration_images, load_task, validation_images
from nar_hw.training.child import Child


def export_child(
    folder: Path,
    out: Path,
    *,
    targets: Sequence[str] = ("onnx",),
    precisions: Sequence[str] = ("fp32",),
    batch: tuple[int, int] = (1, 64),
    calibration: Calibration = "minmax",
    device: str = "cpu",
    gpus: Sequence[str] = (),
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
        "classes": child.preprocessing.classes,
        "arch": child.arch,
        "codes": codes,
        "model": child.model.name,
        "mean": child.preprocessing.mean,
        "std": child.preprocessing.std,
        "targets": targets,
        "precisions": precisions,
        "batch": batch,
        "device": device,
        "gpus": gpus,
        "dense": dense,
    }
    if not isinstance(child, Child):
        return export_bundle(space.build(codes).eval(), out, **common)
    task = load_task(child.data, root=data_root)
    images, labels = validation_images(task)
    return export_bundle(
        child.network(folder, space),
        out,
        **common,
        images=images,
        labels=labels if child.preprocessing.classes else None,
        calibration_images=calibration_images(task) if "int8" in precisions else None,
        calibration=calibration,
        predicted_ms=child.predicted_ms,
        fingerprint=child.fingerprint,
        table_hash=child.table_hash,
    )
