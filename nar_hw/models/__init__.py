"""Networks by name: ours, any torchvision classifier, ``timm:NAME``, or a function in a file of yours."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nar_hw.errors import ModelError, unknown_name
from nar_hw.userfile import is_file_name

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_model", "known_models", "usual_input", "usual_outputs"]

EMBEDDING = 512
"""Outputs of the face networks in their papers."""
SMALL_INPUTS = {
    "_tiny": (3, 64, 64),
    "_tiny_less": (3, 64, 64),
    "_cifar": (3, 32, 32),
    "_ir": (3, 112, 112),
    "_digits": (1, 8, 8),
    "lenet5": (1, 28, 28),
    "nin": (3, 32, 32),
    "highway19": (3, 32, 32),
}
"""End of the name of a network of ours -> the images of its paper; of all others 3x224x224."""

# name -> "module:builder"; a builder takes the keyword arguments input_shape and num_classes
OWN: dict[str, str] = {
    "resnet18": "resnet_cifar:resnet18",
    "resnet34": "resnet_cifar:resnet34",
    "resnet50": "resnet_cifar:resnet50",
    "resnet101": "resnet_cifar:resnet101",
    "resnet152": "resnet_cifar:resnet152",
    "resnet_digits": "resnet_cifar:resnet_digits",
    "resnet20_cifar": "resnet_cifar:resnet20_cifar",
    "resnet32_cifar": "resnet_cifar:resnet32_cifar",
    "resnet44_cifar": "resnet_cifar:resnet44_cifar",
    "resnet56_cifar": "resnet_cifar:resnet56_cifar",
    "lresnet34e_ir": "lresnet_ir:lresnet34e_ir",
    "lresnet50e_ir": "lresnet_ir:lresnet50e_ir",
    "lresnet100e_ir": "lresnet_ir:lresnet100e_ir",
    "resnet20_tiny": "resnet_tiny:resnet20_tiny",
    "resnet38_tiny": "resnet_tiny:resnet38_tiny",
    "resnet50_tiny": "resnet_tiny:resnet50_tiny",
    "resnet101_tiny": "resnet_tiny:resnet101_tiny",
    "resnet152_tiny": "resnet_tiny:resnet152_tiny",
    "resnet20_tiny_less": "resnet_tiny:resnet20_tiny_less",
    "resnet38_tiny_less": "resnet_tiny:resnet38_tiny_less",
    "resnet50_tiny_less": "resnet_tiny:resnet50_tiny_less",
    "resnet101_tiny_less": "resnet_tiny:resnet101_tiny_less",
    "resnet152_tiny_less": "resnet_tiny:resnet152_tiny_less",
    "lenet5": "classic:LeNet5",
    "nin": "classic:NiN",
    "overfeat": "overfeat:OverFeat",
    "dpn92": "dpn:dpn92",
    "bn_inception": "bn_inception:BNInception",
    "highway19": "highway:Highway",
}


def build_model(
    name: str, *, input_shape: tuple[int, int, int], num_classes: int, pretrained_weights: str | Path | None = None
) -> "nn.Module":
    """The network called ``name``, freshly initialised, in training mode and without wrappers (DataParallel, torch.compile).

    Args:
        name: one of `known_models`, ``timm:NAME``, or ``path/to/file.py:function`` (called with those of the keyword
            arguments ``input_shape`` and ``num_classes`` that it accepts; it must return an nn.Module).
        input_shape: (C, H, W) of one image. Our ResNets and DPNs get the CIFAR stem up to 64 pixels a side.
        num_classes: outputs; for the lresnet*_ir networks the size of the embedding.
        pretrained_weights: a .safetensors file, or a torch file of tensors only, that fits the network exactly.

    Raises:
        UnknownNameError: no such network.
        ModelError: the sizes are not positive, the network cannot be built, or the weights do not fit.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ModelError(f"input_shape must be three positive sizes (C, H, W), but got {tuple(input_shape)}")
    if num_classes < 1:
        raise ModelError(f"num_classes must be at least 1, but got {num_classes}")
    from nar_hw.space.network import bare, settle

    network = bare(builder(name)(input_shape=tuple(input_shape), num_classes=num_classes))
    settle(network, input_shape)
    if pretrained_weights is not None:
        from nar_hw.models.weights import load_weights

        load_weights(network, Path(pretrained_weights), name=name)
    return network


def usual_input(name: str) -> tuple[int, int, int]:
    """(C, H, W) of the images that a network is known for; torchvision's and timm's as their weights say.

    Raises UnknownNameError, and ModelError for a user's own network, of which nobody knows it.
    """
    from nar_hw.models import by_name

    if name in OWN:
        return next((shape for end, shape in SMALL_INPUTS.items() if name.endswith(end)), (3, 224, 224))
    if name.startswith("timm:"):
        return by_name.timm_input(name.removeprefix("timm:"))
    if is_file_name(name):
        raise ModelError(f"nothing says which images {name!r} takes: give their shape, like --input 3x224x224")
    if name in by_name.torchvision_classifiers():
        return by_name.torchvision_input(name)
    raise unknown_name("model", name, known_models())


def usual_outputs(name: str, input_shape: tuple[int, int, int]) -> int:
    """Outputs where none are asked for: the face networks' embedding, else 10 classes up to 64 pixels a side, 1000 above."""
    if name in OWN and OWN[name].startswith("lresnet_ir:"):
        return EMBEDDING
    return 10 if max(input_shape[1:]) <= 64 else 1000


def known_models() -> list[str]:
    """The names of our networks and of torchvision's classifiers, sorted."""
    from nar_hw.models import by_name

    return sorted({*OWN, *by_name.torchvision_classifiers()})


def builder(name: str) -> "Callable[..., nn.Module]":
    """What makes the network called ``name``. Raises UnknownNameError, or ModelError for a file without such a function."""
    from nar_hw.models import by_name

    if name in OWN:
        module, attribute = OWN[name].split(":")
        builder: Callable[..., nn.Module] = getattr(importlib.import_module(f"nar_hw.models.{module}"), attribute)
        return builder
    if name.startswith("timm:"):
        return by_name.timm_builder(name.removeprefix("timm:"))
    if is_file_name(name):
        return by_name.file_builder(name)
    if name in by_name.torchvision_classifiers():
        return by_name.torchvision_builder(name)
    raise unknown_name("model", name, known_models())
