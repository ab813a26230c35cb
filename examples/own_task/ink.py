"""A task of one's own: which pixels of a noisy image are ink, with its own loss and metric.

    nar-hw train --arch incumbent --model examples/own_task/ink.py:network --task examples/own_task/ink.py:ink \\
        --recipe demo --set label_smoothing=0 --out runs/ink
    nar-hw refine --model examples/own_task/ink.py:network --baseline runs/ink --task examples/own_task/ink.py:ink \\
        --targets 0.8,0.6 --out runs/refined
"""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from nar_hw.tasks import DatasetTask

PIXELS = 64


class Block(nn.Module):
    """Two convolutions and a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return F.relu(images + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images))))))


def network(width: int = 32) -> nn.Module:
    """(B, 1, 8, 8) -> a logit for each pixel, (B, 64)."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), Block(width), Block(width), nn.Conv2d(width, 1, 1), nn.Flatten()
    )


def ink(device: str) -> DatasetTask:
    """Digits under noise; the target of an image is which of its pixels were dark."""
    clean = torch.from_numpy(load_digits().images).float().unsqueeze(1) / 16
    noise = torch.from_numpy(np.random.RandomState(0).standard_normal(clean.shape)).float()
    data = TensorDataset(clean + 0.5 * noise, (clean > 0.5).flatten(1).float())
    train, valid, test = torch.utils.data.random_split(data, [0.7, 0.1, 0.2], torch.Generator().manual_seed(0))
    return DatasetTask(
        train, valid, test, loss=F.binary_cross_entropy_with_logits, score=overlap, outputs=PIXELS, metric="IoU", device=device
    )


def overlap(output: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of the pixels above 0 (B, 64) and those of ink: (B,)."""
    found, wanted = output > 0, target > 0.5
    return (found & wanted).sum(1) / (found | wanted).sum(1).clamp(min=1)
