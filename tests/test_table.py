import copy
import itertools
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from nar_hw.errors import MissingEntryError, SpaceError, TableError, TableMismatchError
from nar_hw.latency.schema import Entry, TableSlot
from nar_hw.latency.table import LatencyTable
from nar_hw.records import replace
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Choices, OpSpec
from tests.networks import TinyResNet

NAMES = ("conv3x3", "dwsep3x3", "max3x3", "avg3x3", "conv5x5")


def spec(number: int, operator: str = "conv3x3") -> OpSpec:
    return OpSpec(operator=operator, c_in=number + 1, c_out=8, h=16, w=16)


def made(costs: list[dict[str, float]], *, fixed: float = 0.5, rel: float | None = 0.01) -> LatencyTable:
    """A table with one entry per slot and operator; operator -> ms of each slot."""
    entries: list[Entry] = []
    slots = []
    for row, operators in enumerate(costs):
        calls = {}
        for operator, ms in operators.items():
            calls[operator] = (len(entries),)
            entries.append(Entry(spec=spec(row, operator), ms=ms, p10=ms * 0.9, p90=ms * 1.1, n=30, rel=rel))
        slots.append(TableSlot(name=f"layer{row}.conv", incumbent=next(iter(operators)), candidates=calls))
    return LatencyTable(
        model="own",
        input_shape=(3, 16, 16),
        num_classes=5,
        manner="conv",
        choices=Choices(),
        operators=NAMES,
        slots=tuple(slots),
        entries=tuple(entries),
        fixed_ms=fixed,
        incumbent_ms=fixed + sum(next(iter(operators.values())) for operators in costs),
        fingerprint={"device": "a CPU", "runtime": "fake", "precision": "fp32", "batch": 1, "threads": 2},
        method={"name": "in-context", "children": 4, "rounds": 8, "seconds": 1.5, "seed": 0, "replicates": 1},
    )


def for_space(space: SearchSpace, cost: Callable[[OpSpec], float] = lambda spec: 1.0 + spec.c_in) -> LatencyTable:
    """A table whose entries are a function of the spec."""
    numbers: dict[OpSpec, int] = {}
    slots = []
    for slot in space.slots:
        calls = {}
        for code in slot.candidates:
            specs = [item for site in slot.sites for item in space.site_specs(site, code)]
            calls[space.operators[code]] = tuple(numbers.setdefault(item, len(numbers)) for item in specs)
        slots.append(TableSlot(name=slot.name, incumbent=space.operators[slot.incumbent], candidates=calls))
    entries = tuple(Entry(spec=item, ms=cost(item), p10=0.9, p90=1.1, n=9, rel=0.02) for item in numbers)
    return replace(
        made([{"conv3x3": 1.0}]), slots=tuple(slots), entries=entries, operators=space.operators, input_shape=space.input_shape
    )


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return SearchSpace.from_model(TinyResNet(), (3, 16, 16), operators=["conv3x3", "dwsep3x3", "max3x3"])


costs = st.lists(st.dictionaries(st.sampled_from(NAMES), st.floats(0.001, 5.0), min_size=1, max_size=5), min_size=1, max_size=5)


def naive(table: LatencyTable, arch: tuple[int, ...]) -> float:
    total = table.fixed_ms
    for slot, code in zip(table.slots, arch, strict=True):
        for index in slot.candidates[table.operators[code]]:
            total += table.entries[index].ms
    return total


def archs_of(table: LatencyTable) -> list[tuple[int, ...]]:
    codes = [[table.operators.index(name) for name in slot.candidates] for slot in table.slots]
    return list(itertools.product(*codes))


# ---------------------------------------------------------------------------------------------------------------- file


