"""How different images look: distances of the unit-normalised features of a trained backbone (Zhang et al. 2018)."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nar_hw.errors import ModelError
from nar_hw.models import build_model
from nar_hw.models.weights import load_weights
from nar_hw.tasks import evaluating

SIDE = 64
"""Pixels; smaller images are enlarged, for a backbone like AlexNet needs them."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""RGB statistics of the images that torchvision's weights were trained on."""
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.PReLU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.ELU)


class Lpips(nn.Module):
    """The convolutions of AlexNet, and a learned weight for every channel after each of its five activations."""

    def __init__(self) -> None:
        super().__init__()
        import torchvision

        self.features = torchvision.models.alexnet(weights=None).features[:12]
        widths = [module.out_channels for module in self.features if isinstance(module, nn.Conv2d)]
        self.heads = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in widths)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to the last features."""
        features: Tensor = self.features(images)
        return features


def load_backbone(name: str, weights: Path | None = None) -> nn.Module:
    """A network for 1000 classes with ``weights`` of a file, else those that torchvision has for it (which are downloaded).

    "lpips" is LPIPS with its learned weights, which a file must hold (see examples/lpips/convert.py).

    Raises UnknownNameError, or ModelError where the weights are absent, do not fit or cannot be downloaded.
    """
    if name == "lpips":
        if weights is None:
            raise ModelError(
                "lpips needs its learned weights: name a file of them (--backbone-weights), which examples/lpips/convert.py "
                "makes of a package of the index"
            )
        lpips = Lpips()
        load_weights(lpips, weights, name=name)
        return lpips.eval()
    network = build_model(name, input_shape=(3, 224, 224), num_classes=1000, pretrained_weights=weights)
    if weights is None:
        import torchvision

        try:
            network.load_state_dict(torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=False))
        except (OSError, RuntimeError, ValueError) as problem:  # offline, or a network that is not torchvision's
            raise ModelError(
                f"deep features need trained weights, but those of {name!r} cannot be downloaded ({type(problem).__name__}): "
                "name a file of them (--backbone-weights)"
            ) from problem
    return network.eval()


def distances(backbone: nn.Module, images: Tensor, other: Tensor) -> Tensor:
    """Distance of each of ``images`` (B, 3, H, W) to ``other`` (3, H, W), both in [0, 255]: (B,).

    After every activation of the backbone that still has rows and columns, the features of each place are scaled to length 1;
    the squared distances are averaged over places and summed over activations (with AlexNet: the five of LPIPS). With
    :class:`Lpips` the squares of each channel have a learned weight.

    Raises ModelError where the backbone has no such activation.
    """
    both = torch.cat([other[None], images]) / 255  # (1 + B, 3, H, W)
    if min(both.shape[2:]) < SIDE:
        scale = SIDE / min(both.shape[2:])
        both = F.interpolate(both, scale_factor=scale, mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(values, device=both.device).view(3, 1, 1) for values in (MEAN, STD))
    found: list[Tensor] = []

    def hook(module: nn.Module, args: Any, features: Tensor) -> None:
        if features.ndim == 4:
            unit = features / (features.norm(dim=1, keepdim=True) + 1e-10)
            squares = (unit[1:] - unit[:1]).square()  # (B, C, h, w)
            if isinstance(backbone, Lpips):
                squares = squares * backbone.heads[len(found)][:, None, None]
            found.append(squares.sum(1).mean((1, 2)))

    handles = [module.register_forward_hook(hook) for module in backbone.modules() if isinstance(module, ACTIVATIONS)]
    try:
        with evaluating(backbone):
            backbone((both - mean) / std)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ModelError("a backbone must have activations as modules (like nn.ReLU) for deep features, but has none")
    return torch.stack(found).sum(0)
