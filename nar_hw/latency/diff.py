"""Two latency tables of one network side by side: two devices, two runtimes, or one device on two days."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from nar_hw.errors import TableMismatchError
from nar_hw.latency.device import MATTERS
from nar_hw.latency.record import TableSlot
from nar_hw.latency.table import LatencyTable
from nar_hw.records import Record


class Change(Record, frozen=True, kw_only=True):
    """One operator of one slot in both tables."""

    slot: str
    operator: str
    first_ms: float
    second_ms: float
    noise_ms: float | None
    """Half-width of the 95 % confidence interval of the difference; None where a table knows an entry from one network only."""

    @property
    def beyond_noise(self) -> bool | None:
        """Whether the difference is real; None where that is unknown."""
        return None if self.noise_ms is None else abs(self.second_ms - self.first_ms) > self.noise_ms


class Diff(Record, frozen=True, kw_only=True):
    """What `diff` found."""

    conditions: dict[str, tuple[object, object]]
    """Field of the fingerprint -> both values, where they differ."""
    incumbent_ms: tuple[float, float]
    """The network itself in both tables."""
    changes: tuple[Change, ...]
    spearman: float | None
    """Rank correlation of the entries; None where one table has one value for all."""
    flips: tuple[tuple[str, str, str], ...]
    """(slot, a, b): a is faster than b beyond noise in the first table, and slower beyond noise in the second."""


def diff(first: LatencyTable, second: LatencyTable) -> Diff:
    """Compare two tables of the same network, operator by operator where both have an entry.

    Raises TableMismatchError when they are of different networks.
    """
    names = {"model": "name", "input_shape": "input_shape", "manner": "manner"}
    differing = [word for word, name in names.items() if getattr(first.network, name) != getattr(second.network, name)]
    if [slot.name for slot in first.slots] != [slot.name for slot in second.slots]:
        differing.append("slots")
    if differing:
        raise TableMismatchError(
            f"tables can be compared when they are of one network, but these differ in {', '.join(differing)}: "
            "measure both with the same --model, --input, --manner and --slots"
        )
    changes, flips = [], []
    for own, other in zip(first.slots, second.slots, strict=True):
        shared = [name for name in own.candidates if name in other.candidates]
        sides = {name: (_cost(first, own, name), _cost(second, other, name)) for name in shared}
        for name, ((first_ms, first_noise), (second_ms, second_noise)) in sides.items():
            noise = None if first_noise is None or second_noise is None else math.hypot(first_noise, second_noise)
            changes.append(Change(slot=own.name, operator=name, first_ms=first_ms, second_ms=second_ms, noise_ms=noise))
        for pair in combinations(shared, 2):
            orders = [_order(*(sides[name][side] for name in pair)) for side in (0, 1)]
            if orders[0] * orders[1] < 0:
                flips.append((own.name, *(pair if orders[0] < 0 else pair[::-1])))
    return Diff(
        conditions={
            name: (first.fingerprint.get(name), second.fingerprint.get(name))
            for name in (*MATTERS, "date")
            if first.fingerprint.get(name) != second.fingerprint.get(name)
        },
        incumbent_ms=(first.incumbent_ms, second.incumbent_ms),
        changes=tuple(changes),
        spearman=_rank_correlation([item.first_ms for item in changes], [item.second_ms for item in changes]),
        flips=tuple(flips),
    )


def _cost(table: LatencyTable, slot: TableSlot, operator: str) -> tuple[float, float | None]:
    """(ms, half-width in ms) of an operator in a slot."""
    entries = [table.entries[index] for index in slot.candidates[operator]]
    known = [entry.rel * entry.ms for entry in entries if entry.rel is not None]
    return sum(entry.ms for entry in entries), sum(known) if len(known) == len(entries) else None


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's, without SciPy, whose import takes longer than all the rest."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: npt.NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def _order(a: tuple[float, float | None], b: tuple[float, float | None]) -> int:
    """-1 where a is faster than b beyond noise, 1 where slower, 0 where that is unknown."""
    if a[1] is None or b[1] is None or abs(a[0] - b[0]) <= math.hypot(a[1], b[1]):
        return 0
    return -1 if a[0] < b[0] else 1
