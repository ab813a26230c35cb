"""The end of a search: the best archs are scored on the whole validation split and measured, and one is chosen."""

import math
from collections.abc import Collection, Sequence

import numpy as np

from nar_hw.distributed import Measure, by_the_first
from nar_hw.errors import MeasurementError, TargetError
from nar_hw.records import replace
from nar_hw.search.budget import Budget
from nar_hw.search.feasible import Feasible
from nar_hw.search.result import Scored, SearchResult, Standing, choose, front
from nar_hw.search.run import SearchRun
from nar_hw.space.spec import Arch

RECENT = 0.25
"""Share of the epochs whose scores count when archs are chosen for the final scoring: older weights scored otherwise."""
ROUNDS = 2
"""How often finalists are measured at most."""
OTHERS = 4
"""Random archs drawn for each that is wanted, of which some come twice."""


def conclude(run: SearchRun, measure: Measure | None) -> SearchResult:
    """Score the best archs on the whole validation split, measure the best of these, and choose.

    Where the device is slower than the table says and all of them miss the target, others that should meet it are tried.

    Raises MeasurementError when ``measure`` did not return a positive time for each arch.
    """
    budget = run.budget
    run.scorer.renew()
    finalists, rescored = _finalists(run, budget.feasible, measure, ())
    for _ in range(ROUNDS - 1):
        if measure is None or any(item.met for item in finalists):
            break
        slower = float(np.median([item.ms / item.predicted_ms for item in finalists]))
        try:
            tighter = budget.tightened(slower).feasible
        except TargetError:
            break  # no arch is fast enough
        more = _finalists(run, tighter, measure, {item.arch for item in finalists})
        finalists, rescored = finalists + more[0], rescored + more[1]
    finalists.sort(key=_rank)
    known = {item.arch: item for item in (*rescored, *finalists)}
    earlier = [_scored(budget, arch, accuracy) for arch, (_, accuracy, _) in run.scores.items() if arch not in known]
    everything = (*known.values(), *earlier)
    pick = choose(finalists)
    first, *others = budget.costs
    return SearchResult(
        pick=pick,
        target_ms=first.target,
        others=tuple(Standing(name=item.name, cost=float(item.of([pick.arch])[0]), target=item.target) for item in others),
        finalists=tuple(finalists),
        pareto=front(everything),
        scored=everything,
        history=tuple(run.history),
    )


def _finalists(
    run: SearchRun, limits: Feasible, measure: Measure | None, known: Collection[Arch]
) -> tuple[list[Scored], list[Scored]]:
    """The best archs within ``limits`` that are not ``known``, measured; and all that were scored to find them."""
    hopefuls = _hopefuls(run, limits, known)
    accuracies = run.scorer.on_all(hopefuls)
    rescored = sorted((_scored(run.budget, *item) for item in zip(hopefuls, accuracies, strict=True)), key=_rank)
    finalists = rescored[: run.config.finalists]
    return (finalists if measure is None or not finalists else _measured(run.budget, finalists, measure)), rescored


def _hopefuls(run: SearchRun, limits: Feasible, known: Collection[Arch]) -> list[Arch]:
    """Distinct archs within ``limits``: the strategy's own choice, those with the best recent rewards, then others."""
    wanted = run.config.rescored
    recent = run.epochs - max(1, RECENT * run.config.epochs)
    scored = [(reward, arch) for arch, (reward, _, epoch) in run.scores.items() if epoch > recent]
    scored.sort(key=lambda item: -item[0])
    best = run.strategy.best()
    others = limits.sample(OTHERS * wanted, np.random.default_rng(run.rng.getrandbits(32)))
    archs = dict.fromkeys(
        [*([] if best is None else [best]), *(arch for _, arch in scored), *run.strategy.paths(wanted), *others]
    )
    fitting = [arch for arch, meets in zip(archs, limits.meets(list(archs)), strict=True) if meets and arch not in known]
    return fitting[:wanted]


def _measured(budget: Budget, finalists: Sequence[Scored], measure: Measure) -> list[Scored]:
    archs = [item.arch for item in finalists]
    times = [float(ms) for ms in by_the_first(measure)(archs)]
    if len(times) != len(archs) or not all(math.isfinite(ms) and ms > 0 for ms in times):
        raise MeasurementError(
            f"measure must return one positive time in ms for each of {len(archs)} archs, but returned {times}"
        )
    loads = budget.loads(archs, times).tolist()
    return [
        replace(item, measured_ms=ms, load=max(item.load, load)) for item, ms, load in zip(finalists, times, loads, strict=True)
    ]


def _scored(budget: Budget, arch: Arch, accuracy: float) -> Scored:
    predicted, load = budget.latency_ms([arch])[0], budget.loads([arch])[0]
    return Scored(arch=arch, accuracy=accuracy, predicted_ms=float(predicted), load=float(load))


def _rank(item: Scored) -> tuple[float, float]:
    """By falling accuracy, of equals the faster first."""
    return -item.accuracy, item.predicted_ms
