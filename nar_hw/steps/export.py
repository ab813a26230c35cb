"""What `nar-hw export` does, from Python."""

from pathlib import Path

from nar_hw.bundles.bundle import export_bundle
from nar_hw.bundles.children import child_names, named_child
from nar_hw.bundles.config import ExportConfig
from nar_hw.bundles.judge import BundleImages
from nar_hw.bundles.manifest import Arch, Latency
from nar_hw.steps.task import calibration_images, load_task, validation_images
from nar_hw.tasks import Task
from nar_hw.training.child import Child


def export_child(
    folder: Path,
    out: Path,
    config: ExportConfig = ExportConfig(),
    *,
    data_root: Path | None = None,
    task: Task | None = None,
) -> Path:
    """Export a trained child to a bundle, verified on its validation images.

    ``task``: the child's data where they are loaded already. ``folder`` may also name a child that ships with nar_hw: it is
    exported with untrained weights, to be timed.

    Raises what `export_bundle` raises, and RunError.
    """
    shipped = not folder.exists() and str(folder) in child_names()
    child = named_child(str(folder)) if shipped else Child.load(folder)
    space = child.model.space()
    codes = space.parse(child.arch)
    arch = Arch(name=child.model.name, input_shape=child.model.input_shape, operators=child.arch, codes=codes)
    if not isinstance(child, Child):
        return export_bundle(space.build(codes), out, arch=arch, preprocessing=child.preprocessing, config=config)
    task = task or load_task(child.data, root=data_root)
    images, labels = validation_images(task)
    return export_bundle(
        child.network(folder, space),
        out,
        arch=arch,
        preprocessing=child.preprocessing,
        config=config,
        images=BundleImages(
            validation=images,
            labels=labels if child.preprocessing.classes and labels.ndim == 1 else None,
            calibration=calibration_images(task) if "int8" in config.precisions else None,
        ),
        latency=Latency(predicted_ms=child.predicted_ms, fingerprint=child.fingerprint or {}, table_hash=child.table_hash),
    )
