"""Which archs meet a latency target, by an additive table: exact bounds, counts, uniform samples and best choices.

Shape legend: N archs, S slots, V operator codes. Costs are milliseconds; an arch costs fixed_ms plus one entry per slot.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nar_hw.errors import MissingEntryError, TableError, TargetError
from nar_hw.search.knapsack import best_chain
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch

if TYPE_CHECKING:
    from nar_hw.latency.table import LatencyTable

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BINS = 4096
"""Resolution of the counts, in parts of what the target leaves above the fastest arch."""
HALF = 2**20
"""How many ways to fill half of the slots are listed to count archs exactly."""
STATES = 20_000
"""How many partial archs `Feasible.best` keeps; where there are more, the best in each of so many intervals of latency."""
ROUNDING = 1e-9
"""Slack relative to the target, so that an arch exactly at the target is not lost to the order of a sum."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Feasible:
    """The archs of a space whose latency by the table is at most the target."""

    candidates: tuple[tuple[int, ...], ...]
    """Operator codes per slot."""
    cost_ms: Floats
    """(S, V): what each code adds in each slot; infinite where it is no candidate."""
    fixed_ms: float
    """What no choice changes: stem, skips, head."""
    target_ms: float

    def __post_init__(self) -> None:
        """Raises TargetError, naming the reachable range, when the target is outside it."""
        fastest, slowest = self.bounds_ms
        if not fastest * (1 - ROUNDING) <= self.target_ms <= slowest * (1 + ROUNDING):
            raise TargetError(
                f"the target must be within {fastest:.4g} and {slowest:.4g} ms, which this space reaches by its table, "
                f"but got {self.target_ms:.4g} ms"
            )

    @classmethod
    def from_table(cls, space: SearchSpace, table: "LatencyTable", target_ms: float) -> "Feasible":
        """The archs of ``space`` that meet ``target_ms`` by ``table``.

        Raises:
            TargetError: the target is outside what the space reaches; names the range.
            MissingEntryError: the table has no entry for a candidate.
            TableError: the table's predictions are not the sums of its entries.
        """
        cost = np.full((len(space.slots), len(space.operators)), np.inf)
        for position, slot in enumerate(space.slots):
            codes = list(slot.candidates)
            cost[position, codes] = np.asarray(table.matrix)[position, codes]
        if np.isnan(cost).any():
            position, code = np.argwhere(np.isnan(cost))[0]
            raise MissingEntryError(
                f"the table needs an entry for every candidate, but has none for {space.operators[code]} in slot "
                f"{position} ({space.slots[position].name}): profile this space again"
            )
        candidates = tuple(slot.candidates for slot in space.slots)
        feasible = cls(candidates=candidates, cost_ms=cost, fixed_ms=float(table.fixed_ms), target_ms=target_ms)
        probes = np.array([[codes[turn % len(codes)] for codes in candidates] for turn in range(8)])
        predicted = np.asarray(table.predict(probes), dtype=np.float64)
        if not np.allclose(predicted, feasible.latency_ms(probes), rtol=1e-6):
            raise TableError("a search needs a table whose predictions are sums of its entries, but this one's are not")
        return feasible

    @property
    def slots(self) -> int:
        """S."""
        return len(self.candidates)

    @property
    def codes(self) -> int:
        """V."""
        return int(self.cost_ms.shape[1])

    @property
    def budget_ms(self) -> float:
        """What the operators of all slots may cost together, with the slack for rounding."""
        return self.target_ms - self.fixed_ms + abs(self.target_ms) * ROUNDING

    @cached_property
    def reserve_ms(self) -> Floats:
        """(S + 1,): the least that the slots from each position on can cost."""
        least = self.cost_ms.min(axis=1)
        return np.append(least[::-1].cumsum()[::-1], 0.0)

    @cached_property
    def bounds_ms(self) -> tuple[float, float]:
        """Latency of the fastest and of the slowest arch of the space, whatever the target."""
        worst = np.where(np.isfinite(self.cost_ms), self.cost_ms, -np.inf).max(axis=1).sum()
        return self.fixed_ms + float(self.reserve_ms[0]), self.fixed_ms + float(worst)

    def latency_ms(self, archs: Sequence[Arch] | Ints) -> Floats:
        """(N,) milliseconds of (N, S) archs; infinite where a code is no candidate."""
        codes = np.asarray(archs, dtype=np.int64).reshape(-1, self.slots)
        return self.fixed_ms + np.asarray(self.cost_ms[np.arange(self.slots), codes].sum(axis=1))

    def meets(self, archs: Sequence[Arch] | Ints) -> NDArray[np.bool_]:
        """(N,) whether archs are at or under the target."""
        return np.asarray(self.latency_ms(archs) - self.fixed_ms <= self.budget_ms)

    def allowed(self, position: int, spent_ms: Floats) -> NDArray[np.bool_]:
        """(N, V) codes after which the fastest completion still meets the target.

        Args:
            position: the slot to be decided.
            spent_ms: (N,) what the slots before it cost.
        """
        total = spent_ms[:, None] + self.cost_ms[position] + self.reserve_ms[position + 1]
        # the cheapest code stays open even when an arch told from outside is already over the target
        cheapest = self.cost_ms[position] == self.cost_ms[position].min()
        return np.asarray((total <= self.budget_ms) | cheapest)

    @cached_property
    def _steps(self) -> Ints:
        """(S, V): what each code costs above its slot's cheapest, in bins, rounded down; BINS + 1 where never affordable."""
        above = self.cost_ms - self.cost_ms.min(axis=1, keepdims=True)
        spare = max(self.budget_ms - float(self.reserve_ms[0]), np.finfo(float).tiny)
        return np.asarray(np.minimum(np.floor(above * (BINS / spare) + 1e-6), BINS + 1), dtype=np.int64)

    @cached_property
    def _completions(self) -> Floats:
        """(S + 1, BINS + 1): how many ways there are to fill the slots from each position on with so many bins left."""
        ways = np.ones((self.slots + 1, BINS + 1))
        for position in reversed(range(self.slots)):
            ways[position] = 0
            for code in self.candidates[position]:
                step = self._steps[position, code]
                if step <= BINS:
                    ways[position, step:] += ways[position + 1, : BINS + 1 - step]
        return ways

    @property
    def counts_exactly(self) -> bool:
        """Whether all ways to fill half of the slots can be listed."""
        middle = self.slots // 2
        return max(math.prod(map(len, half)) for half in (self.candidates[:middle], self.candidates[middle:])) <= HALF

    @cached_property
    def count(self) -> float:
        """How many archs meet the target: exactly, or up to the resolution of the bins."""
        if not self.counts_exactly:
            return float(self._completions[0, BINS])
        middle = self.slots // 2
        first, second = self._sums(0, middle), self._sums(middle, self.slots)
        return float(np.searchsorted(np.sort(first), self.budget_ms - second, side="right").sum())

    def _sums(self, start: int, stop: int) -> Floats:
        """Costs of all ways to fill the slots from ``start`` to before ``stop``."""
        sums = np.zeros(1)
        for position in range(start, stop):
            sums = (sums[:, None] + self.cost_ms[position, list(self.candidates[position])]).ravel()
        return sums

    def sample(self, n: int, rng: np.random.Generator) -> list[Arch]:
        """``n`` archs, each uniformly random among all that meet the target."""
        found: list[Arch] = []
        while len(found) < n:
            archs = self._draw(n, rng)
            # the bins round down, so a few draws are just over the target
            found += [tuple(map(int, arch)) for arch in archs[self.meets(archs)]]
        return found[:n]

    def _draw(self, n: int, rng: np.random.Generator) -> Ints:
        archs = np.zeros((n, self.slots), dtype=np.int64)
        left = np.full(n, BINS)
        for position, codes in enumerate(map(list, self.candidates)):
            after = left[:, None] - self._steps[position, codes]  # (n, candidates)
            ways = np.where(after >= 0, self._completions[position + 1, np.maximum(after, 0)], 0.0)
            edges = ways.cumsum(axis=1)
            draw = rng.random((n, 1)) * edges[:, -1:]
            choice = np.minimum((draw >= edges).sum(axis=1), len(codes) - 1)
            archs[:, position] = np.asarray(codes)[choice]
            left = after[np.arange(n), choice]
        return archs

    def best(self, scores: Floats, pairs: Floats | None = None, *, states: int = STATES) -> Arch:
        """The arch under the target with the largest sum of ``scores`` (S, V) and ``pairs`` (S - 1, V, V) of neighbouring slots.

        Exact while no more than ``states`` partial archs are undominated, else to 1/states of the latency range.
        """
        return best_chain(
            self.candidates,
            self.cost_ms,
            self.budget_ms,
            scores,
            np.zeros((self.slots - 1, self.codes, self.codes)) if pairs is None else pairs,
            states=states,
        )
