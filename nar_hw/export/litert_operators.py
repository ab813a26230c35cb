"""What becomes of each ONNX operation in LiteRT. Adding one is one function and one line in OPERATORS.

A function gets the conversion and the node, adds LiteRT's operations and says which tensor each output is.

Shape legend: B images, H height, W width, C channels.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

    from nar_hw.export.litert import Conversion

LOWEST = np.array(np.finfo(np.float32).min, np.float32)
TO_LAST = (0, 2, 3, 1)


def given(node: "onnx.NodeProto") -> dict[str, Any]:
    """A node's attributes."""
    from onnx import helper

    found = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


class _Windows:
    """How the windows of a convolution or pool lie on a map of (H, W)."""

    def __init__(self, to: "Conversion", node: "onnx.NodeProto", window: Sequence[int] = ()) -> None:
        about = given(node)
        self._map = to.shape(node.input[0])[2:]
        self.size = list(about.get("kernel_shape") or window)
        if len(self._map) != 2:
            raise to.refused(node, f"over {len(self._map)} dimensions, where LiteRT needs two")
        if about.get("auto_pad", "NOTSET") != "NOTSET":
            raise to.refused(node, "with auto_pad: export it with numbers")
        self.strides = list(about.get("strides") or (1, 1))
        self.dilations = list(about.get("dilations") or (1, 1))
        top, left, bottom, right = about.get("pads") or (0, 0, 0, 0)
        if about.get("ceil_mode"):
            if about.get("count_include_pad"):
                raise to.refused(node, "with both ceil_mode and count_include_pad")
            bottom, right = (
                (count - 1) * stride + window - size - first
                for count, stride, window, size, first in zip(
                    to.shape(node.output[0])[2:], self.strides, self.size, self._map, (top, left), strict=True
                )
            )
        self.pads = [(top, bottom), (left, right)]

    def padding(self) -> str:
        """VALID for none, SAME for what LiteRT pads by itself (as much as keeps the size, the odd one at the end), else ""."""
        if self.pads == [(0, 0), (0, 0)]:
            return "VALID"
        same = []
        for size, window, stride, dilation in zip(self._map, self.size, self.strides, self.dilations, strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + dilation * (window - 1) + 1 - size)
            same.append((total // 2, total - total // 2))
        return "SAME" if self.pads == same else ""

    def shares(self) -> npt.NDArray[np.float32]:
        """(1, H, W, 1): the size of each window over the pixels in it."""
        parts = []
        for size, window, stride, (first, last) in zip(self._map, self.size, self.strides, self.pads, strict=True):
            starts = np.arange((size + first + last - window) // stride + 1) * stride - first
            pixels = np.minimum(starts + window, size) - np.maximum(starts, 0)
            parts.append(window / pixels)
        rows, columns = parts
        return np.asarray(rows[:, None] * columns, np.float32)[None, :, :, None]


def _padded(to: "Conversion", node: "onnx.NodeProto", windows: _Windows, filling: npt.NDArray[np.float32] | None = None) -> int:
    """The input (B, H, W, C) with the padding of the windows around it, of zeros or ``filling``."""
    pads = [(0, 0), *windows.pads, (0, 0)]
    shape = [size + sum(pad) for size, pad in zip(to.shape(node.input[0], last=True), pads, strict=True)]
    operands = [to.get(node.input[0], last=True), to.constant(np.array(pads, np.int32))]
    name = f"{node.name}/Pad"
    if filling is None:
        return to.operate("PAD", operands, shape, to.schema.PadOptionsT(), name)
    return to.operate("PADV2", [*operands, to.constant(filling)], shape, to.schema.PadV2OptionsT(), name)


def _conv(to: "Conversion", node: "onnx.NodeProto") -> None:
    """A convolution, grouped or depthwise where it is."""
    weights = to.constants.get(node.input[1])
    if weights is None:
        raise to.refused(node, "with weights that are computed")
    groups, outputs = given(node).get("group", 1), len(weights)
    windows = _Windows(to, node, weights.shape[2:])
    padding = windows.padding()
    source = to.get(node.input[0], last=True) if padding else _padded(to, node, windows)
    bias = to.constants[node.input[2]] if len(node.input) > 2 else np.zeros(outputs, np.float32)
    about = {
        "padding": getattr(to.schema.Padding, padding or "VALID"),
        "strideH": windows.strides[0],
        "strideW": windows.strides[1],
        "dilationHFactor": windows.dilations[0],
        "dilationWFactor": windows.dilations[1],
    }
    name = node.output[0]
    options: Any
    if weights.shape[1] == 1 and groups > 1:
        kernel = to.constant(weights.transpose(1, 2, 3, 0), node.input[1])
        options = to.schema.DepthwiseConv2DOptionsT(depthMultiplier=outputs // groups, **about)
        kind, version = "DEPTHWISE_CONV_2D", 1 if windows.dilations == [1, 1] else 2
    else:
        kernel = to.constant(weights.transpose(TO_LAST), node.input[1])
        options = to.schema.Conv2DOptionsT(**about)
        kind, version = "CONV_2D", 1 if groups == 1 else 6
    operands = [source, kernel, to.constant(bias, f"{node.name}/bias")]
    to.put(name, to.operate(kind, operands, to.shape(name, last=True), options, name, version), last=True)


def _pool(to: "Conversion", node: "onnx.NodeProto", kind: str, source: int, windows: _Windows, padding: str) -> int:
    options = to.schema.Pool2DOptionsT(getattr(to.schema.Padding, padding), *windows.strides[::-1], *windows.size[::-1])
    return to.operate(kind, [source], to.shape(node.output[0], last=True), options, node.output[0])


def _max_pool(to: "Conversion", node: "onnx.NodeProto") -> None:
    """A maximum over windows, in which padding never wins."""
    windows = _Windows(to, node)
    if windows.dilations != [1, 1] or len(node.output) > 1:
        raise to.refused(node, "with dilation or indices, which LiteRT does not have")
    padding = windows.padding()
    source = to.get(node.input[0], last=True) if padding else _padded(to, node, windows, LOWEST)
    to.put(node.output[0], _pool(to, node, "MAX_POOL_2D", source, windows, padding or "VALID"), last=True)


def _average_pool(to: "Conversion", node: "onnx.NodeProto") -> None:
    """A mean over windows, of the pixels alone or with padding as zeros.

    LiteRT leaves its own padding out of the mean. Where it cannot pad alike, the mean with zeros is scaled at the borders.
    """
    windows = _Windows(to, node)
    if windows.dilations != [1, 1]:
        raise to.refused(node, "with dilation, which LiteRT does not have")
    name, padding, zeros = node.output[0], windows.padding(), given(node).get("count_include_pad")
    if padding == "VALID" or (padding and not zeros):
        mean = _pool(to, node, "AVERAGE_POOL_2D", to.get(node.input[0], last=True), windows, padding)
    else:
        mean = _pool(to, node, "AVERAGE_POOL_2D", _padded(to, node, windows), windows, "VALID")
        if not zeros:
            shape, shares = to.shape(name, last=True), to.constant(windows.shares(), f"{node.name}/share")
            mean = to.operate("MUL", [mean, shares], shape, to.schema.MulOptionsT(), name)
    to.put(name, mean, last=True)


def _mean(to: "Conversion", node: "onnx.NodeProto") -> None:
    """A mean over given axes, or over the map."""
    name, source, about = node.output[0], node.input[0], given(node)
    axes = about.get("axes") or (to.constants[node.input[1]].tolist() if len(node.input) > 1 else None)
    rank = len(to.shape(source))
    if node.op_type == "GlobalAveragePool":
        axes = range(2, rank)
    if axes is None:
        axes = range(rank)
    over = sorted(axis % rank for axis in axes)
    keep = bool(about.get("keepdims", 1))
    last = rank == 4 and over == [2, 3] and (to.last(source) or keep)
    operands = [to.get(source, last=last), to.constant(np.array([1, 2] if last else over, np.int32))]
    shape = to.shape(name, last=last and keep)
    to.put(name, to.operate("MEAN", operands, shape, to.schema.ReducerOptionsT(keep), name), last=last and keep)


def _norm(to: "Conversion", node: "onnx.NodeProto") -> None:
    """A BatchNorm that could not be folded: a depthwise convolution of one pixel, which takes an activation in as well."""
    if len(to.shape(node.input[0])) != 4 or len(node.output) > 1:
        raise to.refused(node, "on what is no map, or in training")
    scale, shift, mean, variance = (to.constants[name].astype(np.float64) for name in node.input[1:])
    factor = scale / np.sqrt(variance + given(node).get("epsilon", 1e-5))
    kernel = to.constant(factor.astype(np.float32).reshape(1, 1, 1, -1), f"{node.name}/scale")
    bias = to.constant((shift - mean * factor).astype(np.float32), f"{node.name}/shift")
    options = to.schema.DepthwiseConv2DOptionsT(to.schema.Padding.VALID, 1, 1, 1)
    name, operands = node.output[0], [to.get(node.input[0], last=True), kernel, bias]
    made = to.operate("DEPTHWISE_CONV_2D", operands, to.shape(name, last=True), options, name)
    to.put(name, made, last=True)


def _layer_norm(to: "Conversion", node: "onnx.NodeProto") -> None:
    """Over the last axis, in the operations that LiteRT has."""
    source, name, rank = node.input[0], node.output[0], len(to.shape(node.input[0]))
    scale, shift = (to.constants.get(item) for item in [*node.input[1:], "", ""][:2])
    if given(node).get("axis", -1) % rank != rank - 1 or scale is None or len(node.output) > 1:
        raise to.refused(node, "over other axes than the last")
    shape = to.shape(source)
    single = [*shape[:-1], 1]
    axis, options = to.constant(np.array([rank - 1], np.int32)), to.schema.ReducerOptionsT(True)
    x = to.get(source)
    mean = to.operate("MEAN", [x, axis], single, options, f"{node.name}/mean")
    squares = to.operate("SQUARED_DIFFERENCE", [x, mean], shape, to.schema.SquaredDifferenceOptionsT(), f"{node.name}/squares")
    variance = to.operate("MEAN", [squares, axis], single, options, f"{node.name}/variance")
    epsilon = to.constant(np.array(given(node).get("epsilon", 1e-5), np.float32))
    spread = to.operate("ADD", [variance, epsilon], single, to.schema.AddOptionsT(), f"{node.name}/spread")
    factor = to.operate("RSQRT", [spread], single, None, f"{node.name}/factor")
    centred = to.operate("SUB", [x, mean], shape, to.schema.SubOptionsT(), f"{node.name}/centred")
    made = to.operate("MUL", [centred, factor], shape, to.schema.MulOptionsT(), f"{node.name}/normal")
    made = to.operate("MUL", [made, to.constant(scale, node.input[1])], shape, to.schema.MulOptionsT(), name)
    if shift is not None:
        made = to.operate("ADD", [made, to.constant(shift, node.input[2])], shape, to.schema.AddOptionsT(), name)
    to.put(name, made, last=False)


def _gemm(to: "Conversion", node: "onnx.NodeProto") -> None:
    """A linear layer."""
    about = given(node)
    weights = to.constants.get(node.input[1])
    if weights is None or about.get("transA") or about.get("alpha", 1.0) != 1 or about.get("beta", 1.0) != 1:
        raise to.refused(node, "which is no plain linear layer")
    rows = weights if about.get("transB") else weights.T  # (outputs, inputs)
    bias = to.constants[node.input[2]] if len(node.input) > 2 else np.zeros(len(rows), np.float32)
    _linear(to, node, rows, np.broadcast_to(bias, len(rows)))


def _linear(to: "Conversion", node: "onnx.NodeProto", rows: npt.NDArray[Any], bias: npt.NDArray[Any]) -> None:
    name, options = node.output[0], to.schema.FullyConnectedOptionsT(keepNumDims=True)
    operands = [to.get(node.input[0]), to.constant(rows, node.input[1]), to.constant(bias, f"{node.name}/bias")]
    to.put(name, to.operate("FULLY_CONNECTED", operands, to.shape(name), options, name, 5), last=False)


def _matmul(to: "Conversion", node: "onnx.NodeProto") -> None:
    """A linear layer where the second matrix is constant, else a product of what is computed."""
    weights, name = to.constants.get(node.input[1]), node.output[0]
    if weights is not None and weights.ndim == 2:
        _linear(to, node, weights.T, np.zeros(weights.shape[1], np.float32))
        return
    operands = [to.get(source) for source in node.input]
    to.put(name, to.operate("BATCH_MATMUL", operands, to.shape(name), to.schema.BatchMatMulOptionsT(), name), last=False)


def _binary(to: "Conversion", node: "onnx.NodeProto", kind: str) -> None:
    """Two values of shapes that broadcast."""
    name = node.output[0]
    options = getattr(to.schema, f"{kind.capitalize()}OptionsT")()
    last, operands = _alike(to, node)
    to.put(name, to.operate(kind, operands, to.shape(name, last=last), options, name), last=last)


def _extreme(to: "Conversion", node: "onnx.NodeProto", kind: str) -> None:
    """The greater or lesser of two values."""
    if len(node.input) != 2:
        raise to.refused(node, "of more than two values")
    name, (last, operands) = node.output[0], _alike(to, node)
    made = to.operate(kind, operands, to.shape(name, last=last), to.schema.MaximumMinimumOptionsT(), name)
    to.put(name, made, last=last)


def _alike(to: "Conversion", node: "onnx.NodeProto") -> tuple[bool, list[int]]:
    """Whether an operation on each element of several values is best done on (B, H, W, C), and its operands."""
    maps = [len(to.shape(source)) == 4 for source in node.input]
    last = any(to.last(source) for source in node.input)
    last = last and all(found or source in to.constants for found, source in zip(maps, node.input, strict=True))
    operands = []
    for found, source in zip(maps, node.input, strict=True):
        if last and not found:
            array = to.constants[source]
            operands.append(to.constant(array.reshape(*[1] * (4 - array.ndim), *array.shape).transpose(TO_LAST), source))
        else:
            operands.append(to.get(source, last=last))
    return last, operands


def _unary(to: "Conversion", node: "onnx.NodeProto", kind: str, options: Any = None) -> None:
    """Each element by itself."""
    source, name = node.input[0], node.output[0]
    last = to.last(source)
    to.put(name, to.operate(kind, [to.get(source, last=last)], to.shape(name, last=last), options, name), last=last)


def _activation(to: "Conversion", node: "onnx.NodeProto", kind: str) -> None:
    """What LiteRT's other operations may do in passing."""
    source = node.input[0]
    if to.activate(source, kind):
        to.put(node.output[0], to.get(source, last=to.last(source)), last=to.last(source))
    else:
        _unary(to, node, kind)


def _clip(to: "Conversion", node: "onnx.NodeProto") -> None:
    """Between two numbers."""
    about = given(node)
    if any(name and name not in to.constants for name in node.input[1:]):
        raise to.refused(node, "with limits that are computed")
    limits = [to.constants[name].item() if name else None for name in node.input[1:]] + [None, None]
    lowest = limits[0] if limits[0] is not None else about.get("min", -math.inf)
    highest = limits[1] if limits[1] is not None else about.get("max", math.inf)
    known = {(0.0, 6.0): "RELU6", (0.0, math.inf): "RELU", (-1.0, 1.0): "RELU_N1_TO_1"}
    if (lowest, highest) in known:
        _activation(to, node, known[lowest, highest])
        return
    last, name = to.last(node.input[0]), node.output[0]
    found, shape = to.get(node.input[0], last=last), to.shape(name, last=last)
    for kind, limit in (("MAXIMUM", lowest), ("MINIMUM", highest)):
        if math.isfinite(limit):
            operands = [found, to.constant(np.array(limit, np.float32))]
            found = to.operate(kind, operands, shape, to.schema.MaximumMinimumOptionsT(), name)
    to.put(name, found, last=last)


def _hard_sigmoid(to: "Conversion", node: "onnx.NodeProto") -> None:
    """relu6(x + 3) / 6, as torch has it."""
    about = given(node)
    if not math.isclose(about.get("alpha", 0.2), 1 / 6, rel_tol=1e-6) or about.get("beta", 0.5) != 0.5:
        raise to.refused(node, "with another slope than torch's")
    last, name = to.last(node.input[0]), node.output[0]
    shape, three, sixth = (
        to.shape(name, last=last),
        to.constant(np.array(3, np.float32)),
        to.constant(np.array(1 / 6, np.float32)),
    )
    options = to.schema.AddOptionsT(to.schema.ActivationFunctionType.RELU6)
    moved = to.operate("ADD", [to.get(node.input[0], last=last), three], shape, options, f"{name}/Add")
    to.put(name, to.operate("MUL", [moved, sixth], shape, to.schema.MulOptionsT(), name), last=last)


def _gelu(to: "Conversion", node: "onnx.NodeProto") -> None:
    """As ONNX has it from opset 20 on, and as the conversion finds it in older ones."""
    if given(node).get("approximate", "none") != "none":
        raise to.refused(node, "by tanh, which LiteRT computes otherwise")
    _unary(to, node, "GELU", to.schema.GeluOptionsT(False))


def _leaky(to: "Conversion", node: "onnx.NodeProto") -> None:
    _unary(to, node, "LEAKY_RELU", to.schema.LeakyReluOptionsT(given(node).get("alpha", 0.01)))


def _elu(to: "Conversion", node: "onnx.NodeProto") -> None:
    if given(node).get("alpha", 1.0) != 1:
        raise to.refused(node, "with alpha other than 1")
    _unary(to, node, "ELU")


def _prelu(to: "Conversion", node: "onnx.NodeProto") -> None:
    """A slope of its own for each channel."""
    name, (last, operands) = node.output[0], _alike(to, node)
    to.put(name, to.operate("PRELU", operands, to.shape(name, last=last), None, name), last=last)


def _softmax(to: "Conversion", node: "onnx.NodeProto") -> None:
    name, rank = node.output[0], len(to.shape(node.input[0]))
    axis = given(node).get("axis", -1) % rank
    last = rank == 4 and axis == 1
    if axis != rank - 1 and not last:
        raise to.refused(node, f"over axis {axis}, where LiteRT needs the channels or the last")
    options = to.schema.SoftmaxOptionsT(1.0)
    to.put(name, to.operate("SOFTMAX", [to.get(node.input[0], last=last)], to.shape(name, last=last), options, name), last=last)


def _concat(to: "Conversion", node: "onnx.NodeProto") -> None:
    name, rank = node.output[0], len(to.shape(node.output[0]))
    last = rank == 4 and any(to.last(source) for source in node.input)
    axis = _axis(given(node)["axis"], rank, last)
    options = to.schema.ConcatenationOptionsT(axis)
    operands = [to.get(source, last=last) for source in node.input]
    to.put(name, to.operate("CONCATENATION", operands, to.shape(name, last=last), options, name), last=last)


def _axis(axis: int, rank: int, last: bool) -> int:
    return TO_LAST.index(axis % rank) if last else axis % rank


def _split(to: "Conversion", node: "onnx.NodeProto") -> None:
    source = node.input[0]
    last, rank = to.last(source), len(to.shape(source))
    axis = given(node).get("axis", 0) % rank
    shapes = [to.shape(name, last=last) for name in node.output]
    sizes = to.constant(np.array([to.shape(name)[axis] for name in node.output], np.int32))
    operands = [to.get(source, last=last), sizes, to.constant(np.array(_axis(axis, rank, last), np.int32))]
    made = to.operate_many("SPLIT_V", operands, shapes, to.schema.SplitVOptionsT(len(shapes)), node.output)
    for name, tensor in zip(node.output, made, strict=True):
        to.put(name, tensor, last=last)


def _slice(to: "Conversion", node: "onnx.NodeProto") -> None:
    source = node.input[0]
    if any(name and name not in to.constants for name in node.input[1:]):
        raise to.refused(node, "with places that are computed")
    starts, stops = (to.constants[name].tolist() for name in node.input[1:3])
    axes, by = [*(to.constants[name].tolist() if name else None for name in node.input[3:]), None, None][:2]
    last, shape = to.last(source), to.shape(source)
    begins, ends, steps = [0] * len(shape), list(shape), [1] * len(shape)
    for position, axis in enumerate(axes if axes is not None else range(len(starts))):
        size, step = shape[axis], by[position] if by is not None else 1
        if step < 1:
            raise to.refused(node, "backwards")
        first, end, _ = slice(starts[position], stops[position], step).indices(size)
        begins[axis], ends[axis], steps[axis] = first, end, step
    order = TO_LAST if last else range(len(shape))
    places = [to.constant(np.array([values[axis] for axis in order], np.int32)) for values in (begins, ends, steps)]
    name, options = node.output[0], to.schema.StridedSliceOptionsT()
    operands = [to.get(source, last=last), *places]
    to.put(name, to.operate("STRIDED_SLICE", operands, to.shape(name, last=last), options, name), last=last)


def _gather(to: "Conversion", node: "onnx.NodeProto") -> None:
    """Constant places along an axis."""
    source, name = node.input[0], node.output[0]
    places, rank = to.constants.get(node.input[1]), len(to.shape(source))
    if places is None or source in to.constants:
        raise to.refused(node, "of places that are computed")
    axis = given(node).get("axis", 0) % rank
    indices = to.constant((places % to.shape(source)[axis]).astype(np.int32))
    made = to.operate("GATHER", [to.get(source), indices], to.shape(name), to.schema.GatherOptionsT(axis), name)
    to.put(name, made, last=False)


def _reshape(to: "Conversion", node: "onnx.NodeProto") -> None:
    """Also Flatten, Squeeze and Unsqueeze: elements keep their order."""
    source, name = node.input[0], node.output[0]
    shape = to.shape(name)
    last = to.last(source) and to.shape(source)[1:].count(1) >= 2  # nothing to turn
    operands = [to.get(source, last=last), to.constant(np.array(shape, np.int32))]
    to.put(name, to.operate("RESHAPE", operands, shape, to.schema.ReshapeOptionsT(shape), name), last=False)


def _transpose(to: "Conversion", node: "onnx.NodeProto") -> None:
    source, name = node.input[0], node.output[0]
    order = list(given(node).get("perm") or reversed(range(len(to.shape(source)))))
    if order == list(TO_LAST):  # what it gives is there already
        to.put(name, to.get(source, last=True), last=False)
    elif order == [0, 3, 1, 2]:
        to.put(name, to.get(source), last=True)
    else:
        operands = [to.get(source), to.constant(np.array(order, np.int32))]
        to.put(name, to.operate("TRANSPOSE", operands, to.shape(name), to.schema.TransposeOptionsT(), name), last=False)


def _pad(to: "Conversion", node: "onnx.NodeProto") -> None:
    source, name = node.input[0], node.output[0]
    about = given(node)
    amounts = to.constants.get(node.input[1])
    filling = to.constants[node.input[2]].item() if len(node.input) > 2 and node.input[2] else 0.0
    if amounts is None or about.get("mode", "constant") != "constant" or (amounts < 0).any() or len(node.input) > 3:
        raise to.refused(node, "other than with a constant around the whole")
    last, rank = to.last(source), len(to.shape(source))
    pairs = amounts.reshape(2, rank).T[list(TO_LAST if last else range(rank))]
    operands = [to.get(source, last=last), to.constant(pairs.astype(np.int32))]
    shape = to.shape(name, last=last)
    if filling == 0:
        made = to.operate("PAD", operands, shape, to.schema.PadOptionsT(), name)
    else:
        operands.append(to.constant(np.array(max(filling, float(LOWEST)), np.float32)))
        made = to.operate("PADV2", operands, shape, to.schema.PadV2OptionsT(), name)
    to.put(name, made, last=last)


def _identity(to: "Conversion", node: "onnx.NodeProto") -> None:
    source = node.input[0]
    to.put(node.output[0], to.get(source, last=to.last(source)), last=to.last(source))
    to.readers[source] += to.readers[node.output[0]] - 1


OPERATORS: dict[str, Callable[["Conversion", "onnx.NodeProto"], None]] = {
    "Add": partial(_binary, kind="ADD"),
    "AveragePool": _average_pool,
    "BatchNormalization": _norm,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": partial(_binary, kind="DIV"),
    "Dropout": _identity,
    "Elu": _elu,
    "Exp": partial(_unary, kind="EXP"),
    "Flatten": _reshape,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": partial(_unary, kind="HARD_SWISH"),
    "Identity": _identity,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _leaky,
    "MatMul": _matmul,
    "Max": partial(_extreme, kind="MAXIMUM"),
    "MaxPool": _max_pool,
    "Min": partial(_extreme, kind="MINIMUM"),
    "Mul": partial(_binary, kind="MUL"),
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMean": _mean,
    "Relu": partial(_activation, kind="RELU"),
    "Reshape": _reshape,
    "Sigmoid": partial(_unary, kind="LOGISTIC"),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": partial(_unary, kind="SQRT"),
    "Squeeze": _reshape,
    "Sub": partial(_binary, kind="SUB"),
    "Tanh": partial(_unary, kind="TANH"),
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
