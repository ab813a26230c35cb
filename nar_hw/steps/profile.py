"""What `nar-hw table validate` does, from Python."""

from rich.progress import Progress

from nar_hw.latency.device import fingerprint
from nar_hw.latency.measure import table_info
from nar_hw.latency.table import LatencyTable
from nar_hw.latency.validate import config_of, validate, with_validation


def revalidate(table: LatencyTable, *, children: int, seed: int, progress: Progress | None = None) -> LatencyTable:
    """``table`` with errors measured now. Raises TableMismatchError on another device."""
    space = table_info(table).space()
    table.check(space, fingerprint(config_of(table)))
    return with_validation(table, validate(table, space, children=children, seed=seed, progress=progress))
