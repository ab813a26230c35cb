"""Children measured under a table's conditions, in the table's own milliseconds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.progress import Progress

from nar_hw.errors import MeasurementError
from nar_hw.latency.children import Steps, alone, measure, says
from nar_hw.latency.device import differing, here
from nar_hw.latency.loader import ChildLoader, children_at_once
from nar_hw.latency.table import LatencyTable
from nar_hw.latency.timing import summarize
from nar_hw.runtimes import RuntimeConfig
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch


@dataclass(frozen=True, kw_only=True)
class ChildrenMs:
    """What children of a space take, and the network itself in the same rounds."""

    ms: tuple[float, ...]
    """Milliseconds of each arch as given; the drift of the machine within the measurement is divided out."""
    rel: tuple[float | None, ...]
    """Half-width of the 95 % confidence interval of each, relative to it."""
    p90_ms: tuple[float, ...]
    """90th percentile of each one's single runs."""
    incumbent_ms: float
    """Milliseconds of the network itself: divide by it what is to be compared with another measurement."""
    rounds: int


def measure_children(
    space: SearchSpace,
    archs: Sequence[Arch],
    config: RuntimeConfig,
    *,
    rounds: int = 20,
    progress: "Progress | None" = None,
) -> ChildrenMs:
    """The latency of children, visited in turn and between visits of the network itself; their weights do not matter.

    Raises:
        MeasurementError: no arch, or times that cannot be trusted.
        SpaceError: an arch that is not of ``space``.
        RuntimeUnavailableError: a config that does not work here.
    """
    if not archs:
        raise MeasurementError("at least one arch is needed, but there are none")
    valid = [space.validate(arch) for arch in archs]
    tick = Steps(progress, "measuring children", len(set(valid)) * (rounds + 1))
    with alone([config], progress), ChildLoader(space, config) as load:
        found = measure(
            load,
            valid,
            load.incumbent,
            at_once=children_at_once(space),
            rounds=rounds,
            threads=load.threads,
            tick=tick,
            say=says(progress),
        )
    times = [summarize(found.children[arch].whole) for arch in valid]
    return ChildrenMs(
        ms=tuple(item.ms for item in times),
        rel=tuple(item.rel for item in times),
        p90_ms=tuple(item.ms * (found.children[arch].p90 or 1.0) for item, arch in zip(times, valid, strict=True)),
        incumbent_ms=float(np.median(found.reference)),
        rounds=found.rounds,
    )


def device_meter(
    space: SearchSpace, table: LatencyTable, progress: Progress | None = None
) -> Callable[[Sequence[Arch]], list[float]] | None:
    """What measures archs under the table's conditions, in the table's own milliseconds, of the percentile that it holds; None
    where its device is not this one.

    The network itself is measured in the same rounds: dividing by its time and multiplying by the table's removes what the
    machine has become slower or faster since.
    """
    config = table.config
    if differing(table.fingerprint, here(config)):
        return None

    def measure(archs: Sequence[Arch]) -> list[float]:
        measured = measure_children(space, list(archs), config, progress=progress)
        if table.percentile is None:
            return [ms * table.incumbent_ms / measured.incumbent_ms for ms in measured.ms]
        assert table.p90 is not None
        return [ms * table.incumbent_ms / table.p90 / measured.incumbent_ms for ms in measured.p90_ms]

    return measure