def test_a_saved_table_loads_as_it_was(tmp_path: Path) -> None:
    table = made([{"conv3x3": 1.25, "max3x3": 0.1 + 0.2}, {"avg3x3": 1e-3}], rel=None)
    pairs = [{"arch": ["conv3x3", "avg3x3"], "predicted_ms": 1.0, "measured_ms": 1.1}]
    numbers = dict.fromkeys(
        ("children", "rounds", "seed", "seconds", "floor_mape", "floor_spearman", "mape", "max_error", "within_5", "within_10"),
        1.0,
    )
    validation = {**numbers, "spearman": 0.9, "kendall": 0.8, "speed": 1.0, "pairs": pairs}
    table = replace(table, validation=validation, notes=("noisy machine: measure again",))
    table.save(tmp_path / "table.json")
    loaded = LatencyTable.load(tmp_path / "table.json")
    assert loaded == table
    assert loaded.hash == table.hash
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "table.json").read_bytes()


def test_the_file_has_one_entry_and_one_slot_a_line(tmp_path: Path) -> None:
    table = made([{"conv3x3": 1.0, "max3x3": 0.3}, {"avg3x3": 0.1}])
    table.save(tmp_path / "table.json")
    lines = (tmp_path / "table.json").read_text().splitlines()
    assert sum('"spec"' in line for line in lines) == 3
    assert sum('"candidates"' in line for line in lines) == 2
    changed = replace(table, entries=(replace(table.entries[0], ms=2.0), *table.entries[1:]))
    changed.save(tmp_path / "changed.json")
    assert sum(a != b for a, b in zip(lines, (tmp_path / "changed.json").read_text().splitlines(), strict=True)) == 1


def test_the_hash_follows_what_predictions_depend_on() -> None:
    table = made([{"conv3x3": 1.0, "max3x3": 0.3}])
    assert table.hash == made([{"conv3x3": 1.0, "max3x3": 0.3}]).hash
    assert len(table.hash) == 64
    assert replace(table, notes=("x",)).hash == table.hash
    for change in (
        {"fixed_ms": 0.6},
        {"model": "other"},
        {"fingerprint": {**table.fingerprint, "batch": 2}},
        {"entries": (replace(table.entries[0], ms=1.0001), table.entries[1])},
    ):
        assert replace(table, **change).hash != table.hash


