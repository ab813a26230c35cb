"""Skip connections as choices: identity shortcuts of a network that may be taken out.

Shape legend: B images, C channels, H height, W width.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import add, iadd
from typing import Any

import torch
from torch import Tensor, fx, nn

from nar_hw.errors import SpaceError
from nar_hw.space.network import flat, images_for, in_mode, run
from nar_hw.space.spec import SKIP, OpSpec, Pair
from nar_hw.space.trace import Trace


class Skip(nn.Module):
    """features + shortcut, both (B, C, H, W)."""

    def forward(self, features: Tensor, shortcut: Tensor) -> Tensor:
        """The sum."""
        return features + shortcut


class NoSkip(nn.Module):
    """The features alone: a skip connection that was taken out."""

    def forward(self, features: Tensor, shortcut: Tensor) -> Tensor:
        """The features as they are."""
        return features


@dataclass(frozen=True, kw_only=True)
class FreeSkip:
    """An identity shortcut that is now a module of its own, a `Skip`."""

    path: str
    spec: OpSpec
    calls: tuple[tuple[Pair, Pair], ...]
    """((H, W) of the input, (H, W) of the output) of each call in one forward pass."""


def free_skips(model: nn.Module, traced: Trace, convs: Iterable[str], input_shape: tuple[int, int, int]) -> list[FreeSkip]:
    """Give each identity shortcut of ``model`` a module of its own, in place; its outputs stay as they were.

    A skip is where a module of the network adds a map to what it has made of that map by one or more of ``convs``. Where the map
    is projected, pooled or cut on its way, the shortcut is no identity and stays; so does one in a module that torch.fx cannot
    take apart, that does something else in training, or that is at several places.

    Raises SpaceError when there is no such skip.
    """
    # Inner modules first: those around them are taken apart with what they then hold.
    paths = sorted(traced.residual - {""}, key=lambda path: (-path.count("."), path))
    found = [skip for path in paths for skip in _taken(model, path, set(convs))]
    taken = _seen(model, found, input_shape)
    if not taken:
        raise SpaceError(
            "free skips need a block that adds its own input to what its searched convolutions make of it, but the model has "
            "none: leave the skips fixed"
        )
    if not torch.equal(flat(run(model, images_for(model, input_shape))), traced.output):
        raise SpaceError(
            "a network must be the same with its additions as modules of their own, but is not: leave the skips fixed"
        )
    order = {path: number for number, (path, _) in enumerate(model.named_modules())}
    return sorted(taken, key=lambda skip: order[skip.path])


class _Tracer(fx.Tracer):
    """Takes one module apart, not those within it."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _taken(model: nn.Module, path: str, convs: set[str]) -> list[str]:
    """Paths of the skips that ``path`` now has as modules."""
    block = model.get_submodule(path)
    if sum(module is block for _, module in model.named_modules(remove_duplicate=False)) > 1:
        return []
    graph = _graph(block)
    if graph is None:
        return []
    inside = {conv.removeprefix(f"{path}.") for conv in convs if conv.startswith(f"{path}.")}
    names = []
    for node in list(graph.nodes):
        operands = _operands(block, node, inside)
        if operands is None:
            continue
        names.append(next(name for name in _names() if not hasattr(block, name) and name not in names))
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.create_node("call_module", names[-1], operands))
        graph.erase_node(node)
    if names:
        for name in names:
            block.add_module(name, Skip().train(block.training))
        # The class in the name of the new one: what it was is still told.
        model.set_submodule(path, fx.GraphModule(block, graph, class_name=type(block).__name__))
    return [f"{path}.{name}" for name in names]


def _names() -> Iterator[str]:
    yield "skip"
    number = 2
    while True:
        yield f"skip_{number}"
        number += 1


def _graph(block: nn.Module) -> fx.Graph | None:
    """What the block itself does; None where torch.fx cannot see it, or where it is something else in training."""
    graphs = []
    for training in (True, False):
        try:
            with in_mode(block, training):
                graphs.append(_Tracer().trace(block))
        except Exception:  # whatever a user's code does with what stands for a tensor
            return None
    return graphs[0] if str(graphs[0]) == str(graphs[1]) else None


def _operands(block: nn.Module, node: fx.Node, convs: set[str]) -> tuple[fx.Node, fx.Node] | None:
    """(features, shortcut) of an addition of a map to what ``convs`` made of it."""
    sums = node.op == "call_function" and node.target in (add, iadd, torch.add)
    sums = sums or (node.op == "call_method" and node.target in ("add", "add_"))
    if not sums or node.kwargs or len(node.args) != 2:
        return None
    first, second = node.args
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return None
    for features, shortcut in ((first, second), (second, first)):
        source = shortcut
        while source.op == "call_module" and type(block.get_submodule(str(source.target))) is nn.Identity:
            (source,) = source.all_input_nodes
        if any(_holds(step, convs) for step in _between(source, features)):
            return features, shortcut
    return None


def _between(source: fx.Node, target: fx.Node) -> set[fx.Node]:
    """The nodes by which ``target`` is made of ``source``."""
    behind, ahead = {source}, {target}
    for node in target.graph.nodes:
        if behind & set(node.all_input_nodes):
            behind.add(node)
    for node in reversed(target.graph.nodes):
        if node in ahead:
            ahead.update(node.all_input_nodes)
    return (behind & ahead) - {source}


def _holds(node: fx.Node, convs: set[str]) -> bool:
    return node.op == "call_module" and any(conv == node.target or conv.startswith(f"{node.target}.") for conv in convs)


def _seen(model: nn.Module, paths: Sequence[str], input_shape: tuple[int, int, int]) -> list[FreeSkip]:
    """Those that add maps of one size, with their sizes, by one run."""
    sizes: dict[str, list[tuple[int, ...]]] = {path: [] for path in paths}
    hooks = []
    for path in paths:

        def look(module: nn.Module, inputs: Any, output: Any, path: str = path) -> None:
            sizes[path].append(tuple(output.shape[1:]) if inputs[0].shape == inputs[1].shape else ())

        hooks.append(model.get_submodule(path).register_forward_hook(look))
    try:
        run(model, images_for(model, input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for path, shapes in sizes.items():
        if not shapes or any(len(shape) != 3 for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
            continue
        channels, height, width = shapes[0]
        found.append(
            FreeSkip(
                path=path,
                spec=OpSpec(operator=SKIP, c_in=channels, c_out=channels, h=height, w=width),
                calls=tuple(((shape[1], shape[2]),) * 2 for shape in shapes),
            )
        )
    return found
