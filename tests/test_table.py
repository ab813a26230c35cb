import itertools
import json
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from hypothesis import given, strategies as st

from nar_hw.cli.app import app, model_info
from nar_hw.errors import MissingEntryError, SpaceError, TableError, TableMismatchError
from nar_hw.latency.record import Entry, Method, Pair, TableSlot, Validation
from nar_hw.latency.table import LatencyTable, shipped_tables
from nar_hw.models.info import ModelInfo
from nar_hw.records import changes, plain, replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import OpSpec
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
        network=ModelInfo(name="own", input_shape=(3, 16, 16), num_classes=5),
        operators=NAMES,
        slots=tuple(slots),
        entries=tuple(entries),
        fixed_ms=fixed,
        incumbent_ms=fixed + sum(next(iter(operators.values())) for operators in costs),
        fingerprint={"device": "a CPU", "runtime": "fake", "precision": "fp32", "batch": 1, "threads": 2},
        method=Method(name="in-context", children=4, rounds=8, seconds=1.5, seed=0, replicates=1),
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
        made([{"conv3x3": 1.0}]),
        slots=tuple(slots),
        entries=entries,
        operators=space.operators,
        network=ModelInfo(name="own", input_shape=space.input_shape, num_classes=space.num_classes),
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
    names = ("floor_mape", "floor_spearman", "mape", "max_error", "within_5", "within_10", "spearman", "kendall", "speed")
    validation = Validation(
        children=1,
        rounds=2,
        seed=3,
        seconds=1.5,
        **dict.fromkeys(names, 0.9),
        pairs=(Pair(arch=("conv3x3", "avg3x3"), predicted_ms=1.0, measured_ms=1.1),),
    )
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
        {"network": replace(table.network, name="other")},
        {"network": replace(table.network, limit_params=False)},
        {"method": replace(table.method, seed=1)},
        {"fingerprint": {**table.fingerprint, "batch": 2}},
        {"entries": (replace(table.entries[0], ms=1.0001), table.entries[1])},
    ):
        assert replace(table, **change).hash != table.hash


Change = Callable[[dict[str, Any]], Any]
FAULTS: list[tuple[str, Change, str]] = [
    ("no schema", lambda t: t.pop("schema"), "must have schema 6 or less, but has None"),
    ("newer schema", lambda t: t.update(schema=7, nar_hw="3.1.0"), "schema 6 or less, but has 7, made by nar_hw 3.1.0: install"),
    ("newer schema without a writer", lambda t: (t.update(schema=7), t.pop("nar_hw")), "install the latest nar-hw"),
    ("missing part", lambda t: t.pop("slots"), "must have 'slots'"),
    ("unknown part", lambda t: t.update(colour="red"), "unknown field 'colour'"),
    ("model", lambda t: t["network"].update(name=3), "network.name must be str, but is 3"),
    ("input shape", lambda t: t["network"].update(input_shape=[3, 16]), r"network.input_shape must be .*3, but is \[3, 16\]"),
    ("classes", lambda t: t["network"].update(num_classes=2.5), "network.num_classes must be int, but is 2.5"),
    ("operators", lambda t: t.update(operators=["a", "a"]), "operators must be distinct names, but got"),
    ("fixed part", lambda t: t.update(fixed_ms="0.1"), "fixed_ms must be float, but is '0.1'"),
    ("truth value", lambda t: t.update(fixed_ms=True), "fixed_ms must be float, but is True"),
    ("incumbent", lambda t: t.update(incumbent_ms=0), "incumbent_ms must be float > 0.0, but is 0"),
    ("no slots", lambda t: t.update(slots=[]), "slots must be a list of slots with distinct names"),
    ("slot twice", lambda t: t["slots"].append(t["slots"][0]), "slots must be a list of slots with distinct names"),
    ("slot without name", lambda t: t["slots"][1].pop("name"), r"slots\[1\] must have 'name'"),
    (
        "unknown operator",
        lambda t: t["slots"][0]["candidates"].update(conv7x7=[0]),
        "slot layer0.conv must be one of the op.*7x7",
    ),
    ("index", lambda t: t["slots"][0]["candidates"].update(conv3x3=[99]), r"conv3x3 in slot layer0.conv must be indices.*\[99\]"),
    (
        "no index",
        lambda t: t["slots"][0]["candidates"].update(conv3x3=[]),
        r"slots\[0\].candidates\[?.?conv3x3\]? must be .*>= 1",
    ),
    ("negative index", lambda t: t["slots"][0]["candidates"].update(conv3x3=[-1]), r"slots\[0\].candidates.*must be int >= 0"),
    ("slot's incumbent", lambda t: t["slots"][0].update(incumbent="conv5x5"), "incumbent of slot layer0.conv must be one of"),
    ("entry kind", lambda t: t["entries"].append(5), r"entries\[3\] must be object, but is 5"),
    ("zero", lambda t: t["entries"][1].update(ms=0), r"entries\[1\].ms must be float > 0.0, but is 0"),
    ("negative", lambda t: t["entries"][1].update(ms=-1.5), r"entries\[1\].ms must be float > 0.0, but is -1.5"),
    ("text", lambda t: t["entries"][1].update(p90="fast"), r"entries\[1\].p90 must be float, but is 'fast'"),
    ("count", lambda t: t["entries"][0].update(n=1.5), r"entries\[0\].n must be int, but is 1.5"),
    ("rel", lambda t: t["entries"][0].update(rel=-0.1), r"entries\[0\].rel must be float >= 0.0, but is -0.1"),
    ("entry's unknown", lambda t: t["entries"][0].update(mean=1), r"entries\[0\] has an unknown field 'mean'"),
    ("spec", lambda t: t["entries"][2]["spec"].pop("c_out"), r"entries\[2\].spec must have 'c_out'"),
    ("spec's size", lambda t: t["entries"][2]["spec"].update(h=0), r"entries\[2\].spec.h must be int >= 1, but is 0"),
    (
        "spec's pair",
        lambda t: t["entries"][2]["spec"].update(stride=[1, 2, 3]),
        r"entries\[2\].spec.stride must be .* of length 2",
    ),
    ("method", lambda t: t["method"].pop("rounds"), "method must have 'rounds'"),
    ("method's value", lambda t: t["method"].update(seconds=None), "method.seconds must be float, but is None"),
    ("fingerprint", lambda t: t.update(fingerprint=[]), r"fingerprint must be object, but is \[\]"),
    ("validation", lambda t: t.update(validation={"mape": 1.0}), "validation must have 'children'"),
    ("notes", lambda t: t.update(notes="noisy"), "notes must be array, but is 'noisy'"),
    ("no positive sum", lambda t: t.update(fixed_ms=-99.0), "the fastest arch must take more than 0 ms"),
]


