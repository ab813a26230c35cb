"""Energies in tables, by a simulated meter: what is fitted, what cannot be read, and the limit in a search."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nar_hw.errors import MeasurementError, RuntimeUnavailableError, TableError, UserError
from nar_hw.latency import energy as module
from nar_hw.latency.energy import measure_energy
from nar_hw.latency.loader import ChildLoader
from nar_hw.latency.record import Energy
from nar_hw.latency.table import LatencyTable
from nar_hw.records import replace
from nar_hw.runtimes.base import Runtime
from nar_hw.search.budget import Budget
from nar_hw.search.config import SearchConfig
from nar_hw.space.flops import count_module
from nar_hw.space.space import SearchSpace
from tests.networks import TinyResNet
from tests.test_table import for_space

torch.manual_seed(0)
SPACE = SearchSpace.from_model(TinyResNet(), (3, 8, 8), operators=("conv3x3", "dwsep3x3", "max3x3"))
EVERY = list(itertools.product(*(slot.candidates for slot in SPACE.slots)))
BATCH = 2


def table() -> LatencyTable:
    known = for_space(SPACE, lambda spec: 0.1 + spec.c_in / 100)
    mark = {**known.fingerprint, "kind": "fake", "threads": 1, "batch": BATCH}
    return replace(known, fingerprint=mark, method=replace(known.method, replicates=7))


def true_mj(network: Any) -> float:
    """mJ of an image: 2 and one for each 20,000 multiply-adds."""
    return 2 + count_module(network, SPACE.input_shape).flops / 20_000


class Meter:
    """Of a device on which other programs take another share of the energy each time."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.reads = 0

    def __call__(self, runtime: Runtime, seconds: float) -> float:
        self.reads += 1
        if self.reads % 2:  # the network itself and a child right after it meet the same
            self.share = float(self.rng.uniform(0.8, 1.5))
        return self.share * BATCH * true_mj(runtime._module)  # type: ignore[attr-defined]


def test_energies_are_fitted_from_whole_children_whatever_else_the_device_does() -> None:
    meter = Meter()
    found = measure_energy(table(), SPACE, meter=meter)
    known = replace(table(), energy=found)
    assert found.held_out == module.HELD_OUT
    assert found.mape is not None
    assert found.mape < 0.5
    shares = np.array([true_mj(SPACE.build(arch)) for arch in EVERY[::5]]) / true_mj(SPACE.build(SPACE.incumbent))
    np.testing.assert_allclose(known.energies.of(EVERY[::5]) / known.energies.of([SPACE.incumbent]), shares, rtol=0.01)
    assert found.incumbent_mj == pytest.approx(1.15 * true_mj(SPACE.build(SPACE.incumbent)), rel=0.1)
    assert meter.reads == 2 * module.ROUNDS * (found.children + found.held_out)


@pytest.mark.parametrize(("quick", "off"), [(1.0, 0.005), (0.0, 0.1)])
def test_a_place_in_memory_does_not_favour_children(monkeypatch: pytest.MonkeyPatch, quick: float, off: float) -> None:
    """Of two that are loaded the first costs a tenth more; the network itself is loaded once only where that is slow."""
    places: dict[int, int] = {}
    numbers = itertools.count()
    whole = ChildLoader.__call__

    def loaded(self: ChildLoader, arch: Any, profile: bool = False) -> Runtime:
        runtime = whole(self, arch, profile)
        places[id(runtime)] = next(numbers)
        monkeypatch.setattr(runtime, "close", lambda: places.pop(id(runtime)))
        return runtime

    def meter(runtime: Runtime, seconds: float) -> float:
        before = places[id(runtime)] < max(places.values())
        return (1.1 if before else 1.0) * BATCH * true_mj(runtime._module)  # type: ignore[attr-defined]

    monkeypatch.setattr(ChildLoader, "__call__", loaded)
    monkeypatch.setattr(module, "AGAIN_S", quick)
    found = measure_energy(table(), SPACE, meter=meter)
    known = replace(table(), energy=found)
    shares = np.array([true_mj(SPACE.build(arch)) for arch in EVERY[::5]]) / true_mj(SPACE.build(SPACE.incumbent))
    measured = known.energies.of(EVERY[::5]) / found.incumbent_mj
    assert abs(float(np.mean(measured / shares)) - 1) == pytest.approx(off, abs=0.02)


@pytest.mark.parametrize(
    ("reading", "error", "message"),
    [
        (
            None,
            RuntimeUnavailableError,
            "energy needs a meter that can be read, NVML on a GPU or RAPL on a CPU, but cpu has none",
        ),
        (0.0, MeasurementError, "energy must be positive, but the meter read 0 mJ a run"),
        (float("nan"), MeasurementError, "energy must be positive, but the meter read nan mJ"),
    ],
)
def test_what_is_no_energy_is_refused_in_one_line(reading: float | None, error: type[UserError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        measure_energy(table(), SPACE, meter=lambda runtime, seconds: reading)
    assert "\n" not in str(caught.value)


def made() -> LatencyTable:
    known = table()
    mj = tuple(1.0 + 0.5 * index for index in range(len(known.entries)))
    energy = Energy(fixed_mj=2.0, incumbent_mj=9.0, entries_mj=mj, children=9, held_out=3, mape=1.5)
    return replace(known, energy=energy)


def by_hand(known: LatencyTable, arch: tuple[int, ...]) -> float:
    assert known.energy is not None
    calls = [i for slot, code in zip(known.slots, arch, strict=True) for i in slot.candidates[SPACE.operators[code]]]
    return known.energy.fixed_mj + sum(known.energy.entries_mj[i] for i in calls)


def test_a_limit_of_energy_holds_beside_the_latency() -> None:
    known = made()
    times, energies = known.predict(np.array(EVERY)), np.array([by_hand(known, arch) for arch in EVERY])
    target, most = float(np.quantile(times, 0.6)), float(np.quantile(energies, 0.4))
    budget = Budget.of(SPACE, [known], [target], SearchConfig(max_energy=most))
    expected = (times <= target * (1 + 1e-9)) & (energies <= most * (1 + 1e-9))
    assert 0 < expected.sum() < (times <= target).sum()
    assert budget.feasible.meets(EVERY).tolist() == expected.tolist()
    scores = np.random.default_rng(0).normal(size=(len(SPACE.slots), len(SPACE.operators)))
    value = np.array([sum(scores[p, code] for p, code in enumerate(arch)) for arch in EVERY])
    assert budget.best(scores) == EVERY[int(np.argmax(np.where(expected, value, -np.inf)))]
    assert budget.costs[1].name == "mJ an image on a CPU (fake)"


def test_a_limit_of_energy_without_energies_is_refused() -> None:
    with pytest.raises(TableError, match="measure them with nar-hw table energy"):
        Budget.of(SPACE, [table()], [10.0], SearchConfig(max_energy=5.0))
    with pytest.raises(UserError, match="max_energy is of a latency table that knows energies, but there is none"):
        Budget.of(SPACE, [], [], SearchConfig(max_energy=5.0))
    with pytest.raises(UserError, match="max_energy > 0 must hold in a search"):
        SearchConfig(max_energy=0.0)


def test_the_file_keeps_energies_of_all_entries(tmp_path: Path) -> None:
    known = made()
    known.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == known
    assert known.content()["schema"] == 5
    assert known.hash != table().hash
    assert known.energy is not None
    with pytest.raises(TableError, match=f"energies must be those of the {len(known.entries)} entries, but there are 1"):
        replace(known, energy=replace(known.energy, entries_mj=(1.0,)))
