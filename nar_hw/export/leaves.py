"""ONNX nodes of operators that are made of plain layers: what the exporter would write, without its seconds."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from nar_hw.export.graph import initializer, scopes

if TYPE_CHECKING:
    import onnx_ir as ir


class Leaf(NamedTuple):
    """One node: its operation, weights by their name in the layer, and attributes."""

    op_type: str
    weights: dict[str, Tensor | None]
    attributes: dict[str, Any]


def emit(operator: nn.Module) -> "ir.Graph | None":
    """The graph of ``operator`` in evaluation mode, or None where it holds a layer that LAYERS does not describe.

    Node paths are relative to the operator; weights are called as in its state dict.
    """
    import onnx_ir as ir

    value = source = ir.val("input")
    graph = ir.Graph([source], [], nodes=[], name="operator")
    for path, leaves in _walk(operator, ""):
        if leaves is None:
            return None
        for leaf in leaves:
            names = {f"{path}.{name}".lstrip("."): tensor for name, tensor in leaf.weights.items() if tensor is not None}
            weights = [initializer(graph, name, tensor.detach().numpy()) for name, tensor in names.items()]
            node = ir.node(leaf.op_type, [value, *weights], leaf.attributes)
            node.metadata_props.update(scopes(path))
            value = node.outputs[0]
            value.name = f"value_{len(graph)}"
            graph.append(node)
    graph.outputs.append(value)
    return graph


def _walk(module: nn.Module, path: str) -> Iterator[tuple[str, list[Leaf] | None]]:
    """The layers in the order they run; None for one that has to go through the exporter."""
    if module._forward_hooks or module._forward_pre_hooks:
        yield path, None
    elif type(module) is nn.Sequential:
        for name, inner in module.named_children():
            yield from _walk(inner, f"{path}.{name}".lstrip("."))
    else:
        describe = LAYERS.get(type(module))
        yield path, describe(module) if describe else None


def _conv(layer: Any) -> list[Leaf] | None:
    if layer.padding_mode != "zeros" or layer.padding == "same":
        return None
    height, width = (0, 0) if layer.padding == "valid" else layer.padding
    attributes = {
        "group": layer.groups,
        "pads": [height, width, height, width],
        "auto_pad": "NOTSET",
        "strides": list(layer.stride),
        "dilations": list(layer.dilation),
        "kernel_shape": list(layer.kernel_size),
    }
    return [Leaf("Conv", {"weight": layer.weight, "bias": layer.bias}, attributes)]


def _max_pool(layer: Any) -> list[Leaf] | None:
    if layer.return_indices or layer.ceil_mode:
        return None
    return [Leaf("MaxPool", {}, {"storage_order": 0, "dilations": _pair(layer.dilation), **_pool(layer)})]


def _avg_pool(layer: Any) -> list[Leaf] | None:
    if layer.divisor_override is not None or layer.ceil_mode:
        return None
    return [Leaf("AveragePool", {}, {"count_include_pad": int(layer.count_include_pad), **_pool(layer)})]


def _pool(layer: Any) -> dict[str, Any]:
    return {
        "ceil_mode": 0,
        "pads": _pair(layer.padding) * 2,
        "auto_pad": "NOTSET",
        "strides": _pair(layer.stride),
        "kernel_shape": _pair(layer.kernel_size),
    }


def _batch_norm(layer: Any) -> list[Leaf] | None:
    if not layer.affine or layer.running_mean is None or layer.momentum is None:
        return None
    names = ("weight", "bias", "running_mean", "running_var")
    attributes = {"momentum": 1.0 - layer.momentum, "epsilon": layer.eps}
    return [Leaf("BatchNormalization", {name: getattr(layer, name) for name in names}, attributes)]


def _pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


LAYERS: dict[type[nn.Module], Callable[[Any], list[Leaf] | None]] = {
    nn.Conv2d: _conv,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.BatchNorm2d: _batch_norm,
    nn.ReLU: lambda layer: [Leaf("Relu", {}, {})],
    nn.Identity: lambda layer: [],
}
