"""What a network must give back to be trained, scored and exported: checked before any work is spent on it."""

import math
import traceback
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from nar_hw.errors import ModelError
from nar_hw.space.network import flat, images_for, named_outputs, plain_copy, returned, run
from nar_hw.userfile import place

AGREEMENT = 1e-3
"""By which share of the largest output an image's output may change with the images beside it: rounding changes it by less."""


def check_outputs(
    model: nn.Module, input_shape: tuple[int, int, int], outputs: int, *, trained: bool, structured: bool = False
) -> dict[str, tuple[int, ...]]:
    """Run a copy of ``model`` on images (C, H, W): its outputs must be a function of each image alone.

    Returns name -> shape of each output, without the batch.

    They are one tensor (B, ``outputs``), or with ``structured`` any tensors, in tuples and dicts, that have ``outputs`` numbers
    for each image together. With ``trained``, the parameters must be float32 and the outputs of the same names and shapes in
    training mode. Raises ModelError, naming what draws random numbers or which shape is wrong.
    """
    network = plain_copy(model, input_shape)
    if trained:
        _check_type(network)
    images = images_for(network, input_shape, 2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    kinds = (outputs, structured)
    shapes, together = _vectors(run(network, images), *kinds, "evaluation")
    changed = [key for key, value in network.state_dict().items() if not torch.equal(value, before[key])]
    if not changed:
        _check_repeatable(network, images, together)
        _check_alone(network, images, together)
    elif not trained:
        raise ModelError(
            f"a network in evaluation mode must leave itself as it is, but {changed[0]} changes: give the network as it is "
            "before it is prepared for quantisation (nar-hw export --precision int8 quantises it)"
        )
    if trained and (other := _vectors(run(network, images, training=True), *kinds, "training")[0]) != shapes:
        raise ModelError(
            f"the model must return the same in both modes, but returns {shapes} in evaluation and {other} in training mode"
        )
    return {name: shape[1:] for name, shape in shapes.items()}


def _check_repeatable(network: nn.Module, images: Tensor, expected: Tensor) -> None:
    with torch.random.fork_rng(devices=[]), _RandomOperations() as drawn:  # type: ignore[no-untyped-call]
        torch.manual_seed(1 + torch.initial_seed() % 2**31)
        again = flat(run(network, images))
    if not torch.allclose(expected, again, equal_nan=True):
        what = f" ({drawn.first})" if drawn.first else ""
        raise ModelError(
            f"a network in evaluation mode must give an image the same output every time, but this one's is random{what}: "
            "let it draw numbers only while self.training"
        )


def _check_alone(network: nn.Module, images: Tensor, expected: Tensor) -> None:
    tolerance = AGREEMENT * float(expected.abs().max())
    for image, output in zip(images, expected, strict=True):
        alone = flat(run(network, image[None]))[0]
        if alone.shape != output.shape or not torch.allclose(alone, output, rtol=0, atol=tolerance, equal_nan=True):
            norms = (path for path, item in network.named_modules() if isinstance(item, _BatchNorm) and item.running_mean is None)
            norm = next(norms, None)
            what = "" if norm is None else f" ({norm} keeps no running statistics)"
            raise ModelError(
                "a network in evaluation mode must give an image the same output whatever images are beside it, but this one's "
                f"depends on its batch{what}: compute nothing over the batch"
            )


def _check_type(network: nn.Module) -> None:
    for path, parameter in network.named_parameters():
        if parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ModelError(
                f"a network is trained in float32, but its parameter {path} is {kind}: build it without .half(), .bfloat16() or "
                ".double(), and choose mixed precision in the recipe"
            )


def _vectors(output: Any, outputs: int, structured: bool, mode: str) -> tuple[dict[str, tuple[int, ...]], Tensor]:
    """Name -> shape of each output, and (2, D): all their numbers."""
    if not structured and (not isinstance(output, Tensor) or output.shape != (2, outputs)):
        raise ModelError(
            f"the model must return one tensor of shape (2, {outputs}) for 2 images in {mode} mode, but returns "
            f"{returned(output)}: wrap it so that it gives one vector of scores for each image, or say what its "
            "outputs are for with --task"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in named_outputs(output).items()}
    numbers = {name: math.prod(shape[1:]) for name, shape in shapes.items()}
    if any(shape[0] != 2 for shape in shapes.values()) or sum(numbers.values()) != outputs:
        raise ModelError(
            f"the model must return {outputs} numbers for each of 2 images in {mode} mode, but returns {shapes}: what it "
            "gives and what its task says must be the same"
        )
    return shapes, flat(output)


class _RandomOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the first operation that draws random numbers."""

    first = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if not self.first and torch.Tag.nondeterministic_seeded in func.tags:
            where = place(traceback.extract_stack())
            self.first = f"{func.overloadpacket.__name__}{f' at {where}' if where else ''}"
        return func(*args, **(kwargs or {}))
