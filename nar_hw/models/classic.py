"""Networks from before residual learning: LeNet-5 (LeCun et al. 1998) and Network in Network (Lin et al. 2013)."""

from torch import Tensor, nn

from nar_hw.errors import ModelError
from nar_hw.models.resnet_cifar import initialize


class LeNet5(nn.Module):
    """Two 5x5 convolutions with max pools and three linear layers, made for 1x28x28: (B, C, H, W) -> (B, num_classes).

    The first linear layer has one input per value of the last feature map. Raises ModelError for images smaller than 16x16,
    of which nothing would be left.
    """

    def __init__(self, *, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        if min(height, width) < 16:
            raise ModelError(f"lenet5 needs images of at least 16x16 pixels, but got {height}x{width}: use resnet_digits")
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * _shrunk(height) * _shrunk(width), 120),
            nn.ReLU(inplace=True),
            nn.Linear(120, 84),
            nn.ReLU(inplace=True),
            nn.Linear(84, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def _shrunk(size: int) -> int:
    """``size`` after two times (5x5 convolution without padding, 2x2 pool)."""
    for _ in range(2):
        size = (size - 4) // 2
    return size


class NiN(nn.Module):
    """Network in Network in its CIFAR form: three convolutions, each followed by two 1x1 ones, and global averages as logits.

    (B, C, H, W) -> (B, num_classes), for any input size.
    """

    def __init__(self, *, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_mlp_convolution(input_shape[0], (192, 160, 96), 5),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Dropout(0.5),
            *_mlp_convolution(96, (192, 192, 192), 5),
            nn.AvgPool2d(3, stride=2, padding=1),
            nn.Dropout(0.5),
            *_mlp_convolution(192, (192, 192, num_classes), 3),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        averages: Tensor = self.avgpool(self.features(images))
        return averages.flatten(1)


def _mlp_convolution(c_in: int, widths: tuple[int, int, int], kernel: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for size, width in zip((kernel, 1, 1), widths, strict=True):
        layers += [nn.Conv2d(c_in, width, size, padding=size // 2), nn.ReLU(inplace=True)]
        c_in = width
    return layers
