"""Dual path networks (Chen et al. 2017): every block adds to a residual path and appends to a dense path."""

from functools import partial

import torch
from torch import Tensor, nn

from nar_hw.models.resnet_cifar import initialize, is_small

GROUPS = 32
WIDTHS = (96, 192, 384, 768)
RESIDUAL = (256, 512, 1024, 2048)


class DualPathBlock(nn.Module):
    """1x1, grouped 3x3 (stride), 1x1; the first ``residual`` channels are added to the input, ``growth`` are appended.

    (B, c_in, h, w) -> (B, c_in + growth, h, w); the first block of a stage projects its input:
    (B, c_in, h, w) -> (B, residual + 2 growth, h/stride, w/stride).
    """

    def __init__(self, c_in: int, width: int, residual: int, growth: int, stride: int, *, project: bool) -> None:
        super().__init__()
        self.residual = residual
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=GROUPS, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, residual + growth, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(residual + growth)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(nn.Conv2d(c_in, residual + growth, 1, stride, bias=False), nn.BatchNorm2d(residual + growth))
            if project
            else nn.Identity()
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, c_in, h, w) -> (B, c_out, h/stride, w/stride)."""
        new = self.relu(self.bn1(self.conv1(features)))
        new = self.relu(self.bn2(self.conv2(new)))
        new = self.bn3(self.conv3(new))
        old = self.downsample(features)
        added = old[:, : self.residual] + new[:, : self.residual]  # (B, residual, h, w)
        merged: Tensor = self.relu(torch.cat([added, old[:, self.residual :], new[:, self.residual :]], 1))
        return merged


class DPN(nn.Module):
    """A dual path network: stem, four stages of dual path blocks, global average, linear. (B, C, H, W) -> (B, num_classes).

    Images up to 64 pixels a side get the 3x3 stem of CIFAR networks, larger ones the 7x7 stem with pool.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        blocks: tuple[int, int, int, int],
        growths: tuple[int, int, int, int],
    ) -> None:
        super().__init__()
        small = is_small(input_shape)
        self.conv1 = nn.Conv2d(input_shape[0], 64, 3 if small else 7, 1 if small else 2, padding=1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        stages = []
        channels = 64
        for number, sizes in enumerate(zip(WIDTHS, RESIDUAL, growths, blocks, strict=True)):
            width, residual, growth, count = sizes
            stage = [DualPathBlock(channels, width, residual, growth, 1 if number == 0 else 2, project=True)]
            channels = residual + 2 * growth
            for _ in range(count - 1):
                stage.append(DualPathBlock(channels, width, residual, growth, 1, project=False))
                channels += growth
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


dpn92 = partial(DPN, blocks=(3, 4, 20, 3), growths=(16, 32, 24, 128))
