"""Bottleneck residual networks for Tiny ImageNet's 3x64x64 images (Zhai, "Going deeper on the Tiny ImageNet challenge").

ResNet-20 and ResNet-38 have three stages and so one pooling fewer than ResNet-50/101/152; "less" divides every width by 4.
Unlike torchvision's, these blocks halve the resolution in their first 1x1 convolution (section 3.2).
"""

from functools import partial

from torch import Tensor, nn

from nar_hw.models.resnet_cifar import initialize

EXPANSION = 4


class TinyBottleneck(nn.Module):
    """1x1 (stride), 3x3, 1x1 to four times the width, plus the skip: (B, c_in, h, w) -> (B, 4 width, h/stride, w/stride)."""

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        c_out = EXPANSION * width
        self.conv1 = nn.Conv2d(c_in, width, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Identity()
            if stride == 1 and c_in == c_out
            else nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, c_in, h, w) -> (B, 4 width, h/stride, w/stride)."""
        residual = self.relu(self.bn1(self.conv1(features)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        merged: Tensor = self.relu(self.bn3(self.conv3(residual)) + self.downsample(features))
        return merged


class TinyResNet(nn.Module):
    """7x7 stem with pool, one stage of ``blocks[i]`` bottlenecks of width ``64 / divide * 2**i`` each, global average, linear.

    (B, C, H, W) -> (B, num_classes).
    """

    def __init__(self, *, input_shape: tuple[int, int, int], num_classes: int, blocks: tuple[int, ...], divide: int = 1) -> None:
        super().__init__()
        width = 64 // divide
        self.conv1 = nn.Conv2d(input_shape[0], width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        self._stages = tuple(f"layer{number}" for number in range(1, len(blocks) + 1))
        for name, count in zip(self._stages, blocks, strict=True):
            stage = [TinyBottleneck(channels, width, 1 if name == "layer1" else 2)]
            channels = EXPANSION * width
            stage += [TinyBottleneck(channels, width, 1) for _ in range(count - 1)]
            self.add_module(name, nn.Sequential(*stage))
            width *= 2
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for name in self._stages:
            features = getattr(self, name)(features)
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


resnet20_tiny = partial(TinyResNet, blocks=(2, 2, 2))
resnet38_tiny = partial(TinyResNet, blocks=(3, 5, 4))
resnet50_tiny = partial(TinyResNet, blocks=(3, 4, 6, 3))
resnet101_tiny = partial(TinyResNet, blocks=(3, 4, 23, 3))
resnet152_tiny = partial(TinyResNet, blocks=(3, 8, 36, 3))

resnet20_tiny_less = partial(resnet20_tiny, divide=4)
resnet38_tiny_less = partial(resnet38_tiny, divide=4)
resnet50_tiny_less = partial(resnet50_tiny, divide=4)
resnet101_tiny_less = partial(resnet101_tiny, divide=4)
resnet152_tiny_less = partial(resnet152_tiny, divide=4)
