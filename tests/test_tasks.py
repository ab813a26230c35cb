"""The classification task; its batches are tested in test_data.py."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from nar_hw.data import Augmentation, load_data
from nar_hw.errors import DataError, UnknownNameError
from nar_hw.tasks import ClassificationTask, Task
from nar_hw.testing.tasks import TaskConformance


class TestClassificationTask(TaskConformance):
    @pytest.fixture
    def task(self) -> Task:
        return ClassificationTask(load_data("fake:3x8x8x4"), augmentation=Augmentation(crop_padding=1, flip=True, cutout=2))

    @pytest.fixture
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 4)
        )


class Lookup(nn.Module):
    """Logits from a table, in the order in which a split is evaluated."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits, self.seen = logits, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return self.logits[self.seen - len(images) : self.seen]


class TestScores:
    task = ClassificationTask(load_data("digits"))

    @pytest.mark.parametrize("k", [1, 2, 5, 10])
    def test_top_k_against_sorting(self, k: int) -> None:
        logits = torch.randn(358, 10, generator=torch.Generator().manual_seed(0))
        ranks = np.argsort(-logits.numpy(), axis=1)[:, :k]
        expected = np.mean([label in row for label, row in zip(self.task.data.test.labels, ranks, strict=True)])
        assert self.task.evaluate(Lookup(logits), "test", batch=100, k=k) == pytest.approx(expected)

    @pytest.mark.parametrize("k", [0, 11])
    def test_k_out_of_range(self, k: int) -> None:
        with pytest.raises(DataError, match=rf"1 <= k <= 10 \(classes\) must hold for a top-k accuracy, but got k={k}"):
            self.task.evaluate(Lookup(torch.zeros(358, 10)), "test", k=k)

    def test_an_unknown_split(self) -> None:
        with pytest.raises(UnknownNameError, match="unknown split 'val': use one of valid"):
            self.task.evaluate(Lookup(torch.zeros(1, 10)), "val")  # type: ignore[arg-type]

    def test_the_loss_is_cross_entropy_with_smoothed_targets(self) -> None:
        logits, targets = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([2])
        total = math.log(sum(math.exp(value) for value in (2, 0, 1)))
        assert float(self.task.loss(logits, targets)) == pytest.approx(total - 1)
        smoothed = 0.8 * (total - 1) + 0.2 * sum(total - value for value in (2, 0, 1)) / 3
        assert float(self.task.loss(logits, targets, label_smoothing=0.2)) == pytest.approx(smoothed)

    def test_augmentation_can_be_replaced_and_is_recorded(self) -> None:
        task = ClassificationTask(load_data("digits"), augmentation=Augmentation(cutout=3))
        assert task.record["augmentation"] == {"crop_padding": 0, "flip": False, "cutout": 3, "least_area": 1.0}
        assert task.record["splits"] == self.task.record["splits"]
        assert self.task.record["augmentation"] == {"crop_padding": 1, "flip": False, "cutout": 0, "least_area": 1.0}
