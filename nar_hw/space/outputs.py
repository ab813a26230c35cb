"""What a network must give back to be trained, scored and exported: checked before any work is spent on it."""

import traceback
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nar_hw.errors import ModelError
from nar_hw.space.network import images_for, plain_copy, run
from nar_hw.space.trace import described
from nar_hw.userfile import place

AGREEMENT = 1e-3
"""By which share of the largest output an image's output may change with the images beside it: rounding changes it by less."""


def check_outputs(model: nn.Module, input_shape: tuple[int, int, int], outputs: int, *, trained: bool) -> None:
    """Run a copy of ``model`` on images (C, H, W): its outputs (B, ``outputs``) must be a function of each image alone.

    With ``trained``, its parameters must be float32 and it must give the same shape in training mode. Raises ModelError, naming
    what draws random numbers or which shape is wrong.
    """
    network = plain_copy(model, input_shape)
    if trained:
        _check_type(network)
    images = images_for(network, input_shape, 2)
    together = _vectors(run(network, images), outputs, "")
    with _RandomOperations() as drawn:
        again = run(network, images)
    if not torch.allclose(together, again, equal_nan=True):
        what = f" ({drawn.first})" if drawn.first else ""
        raise ModelError(
            f"a network in evaluation mode must give an image the same output every time, but this one's is random{what}: "
            "make it depend on self.training"
        )
    for position, output in enumerate(together):
        alone = run(network, images[position : position + 1])
        same = alone.numel() == output.numel() and bool(
            (alone.reshape(-1) - output).abs().max() <= AGREEMENT * together.abs().max()
        )
        if not same and not output.isnan().any():
            norms = [path for path, module in network.named_modules() if getattr(module, "track_running_stats", None) is False]
            batch_norms = [path for path in norms if "BatchNorm" in type(network.get_submodule(path)).__name__]
            what = f" ({batch_norms[0]} keeps no running statistics)" if batch_norms else ""
            raise ModelError(
                "a network in evaluation mode must give an image the same output whatever images are beside it, but this one's "
                f"depends on its batch{what}"
            )
    if trained:
        _vectors(run(network, images, training=True), outputs, "in training mode ")


def _check_type(network: nn.Module) -> None:
    for path, parameter in network.named_parameters():
        if parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ModelError(
                f"a network is trained in float32, but its parameter {path} is {kind}: build it without .half(), .bfloat16() or "
                ".double(), and choose mixed precision in the recipe"
            )


def _vectors(output: Any, outputs: int, mode: str) -> Tensor:
    if not isinstance(output, Tensor) or output.shape != (2, outputs):
        raise ModelError(
            f"the model must {mode}return one tensor (images, {outputs}), but for 2 images it returns {described(output)}: "
            "wrap it so that it gives one vector of scores for each image"
        )
    return output


class _RandomOperations(TorchDispatchMode):
    """Notes the first operation that draws random numbers."""

    first = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if not self.first and torch.Tag.nondeterministic_seeded in func.tags:
            where = place(traceback.extract_stack())
            self.first = f"{func.overloadpacket.__name__}{f' at {where}' if where else ''}"
        return func(*args, **(kwargs or {}))
