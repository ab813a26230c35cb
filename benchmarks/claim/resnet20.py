"""ResNet-20 for CIFAR-10 with parameter-free shortcuts (option A of He et al. 2015, section 4.2).

Such a shortcut takes every second pixel and pads the new channels with zeros. Here it is a 1x1 convolution that computes the same
numbers, because tools that prune channels cannot follow slices and pads. resnet20.safetensors holds the weights that Yerlan
Idelbayev published (github.com/akamaster/pytorch_resnet_cifar10, resnet20-12fca82f.th, BSD 2-Clause, trained for 200 epochs),
under these names: `python benchmarks/claim/resnet20.py resnet20-12fca82f.th` made it.
"""

import re
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

from nar_hw.models.resnet_cifar import CifarResNet

WEIGHTS = Path(__file__).with_suffix(".safetensors")


def shortcut(c_in: int, c_out: int) -> nn.Module:
    """(B, c_in, H, W) -> (B, c_out, H/2, W/2): every second pixel; half of the new channels before the old ones, half behind."""
    layer = nn.Conv2d(c_in, c_out, 1, stride=2, bias=False)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        for channel in range(c_in):
            layer.weight[(c_out - c_in) // 2 + channel, channel] = 1
    return layer


def build(*, input_shape: tuple[int, int, int] = (3, 32, 32), num_classes: int = 10) -> nn.Module:
    """The network; untrained but for its shortcuts."""
    network = CifarResNet(input_shape=input_shape, num_classes=num_classes, widths=(16, 32, 64), blocks=(3, 3, 3))
    network.layer2[0].downsample = shortcut(16, 32)  # type: ignore[index, union-attr]
    network.layer3[0].downsample = shortcut(32, 64)  # type: ignore[index, union-attr]
    return network


def convert(published: Path) -> None:
    """Write resnet20.safetensors from the published file."""
    from nar_hw.models.weights import save_weights

    state = torch.load(published, map_location="cpu", weights_only=True)["state_dict"]
    rename = partial(re.sub, r"^(module\.)?(linear)?", lambda found: "fc" if found[2] else "")
    network = build()
    missing, unexpected = network.load_state_dict({rename(name): value for name, value in state.items()}, strict=False)
    assert not unexpected, unexpected
    assert all("downsample" in name or name.endswith("num_batches_tracked") for name in missing), missing
    save_weights(WEIGHTS, network)


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
