"""A task of one's own: data sets, a loss and a score.

Shape legend: B images of a batch, C channels, H height, W width, D numbers that a network gives for an image.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nar_hw.data import SPLITS, SplitName
from nar_hw.data.loader import Batch
from nar_hw.data.preprocessing import Preprocessing
from nar_hw.distributed import share
from nar_hw.errors import DataError
from nar_hw.tasks.base import Task, evaluating
from nar_hw.userfile import load_function, user_code


class Items(Sized, Protocol):
    """A map-style data set, such as a torch.utils.data.Dataset with a length."""

    def __getitem__(self, index: int, /) -> tuple[Tensor, Any]:
        """An image (C, H, W) float32 as the network takes it, and its target: a number or a tensor, of one shape for all."""


class DatasetTask(Task):
    """Images and targets from data sets; the network gives D numbers for each image, in one tensor (B, ...) or in several.

    Several are in a dict or tuple, as the network likes; loss and score are given just what it returns.

    What is random in the data set of the training (augmentation) should draw from torch's global generator, which is seeded.
    """

    structured = True

    def __init__(
        self,
        train: Items,
        valid: Items,
        test: Items,
        *,
        loss: Callable[[Any, Tensor], Tensor],
        score: Callable[[Any, Tensor], Tensor],
        outputs: int,
        metric: str = "score",
        classes: Sequence[str] = (),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """
        Args:
            train, valid, test: disjoint; children are trained on the first, chosen by the second, reported on the third.
            loss: outputs and targets (B, ...) -> the mean loss, a scalar to be differentiated.
            score: outputs and targets (B, ...) -> a score in [0, 1] for each image (B,), whose mean is the metric.
            outputs: D, of all tensors together.
            metric: what the score is called.
            classes: the outputs' names, where they are one tensor (B, D) and the largest of D is the answer.
            mean, std: per channel, what the data sets have done to pixels in [0, 1]; written into bundles. By default nothing.
            device: where batches are put.

        Raises:
            DataError: a data set is empty, or its first item is no image and target.
        """
        self.name, self.metric, self.device = "", metric, torch.device(device)
        self._loss, self._score, self._outputs = loss, score, outputs
        self._items: Mapping[SplitName, Items] = {"train": train, "valid": valid, "test": test}
        first = {split: _first(items, split) for split, items in self._items.items()}
        self._shape = tuple(first["train"][0].shape)
        for split, (image, _) in first.items():
            if image.dim() != 3 or tuple(image.shape) != self._shape or image.dtype != torch.float32:
                raise DataError(
                    f"images must be float32 (C, H, W), of one shape in all splits, but the first of {split} is "
                    f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
                )
        if classes and len(classes) != outputs:
            raise DataError(f"classes must name each of the {outputs} outputs, but {len(classes)} are given")
        channels = self._shape[0]
        self._preprocessing = Preprocessing(
            mean=tuple(mean or (0.0,) * channels), std=tuple(std or (1.0,) * channels), classes=tuple(classes)
        )
        self._first = {split: _digest(*item) for split, item in first.items()}

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self._shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """D."""
        return self._outputs

    @property
    def preprocessing(self) -> Preprocessing:
        """As given."""
        return self._preprocessing

    @property
    def record(self) -> dict[str, Any]:
        """Name, metric, and size and first item of each split."""
        splits = {split: {"size": self.size(split), "first": self._first[split]} for split in SPLITS}
        return {"name": self.name, "metric": self.metric, "splits": splits}

    def size(self, split: SplitName) -> int:
        """How many images a split has."""
        return len(self._items[split])

    def loss(self, output: Any, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """The given loss. Raises DataError for labels to be smoothed, and where it is no scalar."""
        if label_smoothing:
            raise DataError(
                f"label_smoothing is of classes, but {self.name} has a loss of its own: smooth there, and set it to 0"
            )
        with user_code(f"the loss of {self.name} must be computed, but it", DataError):
            value = self._loss(output, target)
        if not isinstance(value, Tensor) or value.shape != ():
            raise DataError(f"the loss of {self.name} must be one number, but is {_described(value)}: take the mean")
        return value

    def correct(self, output: Any, target: Tensor) -> Tensor:
        """The sum of the given scores of a batch. Raises DataError where they are not one for each image, in [0, 1]."""
        with torch.no_grad(), user_code(f"the score of {self.name} must be computed, but it", DataError):
            scores = self._score(output, target)
        if not isinstance(scores, Tensor) or scores.shape != (len(target),):
            raise DataError(f"the score of {self.name} must be ({len(target)},), one for each image, but is {_described(scores)}")
        scores = scores.double()
        if not bool(((scores >= 0) & (scores <= 1)).all()):
            raise DataError(
                f"the score of {self.name} must lie in [0, 1], but has {float(scores.min()):g} to {float(scores.max()):g}"
            )
        return scores.sum()

    def train_batches(
        self, batch: int, generator: torch.Generator, *, augment: bool = True, drop_last: bool = True, shared: bool = False
    ) -> Iterator[Batch]:
        """One epoch of the training split, shuffled; what its data set augments is so without ``augment`` too."""
        order = torch.randperm(self.size("train"), generator=generator)
        whole = len(order) // batch * batch if drop_last else len(order)
        for chunk in torch.split(order[:whole], batch):
            yield self._batch("train", share(chunk) if shared else chunk)

    def eval_batches(self, split: SplitName, batch: int = 1000, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """A split in its order, or shuffled by ``generator``."""
        size = self.size(split)
        order = torch.arange(size) if generator is None else torch.randperm(size, generator=generator)
        for chunk in torch.split(order, batch):
            yield self._batch(split, chunk)

    def evaluate(self, model: nn.Module, split: SplitName, *, batch: int = 256) -> float:
        """The mean score of a split."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with evaluating(model):
            for images, targets in self.eval_batches(split, batch):
                total += self.correct(model(images), targets)
        return float(total) / self.size(split)

    def _batch(self, split: SplitName, chunk: Tensor) -> Batch:
        with user_code(f"the {split} data of {self.name} must be read, but it", DataError):
            pairs = [self._items[split][index] for index in chunk.tolist()]
            images = torch.stack([image for image, _ in pairs])
            targets = torch.stack([torch.as_tensor(target) for _, target in pairs])
        return images.to(self.device), targets.to(self.device)


def load_own_task(name: str, device: str) -> Task:
    """What ``path/to/file.py:function`` gives for a device. Raises DataError where that is no task, or the function fails."""
    made = load_function(name, what="task", error=DataError)
    with user_code(f"task {name!r} must be made, but its function", DataError):
        task = made(device)
    if not isinstance(task, Task):
        raise DataError(f"task {name!r} must return a nar_hw.tasks.Task, such as DatasetTask, but returns {_described(task)}")
    task.name = name
    images, targets = next(iter(task.eval_batches("valid", 2)))
    if tuple(images.shape[1:]) != task.input_shape or len(images) != len(targets):
        raise DataError(
            f"task {name!r} must give images {task.input_shape} with a target each, but gives {tuple(images.shape[1:])} "
            f"({len(images)} and {len(targets)})"
        )
    return task


def _first(items: Items, split: str) -> tuple[Tensor, Tensor]:
    with user_code(f"the {split} data must be read, but it", DataError):
        if not len(items):
            raise DataError(f"the {split} data must have images, but has none")
        image, target = items[0]
        return image, torch.as_tensor(target)


def _digest(image: Tensor, target: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in (image, target):
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    return digest.hexdigest()


def _described(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
