"""Classifiers as networks without linear layers: on an image larger than those of the training they answer at every place.

A linear layer on a flattened map is a convolution as large as the map (Sermanet et al., OverFeat, 2014); a global average is a
window that slides. Everything before the head stays as it is; but OverFeat's own form, "overfeat", takes its last pool at every
offset, so that there are as many times more answers as that pool has strides.

Shape legend: B images, C channels, h x w of the map that reaches the head at the training size, O outputs of a layer.
"""

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional

from nar_hw.errors import ModelError
from nar_hw.export.forms import Form
from nar_hw.export.onnx import Images, compare, export_onnx, open_session
from nar_hw.space.network import inference_copy

_KEPT = (nn.Dropout, nn.Dropout2d, nn.Identity, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.ELU, nn.LeakyReLU, nn.Tanh)
"""Modules that treat every number alike, whatever its place (dropout does nothing in evaluation)."""
_KEPT_CALLS = (torch.relu, functional.relu, functional.dropout, functional.hardswish, functional.silu, functional.gelu)
_FLATTENS = ("flatten", "view", "reshape", "squeeze", torch.flatten, torch.reshape, torch.squeeze)


class _Tracer(fx.Tracer):
    """Keeps layer norms whole: those of maps are written with permutations."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.LayerNorm) or super().is_leaf_module(m, module_qualified_name)


class Dense(nn.Module):
    """The class map of a classifier, and its mean as one answer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W), at least as large as in training, to the map (B, classes, h, w) and its mean (B, classes)."""
        scores: Tensor = self.network(images)
        return scores, scores.mean((2, 3))


DENSE_FILE = "model.dense.onnx"
OUTPUTS = ("map", "output")


def export_dense(
    model: nn.Module,
    path: Path,
    *,
    input_shape: tuple[int, int, int],
    batch: tuple[int, int] = (1, 64),
    metadata: Mapping[str, Any] | None = None,
    form: Form = "strided",
) -> dict[str, Any]:
    """Write the dense form of ``model`` as ONNX for images of ``input_shape`` or larger; its outputs are "map" and "output".

    Returns:
        smallest: (H, W); stride: (rows, columns) of pixels from one place of the map to the next.

    Raises:
        ModelError: it cannot become dense.
        ExportError: it cannot be exported, or the file differs from torch on larger images.
    """
    dense = convolutionize(model, input_shape, form=form)
    export_onnx(dense, path, input_shape=input_shape, batch=batch, metadata=metadata, outputs=OUTPUTS, larger=True)
    channels, height, width = input_shape
    count = batch[0]
    session, rng = open_session(path), np.random.default_rng(0)
    # At the traced size, where the exporter may have frozen what depends on it, and at two others
    for size in ((2 * height, 3 * width), (height, width), (3 * height, 2 * width)):
        images = rng.standard_normal((count, channels, *size), dtype=np.float32)
        with torch.inference_mode():
            expected = dense(torch.from_numpy(images))
        for outputs, reference in zip(session.run(list(OUTPUTS), {"input": images}), expected, strict=True):
            compare(outputs.reshape(count, -1), reference.numpy().reshape(count, -1), tolerance=1e-5)
    with torch.inference_mode():
        sizes = ((2 * height, 3 * width), (4 * height, width), (height, 5 * width))
        usual, tall, wide = (dense(torch.zeros(1, channels, *size))[0] for size in sizes)
    rows, columns = tall.shape[2] - usual.shape[2], wide.shape[3] - usual.shape[3]
    return {"smallest": (height, width), "stride": (round(2 * height / rows), round(2 * width / columns))}


def run_dense(path: Path, images: Images) -> Images:
    """The one answer (B, classes) of a dense file in ONNX Runtime for images (B, C, H, W), one at a time."""
    session = open_session(path, threads=0)
    fixed = session.get_inputs()[0].shape[0]
    size = fixed if isinstance(fixed, int) else 1
    parts = [np.resize(images[start : start + size], (size, *images.shape[1:])) for start in range(0, len(images), size)]
    return np.concatenate([session.run(["output"], {"input": part})[0] for part in parts])[: len(images)]


def convolutionize(model: nn.Module, input_shape: tuple[int, int, int], *, form: Form = "strided") -> Dense:
    """``model`` as a fully convolutional network in evaluation mode; ``model`` itself is left as it is.

    On images of the training size the map has one place, whose scores are the model's up to rounding. Adaptive pools keep the
    window that they have at the training size.

    Args:
        model: maps (B, C, H, W) to (B, classes); its head may hold pools, flattening, linear layers, activations, dropout and
            batch norms, one after the other.
        input_shape: (C, H, W) of the training.
        form: "strided", or "overfeat": the last pool that takes steps takes single ones, and all that follows skips places
            accordingly, so that the places at its old steps answer as before and others lie between them.

    Raises:
        ModelError: the network cannot be traced, or its head is of another kind; for "overfeat", its last steps are no pool's.
    """
    network = inference_copy(model)
    example = torch.zeros((2, *input_shape))
    try:
        with torch.inference_mode():
            network(example)
    except RuntimeError as problem:
        raise ModelError(f"a network must run on images of shape {input_shape}, but failed: {_first_line(problem)}") from problem
    try:
        graph = fx.GraphModule(network, _Tracer().trace(network))
        with torch.inference_mode():
            ShapeProp(graph).propagate(example)
    except Exception as problem:  # whatever the network raises under the tracer
        raise ModelError(
            f"a network must be traceable by torch.fx to become dense, but failed: {_first_line(problem)}"
        ) from problem
    head = _head(graph)
    if not head:
        raise ModelError("a dense network needs a head of pools and linear layers at its end, but this one ends otherwise")
    _Rewriter(graph).rewrite(head)
    _check_inner_pools(graph)
    if form == "overfeat":
        _take_every_offset(graph)
    graph.graph.lint()
    graph.recompile()
    dense = Dense(graph).eval()
    _check(dense, model, input_shape)
    return dense


def multi_scale(dense: nn.Module, images: Tensor, sides: Sequence[int]) -> Tensor:
    """Probabilities (B, classes) of images (B, C, H, W), by OverFeat's rule (section 3.3).

    The images' shorter side is scaled to each of ``sides`` (pixels; see `overfeat_sides`). There, every class has the greatest
    probability that it has at any place; these are averaged over the sides.
    """
    greatest, shorter = [], min(images.shape[2:])
    for side in sides:
        size = tuple(round(length * side / shorter) for length in images.shape[2:])
        scaled = functional.interpolate(images, size=size, mode="bilinear", antialias=True)
        greatest.append(dense(scaled)[0].softmax(1).amax((2, 3)))
    return torch.stack(greatest).mean(0)


def overfeat_sides(side: int) -> tuple[int, ...]:
    """The six shorter sides of OverFeat's table 5, for a network of ``side`` instead of its 221 pixels."""
    return tuple(round(side * scale / 221) for scale in (245, 281, 317, 389, 425, 461))