FAULTS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("no schema", lambda t: t.pop("schema"), "schema must be a positive integer"),
    ("newer schema", lambda t: t.update(schema=7, nar_hw="3.1.0"), "schema 7 is newer than 2.*install nar-hw>=3.1.0"),
    ("newer schema without a writer", lambda t: (t.update(schema=3), t.pop("nar_hw")), "install the latest nar-hw"),
    ("missing part", lambda t: t.pop("slots"), "lacks slots"),
    ("unknown part", lambda t: t.update(colour="red"), "unknown fields colour"),
    ("model", lambda t: t.update(model=3), "model must be a string, but got 3"),
    ("input shape", lambda t: t.update(input_shape=[3, 16]), "input_shape must be three positive integers"),
    ("classes", lambda t: t.update(num_classes=2.5), "num_classes must be a positive whole number, but got 2.5"),
    ("manner", lambda t: t.update(manner="layer"), 'manner must be "conv" or "block"'),
    ("operators", lambda t: t.update(operators=["a", "a"]), "operators must be a list of distinct names"),
    ("fixed part", lambda t: t.update(fixed_ms="0.1"), "fixed_ms must be a finite number, but got '0.1'"),
    ("truth value", lambda t: t.update(fixed_ms=True), "fixed_ms must be a finite number, but got True"),
    ("incumbent", lambda t: t.update(incumbent_ms=0), "incumbent_ms must be a positive number"),
    ("no slots", lambda t: t.update(slots=[]), "slots must be a list of slots with distinct names"),
    ("slot twice", lambda t: t["slots"].append(t["slots"][0]), "slots must be a list of slots with distinct names"),
    ("slot without name", lambda t: t["slots"][1].pop("name"), r"slots\[1\] lacks name"),
    ("unknown operator", lambda t: t["slots"][0]["candidates"].update(conv7x7=[0]), r"slots\[0\].candidates must be made of"),
    ("index", lambda t: t["slots"][0]["candidates"].update(conv3x3=[99]), r"slots\[0\].candidates.conv3x3 must be indices"),
    ("no index", lambda t: t["slots"][0]["candidates"].update(conv3x3=[]), r"slots\[0\].candidates.conv3x3 must be indices"),
    ("negative index", lambda t: t["slots"][0]["candidates"].update(conv3x3=[-1]), "must be a whole number, 0 or more"),
    ("slot's incumbent", lambda t: t["slots"][0].update(incumbent="conv5x5"), r"slots\[0\].incumbent must be one of"),
    ("entry kind", lambda t: t["entries"].append(5), r"entries\[3\] must be an object, but got 5"),
    ("zero", lambda t: t["entries"][1].update(ms=0), r"entries\[1\].ms must be a positive number of milliseconds, but got 0"),
    ("negative", lambda t: t["entries"][1].update(ms=-1.5), r"entries\[1\].ms must be a positive number.*got -1.5"),
    ("text", lambda t: t["entries"][1].update(p90="fast"), r"entries\[1\].p90 must be a finite number"),
    ("count", lambda t: t["entries"][0].update(n=1.5), r"entries\[0\].n must be a whole number"),
    ("rel", lambda t: t["entries"][0].update(rel=-0.1), r"entries\[0\].rel must be 0 or more"),
    ("entry's unknown", lambda t: t["entries"][0].update(mean=1), r"entries\[0\] has unknown fields mean"),
    ("spec", lambda t: t["entries"][2]["spec"].pop("c_out"), r"entries\[2\].spec must be an operator spec .*c_out"),
    ("spec's size", lambda t: t["entries"][2]["spec"].update(h=0), r"entries\[2\].spec must be an operator spec"),
    ("spec's pair", lambda t: t["entries"][2]["spec"].update(stride=[1, 2, 3]), r"entries\[2\].spec must be an operator spec"),
    ("method", lambda t: t["method"].pop("rounds"), "method lacks rounds"),
    ("method's value", lambda t: t["method"].update(seconds=None), "method.seconds must be a finite number, but got None"),
    ("fingerprint", lambda t: t.update(fingerprint=[]), "fingerprint must be an object"),
    ("validation", lambda t: t.update(validation={"mape": 1.0}), "validation lacks children"),
    ("notes", lambda t: t.update(notes="noisy"), "notes must be a list"),
    ("no positive sum", lambda t: t.update(fixed_ms=-99.0), "the fastest arch must take more than 0 ms"),
]


@pytest.mark.parametrize(("fault", "message"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_a_damaged_table_is_refused_in_one_line_that_names_the_field(
    tmp_path: Path, fault: Callable[[dict[str, Any]], Any], message: str
) -> None:
    content = copy.deepcopy(made([{"conv3x3": 1.0, "max3x3": 0.3}, {"avg3x3": 0.1}]).to_json())
    fault(content)
    path = tmp_path / "table.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TableError, match=message) as caught:
        LatencyTable.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(tmp_path: Path, number: str) -> None:
    path = tmp_path / "table.json"
    text = json.dumps(made([{"conv3x3": 1.0}]).to_json()).replace('"ms": 1.0', f'"ms": {number}')
    assert number in text
    path.write_text(text)
    with pytest.raises(TableError, match=r"not valid JSON|entries\[0\].ms must be a finite number"):
        LatencyTable.load(path)


def test_a_truncated_or_absent_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    with pytest.raises(TableError, match="does not exist"):
        LatencyTable.load(path)
    made([{"conv3x3": 1.0}]).save(path)
    path.write_text(path.read_text()[:300])
    with pytest.raises(TableError, match="not valid JSON"):
        LatencyTable.load(path)


# ---------------------------------------------------------------------------------------------------------- prediction


@given(costs=costs, data=st.data())
def test_prediction_is_the_sum_of_the_entries(costs: list[dict[str, float]], data: st.DataObject) -> None:
    table = made(costs)
    archs = data.draw(st.lists(st.sampled_from(archs_of(table)), min_size=1, max_size=20))
    expected = [naive(table, arch) for arch in archs]
    batch = table.predict(np.array(archs))
    assert batch.shape == (len(archs),)
    np.testing.assert_allclose(batch, expected, rtol=1e-12)
    tensor = table.predict(torch.tensor(archs))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), batch)
    single = table.predict(archs[0])
    assert isinstance(single, float)
    assert single == batch[0]
    np.testing.assert_array_equal(table.predict(list(archs)), batch)


