"""From a search space and a runtime to a latency table."""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nar_hw.errors import MeasurementError, RuntimeUnavailableError, UserError, unknown_name
from nar_hw.latency import in_context, isolated, regression
from nar_hw.latency.children import (
    Measured,
    Steps,
    alone,
    measure,
    p90_of,
    says,
)
from nar_hw.latency.contention import together
from nar_hw.latency.designs import contexts, held_out, orthogonal
from nar_hw.latency.device import MATTERS, fingerprint
from nar_hw.latency.estimate import UNKNOWNS, Estimate
from nar_hw.latency.journal import Journal
from nar_hw.latency.loader import ChildFiles, ChildLoader, children_at_once
from nar_hw.latency.memory import fitted
from nar_hw.latency.record import Entry, Method, TableSlot
from nar_hw.latency.table import LatencyTable
from nar_hw.latency.validate import validate as validated, with_validation
from nar_hw.models.info import ModelInfo
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.runtimes.base import Runtime
from nar_hw.space.network import require_memory
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch, OpSpec
from nar_hw.space.sums import Bend

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["METHODS", "ChildLoader", "profile"]

ROUNDS = 12
"""At most. Six are too few where a machine is noisy for minutes: benchmarks/results/latency_speed.json."""
TOLERANCE = 0.0125
"""Relative standard error, by what visits differ, of what a table says, at which fewer rounds are enough."""
NOISE = 0.02
"""About what a child is known to, relative, when a table is."""
WHOLE = 6
"""Replicates of in-context profiles that are measured as wholes only."""
UNSEEN = "not validated: the profile has seen all children of this small space, or all but one or two"
KNOWN = 0.03
"""Relative standard error of children beyond which a table is not judged by them."""
OPERATORS_AT_ONCE = 24
RELOAD_BY = 0.9
"""Share of a budget after which children are loaded again."""


def profile(
    space: SearchSpace,
    *,
    config: RuntimeConfig,
    model_name: str,
    method: str = "in-context",
    rounds: int = ROUNDS,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    validate: int = 40,
    budget_s: float | None = None,
    journal: Path | None = None,
    resume: bool = False,
    files: ChildFiles | None = None,
    progress: "Progress | None" = None,
) -> LatencyTable:
    """Measure a latency table for ``space`` on the device and runtime of ``config``.

    Args:
        space: the search space.
        config: runtime, device and conditions.
        model_name: what the table says its network is: the --model that builds it again.
        method: one of METHODS. in-context: per-layer times inside K + 1 children for K operators, and 6 K
            more as wholes. regression: least
            squares over whole children, for runtimes without per-layer times. isolated: each operator alone, calibrated on
            about 9 whole children.
        rounds: visits of each child at most; the first ones, which come on top, are dropped.
        tolerance: relative standard error of what the table says at which fewer rounds are enough; 0 for all rounds.
        seed: of the design.
        validate: how many held-out children to measure end to end, in the same rounds; 0 for none.
        budget_s: seconds to spend; rounds, then children are left out to keep it as well as can be.
        journal: file that keeps what is measured while the profile runs; deleted when it is complete.
        resume: go on from what the journal holds.
        files: shared by several profiles of the same space.
        progress: shows bars.

    Raises:
        RunError: the journal was begun under other conditions.
        UnknownNameError: a method or runtime that does not exist.
        RuntimeUnavailableError: the runtime does not work here, or has no per-layer times for in-context.
        MeasurementError: times that cannot be trusted.
    """
    if method not in METHODS:
        raise unknown_name("profiling method", method, METHODS)
    if rounds < 2:
        raise UserError(f"rounds must be at least 2, but got {rounds}")
    if validate < 0:
        raise UserError(f"validate must be a number of children, 0 for none, but got {validate}")
    require_memory(space.model, space.input_shape, config.batch)
    runtime = runtime_class(config.runtime)
    if reason := runtime.unavailable(config):
        raise RuntimeUnavailableError(reason)
    if method == "in-context" and not runtime.layers_on(config):
        raise RuntimeUnavailableError(
            f"{runtime.name} has no per-layer times on {config.device}, which method in-context needs: use method regression"
        )
    space.require_fixed_skips()
    files = files or ChildFiles(space)
    kept = None
    if journal is not None:
        kept = Journal(journal, _conditions(space, config, method, rounds, seed), resume=resume)
    share = math.inf if budget_s is None else budget_s * (RELOAD_BY if validate else 1.0)
    with ExitStack() as stack:
        stack.enter_context(alone([config], progress))
        start = time.monotonic()
        load = stack.enter_context(ChildLoader(space, config, files, memory=True))
        job = _Here(
            space=space,
            config=config,
            load=load,
            rounds=rounds,
            tolerance=tolerance,
            budget_s=share,
            deadline=start + share,
            journal=kept,
            progress=progress,
        )
        asks, details, unseen = design(space, method, seed=seed, budget_s=share, validate=validate)
        *answers, whole = [job.answer(ask) for ask in asks]
    table = table_of(
        space,
        [*answers, whole.without(unseen)],
        method=method,
        details=details,
        mark=fingerprint(config),
        model_name=model_name,
        seed=seed,
        seconds=time.monotonic() - start,
        validate=validate,
    )
    table = replace(table, memory=fitted(space, whole))
    if unseen:
        left = None if budget_s is None else budget_s - (time.monotonic() - start)
        validation = validated(
            table,
            space,
            measured=whole.only(unseen),
            config=config,
            seed=seed + 1,
            tolerance=asks[-1].enough(tolerance),
            budget_s=left,
            journal=kept,
            files=files,
            progress=progress,
        )
        table = with_validation(table, validation)
    if kept:
        kept.close()
    return table


