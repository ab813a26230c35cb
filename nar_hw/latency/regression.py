"""Regression profiles: entries from whole children alone, for runtimes that run a network as one opaque thing.

Least squares over the children of an orthogonal array. Only sums are seen, so what is common to all operators of a slot
cannot be separated from the fixed part; there, a guess from each operator's work decides.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nar_hw.latency.cache import Problem, limit, parameters, saving
from nar_hw.latency.children import Measured
from nar_hw.latency.estimate import Estimate
from nar_hw.latency.record import Cache, Entry
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch, OpSpec
from nar_hw.space.sums import Bend

Floats = npt.NDArray[np.float64]

OWN = 4.0
"""Where a network lies in memory moves its time by more than its visits do; the reference is loaded thrice, beside the child."""
SPREAD = 1.0
"""How far an entry may be from what its work suggests, relative (one standard deviation)."""
SURE = 3.0
"""Standard errors of a bend that are believed."""
FEWEST = 16
"""Children from which a bend is made."""
BENDS = 3
"""Fits to times that are made straight by the bend before."""
SLOPE = 0.1
"""What a millisecond more must be worth in the lightest network: no bend is believed that hardly grows there, or falls."""


def estimate(space: SearchSpace, measured: Measured[Arch]) -> Estimate:
    """Entries per operator spec, pooled over slots; beforehand, each is what its work suggests +- `SPREAD`."""
    whole = whole_ms(space, measured)
    found = bent_squares(
        space, whole, lambda times, cached: least_squares(space, times, guess_by_work(space, times), spread=SPREAD, cached=cached)
    )
    archs = list(whole)
    used = np.array([[_calls(space, arch)[spec] > 0 for spec in found.ms] for arch in archs]).sum(axis=0)
    errors = contrast_errors(space, found)
    entries = {
        spec: _entry(spec, ms, errors[spec], int(n) * measured.rounds)
        for (spec, ms), n in zip(found.ms.items(), used, strict=True)
    }
    return Estimate(
        entries=entries,
        fixed_ms=found.fixed_ms,
        details={"residual_mape": found.residual_mape},
        cache=found.cache,
        bend=found.bend,
    )


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What `least_squares` found."""

    ms: dict[OpSpec, float]
    fixed_ms: float
    covariance: Floats
    """(specs, specs) ms squared."""
    residual_mape: float
    """What is left over, in percent."""
    sums: Floats
    """(children,) ms, less what the cache saves."""
    cache: Cache | None
    """What small networks save, where that is seen."""
    bend: Bend | None = None
    """How much faster than sums the times grow: then all else is of times that were made straight."""


