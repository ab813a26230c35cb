"""The networks that are fine-tuned: torchvision's, so that its ImageNet weights fit all but the head.

For `nar-hw train --model examples/tiny_imagenet/networks.py:resnet50`. (`--model resnet50` has another stem for small images.)
"""

from collections import OrderedDict
from functools import partial

import torchvision
from torch import nn
from torchvision.models import vgg


def resnet(name: str, *, num_classes: int) -> nn.Module:
    """With the 7x7 stem and its pool; 57x57 pixels leave 2x2 to the average."""
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return network


resnet18 = partial(resnet, "resnet18")
resnet34 = partial(resnet, "resnet34")
resnet50 = partial(resnet, "resnet50")
resnet101 = partial(resnet, "resnet101")
resnet152 = partial(resnet, "resnet152")


def vgg16(*, num_classes: int) -> nn.Module:
    """The convolutions of VGG16, which leave 1x1 of 57x57 pixels, and two new linear layers (Zhai, section 3.1)."""
    head = nn.Sequential(nn.Linear(512, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(4096, num_classes))
    for layer in (head[0], head[3]):
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    features = vgg.make_layers(vgg.cfgs["D"])
    parts = {"features": features, "avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "classifier": head}
    return nn.Sequential(OrderedDict(parts))