@pytest.mark.parametrize(("fault", "message"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_a_damaged_table_is_refused_in_one_line_that_names_the_field(
    tmp_path: Path, fault: Callable[[dict[str, Any]], Any], message: str
) -> None:
    content = json.loads(json.dumps(made([{"conv3x3": 1.0, "max3x3": 0.3}, {"avg3x3": 0.1}]).content()))
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
    text = json.dumps(made([{"conv3x3": 1.0}]).content()).replace('"ms": 1.0', f'"ms": {number}')
    assert number in text
    path.write_text(text)
    with pytest.raises(TableError, match="not valid JSON"):
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
        "`nar-hw profile --model own --input 3x16x16 --classes 5 --operators conv3x3,dwsep3x3,max3x3,conv5x5 "
        "--runtime fake --threads 2 --fill -o table.json`" in message
    )
    assert "\n" not in message


# ---------------------------------------------------------------------------------------------- bounds, ties


@given(costs=costs)
def test_bounds_are_the_fastest_and_slowest_arch(costs: list[dict[str, float]]) -> None:
    table = made(costs)
    every = [naive(table, arch) for arch in archs_of(table)]
    assert table.bounds() == pytest.approx((min(every), max(every)))


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


def test_what_cannot_be_compared_is_said_and_the_rest_is_compared(space: SearchSpace) -> None:
    table = replace(for_space(space), fingerprint={"device": "a CPU", "runtime": "openvino", "runtime_version": "2026.1"})
    here = {**table.fingerprint, "runtime_version": None}
    (note,) = table.check(space, here)
    assert note == "runtime_version is 2026.1 in the table and cannot be compared: the runtime is not installed here"
    with pytest.raises(
        TableMismatchError, match=r"device is a CPU in the table, another CPU here; runtime_version is .*installed"
    ):
        table.check(space, {**here, "device": "another CPU"})


SAMPLE = Path(__file__).parent / "golden" / "table_schema_1.json"


def test_schema_1_still_loads() -> None:
    old = LatencyTable.load(SAMPLE)
    assert old.network == ModelInfo(name="own", input_shape=(3, 16, 16), num_classes=5, operators=("conv3x3", "max3x3", "avg3x3"))
    new = made([{"conv3x3": 1.0, "max3x3": 0.3}, {"avg3x3": 0.1}])
    assert (old.slots, old.entries, old.method, old.fingerprint) == (new.slots, new.entries, new.method, new.fingerprint)
    assert old.hash == "a821cf9fb1c45236a41ff860502a4b6946088586840127c6e2fefcd018facb49"


HASHES = {
    "onnxruntime__fp32__resnet18-3x32x32": "43c4f353dfe2bd6e0a160d20abf2dabd80a452014ef74fc042ff36a02e35a884",
    "onnxruntime__fp32__resnet_digits-1x8x8": "c6cb4c1ddc1f1c3dc7d8c0a65d153e29786fb334fcd26f2a708bd4f7380cc872",
    "openvino__fp32__resnet18-3x32x32": "d4f351e94ae44f05504d94f53248a91635ad7e1bcedd9291e18a1df8c7afc752",
    "openvino__fp32__resnet_digits-1x8x8": "1d0ea11d9acb584e39e5b61a0833e8d353c0b44180ccb84b7ae6315e1366a911",
    "torch_eager__fp32__resnet18-3x32x32": "0364774dc334643f7c4cc300c824e08258f08b1e8d339df8a28f4a1c99d43a81",
    "torch_eager__fp32__resnet_digits-1x8x8": "cde17d732ae0f79d7194c0daa2fe19382183b1383dd64facf2e764b89de52665",
}
"""Of the shipped tables, as the code that wrote schema 2 computed them: files of searches and children name them."""


def test_hashes_of_older_tables_stay_what_they_were(tmp_path: Path) -> None:
    assert {path.stem.split("__", 1)[1] for path in shipped_tables()} >= HASHES.keys()
    for path in shipped_tables():
        if expected := HASHES.get(path.stem.split("__", 1)[1]):
            table = LatencyTable.load(path)
            assert json.loads(path.read_text())["schema"] == 2
            assert table.hash == expected
            table.save(tmp_path / "new.json")
            assert json.loads((tmp_path / "new.json").read_text())["schema"] == 4
            assert LatencyTable.load(tmp_path / "new.json") == table
            assert LatencyTable.load(tmp_path / "new.json").hash == expected


def test_a_changed_table_predicts_anew() -> None:
    table = made([{"conv3x3": 1.0}])
    assert table.predict((0,)) == 1.5
    assert replace(table, fixed_ms=2.0, entries=(replace(table.entries[0], ms=3.0),)).predict((0,)) == 5.0


def test_the_networks_own_arch_has_a_name() -> None:
    table = made([{"max3x3": 1.0, "conv3x3": 0.3}, {"avg3x3": 0.1}])
    assert table.parse("incumbent") == table.parse("max3x3,3") == table.incumbent == (2, 3)


def parsed(line: str) -> tuple[ModelInfo, RuntimeConfig, dict[str, Any]]:
    """What `nar-hw profile` makes of a command line; nothing runs."""
    program, verb, *words = shlex.split(line)
    assert (program, verb) == ("nar-hw", "profile")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    given = commands["profile"].make_context("profile", words).params
    names = ("model", "input", "manner", "operators", "classes", "slots", "limit_params")
    given = {name: value[0] if name in ("batch", "threads") else value for name, value in given.items()}
    config = RuntimeConfig(**{field: given[field] for field in RuntimeConfig.__struct_fields__})
    return model_info(**{name: given[name] for name in names}), config, given


@pytest.mark.parametrize("other", [False, True], ids=["defaults", "nothing at its default"])
def test_the_command_for_missing_entries_says_all_that_was_asked(other: bool) -> None:
    network = ModelInfo(name="own", input_shape=(3, 16, 16), num_classes=5, operators=("conv3x3",))
    config = RuntimeConfig()
    if other:
        network = ModelInfo(
            name="my nets/net.py:make",
            input_shape=(1, 20, 24),
            num_classes=7,
            manner="block",
            operators=("conv3x3", "my ops/ops.py:wide"),
            slots="layer[0-9].*",
            limit_params=False,
        )
        config = RuntimeConfig(
            runtime="cuda_graph", precision="bf16", batch=4, threads=3, device="cuda", memory_format="channels_last"
        )
        # Tables are of networks with all of their skips.
        assert changes(network).keys() == {*ModelInfo.__struct_fields__} - {"skips"}
        assert changes(config).keys() == {*RuntimeConfig.__struct_fields__}
    table = replace(made([{"conv3x3": 1.0}]), network=network, fingerprint={**plain(config), "kind": config.device})
    assert table.config == config
    names = [name.rpartition(":")[2] for name in network.operators or ()]
    found, conditions, given = parsed(table.profile_command(names))
    assert (found, conditions) == (network, config)
    assert given["fill"] is True
    assert given["output"] == Path("table.json")


def test_reading_a_table_needs_no_torch() -> None:
    code = (
        "import sys, nar_hw; from nar_hw.latency.diff import diff; from nar_hw.latency.table import shipped_tables\n"
        "first, second, *_ = map(nar_hw.LatencyTable.load, shipped_tables()[::2])\n"
        "first.predict(first.incumbent), first.bounds(), first.ties(), first.hash, first.profile_command(['conv3x3'])\n"
        "diff(first, first)\n"
        "print(*sorted({'torch', 'torchvision', 'scipy', 'onnx', 'onnxruntime'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
