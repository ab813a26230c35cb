"""Convolutions that no other operator may replace, and why: something besides their output is needed of them."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from nar_hw.errors import ModelError
from nar_hw.space.network import flat, images_for, plain_copy, run
from nar_hw.space.trace import Trace, TracedConv

Shape = tuple[int, int, int]


def why_fixed(model: nn.Module, traced: Trace, convs: Iterable[TracedConv], input_shape: Shape) -> dict[str, str]:
    """Path of a convolution -> why it must stay what it is.

    Found by two runs of ``model`` with stand-ins in place of its convolutions, which tell what is asked of them.
    """
    reasons = {conv.path: reason for conv in convs if (reason := _does_more(conv))}
    others = [conv for conv in convs if conv.path not in reasons]
    return {**_asked_of(model, traced, others, input_shape), **reasons}


def _does_more(conv: TracedConv) -> str | None:
    """What a convolution does beside convolving."""
    module = conv.module
    kind = parametrize.type_before_parametrizations(module)
    if inner := [name for name, _ in module.named_children() if name != "parametrizations"]:
        return f"{kind.__name__} does more than convolve: it holds {', '.join(inner)}"
    if module._forward_hooks:
        return "a forward hook of it would be lost"
    if not all(_only_renews_weight(hook) for hook in module._forward_pre_hooks.values()):
        return "a forward pre-hook of it would be lost"
    if kind is not nn.Conv2d and not _affine(module, conv.calls[0][0]):
        return f"{kind.__name__} does more than convolve"
    return None


def _only_renews_weight(hook: object) -> bool:
    # Of torch's own weight norm, spectral norm and pruning, all of which compute the convolution's weight.
    return isinstance(hook, WeightNorm | SpectralNorm) or type(hook).__module__ == "torch.nn.utils.prune"


def _affine(conv: nn.Conv2d, size: tuple[int, int]) -> bool:
    """Whether f(x) + f(-x) = 2 f(0), as for every convolution whatever its weight, and for no activation."""
    module = plain_copy(conv)
    images = images_for(module, (conv.in_channels, *size))
    try:
        plus, minus, zero = (run(module, factor * images) for factor in (1, -1, 0))
    except ModelError:  # it does not work alone
        return False
    difference = (plus + minus - 2 * zero).abs().max()
    return bool(difference <= 1e-2 * plus.abs().max())


class _StandIn(nn.Module):
    """Computes what a convolution does and nothing else, and notes what else is asked of it."""

    def __init__(self, conv: nn.Conv2d, asked: list[str]) -> None:
        super().__init__()
        self._nar_hw_conv = conv
        self._nar_hw_asked = asked

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs:
            self._nar_hw_asked.append("the network calls it with more than its input")
        return self._nar_hw_conv(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        with suppress(AttributeError):
            return super().__getattr__(name)
        value = getattr(super().__getattr__("_nar_hw_conv"), name)
        self._nar_hw_asked.append(f"the network reads its {name}")
        return value


def _asked_of(model: nn.Module, traced: Trace, convs: list[TracedConv], input_shape: Shape) -> dict[str, str]:
    images = images_for(model, input_shape)
    asked: dict[str, list[str]] = {conv.path: [] for conv in convs}
    if not _same(_with_stand_ins(model, convs, images, asked), traced.output) and _same(_or_none(model, images), traced.output):
        for conv in convs:
            if not asked[conv.path] and not _same(_with_stand_ins(model, [conv], images, asked), traced.output):
                asked[conv.path].append("the network asks whether it is an nn.Conv2d")
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    _with_stand_ins(model, convs, torch.cat([images, images.flip(-1)]), asked, training=True)
    for buffer, before in kept:  # statistics, which a run in training mode changes
        buffer.copy_(before)
    return {path: found[0] for path, found in asked.items() if found}


def _with_stand_ins(
    model: nn.Module, convs: Iterable[TracedConv], images: Tensor, asked: Mapping[str, list[str]], *, training: bool = False
) -> Any:
    """What ``model`` returns with stand-ins for ``convs``; None when it fails."""
    places = [(path, conv.path) for conv in convs for path in (conv.path, *conv.aliases)]
    own = {path: model.get_submodule(path) for path, _ in places}
    for path, first in places:
        module = own[path]
        assert isinstance(module, nn.Conv2d)
        model.set_submodule(path, _StandIn(module, asked[first]).train(module.training))
    try:
        return _or_none(model, images, training=training)
    finally:
        for path, module in own.items():
            model.set_submodule(path, module)


def _or_none(model: nn.Module, images: Tensor, *, training: bool = False) -> Any:
    try:
        return run(model, images, training=training)
    except ModelError:
        return None


def _same(output: Any, expected: Tensor) -> bool:
    with suppress(ModelError):
        return torch.equal(flat(output), expected)
    return False
