"""Counting: parameters, FLOPs (multiply-adds, as fvcore counts them) and the operations of pools.

fvcore has no handle for max and average pools, so that pools look free in ``flops``. They get a column of their own,
``pool_ops`` (comparisons or additions: outputs times window size), and ``flops`` stays comparable with published numbers.

Shape legend: archs is (N, slots), one operator code per slot.
"""

import math
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nar_hw.errors import SpaceError
from nar_hw.space.network import images_for, plain_copy, plainly
from nar_hw.space.operators import build_operator
from nar_hw.space.space import SearchSpace, Site, Slot
from nar_hw.space.spec import INCUMBENT, NO_SKIP, SKIP, OpSpec, Pair
from nar_hw.userfile import user_code

Integers = NDArray[np.int64]
Handle = Callable[[list[Any], list[Any]], Counter[str]]
ArchBatch = Integers | Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The cost of a network or operator for one image; costs add up, and ``Counts()`` is the cost of nothing."""

    params: int = 0
    flops: int = 0
    """Multiply-adds as fvcore counts them: convolutions, linear layers, norms, adaptive average pools."""
    pool_ops: int = 0
    """Comparisons and additions of all pools, adaptive ones included."""

    def __add__(self, other: "Counts") -> "Counts":
        """The two costs together."""
        return Counts(params=self.params + other.params, flops=self.flops + other.flops, pool_ops=self.pool_ops + other.pool_ops)


def count_module(module: nn.Module, input_shape: tuple[int, int, int]) -> Counts:
    """The counts of any network for one image (C, H, W), by running a copy once in evaluation mode.

    Shared parameters count once, every call of a shared module counts. What fvcore does not know costs nothing:
    `count_with_gaps` tells what that is. Raises ModelError when the module rejects the shape or cannot be counted.
    """
    return count_with_gaps(module, input_shape)[0]


def count_with_gaps(module: nn.Module, input_shape: tuple[int, int, int]) -> tuple[Counts, dict[str, int]]:
    """`count_module`, and the operators that cost nothing in it because nobody counts them, with their numbers of calls."""
    network = plain_copy(module, input_shape)  # fvcore leaves its hooks behind when the forward pass fails
    network.eval()
    images = images_for(network, input_shape)
    shape = "x".join(map(str, input_shape))
    with torch.no_grad(), plainly(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore rests on torch.jit, which warns that it is deprecated
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(network, images)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).set_op_handle(**HANDLES)
        with user_code(f"the model must accept one image of shape {shape}, but counting it"):
            counted = dict(analysis.by_operator())
            unknown = analysis.unsupported_ops()
    pool_ops = counted.pop(POOL_OPS, 0)
    params = sum(parameter.numel() for parameter in network.parameters())
    gaps = {name.removeprefix("aten::"): int(calls) for name, calls in sorted(unknown.items()) if name not in FREE}
    return Counts(params=params, flops=int(sum(counted.values())), pool_ops=int(pool_ops)), gaps


POOL_OPS = "pool_ops"
# fmt: off
FREE = frozenset(
    f"aten::{name}{suffix}"
    for name in (
        "add", "sub", "rsub", "mul", "div", "neg", "abs", "mean", "sum", "pow", "sqrt", "rsqrt", "exp", "sigmoid", "tanh",
        "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "elu", "leaky_relu", "prelu", "softplus", "mish",
        "softmax", "log_softmax", "unflatten", "feature_dropout", "clone", "pad", "flip", "channel_shuffle", "pixel_shuffle",
    )
    for suffix in ("", "_")
)
# fmt: on
"""What costs about one operation for each value, or none: by custom not counted, and not worth a word."""


def _pool(dimensions: int) -> Handle:
    def count(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        window = [_static(size) for size in inputs[1].node().inputs()]
        area = math.prod(window) if len(window) > 1 else window[0] ** dimensions
        return Counter({POOL_OPS: math.prod(_shape(outputs[0])) * area})

    return count


def _adaptive_pool(dimensions: int) -> Handle:
    def count(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        sizes, results = _shape(inputs[0]), _shape(outputs[0])
        reads = map(_adaptive_reads, sizes[-dimensions:], results[-dimensions:])
        return Counter({POOL_OPS: math.prod(sizes[:-dimensions]) * math.prod(reads)})

    return count


def _adaptive_avg_pool(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    # fvcore itself counts the inputs of two-dimensional adaptive average pools as FLOPs; they stay there, to be comparable.
    return _adaptive_pool(2)(inputs, outputs) + Counter({"adaptive_avg_pool2d": math.prod(_shape(inputs[0]))})


def _adaptive_reads(size: int, outputs: int) -> int:
    """How many inputs the windows of an adaptive pool read along one axis: window i is floor(i s/o) ... ceil((i+1) s/o)."""
    return sum(-(-(index + 1) * size // outputs) - index * size // outputs for index in range(outputs))


def _convolution_by_name(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    batch, _, *size = _shape(outputs[0])
    return Counter({"conv": batch * math.prod(size) * math.prod(_shape(inputs[1]))})


# What fvcore lacks: jit operator -> its cost. Convolutions with padding="same" have an operator of their own.
HANDLES: dict[str, Handle] = {
    "aten::max_pool1d": _pool(1),
    "aten::max_pool2d": _pool(2),
    "aten::max_pool3d": _pool(3),
    "aten::max_pool2d_with_indices": _pool(2),
    "aten::avg_pool1d": _pool(1),
    "aten::avg_pool2d": _pool(2),
    "aten::avg_pool3d": _pool(3),
    "aten::adaptive_max_pool1d": _adaptive_pool(1),
    "aten::adaptive_max_pool2d": _adaptive_pool(2),
    "aten::adaptive_max_pool3d": _adaptive_pool(3),
    "aten::adaptive_avg_pool1d": _adaptive_pool(1),
    "aten::adaptive_avg_pool2d": _adaptive_avg_pool,
    "aten::adaptive_avg_pool3d": _adaptive_pool(3),
    "aten::_convolution_mode": _convolution_by_name,
}


def _shape(value: Any) -> list[int]:
    sizes: list[int] = value.type().sizes()
    return sizes


# What networks do with sizes before they pool over them.
ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::floor_divide": operator.floordiv,
}


def _static(value: Any) -> int:
    """An integer of the traced graph: a constant, the size of a tensor's dimension, or computed from these."""
    constant = value.toIValue()
    if constant is not None:
        return int(constant)
    node = value.node()
    if node.kind() in ("aten::Int", "prim::NumToTensor"):
        return _static(next(node.inputs()))
    if node.kind() == "aten::size":
        tensor, dimension = node.inputs()
        return _shape(tensor)[_static(dimension)]
    if node.kind() in ARITHMETIC:
        first, second, *_ = node.inputs()
        return ARITHMETIC[node.kind()](_static(first), _static(second))
    raise ValueError(f"the window of a pool is computed by {node.kind()}, so its cost is unknown")


