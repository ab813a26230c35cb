"""A cost of an arch as the least of a few sums over its slots; most costs are one sum.

Shape legend: N archs, R sums, S slots, V operator codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nar_hw.space.spec import Arch

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sums:
    """``min over r of fixed[r] + sum over slots s of entries[r, s, arch[s]]``.

    A minimum of sums keeps what makes sums exact: an arch is under a limit where one of its sums is, so that each can be solved,
    counted and drawn from alone.
    """

    entries: Floats
    """(R, S, V); infinite where a code is no candidate."""
    fixed: Floats
    """(R,): what no choice changes."""

    @classmethod
    def one(cls, entries: Floats, fixed: float) -> "Sums":
        """An additive cost, of (S, V) entries."""
        return cls(entries=entries[None], fixed=np.array([fixed]))

    def __len__(self) -> int:
        """R."""
        return len(self.fixed)

    def each(self, archs: Sequence[Arch] | NDArray[np.int64]) -> Floats:
        """(N, R) all sums of (N, S) archs."""
        slots = self.entries.shape[1]
        codes = np.asarray(archs, dtype=np.int64).reshape(-1, slots)
        return np.stack([entries[np.arange(slots), codes].sum(axis=1) for entries in self.entries], axis=1) + self.fixed

    def of(self, archs: Sequence[Arch] | NDArray[np.int64]) -> Floats:
        """(N,) costs of (N, S) archs; infinite where a code is no candidate."""
        return np.asarray(self.each(archs).min(axis=1))

    @cached_property
    def reserve(self) -> Floats:
        """(S + 1, R): the least that the slots from each position on can add to each sum."""
        least = self.entries.min(axis=2).T  # (S, R)
        return np.vstack([least[::-1].cumsum(axis=0)[::-1], np.zeros(len(self))])

    @cached_property
    def least(self) -> float:
        """The cost of the cheapest arch."""
        return float((self.fixed + self.reserve[0]).min())

    @cached_property
    def most(self) -> float:
        """The cost of the dearest arch: exact for one or two sums, an upper bound for more."""
        finite = np.where(np.isfinite(self.entries), self.entries, -np.inf)
        dearest = finite.argmax(axis=2)  # (R, S)
        tops = self.each(dearest)
        bound = float(np.diag(tops).min())  # no arch costs more than the dearest by one sum
        known = float(tops.min(axis=1).max())
        return bound if len(self) != 2 or known >= bound else max(known, self._most_of_two(finite, known))

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