def _conditions(space: SearchSpace, config: RuntimeConfig, method: str, rounds: int, seed: int) -> dict[str, Any]:
    """What must be the same for a profile to go on."""
    mark = fingerprint(config)
    return {
        "space": space_hash(space),
        **{name: mark[name] for name in MATTERS},
        "method": method,
        "rounds": rounds,
        "seed": seed,
    }


def space_hash(space: SearchSpace) -> str:
    """Of its slots, and what they can be."""
    return hashlib.sha256(repr((space.input_shape, space.operators, space.slots)).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a method wants to be measured."""

    archs: Sequence[Arch] = ()
    """Whole children."""
    stage: str = "children"
    layers: bool = False
    """With their layers."""
    by: float = 1.0
    """Share of the budget that may be spent by the end of it."""
    leverage: float = 1.0
    """Share of the variance of children that stays in what the table says: see `nar_hw.latency.regression.leverage`."""

    def enough(self, tolerance: float) -> float:
        """The relative standard error of children with which the table has the ``tolerance``; at most `KNOWN`."""
        return min(tolerance / math.sqrt(self.leverage), max(tolerance, KNOWN))


OPERATORS = "operators"
"""The stage in which operators are measured alone, not children."""


@dataclass(frozen=True, kw_only=True)
class _Here:
    """Measured on this machine."""

    space: SearchSpace
    config: RuntimeConfig
    load: ChildLoader
    rounds: int
    tolerance: float
    budget_s: float
    deadline: float
    """time.monotonic() at which to stop."""
    journal: Journal | None
    progress: "Progress | None"

    def answer(self, ask: Ask) -> Measured[Any]:
        """Measure it."""
        if ask.stage == OPERATORS:
            specs, load = isolated.operator_loader(self.space, self.config)
            return self._measured(ask, load, specs, OPERATORS_AT_ONCE, repeats=20)
        return self._measured(ask, self.load, ask.archs, children_at_once(self.space), threads=self.load.threads)

    def _measured(
        self, ask: Ask, load: Callable[[Any, bool], Runtime], keys: Sequence[Any], at_once: int, **how: Any
    ) -> Measured[Any]:
        return measure(
            load,
            keys,
            self.load.incumbent,
            at_once=at_once,
            rounds=self.rounds,
            **how,
            profile=ask.layers,
            deadline=math.inf if math.isinf(self.budget_s) else self.deadline - (1 - ask.by) * self.budget_s,
            tolerance=ask.enough(self.tolerance),
            stage=ask.stage,
            journal=self.journal,
            tick=Steps(self.progress, f"profiling {ask.stage}", (self.rounds + 1) * len(set(keys))),
            say=says(self.progress),
        )


_Design = tuple[list[Ask], dict[str, Any]]
"""What is asked, the children as wholes last, and what the table says of it."""


def _in_context(space: SearchSpace, seed: int, budget_s: float) -> _Design:
    replicates = 1 + (WHOLE if budget_s >= 15 else WHOLE // 2)
    archs = contexts(space, replicates=replicates, seed=seed)
    first = 1 + max(len(slot.candidates) for slot in space.slots)
    wholes = _wholes(space, archs, in_context.SPREAD)
    return [replace(wholes, archs=archs[:first], layers=True, stage="operators in context", by=0.5), wholes], {
        "replicates": replicates
    }


def _regression(space: SearchSpace, seed: int, budget_s: float) -> _Design:
    return [_wholes(space, [space.incumbent, *orthogonal(space, seed=seed)], regression.SPREAD)], {}


def _isolated(space: SearchSpace, seed: int, budget_s: float) -> _Design:
    replicates = math.ceil(8 / max(len(slot.candidates) for slot in space.slots))
    archs = contexts(space, replicates=replicates, seed=seed)
    # Errors of single operators are as many as there are slots in a sum, and cancel out
    operators = Ask(stage=OPERATORS, by=0.7, leverage=1 / len(space.slots))
    return [operators, Ask(archs=archs, leverage=UNKNOWNS / len(archs))], {"replicates": replicates}


def _wholes(space: SearchSpace, archs: Sequence[Arch], spread: float) -> Ask:
    return Ask(archs=archs, leverage=regression.leverage(space, archs, spread=spread, noise=NOISE))


METHODS: dict[str, tuple[Callable[[SearchSpace, int, float], _Design], Callable[..., Estimate]]] = {
    "in-context": (_in_context, in_context.estimate),
    "regression": (_regression, regression.estimate),
    "isolated": (_isolated, isolated.estimate),
}
"""What each measures, and what it makes of the answers."""


def design(
    space: SearchSpace, method: str, *, seed: int, budget_s: float, validate: int
) -> tuple[list[Ask], dict[str, Any], list[Arch]]:
    """What a profile measures, what its table says of that, and which of the last children the table does not see.

    These are to judge it, and measured in the same rounds as the others: it is to be judged by what it does not know, not by how
    the machine has changed.
    """
    (*asks, last), details = METHODS[method][0](space, seed, budget_s / 2 if validate else budget_s)
    seen = list(dict.fromkeys(last.archs))
    enough = validate and space.size >= len(seen) + 3
    unseen = held_out(space, validate, exclude=seen, seed=seed + 1) if enough else []
    return [*asks, replace(last, archs=mixed(seen, unseen))], details, unseen


def mixed(*several: Sequence[Arch]) -> list[Arch]:
    """All archs, those of each list evenly spread: where not all are loaded at once, each batch has its share of them."""
    places = [(number / len(archs), arch) for archs in several for number, arch in enumerate(archs)]
    return [arch for _, arch in sorted(places)]


def _agree(table: LatencyTable, space: SearchSpace, measured: Measured[Arch]) -> tuple[str, ...]:
    """What must be said of how the network itself is predicted. Raises MeasurementError where nothing can be believed.

    It was measured twice: as the reference, and as a child with its own, fewer runs.
    """
    own, runtime = float(np.median(measured.children[space.incumbent].whole)), table.fingerprint["runtime"]
    if not 0.75 < own / table.incumbent_ms < 1.33:
        raise MeasurementError(
            f"{runtime}: times must not drift, but the same network took {table.incumbent_ms:.4g} and {own:.4g} ms: "
            "let the device warm up, stop other programs and measure again"
        )
    predicted = table.predict(space.incumbent)
    if not 0.5 < predicted / table.incumbent_ms < 2:
        raise MeasurementError(
            f"{runtime}: per-layer times must add up to about the whole, but the network takes "
            f"{table.incumbent_ms:.4g} ms and the sum is {predicted:.4g} ms: use method regression"
        )
    if abs(off := predicted / table.incumbent_ms - 1) > 0.1:
        return (f"the network itself is predicted {off:+.0%} off: its children use the caches in another way than it does",)
    return ()


def table_of(
    space: SearchSpace,
    answers: Sequence[Measured[Any]],
    *,
    method: str,
    details: dict[str, Any],
    mark: dict[str, Any],
    model_name: str,
    seed: int,
    seconds: float,
    validate: int,
) -> LatencyTable:
    """The table of what a method asked, not validated yet. Raises MeasurementError.

    Args:
        space: the search space.
        answers: to each question of the method.
        method: one of METHODS.
        details: what the method says of itself.
        mark: the fingerprint of where it was measured.
        model_name: what the table says its network is.
        seed: of the design.
        seconds: that it took.
        validate: how many children it shall be validated on; the table says where that cannot be.
    """
    measured: Measured[Arch] = answers[-1]
    found = METHODS[method][1](space, *answers)
    details = details | {name: _short(value) for name, value in found.details.items()}
    how = Method(
        name=method,
        children=len(measured.children),
        rounds=measured.rounds,
        seconds=round(seconds, 1),
        seed=seed,
        clock=measured.clock,
        **details,
    )
    table = make_table(space, mark, model_name, found, measured, how)
    small = bool(validate) and space.size < len(measured.children) + 3
    contention = together(answer.contention for answer in answers)
    busy = [contention.note] if contention and contention.note else []
    return replace(
        table, notes=(*table.notes, *busy, *_agree(table, space, measured), *([UNSEEN] if small else [])), contention=contention
    )


def make_table(
    space: SearchSpace,
    mark: dict[str, Any],
    model_name: str,
    found: Estimate,
    measured: Measured[Arch],
    method: Method,
) -> LatencyTable:
    """The table of an estimate."""
    slots, specs = slots_of(space)
    return LatencyTable(
        network=ModelInfo.of(space, model_name),
        operators=space.operators,
        slots=slots,
        entries=tuple(_rounded(found.entries[spec]) for spec in specs),
        cache=None if found.cache is None else replace(found.cache, ms_per_million=_short(found.cache.ms_per_million)),
        bend=None if found.bend is None else Bend(per_ms=_short(found.bend.per_ms), at_ms=_short(found.bend.at_ms)),
        fixed_ms=round(found.fixed_ms, 7),
        incumbent_ms=_short(float(np.median(measured.reference))),
        fingerprint=mark,
        method=method,
        notes=measured.doubts,
        p90=p90_of(measured),
    )


def slots_of(space: SearchSpace) -> tuple[tuple[TableSlot, ...], tuple[OpSpec, ...]]:
    """The slots of a table, and the spec of each of its entries, in the order in which the candidates first use them."""
    numbers: dict[OpSpec, int] = {}
    slots = []
    for slot in space.slots:
        candidates = {}
        for code in slot.candidates:
            specs = [spec for site in slot.sites for spec in space.site_specs(site, code)]
            candidates[space.operators[code]] = tuple(numbers.setdefault(spec, len(numbers)) for spec in specs)
        slots.append(TableSlot(name=slot.name, incumbent=space.operators[slot.incumbent], candidates=candidates))
    return tuple(slots), tuple(numbers)


def _rounded(entry: Entry) -> Entry:
    rel = None if entry.rel is None else _short(entry.rel)
    return replace(entry, ms=_short(entry.ms), p10=_short(entry.p10), p90=_short(entry.p90), rel=rel)


def _short(value: float) -> float:
    """Six significant digits: more would be noise in a file that people read."""
    return float(f"{value:.6g}")
