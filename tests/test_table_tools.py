"""What is done with tables: filled, compared, listed, plotted."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nar_hw.errors import MissingEntryError, TableError, TableMismatchError
from nar_hw.latency.diff import diff
from nar_hw.latency.fill import fill
from nar_hw.latency.profiler import profile
from nar_hw.latency.record import Entry
from nar_hw.latency.table import LatencyTable
from nar_hw.records import replace
from nar_hw.report.scatter import validation_png
from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.fake import FakeDevice, FakeRuntime
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import OpSpec
from tests.networks import TinyResNet

SHAPE = (3, 16, 16)
QUIET = FakeDevice(noise=0.0, interaction=0.0)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def space(*operators: str) -> SearchSpace:
    return SearchSpace.from_model(TinyResNet(), SHAPE, operators=operators)


def measured(found: SearchSpace, device: FakeDevice = QUIET, method: str = "in-context", validate: int = 0) -> LatencyTable:
    with FakeRuntime.on(device):
        return profile(found, config=RuntimeConfig(runtime="fake"), model_name="own", method=method, validate=validate)


# ------------------------------------------------------------------------------------------------------------------- fill


@pytest.mark.parametrize("method", ["in-context", "regression", "isolated"])
def test_a_filled_table_predicts_like_one_that_was_measured_whole(method: str) -> None:
    some, every = space("conv3x3", "max3x3"), space("conv3x3", "max3x3", "dwsep3x3", "avg3x3")
    old = measured(some, method=method)
    with pytest.raises(MissingEntryError, match=r"no entry for 8 operators .* --fill -o table\.json"):
        old.check(every)
    with FakeRuntime.on(replace(QUIET, macs_per_ms=4e7)):
        filled = fill(old, every, validate=0)
    filled.check(every)
    archs = np.array([every.incumbent, (1, 1, 1, 1), (3, 3, 3, 3), (0, 1, 2, 3), (2, 2, 1, 0)])
    exact = np.array([FakeRuntime.truth(every.build(arch), SHAPE, device=QUIET) for arch in map(tuple, archs)])
    assert filled.predict(archs) == pytest.approx(exact, rel=0.02)
    assert filled.predict((0, 2, 2, 0)) == pytest.approx(old.predict((0, 2, 2, 0)))
    assert filled.method.filled[0].operators == ("avg3x3", "dwsep3x3")
    assert filled.validation is None
    assert LatencyTable.__eq__(fill(filled, every), filled)


def own(spec: OpSpec) -> nn.Module:
    return nn.Conv2d(spec.c_in, spec.c_out, 1, spec.stride)


def test_a_users_operator_can_be_filled_in_and_is_validated(tmp_path: Path) -> None:
    old = measured(space("conv3x3", "max3x3"), validate=4)
    every = SearchSpace.from_model(TinyResNet(), SHAPE, operators=["conv3x3", "max3x3", own])
    with FakeRuntime.on(FakeDevice()):
        filled = fill(old, every, validate=8)
    assert filled.operators == every.operators
    assert filled.validation is not None
    assert filled.validation.mape < 3
    filled.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == filled


def test_another_network_or_device_is_not_filled() -> None:
    old = measured(space("conv3x3", "max3x3"))
    with pytest.raises(TableMismatchError, match="number of slots is 4 in the table, 2 here"):
        fill(old, SearchSpace.from_model(TinyResNet(), SHAPE, slots="layer1.*"))
    elsewhere = replace(old, fingerprint={**old.fingerprint, "device": "another"})
    with pytest.raises(TableMismatchError, match="device is another in the table, fake device here"):
        fill(elsewhere, space("conv3x3", "max3x3", "avg3x3"))


# ------------------------------------------------------------------------------------------------------------------- diff


def changed(table: LatencyTable, factor: float, operator: str = "") -> LatencyTable:
    def change(entry: Entry) -> Entry:
        return replace(entry, ms=entry.ms * factor) if operator in entry.spec.operator else entry

    return replace(table, entries=tuple(map(change, table.entries)), incumbent_ms=table.incumbent_ms * factor)


def test_a_table_is_as_fast_as_itself() -> None:
    table = measured(space("conv3x3", "max3x3"), FakeDevice())
    found = diff(table, table)
    assert not found.conditions
    assert not found.flips
    assert found.spearman == pytest.approx(1)
    assert [item.beyond_noise for item in found.changes] == [False] * 8


def test_two_measurements_of_one_device_differ_within_noise_mostly_and_a_slower_operator_beyond_it() -> None:
    first = measured(space("conv3x3", "max3x3"), FakeDevice(seed=1))
    second = measured(space("conv3x3", "max3x3"), FakeDevice(seed=2))
    same = diff(first, second)
    assert sum(bool(item.beyond_noise) for item in same.changes) <= 3
    slower = diff(first, changed(second, 3.0, "max"))
    assert {item.operator for item in slower.changes if item.beyond_noise and item.second_ms > 2 * item.first_ms} == {"max3x3"}
    assert all(item.beyond_noise for item in slower.changes if item.operator == "max3x3")


def test_orders_that_turn_round_are_told_and_so_are_conditions() -> None:
    first = measured(space("conv3x3", "max3x3"), FakeDevice(seed=1))
    cost = {name: first.matrix[0][first.operators.index(name)] for name in ("conv3x3", "max3x3")}
    faster = min(cost, key=lambda name: cost[name])
    slower = "max3x3" if faster == "conv3x3" else "conv3x3"
    other = replace(first, fingerprint={**first.fingerprint, "threads": 4})
    found = diff(first, changed(other, 50.0, faster))
    assert (first.slots[0].name, faster, slower) in found.flips
    assert found.conditions == {"threads": (1, 4)}


def test_an_entry_of_one_context_tells_no_noise() -> None:
    table = measured(space("conv3x3", "max3x3"))
    bare = replace(table, entries=tuple(replace(entry, rel=None) for entry in table.entries))
    assert {item.beyond_noise for item in diff(bare, table).changes} == {None}


def test_tables_of_two_networks_are_not_compared() -> None:
    table = measured(space("conv3x3", "max3x3"))
    with pytest.raises(TableMismatchError, match="these differ in model: measure both with the same --model"):
        diff(table, replace(table, network=replace(table.network, name="another")))
    with pytest.raises(TableMismatchError, match="differ in slots"):
        diff(table, replace(table, slots=table.slots[:2]))


# ------------------------------------------------------------------------------------------------------------------- plot


def test_a_validation_is_plotted_and_nothing_else(tmp_path: Path) -> None:
    table = measured(space("conv3x3", "max3x3"), FakeDevice(), validate=6)
    validation_png(table, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(TableError, match="run nar-hw table validate"):
        validation_png(replace(table, validation=None), tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()
