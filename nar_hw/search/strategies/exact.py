"""A linear model of the accuracy and, for it, the exactly best arch under the latency target (after LANA, section 3.2).

Shape legend: S slots, F features: one per slot and candidate.
"""

from typing import Any

import numpy as np
import torch

from nar_hw.search.feasible import Feasible, Floats
from nar_hw.search.strategies.base import Strategy
from nar_hw.space import Arch

SHRINKAGE = np.geomspace(0.1, 1000, 25)
"""Candidates for the ridge penalty, of which the evidence chooses."""


class ExactStrategy(Strategy):
    """Bayesian ridge regression on one-hot operators, and Thompson sampling with a knapsack solver.

    Each proposal is the best arch under the target for one draw from the posterior of the weights, so that operators of which
    little is known are tried. Accuracies are compared within blocks of successive archs only, since the shared weights that
    they were measured with change over time.

    Args:
        warmup: archs told before the model is used; until then proposals are uniformly random.
        block: archs compared with each other at least.
    """

    def __init__(self, feasible: Feasible, *, seed: int, warmup: int = 40, block: int = 10) -> None:
        super().__init__(feasible, seed=seed)
        self.warmup, self.block = warmup, block
        pairs = [(position, code) for position, codes in enumerate(feasible.candidates) for code in codes]
        self._slots, self._codes = (np.array(item) for item in zip(*pairs, strict=True))
        features = len(pairs)
        self.told = 0
        self.degrees = 0
        self.squares = 0.0
        self.gram: Floats = np.zeros((features, features))
        self.moment: Floats = np.zeros(features)
        self.pending: list[tuple[Arch, float]] = []

    def ask(self, n: int) -> list[Arch]:
        """``n`` archs, each the best for another draw of what the accuracies leave open."""
        if self.degrees == 0 or self.told < self.warmup:
            return self.feasible.sample(n, self.rng)
        mean, factor = self._posterior()
        draws = [mean + factor @ self.rng.normal(size=len(mean)) for _ in range(n)]
        return [self.feasible.best(self._table(weights)) for weights in draws]

    def best(self) -> Arch | None:
        """The best arch under the target for the mean of the posterior."""
        return None if self.degrees == 0 else self.feasible.best(self._table(self._posterior()[0]))

    def learn(self, archs: list[Arch], rewards: np.ndarray[Any, Any], accuracies: np.ndarray[Any, Any]) -> None:
        """Add the accuracies to the model once there is a block of them; the latency needs no model."""
        self.told += len(archs)
        self.pending += zip(archs, accuracies.tolist(), strict=True)
        if len(self.pending) < self.block:
            return
        codes = np.array([arch for arch, _ in self.pending])
        accuracy = np.array([value for _, value in self.pending])
        features = (codes[:, self._slots] == self._codes).astype(float)  # (block, F)
        features -= features.mean(axis=0)
        accuracy -= accuracy.mean()
        self.gram += features.T @ features
        self.moment += features.T @ accuracy
        self.squares += float(accuracy @ accuracy)
        self.degrees += len(accuracy) - 1
        self.pending = []

    def _posterior(self) -> tuple[Floats, Floats]:
        """Mean (F,) of the weights and a factor (F, F) of their covariance, for the penalty with the largest evidence."""
        values, vectors = np.linalg.eigh(self.gram)
        values = values.clip(0)
        along = vectors.T @ self.moment
        left = self.squares - (along**2 / (values + SHRINKAGE[:, None])).sum(axis=1)
        noise = np.maximum(left, 1e-12 * max(self.squares, 1e-12)) / self.degrees
        complexity = np.log1p(values / SHRINKAGE[:, None]).sum(axis=1)
        choice = int((-self.degrees * np.log(noise) - complexity).argmax())
        precision = values + SHRINKAGE[choice]
        return vectors @ (along / precision), vectors * np.sqrt(noise[choice] / precision)

    def _table(self, weights: Floats) -> Floats:
        """(S, V) scores for the knapsack."""
        scores = np.zeros((self.feasible.slots, self.feasible.codes))
        scores[self._slots, self._codes] = weights
        return scores

    def state_dict(self) -> dict[str, Any]:
        """The generator and the sums that the model is made of."""
        return {
            **super().state_dict(),
            "counts": [self.told, self.degrees],
            "squares": self.squares,
            "gram": torch.from_numpy(self.gram.copy()),
            "moment": torch.from_numpy(self.moment.copy()),
            "pending": list(self.pending),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state)
        self.told, self.degrees = state["counts"]
        self.squares = state["squares"]
        self.gram, self.moment = state["gram"].numpy().copy(), state["moment"].numpy().copy()
        self.pending = list(state["pending"])
