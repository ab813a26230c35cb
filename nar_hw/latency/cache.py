"""Where a table stops to be a sum: networks so small that their weights stay in the processor's caches from run to run.

The demo's network has 11 MB of weights, its lightest children 1.3 MB, and a core's cache 2 MB: each megabyte that a child has
less than that saves more time than its operators alone would. In the times of whole children this is a straight line that bends
where the cache ends (benchmarks/bench_cache.py). Pairs of neighbouring operators, of any kind, explain no more beside it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from nar_hw.space.space import SearchSpace

Floats = npt.NDArray[np.float64]

SIDE = 4
"""Children that must be on either side of a limit."""
SURE = 2.0
"""Standard errors by which a cache must make the errors of children smaller that were left out of the fit."""
WORTH = 0.005
"""Of a latency: by less than this a table is better left a sum."""
MOST = 0.75
"""Share of its time that the lightest arch may save: it may be lighter than any child, and a line does not go on for ever."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Least squares over whole children, with what is known beforehand of the unknowns."""

    rows: Floats
    """(children, unknowns) how often each unknown is in a child."""
    times: Floats
    """(children,) ms."""
    noise: Floats
    """(children,) ms."""
    known: Floats
    """(priors, unknowns) what is known beforehand, in standard deviations."""
    right: Floats
    """(priors,) of these."""
    lowest: Floats
    """(unknowns,)"""

    def beside(self, column: Floats) -> "Problem":
        """With one more unknown, of which nothing is known but that it is not negative, and (children,) of it in each."""
        return Problem(
            rows=np.column_stack([self.rows, column]),
            times=self.times,
            noise=self.noise,
            known=np.column_stack([self.known, np.zeros(len(self.known))]),
            right=self.right,
            lowest=np.append(self.lowest, 0.0),
        )

    @property
    def left(self) -> Floats:
        """(children + priors, unknowns) in standard deviations."""
        return np.concatenate([self.rows / self.noise[:, None], self.known])

    def solve(self) -> Floats:
        """(unknowns,) none below its lowest."""
        from scipy.optimize import lsq_linear

        bounds = (self.lowest, np.full(len(self.lowest), np.inf))
        return np.asarray(lsq_linear(self.left, np.append(self.times / self.noise, self.right), bounds).x)

    def left_out(self) -> tuple[Floats, Floats]:
        """(children,) relative error of each child when it is left out, and the (unknowns,) of the fit to all, without bounds."""
        inverse = np.linalg.pinv(self.left.T @ self.left, hermitian=True)
        found = inverse @ (self.left.T @ np.append(self.times / self.noise, self.right))
        scaled = self.rows / self.noise[:, None]
        leverage = np.einsum("ij,jk,ik->i", scaled, inverse, scaled)
        return np.abs(self.rows @ found / self.times - 1) / np.maximum(1 - leverage, 1e-6), found


def parameters(space: SearchSpace) -> tuple[int, tuple[dict[str, int], ...]]:
    """Parameters outside the slots, and of each slot's operators; what slots share counts for each."""
    slots = tuple(
        {space.operators[code]: sum(_size(space.module_for(site, code)) for site in slot.sites) for code in slot.candidates}
        for slot in space.slots
    )
    own = sum(row[space.operators[slot.incumbent]] for row, slot in zip(slots, space.slots, strict=True))
    return max(0, _size(space.model) - own), slots


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def limit(problem: Problem, params: Floats, lightest: Floats, least: float) -> float | None:
    """Below how many parameters children save; None where that explains the children no better than a sum does.

    Each limit is judged by every child's error when the others alone are fitted, and the best by whether it makes these errors
    smaller by more than `SURE` standard errors and `WORTH`.

    Args:
        problem: without a cache.
        params: (children,) parameters of each.
        lightest: (unknowns,) of the arch with the fewest parameters.
        least: how many those are.
    """
    if len(params) < 2 * SIDE:
        return None
    ordered = np.unique(params)
    between = (ordered[1:] + ordered[:-1]) / 2
    below = (params[:, None] < between).sum(axis=0)
    plain, _ = problem.left_out()
    best, smallest = None, plain
    for place in between[(below >= SIDE) & (below <= len(params) - SIDE)]:
        errors, found = problem.beside(-saving(params, place)).left_out()
        saved, all_of_it = found[-1] * saving(np.array([least]), place)[0], lightest @ found[:-1]
        if 0 < saved < MOST * all_of_it and errors.mean() < smallest.mean():
            best, smallest = float(place), errors
    gains = plain - smallest
    needed = max(WORTH, SURE * float(gains.std(ddof=1)) / np.sqrt(len(gains)))
    return best if float(gains.mean()) > needed else None


def saving(params: Floats, place: float) -> Floats:
    """Millions of parameters that each of (children,) has less than ``place``."""
    return np.maximum(0.0, place - params) / 1e6
