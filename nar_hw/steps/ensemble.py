"""An ensemble across trainings: what `nar-hw ensemble` does, from Python."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from torch import nn

from nar_hw.data import SplitName
from nar_hw.errors import RunError, UserError
from nar_hw.models.weights import load_weights
from nar_hw.steps.task import load_task
from nar_hw.tasks import ClassificationTask
from nar_hw.training.child import WEIGHTS, Child
from nar_hw.training.snapshots import Ensemble, kept_snapshots, score_ensemble, snapshot_path


class Member(NamedTuple):
    """One network of an ensemble."""

    folder: Path
    epoch: int | None
    """After which its weights were kept; None for a training's last weights."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Members in the order of their trainings and epochs, and what they are together."""

    members: tuple[Member, ...]
    fallback: Member
    scores: Ensemble


def ensemble(
    folders: Sequence[Path],
    *,
    snapshots: int = 1,
    fallback: Path | None = None,
    split: SplitName = "test",
    root: Path | None = None,
    device: str = "cpu",
) -> Scored:
    """Score the latest ``snapshots`` of every training in ``folders`` together, each on images prepared as it was trained.

    Where no class has more votes than every other, the last snapshot of ``fallback`` decides, by default of the training whose
    last weights were best on the validation images (Zhai, section 5).

    Raises:
        UserError: the fallback is none of the trainings, or they are not classifiers of the same images and classes.
        RunError: a folder holds no finished training, or fewer snapshots than asked for.
    """
    children = {folder: Child.load(folder) for folder in folders}
    if len(children) < len(folders):
        raise UserError(f"each training must be named once, but got {', '.join(map(str, folders))}")
    best = max(children, key=lambda folder: children[folder].accuracy.get("valid", 0.0))
    fallback = best if fallback is None else fallback
    if fallback not in children:
        raise UserError(f"--fallback must be one of the trainings {', '.join(map(str, folders))}, but got {fallback}")
    members = [member for folder in children for member in _latest(folder, snapshots)]
    tasks = _tasks(children, split, root, device)
    decides = max(position for position, member in enumerate(members) if member.folder == fallback)

    def networks() -> Iterator[tuple[nn.Module, ClassificationTask]]:
        for folder, child in children.items():
            network = child.network(folder)
            for member in members:
                if member.folder == folder:
                    load_weights(network, folder / WEIGHTS if member.epoch is None else snapshot_path(folder, member.epoch))
                    yield network, tasks[child.data]

    return Scored(members=tuple(members), fallback=members[decides], scores=score_ensemble(networks(), split, fallback=decides))


def plain_scores(scored: Scored) -> dict[str, object]:
    """For JSON."""
    names = [{"folder": str(member.folder), "epoch": member.epoch} for member in scored.members]
    scores = asdict(scored.scores)
    alone = [{**name, "accuracy": accuracy} for name, accuracy in zip(names, scores.pop("members"), strict=True)]
    return {"members": alone, "fallback": names[scored.members.index(scored.fallback)], **scores}


def _latest(folder: Path, count: int) -> list[Member]:
    if count == 1:
        return [Member(folder, None)]
    kept = kept_snapshots(folder)
    if len(kept) < count:
        raise RunError(
            f"{folder} must hold {count} snapshots or more, but holds {len(kept)}: "
            f"train it with --ensemble {count}, or ask for fewer"
        )
    return [Member(folder, epoch) for epoch in kept[-count:]]


def _tasks(children: dict[Path, Child], split: SplitName, root: Path | None, device: str) -> dict[str, ClassificationTask]:
    """The data of each training by its name. Raises UserError where the answers would be to different questions."""
    tasks: dict[str, ClassificationTask] = {}
    for folder, child in children.items():
        if child.data not in tasks:
            task = load_task(child.data, root=root, device=device)
            if not isinstance(task, ClassificationTask):
                raise UserError(
                    f"an ensemble is of classifiers, but {folder} was trained on {child.data!r}, which is no such task"
                )
            tasks[child.data] = task
    (first, task), *others = tasks.items()
    for name, other in others:
        if (other.data.classes, other.data.splits[split]) != (task.data.classes, task.data.splits[split]):
            raise UserError(
                f"all trainings must be of the same {split} images and classes, but those of {name!r} and {first!r} differ"
            )
    return tasks
