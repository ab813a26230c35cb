"""Regression profiles: entries from whole children alone, for runtimes that run a network as one opaque thing.

Least squares over the children of an orthogonal array. Only sums are seen, so what is common to all operators of a slot
cannot be told from the fixed part; there, a guess from each operator's work decides.
"""

from collections import Counter

import numpy as np
import numpy.typing as npt

from nar_hw.latency.children import Measured
from nar_hw.latency.estimate import Estimate
from nar_hw.latency.schema import Entry
from nar_hw.operators import OpSpec
from nar_hw.space import Arch, SearchSpace

Floats = npt.NDArray[np.float64]


def estimate(space: SearchSpace, measured: Measured[Arch]) -> Estimate:
    """Entries per operator spec, pooled over slots, by bounded least squares: no entry is zero or negative.

    Children count as in `calibrate` (an error of 1 % of the mean, more in slow and less in fast children); the guess for
    an entry counts as +- 100 %.
    """
    from scipy.optimize import lsq_linear

    archs = list(measured.children)
    whole = np.array([np.median(measured.children[arch].whole) for arch in archs])  # (children,)
    guess = _guess(space, archs, whole)
    specs = list(guess)
    calls = np.array([[counts[spec] for spec in specs] for counts in (_calls(space, arch) for arch in archs)], dtype=np.float64)
    noise = 0.01 * np.sqrt(whole * whole.mean())  # (children,)
    prior = np.array(list(guess.values()))  # (specs,)
    left = np.concatenate([np.concatenate([calls, np.ones((len(archs), 1))], axis=1) / noise[:, None], _prior_rows(prior)])
    right = np.concatenate([whole / noise, np.ones(len(specs))])
    lowest = np.append(0.01 * prior, 0.0)
    found = lsq_linear(left, right, (lowest, np.full(len(lowest), np.inf))).x
    residual = (calls @ found[:-1] + found[-1]) / whole - 1
    # Children repeat their error in every round: their number, not that of the runs, decides how sure an entry is.
    spread = max(1.0, float(np.sqrt(np.mean((residual * whole / noise) ** 2))))
    errors = _errors(space, specs, spread**2 * np.linalg.inv(left.T @ left)[:-1, :-1])
    used = (calls > 0).sum(axis=0)
    entries = {
        spec: _entry(spec, float(ms), errors[spec], int(n) * measured.rounds)
        for spec, ms, n in zip(specs, found[:-1], used, strict=True)
    }
    return Estimate(entries=entries, fixed_ms=float(found[-1]), details={"residual_mape": 100 * float(np.mean(np.abs(residual)))})


def _prior_rows(prior: Floats) -> Floats:
    return np.concatenate([np.diag(1 / prior), np.zeros((len(prior), 1))], axis=1)


def _calls(space: SearchSpace, arch: Arch) -> Counter[OpSpec]:
    return Counter(spec for _, _, spec in space.specs(arch))


def _guess(space: SearchSpace, archs: list[Arch], whole: Floats) -> dict[OpSpec, float]:
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
    total = np.array([sum(work[spec] * count for spec, count in _calls(space, arch).items()) for arch in archs])
    return {spec: value * float(whole.mean() / total.mean()) for spec, value in work.items()}


def _errors(space: SearchSpace, specs: list[OpSpec], covariance: Floats) -> dict[OpSpec, float]:
    """Standard error (ms) of each spec against the mean of its slot's operators; the worst of its slots.

    What all operators of a slot have in common is a guess, but it changes no comparison and no prediction.
    """
    number = {spec: index for index, spec in enumerate(specs)}
    errors = dict.fromkeys(specs, 0.0)
    for slot in space.slots:
        calls = np.zeros((len(slot.candidates), len(specs)))
        for row, code in zip(calls, slot.candidates, strict=True):
            for site in slot.sites:
                for spec in space.site_specs(site, code):
                    row[number[spec]] += 1
        contrasts = calls - calls.mean(axis=0)
        deviations = np.sqrt(np.einsum("ij,jk,ik->i", contrasts, covariance, contrasts)) / calls.sum(axis=1)
        for row, deviation in zip(calls, deviations, strict=True):
            for index in np.flatnonzero(row):
                errors[specs[index]] = max(errors[specs[index]], float(deviation))
    return errors


def _entry(spec: OpSpec, ms: float, error: float, n: int) -> Entry:
    p10, p90 = max(ms - 1.28 * error, 0.01 * ms), ms + 1.28 * error
    return Entry(spec=spec, ms=ms, p10=p10, p90=p90, n=n, rel=1.96 * error / ms)
