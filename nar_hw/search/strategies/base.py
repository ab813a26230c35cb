"""What every search strategy does: propose archs, learn from their rewards, save and restore what it knows."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from nar_hw.errors import TrainingError
from nar_hw.search.feasible import Feasible
from nar_hw.space import Arch


class Strategy(ABC):
    """Proposes archs (`ask`) and learns from what they scored (`tell`).

    A strategy is told which archs meet the latency target and proposes no others. From the same seed and the same rewards it
    makes the same proposals; a copy restored with `load_state_dict` goes on exactly as the original would.
    """

    def __init__(self, feasible: Feasible, *, seed: int) -> None:
        self.feasible = feasible
        self.rng = np.random.default_rng(seed)

    @abstractmethod
    def ask(self, n: int) -> list[Arch]:
        """``n`` archs to be scored; the same arch may come more than once."""

    def tell(self, archs: Sequence[Arch], rewards: Sequence[float], accuracies: Sequence[float]) -> None:
        """Learn from scored archs, which need not be the ones asked for.

        An arch whose reward is not a finite number is left out: it says nothing about the others.

        Raises:
            TrainingError: none of the rewards is finite, so the shared weights have diverged.
        """
        scored = [item for item in zip(archs, rewards, accuracies, strict=True) if all(map(math.isfinite, item[1:]))]
        if archs and not scored:
            raise TrainingError(
                f"rewards must be finite numbers, but all {len(archs)} told at once are not: the shared weights have "
                "diverged, lower the learning rate"
            )
        if scored:
            kept_archs, kept_rewards, kept_accuracies = zip(*scored, strict=True)
            self.learn(list(kept_archs), np.array(kept_rewards, dtype=float), np.array(kept_accuracies, dtype=float))

    @abstractmethod
    def learn(self, archs: list[Arch], rewards: np.ndarray[Any, Any], accuracies: np.ndarray[Any, Any]) -> None:
        """What `tell` does with the finite rewards: at least one."""

    def paths(self, n: int) -> list[Arch]:
        """``n`` archs on which to train the shared weights; unless a strategy has a policy, uniformly random ones."""
        return self.feasible.sample(n, self.rng)

    def best(self) -> Arch | None:
        """The arch that the strategy believes in most, where it has such a belief beyond the scores seen."""
        return None

    def scalars(self) -> dict[str, float]:
        """Numbers worth logging."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything that `ask`, `tell` and `paths` depend on: tensors, numbers, strings, lists and dicts of them."""
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, for a strategy made with the same arguments."""
        self.rng.bit_generator.state = state["rng"]
