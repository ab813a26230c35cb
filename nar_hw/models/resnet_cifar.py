"""Residual networks: ResNet-18 ... ResNet-152 for any input, and the narrow CIFAR family (He et al. 2015, section 4.2).

Module names and state-dict keys are torchvision's, so that weights and slot names carry over.
"""

from functools import partial

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

SMALL = 64
"""Images up to this many pixels a side are not downsampled by the stem."""


def is_small(input_shape: tuple[int, int, int]) -> bool:
    """Whether images of (C, H, W) need the stem of CIFAR networks: 3x3, stride 1, no pool."""
    return max(input_shape[1:]) <= SMALL


def initialize(network: nn.Module) -> None:
    """He initialisation of every convolution, ones and zeros of every BatchNorm (in place)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def resnet(name: str, *, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """torchvision's network of that name; its stem is replaced for small images and for other than 3 channels."""
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    channels = input_shape[0]
    if is_small(input_shape):
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
        initialize(network.conv1)
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        initialize(network.conv1)
    return network


class CifarResNet(nn.Module):
    """A residual network of basic blocks for small images: 3x3 stem, one stage per width, global average, linear.

    (B, C, H, W) -> (B, num_classes). Every stage but the first halves height and width. Where the shape changes, the
    skip is a 1x1 convolution (option B of He et al. 2015).
    """

    def __init__(
        self, *, input_shape: tuple[int, int, int], num_classes: int, widths: tuple[int, ...], blocks: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self._stages = tuple(f"layer{number}" for number in range(1, len(widths) + 1))
        channels = widths[0]
        for name, width, count in zip(self._stages, widths, blocks, strict=True):
            stride = 1 if name == "layer1" else 2
            self.add_module(
                name, nn.Sequential(_block(channels, width, stride), *(_block(width, width) for _ in range(count - 1)))
            )
            channels = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        features = self.relu(self.bn1(self.conv1(images)))
        for name in self._stages:
            features = getattr(self, name)(features)
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


def _block(c_in: int, c_out: int, stride: int = 1) -> nn.Module:
    skip = None
    if stride != 1 or c_in != c_out:
        skip = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
    block: nn.Module = BasicBlock(c_in, c_out, stride, skip)
    return block


resnet18 = partial(resnet, "resnet18")
resnet34 = partial(resnet, "resnet34")
resnet50 = partial(resnet, "resnet50")
resnet101 = partial(resnet, "resnet101")
resnet152 = partial(resnet, "resnet152")

resnet_digits = partial(CifarResNet, widths=(64, 128, 256), blocks=(2, 2, 2))

resnet20_cifar = partial(CifarResNet, widths=(16, 32, 64), blocks=(3, 3, 3))
resnet32_cifar = partial(CifarResNet, widths=(16, 32, 64), blocks=(5, 5, 5))
resnet44_cifar = partial(CifarResNet, widths=(16, 32, 64), blocks=(7, 7, 7))
resnet56_cifar = partial(CifarResNet, widths=(16, 32, 64), blocks=(9, 9, 9))
