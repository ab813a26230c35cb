"""What the profiling methods have in common: their result, their averages, and the calibration on whole children."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nar_hw.latency.record import Cache, Entry
from nar_hw.space.spec import OpSpec
from nar_hw.space.sums import Bend

Floats = npt.NDArray[np.float64]

UNKNOWNS = 3
"""That `calibrate` finds."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a method makes of its measurements."""

    entries: dict[OpSpec, Entry]
    fixed_ms: float
    details: dict[str, Any]
    """Fields of the table's `Method` that this one has, numbers."""
    cache: Cache | None = None
    """What small networks save."""
    bend: Bend | None = None
    """How much faster than sums the times grow."""


def half_width(values: Sequence[float], ms: float) -> float | None:
    """Half-width of the 95 % confidence interval of the mean of ``values``, relative to ``ms``; None for one value."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)) / ms)


def mean_of_middle(values: Sequence[float] | Floats) -> float:
    """The interquartile mean: not moved by outliers, and finer than the whole microseconds that a profiler may count in."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def calibrate(whole: Floats, nodes_ms: Floats, nodes: Floats, *, slowdown: float, smallest: float) -> tuple[float, float, float]:
    """(fixed, scale, overhead) with whole = fixed + scale * nodes_ms - overhead * nodes, over children (children,).

    Least squares at an assumed noise of 1 % of the mean, more in slow and less in fast children (between what absolute
    and relative errors ask for). Few children must not run away with it, so scale is 1 +- 0.1 beforehand and overhead
    half +- half of what is possible: the fixed part is not negative, and the overhead lies between 0 and the ``slowdown``
    per node that the profiler causes, and below 0.9 x the ``smallest`` node time of an operator, which keeps every entry
    positive.
    """
    from scipy.optimize import lsq_linear

    noise = 0.01 * np.sqrt(whole * whole.mean())  # (children,)
    most = max(1e-3 * smallest, min(slowdown, 0.9 * smallest))
    # The unknowns are fixed, scale - 1 and overhead - most / 2, so that what is known beforehand of the last two is 0.
    left = np.stack([np.ones_like(whole), nodes_ms, -nodes], axis=1) / noise[:, None]
    right = (whole - nodes_ms + most / 2 * nodes) / noise
    prior = np.diag([0.0, 1 / 0.1, 2 / most])[1:]
    bounds = ([0.0, -0.9, -most / 2], [np.inf, np.inf, most / 2])
    fixed, scale, overhead = lsq_linear(np.concatenate([left, prior]), np.append(right, [0.0, 0.0]), bounds).x
    scale += 1.0
    return float(fixed), float(scale), float(min(most / 2 + overhead, 0.9 * scale * smallest))
