"""What `nar-hw bundle verify` does, from Python."""

from pathlib import Path
from typing import Any

from nar_hw.bundles.manifest import load_bundle
from nar_hw.bundles.verify import verify_bundle
from nar_hw.errors import UserError
from nar_hw.steps.task import load_task, validation_images


def verify_again(bundle: Path, *, data: str | None = None, data_root: Path | None = None) -> dict[str, Any]:
    """`verify_bundle`, with accuracies on the validation split of ``data``. Raises what it raises, UserError and DataError."""
    if data is None:
        return verify_bundle(bundle)
    manifest, task = load_bundle(bundle).manifest, load_task(data, root=data_root)
    if (manifest.input.shape, manifest.classes) != (task.input_shape, task.preprocessing.classes):
        raise UserError(
            f"--data must have the bundle's images {manifest.input.shape} and classes, but {data} has {task.input_shape}"
        )
    images, labels = validation_images(task)
    return verify_bundle(bundle, images=images, labels=labels)