def least_squares(
    space: SearchSpace,
    whole: Mapping[Arch, float],
    guess: Mapping[OpSpec, float],
    *,
    spread: float,
    noise: float = 0.01,
    cached: bool = True,
) -> Fit:
    """The entries that best explain whole children (ms), by bounded least squares: none is zero or negative.

    Children count as in `calibrate` (with ``noise``, relative to the mean, more in slow and less in fast children); the ``guess``
    (ms) of an entry counts as +- ``spread``, relative. The fixed part is not guessed. What a cache saves is fitted beside them
    where children that are left out say that there is one, unless ``cached`` is false.
    """
    times = np.array(list(whole.values()))  # (children,)
    specs = list(guess)
    fixed, slots = parameters(space)
    lightest = tuple(
        min(slot.candidates, key=lambda code, sizes=sizes: sizes[space.operators[code]])  # type: ignore[misc]
        for slot, sizes in zip(space.slots, slots, strict=True)
    )
    archs = [*whole, lightest]
    calls = np.array([[counts[spec] for spec in specs] for counts in (_calls(space, arch) for arch in archs)], dtype=np.float64)
    params = np.array([fixed + sum(map(dict.__getitem__, slots, space.names(arch))) for arch in archs], dtype=np.float64)
    rows = np.concatenate([calls, np.ones((len(archs), 1))], axis=1)
    prior = np.array(list(guess.values()))  # (specs,)
    problem = Problem(
        rows=rows[:-1],
        times=times,
        noise=noise * np.sqrt(times * times.mean() / counted(space, whole)),
        known=np.concatenate([np.diag(1 / (spread * prior)), np.zeros((len(prior), 1))], axis=1),
        right=np.full(len(specs), 1 / spread),
        lowest=np.append(0.01 * prior, 0.0),
    )
    place = limit(problem, params[:-1], rows[-1], params[-1]) if cached else None
    if place is not None:
        problem = problem.beside(-saving(params[:-1], place))
    found = problem.solve()
    residual = problem.rows @ found / times - 1
    # Children repeat their error in every round: their number, not that of the runs, decides how sure an entry is.
    scatter = max(1.0, float(np.sqrt(np.mean((residual * times / problem.noise) ** 2))))
    covariance: Floats = np.linalg.inv(problem.left.T @ problem.left).astype(np.float64)
    return Fit(
        ms=dict(zip(specs, map(float, found[: len(specs)]), strict=True)),
        fixed_ms=float(found[len(specs)]),
        covariance=scatter**2 * covariance[: len(specs), : len(specs)],
        residual_mape=100 * float(np.mean(np.abs(residual))),
        sums=problem.rows @ found,
        cache=None if place is None else Cache(params=round(place), ms_per_million=float(found[-1]), fixed=fixed, slots=slots),
    )


def bent_squares(space: SearchSpace, whole: Mapping[Arch, float], fitted: Callable[[Mapping[Arch, float], bool], Fit]) -> Fit:
    """The fit to children (ms), bent where their times are seen to grow faster than sums.

    Args:
        space: the search space, in all of which latencies must grow with their sums.
        whole: the children.
        fitted: what makes a fit of straight times, and whether it may look for a cache.
    """
    plain = fitted(whole, True)
    times = np.array(list(whole.values()))  # (children,)
    bend = None if plain.cache else bend_of(plain.sums, times)
    if bend is None:
        return plain
    for _ in range(BENDS):
        straight = bend.straight(times)
        if straight.min() <= 0:  # no sum is so fast: the bend is one of noise
            return plain
        fit = fitted(dict(zip(whole, map(float, straight), strict=True)), False)
        bend = bend_of(fit.sums, times, sure=0.0)
        if bend is None or bend.slope(_least(space, fit)) < SLOPE:
            return plain
    left = bend.bent(fit.sums) / times - 1
    return replace(fit, bend=bend, residual_mape=100 * float(np.mean(np.abs(left))))


def _least(space: SearchSpace, fit: Fit) -> float:
    """The smallest sum of an arch, ms."""
    return fit.fixed_ms + sum(
        min(sum(fit.ms[spec] for site in slot.sites for spec in space.site_specs(site, code)) for code in slot.candidates)
        for slot in space.slots
    )


def bend_of(sums: Floats, times: Floats, *, sure: float = SURE) -> Bend | None:
    """The bend from ``sums`` (children,) to ``times`` (children,), ms; None where it is not ``sure`` standard errors large."""
    if len(sums) < FEWEST:
        return None
    at = float(sums.mean())
    weight = 1 / np.sqrt(times)  # as in `least_squares`
    left = np.stack([np.ones_like(sums), sums, (sums - at) ** 2], axis=1) * weight[:, None]
    found = np.linalg.lstsq(left, times * weight)[0]
    scatter = float(np.sum((left @ found - times * weight) ** 2)) / (len(sums) - len(found))
    error = float(np.sqrt(scatter * np.linalg.inv(left.T @ left)[-1, -1]))
    return Bend(per_ms=float(found[-1]), at_ms=at) if found[-1] > max(0.0, sure * error) else None


