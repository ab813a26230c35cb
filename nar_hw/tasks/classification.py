"""Image classification: cross-entropy and accuracy."""

import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nar_hw.data import Augmentation, ImageData, Split, SplitName
from nar_hw.data.loader import Batch, DeviceImages
from nar_hw.data.preprocessing import Preprocessing
from nar_hw.errors import DataError
from nar_hw.tasks.base import Task, evaluating
from nar_hw.userfile import user_code

if TYPE_CHECKING:
    from nar_hw.data.stream import StreamedImages


EVALUATED = 2**22
"""Pixels that a batch has at most when a network is scored."""


class ClassificationTask(Task):
    """A data set to be classified: held on the device as uint8, or read from files when it is needed."""

    def __init__(
        self,
        data: ImageData,
        device: str | torch.device = "cpu",
        *,
        augmentation: Augmentation | None = None,
        workers: int | None = None,
        ten_views: bool = False,
    ) -> None:
        """``augmentation`` replaces the data set's own. A split in memory moves to ``device`` when it is first used.

        With ``ten_views`` networks are scored by the mean of their probabilities for the corners and the centre of an image, and
        the same mirrored (Krizhevsky et al. 2012, section 4.1).
        ``workers`` processes read images in files; by default one per core, at most 8.
        """
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.workers = min(8, cores) if workers is None else workers
        self.data, self.name, self.ten_views = data, data.name, ten_views
        self.device = torch.device(device)
        self.augmentation = data.augmentation if augmentation is None else augmentation
        self._loaded: dict[SplitName, DeviceImages | StreamedImages] = {}

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
        """Name, seed and splits of the data, the augmentation used, and whether scores are of ten views."""
        views = {"ten_views": True} if self.ten_views else {}
        return {**self.data.record, "augmentation": self.augmentation.record, **views}

    def loss(self, output: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy of logits (B, classes) and labels (B,)."""
        return F.cross_entropy(output, target, label_smoothing=label_smoothing)

    def correct(self, output: Tensor, target: Tensor) -> Tensor:
        """How many labels (B,) have the greatest logit of (B, classes)."""
        return (output.argmax(1) == target).sum()

    @property
    def preprocessing(self) -> Preprocessing:
        """Mean and standard deviation of the pixels, the mean at each where that is subtracted, and the names of the classes."""
        data, image = self.data, self.data.mean_image
        if image is not None:
            height, width = self.input_shape[1:]
            top, left = ((whole - part) // 2 for whole, part in zip(image.shape[1:], (height, width), strict=True))
            image = image[:, top : top + height, left : left + width]
        mean_image = () if image is None else tuple(image.flatten().tolist())
        return Preprocessing(mean=data.mean, std=data.std, classes=tuple(data.classes), mean_image=mean_image)

    def size(self, split: SplitName) -> int:
        """How many images a split has."""
        return len(self.data.split(split))

    def imitation(self, output: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """Mean divergence of the network's from the teacher's probabilities at one temperature (Hinton et al. 2015)."""
        known, wanted = (F.log_softmax(logits / temperature, dim=1) for logits in (output, wanted))  # (B, classes)
        return F.kl_div(known, wanted, reduction="batchmean", log_target=True) * temperature**2

    def train_batches(
        self, batch: int, generator: torch.Generator, *, augment: bool = True, drop_last: bool = True, shared: bool = False
    ) -> Iterator[Batch]:
        """One epoch of the training split, shuffled and augmented."""
        return self._images("train").shuffled(batch, generator, augment=augment, drop_last=drop_last, shared=shared)

    def eval_batches(self, split: SplitName, batch: int = 1000, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """A split without augmentation, in its order or shuffled by ``generator``. Raises UnknownNameError."""
        images = self._images(split)
        if generator is None:
            return images.in_order(batch)
        return images.shuffled(batch, generator, augment=False, drop_last=False)

    def evaluate(self, model: nn.Module, split: SplitName, *, batch: int = 1000, k: int = 1) -> float:
        """Top-``k`` accuracy in [0, 1]: how often the label is among the ``k`` greatest logits. Large images in smaller batches.

        Raises:
            DataError: ``k`` is not between 1 and the number of classes.
        """
        if not 1 <= k <= self.num_classes:
            raise DataError(f"1 <= k <= {self.num_classes} (classes) must hold for a top-k accuracy, but got k={k}")
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        most = min(batch, self.scored_batch)
        batches = self._images(split).ten_views(max(1, most // 10)) if self.ten_views else self.eval_batches(split, most)
        with evaluating(model):
            for images, labels in batches:
                with user_code("the network must be scored, but its forward pass"):
                    output = mean_of_views(model, images) if self.ten_views else model(images)
                right += (output.topk(k).indices == labels[:, None]).sum()
        return int(right) / len(self.data.split(split))

    @property
    def scored_batch(self) -> int:
        """How many images at most are scored together: fewer of larger ones."""
        return max(1, EVALUATED // math.prod(self.input_shape[1:]))

    def _images(self, name: SplitName) -> "DeviceImages | StreamedImages":
        if name not in self._loaded:
            data, split = self.data, self.data.split(name)
            augmentation = self.augmentation if name == "train" else None
            if isinstance(split, Split):
                self._loaded[name] = DeviceImages(
                    split,
                    self.device,
                    mean=data.mean,
                    std=data.std,
                    augmentation=augmentation,
                    crop=data.crop,
                    mean_image=data.mean_image,
                )
            else:
                from nar_hw.data.stream import FileSplit, StreamedImages

                assert isinstance(split, FileSplit)
                self._loaded[name] = StreamedImages(
                    split, self.device, mean=data.mean, std=data.std, augmentation=augmentation, workers=self.workers
                )
        return self._loaded[name]


def mean_of_views(model: nn.Module, images: Tensor) -> Tensor:
    """The mean over views of the probabilities: (B, views, C, H, W) -> (B, classes)."""
    chances: Tensor = model(images.flatten(0, 1)).softmax(1)
    return chances.view(*images.shape[:2], -1).mean(1)
