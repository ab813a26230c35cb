"""Users' networks, taken as they come: copied, unwrapped, their lazy layers given shapes, and run.

Shape legend: B images, C channels, H height, W width.
"""

import copy
import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_map_only

from nar_hw.errors import ModelError
from nar_hw.userfile import described, user_code

Shape = tuple[int, int, int]

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
_WRAPPERS_BY_NAME = {"OptimizedModule": "_orig_mod", "ModelEmaV2": "module", "ModelEmaV3": "module"}
"""What torch.compile returns and timm's averages: they are known without importing what they come from."""


def plain_copy(
    model: nn.Module, input_shape: Shape | None = None, *, instead: Mapping[nn.Module, nn.Module] | None = None
) -> nn.Module:
    """A copy of ``model`` without what only wraps it or parts of it (DataParallel, torch.compile, averages).

    With ``input_shape`` (C, H, W), lazy layers get their shapes from it. Modules are not copied where there are others
    ``instead`` of them. Raises ModelError when the network cannot be copied or taken apart, naming what in it cannot, or when it
    has lazy layers that do not take the shape.
    """
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{path or 'the whole network'} is compiled by torch.jit, which cannot be taken apart, copied or trained: "
                "build the network without torch.jit.script and torch.jit.trace"
            )
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"a network's state must be tensors, to be kept in a file, but {key} is a {type(value).__name__}: leave out "
                "get_extra_state()"
            )
    copied = bare(_copied(unwrapped(model), instead or {}))
    if input_shape is not None:
        settle(copied, input_shape)
    return copied


def inference_copy(model: nn.Module) -> nn.Module:
    """A `plain_copy` on the CPU, in float32 and evaluation mode."""
    return for_inference(plain_copy(model))


def for_inference(network: nn.Module) -> nn.Module:
    """The network itself, put on the CPU, in float32 and evaluation mode."""
    # One by one: a user's own eval() or to() may do its work and return nothing.
    network.cpu()
    network.float()
    network.eval()
    return network


def bare(model: nn.Module) -> nn.Module:
    """The network itself where ``model`` only wraps it, its parts unwrapped in place."""
    model = unwrapped(model)
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if path and unwrapped(module) is not module:
            model.set_submodule(path, unwrapped(module))
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself where ``model`` only wraps it."""
    while True:
        name = "module" if isinstance(model, _WRAPPERS) else _WRAPPERS_BY_NAME.get(type(model).__name__)
        inner = None if name is None else model._modules.get(name)
        if inner is None:
            return model
        model = inner


def _copied(model: nn.Module, instead: Mapping[nn.Module, nn.Module]) -> nn.Module:
    # Tensors that were computed (weights of old weight norms, features kept for later) refuse to be copied with their history.
    memo: dict[int, Any] = {
        id(leaf): leaf.detach().clone()
        for module in model.modules()
        for leaf in tree_leaves({**vars(module), "_modules": None})
        if isinstance(leaf, Tensor) and leaf.grad_fn is not None
    }
    memo |= {  # these refuse it too, and hold nothing yet
        id(buffer): type(buffer)(device=buffer.device, dtype=buffer.dtype)  # type: ignore[call-arg]  # its stub lacks them
        for buffer in model.buffers()
        if isinstance(buffer, UninitializedBuffer)
    }
    memo |= {id(module): other for module, other in instead.items()}
    try:
        return copy.deepcopy(model, memo)
    except Exception as problem:  # whatever a user's object raises
        raise ModelError(f"a network must be copied, but {_uncopied(model)} cannot be: {described(problem)}") from problem


def _uncopied(model: nn.Module) -> str:
    """The attribute that cannot be copied, as a path."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            try:
                if name != "_modules":
                    copy.deepcopy(value)
            except Exception:  # this is it, whatever it raises
                return ".".join(filter(None, (path, name)))
    return f"a {type(model).__name__}"


def settle(model: nn.Module, input_shape: Shape) -> None:
    """Give lazy layers their shapes, by one run on an image (C, H, W). Raises ModelError when the shape is rejected."""
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        run(model, images_for(model, input_shape))


def images_for(model: nn.Module, input_shape: Shape, batch: int = 1) -> Tensor:
    """The same random images (``batch``, C, H, W) every time, where the network's parameters lie and in their type.

    Raises ModelError when they, or what the network makes of them, would not fit in this machine's memory.
    """
    require_memory(model, input_shape, batch)
    reference = next((item for item in (*model.parameters(), *model.buffers()) if item.is_floating_point()), torch.empty(0))
    images = torch.randn((batch, *input_shape), generator=torch.Generator().manual_seed(0))
    return images.to(reference.device, reference.dtype)


