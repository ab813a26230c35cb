"""Data sets as tasks, for every step that reads images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nar_hw.data import FACES, load_data
from nar_hw.distributed import barrier, rank
from nar_hw.errors import DataError, UserError
from nar_hw.faces.data import load_faces
from nar_hw.faces.task import FacesTask
from nar_hw.models.info import ModelInfo
from nar_hw.records import replace, with_settings
from nar_hw.tasks import ClassificationTask, Task
from nar_hw.tasks.own import load_own_task
from nar_hw.userfile import is_file_name


def load_task(
    data: str,
    *,
    root: Path | None = None,
    device: str = "cpu",
    workers: int | None = None,
    download: bool = False,
    augment: Sequence[str] = (),
    ten_views: bool = False,
) -> Task:
    """A data set, or what ``path/to/file.py:function`` returns for a device, as a task.

    With ``download`` the first process fetches it. ``augment``: ``name=value`` texts that change its augmentation. ``ten_views``:
    see :class:`nar_hw.tasks.ClassificationTask`. Raises UnknownNameError or DataError.
    """
    if (augment or ten_views) and (data.startswith(FACES) or is_file_name(data)):
        raise DataError(f"--augment and --test-views are of our own classification data, but {data!r} is none: leave them out")
    if download and (data.startswith(FACES) or is_file_name(data)):
        raise DataError(f"--download fetches cifar10, cifar100 and fashion-mnist, but {data!r} is yours: leave it out")
    if is_file_name(data):
        return load_own_task(data, device)
    if data.startswith(FACES):
        return FacesTask(load_faces(data), device)
    first = rank() == 0
    if download and not first:
        barrier()
    found = load_data(data, root=root, download=download and first)
    if download and first:
        barrier()
    changed = with_settings(found.augmentation, augment, option="--augment", error=DataError)
    return ClassificationTask(found, device, workers=workers, augmentation=changed, ten_views=ten_views)


def fitted_to(info: ModelInfo, task: Task) -> ModelInfo:
    """``info`` with the data's number of classes. Raises UserError when the image shapes differ."""
    if info.input_shape != task.input_shape:
        asked, own = ("x".join(map(str, shape)) for shape in (info.input_shape, task.input_shape))
        raise UserError(f"the model's input must be the data's image shape, but got --input {asked} for images of {own}")
    return replace(info, num_classes=task.num_classes)


def network_for(task: Task, name: str, **choices: Any) -> ModelInfo:
    """The network called ``name`` for the task's images and outputs; ``choices``: slots and operators, as in ModelInfo."""
    return ModelInfo(name=name, input_shape=task.input_shape, num_classes=task.num_classes, **choices)


def validation_images(task: Task) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All validation images (N, C, H, W), normalised, and their classes (N,)."""
    batches = list(task.eval_batches("valid"))
    return np.concatenate([images.numpy() for images, _ in batches]), np.concatenate([labels.numpy() for _, labels in batches])


def calibration_images(task: Task, count: int = 512) -> NDArray[np.float32]:
    """The first training images (count, C, H, W), normalised and not augmented."""
    images: NDArray[np.float32] = next(iter(task.eval_batches("train", count)))[0].numpy()
    return images
