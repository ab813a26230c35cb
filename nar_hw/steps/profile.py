"""What `nar-hw profile`, `nar-hw table validate` and `nar-hw table energy` do, from Python."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import Progress

from nar_hw.latency.device import here
from nar_hw.latency.energy import measure_energy
from nar_hw.latency.loader import ChildFiles
from nar_hw.latency.profiler import profile
from nar_hw.latency.table import LatencyTable
from nar_hw.latency.validate import validate, with_validation
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.space.space import SearchSpace


def profiles(
    space: SearchSpace,
    outputs: Mapping[Path, RuntimeConfig],
    *,
    resume: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> dict[Path, LatencyTable]:
    """Measure and write a table for each config, one after the other; what is exported for one serves all of its batch size.

    With ``resume``, tables that were complete before are kept; ``options`` are those of `nar_hw.latency.profiler.profile`.

    Raises TableError or TableMismatchError where such a table is none, or another's, and what `profile` raises.
    """
    files = ChildFiles(space)
    tables = {}
    for path, config in outputs.items():
        journal = path.with_name(f"{path.name}.part")
        if resume and len(outputs) > 1 and path.exists() and not journal.exists():
            table = LatencyTable.load(path)
            table.check(space, here(config))
        else:
            table = profile(space, config=config, journal=journal, resume=resume, files=files, progress=progress, **options)
            table.save(path)
        tables[path] = table
    return tables


def revalidate(table: LatencyTable, *, children: int, seed: int, progress: Progress | None = None) -> LatencyTable:
    """``table`` with errors measured now. Raises TableMismatchError on another device."""
    table.require_medians()
    space = table.network.space()
    table.check(space, here(table.config))
    return with_validation(table, validate(table, space, children=children, seed=seed, progress=progress))


def with_energy(table: LatencyTable, *, progress: Progress | None = None) -> LatencyTable:
    """``table`` with energies measured now. Raises TableMismatchError on another device, and what `measure_energy` raises."""
    space = table.network.space()
    table.check(space, here(table.config))
    return replace(table, energy=measure_energy(table, space, progress=progress))