def _take_every_offset(graph: fx.GraphModule) -> None:
    """Let the last strided pool take single steps, and dilate what follows by its stride."""
    nodes = list(graph.graph.nodes)
    strided = [node for node in nodes if node.op == "call_module" and _steps(graph.get_submodule(str(node.target))) != (1, 1)]
    last = strided[-1] if strided else None
    pool = None if last is None else graph.get_submodule(str(last.target))
    if last is None or not isinstance(pool, nn.MaxPool2d | nn.AvgPool2d):
        raise ModelError(
            "the dense form overfeat is of networks whose last steps are those of a pool, but this one's are "
            f"{'none' if last is None else f'those of {last.target}'}: use the form strided"
        )
    steps, kernel, padding = _steps(pool), _pair(pool.kernel_size), _pair(pool.padding)
    before = _shape(cast(fx.Node, last.args[0]))[1:]
    left = [(size + 2 * pad - side) % step for size, pad, side, step in zip(before, padding, kernel, steps, strict=True)]
    if pool.ceil_mode or any(left):
        raise ModelError(
            f"the dense form overfeat needs a last pool whose windows end with the map, but {last.target} leaves places of "
            f"{before[0]}x{before[1]} or reaches beyond: use the form strided"
        )
    pool.stride = (1, 1)
    for node in nodes[nodes.index(last) + 1 :]:
        if node.op == "call_module":
            _dilate(graph, node, steps)
        elif node.op != "output" and node.target not in (*_KEPT_CALLS, operator.add, torch.add, torch.cat):
            raise ModelError(f"{node.name} follows the last pool: the dense form overfeat cannot have it, use the form strided")


