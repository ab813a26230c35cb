"""The report of plain trainings: what `nar-hw report` does with folders of `nar-hw train`, from Python."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from nar_hw.errors import DataError, UserError
from nar_hw.files import write_text
from nar_hw.report.trainings import MOST, Examples, Image, Mistake, Training, render_trainings
from nar_hw.steps.task import load_task
from nar_hw.tasks import ClassificationTask, Task, evaluating
from nar_hw.training.child import Child
from nar_hw.training.filters import kept_filters
from nar_hw.training.result import HISTORY, History

WRONG, CLASSES, IMAGES = 24, 6, 8
"""Mistakes of each training, classes of each data set, and images of each class that are shown."""


def report_trainings(folders: Sequence[Path], out: Path, *, root: Path | None = None) -> None:
    """Write one page about the trainings in ``folders``; pictures of images are left out, with the reason, where they are gone.

    Raises RunError for a folder without a finished training, UserError for too many.
    """
    if not 1 <= len(set(folders)) == len(folders) <= MOST:
        raise UserError(f"a report compares 1 to {MOST} different trainings, but got {', '.join(map(str, folders))}")
    tasks: dict[str, Task | str] = {}
    trainings, examples = [], []
    for folder in folders:
        child = Child.load(folder)
        if child.data not in tasks:
            tasks[child.data] = _task(child.data, root)
            found = tasks[child.data]
            if isinstance(found, ClassificationTask):
                examples.append(_examples(found, child))
        trainings.append(_training(folder, child, tasks[child.data]))
    write_text(out, render_trainings(trainings, examples))


def _task(data: str, root: Path | None) -> Task | str:
    """The task, or why there is none."""
    try:
        return load_task(data, root=root)
    except DataError as problem:
        return str(problem)


def _training(folder: Path, child: Child, task: Task | str) -> Training:
    known = partial(
        Training,
        folder=folder,
        child=child,
        curve=History.load(folder).epochs if (folder / HISTORY).exists() else (),
        filters=kept_filters(folder),
    )
    if not isinstance(task, ClassificationTask):
        return known(left_out=task if isinstance(task, str) else f"{child.data} has no classes to be taken for another")
    network, names, wrong = child.network(folder).to(task.device), class_names(child), 0
    surest: list[tuple[float, Mistake]] = []
    with evaluating(network):
        for images, labels in task.eval_batches("test", task.scored_batch):
            chances, predictions = network(images).softmax(1).max(1)
            places = (predictions != labels).nonzero().flatten().tolist()
            wrong += len(places)
            for place in sorted(places, key=lambda place: -float(chances[place]))[:WRONG]:
                chance = float(chances[place])
                label, taken = names[int(labels[place])], names[int(predictions[place])]
                surest.append((chance, Mistake(_pixels(task, images[place]), label, taken, chance)))
            surest = sorted(surest, key=lambda item: -item[0])[:WRONG]
    return known(mistakes=tuple(mistake for _, mistake in surest), wrong=wrong)


def _examples(task: ClassificationTask, child: Child) -> Examples:
    """The first training images of classes that lie evenly among all."""
    names, labels = class_names(child), task.data.train.labels
    chosen = np.unique(np.linspace(0, len(names) - 1, min(CLASSES, len(names))).round().astype(int)).tolist()
    wanted = {int(place) for label in chosen for place in np.flatnonzero(labels == label)[:IMAGES]}
    shown: dict[str, list[Image]] = {names[label]: [] for label in chosen}
    start = 0
    for images, targets in task.eval_batches("train", task.scored_batch):
        for place in sorted(wanted & set(range(start, start + len(targets)))):
            shown[names[int(targets[place - start])]].append(_pixels(task, images[place - start]))
        start += len(targets)
        if start > max(wanted):
            break
    return Examples(task.name, shown)


def _pixels(task: ClassificationTask, image: Tensor) -> Image:
    """An image as it was before it was normalised, (C, H, W) in [0, 1]."""
    known = task.preprocessing
    mean = np.array(known.mean_image).reshape(image.shape) if known.mean_image else np.array(known.mean)[:, None, None]
    pixels: Image = (image.cpu().numpy() * np.array(known.std)[:, None, None] + mean).clip(0, 1).astype(np.float32)
    return pixels


def class_names(child: Child) -> list[str]:
    """Names of the classes; of a folder with words.txt, as in ImageNet's sets, its words up to the first comma."""
    path = Path(child.data.partition(":")[2].partition("@")[0]) / "words.txt"
    words = dict(line.split("\t", 1) for line in path.read_text().splitlines() if "\t" in line) if path.is_file() else {}
    return [words.get(name, name).partition(",")[0] if name in words else name for name in child.preprocessing.classes]
