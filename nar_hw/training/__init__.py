"""Training a network on a task: the loop, its checkpoints and resuming, fine-tuning in two phases, ensembles of snapshots."""

import random

import numpy as np
import torch

from nar_hw.errors import TrainingError
from nar_hw.recipes import RECIPES, Recipe, recipe_named
from nar_hw.training.loop import train
from nar_hw.training.phases import two_phase
from nar_hw.training.result import EpochLog, TrainResult
from nar_hw.training.snapshots import Ensemble, score_ensemble

__all__ = [
    "RECIPES",
    "Ensemble",
    "EpochLog",
    "Recipe",
    "TrainResult",
    "recipe_named",
    "score_ensemble",
    "set_seed",
    "train",
    "two_phase",
]


def set_seed(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch, for code that draws from them. Raises TrainingError."""
    if not 0 <= seed < 2**32:
        raise TrainingError(f"0 <= seed < 2**32 must hold, but got {seed}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