def _dilate(graph: fx.GraphModule, node: fx.Node, steps: tuple[int, int]) -> None:
    """Let a layer see every ``steps``-th place."""
    module = graph.get_submodule(str(node.target))
    if isinstance(module, nn.Conv2d | nn.MaxPool2d):
        module.dilation = tuple(old * step for old, step in zip(_pair(module.dilation), steps, strict=True))
        if not isinstance(module.padding, str):
            module.padding = tuple(old * step for old, step in zip(_pair(module.padding), steps, strict=True))
    elif isinstance(module, nn.AvgPool2d) and _pair(module.padding) == (0, 0):  # torch's has no dilation
        kernel, channels = _pair(module.kernel_size), _shape(cast(fx.Node, node.args[0]))[0]
        mean = nn.Conv2d(channels, channels, kernel, groups=channels, bias=False, dilation=steps)
        nn.init.constant_(mean.weight, 1 / (kernel[0] * kernel[1]))
        graph.add_submodule(str(node.target), mean.eval())
    elif not isinstance(module, (*_KEPT, nn.BatchNorm2d)) and not _pointwise(module):
        raise ModelError(f"{node.target} follows the last pool: the dense form overfeat cannot have it, use the form strided")


def _steps(module: nn.Module) -> tuple[int, int]:
    """The stride of a convolution or pool; of others, one."""
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    return _pair(module.stride) if isinstance(module, kinds) else (1, 1)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _check_inner_pools(graph: fx.GraphModule) -> None:
    """Adaptive pools of several windows before the head have other windows on larger images: no answer would be the network's."""
    kinds = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
    calls = (functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d)
    for node in graph.graph.nodes:
        inner = isinstance(graph.get_submodule(str(node.target)), kinds) if node.op == "call_module" else node.target in calls
        if inner and _shape(node)[1:] != (1, 1):
            name = node.target if node.op == "call_module" else node.name
            raise ModelError(
                f"{name} pools adaptively to {_shape(node)[1:]} inside the network, and its windows change with the image: a "
                "dense network cannot have it"
            )


def _check(dense: Dense, model: nn.Module, input_shape: tuple[int, int, int]) -> None:
    """The head must have seen the map: at twice the size there must be more than one answer."""
    channels, height, width = input_shape
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, *input_shape), dtype=np.float32))
    with torch.inference_mode():
        try:
            scores, mean = dense(images)
            wider, _ = dense(torch.zeros(1, channels, 2 * height, 2 * width))
        except RuntimeError as problem:
            raise ModelError(f"a dense network must run on larger images, but failed: {_first_line(problem)}") from problem
        reference = inference_copy(model)(images)
    if scores.shape != (*reference.shape, 1, 1) or wider.shape[2] < 2 or wider.shape[3] < 2:
        raise ModelError(
            f"a dense network must give one answer at {height}x{width} and more on larger images, but gives maps of "
            f"{tuple(scores.shape[2:])} and {tuple(wider.shape[2:])}: its pooling is not in its head"
        )
    error, scale = float((mean - reference).abs().max()), float(reference.abs().max())
    if not error <= 1e-4 * scale:
        raise ModelError(f"a dense network must agree with its classifier, but differs by {error:.3g} at scale {scale:.3g}")


