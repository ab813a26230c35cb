"""Entries added to a table: operators that its space has got since it was measured."""

import datetime
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nar_hw.errors import TableError
from nar_hw.latency.device import here
from nar_hw.latency.profiler import profile, slots_of
from nar_hw.latency.record import Entry, Filled
from nar_hw.latency.table import LatencyTable
from nar_hw.latency.validate import validate as validated, with_validation
from nar_hw.models.info import ModelInfo
from nar_hw.records import replace
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import OpSpec

if TYPE_CHECKING:
    from rich.progress import Progress


def fill(
    table: LatencyTable,
    space: SearchSpace,
    *,
    validate: int = 40,
    journal: Path | None = None,
    resume: bool = False,
    progress: "Progress | None" = None,
) -> LatencyTable:
    """``table`` with entries for all candidates of ``space``; only those that it lacks are measured.

    They are measured by the table's own method in a space of the network's own operators and the new ones, brought to the
    speed that the network had when the table was made, and moved by what the network's own operators in the same slots cost
    in the table more than now: a table knows differences between operators better than how much of the whole is fixed.

    Args:
        table: as it is; returned where nothing is missing.
        space: of the same network.
        validate: how many held-out children to measure afterwards; 0 drops the old validation without a new one.
        journal, resume: as in `profile`.
        progress: shows bars.

    Raises:
        TableError: a table with a cache or a bend, which all entries were fitted with together.
        TableMismatchError: another network, device or conditions.
        RuntimeUnavailableError, MeasurementError, RunError: as `profile`.
    """
    table.require_medians()
    table = replace(table, operators=space.operators)
    lacking = table.lacking(space)
    if not lacking:
        return table
    if not table.additive:
        names = sorted({name for slot in space.slots for name in (space.operators[code] for code in slot.candidates)})
        raise TableError(
            "entries can be added to a table whose latencies are sums, but by how much this one's are not was fitted with all "
            f"entries together: measure all of them with `{table.profile_command(names)}`"
        )
    table.check_conditions(here(table.config))
    narrow = space.narrowed(
        {
            slot.name: (slot.incumbent, *(space.operators.index(name) for name in lacking.get(slot.name, ())))
            for slot in space.slots
        }
    )
    seed = table.method.seed
    found = profile(
        narrow,
        config=table.config,
        model_name=table.network.name,
        method=table.method.name,
        seed=seed,
        validate=0,
        journal=journal,
        resume=resume,
        progress=progress,
    )
    entries = {**_comparable(table, found), **{entry.spec: entry for entry in table.entries}}
    slots, specs = slots_of(space)
    added = Filled(
        operators=tuple(sorted({operator for names in lacking.values() for operator in names})),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        children=found.method.children,
        rounds=found.method.rounds,
        seconds=found.method.seconds,
    )
    filled = replace(
        table,
        network=ModelInfo.of(space, table.network.name),
        slots=slots,
        entries=tuple(entries[spec] for spec in specs),
        method=replace(table.method, filled=(*table.method.filled, added)),
        energy=None,
        validation=None,
        notes=tuple(dict.fromkeys((*table.notes, *found.notes))),
    )
    if not validate:
        return filled
    return with_validation(filled, validated(filled, space, children=validate, seed=seed + 1, progress=progress))


def _comparable(table: LatencyTable, found: LatencyTable) -> dict[OpSpec, Entry]:
    """The entries of ``found`` as if they had been measured with ``table``."""
    speed = table.incumbent_ms / found.incumbent_ms
    moves: dict[int, list[float]] = defaultdict(list)  # entry of found -> ms per call, from each slot that has it
    for own, slot in zip(table.slots, found.slots, strict=True):
        before, now = own.candidates[own.incumbent], slot.candidates[slot.incumbent]
        more = sum(table.entries[index].ms for index in before) - speed * sum(found.entries[index].ms for index in now)
        for calls in slot.candidates.values():
            for index in calls:
                moves[index].append(more / len(calls))
    return {entry.spec: _moved(entry, speed, float(np.mean(moves[index]))) for index, entry in enumerate(found.entries)}


def _moved(entry: Entry, speed: float, more: float) -> Entry:
    lowest = 0.01 * speed * entry.ms
    ms, p10, p90 = (float(f"{max(speed * value + more, lowest):.6g}") for value in (entry.ms, entry.p10, entry.p90))
    return replace(entry, ms=ms, p10=p10, p90=p90)
