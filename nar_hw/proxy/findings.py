"""What a study's distances say: quartiles of the metric in every phase, and the five findings of Lasky et al. (their section 5).

Shape legend: E epochs, K batches in ascending order of the metric.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nar_hw.records import Record

Matrix = NDArray[np.float64]
Flags = NDArray[np.bool_]
Verdict = Literal["confirmed", "contradicted", "undecided", "not tested"]
QUARTERS = ("lowest", "second", "third", "highest")
LEAST_BATCHES = 8
"""So that quarters and tails have two batches or more."""


class Interval(Record, frozen=True, kw_only=True):
    """A mean, in percent of the phase's mean distance, with its 95 % confidence interval over batches."""

    mean: float
    low: float
    high: float


class Quarter(Record, frozen=True, kw_only=True):
    """The batches of a quarter of the metric in one phase."""

    phase: int
    """From 1."""
    quarter: str
    distance: float
    """Mean distance to the full gradient."""
    difference: Interval
    """From the mean of all batches of the same epochs."""


class Finding(Record, frozen=True, kw_only=True):
    """A finding of the paper and what this run says of it."""

    number: int
    text: str
    verdict: Verdict
    differences: tuple[Interval, ...]
    """How much farther the group's batches are than the others, in every phase that the finding is about."""


def _places(count: int) -> Matrix:
    return (np.arange(count) + 0.5) / count


def _brightest(count: int) -> Flags:
    return _places(count) > 0.75


def _outer(count: int) -> Flags:
    return np.abs(_places(count) - 0.5) > 0.4


def _inner(count: int) -> Flags:
    return ~_outer(count)


@dataclass(frozen=True)
class _Claim:
    metrics: tuple[str, ...]
    text: str
    group: Callable[[int], Flags]
    nearer: bool
    later: bool = False
    """About every phase but the first."""


CLAIMS = (
    _Claim(("intensity",), "first phase: the quarter of highest intensity is nearest to the full gradient", _brightest, True),
    _Claim(("perceptual",), "first phase: the quarter least like the mean image is nearest", _brightest, True),
    _Claim(("colour",), "first phase: batches outside the middle 80 % of colour are nearer", _outer, True),
    _Claim(("edges",), "first phase: batches inside the middle 80 % of edges are nearer", _inner, True),
    _Claim(
        ("intensity", "colour", "edges", "perceptual"),
        "later phases: batches outside the middle 80 % of the metric are farther",
        _outer,
        nearer=False,
        later=True,
    ),
)


def relative(distances: Matrix, phases: Sequence[range]) -> list[Matrix]:
    """The distance of each batch in percent of its epochs' means, less 100, (K,) for every phase."""
    parts = [distances[phase.start : phase.stop] for phase in phases]
    return [100 * ((part / part.mean(axis=1, keepdims=True)).mean(axis=0) - 1) for part in parts]


def quarters(distances: Matrix, phases: Sequence[range]) -> list[Quarter]:
    """The four quarters of the batches (E, K) in every phase, from the lowest of the metric to the highest."""
    found = []
    for number, (phase, values) in enumerate(zip(phases, relative(distances, phases), strict=True), 1):
        parts = np.array_split(np.arange(distances.shape[1]), len(QUARTERS))
        for name, part in zip(QUARTERS, parts, strict=True):
            mean = float(distances[phase.start : phase.stop, part].mean())
            found.append(Quarter(phase=number, quarter=name, distance=mean, difference=_mean(values[part])))
    return found


def findings(metric: str, distances: Matrix, phases: Sequence[range]) -> list[Finding]:
    """The five findings. One is confirmed (contradicted) where all of its intervals lie on its (the other) side of 0."""
    values = relative(distances, phases)
    found = []
    for number, claim in enumerate(CLAIMS, 1):
        about = (values[1:] if claim.later else values[:1]) if metric in claim.metrics else []
        differences = tuple(_contrast(part, claim.group(distances.shape[1])) for part in about)
        found.append(
            Finding(
                number=number,
                text=claim.text,
                verdict=_verdict(differences, claim.nearer) if differences else "not tested",
                differences=differences,
            )
        )
    return found


def _verdict(differences: Sequence[Interval], nearer: bool) -> Verdict:
    below, above = all(item.high < 0 for item in differences), all(item.low > 0 for item in differences)
    if (below, above)[not nearer]:
        return "confirmed"
    return "contradicted" if (below, above)[nearer] else "undecided"


def _mean(values: Matrix) -> Interval:
    """Student's interval."""
    margin = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return Interval(mean=float(values.mean()), low=float(values.mean() - margin), high=float(values.mean() + margin))


def _contrast(values: Matrix, group: Flags) -> Interval:
    """Mean of the group less that of the others, with Welch's interval."""
    result = stats.ttest_ind(values[group], values[~group], equal_var=False)
    interval = result.confidence_interval(0.95)
    mean = float(values[group].mean() - values[~group].mean())
    return Interval(mean=mean, low=float(interval.low), high=float(interval.high))
