"""Small networks with the shapes that make finding slots hard."""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions and a skip."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.skip = (
            nn.Identity()
            if c_in == c_out and stride == 1
            else nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.skip(x)
        return self.relu(out)


class TinyResNet(nn.Module):
    """Stem, two residual blocks, head: four slots by convolution, two by block."""

    def __init__(self, width: int = 8, classes: int = 5, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = Block(width, width)
        self.layer2 = Block(width, 2 * width, 2)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(x.mean((2, 3)))


class PreActivation(nn.Module):
    """BatchNorms before the convolutions: none belongs to a slot except the one between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))


class SharedConv(nn.Module):
    """One convolution under two names, run at two sizes; the flow depends on data, so tracing fails."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.alias, self.bn_alias = self.shared, self.bn

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if float(x.detach().sum()) > 1e30:
            return x
        x = self.bn(self.shared(x))
        return self.bn_alias(self.alias(nn.functional.max_pool2d(x, 2)))


class Branching(nn.Module):
    """A convolution whose output feeds its BatchNorm and a second reader; and one BatchNorm read by two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.stem(x))
        z = self.bn1(y) * y
        return self.bn2(self.conv2(z)) + self.bn2(self.conv3(z))


def tiny(num_classes: int) -> nn.Module:
    """For --model path/to/networks.py:tiny."""
    return TinyResNet(width=32, classes=num_classes)


class Side(nn.Module):
    """What several modules make of one map, side by side."""

    def __init__(self, *branches: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) - 5  # negative: padding with zeros would win
        return torch.cat([branch(x).flatten(1) for branch in self.branches], 1)


def borders() -> nn.Module:
    """Windows that reach over the border, at stride 1 and 2."""
    torch.manual_seed(0)
    branches: list[nn.Module] = []
    for stride in (1, 2):
        branches += [
            nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), nn.BatchNorm2d(8), nn.ReLU()),
            nn.MaxPool2d(3, stride, 1),
            nn.Conv2d(8, 8, 5, stride, 2, groups=8),
        ]
    return Side(*branches, nn.MaxPool2d(3, 2, ceil_mode=True)).eval()
