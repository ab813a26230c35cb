"""Memory beside time: by how much the memory in use rises while a child is loaded and run.

Children differ in memory by their weights: a straight line in their parameters explains it, with a slope of one to three copies
of each weight, as the runtime keeps them in the layouts of its kernels. What lies between layers has the size that the network's
own layers give it, whatever the operators are.
"""

import numpy as np

from nar_hw.latency.cache import parameters
from nar_hw.latency.children import Measured
from nar_hw.latency.record import Memory
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch

FEWEST = 4
"""Children that a line is fitted to, and judged by."""
LEAST = 0.01
"""By how much more the heaviest child must take than the lightest, as a share of what children take."""


def fitted(space: SearchSpace, measured: Measured[Arch]) -> Memory | None:
    """The line through the memory of children; None where fewer than FEWEST are known, or where more weights do not take more."""
    known = {arch: times.mib for arch, times in measured.children.items() if times.mib is not None}
    own = known.get(space.incumbent)
    if own is None or own <= 0 or len(known) < FEWEST:
        return None
    fixed, slots = parameters(space)
    params = np.array([fixed + sum(map(dict.__getitem__, slots, space.names(arch))) for arch in known]) / 1e6  # (children,)
    mib = np.array(list(known.values()))
    rows = np.stack([np.ones_like(params), params], axis=1)
    if np.ptp(params) == 0:
        return None
    start, slope = np.linalg.lstsq(rows, mib, rcond=None)[0]
    if start < 0:  # nothing takes less than its weights
        rows, start, slope = rows[:, 1:], 0.0, float(params @ mib / (params @ params))
    if slope * np.ptp(params) < LEAST * mib.mean():
        return None
    leverage = np.einsum("ij,jk,ik->i", rows, np.linalg.inv(rows.T @ rows), rows)
    left_out = (start + slope * params - mib) / (1 - leverage)
    kept = mib > 0
    return Memory(
        fixed_mib=_short(start),
        mib_per_million=_short(slope),
        incumbent_mib=_short(own),
        children=len(known),
        mape=_short(100 * float(np.mean(np.abs(left_out[kept] / mib[kept])))),
    )


def _short(value: float) -> float:
    """Four significant digits: pages of 4 KiB are counted."""
    return float(f"{value:.4g}")
