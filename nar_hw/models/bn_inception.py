"""BN-Inception: GoogLeNet with batch normalisation and two 3x3 convolutions for each 5x5 (Ioffe and Szegedy 2015, figure 5)."""

from typing import Literal

import torch
from torch import Tensor, nn

from nar_hw.models.resnet_cifar import initialize

Pool = Literal["avg", "max"]

# Name, 1x1, 3x3 (reduced to, put out), double 3x3 (reduced to, put out), pool and its 1x1. Without a 1x1 the module halves the
# resolution and its max pool is passed on as it is.
MODULES: tuple[tuple[str, int, tuple[int, int], tuple[int, int], Pool, int], ...] = (
    ("3a", 64, (64, 64), (64, 96), "avg", 32),
    ("3b", 64, (64, 96), (64, 96), "avg", 64),
    ("3c", 0, (128, 160), (64, 96), "max", 0),
    ("4a", 224, (64, 96), (96, 128), "avg", 128),
    ("4b", 192, (96, 128), (96, 128), "avg", 128),
    ("4c", 160, (128, 160), (128, 160), "avg", 96),
    ("4d", 96, (128, 192), (160, 192), "avg", 96),
    ("4e", 0, (128, 192), (192, 256), "max", 0),
    ("5a", 352, (192, 320), (160, 224), "avg", 128),
    ("5b", 352, (192, 320), (192, 224), "max", 128),
)


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)
    )


class BNInceptionModule(nn.Module):
    """Its branches side by side: (B, c_in, h, w) -> (B, c_out, h/stride, w/stride)."""

    def __init__(
        self, c_in: int, single: int, triple: tuple[int, int], double: tuple[int, int], pool: Pool, project: int
    ) -> None:
        super().__init__()
        stride = 1 if single else 2
        branches: list[nn.Module] = [_conv(c_in, single, 1)] if single else []
        branches.append(nn.Sequential(_conv(c_in, triple[0], 1), _conv(triple[0], triple[1], 3, stride)))
        branches.append(
            nn.Sequential(_conv(c_in, double[0], 1), _conv(double[0], double[1], 3), _conv(double[1], double[1], 3, stride))
        )
        pooled: nn.Module = nn.AvgPool2d(3, stride, padding=1) if pool == "avg" else nn.MaxPool2d(3, stride, padding=1)
        branches.append(nn.Sequential(pooled, _conv(c_in, project, 1)) if project else pooled)
        self.branches = nn.ModuleList(branches)
        self.c_out = single + triple[1] + double[1] + (project or c_in)

    def forward(self, features: Tensor) -> Tensor:
        """(B, c_in, h, w) -> (B, c_out, h/stride, w/stride)."""
        return torch.cat([branch(features) for branch in self.branches], 1)


class BNInception(nn.Module):
    """(B, C, H, W) -> (B, num_classes), for images of any size."""

    def __init__(self, *, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.conv1 = _conv(input_shape[0], 64, 7, 2)
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Sequential(_conv(64, 64, 1), _conv(64, 192, 3))
        self.pool2 = nn.MaxPool2d(3, stride=2, padding=1)
        self.inception = nn.Sequential()
        channels = 192
        for name, single, triple, double, pool, project in MODULES:
            module = BNInceptionModule(channels, single, triple, double, pool, project)
            self.inception.add_module(name, module)
            channels = module.c_out
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        features = self.pool2(self.conv2(self.pool1(self.conv1(images))))
        logits: Tensor = self.fc(self.avgpool(self.inception(features)).flatten(1))
        return logits
