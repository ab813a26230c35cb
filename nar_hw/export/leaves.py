"""ONNX nodes of networks that are made of plain layers: what the exporter would write, without its seconds.

The network runs once, and every layer and every function that it calls on tensors is noted; where one is not described here,
or where anything else could have had a part in the result, there is no graph, and the exporter has to do it.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nar_hw.export.graph import initializer, scopes
from nar_hw.space.network import plainly

if TYPE_CHECKING:
    import onnx_ir as ir


class Leaf(NamedTuple):
    """One node: its operation, weights by their name in the layer, and attributes."""

    op_type: str
    weights: Mapping[str, Tensor | None]
    attributes: dict[str, Any]
    again: bool = False
    """Whether it reads what the layer reads too, before what the node before it gives."""


class _UnknownError(Exception):
    """Something of a run that is not described here."""


def emit(network: nn.Module, images: Tensor) -> "ir.Graph | None":
    """The graph of ``network`` in evaluation mode, or None where it does what LAYERS and FUNCTIONS do not describe.

    Node paths are relative to the network; weights are called as in its state dict.

    Args:
        network: on the CPU, in evaluation mode; it runs once.
        images: (B, C, H, W); the graph takes any B.
    """
    modules = dict(network.named_modules(remove_duplicate=False))
    tensors = [*network.parameters(), *network.buffers()]
    names = {*dict(network.named_parameters(remove_duplicate=False)), *dict(network.named_buffers(remove_duplicate=False))}
    # What has two names has two paths too, and what has hooks does more than its layers
    if len({id(module) for module in modules.values()}) < len(modules) or len(tensors) < len(names):
        return None
    if any(_changed(module) or module.training for module in modules.values()):
        return None
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in tensors):
        return None
    try:
        recorder = _Recorder(images)
        with plainly(), torch.no_grad(), recorder.watching(modules), recorder:
            output = network(images)
        return recorder.finished(output)
    except Exception:  # of the network itself, too: the exporter tells it better
        return None


def _changed(module: nn.Module) -> bool:
    replaced = any(callable(getattr(type(module), name, None)) for name in vars(module))
    return bool(replaced or module._forward_hooks or module._forward_pre_hooks)


class _Recorder(TorchFunctionMode):
    """Nodes for the layers and functions of a run."""

    def __init__(self, images: Tensor) -> None:
        import onnx_ir as ir

        super().__init__()
        # By a tensor's id, which another one may have later; held by itself, it would keep its memory
        self._values: dict[int, tuple[weakref.ref[Tensor], int, ir.Value]] = {}
        self._weights: dict[int, tuple[Tensor, ir.Value]] = {}
        self._path: list[str] = []
        self._busy = False  # in a layer or function that is described as a whole; for good, in one that is not
        self._batch = len(images)
        source = ir.val("input")
        self._graph = ir.Graph([source], [], nodes=[], name="network")
        self._note(images, source)

    @contextmanager
    def watching(self, modules: dict[str, nn.Module]) -> Iterator[None]:
        """Note what the modules, by their path, are called with and give."""
        with ExitStack() as stack:
            for path, module in modules.items():
                describe = LAYERS.get(type(module))
                before, after = (
                    (self._entered(path), self._left)
                    if describe is None
                    else (self._layer_entered, self._layer_left(path, module, describe))
                )
                for handle in (
                    module.register_forward_pre_hook(before, with_kwargs=True),
                    module.register_forward_hook(after, with_kwargs=True),
                ):
                    stack.callback(handle.remove)
            yield

    def _entered(self, path: str) -> Callable[..., None]:
        return lambda module, args, kwargs: self._path.append(path)

    def _left(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._path.pop()

    def _layer_entered(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._busy or kwargs or len(args) != 1:
            raise _UnknownError
        self._busy = True
        self._source = self._value(args[0])
        self._shape = args[0].shape

    def _layer_left(self, path: str, module: nn.Module, describe: "Description") -> Callable[..., None]:
        def left(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            leaves = describe(module, self._shape)
            self._emit([self._source], leaves, path, output, in_place=output is args[0])
            self._busy = False

        return left

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One call of a function of torch, of a method or of a property."""
        kwargs = kwargs or {}
        if self._busy or function in _HARMLESS:
            return function(*args, **kwargs)
        self._busy = True
        sources, leaves = FUNCTIONS[function](*args, **kwargs)
        values = [self._value(source) for source in sources]
        output = function(*args, **kwargs)
        self._emit(values, leaves, self._path[-1], output, in_place=output is sources[0])
        self._busy = False
        return output

    def _value(self, tensor: Tensor) -> "ir.Value":
        """Of what was noted and not changed since."""
        known, version, value = self._values[id(tensor)]
        if known() is not tensor or tensor._version != version:
            raise _UnknownError
        return value

    def _note(self, tensor: Tensor, value: "ir.Value") -> None:
        import onnx_ir as ir

        if type(tensor) is not Tensor or tensor.dtype != torch.float32 or tensor.ndim < 2 or len(tensor) != self._batch:
            raise _UnknownError
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None, *tensor.shape[1:]])
        self._values[id(tensor)] = (weakref.ref(tensor), tensor._version, value)

    def _emit(self, sources: "list[ir.Value]", leaves: "list[Leaf] | None", path: str, output: Tensor, *, in_place: bool) -> None:
        import onnx_ir as ir

        if leaves is None or torch.is_autocast_enabled("cpu"):
            raise _UnknownError
        values = sources
        for leaf in leaves:
            given = {f"{path}.{name}".lstrip("."): tensor for name, tensor in leaf.weights.items() if tensor is not None}
            weights = [self._weight(name, tensor) for name, tensor in given.items()]
            node = ir.node(leaf.op_type, [*(sources if leaf.again else ()), *values, *weights], leaf.attributes)
            node.metadata_props.update(scopes(path))
            values = [node.outputs[0]]
            values[0].name = f"value_{len(self._graph)}"
            self._graph.append(node)
        if len(values) != 1:
            raise _UnknownError
        if in_place:
            storage = output.untyped_storage().data_ptr()
            # What shares its memory has changed as well
            alive = [tensor for known, _, _ in self._values.values() if (tensor := known()) is not None]
            if leaves and sum(tensor.untyped_storage().data_ptr() == storage for tensor in alive) > 1:
                raise _UnknownError
        self._note(output, values[0])

    def _weight(self, name: str, tensor: Tensor) -> "ir.Value":
        """One value for each tensor, however often its layer is called."""
        if id(tensor) not in self._weights:
            self._weights[id(tensor)] = (tensor, initializer(self._graph, name, tensor.detach().numpy()))
        return self._weights[id(tensor)][1]

    def finished(self, output: Any) -> "ir.Graph":
        """The graph that gives ``output``."""
        value = self._value(output)
        if self._busy or self._path:
            raise _UnknownError
        self._graph.outputs.append(value)
        return self._graph


