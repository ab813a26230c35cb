"""Weights on disk: safetensors, or torch files of tensors only; nothing is executed."""

import argparse
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nar_hw.errors import ModelError
from nar_hw.files import write_bytes

_SCALAR: Any = np.float64(0).__reduce__()[0]
"""What NumPy's numbers are pickled by."""
# Heads that torchvision trained its googlenet and inception_v3 with; the networks built here have none.
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
KEYS = ("model_ema", "state_dict_ema", "ema_state_dict", "state_dict", "model_state_dict", "model", "net", "network")
"""Under which checkpoints keep state dicts, averaged weights first."""
_TYPES = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
HARMLESS: list[Any] = [argparse.Namespace, _SCALAR, np.dtype, *_TYPES]
"""What trainers keep beside weights (timm its arguments and best score): values that run nothing when they are read."""
COUNTERS = ("total_ops", "total_params")
"""Buffers that thop leaves in the networks it counts."""
NEW_IN_TORCH = "num_batches_tracked"
"""The buffer of BatchNorm that files written before torch 0.4.1 lack; it keeps its zero, as in torch's own loading."""


def save_weights(path: Path, network: nn.Module) -> None:
    """Write the parameters and buffers of ``network`` to a safetensors file, atomically."""
    # Copies, for safetensors refuses tensors that share memory or are not contiguous.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    write_bytes(path, save(tensors))


class Loaded(NamedTuple):
    """What was taken from a file of weights."""

    tensors: int
    key: str | None
    """Under which the state dict lay in the file, of several the averaged weights; None where the file is the state dict."""
    prefix: str
    """Before all names of the network, left by what it was wrapped in."""
    ignored: tuple[str, ...]
    """Names of the file that are not of the network."""

    def __str__(self) -> str:
        where = f" under {self.key!r}" if self.key else ""
        prefix = f" without the prefix {self.prefix!r}" if self.prefix else ""
        ignored = f"; left out: {_listed(self.ignored)}" if self.ignored else ""
        return f"{self.tensors} tensors{where}{prefix}{ignored}"


def weights_hash(network: nn.Module) -> str:
    """SHA-256 (hex) of the names and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy() if value.dim() else str(value.item()).encode())
    return digest.hexdigest()


def load_weights(network: nn.Module, path: Path, *, name: str = "the network") -> Loaded:
    """Load the weights in ``path`` into ``network``; every parameter and buffer must be there (but NEW_IN_TORCH) and fit.

    The file is .safetensors, or a torch file of tensors, numbers and texts: a state dict, or a checkpoint that has one under
    one of KEYS. A prefix before all names (of DataParallel, torch.compile, a Lightning module) is taken off, counters' buffers
    are left out.

    Raises ModelError in one line when the file is missing or damaged, holds objects, or does not fit.
    """
    key, state = _read(path)
    own = network.state_dict()
    prefix = _prefix(state, own)
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    found = {name: value for name, value in found.items() if name.rpartition(".")[2] not in COUNTERS}
    if not any(name.startswith(AUXILIARY) for name in own):
        found = {name: value for name, value in found.items() if not name.startswith(AUXILIARY)}
    shared = {value.data_ptr() for name, value in own.items() if name in found}
    problems = [
        *(
            f"{name} is {_shape(found[name])} in the file and {_shape(value)} in the network"
            for name, value in own.items()
            if name in found and found[name].shape != value.shape
        ),
        # safetensors keeps one of the names of a tensor that several modules share
        *(
            f"{name} is missing from the file"
            for name, value in own.items()
            if name not in found and value.data_ptr() not in shared and not name.endswith(NEW_IN_TORCH)
        ),
        *(f"{name} of the file is not in the network" for name in found if name not in own),
    ]
    if problems:
        fitting = sum(name in found and found[name].shape == value.shape for name, value in own.items())
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ModelError(f"the weights in {path} must fit {name}: {fitting} of {len(own)} do, but {problems[0]}{more}")
    network.load_state_dict(found, strict=False)
    used = {f"{prefix}{name}" for name in found}
    return Loaded(len(found), key, prefix, tuple(name for name in state if name not in used))


def load_fitting(network: nn.Module, path: Path) -> tuple[str, ...]:
    """Load from ``path`` every module that fits ``network`` as a whole; returns the names of what kept its values.

    For a network trained for other classes or images: of a module whose shapes differ, such as its head, nothing is loaded.
    Raises ModelError when the file is missing or damaged, holds objects, or nothing in it fits.
    """
    _, state = _read(path)
    own = network.state_dict()
    prefix = _prefix(state, own)
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    misfits = {name.rpartition(".")[0] for name, value in own.items() if name not in found or found[name].shape != value.shape}
    fits = {name: found[name] for name in own if name.rpartition(".")[0] not in misfits}
    if not fits:
        raise ModelError(f"weights in {path} must fit some module of the network by name and shape, but none does")
    network.load_state_dict({**own, **fits})
    return tuple(name for name in own if name not in fits)


def _prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What stands before the most names of the network in the file."""
    before = Counter(name.removesuffix(last) for last in own for name in state if name == last or name.endswith(f".{last}"))
    return max(before, key=lambda prefix: (before[prefix], -len(prefix)), default="")


def _read(path: Path) -> tuple[str | None, dict[str, Tensor]]:
    """The state dict in a file, and the key under which it lay."""
    if not path.is_file():
        raise ModelError(f"weights file {path} does not exist or is no file")
    try:
        with torch.serialization.safe_globals(HARMLESS):
            content: Any = (
                load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
            )
    except Exception as problem:  # what a damaged file raises depends on where the damage is
        raise ModelError(
            f"weights file {path} must hold tensors only, but is damaged or holds other objects, which are never loaded "
            f"({type(problem).__name__}): save model.state_dict()"
        ) from problem
    if isinstance(content, dict):
        for key in KEYS:
            if (state := _tensors(content.get(key))) is not None:
                return key, state
        if (state := _tensors(content)) is not None:
            return None, state
    raise ModelError(
        f"weights file {path} must hold a state dict (names and tensors), alone or under one of {', '.join(KEYS)}: "
        "save model.state_dict()"
    )


def _tensors(value: Any) -> dict[str, Tensor] | None:
    """``value`` if it is a state dict; what is no tensor in it (as some modules keep) is left out."""
    if not isinstance(value, dict) or not any(isinstance(item, Tensor) for item in value.values()):
        return None
    return {name: item for name, item in value.items() if isinstance(name, str) and isinstance(item, Tensor)}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