def count_spec(spec: OpSpec) -> Counts:
    """The counts of one operator by formula; equal to `count_module` of what `build_operator` makes of ``spec``.

    An operator without a formula is built and counted. Raises UnknownNameError when it is not registered.
    """
    if has_formula(spec):
        return FORMULAS[spec.operator](spec)
    return count_module(build_operator(spec), (spec.c_in, spec.h, spec.w))


def has_formula(spec: OpSpec) -> bool:
    """Whether `count_spec` needs no run: every operator of nar_hw, and incumbents that are plain nn.Conv2d."""
    return spec.operator in FORMULAS and spec.module is None


def _output(spec: OpSpec, kernel: Pair, padding: Pair | str, dilation: Pair = (1, 1)) -> Pair:
    if padding == "same":  # torch admits it for stride 1 only
        return spec.h, spec.w
    top, left = (0, 0) if isinstance(padding, str) else padding
    return (
        (spec.h + 2 * top - dilation[0] * (kernel[0] - 1) - 1) // spec.stride[0] + 1,
        (spec.w + 2 * left - dilation[1] * (kernel[1] - 1) - 1) // spec.stride[1] + 1,
    )


def _weights(weights: int, outputs: Pair, bias: int) -> Counts:
    return Counts(params=weights + bias, flops=weights * outputs[0] * outputs[1])


