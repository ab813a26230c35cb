"""How well a table predicts: children that its profile has not seen, measured end to end."""

import math
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nar_hw.errors import TableError, UserError
from nar_hw.latency.children import Measured, Steps, alone, measure, says
from nar_hw.latency.contention import together
from nar_hw.latency.designs import held_out, profiled
from nar_hw.latency.journal import Journal
from nar_hw.latency.loader import ChildFiles, ChildLoader, children_at_once
from nar_hw.latency.record import Pair, Reloaded, Validation
from nar_hw.latency.table import LatencyTable
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch

if TYPE_CHECKING:
    from rich.progress import Progress

Floats = npt.NDArray[np.float64]

VALIDATION_ROUNDS = 10
TOLERANCE = 0.02
"""Relative standard error of the children's times at which fewer rounds are enough."""
NOISY = 3.0
"""Noise floor in percent above which a table is marked."""
NOISY_NOTE = "noisy machine: measure again"
RELOADED = 8
"""Children that are loaded and measured again at the end."""
RELOADED_ROUNDS = 6
MEANWHILE = "while it was validated: "
"""How notes on the validation begin."""


def validate(
    table: LatencyTable,
    space: SearchSpace,
    *,
    measured: Measured[Arch] | None = None,
    config: RuntimeConfig | None = None,
    children: int = 40,
    seed: int = 1,
    rounds: int = VALIDATION_ROUNDS,
    tolerance: float = TOLERANCE,
    budget_s: float | None = None,
    journal: Journal | None = None,
    files: ChildFiles | None = None,
    progress: "Progress | None" = None,
) -> Validation:
    """Measure random children and compare them with the table; the result is what a table keeps as its validation.

    The network itself is measured beside them, and times are given at the speed it had when the table was made.

    Args:
        table: checked against ``space`` first.
        space: the search space.
        measured: held-out children that were measured beside those of the table; by default they are measured now.
        config: how to run the children; by default as the table's fingerprint says.
        children: how many; fewer where the space has no more.
        seed: of the choice of children; another one than the profile's.
        rounds: visits of each child at most.
        tolerance: relative standard error of their times at which fewer rounds are enough; 0 for all rounds.
        budget_s: seconds after which no more rounds are begun.
        journal: keeps what is measured.
        files: shared with other measurements of the same space.
        progress: shows a bar.

    Raises:
        TableError: the table is for another space or holds no medians, or the space has fewer than 3 children to hold out.
        MeasurementError: times that cannot be trusted.
    """
    if children < 3:
        raise UserError(f"a validation needs 3 children or more, but got children={children}")
    table.require_medians()
    table.check(space)
    archs = list(measured.children) if measured else held_out(space, children, exclude=profiled(space, table.method), seed=seed)
    if len(archs) < 3:
        raise TableError(
            f"a validation needs at least 3 children that were not profiled, but there are {len(archs)}: pass validate=0"
        )
    config = config or table.config
    with ExitStack() as stack:
        stack.enter_context(alone([config], progress))
        start = time.monotonic()
        load = stack.enter_context(ChildLoader(space, config, files))
        deadline = math.inf if budget_s is None else start + budget_s

        def session(stage: str, archs: list[Arch], rounds: int) -> Measured[Arch]:
            return measure(
                load,
                archs,
                load.incumbent,
                at_once=children_at_once(space),
                rounds=rounds,
                threads=load.threads,
                deadline=deadline,
                tolerance=tolerance,
                stage=stage,
                journal=journal,
                tick=Steps(progress, stage, (rounds + 1) * len(archs)),
                say=says(progress),
            )

        beside = measured is not None
        measured = measured or session("validation", archs, rounds)
        middle = time.monotonic()
        again = session("reloaded", archs[:RELOADED], min(RELOADED_ROUNDS, measured.rounds)) if middle < deadline else None
        found = compare(table, space, measured, seed=seed, seconds=round(time.monotonic() - start, 1))
        if again is None:
            return found
        begun = middle - measured.contention.seconds if measured.contention else start
        apart = (middle + time.monotonic()) / 2 - (begun + middle) / 2
        # What the machine did while the table was measured is said of the table
        busy = again.contention if beside else together((measured.contention, again.contention))
        return replace(found, reloaded=between(measured, again, apart_s=apart), contention=busy)


