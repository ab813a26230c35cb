"""Energy beside time: what an inference of each operator costs, where the device has a meter.

A meter counts the whole CPU or GPU, and so all that runs there. Each child keeps the device busy right after the network itself
does, several times, and their ratio is kept: what both meet cancels out. Its place in memory matters too (`visits.again`): where
loading is quick, the network itself is loaded anew for each child, in turn before and after it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from nar_hw.device.visits import AGAIN_S
from nar_hw.errors import MeasurementError, RuntimeUnavailableError
from nar_hw.latency.children import Steps, alone
from nar_hw.latency.designs import held_out, profiled
from nar_hw.latency.loader import ChildLoader
from nar_hw.latency.meters import Gpu, cpu_energy_mj
from nar_hw.latency.record import Energy
from nar_hw.latency.regression import guess_by_work, least_squares
from nar_hw.latency.table import LatencyTable
from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.base import Runtime
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch

if TYPE_CHECKING:
    from rich.progress import Progress

Meter = Callable[[Runtime, float], float | None]
"""mJ per run while a runtime keeps its device busy for so many seconds; None where no meter can be read."""

ROUNDS = 3
BUSY_S = 0.4
"""Seconds that a network keeps the device busy for one reading: many times what the counters take to change."""
HELD_OUT = 8


@contextmanager
def meter_of(config: RuntimeConfig) -> Iterator[Meter]:
    """The meter of a config's device: NVML for a GPU, RAPL for a CPU."""
    if config.device_type == "cuda":
        with Gpu(config) as gpu:
            yield lambda runtime, seconds: gpu.under_load(runtime, seconds)[0]
    else:
        yield cpu_energy_mj


def measure_energy(
    table: LatencyTable, space: SearchSpace, *, meter: Meter | None = None, progress: "Progress | None" = None
) -> Energy:
    """What inferences cost in mJ, by least squares over the children of the table's design; checked on held-out ones.

    Args:
        table: of this device; its entries are those that get an energy.
        space: its search space.
        meter: by default that of the table's device.
        progress: shows a bar.

    Raises:
        TableError: the table is of other percentiles than the median.
        TableMismatchError: the table is of another space.
        RuntimeUnavailableError: there is no meter, or it cannot be read.
        MeasurementError: energies that are not positive.
    """
    table.require_medians()
    table.check(space)
    config = table.config
    designed = list(dict.fromkeys(profiled(space, table.method)))
    checked = held_out(space, HELD_OUT, exclude=designed, seed=table.method.seed + 1)
    archs = [*designed, *checked]
    with alone([config], progress), meter_of(config) as own, ChildLoader(space, config) as load:
        tick = Steps(progress, "energy", len(archs))
        network, ratios = _readings(load, archs, meter or own, tick)
    energies = {arch: network * ratio / config.batch for arch, ratio in ratios.items()}
    whole = {arch: energies[arch] for arch in designed}
    fit = least_squares(space, whole, guess_by_work(space, whole), spread=1.0, cached=False)
    predicted = [fit.fixed_ms + sum(fit.ms[spec] for _, _, spec in space.specs(arch)) for arch in checked]
    errors = [abs(guess / energies[arch] - 1) for guess, arch in zip(predicted, checked, strict=True)]
    return Energy(
        fixed_mj=fit.fixed_ms,
        incumbent_mj=network / config.batch,
        entries_mj=tuple(fit.ms[entry.spec] for entry in table.entries),
        children=len(designed),
        held_out=len(checked),
        mape=100 * float(np.mean(errors)) if errors else None,
    )


def _readings(
    load: ChildLoader, archs: Sequence[Arch], meter: Meter, tick: Callable[[int], object]
) -> tuple[float, dict[Arch, float]]:
    """mJ of a run of the network itself, and each child's share of it."""

    def read(runtime: Runtime, name: str) -> float:
        found = meter(runtime, BUSY_S)
        if found is None:
            raise RuntimeUnavailableError(
                f"energy needs a meter that can be read, NVML on a GPU or RAPL on a CPU, but {runtime.config.device} has none"
            )
        if not found > 0 or not np.isfinite(found):
            raise MeasurementError(f"{name}: energy must be positive, but the meter read {found:.4g} mJ a run: measure again")
        return found

    own, ratios = [], {}
    start = time.monotonic()
    with closing(load.incumbent()) as first:
        again = [load.space.incumbent] if time.monotonic() - start <= AGAIN_S else []
        for number, arch in enumerate(archs):
            turn = -1 if number % 2 else 1
            with ExitStack() as stack:
                loaded = [stack.enter_context(closing(load(key))) for key in [*again, arch][::turn]][::turn]
                reference, child = [first, *loaded][-2:]
                pairs = [(read(reference, "the network itself"), read(child, "a child")) for _ in range(ROUNDS)]
            own += [before for before, _ in pairs]
            ratios[arch] = float(np.median([after / before for before, after in pairs]))
            tick(1)
    return float(np.median(own)), ratios
