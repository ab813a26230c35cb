"""LResNet-E-IR: the face embedding networks of ArcFace (Deng et al. 2019), the NAR paper's main baseline.

Improved residual (IR) blocks, a stem that keeps the resolution ("L") and the head BN-Dropout-FC-BN ("E").
"""

from functools import partial

from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)


class IRBlock(nn.Module):
    """BN, conv3x3, BN, PReLU, conv3x3 (stride), BN, plus the skip: (B, c_in, h, w) -> (B, c_out, h/stride, w/stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.prelu = nn.PReLU(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.downsample = (
            nn.Identity()
            if stride == 1 and c_in == c_out
            else nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, c_in, h, w) -> (B, c_out, h/stride, w/stride)."""
        residual = self.prelu(self.bn2(self.conv1(self.bn1(features))))
        merged: Tensor = self.bn3(self.conv2(residual)) + self.downsample(features)
        return merged


class LResNetIR(nn.Module):
    """An LResNet-E-IR with ``blocks`` IR blocks of ``widths`` channels in its four stages.

    (B, C, H, W) -> (B, num_classes), where ``num_classes`` is the size of the embedding (512 in the papers). Every stage
    halves height and width; the fully connected layer has one input per value of the last feature map, so the network
    serves the input size it was built for.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        blocks: tuple[int, int, int, int],
        widths: tuple[int, int, int, int] = WIDTHS,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        self.layer1 = _stage(widths[0], widths[0], blocks[0])
        self.layer2 = _stage(widths[0], widths[1], blocks[1])
        self.layer3 = _stage(widths[1], widths[2], blocks[2])
        self.layer4 = _stage(widths[2], widths[3], blocks[3])
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(widths[3] * _sixteenth(height) * _sixteenth(width), num_classes)
        self.features = nn.BatchNorm1d(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.25, mode="fan_out")  # PReLU starts as a leaky ReLU of 0.25

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        features = self.prelu(self.bn1(self.conv1(images)))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        embedding: Tensor = self.features(self.fc(self.dropout(self.bn2(features)).flatten(1)))
        return embedding


def _stage(c_in: int, c_out: int, count: int) -> nn.Sequential:
    return nn.Sequential(IRBlock(c_in, c_out, 2), *(IRBlock(c_out, c_out, 1) for _ in range(count - 1)))


def _sixteenth(size: int) -> int:
    """``size`` after four convolutions of stride 2 and padding 1: each rounds up."""
    return -(-size // 16)


lresnet34e_ir = partial(LResNetIR, blocks=(3, 4, 6, 3))
lresnet50e_ir = partial(LResNetIR, blocks=(3, 4, 14, 3))
lresnet100e_ir = partial(LResNetIR, blocks=(3, 13, 30, 3))