Description = Callable[[Any, Sequence[int]], list[Leaf] | None]


def _conv(layer: Any, shape: Sequence[int]) -> list[Leaf] | None:
    if layer.padding_mode != "zeros" or layer.padding == "same" or len(shape) != 4:
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


def _linear(layer: Any, shape: Sequence[int]) -> list[Leaf] | None:
    if len(shape) != 2 or layer.bias is None:
        return None
    attributes = {"beta": 1.0, "transB": 1, "alpha": 1.0, "transA": 0}
    return [Leaf("Gemm", {"weight": layer.weight, "bias": layer.bias}, attributes)]


def _max_pool(layer: Any, shape: Sequence[int]) -> list[Leaf] | None:
    if layer.return_indices or layer.ceil_mode or len(shape) != 4:
        return None
    return [Leaf("MaxPool", {}, {"storage_order": 0, "dilations": _pair(layer.dilation), **_pool(layer)})]


def _avg_pool(layer: Any, shape: Sequence[int]) -> list[Leaf] | None:
    if layer.divisor_override is not None or layer.ceil_mode or len(shape) != 4:
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


def _batch_norm(layer: Any, shape: Sequence[int]) -> list[Leaf] | None:
    if not layer.affine or layer.running_mean is None or layer.momentum is None:
        return None
    names = ("weight", "bias", "running_mean", "running_var")
    attributes = {"momentum": 1.0 - layer.momentum, "epsilon": layer.eps}
    return [Leaf("BatchNormalization", {name: getattr(layer, name) for name in names}, attributes)]


