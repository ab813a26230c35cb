"""Arithmetic of forward passes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nar_hw.training.recipes import Precision


class _WideDepthwise(TorchFunctionMode):
    """Computes depthwise convolutions with kernels above 3x3 in fp32.

    CPUs take 5 times as long for the gradient of their weights in bf16: oneDNN has depthwise kernels for 3x3 only, and does the
    work of a dense convolution for others (findings/bf16_slows_depthwise_5x5_training.sh).
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.conv2d or not _wide_depthwise(*args, **kwargs):
            return func(*args, **kwargs)
        images: Tensor = args[0]
        with torch.autocast("cpu", enabled=False):
            outputs: Tensor = func(images.float(), *args[1:], **kwargs)
        return outputs.bfloat16()


def _wide_depthwise(images: Tensor, weight: Tensor, *_: Any, **__: Any) -> bool:
    return weight.shape[1] == 1 and len(weight) > 1 and max(weight.shape[2:]) > 3


@contextmanager
def autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    """Within it, forward passes are computed in ``precision``; weights stay in fp32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    with torch.autocast(device.type, dtype, enabled=precision != "fp32"):
        if device.type == "cpu" and precision == "bf16":
            with _WideDepthwise():
                yield
        else:
            yield
