"""Image classification: cross-entropy and accuracy."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nar_hw.data import Augmentation, ImageData, SplitName
from nar_hw.data.loader import Batch, DeviceImages
from nar_hw.errors import DataError
from nar_hw.tasks.base import Task, evaluating


class ClassificationTask(Task):
    """A data set to be classified, held on the device as uint8."""

    def __init__(self, data: ImageData, device: str | torch.device = "cpu", *, augmentation: Augmentation | None = None) -> None:
        """``augmentation`` replaces the data set's own. A split moves to ``device`` when it is first used."""
        self.data = data
        self.device = torch.device(device)
        self.augmentation = data.augmentation if augmentation is None else augmentation
        self._loaded: dict[SplitName, DeviceImages] = {}

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.data.input_shape

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return self.data.num_classes

    @property
    def record(self) -> dict[str, Any]:
        """Name, seed and splits of the data, and the augmentation used."""
        return {**self.data.record, "augmentation": asdict(self.augmentation)}

    def loss(self, output: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy of logits (B, classes) and labels (B,)."""
        return F.cross_entropy(output, target, label_smoothing=label_smoothing)

    def correct(self, output: Tensor, target: Tensor) -> Tensor:
        """How many labels (B,) have the greatest logit of (B, classes)."""
        return (output.argmax(1) == target).sum()

    @property
    def train_size(self) -> int:
        """How many training images there are."""
        return len(self.data.train)

    def train_batches(
        self, batch: int, generator: torch.Generator, *, augment: bool = True, drop_last: bool = True
    ) -> Iterator[Batch]:
        """One epoch of the training split, shuffled and augmented."""
        return self._images("train").shuffled(batch, generator, augment=augment, drop_last=drop_last)

    def eval_batches(self, split: SplitName, batch: int = 1000, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """A split without augmentation, in its order or shuffled by ``generator``. Raises UnknownNameError."""
        images = self._images(split)
        if generator is None:
            return images.in_order(batch)
        return images.shuffled(batch, generator, augment=False, drop_last=False)

    def evaluate(self, model: nn.Module, split: SplitName, *, batch: int = 1000, k: int = 1) -> float:
        """Top-``k`` accuracy in [0, 1]: how often the label is among the ``k`` greatest logits.

        Raises:
            DataError: ``k`` is not between 1 and the number of classes.
        """
        if not 1 <= k <= self.num_classes:
            raise DataError(f"1 <= k <= {self.num_classes} (classes) must hold for a top-k accuracy, but got k={k}")
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        with evaluating(model):
            for images, labels in self.eval_batches(split, batch):
                right += (model(images).topk(k).indices == labels[:, None]).sum()
        return int(right) / len(self.data.split(split))

    def _images(self, split: SplitName) -> DeviceImages:
        data, augmentation = self.data, self.augmentation if split == "train" else None
        if split not in self._loaded:
            self._loaded[split] = DeviceImages(
                data.split(split), self.device, mean=data.mean, std=data.std, augmentation=augmentation
            )
        return self._loaded[split]
