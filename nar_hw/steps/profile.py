"""What `nar-hw table validate` does, from Python."""

from rich.progress import Progress

from nar_hw.latency.device import here
from nar_hw.latency.table import LatencyTable
from nar_hw.latency.validate import validate, with_validation


def revalidate(table: LatencyTable, *, children: int, seed: int, progress: Progress | None = None) -> LatencyTable:
    """``table`` with errors measured now. Raises TableMismatchError on another device."""
    space = table.network.space()
    table.check(space, here(table.config))
    return with_validation(table, validate(table, space, children=children, seed=seed, progress=progress))
