"""One seed for everything random."""

import random

import numpy as np
import torch

from nar_hw.errors import TrainingError


def set_seed(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch, for code that draws from them. Raises TrainingError."""
    if not 0 <= seed < 2**32:
        raise TrainingError(f"0 <= seed < 2**32 must hold, but got {seed}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