def between(first: Measured[Arch], second: Measured[Arch], *, apart_s: float) -> Reloaded:
    """How much two measurements of the same children differ, each beside the network itself."""
    both = [
        np.array([np.median(measured.children[arch].whole) for arch in second.children]) / np.median(measured.reference)
        for measured in (first, second)
    ]
    errors = np.abs(both[1] / both[0] - 1)  # (children,)
    return Reloaded(
        children=len(errors),
        rounds=second.rounds,
        apart_s=round(apart_s, 1),
        mape=_short(100 * float(errors.mean())),
        max_error=_short(100 * float(errors.max())),
    )


def compare(table: LatencyTable, space: SearchSpace, measured: Measured[Arch], *, seed: int, seconds: float) -> Validation:
    """The validation by children that were measured in ``seconds``, chosen by ``seed``."""
    archs = list(measured.children)
    speed = float(np.median(measured.reference)) / table.incumbent_ms
    visits = np.stack([times.whole[: measured.rounds] for times in measured.children.values()]) / speed  # (children, rounds)
    actual, predicted = np.median(visits, axis=1), table.predict(np.array(archs))  # (children,)
    first, second = np.median(visits[:, ::2], axis=1), np.median(visits[:, 1::2], axis=1)
    errors = np.abs(predicted / actual - 1)
    tails = [times.p90 for times in measured.children.values()]
    high = [None if tail is None else tail * ms for tail, ms in zip(tails, actual, strict=True)]
    rank, floor_rank = _ranks(predicted, actual), _ranks(first, second)
    return Validation(
        children=len(archs),
        rounds=measured.rounds,
        seed=seed,
        seconds=seconds,
        # Each half has half of the rounds
        floor_mape=_short(100 * float(np.mean(np.abs(second / first - 1))) / math.sqrt(2)),
        floor_spearman=floor_rank[0],
        mape=_short(100 * float(errors.mean())),
        max_error=_short(100 * float(errors.max())),
        within_5=float(np.mean(errors <= 0.05)),
        within_10=float(np.mean(errors <= 0.10)),
        spearman=rank[0],
        kendall=rank[1],
        speed=_short(speed),
        pairs=tuple(
            Pair(
                arch=space.names(arch),
                predicted_ms=_short(guess),
                measured_ms=_short(ms),
                p90_ms=None if most is None else _short(most),
            )
            for arch, guess, ms, most in zip(archs, predicted, actual, high, strict=True)
        ),
        contention=measured.contention,
        p90_mape=_p90_mape(table, predicted, high),
    )


def _p90_mape(table: LatencyTable, predicted: Floats, high: list[float | None]) -> float | None:
    if table.p90 is None or any(ms is None for ms in high):
        return None
    return _short(100 * float(np.mean(np.abs(table.p90 * predicted / np.array(high, dtype=np.float64) - 1))))


def with_validation(table: LatencyTable, validation: Validation) -> LatencyTable:
    """The table with a validation, marked when the machine was too noisy or busy."""
    notes = tuple(note for note in table.notes if note != NOISY_NOTE and not note.startswith(MEANWHILE))
    if validation.floor_mape > NOISY:
        notes += (NOISY_NOTE,)
    if validation.reloaded is not None and validation.reloaded.mape > NOISY:
        notes += (f"{MEANWHILE}children loaded again took {validation.reloaded.mape:.1f} % more or less: measure again",)
    if validation.contention is not None and validation.contention.note is not None:
        notes += (f"{MEANWHILE}{validation.contention.note}",)
    return replace(table, validation=validation, notes=notes)


def _ranks(first: Floats, second: Floats) -> tuple[float, float]:
    """(Spearman, Kendall) correlation; 0 where one side is all the same, which has no order."""
    from scipy.stats import kendalltau, spearmanr

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0, 0.0
    return _short(float(spearmanr(first, second).statistic)), _short(float(kendalltau(first, second).statistic))


def _short(value: float) -> float:
    """Six significant digits: more would be noise in a file that people read."""
    return float(f"{value:.6g}")