def test_a_slot_with_several_calls_costs_their_sum() -> None:
    table = made([{"conv3x3": 1.0, "max3x3": 0.25}])
    block = replace(table.slots[0], candidates={"conv3x3": (0, 0), "max3x3": (1, 0, 1)})
    table = replace(table, slots=(block,), fixed_ms=0.5)
    assert table.predict([0]) == 2.5
    assert table.predict([2]) == 2.0


def test_a_million_archs_of_16_slots_take_at_most_a_second() -> None:
    table = made([{name: 0.1 * (row + 1) for row, name in enumerate(NAMES)}] * 16)
    codes = np.random.default_rng(0).integers(0, 5, (1_000_000, 16))
    table.predict(codes[:10])
    start = time.thread_time()
    table.predict(codes)
    assert time.thread_time() - start < 1.0


def test_codes_that_are_none_are_refused() -> None:
    table = made([{"conv3x3": 1.0, "max3x3": 0.25}] * 3)
    with pytest.raises(SpaceError, match=r"3 slots, but got shape \(2,\)"):
        table.predict([0, 0])
    with pytest.raises(SpaceError, match="between 0 and 4, but got 5"):
        table.predict([0, 0, 5])
    with pytest.raises(SpaceError, match="between 0 and 4, but got -1"):
        table.predict(np.array([[0, 0, 0], [0, -1, 0]]))
    with pytest.raises(SpaceError, match="integer codes, but got float64"):
        table.predict(np.zeros((2, 3)))


def test_missing_entries_are_all_listed_with_the_command_that_measures_them() -> None:
    table = made([{"conv3x3": 1.0, "max3x3": 0.25}, {"conv3x3": 1.0}, {"conv3x3": 2.0}])
    with pytest.raises(MissingEntryError) as caught:
        table.predict(np.array([[0, 1, 0], [4, 0, 0], [0, 2, 0], [2, 0, 0]]))
    message = str(caught.value)
    assert "3 operators (layer0.conv: conv5x5; layer1.conv: dwsep3x3, max3x3)" in message
    assert (
        "`nar-hw profile --model own --input 3x16x16 --classes 5 --manner conv --operators conv3x3,dwsep3x3,max3x3,conv5x5 "
        "--runtime fake --precision fp32 --batch 1 --threads 2 --fill -o table.json`" in message
    )
    assert "\n" not in message


@given(costs=costs, seed=st.integers(0, 99))
def test_expected_latency_is_the_mean_over_random_archs_and_differentiable(costs: list[dict[str, float]], seed: int) -> None:
    table = made(costs)
    generator = torch.Generator().manual_seed(seed)
    possible = torch.from_numpy(~np.isnan(table.matrix))
    weights = torch.rand(table.matrix.shape, generator=generator, dtype=torch.float64) * possible
    probabilities = (weights / weights.sum(1, keepdim=True)).requires_grad_()
    expected = sum(
        float(np.prod([probabilities[row, code].item() for row, code in enumerate(arch)])) * naive(table, arch)
        for arch in archs_of(table)
    )
    latency = table.predict_probabilities(probabilities)
    assert latency.item() == pytest.approx(expected, rel=1e-9)
    latency.backward()
    assert probabilities.grad is not None
    np.testing.assert_allclose(probabilities.grad.numpy(), np.nan_to_num(table.matrix))
    batch = table.predict_probabilities(probabilities.detach().expand(3, *table.matrix.shape))
    np.testing.assert_allclose(batch.numpy(), latency.item())


