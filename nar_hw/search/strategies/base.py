"""What every search strategy does: propose archs, learn from their rewards, save and restore what it knows."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from nar_hw.errors import TrainingError
from nar_hw.search.feasible import Feasible, Floats
from nar_hw.space.spec import Arch


class Strategy(ABC):
    """Proposes archs (`ask`) and learns from what they scored (`tell`).

    A strategy is told which archs meet the latency target and proposes no others. From the same seed and the same rewards it
    makes the same proposals; a copy restored with `load_state_dict` goes on exactly as the original would.
    """

    wants_slopes = False
    """Whether it learns from `nar_hw.search.scoring.Scorer.slopes`."""

    wants_mixture = False
    """Whether it learns from `nar_hw.search.scoring.Scorer.with_mixture`: it then has `mixture` and `descend`."""

    off_policy = False
    """Whether it learns from archs that it did not propose, those over its target among them."""

    def __init__(self, feasible: Feasible, *, seed: int) -> None:
        self.feasible = feasible
        self.rng = np.random.default_rng(seed)

    @abstractmethod
    def ask(self, n: int) -> list[Arch]:
        """``n`` archs to be scored; the same arch may come more than once."""

    def tell(
        self,
        archs: Sequence[Arch],
        rewards: Sequence[float],
        slopes: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Learn from scored archs, which need not be the ones asked for.

        An arch of which a number is not finite is left out: it says nothing about the others.

        Args:
            slopes: per arch and slot, of the validation loss in a factor on the slot's output; of use to those that want them.

        Raises:
            TrainingError: there are archs, and of none the numbers are finite: the shared weights have diverged.
        """
        if not list(zip(archs, rewards, strict=True)):
            return
        numbers = np.column_stack([rewards, *([] if slopes is None else [np.asarray(slopes, dtype=np.float64)])])
        kept = np.flatnonzero(np.isfinite(numbers).all(axis=1)).tolist()
        if not kept:
            raise TrainingError(
                f"rewards must be finite numbers, but all {len(archs)} told at once are not: the shared weights have "
                "diverged, lower the learning rate"
            )
        numbers = numbers[kept]
        self.learn([archs[index] for index in kept], numbers[:, 0], None if slopes is None else numbers[:, 1:])

    @abstractmethod
    def learn(self, archs: list[Arch], rewards: Floats, slopes: Floats | None) -> None:
        """What `tell` does with the finite numbers: of at least one arch."""

    def mixture(self) -> Floats:
        """(S, V) weights with which the operators of each slot are mixed, of a strategy that wants a mixture."""
        raise NotImplementedError

    def descend(self, slopes: Floats) -> None:
        """Learn from the (S, V) slopes of the validation loss in the weights of the mixture.

        Raises TrainingError where they are not all finite: the shared weights have diverged.
        """
        raise NotImplementedError

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
