"""Ensembles: snapshots of one training (Huang et al. 2017: the ends of the cosines of SGDR), or of several (Zhai, section 5)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nar_hw.data import SplitName
from nar_hw.errors import TrainingError
from nar_hw.models.weights import load_weights
from nar_hw.records import is_whole
from nar_hw.tasks import ClassificationTask, evaluating
from nar_hw.training.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Accuracies in [0, 1] of several networks together."""

    members: tuple[float, ...]
    """Top-1 accuracy of each."""
    mean: float
    """Top-1 accuracy of the mean of their probabilities."""
    mean_top5: float | None
    """Top-5 accuracy of that mean; None for five classes or fewer."""
    vote: float
    """Top-1 accuracy of the majority vote; see :func:`score_ensemble`."""
    undecided: int
    """Images on which no class had more votes than every other."""


def snapshot_epochs(recipe: Recipe, count: int) -> tuple[int, ...]:
    """The epochs after which ``count`` snapshots are taken: the ends of the last cosines, or else the last epochs.

    The last epoch is always one of them. Without that many cosines in an sgdr recipe, or with another schedule, the snapshots
    are of the last epochs (as Zhai's, section 5, whose snapshots follow each other).

    Raises:
        TrainingError: there are fewer epochs than that.
    """
    if not 0 <= count <= recipe.passes:
        raise TrainingError(f"0 <= snapshots <= epochs must hold, but got (snapshots={count}, epochs={recipe.passes})")
    ends = recipe.cosine_ends()
    epochs = ends if len(ends) >= count else range(1, recipe.passes + 1)
    return tuple(epochs[len(epochs) - count :])


def snapshot_path(out: Path, epoch: int) -> Path:
    """Where the weights after ``epoch`` are kept."""
    return out / "snapshots" / f"epoch{epoch}.safetensors"


def kept_snapshots(out: Path) -> tuple[int, ...]:
    """The epochs whose snapshots the training in ``out`` has kept, ascending."""
    names = [
        path.name.removeprefix("epoch").removesuffix(".safetensors") for path in (out / "snapshots").glob("epoch*.safetensors")
    ]
    return tuple(sorted(int(name) for name in names if is_whole(name)))


def with_snapshots(model: nn.Module, out: Path, epochs: Iterable[int]) -> Iterator[nn.Module]:
    """``model`` with the weights after each of ``epochs`` in turn. Raises RunError when they are absent."""
    for epoch in epochs:
        load_weights(model, snapshot_path(out, epoch))
        yield model


def score_ensemble(members: Iterable[tuple[nn.Module, ClassificationTask]], split: SplitName, *, fallback: int = -1) -> Ensemble:
    """The accuracies of networks together, each asked about the images of ``split`` as its own task prepares them.

    The majority vote is that of Zhai, section 5: the class with the most votes, or, where several have as many, the answer of the
    member at position ``fallback``. Members are asked in turn, so that one network with other weights may be several of them.
    """
    chances: list[Tensor] = []  # their sum (N, classes)
    choices, accuracies = [], []
    labels = torch.empty(0)
    for model, task in members:
        with evaluating(model.to(task.device)):
            batches = [(model(images).float(), labels) for images, labels in task.eval_batches(split, task.scored_batch)]
        outputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        chances = [sum(chances, outputs.softmax(1))]
        choices.append(outputs.argmax(1))
        accuracies.append(_accuracy(outputs, labels))
    mean, answers = chances[0] / len(choices), torch.stack(choices, 1)  # (N, classes), (N, members)
    votes = torch.zeros_like(mean).scatter_add_(1, answers, torch.ones_like(answers, dtype=mean.dtype))
    undecided = (votes == votes.amax(1, keepdim=True)).sum(1) > 1
    majority = torch.where(undecided, answers[:, fallback], votes.argmax(1))
    return Ensemble(
        members=tuple(accuracies),
        mean=_accuracy(mean, labels),
        mean_top5=_accuracy(mean, labels, 5) if mean.shape[1] > 5 else None,
        vote=float((majority == labels).double().mean()),
        undecided=int(undecided.sum()),
    )


def _accuracy(scores: torch.Tensor, labels: torch.Tensor, k: int = 1) -> float:
    """How often the label (N,) is among the ``k`` greatest of (N, classes)."""
    return float((scores.topk(k).indices == labels[:, None]).any(1).double().mean())
