"""A network so small that all of its 1,024 children were trained alone: what any search on it should have found.

Five slots of four operators, on the 8x8 digits of scikit-learn with random shifts; half of the images are for training and a
quarter each for validation and test, so that accuracies are known to a fifth of a point and not all alike.

Shape legend: B images, H height, W width.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nar_hw.data import SPLITS, Augmentation, ImageData, load_data
from nar_hw.data.base import Pool, stratified
from nar_hw.latency.table import LatencyTable
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch
from nar_hw.tasks import ClassificationTask
from nar_hw.training.recipes import Recipe

FOLDER = Path(__file__).parent
CHILDREN, TABLE = FOLDER / "children.json", FOLDER / "table.json"

INPUT_SHAPE = (1, 8, 8)
WIDTH = 8
OPERATORS = ("conv3x3", "dwsep3x3", "max3x3", "avg3x3")
ARCHS: tuple[Arch, ...] = tuple(itertools.product(range(len(OPERATORS)), repeat=5))
SHARES = (50, 25, 25)
"""Percent of train, valid and test images."""
RECIPE = Recipe(epochs=15, t_0=15, batch=64, lr=0.1, nesterov=True)


class Block(nn.Module):
    """relu(bn(conv3x3) + skip): (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        self.skip: nn.Module = nn.Identity()
        if stride > 1:
            self.skip = nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, features: Tensor) -> Tensor:
        merged: Tensor = torch.relu(self.bn(self.conv(features)) + self.skip(features))
        return merged


class Network(nn.Module):
    """1x1 stem, five blocks at 8, 4 and 2 pixels, global average, linear: (B, 1, 8, 8) -> (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        shapes = ((1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1))
        self.blocks = nn.Sequential(*(Block(c_in * WIDTH, c_out * WIDTH, stride) for c_in, c_out, stride in shapes))
        self.fc = nn.Linear(4 * WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.blocks(self.stem(images)).mean((2, 3)))
        return logits


def space(seed: int = 0) -> SearchSpace:
    """The space of a network with weights drawn from ``seed``."""
    torch.manual_seed(seed)
    return SearchSpace.from_model(Network(), INPUT_SHAPE, manner="conv", operators=OPERATORS)


def task() -> ClassificationTask:
    """The digits in the splits of this benchmark."""
    data = load_data("digits")
    parts = [data.split(name) for name in SPLITS]
    order = np.concatenate([part.indices for part in parts]).argsort()
    images, labels = (np.concatenate([getattr(part, what) for part in parts])[order] for what in ("images", "labels"))
    pool = Pool(source="all", images=images, labels=labels)
    train, valid, test = (pool.take(indices) for indices in stratified(labels, SHARES, 0))
    return ClassificationTask(
        ImageData(
            name="digits",
            seed=0,
            train=train,
            valid=valid,
            test=test,
            classes=data.classes,
            mean=data.mean,
            std=data.std,
            augmentation=Augmentation(crop_padding=1),
        )
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Yardstick:
    """What is known of every child, in the order of ARCHS."""

    valid: NDArray[np.float64]
    """(seeds, 1024) accuracies in [0, 1]; nan where a child was not trained with a seed."""
    test: NDArray[np.float64]
    latency_ms: NDArray[np.float64]
    """(1024,) measured."""
    table: LatencyTable
    images: dict[str, int]
    """How many of them are in the validation and in the test split."""

    @classmethod
    def load(cls) -> "Yardstick":
        """As committed beside this file."""
        content: dict[str, Any] = json.loads(CHILDREN.read_text())
        valid, test = (np.array(content[split], dtype=float) for split in ("valid", "test"))
        return cls(
            valid=valid,
            test=test,
            latency_ms=np.array(content["latency_ms"]),
            table=LatencyTable.load(TABLE),
            images=content["images"],
        )

    @property
    def quality(self) -> NDArray[np.float64]:
        """(1024,) what a search should have gone by: the mean accuracy over seeds, of validation and test images together."""
        return np.asarray((np.nanmean(self.valid, axis=0) + np.nanmean(self.test, axis=0)) / 2)

    @property
    def predicted_ms(self) -> NDArray[np.float64]:
        """(1024,) by the table."""
        return np.asarray(self.table.predict(np.array(ARCHS)))
