"""Training on chosen mini-batches: the open question of Lasky et al. (their section 5, after the conclusions)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nar_hw.data.loader import Batch, DeviceImages
from nar_hw.errors import TrainingError, UserError, unknown_name
from nar_hw.proxy.metrics import measure
from nar_hw.proxy.subset import images_of
from nar_hw.tasks import ClassificationTask, Task

KEPT: dict[str, tuple[float, float]] = {
    "keep-all": (0.0, 1.0),
    "keep-middle": (0.1, 0.9),
    "keep-lowest": (0.0, 0.25),
    "keep-highest": (0.75, 1.0),
}
"""Which batches, in ascending order of the metric, are kept: from and to which share. (The middle is the findings' 80 %.)"""
ALONE = ("intensity", "colour", "edges")
"""Metrics of images alone, which need no network."""


class ChosenBatches(ClassificationTask):
    """A task whose training images form the same batches in every epoch, by a metric, of which some are left out."""

    def __init__(self, task: ClassificationTask, choice: str, values: NDArray[np.float64], batch: int) -> None:
        """``choice`` as of `chosen_batches`; ``values`` the metric of each training image, (N,).

        Raises TrainingError where no batch is left.
        """
        super().__init__(task.data, task.device, augmentation=task.augmentation, workers=task.workers, ten_views=task.ten_views)
        low, high = KEPT[choice.partition(":")[0]]
        count = len(values) // batch
        places = (np.arange(count) + 0.5) / count if count else np.zeros(0)
        order = np.argsort(values, kind="stable")[: count * batch].reshape(count, batch)
        self.choice, self.batch = choice, batch
        self.kept = torch.from_numpy(order[(places > low) & (places < high)])  # (batches, batch)
        if not len(self.kept):
            raise TrainingError(
                f"{choice} must leave a batch to learn, but of {len(values)} images in batches of {batch} it leaves none: "
                "lower the batch"
            )

    @property
    def record(self) -> dict[str, Any]:
        """As of the task, and the choice."""
        return {**super().record, "batches": self.choice}

    @property
    def train_size(self) -> int:
        """How many images an epoch of training has."""
        return self.kept.numel()

    def train_batches(
        self, batch: int, generator: torch.Generator, *, augment: bool = True, drop_last: bool = True, shared: bool = False
    ) -> Iterator[Batch]:
        """The kept batches in a new order, augmented. Raises TrainingError for batches of another size."""
        if batch != self.batch:
            raise TrainingError(
                f"batches were chosen of {self.batch} images, but {batch} are asked for: use one batch throughout"
            )
        images = self._images("train")
        assert isinstance(images, DeviceImages)
        order = self.kept[torch.randperm(len(self.kept), generator=generator)].flatten()
        return images.shuffled(batch, generator, augment=augment, drop_last=drop_last, shared=shared, order=order)


def chosen_batches(task: Task, choice: str, batch: int) -> ChosenBatches:
    """``task`` with the batches that ``choice`` says: a key of KEPT and a metric of ALONE, such as keep-middle:intensity.

    Raises UnknownNameError, UserError for a task that is none of classification, DataError where images are not in memory.
    """
    kept, _, metric = choice.partition(":")
    if kept not in KEPT:
        raise unknown_name("choice of batches", kept, KEPT)
    if metric not in ALONE:
        raise unknown_name("metric", metric, ALONE)
    if not isinstance(task, ClassificationTask) or task.data.crop is not None:
        raise UserError(f"batches are chosen of whole images with classes, but {task.name!r} has none: leave --batches out")
    images_of(task.data)
    values = measure(metric, task.data, network=_none, backbone=_none, device=task.device)
    return ChosenBatches(task, choice, values, batch)


def _none() -> torch.nn.Module:
    raise AssertionError("metrics of ALONE need no network")
