"""A multiple-choice knapsack along a chain: one item per slot, a limit of their cost, and a value of neighbouring items.

Shape legend: S slots, V codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Ends:
    """Partial choices that end in one code, by rising cost and value."""

    spent: Floats
    gained: Floats
    before: Ints
    """Index of each one's parent among all partial choices of the slot before."""


def best_chain(
    candidates: Sequence[Sequence[int]], cost: Floats, budget: float, scores: Floats, pairs: Floats, *, states: int
) -> tuple[int, ...]:
    """One code per slot, together at most ``budget``, with the largest sum of ``scores`` (S, V) and ``pairs`` (S - 1, V, V).

    Of the partial choices that end in the same code, only those that no cheaper one beats are kept. Where that leaves more than
    ``states``, the best in each of so many equal intervals of cost are.
    """
    reserve = np.append(cost.min(axis=1)[::-1].cumsum()[::-1], 0.0)
    steps: list[dict[int, _Ends]] = []
    spent, gained, last = np.zeros(1), np.zeros(1), np.zeros(1, dtype=np.int64)
    for position, codes in enumerate(candidates):
        order = np.argsort(spent, kind="stable")
        ends = {}
        for code in codes:
            total = spent[order] + cost[position, code]
            fits = int(np.searchsorted(total, budget - reserve[position + 1], side="right"))
            if not fits and cost[position, code] == cost[position].min():
                fits = 1  # only the cheapest choice of all fits, and rounding is against it
            parents = order[:fits]
            value = gained[parents] + scores[position, code]
            if position:
                value = value + pairs[position - 1, last[parents], code]
            record = np.maximum.accumulate(value)
            keep = _thin(np.flatnonzero(np.append(True, record[1:] > record[:-1])[:fits]), total, max(states // len(codes), 1))
            ends[code] = _Ends(spent=total[keep], gained=value[keep], before=parents[keep])
        steps.append(ends)
        spent, gained = (np.concatenate([getattr(end, name) for end in ends.values()]) for name in ("spent", "gained"))
        last = np.repeat(list(ends), [len(end.spent) for end in ends.values()])
    return _trace(steps, int(gained.argmax()))


def _trace(steps: list[dict[int, _Ends]], index: int) -> tuple[int, ...]:
    """The codes that lead to the partial choice at ``index`` of the last step."""
    found: list[int] = []
    for ends in reversed(steps):
        for code, end in ends.items():
            if index < len(end.spent):
                found.append(code)
                index = int(end.before[index])
                break
            index -= len(end.spent)
    return tuple(reversed(found))


def _thin(keep: Ints, spent: Floats, states: int) -> Ints:
    """The last (and so best) of each of so many equal intervals of latency, where there are more states than that."""
    if len(keep) <= states:
        return keep
    times = spent[keep]
    bins = ((times - times[0]) * (states / (times[-1] - times[0]))).astype(np.int64)
    return np.asarray(keep[np.append(bins[1:] != bins[:-1], True)])
