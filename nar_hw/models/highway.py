"""A convolutional Highway network for CIFAR (Srivastava et al. 2015): gates say how much of its input a layer passes on."""

from torch import Tensor, nn

from nar_hw.models.resnet_cifar import initialize

STAGES = ((32, 32, 32, 48, 48), (80,) * 6, (128,) * 6)
"""Widths of the 17 convolutions of FitNet-4 between its pools, which section 4.2 turns into a Highway network of 19 layers."""
HIDDEN = 500
GATE_BIAS = -2.0
"""Of the gates at first, so that layers carry their input (section 2.2: a negative one, such as -1 to -3)."""


class HighwayConv(nn.Module):
    """gate * relu(conv(x)) + (1 - gate) * x, the gate a sigmoid of a convolution: (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.gate = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        gate = self.gate(features).sigmoid()
        mixed: Tensor = features + gate * (self.relu(self.conv(features)) - features)
        return mixed


class Highway(nn.Module):
    """Nineteen layers: (B, C, H, W) -> (B, num_classes), for images of any size; 3x32x32 in the paper.

    Where the width changes, the layer is a plain convolution, for nothing could be carried.
    """

    def __init__(self, *, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = input_shape[0]
        for number, widths in enumerate(STAGES):
            for width in widths:
                same = width == channels
                layers += [HighwayConv(width)] if same else [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2) if number + 1 < len(STAGES) else nn.AdaptiveMaxPool2d(1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(channels, HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, num_classes))
        initialize(self)
        for module in self.modules():
            if isinstance(module, HighwayConv):
                nn.init.constant_(module.gate.bias, GATE_BIAS)  # type: ignore[arg-type]  # it has one

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
