"""A cost of an arch as the least of a few sums over its slots; most costs are one sum. Some grow faster than that: see `Bend`.

Shape legend: N archs, R sums, S slots, V operator codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from nar_hw.records import Record
from nar_hw.space.spec import Arch

Floats = NDArray[np.float64]


class Bend(Record, frozen=True, kw_only=True):
    """A latency that grows faster than a sum: ``sum + per_ms * (sum - at_ms) ** 2``.

    The more memory a network goes through, the less of it is still in the caches when the next one reads it.
    """

    per_ms: Annotated[float, Meta(gt=0)]
    """Milliseconds for each square millisecond."""
    at_ms: Annotated[float, Meta(gt=0)]
    """Where latency and sum are the same: an operator costs its entry there, less in faster networks and more in slower ones."""

    @property
    def lowest_ms(self) -> float:
        """The sum from which on a larger sum is a larger latency."""
        return self.at_ms - 0.5 / self.per_ms

    def bent(self, ms: Any) -> Any:
        """The latencies of sums, a number or an array, ms."""
        return ms + self.per_ms * (ms - self.at_ms) ** 2

    def straight(self, ms: Any) -> Any:
        """The sums of latencies, a number or an array, ms; minus infinity for a latency that no sum has."""
        square = 1 + 4 * self.per_ms * (np.asarray(ms, dtype=np.float64) - self.at_ms)
        root = np.where(square >= 0, np.sqrt(np.maximum(square, 0)), -np.inf)
        return (self.at_ms + (root - 1) / (2 * self.per_ms))[()]

    def slope(self, ms: float) -> float:
        """What a millisecond more is worth at a sum."""
        return 1 + 2 * self.per_ms * (ms - self.at_ms)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sums:
    """``min over r of fixed[r] + sum over slots s of entries[r, s, arch[s]]``, bent where there is a ``bend``.

    A minimum of sums keeps what makes sums exact: an arch is under a limit where one of its sums is, so that each can be solved,
    counted and drawn from alone. So does a bend: an arch is under a limit where its sum is under the limit's own.
    """

    entries: Floats
    """(R, S, V); infinite where a code is no candidate."""
    fixed: Floats
    """(R,): what no choice changes."""
    bend: Bend | None = None

    @classmethod
    def one(cls, entries: Floats, fixed: float) -> "Sums":
        """An additive cost, of (S, V) entries."""
        return cls(entries=entries[None], fixed=np.array([fixed]))

    def __len__(self) -> int:
        """R."""
        return len(self.fixed)

    def each(self, archs: Sequence[Arch] | NDArray[np.int64]) -> Floats:
        """(N, R) all sums of (N, S) archs, not bent."""
        slots = self.entries.shape[1]
        codes = np.asarray(archs, dtype=np.int64).reshape(-1, slots)
        return np.stack([entries[np.arange(slots), codes].sum(axis=1) for entries in self.entries], axis=1) + self.fixed

    def of(self, archs: Sequence[Arch] | NDArray[np.int64]) -> Floats:
        """(N,) costs of (N, S) archs; infinite where a code is no candidate."""
        return self.bent(np.asarray(self.each(archs).min(axis=1)))

    def bent(self, costs: Floats) -> Floats:
        """The costs of sums."""
        return costs if self.bend is None else np.asarray(self.bend.bent(costs))

    def limit(self, cost: float) -> float:
        """What the least sum of an arch may be that costs at most so much."""
        return cost if self.bend is None else float(self.bend.straight(cost))

    def slope(self, cost: float) -> float:
        """How fast costs grow with their sum at a cost."""
        return 1.0 if self.bend is None else self.bend.slope(self.limit(cost))

    @cached_property
    def reserve(self) -> Floats:
        """(S + 1, R): the least that the slots from each position on can add to each sum."""
        least = self.entries.min(axis=2).T  # (S, R)
        return np.vstack([least[::-1].cumsum(axis=0)[::-1], np.zeros(len(self))])

    @cached_property
    def least(self) -> float:
        """The cost of the cheapest arch."""
        return float(self.bent((self.fixed + self.reserve[0]).min()))

    @cached_property
    def most(self) -> float:
        """The cost of the dearest arch: exact for one or two sums, an upper bound for more."""
        finite = np.where(np.isfinite(self.entries), self.entries, -np.inf)
        dearest = finite.argmax(axis=2)  # (R, S)
        tops = self.each(dearest)
        bound = float(np.diag(tops).min())  # no arch costs more than the dearest by one sum
        known = float(tops.min(axis=1).max())
        if len(self) == 2 and known < bound:
            bound = max(known, self._most_of_two(finite, known))
        return float(self.bent(np.array(bound)))

    def _most_of_two(self, finite: Floats, known: float) -> float:
        """The largest minimum of two sums where it is more than ``known``, by the partial archs that no other beats in both."""
        ahead = np.vstack([finite.max(axis=2).T[::-1].cumsum(axis=0)[::-1], np.zeros(2)])  # (S + 1, 2)
        parts = self.fixed[None]  # (P, 2)
        for position in range(finite.shape[1]):
            added = finite[:, position, np.isfinite(finite[0, position])].T  # (candidates, 2)
            parts = (parts[:, None] + added).reshape(-1, 2)
            parts = parts[(parts + ahead[position + 1]).min(axis=1) > known]
            parts = parts[np.lexsort((-parts[:, 1], -parts[:, 0]))]
            best = np.maximum.accumulate(parts[:, 1])
            parts = parts[np.append(True, best[1:] > best[:-1])[: len(parts)]]
        return float(parts.min(axis=1).max(initial=known))
