"""The end of a search: the best archs are scored on the whole validation split and measured, and one is chosen."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from nar_hw.distributed import Measure, on_rank_zero
from nar_hw.errors import MeasurementError, TargetError
from nar_hw.search.budget import Budget
from nar_hw.search.feasible import ROUNDING, Feasible
from nar_hw.search.result import Outcome, Scored, SearchResult, Standing, choose, front
from nar_hw.search.run import Player, SearchRun
from nar_hw.space.spec import Arch

RECENT = 0.25
"""Share of the epochs whose scores count when archs are chosen for the final scoring: older weights scored otherwise."""
ROUNDS = 2
"""How often finalists are measured at most."""
OTHERS = 4
"""Random archs drawn for each that is wanted, of which some come twice."""


def conclude(run: SearchRun, measure: Measure | None) -> SearchResult:
    """For each target, score the best archs on the whole validation split, measure the best of these, and choose.

    The finalists of all targets are measured in one session. Where the device is slower than the table says and all finalists of
    a target miss it, others that should meet it are tried.

    Raises MeasurementError when ``measure`` did not return a positive time for each arch.
    """
    run.scorer.renew()
    accuracies: dict[Arch, float] = {}
    times: dict[Arch, float] = {}
    finalists: list[list[Arch]] = [[] for _ in run.players]
    limits: list[Feasible | None] = [player.budget.feasible for player in run.players]
    for _ in range(ROUNDS):
        for player, own, within in zip(run.players, finalists, limits, strict=True):
            if within is not None:
                own += _finalists(run, player, within, accuracies, own)
        if measure is None:
            break
        new = [arch for arch in dict.fromkeys(arch for own in finalists for arch in own) if arch not in times]
        times.update(zip(new, _measured(new, measure), strict=True) if new else ())
        limits = [_slower(player.budget, own, times) for player, own in zip(run.players, finalists, strict=True)]
        if not any(limits):
            break
    outcomes = tuple(
        _outcome(player.budget, [_scored(player.budget, arch, accuracies[arch], times.get(arch)) for arch in own])
        for player, own in zip(run.players, finalists, strict=True)
    )
    budget = run.players[0].budget
    known = {**{arch: accuracy for arch, (accuracy, _) in run.scores.items()}, **accuracies}
    everything = tuple(_scored(budget, arch, accuracy, times.get(arch)) for arch, accuracy in known.items())
    return SearchResult(outcomes=outcomes, pareto=front(everything), scored=everything, history=tuple(run.history))


def _outcome(budget: Budget, finalists: list[Scored]) -> Outcome:
    finalists.sort(key=_rank)
    pick = choose(finalists)
    others = budget.costs[1:] if budget.timed else budget.costs if budget.limited else ()
    return Outcome(
        target_ms=budget.costs[0].target if budget.timed else None,
        pick=pick,
        others=tuple(Standing(name=item.name, cost=float(item.of([pick.arch])[0]), target=item.target) for item in others),
        finalists=tuple(finalists),
    )


def _finalists(
    run: SearchRun, player: Player, limits: Feasible, accuracies: dict[Arch, float], known: Collection[Arch]
) -> list[Arch]:
    """The best archs within ``limits`` that are not ``known``; all that were scored to find them join ``accuracies``."""
    hopefuls = _hopefuls(run, player, limits, known)
    new = [arch for arch in hopefuls if arch not in accuracies]
    accuracies.update(zip(new, run.scorer.on_all(new), strict=True))
    ranked = sorted((_scored(player.budget, arch, accuracies[arch], None) for arch in hopefuls), key=_rank)
    return [item.arch for item in ranked[: run.config.finalists]]


def _slower(budget: Budget, finalists: Sequence[Arch], times: Mapping[Arch, float]) -> Feasible | None:
    """What should meet the target on a device that is slower than predicted; None where a finalist does, or nothing can."""
    measured = [times[arch] for arch in finalists]
    if not finalists or min(budget.loads(finalists, measured)) <= 1 + ROUNDING:
        return None
    try:
        return budget.tightened(float(np.median(np.array(measured) / budget.latency_ms(finalists)))).feasible
    except TargetError:
        return None


def _hopefuls(run: SearchRun, player: Player, limits: Feasible, known: Collection[Arch]) -> list[Arch]:
    """Distinct archs within ``limits``: the strategy's own choice, those with the best recent rewards, then others."""
    wanted = run.config.rescored
    recent = run.epochs - max(1, RECENT * run.config.epochs)
    scored = [(arch, accuracy) for arch, (accuracy, epoch) in run.scores.items() if epoch > recent]
    rewards = run.rewards(player.budget, [arch for arch, _ in scored], [accuracy for _, accuracy in scored])
    order = np.argsort(-rewards, kind="stable")
    best = player.strategy.best()
    others = limits.sample(OTHERS * wanted, np.random.default_rng(run.rng.getrandbits(32)))
    archs = dict.fromkeys(
        [*([] if best is None else [best]), *(scored[index][0] for index in order), *player.strategy.paths(wanted), *others]
    )
    fitting = [arch for arch, meets in zip(archs, limits.meets(list(archs)), strict=True) if meets and arch not in known]
    return fitting[:wanted]


def _measured(archs: list[Arch], measure: Measure) -> list[float]:
    times = [float(ms) for ms in on_rank_zero(measure)(archs)]
    if len(times) != len(archs) or not all(math.isfinite(ms) and ms > 0 for ms in times):
        raise MeasurementError(
            f"measure must return one positive time in ms for each of {len(archs)} archs, but returned {times}"
        )
    return times


def _scored(budget: Budget, arch: Arch, accuracy: float, measured_ms: float | None) -> Scored:
    load = float(budget.loads([arch])[0])
    if measured_ms is not None:
        load = max(load, float(budget.loads([arch], [measured_ms])[0]))
    predicted = float(budget.latency_ms([arch])[0]) if budget.timed else None
    return Scored(arch=arch, accuracy=accuracy, predicted_ms=predicted, load=load, measured_ms=measured_ms)


def _rank(item: Scored) -> tuple[float, float]:
    """By falling accuracy, of equals the faster first."""
    return -item.accuracy, item.load if item.predicted_ms is None else item.predicted_ms
