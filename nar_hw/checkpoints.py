"""Weights and training states on disk: safetensors for networks, a tensors-only file for what a training needs to go on."""

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nar_hw.errors import RunError
from nar_hw.files import atomic_path


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the parameters and buffers of ``model`` to a safetensors file, atomically."""
    # Copies, for safetensors refuses tensors that share memory or are not contiguous.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary)


def load_weights(path: Path, model: nn.Module) -> None:
    """Read the weights of ``model`` from a safetensors file.

    Raises:
        RunError: the file is absent or damaged, or holds the weights of another network.
    """
    try:
        tensors = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise RunError(f"weights {path} do not exist: train first") from None
    except (OSError, safetensors.SafetensorError) as problem:
        raise RunError(f"weights {path} cannot be read ({problem}): the file is truncated or no safetensors file") from problem
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if own != found:
        key = min(key for key in own.keys() | found.keys() if own.get(key) != found.get(key))
        raise RunError(
            f"weights {path} must fit the network, but {key!r} is {found.get(key, 'absent')} there and "
            f"{own.get(key, 'absent')} in the network: use the arch it was trained with"
        )
    model.load_state_dict(tensors)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a dict of tensors, numbers, strings, lists and dicts, atomically."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path) -> dict[str, Any]:
    """What :func:`save_state` wrote, its tensors on the CPU; nothing but data is unpickled. Raises RunError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # torch raises many kinds for a damaged file
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise RunError(f"training state {path} cannot be read ({reason}): delete its folder and train again") from problem
    if not isinstance(state, dict):
        raise RunError(f"training state {path} must hold a dict, but holds a {type(state).__name__}: train again")
    return state


def copy_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU."""
    return {key: value.detach().to("cpu", copy=True) for key, value in tensors.items()}
