"""Training on chosen mini-batches: which images they hold, and how often each is learned."""

from typing import Any

import numpy as np
import pytest
import torch

from nar_hw.data import Augmentation, load_data
from nar_hw.errors import DataError, TrainingError, UnknownNameError, UserError
from nar_hw.proxy.batches import chosen_batches
from nar_hw.tasks import ClassificationTask

DATA = load_data("fake:3x8x8x7")  # 490 training images
SUMS = DATA.train.images.astype(int).sum((1, 2, 3))  # type: ignore[attr-defined]


def epoch(choice: str, batch: int, seed: int = 0) -> list[Any]:
    """The sums of pixels of each batch of an epoch without augmentation."""
    task = chosen_batches(ClassificationTask(DATA, augmentation=Augmentation()), choice, batch)
    mean, std = (np.array(values)[:, None, None] for values in (DATA.mean, DATA.std))
    batches = task.train_batches(batch, torch.Generator().manual_seed(seed))
    return [np.rint((images.double().numpy() * std + mean) * 255).astype(int).sum((1, 2, 3)) for images, _ in batches]


@pytest.mark.parametrize(
    ("choice", "first", "last"),
    [("keep-all", 0, 24), ("keep-middle", 2, 22), ("keep-lowest", 0, 6), ("keep-highest", 18, 24)],
)
def test_batches_are_those_of_the_order(choice: str, first: int, last: int) -> None:
    """24 batches of 20 and 10 images left over: the middle is the places 0.1 < (k + 1/2) / 24 < 0.9."""
    expected = np.sort(SUMS, kind="stable")[:480].reshape(24, 20)[first:last]
    found = epoch(f"{choice}:intensity", 20)
    assert sorted(map(tuple, map(np.sort, found))) == sorted(map(tuple, map(np.sort, expected)))
    again, other = (epoch(f"{choice}:intensity", 20, seed) for seed in (0, 1))
    assert all((one == two).all() for one, two in zip(found, again, strict=True))
    assert any((one != two).any() for one, two in zip(found, other, strict=True))  # a new order of the batches
    task = chosen_batches(ClassificationTask(DATA), f"{choice}:intensity", 20)
    assert (task.train_size, task.record["batches"]) == (20 * (last - first), f"{choice}:intensity")


def test_what_cannot_be_chosen() -> None:
    task = ClassificationTask(DATA)
    with pytest.raises(UnknownNameError, match="unknown choice of batches 'keep-few'"):
        chosen_batches(task, "keep-few:intensity", 20)
    with pytest.raises(UnknownNameError, match="unknown metric 'loss'"):
        chosen_batches(task, "keep-all:loss", 20)
    with pytest.raises(
        TrainingError, match="keep-all:intensity must leave a batch to learn, but of 490 images in batches of 491"
    ):
        chosen_batches(task, "keep-all:intensity", 491)
    with pytest.raises(TrainingError, match="batches were chosen of 20 images, but 10 are asked for"):
        chosen_batches(task, "keep-all:intensity", 20).train_batches(10, torch.Generator())
    with pytest.raises((UserError, DataError), match="whole images with classes"):
        chosen_batches(object.__new__(NoClasses), "keep-all:intensity", 20)


class NoClasses(ClassificationTask):
    name = "windows"
    data = type("Data", (), {"crop": 4})()
