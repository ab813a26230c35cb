"""Snapshots of one training as an ensemble (Huang et al. 2017: the ends of the cosines of SGDR)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from nar_hw.data import SplitName
from nar_hw.errors import TrainingError
from nar_hw.models.weights import load_weights
from nar_hw.tasks import ClassificationTask, evaluating
from nar_hw.training.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Accuracies in [0, 1] of several snapshots together."""

    epochs: tuple[int, ...]
    """After which the snapshots were taken."""
    members: tuple[float, ...]
    """Top-1 accuracy of each."""
    mean: float
    """Top-1 accuracy of the mean of their probabilities."""
    mean_top5: float | None
    """Top-5 accuracy of that mean; None for five classes or fewer."""
    vote: float
    """Top-1 accuracy of the majority; among equals, the class with the greatest mean probability."""


def snapshot_epochs(recipe: Recipe, count: int) -> tuple[int, ...]:
    """The epochs after which ``count`` snapshots are taken: the ends of the last cosines, or else the last epochs.

    The last epoch is always one of them. Without that many cosines in an sgdr recipe, or with another schedule, the snapshots
    are of the last epochs (as Zhai's, section 4.4, whose snapshots follow each other).

    Raises:
        TrainingError: there are fewer epochs than that.
    """
    if not 0 <= count <= recipe.epochs:
        raise TrainingError(f"0 <= snapshots <= epochs must hold, but got (snapshots={count}, epochs={recipe.epochs})")
    ends = recipe.cosine_ends()
    epochs = ends if len(ends) >= count else range(1, recipe.epochs + 1)
    return tuple(epochs[len(epochs) - count :])


def snapshot_path(out: Path, epoch: int) -> Path:
    """Where the weights after ``epoch`` are kept."""
    return out / "snapshots" / f"epoch{epoch}.safetensors"


def score_ensemble(model: nn.Module, task: ClassificationTask, split: SplitName, *, out: Path, epochs: Sequence[int]) -> Ensemble:
    """The accuracies of the snapshots after ``epochs`` of a training in ``out``; ``model`` ends with the weights of the last.

    Raises RunError when one is absent.
    """
    labels = torch.cat([targets for _, targets in task.eval_batches(split)])
    mean = torch.zeros(len(labels), task.num_classes, device=task.device)
    votes = torch.zeros_like(mean)
    members = []
    for epoch in epochs:
        load_weights(model, snapshot_path(out, epoch))
        with evaluating(model):
            outputs = torch.cat([model(images).float() for images, _ in task.eval_batches(split, task.scored_batch)])
        members.append(_accuracy(outputs, labels))
        mean += outputs.softmax(1) / len(epochs)
        votes.scatter_add_(1, outputs.argmax(1, keepdim=True), torch.ones_like(mean[:, :1]))
    return Ensemble(
        epochs=tuple(epochs),
        members=tuple(members),
        mean=_accuracy(mean, labels),
        mean_top5=_accuracy(mean, labels, 5) if task.num_classes > 5 else None,
        vote=_accuracy(votes + mean / 2, labels),  # half a vote at most
    )


def _accuracy(scores: torch.Tensor, labels: torch.Tensor, k: int = 1) -> float:
    """How often the label (N,) is among the ``k`` greatest of (N, classes)."""
    return float((scores.topk(k).indices == labels[:, None]).any(1).double().mean())
