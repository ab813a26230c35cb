"""One run of a network that finds its spatial structure: convolutions, the norms they own, residual blocks.

Module hooks and a dispatch mode see what is executed, so nothing needs to be traceable or rewritten.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nar_hw.errors import ModelError
from nar_hw.space.network import flat, images_for, run

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class TracedConv:
    """One Conv2d of the network, in order of its first call."""

    path: str
    aliases: tuple[str, ...]
    """Other paths at which the same module is reachable."""
    module: nn.Conv2d
    norm: str | None
    """Path of the BatchNorm that consumes this convolution's output, which nothing else reads."""
    norm_aliases: tuple[str, ...]
    calls: tuple[tuple[Pair, Pair], ...]
    """((h, w) of the input, (h, w) of the output) for each call in one forward pass."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What one forward pass of a network showed."""

    convs: tuple[TracedConv, ...]
    residual: frozenset[str]
    """Paths of modules that add two feature maps themselves: residual blocks."""
    num_classes: int
    """Size of the output's dimension of channels, the second, of maps as of vectors; of several outputs, all numbers."""
    output: Tensor
    """(1, D): of the image that was run."""
    hidden: dict[str, str]
    """Path of a module with spatial convolutions that are no nn.Conv2d modules -> why they cannot be searched."""

    def stem(self) -> set[str]:
        """The first convolution and, in a deep stem, the others in the outermost module around it.

        A deep stem has at most three convolutions, no skips, and more convolutions behind it.
        """
        first = self.convs[0].path if self.convs else ""
        stem = {first}
        for prefix in _ancestors(first):
            inside = {conv.path for conv in self.convs if conv.path.startswith(f"{prefix}.")}
            if (
                len(inside) > 3
                or len(inside) == len(self.convs)
                or any(path == prefix or path.startswith(f"{prefix}.") for path in self.residual)
            ):
                break
            stem = inside
        return stem

    def block_of(self, path: str, model: nn.Module) -> str:
        """The nearest module around ``path`` that adds a skip, or is of a class that does elsewhere; else ``path``."""
        kinds = {type(model.get_submodule(name)) for name in self.residual if name} - {nn.Sequential}
        for name in _ancestors(path):
            if name in self.residual or type(model.get_submodule(name)) in kinds:
                return name
        return path


def _ancestors(path: str) -> Iterator[str]:
    """The modules around ``path``, innermost first, without the network itself."""
    parts = path.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        yield ".".join(parts[:depth])


@dataclass
class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows which tensors the operations read; ``stack`` is kept by the module hooks."""

    stack: list[str] = field(default_factory=lambda: [""])
    produced: dict[int, tuple[str, Tensor]] = field(default_factory=dict)  # id of a conv's output -> (conv path, itself)
    readers: dict[str, list[str]] = field(default_factory=dict)  # conv path -> paths of the modules that read its output
    residual: set[str] = field(default_factory=set)
    convolutions: set[str] = field(default_factory=set)  # paths of modules that are convolutions
    hidden: dict[str, str] = field(default_factory=dict)
    registered: set[int] = field(default_factory=set)  # ids of the parameters that the network knows
    unregistered: list[str] = field(default_factory=list)  # paths of modules that use others

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            if isinstance(tensor, nn.Parameter) and id(tensor) not in self.registered:
                self.unregistered.append(self.stack[-1])
            if id(tensor) in self.produced:
                self.readers[self.produced[id(tensor)][0]].append(self.stack[-1])
        if func is torch.ops.aten.convolution.default and self.stack[-1] not in self.convolutions and _spatial(args):
            self.hidden.setdefault(self.stack[-1], "it calls a convolution itself, which is no nn.Conv2d module")
        if func.overloadpacket in (torch.ops.aten.add, torch.ops.aten.add_) and len(tensors) == 2:
            first, second = tensors
            if first.ndim == 4 and first.shape == second.shape:
                self.residual.add(self.stack[-1])
        return func(*args, **(kwargs or {}))


def trace(model: nn.Module, input_shape: tuple[int, int, int]) -> Trace:
    """Run ``model`` once on one random image (C, H, W) and record its structure; the model is left as it was.

    Raises ModelError when the model rejects the input shape.
    """
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    modules: dict[str, nn.Module] = dict(model.named_modules())
    recorder = _Recorder(
        convolutions={path for path, module in modules.items() if isinstance(module, _ConvNd)},
        registered={id(parameter) for parameter in model.parameters()},
    )
    calls: dict[str, list[tuple[Pair, Pair]]] = {}
    images = images_for(model, input_shape)

    def enter(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            recorder.stack.append(path)

        return hook

    def leave(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            recorder.stack.pop()
            if isinstance(module, nn.Conv2d) and inputs and isinstance(output, Tensor) and output.ndim == 4:
                calls.setdefault(path, []).append((_size(inputs[0]), _size(output)))
                recorder.readers.setdefault(path, [])
                recorder.produced[id(output)] = (path, output)

        return hook

    hooks = []
    for path, module in modules.items():
        hooks += [module.register_forward_pre_hook(enter(path)), module.register_forward_hook(leave(path))]
    try:
        with recorder:
            output = run(model, images)
    finally:
        for handle in hooks:
            handle.remove()
    if recorder.unregistered:
        raise ModelError(
            f"a network must know all parameters that it uses, but {recorder.unregistered[0] or 'the model'} uses some that "
            "would be neither trained nor kept: put modules into an nn.ModuleList or nn.ModuleDict, not into a list or dict"
        )
    outputs = flat(output)

    convs = []
    for path, shapes in calls.items():
        conv = modules[path]
        assert isinstance(conv, nn.Conv2d)
        norm = _owned_norm(conv, recorder.readers[path], len(shapes), recorder.readers, modules)
        convs.append(
            TracedConv(
                path=path,
                aliases=tuple(alias for alias in paths[id(conv)] if alias != path),
                module=conv,
                norm=norm,
                norm_aliases=() if norm is None else tuple(alias for alias in paths[id(modules[norm])] if alias != norm),
                calls=tuple(shapes),
            )
        )
    return Trace(
        convs=tuple(convs),
        residual=frozenset(recorder.residual),
        num_classes=int(output.shape[1]) if isinstance(output, Tensor) and output.ndim > 1 else outputs.shape[1],
        output=outputs,
        hidden=recorder.hidden,
    )


def _spatial(args: tuple[Any, ...]) -> bool:
    """Whether the arguments of a convolution are of a two-dimensional one with a kernel larger than 1x1."""
    weight, transposed = args[1], args[6]
    return not transposed and weight.ndim == 4 and max(weight.shape[2:]) > 1


def _owned_norm(
    conv: nn.Conv2d, readers: list[str], calls: int, all_readers: dict[str, list[str]], modules: dict[str, nn.Module]
) -> str | None:
    if len(readers) != calls or len(set(readers)) != 1:
        return None
    norm = modules[readers[0]]
    shared = sum(readers[0] in others for others in all_readers.values()) > 1
    if not isinstance(norm, _BatchNorm) or norm.num_features != conv.out_channels or shared:
        return None
    return readers[0]


def _size(tensor: Tensor) -> Pair:
    return int(tensor.shape[-2]), int(tensor.shape[-1])