def _head(graph: fx.GraphModule) -> list[fx.Node]:
    """The longest chain of operations that can be rewritten and ends in the output, in their order."""
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    chain: list[fx.Node] = []
    node = output.args[0]
    while isinstance(node, fx.Node) and _kind(graph, node) is not None:
        chain.append(node)
        node = node.args[0] if node.args else None
        if (
            isinstance(node, fx.Node)
            and len([user for user in node.users if user.op != "call_method" or user.target != "size"]) > 1
        ):
            break  # something else reads the map too
    chain.reverse()
    while chain and _kind(graph, chain[0]) == "keep":
        chain.pop(0)
    return chain


def _kind(graph: fx.GraphModule, node: fx.Node) -> str | None:
    """What becomes of an operation: "keep", "flatten", "pool", "linear", "norm"; None when it is none that a head may have."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        if _pointwise(module):
            return "keep"
        kinds: dict[str, tuple[type[nn.Module], ...]] = {
            "keep": _KEPT,
            "flatten": (nn.Flatten,),
            "pool": (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
            "linear": (nn.Linear,),
            "norm": (nn.BatchNorm1d,),
        }
        return next((kind for kind, types in kinds.items() if isinstance(module, types)), None)
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in _FLATTENS:
        return "flatten"
    if node.target is functional.linear:
        return "linear"
    if node.target in ("mean", torch.mean, functional.adaptive_avg_pool2d):
        return "pool"
    return "keep" if node.target in _KEPT_CALLS else None


def _pointwise(module: nn.Module) -> bool:
    """Whether it treats every place of a map alike: 1x1 convolutions and the layer norms of maps (ConvNeXt's)."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == module.stride == (1, 1) and module.padding in ((0, 0), 0)
    return isinstance(module, nn.LayerNorm) and type(module) is not nn.LayerNorm


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Of its output at the training size, without the batch."""
    return tuple(node.meta["tensor_meta"].shape)[1:]


class _Rewriter:
    """Goes through a head once; ``window`` is what the next linear layer still has to look at."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.window = (1, 1)
        self.pools: tuple[Tensor, Tensor] | None = None
        """Of an adaptive pool that the next linear layer takes up: (rows h' x h, columns w' x w)."""

    def rewrite(self, head: list[fx.Node]) -> None:
        sources = [_shape(cast(fx.Node, node.args[0])) for node in head]  # before pools vanish
        for node, before in zip(head, sources, strict=True):
            getattr(self, f"_{_kind(self.graph, node)}")(node, cast(fx.Node, node.args[0]), before)
        if self.window != (1, 1):
            raise ModelError("a dense network needs a linear layer or a pool behind its last map, but this one has none")

    def _keep(self, node: fx.Node, source: fx.Node, before: tuple[int, ...]) -> None:
        if self.pools is not None and not _is_dropout(self.graph, node):
            raise ModelError(
                f"{node.target} stands between an adaptive pool and its linear layer: a dense network cannot have it"
            )

    def _flatten(self, node: fx.Node, source: fx.Node, before: tuple[int, ...]) -> None:
        after = _shape(node)
        if int(np.prod(before)) != int(np.prod(after)) or (len(after) not in (1, 3) and 1 not in before):
            raise ModelError(f"a head may flatten all of a map only, but {node.target} turns {before} into {after}")
        if len(before) == 3 and self.pools is None and before[1:] != (1, 1):
            self.window = (before[1], before[2])
        node.replace_all_uses_with(source)
        self._drop(node)

    def _pool(self, node: fx.Node, source: fx.Node, before: tuple[int, ...]) -> None:
        after = _shape(node)
        module = self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if node.target in ("mean", torch.mean) and (
            len(after) not in (1, 3) or after[0] != before[0] or int(np.prod(after[1:])) != 1
        ):
            raise ModelError(f"a head may average over all places only, but {node.target} turns {before} into {after}")
        if len(before) != 3:
            raise ModelError(f"a head may pool maps only, but {node.target} pools {before}")
        size, target = before[1:], (*after[1:], 1, 1)[:2]
        if size == target:
            node.replace_all_uses_with(source)
            self._drop(node)
            return
        exact = all(here % there == 0 for here, there in zip(size, target, strict=True))
        if target == (1, 1) or exact:
            window = (size[0] // target[0], size[1] // target[1])
            stride = 1 if target == (1, 1) else window
            kind = nn.MaxPool2d if isinstance(module, nn.AdaptiveMaxPool2d) else nn.AvgPool2d
            self._replace(node, source, kind(window, cast(Any, stride)))
            return
        if isinstance(module, nn.AdaptiveMaxPool2d):
            raise ModelError(f"a maximum of {size} places by {target} windows of different sizes cannot become dense")
        self.pools = (_pooling(size[0], target[0]), _pooling(size[1], target[1]))
        self.window = (size[0], size[1])
        node.replace_all_uses_with(source)
        self._drop(node)

    def _linear(self, node: fx.Node, source: fx.Node, before: tuple[int, ...]) -> None:
        weight, bias = self._weights(node)
        outputs = len(weight)
        if self.pools is not None:
            rows, columns = self.pools
            grid = weight.reshape(outputs, -1, len(rows), len(columns))  # (O, C, h', w')
            kernel = torch.einsum("ocab,ah,bw->ochw", grid.double(), rows, columns).to(weight.dtype)
        else:
            kernel = weight.reshape(outputs, -1, *self.window)  # (O, C, h, w)
        convolution = nn.Conv2d(kernel.shape[1], outputs, self.window, bias=bias is not None)
        convolution.load_state_dict({"weight": kernel} if bias is None else {"weight": kernel, "bias": bias})
        self.window, self.pools = (1, 1), None
        self._replace(node, source, convolution)

    def _weights(self, node: fx.Node) -> tuple[Tensor, Tensor | None]:
        """The weight (O, I) and bias (O,) of a linear layer, or of a call of torch's function on parameters."""
        if node.op == "call_module":
            layer = cast(nn.Linear, self.graph.get_submodule(str(node.target)))
            return layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        given = [*node.args[1:], node.kwargs.get("weight"), node.kwargs.get("bias")]
        found = [operator.attrgetter(str(item.target))(self.graph).detach() for item in given if isinstance(item, fx.Node)]
        return found[0], found[1] if len(found) > 1 else None

    def _norm(self, node: fx.Node, source: fx.Node, before: tuple[int, ...]) -> None:
        old = cast(nn.BatchNorm1d, self.graph.get_submodule(str(node.target)))
        if self.window != (1, 1):
            raise ModelError(f"{node.target} normalises single places of a map: a dense network cannot have it")
        new = nn.BatchNorm2d(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats).eval()
        new.load_state_dict(old.state_dict())
        self._replace(node, source, new)

    def _replace(self, node: fx.Node, source: fx.Node, module: nn.Module) -> None:
        name = f"{node.target if node.op == 'call_module' else node.name}".replace(".", "_") + "_dense"
        self.graph.add_submodule(name, module.eval())
        with self.graph.graph.inserting_before(node):
            new = self.graph.graph.call_module(name, (source,))
        new.meta.update(node.meta)
        node.replace_all_uses_with(new)
        self._drop(node)

    def _drop(self, node: fx.Node) -> None:
        """Take ``node`` out, and what only it read (sizes)."""
        inputs = node.all_input_nodes
        self.graph.graph.erase_node(node)
        for item in inputs:
            if (
                not item.users
                and item.op in ("call_method", "call_function")
                and item.target in ("size", operator.getitem, getattr)
            ):
                self._drop(item)


def _is_dropout(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), nn.Dropout | nn.Dropout2d | nn.Identity)
    return node.target is functional.dropout


def _pooling(size: int, windows: int) -> Tensor:
    """The matrix (windows, size) of an adaptive average over ``size`` places."""
    matrix = torch.zeros(windows, size, dtype=torch.float64)
    for window in range(windows):
        start, end = window * size // windows, -(-(window + 1) * size // windows)
        matrix[window, start:end] = 1 / (end - start)
    return matrix


def _first_line(problem: BaseException) -> str:
    return next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
