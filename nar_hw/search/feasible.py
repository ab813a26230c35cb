"""Which archs meet a latency target by a table: exact bounds, counts, uniform samples and best choices.

Shape legend: N archs, R sums, S slots, V operator codes. Costs are milliseconds; an arch costs the least of R sums over its slots
(nar_hw/space/sums.py): an additive table is one sum, and of several each is solved, counted and drawn from alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nar_hw.errors import MissingEntryError, TableError, TargetError
from nar_hw.search.knapsack import best_chain
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch
from nar_hw.space.sums import Sums

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
    cost: Sums
    """Milliseconds of an arch; infinite where a code is no candidate."""
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
            TableError: the table's predictions are not made of its entries.
        """
        known = table.sums
        entries = np.full((len(known), len(space.slots), len(space.operators)), np.inf)
        for position, slot in enumerate(space.slots):
            codes = list(slot.candidates)
            entries[:, position, codes] = known.entries[:, position, codes]
        if np.isnan(entries).any():
            _, position, code = np.argwhere(np.isnan(entries))[0]
            raise MissingEntryError(
                f"the table needs an entry for every candidate, but has none for {space.operators[code]} in slot "
                f"{position} ({space.slots[position].name}): profile this space again"
            )
        candidates = tuple(slot.candidates for slot in space.slots)
        feasible = cls(candidates=candidates, cost=replace(known, entries=entries), target_ms=target_ms)
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
        return int(self.cost.entries.shape[2])

    @property
    def budget_ms(self) -> Floats:
        """(R,) what the operators of all slots may add to each sum, with the slack for rounding."""
        return self.cost.limit(self.target_ms) - self.cost.fixed + abs(self.target_ms) * ROUNDING

    @property
    def bounds_ms(self) -> tuple[float, float]:
        """Latency of the fastest and of the slowest arch of the space, whatever the target."""
        return self.cost.least, self.cost.most

    def latency_ms(self, archs: Sequence[Arch] | Ints) -> Floats:
        """(N,) milliseconds of (N, S) archs; infinite where a code is no candidate."""
        return self.cost.of(archs)

    def meets(self, archs: Sequence[Arch] | Ints) -> NDArray[np.bool_]:
        """(N,) whether archs are at or under the target."""
        return np.asarray(self._met(archs).any(axis=1))

    def _met(self, archs: Sequence[Arch] | Ints) -> NDArray[np.bool_]:
        """(N, R) which sums of each arch are at or under the target."""
        return np.asarray(self.cost.each(archs) - self.cost.fixed <= self.budget_ms)

    def allowed(self, position: int, spent_ms: Floats) -> NDArray[np.bool_]:
        """(N, V) codes after which the fastest completion still meets the target.

        Args:
            position: the slot to be decided.
            spent_ms: (N, R) what the slots before it add to each sum.
        """
        total = spent_ms[:, None] + self.cost.entries[:, position].T + self.cost.reserve[position + 1]  # (N, V, R)
        fits = (total <= self.budget_ms).any(axis=2)
        # the nearest code stays open even when an arch told from outside is already over the target
        over = (total - self.budget_ms).min(axis=2)
        return np.asarray(fits | (~fits.any(axis=1, keepdims=True) & (over == over.min(axis=1, keepdims=True))))

    @cached_property
    def _steps(self) -> Ints:
        """(R, S, V): what each code costs above its slot's cheapest, in bins, rounded down; BINS + 1 where never affordable."""
        above = self.cost.entries - self.cost.entries.min(axis=2, keepdims=True)
        spare = np.maximum(self.budget_ms - self.cost.reserve[0], BINS * np.finfo(float).tiny)[:, None, None]
        with np.errstate(over="ignore"):  # where nothing is to spare, what costs more is never affordable
            return np.asarray(np.minimum(np.floor(above * (BINS / spare) + 1e-6), BINS + 1), dtype=np.int64)

    @cached_property
    def _completions(self) -> Floats:
        """(R, S + 1, BINS + 1): ways to fill the slots from each position on with so many bins left."""
        ways = np.ones((len(self.cost), self.slots + 1, BINS + 1))
        for own, steps in zip(ways, self._steps, strict=True):
            for position in reversed(range(self.slots)):
                own[position] = 0
                for code in self.candidates[position]:
                    step = steps[position, code]
                    if step <= BINS:
                        own[position, step:] += own[position + 1, : BINS + 1 - step]
        ways[self.cost.reserve[0] > self.budget_ms + abs(self.target_ms) * ROUNDING, 0] = 0  # not even the cheapest fits
        return ways

    @property
    def counts_exactly(self) -> bool:
        """Whether all ways to fill half of the slots can be listed, and there is one sum."""
        middle = self.slots // 2
        halves = [math.prod(map(len, half)) for half in (self.candidates[:middle], self.candidates[middle:])]
        return len(self.cost) == 1 and max(halves) <= HALF

    @cached_property
    def count(self) -> float:
        """How many archs meet the target: exactly, or at most, up to the resolution of the bins."""
        if not self.counts_exactly:
            return min(float(self._completions[:, 0, BINS].sum()), float(math.prod(map(len, self.candidates))))
        middle = self.slots // 2
        first, second = self._listed(0, middle), self._listed(middle, self.slots)
        return float(np.searchsorted(np.sort(first), self.budget_ms[0] - second, side="right").sum())

    def _listed(self, start: int, stop: int) -> Floats:
        """Costs of all ways to fill the slots from ``start`` to before ``stop``, of one sum."""
        sums = np.zeros(1)
        for position in range(start, stop):
            sums = (sums[:, None] + self.cost.entries[0, position, list(self.candidates[position])]).ravel()
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
        """At most ``n`` archs, each uniformly random among those that meet the target by the bins of one sum or another."""
        ways = self._completions[:, 0, BINS]
        if len(ways) == 1:
            return self._draw_by(0, n, rng)
        archs = np.concatenate([self._draw_by(r, int(k), rng) for r, k in enumerate(rng.multinomial(n, ways / ways.sum())) if k])
        # An arch that meets the target by several sums is drawn as many times as often
        times = self._met(archs).sum(axis=1)
        return np.asarray(rng.permutation(archs[rng.random(len(archs)) * np.maximum(times, 1) < 1]))

    def _draw_by(self, number: int, n: int, rng: np.random.Generator) -> Ints:
        """(n, S) archs that meet the target by one sum, up to the bins."""
        steps, completions = self._steps[number], self._completions[number]
        archs = np.zeros((n, self.slots), dtype=np.int64)
        left = np.full(n, BINS)
        for position, codes in enumerate(map(list, self.candidates)):
            after = left[:, None] - steps[position, codes]  # (n, candidates)
            ways = np.where(after >= 0, completions[position + 1, np.maximum(after, 0)], 0.0)
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
        joint = np.zeros((self.slots - 1, self.codes, self.codes)) if pairs is None else pairs
        over = self.cost.reserve[0] - self.budget_ms
        found = [
            best_chain(self.candidates, entries, budget, scores, joint, states=states)
            for entries, budget, lack in zip(self.cost.entries, self.budget_ms, over, strict=True)
            if lack <= max(0.0, over.min())
        ]
        return max(found, key=lambda arch: _value(arch, scores, joint))


def _value(arch: Arch, scores: Floats, pairs: Floats) -> float:
    alone = sum(scores[position, code] for position, code in enumerate(arch))
    return float(alone + sum(pairs[position, arch[position], arch[position + 1]] for position in range(len(pairs))))
