"""Arithmetic of forward passes."""

import torch

from nar_hw.training.recipes import Precision


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Within it, forward passes are computed in ``precision``; weights stay in fp32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")