def _projection(spec: OpSpec, size: Pair) -> Counts:
    """1x1 convolution to c_out at height and width ``size``."""
    return _weights(spec.c_in * spec.c_out // spec.groups, size, spec.c_out * spec.bias)


def _convolution(kernel: int) -> Callable[[OpSpec], Counts]:
    def count(spec: OpSpec) -> Counts:
        weights = spec.c_out * (spec.c_in // spec.groups) * kernel**2
        return _weights(weights, _output(spec, (kernel, kernel), (kernel // 2, kernel // 2)), spec.c_out * spec.bias)

    return count


def _separable(kernel: int) -> Callable[[OpSpec], Counts]:
    def count(spec: OpSpec) -> Counts:
        size = _output(spec, (kernel, kernel), (kernel // 2, kernel // 2))
        return _weights(spec.c_in * kernel**2, size, 0) + _projection(spec, size)

    return count


def _plain_pool(spec: OpSpec) -> Counts:
    return Counts(pool_ops=spec.c_in * math.prod(_output(spec, (3, 3), (1, 1))) * 9)


def _projected_pool(spec: OpSpec) -> Counts:
    pool = Counts(pool_ops=spec.c_out * math.prod(_output(spec, (3, 3), (1, 1))) * 9)
    return _projection(spec, (spec.h, spec.w)) + pool


def _incumbent(spec: OpSpec) -> Counts:
    assert spec.kernel is not None
    assert spec.padding is not None
    assert spec.dilation is not None
    weights = spec.c_out * (spec.c_in // spec.groups) * math.prod(spec.kernel)
    return _weights(weights, _output(spec, spec.kernel, spec.padding, spec.dilation), spec.c_out * spec.bias)


FORMULAS: dict[str, Callable[[OpSpec], Counts]] = {
    "conv3x3": _convolution(3),
    "dwsep3x3": _separable(3),
    "max3x3": _projected_pool,
    "avg3x3": _projected_pool,
    "conv5x5": _convolution(5),
    "dwsep5x5": _separable(5),
    "depthwise3x3": _convolution(3),
    "depthwise5x5": _convolution(5),
    "depthwise7x7": _convolution(7),
    "plainmax3x3": _plain_pool,
    "plainavg3x3": _plain_pool,
    "grouped3x3": _convolution(3),
    "grouped5x5": _convolution(5),
    "groupedsep3x3": _separable(3),
    "groupedmax3x3": _projected_pool,
    "groupedavg3x3": _projected_pool,
    INCUMBENT: _incumbent,
}


class SpaceCounts:
    """The counts of every arch of a search space: the network is run once, then an arch is a sum of table look-ups.

    The sums equal `count_module` of the built child exactly.
    """

    def __init__(self, space: SearchSpace) -> None:
        """Count the network with fvcore, and the candidates of each slot by formula (with fvcore where there is none)."""
        self.space = space
        shape = (len(space.slots), len(space.operators))
        self._rows = np.arange(shape[0]) * shape[1]
        self._admitted = np.zeros(shape, bool)
        self._params, self._flops, self._pool_ops = (np.zeros(shape, np.int64) for _ in range(3))
        self._known: dict[tuple[OpSpec, OpSpec], Counts] = {}
        owners = _owners(space)
        for position, slot in enumerate(space.slots):
            for code in slot.candidates:
                counts = sum((self._count(site, code) for site in slot.sites), Counts())
                own = sum(item.numel() for item in _kept(space, slot, code) if owners[id(item)] == {position})
                self._admitted[position, code] = True
                self._params[position, code] = counts.params + own
                self._flops[position, code] = counts.flops
                self._pool_ops[position, code] = counts.pool_ops
        self._tied = _tied(space, owners)
        total = count_module(space.model, space.input_shape)
        incumbents = [self.candidate(position, slot.incumbent) for position, slot in enumerate(space.slots)]
        self.fixed = Counts(
            params=sum(item.numel() for item in space.model.parameters() if OUTSIDE in owners[id(item)]),
            flops=total.flops - sum(counts.flops for counts in incumbents),
            pool_ops=total.pool_ops - sum(counts.pool_ops for counts in incumbents),
        )
        """What every arch has: all but the operators in the slots."""

    def _count(self, site: Site, code: int) -> Counts:
        """The operator's counts over all calls; parameters that the network already has are left out."""
        specs = self.space.site_specs(site, code)
        calls = [self._count_call(site, code, specs[0], spec) for spec in specs]
        return Counts(
            params=0 if _keeps(site, specs[0]) else calls[0].params,
            flops=sum(call.flops for call in calls),
            pool_ops=sum(call.pool_ops for call in calls),
        )

    def _count_call(self, site: Site, code: int, first: OpSpec, spec: OpSpec) -> Counts:
        if has_formula(spec):
            return count_spec(spec)
        if spec.operator in (SKIP, NO_SKIP):
            return Counts()  # fvcore does not count additions
        key = (first, spec)  # an operator is built for its first call
        if key in self._known:
            return self._known[key]
        counts = count_module(self.space.module_for(site, code), (spec.c_in, spec.h, spec.w))
        if spec.module is None:  # else the spec does not say the cost: the convolution is of a class of its own
            self._known[key] = counts
        return counts

    def candidate(self, position: int, code: int) -> Counts:
        """The counts of operator ``code`` in slot ``position`` (its norms and weights tied to other slots not included)."""
        return Counts(
            params=int(self._params[position, code]),
            flops=int(self._flops[position, code]),
            pool_ops=int(self._pool_ops[position, code]),
        )

    def per_slot(self, arch: Sequence[int]) -> tuple[Counts, ...]:
        """The counts of the operator in each slot of ``arch``. Raises SpaceError for an arch that is not valid."""
        return tuple(self.candidate(position, code) for position, code in enumerate(self.space.validate(arch)))

    def count(self, arch: Sequence[int]) -> Counts:
        """The counts of the child ``arch``. Raises SpaceError for an arch that is not valid."""
        archs = [self.space.validate(arch)]
        return Counts(params=int(self.params(archs)[0]), flops=int(self.flops(archs)[0]), pool_ops=int(self.pool_ops(archs)[0]))

    def params(self, archs: ArchBatch) -> Integers:
        """(N, slots) -> (N,): parameters of each child. Raises SpaceError for a batch that is not valid."""
        cells = self._cells(archs)
        total: Integers = self.fixed.params + self._params.take(cells).sum(axis=1)
        for size, kept in self._tied:
            total += size * kept.take(cells).any(axis=1)
        return total

    def flops(self, archs: ArchBatch) -> Integers:
        """(N, slots) -> (N,): multiply-adds of each child as fvcore counts them. Raises SpaceError."""
        total: Integers = self.fixed.flops + self._flops.take(self._cells(archs)).sum(axis=1)
        return total

    def pool_ops(self, archs: ArchBatch) -> Integers:
        """(N, slots) -> (N,): pool operations of each child. Raises SpaceError."""
        total: Integers = self.fixed.pool_ops + self._pool_ops.take(self._cells(archs)).sum(axis=1)
        return total

    def _cells(self, archs: ArchBatch) -> Integers:
        """(N, slots) -> (N, slots): where each choice stands in the flattened tables."""
        codes = np.asarray(archs)
        slots, vocabulary = self._admitted.shape
        if codes.ndim != 2 or codes.shape[1] != slots or codes.dtype.kind not in "iu":
            raise SpaceError(f"archs must be integer codes of shape (N, {slots}), but got {codes.dtype} of shape {codes.shape}")
        codes = codes.astype(np.int64, copy=False)
        within = codes.size == 0 or (codes.min() >= 0 and codes.max() < vocabulary)
        cells: Integers = codes + self._rows
        if not within or not self._admitted.take(cells).all():
            for arch in codes:
                self.space.validate(arch)  # raises at the first that is not valid: it names the slot and its codes
        return cells


OUTSIDE = -1
"""The owner of parameters that belong to no slot's convolution."""


def _owners(space: SearchSpace) -> dict[int, set[int]]:
    """id of each parameter -> the slots whose convolutions hold it, and OUTSIDE where another module does."""
    slots = {
        path: position for position, slot in enumerate(space.slots) for site in slot.sites for path in (site.conv, *site.aliases)
    }
    owners: dict[int, set[int]] = {}
    for path, module in space.model.named_modules(remove_duplicate=False):
        parts = path.split(".")
        around = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        owner = next((slots[prefix] for prefix in around if prefix in slots), OUTSIDE)
        for item in module.parameters(recurse=False):
            owners.setdefault(id(item), set()).add(owner)
    return owners


def _tied(space: SearchSpace, owners: dict[int, set[int]]) -> list[tuple[int, NDArray[np.bool_]]]:
    """(size, slots and codes that keep it) of each parameter that convolutions in several slots share."""
    tied: dict[int, tuple[int, NDArray[np.bool_]]] = {}
    for position, slot in enumerate(space.slots):
        for code in slot.candidates:
            for item in _kept(space, slot, code):
                if len(owners[id(item)]) > 1 and OUTSIDE not in owners[id(item)]:
                    nowhere = np.zeros((len(space.slots), len(space.operators)), bool)
                    tied.setdefault(id(item), (item.numel(), nowhere))[1][position, code] = True
    return list(tied.values())


def _kept(space: SearchSpace, slot: Slot, code: int) -> list[nn.Parameter]:
    """The network's own parameters that operator ``code`` keeps in ``slot``, each once."""
    sites = [site for site in slot.sites if _keeps(site, space.site_specs(site, code)[0])]
    parameters = (item for site in sites for item in space.model.get_submodule(site.conv).parameters())
    return list({id(item): item for item in parameters}.values())


def _keeps(site: Site, spec: OpSpec) -> bool:
    return spec.operator == site.incumbent.operator
