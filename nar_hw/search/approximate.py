"""Operators that begin as the nearest thing to the convolution they replace.

With fresh weights, a supernet of a trained network knows nothing: a few random operators in the path are enough. With weights
chosen by least squares, every child begins as an approximation of the network.

Shape legend: O output channels, I input channels, G groups, k kernel size, K = k * k taps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pool = nn.MaxPool2d | nn.AvgPool2d


@torch.no_grad()
def approximate(operator: nn.Module, conv: nn.Conv2d) -> bool:
    """Give ``operator`` the weights with which it is nearest to ``conv``; an operator of unknown form is left alone.

    Known are the forms of nar_hw/space/operators.py: another kernel size (taps are added as zeros or cut off), depthwise then 1x1
    (of each input channel's O x K taps the best matrix of rank one), and 1x1 then a pool (the sum of the taps: exact where the
    image is constant; for an average pool the least-squares weights).

    Returns:
        Whether the form is known.
    """
    if not _plain(conv):
        return False
    parts = list(operator.children()) if isinstance(operator, nn.Sequential) else [operator]
    match parts:
        case [nn.Conv2d() as single] if single.groups == conv.groups and _square(single) is not None:
            single.weight.copy_(_resize(conv.weight, single.weight.shape[-1]))
            last = single
        case [nn.Conv2d() as depthwise, nn.Conv2d() as last] if depthwise.groups == conv.in_channels and _fits(last, conv):
            _separate(conv, depthwise, last)
        case [nn.Conv2d() as last, nn.MaxPool2d() | nn.AvgPool2d()] if _fits(last, conv):
            last.weight.copy_(conv.weight.sum((2, 3), keepdim=True))
        case _:
            return False
    if last.bias is not None and conv.bias is not None:
        last.bias.copy_(conv.bias)
    return True


def _plain(conv: nn.Conv2d) -> bool:
    return type(conv) is nn.Conv2d and _square(conv) is not None and conv.dilation == (1, 1)


def _square(conv: nn.Conv2d) -> int | None:
    """The odd side of a square kernel."""
    height, width = conv.weight.shape[-2:]
    return height if height == width and height % 2 else None


def _fits(pointwise: nn.Conv2d, conv: nn.Conv2d) -> bool:
    return pointwise.weight.shape == (*conv.weight.shape[:2], 1, 1) and pointwise.groups == conv.groups


def _resize(weight: Tensor, size: int) -> Tensor:
    """(O, I / G, k, k) taps with zeros around, or only the inner ones."""
    return F.pad(weight, [(size - weight.shape[-1]) // 2] * 4)


def _separate(conv: nn.Conv2d, depthwise: nn.Conv2d, pointwise: nn.Conv2d) -> None:
    """Weights of ``depthwise`` and ``pointwise`` whose product is nearest to the taps of ``conv``."""
    groups, inside, outside = conv.groups, conv.in_channels // conv.groups, conv.out_channels // conv.groups
    taps = _resize(conv.weight, depthwise.weight.shape[-1]).flatten(2)  # (O, I / G, K)
    taps = taps.view(groups, outside, inside, -1).transpose(1, 2).flatten(0, 1)  # (I, O / G, K)
    left, values, right = torch.linalg.svd(taps, full_matrices=False)
    root = values[:, :1].sqrt()
    depthwise.weight.copy_((root * right[:, 0]).view_as(depthwise.weight))
    across = (root * left[:, :, 0]).view(groups, inside, outside).transpose(1, 2)  # (G, O / G, I / G)
    pointwise.weight.copy_(across.reshape(pointwise.weight.shape))
