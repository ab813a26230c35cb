"""Neither a search nor a training sees a test image: with others in their place, it finds the same."""

import numpy as np
import pytest
import torch

from nar_hw.data import ImageData, SplitName, load_data
from nar_hw.data.loader import DeviceImages
from nar_hw.records import plain, replace
from nar_hw.search.config import SearchConfig
from nar_hw.search.loop import search
from nar_hw.tasks import ClassificationTask
from nar_hw.training.loop import train
from nar_hw.training.recipes import Recipe
from tests.test_search_ranks import SPACE, TABLE, TARGET, Plain

DATA = load_data("fake:3x8x8x5")


def other(name: SplitName) -> ImageData:
    """Noise with random labels instead of a split."""
    split, rng = DATA.split(name), np.random.default_rng(0)
    images = rng.integers(0, 256, (len(split), 3, 8, 8), dtype=np.uint8)
    return replace(DATA, **{name: replace(split, images=images, labels=rng.permutation(split.labels))})  # type: ignore[call-arg]


class Watched(ClassificationTask):
    """Keeps the names of the splits it was asked for."""

    def __init__(self, data: ImageData) -> None:
        super().__init__(data)
        self.seen: set[str] = set()

    def _images(self, name: SplitName) -> DeviceImages:
        self.seen.add(name)
        return super()._images(name)  # type: ignore[return-value]


def searched(data: ImageData) -> tuple[object, ...]:
    config = SearchConfig(warmup_epochs=1, epochs=2, batch=64, updates=2, samples=4, valid_batch=32, rescored=4, finalists=2)
    result = search(SPACE, task := Watched(data), TABLE, target_ms=TARGET, config=config)
    assert task.seen == {"train", "valid"}
    return result.arch, result.pick.accuracy, [item["loss"] for item in result.history]


def trained(data: ImageData) -> tuple[object, ...]:
    torch.manual_seed(0)
    result = train(Plain(), task := Watched(data), Recipe(epochs=2, batch=50))
    assert task.seen == {"train", "valid"}
    return tuple({key: value for key, value in plain(log).items() if key != "images_per_s"} for log in result.history)


@pytest.mark.parametrize("work", [searched, trained])
def test_test_images_decide_nothing(work: object) -> None:
    expected = work(DATA)  # type: ignore[operator]
    assert work(other("test")) == expected  # type: ignore[operator]
    assert work(other("valid")) != expected  # type: ignore[operator]  # so the comparison can fail
