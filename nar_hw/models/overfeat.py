"""OverFeat's fast network (Sermanet et al. 2014, table 1)."""

from torch import Tensor, nn

from nar_hw.errors import ModelError
from nar_hw.models.resnet_cifar import initialize


class OverFeat(nn.Module):
    """Five convolutions, of which three are pooled without overlap, and three linear layers, made for 3x231x231.

    (B, C, H, W) -> (B, num_classes); 145,920,872 parameters for 1,000 classes. Raises ModelError for images of which nothing
    would be left.
    """

    def __init__(self, *, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, *sides = input_shape
        rows, columns = ((((side - 11) // 4 + 1) // 2 - 4) // 2 // 2 for side in sides)
        if min(rows, columns) < 1:
            raise ModelError(
                f"overfeat needs images of at least 71x71 pixels, but got {sides[0]}x{sides[1]}: use a smaller network"
            )
        self.features = nn.Sequential(
            nn.Conv2d(channels, 96, 11, stride=4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(96, 256, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(256, 512, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(512, 1024, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(1024, 1024, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(1024 * rows * columns, 3072),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(3072, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
