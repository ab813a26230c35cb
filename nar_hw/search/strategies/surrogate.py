"""A linear model of the reward and, for it, the exactly best arch under the latency target (after LANA, section 3.2).

Shape legend: S slots, V codes, F features: one per slot and candidate, then one per two candidates of neighbouring slots.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.linalg import cho_solve, solve_triangular
from scipy.special import entr

from nar_hw.search.feasible import Feasible, Floats
from nar_hw.search.strategies.base import Strategy
from nar_hw.space.spec import Arch

SHRINKAGE = np.geomspace(0.1, 1000, 13)
"""Candidates for the ridge penalty of the single operators, of which the evidence chooses."""
PAIRS = np.array([1.0, 3, 10, 30, 100, 1000])
"""Candidates for how much more the pairs are penalised."""
GROWTH = 1.1
"""By how much the number of archs told has grown when the penalties are chosen anew."""
DRAW_STATES = 1500
"""Resolution of the knapsack for draws, which are rough themselves."""


class SurrogateStrategy(Strategy):
    """Bayesian ridge regression on operators and neighbouring pairs of them, and Thompson sampling with a knapsack solver.

    Each proposal is the best arch under the target for one draw from the posterior of the weights, so that operators of which
    little is known are tried. Rewards are compared within blocks of successive archs only, since the shared weights that
    they were measured with change over time.

    Args:
        warmup: archs told before the model is used; until then proposals are uniformly random.
        block: archs compared with each other at least.
    """

    off_policy = True

    def __init__(self, feasible: Feasible, *, seed: int, warmup: int = 40, block: int = 10) -> None:
        super().__init__(feasible, seed=seed)
        self.warmup, self.block = warmup, block
        rows = feasible.candidates
        singles = [(slot, code) for slot, codes in enumerate(rows) for code in codes]
        pairs = [(slot, u, v) for slot in range(len(rows) - 1) for u in rows[slot] for v in rows[slot + 1]]
        self._slots, self._codes = np.array(singles).T
        self._places, self._first, self._second = np.array(pairs, dtype=np.int64).reshape(-1, 3).T
        features = len(singles) + len(pairs)
        self.told = 0
        self.degrees = 0
        self.squares = 0.0
        self.gram: Floats = np.zeros((features, features))
        self.moment: Floats = np.zeros(features)
        self.pending: list[tuple[Arch, float]] = []
        self.entropy = float("nan")
        self.penalties = (len(SHRINKAGE) // 2, len(PAIRS) - 1)
        self.chosen_at = 0

    def ask(self, n: int) -> list[Arch]:
        """``n`` archs, each the best for another draw of what the rewards leave open."""
        archs = self._draw(n)
        shares = (np.array(archs)[..., None] == np.arange(self.feasible.codes)).mean(axis=0)  # (S, V)
        self.entropy = float(entr(shares).sum())
        return archs

    def _draw(self, n: int) -> list[Arch]:
        if self.degrees == 0 or self.told < self.warmup:
            return self.feasible.sample(n, self.rng)
        if self.told >= GROWTH * self.chosen_at:
            self._choose_penalties()
        mean, lower, noise, _ = self._posterior(self.penalties)
        around = solve_triangular(lower, self.rng.normal(size=(len(mean), n)), lower=True, trans="T", check_finite=False)
        return [self._solve(mean + noise**0.5 * draw, DRAW_STATES) for draw in around.T]

    def best(self) -> Arch | None:
        """The best arch under the target for the mean of the posterior."""
        return None if self.degrees == 0 else self._solve(self._posterior(self.penalties)[0])

    def learn(self, archs: list[Arch], rewards: Floats, slopes: Floats | None) -> None:
        """Add the rewards to the model once there is a block of them."""
        self.told += len(archs)
        self.pending += zip(archs, rewards.tolist(), strict=True)
        if len(self.pending) < self.block:
            return
        features = self._features(np.array([arch for arch, _ in self.pending]))  # (block, F)
        reward = np.array([value for _, value in self.pending])
        features -= features.mean(axis=0)
        reward -= reward.mean()
        self.gram += features.T @ features
        self.moment += features.T @ reward
        self.squares += float(reward @ reward)
        self.degrees += len(reward) - 1
        self.pending = []

    def scalars(self) -> dict[str, float]:
        """Entropy of the operators in the last proposals, summed over slots."""
        return {"entropy": self.entropy}

    def _features(self, codes: np.ndarray[Any, Any]) -> Floats:
        """(N, F) ones and zeros of (N, S) archs."""
        singles = codes[:, self._slots] == self._codes
        pairs = (codes[:, self._places] == self._first) & (codes[:, self._places + 1] == self._second)
        return np.hstack([singles, pairs], dtype=np.float64)

    def _posterior(self, penalties: tuple[int, int]) -> tuple[Floats, Floats, float, float]:
        """Mean (F,) of the weights; the lower factor (F, F) of their precision and the noise; the logarithm of the evidence."""
        ridge = np.full(len(self.moment), SHRINKAGE[penalties[0]])
        ridge[len(self._slots) :] *= PAIRS[penalties[1]]
        lower: Floats = np.asarray(np.linalg.cholesky(self.gram + np.diag(ridge)), dtype=np.float64)
        mean: Floats = cho_solve((lower, True), self.moment, check_finite=False)
        left = self.squares - float(self.moment @ mean)
        noise = max(left, 1e-12 * max(self.squares, 1e-12)) / self.degrees
        complexity = 2 * np.log(np.diag(lower)).sum() - np.log(ridge).sum()
        return mean, lower, noise, float(-self.degrees * np.log(noise) - complexity) / 2

    def _choose_penalties(self) -> None:
        """Climb from the last choice to a (local) maximum of the evidence."""
        self.chosen_at = self.told
        known = {self.penalties: self._posterior(self.penalties)[3]}
        while True:
            for near in self._neighbours():
                if near not in known:
                    known[near] = self._posterior(near)[3]
            best = max(known, key=known.__getitem__)
            if best == self.penalties:
                return
            self.penalties = best

    def _neighbours(self) -> Iterator[tuple[int, int]]:
        single, pair = self.penalties
        for near in ((single - 1, pair), (single + 1, pair), (single, pair - 1), (single, pair + 1)):
            if 0 <= near[0] < len(SHRINKAGE) and 0 <= near[1] < len(PAIRS):
                yield near

    def _solve(self, weights: Floats, states: int | None = None) -> Arch:
        """The best arch under the target for ``weights`` (F,)."""
        slots, codes = self.feasible.slots, self.feasible.codes
        scores, pairs = np.zeros((slots, codes)), np.zeros((slots - 1, codes, codes))
        scores[self._slots, self._codes] = weights[: len(self._slots)]
        pairs[self._places, self._first, self._second] = weights[len(self._slots) :]
        return self.feasible.best(scores, pairs, **({} if states is None else {"states": states}))

    def state_dict(self) -> dict[str, Any]:
        """The generator, the sums that the model is made of and its penalties."""
        return {
            **super().state_dict(),
            "counts": [self.told, self.degrees, self.chosen_at, *self.penalties],
            "squares": self.squares,
            "entropy": self.entropy,
            "gram": torch.from_numpy(self.gram.copy()),
            "moment": torch.from_numpy(self.moment.copy()),
            "pending": list(self.pending),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state)
        self.told, self.degrees, self.chosen_at, *penalties = state["counts"]
        self.penalties = (penalties[0], penalties[1])
        self.squares, self.entropy = state["squares"], state["entropy"]
        self.gram, self.moment = state["gram"].numpy().copy(), state["moment"].numpy().copy()
        self.pending = list(state["pending"])