def run(model: nn.Module, images: Tensor, *, training: bool = False) -> Any:
    """What ``model`` returns for ``images`` (B, C, H, W) without gradients, in evaluation mode unless ``training``.

    Modes and the global generators are left as they were. Raises ModelError, with the user's file and line, when it fails.
    """
    shape = "x".join(map(str, images.shape[1:]))
    count = "one image" if len(images) == 1 else f"{len(images)} images"
    mode = " in training mode" if training else ""
    with (
        user_code(f"the model must accept {count} of shape {shape}{mode}, but its forward pass"),
        in_mode(model, training),
        plainly(),
    ):
        return model(images.clone())  # which it may change


def named_outputs(output: Any) -> dict[str, Tensor]:
    """The tensors (B, ...) of what a network returned, by name; of dicts, tuples and lists in their order, without None.

    One tensor is called "output", others by the keys and places that lead to them: "boxes", "boxes_1", "output_0". Raises
    ModelError where there is something else, or nothing.
    """
    found: dict[str, Tensor] = {}
    for path, leaf in tree_flatten_with_path(output)[0]:
        if leaf is None:
            continue
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            inside = f" in {returned(output)}" if path else ""
            raise ModelError(
                f"the model must return a tensor, or several in a tuple or dict, but returns {returned(leaf)}{inside}: wrap it "
                "so that it does"
            )
        keys = [re.sub(r"\W+", "_", str(key)).strip("_") for key in path]
        name = "_".join(keys) if keys and not keys[0].isdecimal() else "_".join(["output", *keys])
        found[name if name not in found else f"{name}_{len(found)}"] = leaf
    if not found:
        raise ModelError(f"the model must return a tensor, but returns {returned(output)}: wrap it so that it does")
    return found


def flat(output: Any) -> Tensor:
    """(B, D): all numbers of what a network returned for each image, in the order of `named_outputs`."""
    return torch.cat([tensor.reshape(len(tensor), -1) for tensor in named_outputs(output).values()], 1)


def in_float(output: Any) -> Any:
    """What a network returned, its tensors in float32."""
    return tree_map_only(Tensor, Tensor.float, output)


def detached(output: Any) -> Any:
    """What a network returned, without its history."""
    return tree_map_only(Tensor, Tensor.detach, output)


def returned(output: object) -> str:
    """What a network returned, in words."""
    kind = type(output).__name__
    if isinstance(output, list | tuple | dict):
        return f"a {kind} of {len(output)}"
    return f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {kind}"


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """``model`` in one mode without gradients; afterwards every module is in the mode it had (some may have been frozen)."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, before in modes:
            module.training = before


@contextmanager
def plainly() -> Iterator[None]:
    """Every operation as written: nothing compiled, attention not as one fused operation; random numbers leave no trace."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    # Where nothing has imported the compiler, nothing is compiled; to import it takes seconds.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    try:
        with eager, torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def require_memory(model: nn.Module | None, input_shape: Shape, batch: int) -> None:
    """Raises ModelError when ``batch`` images (C, H, W), or the largest layer's input and output, do not fit in memory.

    Of a network in a file (None) only the images are known.
    """
    values = batch * math.prod(input_shape)
    if values < _SMALL:
        return
    shape = f"{batch} image{'s' if batch > 1 else ''} of {'x'.join(map(str, input_shape))}"
    _compare(4 * values, shape)
    if model is not None:
        _compare(_largest_layer(model, input_shape, batch), shape)


_SMALL = 2**23
"""Input values that need no estimate: 32 MiB."""


def _compare(needed: int, what: str) -> None:
    free = free_memory()
    if free is not None and needed > free:
        raise ModelError(
            f"a network must fit in memory, but {what} take {needed / 2**30:,.1f} GiB or more and {free / 2**30:,.1f} GiB are "
            "free: use smaller images or a smaller batch"
        )


def _largest_layer(model: nn.Module, input_shape: Shape, batch: int) -> int:
    """Bytes of the largest layer's output, found without computing; 0 where a network does not run without data."""
    largest = 0

    def measure(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        storages = [leaf.untyped_storage() for leaf in tree_leaves((inputs, output)) if isinstance(leaf, Tensor)]
        largest = max(largest, sum({storage._cdata: storage.nbytes() for storage in storages}.values()))  # shared ones once

    try:
        abstract = _copied(model, {}).to("meta")
        for module in abstract.modules():
            module.register_forward_hook(measure)
        with in_mode(abstract, False), plainly():
            abstract(torch.empty((batch, *input_shape), device="meta"))
    except Exception:  # it needs values, or a user's code its own device: what was seen until then is a lower bound all the same
        pass
    return largest


def free_memory() -> int | None:
    """Bytes that this process can still allocate: what the machine has and its control group allows; None where nobody says."""
    found = []
    with suppress(OSError):
        if match := re.search(r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(encoding="ascii"), re.M):
            found.append(1024 * int(match[1]))
    with suppress(OSError, ValueError):  # "max" where there is no limit
        limit, used = (int((_GROUP / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        cached = re.search(r"^file (\d+)$", (_GROUP / "memory.stat").read_text(encoding="ascii"), re.M)
        found.append(limit - used + (int(cached[1]) if cached else 0))
    return min(found, default=None)


_GROUP = Path("/sys/fs/cgroup")
