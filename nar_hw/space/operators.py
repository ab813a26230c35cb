"""Operators: what may stand in a slot, and the key under which their cost is kept.

An operator maps (B, c_in, h, w) to (B, c_out, h_out, w_out) with the stride of the convolution it replaces. Adding one is one
function and one line in OPERATORS, or a builder handed to `SearchSpace.from_model`.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from nar_hw.errors import unknown_name
from nar_hw.records import replace
from nar_hw.space.spec import INCUMBENT, OpSpec, Pair, two

Builder = Callable[[OpSpec], nn.Module]


def _conv(kernel: int) -> Builder:
    def build(spec: OpSpec) -> nn.Module:
        return nn.Conv2d(spec.c_in, spec.c_out, kernel, spec.stride, kernel // 2, groups=spec.groups, bias=spec.bias)

    return build


def _separable(kernel: int) -> Builder:
    """k x k depthwise, then 1x1 to c_out (grouped where the slot is)."""

    def build(spec: OpSpec) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(spec.c_in, spec.c_in, kernel, spec.stride, kernel // 2, groups=spec.c_in, bias=False),
            _pointwise(spec),
        )

    return build


def _pointwise(spec: OpSpec) -> nn.Conv2d:
    return nn.Conv2d(spec.c_in, spec.c_out, 1, groups=spec.groups, bias=spec.bias)


def _max_pool(spec: OpSpec) -> nn.Module:
    return nn.MaxPool2d(3, spec.stride, 1)


def _avg_pool(spec: OpSpec) -> nn.Module:
    # Border windows average real pixels only: then a BatchNorm behind the pool folds into the 1x1 convolution exactly.
    return nn.AvgPool2d(3, spec.stride, 1, count_include_pad=False)


def _projected(pool: Builder) -> Builder:
    """1x1 to c_out (grouped where the slot is), then the pool."""

    def build(spec: OpSpec) -> nn.Module:
        return nn.Sequential(_pointwise(spec), pool(spec))

    return build


class Operator(NamedTuple):
    """What may stand in a slot."""

    build: Builder
    family: str | None = None
    """"dense", "depthwise" or "grouped": the convolutions that it may replace; None: whatever a user asks it for."""
    kernel: int | None = None
    """Of an operator that is one convolution: a slot's own convolution of this size gets its name."""


OPERATORS: dict[str, Operator] = {
    # the paper's operators; their position is the paper's code
    "conv3x3": Operator(_conv(3), "dense", 3),
    "dwsep3x3": Operator(_separable(3), "dense"),
    "max3x3": Operator(_projected(_max_pool), "dense"),
    "avg3x3": Operator(_projected(_avg_pool), "dense"),
    "conv5x5": Operator(_conv(5), "dense", 5),
    "dwsep5x5": Operator(_separable(5), "dense"),
    # groups = c_in = c_out: channels are not mixed, so pools stand alone
    "depthwise3x3": Operator(_conv(3), "depthwise", 3),
    "depthwise5x5": Operator(_conv(5), "depthwise", 5),
    "depthwise7x7": Operator(_conv(7), "depthwise", 7),
    "plainmax3x3": Operator(_max_pool, "depthwise"),
    "plainavg3x3": Operator(_avg_pool, "depthwise"),
    "grouped3x3": Operator(_conv(3), "grouped", 3),
    "grouped5x5": Operator(_conv(5), "grouped", 5),
    "groupedsep3x3": Operator(_separable(3), "grouped"),
    "groupedmax3x3": Operator(_projected(_max_pool), "grouped"),
    "groupedavg3x3": Operator(_projected(_avg_pool), "grouped"),
}

FAMILIES: dict[str, tuple[str, ...]] = {
    family: tuple(name for name, operator in OPERATORS.items() if operator.family == family)
    for family in ("dense", "depthwise", "grouped")
}

PAPER_OPERATORS = FAMILIES["dense"]


def family(c_in: int, c_out: int, groups: int) -> str:
    """The family of operators that suits a convolution: "dense", "depthwise" or "grouped"."""
    if groups == 1:
        return "dense"
    return "depthwise" if groups == c_in == c_out else "grouped"


def build_operator(spec: OpSpec) -> nn.Module:
    """A fresh module for ``spec``. Raises UnknownNameError for an operator that is not registered."""
    if spec.operator == INCUMBENT and spec.module is None and spec.kernel is not None:
        assert spec.padding is not None
        assert spec.dilation is not None
        return nn.Conv2d(
            spec.c_in,
            spec.c_out,
            spec.kernel,
            spec.stride,
            spec.padding,
            spec.dilation,
            groups=spec.groups,
            bias=spec.bias,
        )
    if spec.operator not in OPERATORS:
        raise unknown_name("operator", spec.operator, OPERATORS)
    return OPERATORS[spec.operator].build(spec)


def _plain_convolution(family: str, kernel: Pair) -> str | None:
    """The operator of a family that is one convolution of this size."""
    same = (name for name, found in OPERATORS.items() if found.family == family and kernel == (found.kernel, found.kernel))
    return next(same, None)


def describe(conv: nn.Conv2d, size: Pair) -> OpSpec:
    """The spec of a network's own convolution on an input of ``size`` (h, w)."""
    kernel, stride, dilation = two(conv.kernel_size), two(conv.stride), two(conv.dilation)
    padding = conv.padding if isinstance(conv.padding, str) else two(conv.padding)
    zero_padded = type(conv) is nn.Conv2d and conv.padding_mode == "zeros"
    same = zero_padded and padding == (kernel[0] // 2, kernel[1] // 2) and dilation == (1, 1)
    name = _plain_convolution(family(conv.in_channels, conv.out_channels, conv.groups), kernel) if same else None
    spec = OpSpec(
        operator=name or INCUMBENT,
        c_in=conv.in_channels,
        c_out=conv.out_channels,
        h=size[0],
        w=size[1],
        stride=stride,
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    if name is not None:
        return spec
    module = None if zero_padded else f"{type(conv).__name__}/{conv.padding_mode}"
    return replace(spec, kernel=kernel, padding=padding, dilation=dilation, module=module)
