"""Networks of others: torchvision's and timm's by name, a user's by file and function."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torchvision
from torch import nn

from nar_hw.errors import ModelError, unknown_name
from nar_hw.userfile import as_a_script, load_function, user_code

Builder = Callable[..., nn.Module]


def torchvision_classifiers() -> list[str]:
    """The names of torchvision's image classifiers."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def torchvision_input(name: str) -> tuple[int, int, int]:
    """(C, H, W) of the images that torchvision's weights of ``name`` are for."""
    (size,) = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size
    return 3, size, size


def usual_normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the images that timm's and torchvision's weights are for; else ImageNet's."""
    if name.startswith("timm:"):
        config = _timm(name.removeprefix("timm:")).get_pretrained_cfg(name.removeprefix("timm:"))
        return tuple(config.mean), tuple(config.std)
    usual = name if name in torchvision_classifiers() else "resnet18"
    found = torchvision.models.get_model_weights(usual).DEFAULT.transforms()
    return tuple(found.mean), tuple(found.std)


def torchvision_builder(name: str) -> Builder:
    """Builds torchvision's classifier ``name``, its first convolution replaced for other than 3 channels."""
    return partial(_torchvision, name)


def _torchvision(name: str, *, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    # Auxiliary heads make a network return tuples while it trains; without them it is a plain classifier.
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    if input_shape[0] != 3:
        _replace_first_convolution(network, input_shape[0])
    return network


def _replace_first_convolution(network: nn.Module, channels: int) -> None:
    path, conv = next((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
    fresh = nn.Conv2d(
        channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]  # torch types it as tuple[int, ...]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
    network.set_submodule(path, fresh)


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise ModelError(f"model 'timm:{name}' needs timm, which is not installed: pip install 'nar-hw[timm]'") from None
    if not timm.is_model(name):
        raise unknown_name("model", f"timm:{name}", [f"timm:{known}" for known in timm.list_models()])
    return timm


def timm_input(name: str) -> tuple[int, int, int]:
    """(C, H, W) of the images that timm's ``name`` is for. Raises as `timm_builder` does."""
    shape = _timm(name).get_pretrained_cfg(name).input_size
    return shape[0], shape[1], shape[2]


def timm_builder(name: str) -> Builder:
    """Builds timm's network ``name``. Raises ModelError where timm is not installed, UnknownNameError for a name it lacks."""
    timm = _timm(name)

    def build(*, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=input_shape[0])
        return network

    return build


def file_builder(name: str) -> Builder:
    """Builds what a user's function returns; ``name`` is ``path/to/file.py:function`` or ``package.module:function``.

    The function gets those of the keyword arguments ``input_shape`` and ``num_classes`` that it accepts. Raises ModelError when
    the file or the function is missing, raises, or returns something else than an nn.Module.
    """
    function = load_function(name, what="model", error=ModelError)
    attribute = name.rpartition(":")[2]
    if isinstance(function, nn.Module):
        raise ModelError(f"model {name!r} must name a function that returns a network, but {attribute!r} is a network")

    def build(*, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        with user_code(f"model {name!r} must build, but {attribute}()"), as_a_script(name):
            network = function(**_accepted(function, {"input_shape": input_shape, "num_classes": num_classes}))
        if not isinstance(network, nn.Module):
            raise ModelError(f"model {name!r} must return an nn.Module, but {attribute}() returned a {type(network).__name__}")
        return network

    return build


def _accepted(function: Builder, given: dict[str, object]) -> dict[str, object]:
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return given
    by_keyword = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
    return {key: value for key, value in given.items() if key in by_keyword}
