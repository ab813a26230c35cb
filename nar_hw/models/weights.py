"""Weights on disk: safetensors, or torch files of tensors only; nothing is executed."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nar_hw.errors import ModelError
from nar_hw.files import atomic_path

# Heads that torchvision trained its googlenet and inception_v3 with; the networks built here have none.
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def save_weights(path: Path, network: nn.Module) -> None:
    """Write the parameters and buffers of ``network`` to a safetensors file, atomically."""
    # Copies, for safetensors refuses tensors that share memory or are not contiguous.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def load_weights(network: nn.Module, path: Path, *, name: str = "the network") -> None:
    """Load the state dict in ``path`` (a .safetensors file, or one written by torch.save) into ``network``; all must fit.

    A checkpoint that keeps the state dict under the key "state_dict" is read too. Raises ModelError in one line when the
    file is missing or damaged, holds anything but tensors, or does not fit.
    """
    state = _read(path)
    expected = network.state_dict()
    if not any(key.startswith(AUXILIARY) for key in expected):
        state = {key: value for key, value in state.items() if not key.startswith(AUXILIARY)}
    shared = {value.data_ptr() for key, value in expected.items() if key in state}
    problems = [
        # safetensors keeps one of the names of a tensor that several modules share
        *(f"{key} is missing from the file" for key in expected if key not in state and expected[key].data_ptr() not in shared),
        *(f"{key} of the file is not in the network" for key in state if key not in expected),
        *(
            f"{key} is {_shape(state[key])} in the file and {_shape(value)} in the network"
            for key, value in expected.items()
            if key in state and state[key].shape != value.shape
        ),
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ModelError(f"the weights in {path} must fit {name}, but {problems[0]}{more}")
    network.load_state_dict(state, strict=False)


def load_fitting(network: nn.Module, path: Path) -> tuple[str, ...]:
    """Load from ``path`` every module that fits ``network`` as a whole; returns the names of what kept its values.

    For a network trained for other classes or images: of a module whose shapes differ, such as its head, nothing is loaded.
    Raises ModelError when the file is missing or damaged, holds anything but tensors, or nothing in it fits.
    """
    found, own = _read(path), network.state_dict()
    misfits = {key.rpartition(".")[0] for key, value in own.items() if key not in found or found[key].shape != value.shape}
    fits = {key: found[key] for key in own if key.rpartition(".")[0] not in misfits}
    if not fits:
        raise ModelError(f"weights in {path} must fit some module of the network by name and shape, but none does")
    network.load_state_dict({**own, **fits})
    return tuple(key for key in own if key not in fits)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"weights file {path} does not exist or is no file")
    try:
        content: Any = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as problem:  # what a damaged file raises depends on where the damage is
        raise ModelError(
            f"weights file {path} must hold tensors only, but is damaged or holds other objects "
            f"({type(problem).__name__}): save model.state_dict()"
        ) from problem
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"weights file {path} must hold a state dict (names and tensors): save model.state_dict()")
    return content


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