def test_expected_latency_refuses_what_it_has_no_entry_for() -> None:
    table = made([{"conv3x3": 1.0}, {"conv3x3": 1.0, "max3x3": 0.5}])
    probabilities = torch.zeros(2, 5)
    probabilities[:, 0] = 1.0
    assert table.predict_probabilities(probabilities).item() == pytest.approx(2.5)
    probabilities[0, 3] = 0.1
    with pytest.raises(MissingEntryError, match=r"layer0\.conv: avg3x3"):
        table.predict_probabilities(probabilities)
    with pytest.raises(SpaceError, match=r"must be \(..., 2, 5\), but got \(5,\)"):
        table.predict_probabilities(probabilities[0])


# ---------------------------------------------------------------------------------------------- bounds, counting, ties


@given(costs=costs)
def test_bounds_are_the_fastest_and_slowest_arch(costs: list[dict[str, float]]) -> None:
    table = made(costs)
    every = [naive(table, arch) for arch in archs_of(table)]
    assert table.bounds() == pytest.approx((min(every), max(every)))


@given(
    costs=st.lists(st.dictionaries(st.sampled_from(NAMES), st.integers(1, 40), min_size=1), min_size=1, max_size=4),
    target=st.integers(0, 200),
)
def test_counting_is_exact_for_multiples_of_the_step(costs: list[dict[str, int]], target: int) -> None:
    table = made([{name: steps / 16 for name, steps in slot.items()} for slot in costs], fixed=0.5)
    expected = sum(naive(table, arch) <= target / 16 for arch in archs_of(table))
    assert table.count_under(target / 16, resolution=1 / 16) == expected


@settings(max_examples=50)
@given(costs=costs, share=st.floats(-0.1, 1.1))
def test_counting_is_off_by_at_most_half_a_step_per_slot(costs: list[dict[str, float]], share: float) -> None:
    table = made(costs)
    fastest, slowest = table.bounds()
    target = fastest + share * (slowest - fastest)
    every = [naive(table, arch) for arch in archs_of(table)]
    slack = len(costs) * (slowest - fastest) / 20_000 + 1e-9
    count = table.count_under(target)
    assert sum(ms <= target - slack for ms in every) <= count <= sum(ms <= target + slack for ms in every)
    assert table.count_under(fastest) >= 1
    assert table.count_under(slowest) == len(every)
    assert table.count_under(np.nextafter(fastest, 0)) == 0


def test_counting_does_not_overflow() -> None:
    table = made([{"conv3x3": 2.0, "dwsep3x3": 1.0, "max3x3": 1.0, "avg3x3": 2.0}] * 53)
    half = table.fixed_ms + 53 + 26
    assert table.count_under(half, resolution=1.0) == 4**53 // 2  # 53 is odd: below the middle lies exactly a half
    with pytest.raises(TableError, match="resolution must be a positive number"):
        table.count_under(half, resolution=0.0)


def test_operators_within_each_others_noise_are_ties() -> None:
    # 1.00 +- 0.02 and 1.02 +- 0.0204 overlap, 1.2 +- 0.024 stands apart
    table = made([{"conv3x3": 1.0, "max3x3": 1.02, "avg3x3": 1.2}, {"conv3x3": 1.0, "max3x3": 1.1}], rel=0.02)
    assert table.ties() == {"layer0.conv": [("conv3x3", "max3x3")]}


# ------------------------------------------------------------------------------------------------------------- checking