def _mean(axes: Sequence[int], keepdims: bool) -> list[Leaf]:
    return [Leaf("ReduceMean", {"axes": torch.tensor(axes)}, {"noop_with_empty_axes": 0, "keepdims": int(keepdims)})]


def _adaptive(size: object, shape: Sequence[int]) -> list[Leaf] | None:
    return _mean([-1, -2], True) if size in (1, (1, 1), [1, 1]) and len(shape) == 4 else None


def _flat(first: int, last: int, shape: Sequence[int]) -> list[Leaf] | None:
    if (first, last) != (1, -1):
        return None
    sizes = {"shape": torch.tensor([-1, torch.Size(shape[1:]).numel()])}
    return [Leaf("Reshape", sizes, {"allowzero": 1})]


def _pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _limits(layer: Any, shape: Sequence[int]) -> list[Leaf]:
    return [Leaf("Clip", {"min": torch.tensor(float(layer.min_val)), "max": torch.tensor(float(layer.max_val))}, {})]


LAYERS: dict[type[nn.Module], Description] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: lambda layer, shape: _adaptive(layer.output_size, shape),
    nn.BatchNorm2d: _batch_norm,
    nn.ReLU: lambda layer, shape: [Leaf("Relu", {}, {})],
    nn.ReLU6: _limits,
    nn.SiLU: lambda layer, shape: [Leaf("Sigmoid", {}, {}), Leaf("Mul", {}, {}, again=True)],
    nn.Sigmoid: lambda layer, shape: [Leaf("Sigmoid", {}, {})],
    nn.Flatten: lambda layer, shape: _flat(layer.start_dim, layer.end_dim, shape),
    nn.Dropout: lambda layer, shape: [],
    nn.Identity: lambda layer, shape: [],
}
"""Layer, shape of what it reads -> its nodes, one reading the other; None where the exporter has to write it."""


def _two(op_type: str) -> Callable[[Tensor, Tensor], tuple[Sequence[Tensor], list[Leaf] | None]]:
    # Of other ranks, one's images would meet the other's channels
    return lambda left, right: ((left, right), [Leaf(op_type, {}, {})] if left.ndim == right.ndim else None)


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> tuple[Sequence[Tensor], list[Leaf] | None]:
    if not 1 <= dim < tensors[0].ndim:
        return tensors, None
    return tensors, [Leaf("Concat", {}, {"axis": dim})] if len(tensors) > 1 else []


def _averaged(x: Tensor, dim: Sequence[int], keepdim: bool = False) -> tuple[Sequence[Tensor], list[Leaf] | None]:
    return (x,), _mean(list(dim), keepdim) if min(dim) > 0 else None


def _flattened(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> tuple[Sequence[Tensor], list[Leaf] | None]:
    return (x,), _flat(start_dim, end_dim, x.shape)


FUNCTIONS: dict[Any, Callable[..., tuple[Sequence[Tensor], list[Leaf] | None]]] = {
    Tensor.__add__: _two("Add"),
    Tensor.__iadd__: _two("Add"),
    Tensor.add: _two("Add"),
    Tensor.add_: _two("Add"),
    torch.add: _two("Add"),
    Tensor.__mul__: _two("Mul"),
    Tensor.mul: _two("Mul"),
    torch.mul: _two("Mul"),
    torch.cat: _joined,
    torch.mean: _averaged,
    Tensor.mean: _averaged,
    torch.flatten: _flattened,
    Tensor.flatten: _flattened,
    torch.relu: lambda x: ((x,), [Leaf("Relu", {}, {})]),
    nn.functional.relu: lambda x, inplace=False: ((x,), [Leaf("Relu", {}, {})]),
    nn.functional.adaptive_avg_pool2d: lambda x, output_size: ((x,), _adaptive(output_size, x.shape)),
}
"""Function -> what it reads, and its nodes; it takes the function's arguments, and fails for others."""

_HARMLESS = {Tensor.dim, Tensor.ndim.__get__, Tensor.requires_grad.__get__}  # type: ignore[attr-defined]
