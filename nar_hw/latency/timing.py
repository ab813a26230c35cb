"""Measuring so that a busy or drifting machine cancels out, and refusing times that cannot be trusted.

Noise on a shared machine is slow: many runs in a row share it, so a longer row does not help. What is to be compared is
visited in turn, round after round.

Shape legend: visits (rounds, items) milliseconds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from nar_hw.errors import MeasurementError
from nar_hw.runtimes.base import Runtime

if TYPE_CHECKING:
    from rich.progress import Progress

Floats = npt.NDArray[np.float64]
K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Timing:
    """What is kept of many times of one thing."""

    ms: float
    """Median."""
    p10: float
    p90: float
    n: int
    rel: float | None
    """Half-width of the 95 % confidence interval of the median, relative to it; None for fewer than 6 samples."""


def summarize(samples: Sequence[float] | Floats) -> Timing:
    """The statistics of ``samples`` (ms); the interval comes from order statistics, whatever the distribution.

    Raises MeasurementError when there are none, or one of them is not a positive number.
    """
    values = np.sort(_positive("times", samples))
    ms, p10, p90 = (float(value) for value in np.quantile(values, (0.5, 0.1, 0.9)))
    skipped = _skipped(len(values))
    rel = None if skipped is None else float(values[-1 - skipped] - values[skipped]) / 2 / ms
    return Timing(ms=ms, p10=p10, p90=p90, n=len(values), rel=rel)


def _skipped(n: int) -> int | None:
    """How many samples at each end lie outside the 95 % interval of the median; None when all of them are too few."""
    tail, skipped = 0.0, -1
    while True:
        tail += math.exp(math.lgamma(n + 1) - math.lgamma(skipped + 2) - math.lgamma(n - skipped) - n * math.log(2))
        if tail > 0.025:
            return skipped if skipped >= 0 else None
        skipped += 1


def stable(samples: Sequence[float] | Floats, tolerance: float, *, window: int = 5) -> bool:
    """Whether the medians of the last two windows agree within ``tolerance`` (relative): the device has warmed up."""
    if len(samples) < 2 * window:
        return False
    before = float(np.median(samples[-2 * window : -window]))
    last = float(np.median(samples[-window:]))
    return abs(last - before) <= tolerance * last


def interleave(
    items: Mapping[K, Runtime],
    *,
    rounds: int,
    repeats: int = 5,
    progress: "Progress | None" = None,
) -> dict[K, Floats]:
    """Visit all ``items`` in turn, ``rounds`` times; the median of each visit's ``repeats`` runs, (rounds,) ms per item.

    The first visit of each, which may be 50 % off, comes on top and is dropped. A runtime that gives NaN, zero or negative
    times keeps them: `check_samples` names it.
    """
    runtimes = list(items.values())
    task = progress.add_task("measuring", total=(rounds + 1) * len(runtimes)) if progress else None
    visits = np.empty((rounds + 1, len(runtimes)))  # (1 + rounds, items)
    for turn in range(rounds + 1):
        for position, runtime in enumerate(runtimes):
            visits[turn, position] = np.median(runtime.time_ms(repeats))
            if progress and task is not None:
                progress.advance(task)
    return {key: visits[1:, position].copy() for position, key in enumerate(items)}


def check_samples(name: str, samples: Sequence[float] | Floats) -> None:
    """Refuse times (ms, in the order of measuring) that cannot be trusted, saying of ``name`` what is wrong with them.

    Raises MeasurementError for NaN, zero or negative times, for a drift (the last third of at least 6 takes over 1.5
    times as long as the first or the reverse, and most later samples exceed most earlier ones) and for two modes (at
    least 8 samples fall into two groups, of a quarter of them or more each, over 1.3 times apart and narrow beside that).
    """
    values = _positive(name, samples)
    ratio = _drift(values)
    if ratio is not None:
        raise MeasurementError(
            f"{name}: times must not drift, but the last third takes {ratio:.2f} times as long as the first: "
            "let the device warm up, stop other programs and measure again"
        )
    modes = _modes(values)
    if modes is not None:
        raise MeasurementError(
            f"{name}: times must have one mode, but {modes[0]:.4g} ms and {modes[1]:.4g} ms are both frequent: "
            "stop other programs, check clocks and threads, and measure again"
        )


def _positive(name: str, samples: Sequence[float] | Floats) -> Floats:
    values = np.asarray(samples, dtype=np.float64)
    if values.size == 0:
        raise MeasurementError(f"{name}: at least one time is needed, but there are none")
    for wrong, what in ((~np.isfinite(values), "not a number"), (values < 0, "negative"), (values == 0, "zero")):
        if wrong.any():
            raise MeasurementError(
                f"{name}: times must be positive, but {int(wrong.sum())} of {values.size} are {what}: "
                "the runtime's clock or profile does not work here"
            )
    return values


def _drift(values: Floats) -> float | None:
    """last third / first third when that is a trend, else None."""
    third = len(values) // 3
    if third < 2:
        return None
    ratio = float(np.median(values[-third:]) / np.median(values[:third]))
    later = np.sign(values[None, :] - values[:, None])[np.triu_indices(len(values), 1)]
    concordance = float(later.mean())  # Kendall's tau: 1 when every later sample is larger
    return ratio if max(ratio, 1 / ratio) > 1.5 and abs(concordance) > 0.5 else None


def _modes(values: Floats) -> tuple[float, float] | None:
    """The medians of the two groups into which ``values`` fall, or None when they do not."""
    ordered = np.sort(values)
    n = len(ordered)
    fewest = math.ceil(n / 4)
    if n < 8:
        return None
    gaps = np.diff(ordered)[fewest - 1 : n - fewest]
    cut = int(np.argmax(gaps)) + fewest
    low, high = ordered[:cut], ordered[cut:]
    fast, slow = float(np.median(low)), float(np.median(high))
    spread = max(float(np.median(np.abs(low - fast))), float(np.median(np.abs(high - slow))))
    apart = float(gaps.max()) > 6 * spread
    return (fast, slow) if apart and slow > 1.3 * fast else None