def test_a_table_of_this_space_is_accepted(space: SearchSpace) -> None:
    table = for_space(space)
    assert table.check(space) == []
    assert table.check(space, table.fingerprint, model="own") == []
    rng = random.Random(0)
    arch = space.sample(rng)
    assert table.predict(arch) == pytest.approx(0.5 + sum(1 + item.c_in for _, _, item in space.specs(arch)))


def test_a_table_with_more_operators_is_accepted_one_with_fewer_is_not(space: SearchSpace) -> None:
    fewer = SearchSpace.from_model(TinyResNet(), (3, 16, 16), operators=["max3x3"])
    assert for_space(space).check(fewer) == []
    with pytest.raises(MissingEntryError, match=r"4 operators \(layer1.conv1: dwsep3x3; layer1.conv2: dwsep3x3; layer2"):
        for_space(fewer).check(space)


def test_a_table_of_another_space_is_refused_with_both_values(space: SearchSpace) -> None:
    table = for_space(space)
    wider = SearchSpace.from_model(TinyResNet(width=16), (3, 16, 16))
    blocks = SearchSpace.from_model(TinyResNet(), (3, 16, 16), manner="block")
    larger = SearchSpace.from_model(TinyResNet(), (3, 32, 32))
    with pytest.raises(
        TableMismatchError, match=r'conv3x3 in layer1\.conv1 is .*"c_in": 8, .* in the table, .*"c_in": 16, .* here'
    ):
        table.check(wider, allow_mismatch=True)
    with pytest.raises(
        TableMismatchError, match="manner is conv in the table, block here; number of slots is 4 in the table, 2 here"
    ):
        table.check(blocks)
    with pytest.raises(TableMismatchError, match="number of classes is 5 in the table, 7 here"):
        table.check(SearchSpace.from_model(TinyResNet(classes=7), (3, 16, 16)))
    with pytest.raises(TableMismatchError, match="input is 3x16x16 in the table, 3x32x32 here"):
        table.check(larger)
    other = SearchSpace.from_model(TinyResNet(), (3, 16, 16), slots="layer2.*")
    with pytest.raises(TableMismatchError, match=r"slot is layer1\.conv1 in the table, layer2\.conv1 here"):
        table.check(other)
    shifted = replace(table, operators=("new", *table.operators))
    with pytest.raises(TableMismatchError, match="code of operator conv3x3 is 1 in the table, 0 here"):
        shifted.check(space)


def test_a_table_of_other_conditions_is_refused_unless_allowed(space: SearchSpace) -> None:
    table = for_space(space)
    here = {**table.fingerprint, "batch": 8, "device": "another CPU"}
    with pytest.raises(TableMismatchError) as caught:
        table.check(space, here, model="their")
    message = str(caught.value)
    for difference in (
        "model is own in the table, their here",
        "device is a CPU in the table, another CPU here",
        "batch is 1 in the table, 8 here",
    ):
        assert difference in message
    assert "--allow-mismatch" in message
    assert len(table.check(space, here, model="their", allow_mismatch=True)) == 3


def test_schema_1_still_loads(tmp_path: Path) -> None:
    table = made([{"conv3x3": 1.0, "max3x3": 0.2}])
    content = {**table.to_json(), "schema": 1}
    del content["choices"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(content))
    old = LatencyTable.load(path)
    assert old.choices == Choices(operators=("conv3x3", "max3x3"))
    assert old.predict((0,)) == table.predict((0,))


def test_the_command_for_a_missing_entry_repeats_the_choices() -> None:
    choices = Choices(operators=("conv3x3", "my/ops.py:max3x3"), slots="layer[0-9].*", limit_params=False)
    command = replace(made([{"conv3x3": 1.0}]), choices=choices).profile_command(["conv3x3", "max3x3"])
    assert "--operators conv3x3,my/ops.py:max3x3 --slots 'layer[0-9].*' --no-limit-params" in command