def whole_ms(space: SearchSpace, measured: Measured[Arch]) -> dict[Arch, float]:
    """Milliseconds of each child; of the network itself by its visits as the reference, which are many more."""
    whole = {arch: float(np.median(times.whole)) for arch, times in measured.children.items()}
    return {arch: float(np.median(measured.reference)) if arch == space.incumbent else ms for arch, ms in whole.items()}


def counted(space: SearchSpace, archs: Iterable[Arch]) -> Floats:
    """(children,) as how many children each counts: the network itself as the `OWN` places in which it is loaded."""
    return np.array([OWN if arch == space.incumbent else 1.0 for arch in archs])


def _calls(space: SearchSpace, arch: Arch) -> Counter[OpSpec]:
    return Counter(spec for _, _, spec in space.specs(arch))


def guess_by_work(space: SearchSpace, whole: Mapping[Arch, float]) -> dict[OpSpec, float]:
    """Milliseconds per spec in proportion to its work, so that the children come out right on average."""
    work: dict[OpSpec, float] = {}
    for slot in space.slots:
        for code in slot.candidates:
            for site in slot.sites:
                weights = sum(parameter.numel() for parameter in space.module_for(site, code).parameters())
                for spec, (size_in, size_out) in zip(space.site_specs(site, code), site.calls, strict=True):
                    read, written = spec.c_in * size_in[0] * size_in[1], spec.c_out * size_out[0] * size_out[1]
                    # Multiply-adds, and the maps that are read and written: a value moved costs about ten of them.
                    work[spec] = weights * size_out[0] * size_out[1] + 10.0 * (read + written)
    total = np.array([sum(work[spec] * count for spec, count in _calls(space, arch).items()) for arch in whole])
    return {spec: value * float(np.mean(list(whole.values())) / total.mean()) for spec, value in work.items()}


def leverage(space: SearchSpace, archs: Sequence[Arch], *, spread: float, noise: float) -> float:
    """How much of the variance of these children's times stays in what a table says of them, on average, from 0 to 1.

    It is the mean leverage of a fit (Hoaglin and Welsch 1978) in which each entry is what its work suggests +- ``spread`` and
    each child +- ``noise``, both relative: how exact a table's contrasts are, beside how exact its children are.
    """
    guess = guess_by_work(space, dict.fromkeys(archs, 1.0))
    calls = [_calls(space, arch) for arch in archs]
    rows = np.array([[*(spread * ms * count[spec] / noise for spec, ms in guess.items()), 1 / noise] for count in calls])
    known = np.eye(rows.shape[1])
    known[-1, -1] = 0.0  # nothing is known of the fixed part
    return float(np.trace(np.linalg.solve(rows.T @ rows + known, rows.T @ rows)) / len(archs))


def contrast_errors(space: SearchSpace, fit: Fit) -> dict[OpSpec, float]:
    """Standard error (ms) of each spec against the mean of its slot's operators; the worst of its slots.

    What all operators of a slot have in common is a guess, but it changes no comparison and no prediction.
    """
    specs = list(fit.ms)
    number = {spec: index for index, spec in enumerate(specs)}
    errors = dict.fromkeys(specs, 0.0)
    for slot in space.slots:
        calls = np.zeros((len(slot.candidates), len(specs)))
        for row, code in zip(calls, slot.candidates, strict=True):
            for site in slot.sites:
                for spec in space.site_specs(site, code):
                    row[number[spec]] += 1
        contrasts = calls - calls.mean(axis=0)
        deviations = np.sqrt(np.einsum("ij,jk,ik->i", contrasts, fit.covariance, contrasts)) / calls.sum(axis=1)
        for row, deviation in zip(calls, deviations, strict=True):
            for index in np.flatnonzero(row):
                errors[specs[index]] = max(errors[specs[index]], float(deviation))
    return errors


def _entry(spec: OpSpec, ms: float, error: float, n: int) -> Entry:
    p10, p90 = max(ms - 1.28 * error, 0.01 * ms), ms + 1.28 * error
    return Entry(spec=spec, ms=ms, p10=p10, p90=p90, n=n, rel=1.96 * error / ms)
