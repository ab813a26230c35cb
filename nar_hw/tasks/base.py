"""What a network is trained and scored for."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nar_hw.data import SplitName
from nar_hw.data.loader import Batch
from nar_hw.data.preprocessing import Preprocessing
from nar_hw.space.network import flat


class Task(ABC):
    """Batches, a loss and a score. One file in nar_hw/tasks per kind of task.

    Shape legend: B images of a batch, C channels, H height, W width.
    """

    name: str
    """What ``--data`` calls it."""
    device: torch.device
    """Where the batches lie; a model must be there too."""
    metric: str = "accuracy"
    """What the score is called."""
    structured: bool = False
    """Whether a network may give several tensors, which its loss and score then take; else one (B, D)."""
    head: nn.Module | None = None
    """What :meth:`new_head` made last."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """How many numbers the network has to give for each image."""

    @property
    @abstractmethod
    def record(self) -> dict[str, Any]:
        """What identifies the data and its augmentation, for JSON; a training is resumed with an equal record only."""

    @property
    @abstractmethod
    def preprocessing(self) -> Preprocessing:
        """What a deployed network needs to know of its images and outputs."""

    @abstractmethod
    def size(self, split: SplitName) -> int:
        """How many images a split has."""

    def new_head(self) -> nn.Module | None:
        """What a training learns beside the network and does not keep, such as a centre for each identity; by default nothing.

        Made anew when a training begins, on the device. ``loss``, ``correct`` and ``evaluate`` use it; its parameters are for
        the optimiser and its state for the checkpoints.
        """
        return None

    @abstractmethod
    def loss(self, output: Any, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """The mean loss of a batch: a scalar."""

    @abstractmethod
    def correct(self, output: Any, target: Tensor) -> Tensor:
        """How many of a batch are right, or the sum of its scores: a scalar on the device, so that it is not waited for."""

    def accuracy(self, output: Any, target: Tensor) -> Tensor:
        """The score in [0, 1] of a minibatch of validation images: a scalar on the device; by default the share that is right."""
        return self.correct(output, target).double() / len(target)

    def imitation(self, output: Any, wanted: Any, temperature: float) -> Tensor:
        """The loss of a network's outputs that are to be its teacher's; by default the mean squared difference."""
        return F.mse_loss(flat(output), flat(wanted))

    @property
    def train_size(self) -> int:
        """How many images an epoch of training has."""
        return self.size("train")

    @abstractmethod
    def train_batches(
        self, batch: int, generator: torch.Generator, *, augment: bool = True, drop_last: bool = True, shared: bool = False
    ) -> Iterator[Batch]:
        """One epoch of (images (B, C, H, W) float32, targets (B,)), shuffled and augmented by ``generator`` (on the CPU).

        With ``shared``, each of several processes is given its share of every batch (:func:`nar_hw.distributed.share`).
        """

    @abstractmethod
    def eval_batches(self, split: SplitName, batch: int = 1000, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """The split in its order, or shuffled by ``generator``; never augmented; the last batch may be smaller."""

    @abstractmethod
    def evaluate(self, model: nn.Module, split: SplitName, *, batch: int = 1000) -> float:
        """The score in [0, 1] of ``model`` on a split, in eval mode; the model's modes are as before afterwards."""


def common_metric(metrics: Iterable[str]) -> str:
    """What scores with these metrics are called together: as all of them are, else "score"; by default as most tasks call it."""
    names = dict.fromkeys(metrics)
    return "score" if len(names) > 1 else next(iter(names), Task.metric)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in eval mode without gradients; afterwards every module is in the mode it had (some may have been frozen)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
