"""Latency is not one number: 90th percentiles, and tables of several batch sizes and thread counts in one session."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nar_hw.errors import TableError, TableMismatchError, UserError
from nar_hw.latency.children import Layers, batch_of
from nar_hw.latency.loader import ChildFiles, ChildLoader
from nar_hw.latency.measure import device_meter
from nar_hw.latency.profiler import profile
from nar_hw.latency.table import LatencyTable, shipped_tables
from nar_hw.latency.validate import validate
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.fake import FakeDevice, FakeRuntime
from nar_hw.space.space import SearchSpace
from nar_hw.steps import profile as steps
from nar_hw.steps.profile import profiles, revalidate
from tests.networks import TinyResNet
from tests.test_cli import Run, ok, refused, run
from tests.test_search_cli import NET, line, table as search_table

__all__ = ["run", "search_table"]  # fixtures

SHAPE = (3, 8, 8)
FAKE = RuntimeConfig(runtime="fake")
NOISE = 0.05


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return SearchSpace.from_model(TinyResNet(), SHAPE, operators=["conv3x3", "dwsep3x3", "max3x3"])


@pytest.fixture(scope="module")
def noisy(space: SearchSpace) -> LatencyTable:
    """Of a device whose times are lognormal."""
    with FakeRuntime.on(FakeDevice(noise=NOISE)):
        return profile(space, config=FAKE, model_name="own", rounds=20, tolerance=0.0, validate=12)


EXACT = math.exp(1.2816 * NOISE)
"""90th percentile over median of a lognormal distribution."""


def test_percentiles_are_of_single_runs_without_the_first_of_a_visit() -> None:
    runs = np.random.default_rng(0).lognormal(0.0, 0.3, (6, 2, 9))
    runs[:, :, 0] = 100.0  # cold caches
    batch = batch_of("fake", ["a", "b"], runs, np.ones((6, 1, 9)), None)
    for item, child in enumerate(batch.children):
        ordered = np.sort(runs[:, item, 1:].ravel())  # 48 runs
        high = ordered[42] + 0.3 * (ordered[43] - ordered[42])  # 0.9 * 47 = 42.3
        assert child.p90 == pytest.approx(high / ((ordered[23] + ordered[24]) / 2))


def test_layers_do_not_change_them() -> None:
    runs = np.ones((2, 1, 5))
    layers = [Layers([{"x/conv": 1.0}] * 10, {})]
    (child,) = batch_of("fake", ["a"], runs, np.ones((2, 1, 5)), layers).children
    assert child.p90 == 1.0


def test_the_tail_of_known_noise_is_found_and_validated(noisy: LatencyTable) -> None:
    assert noisy.p90 == pytest.approx(EXACT, rel=0.01)
    assert noisy.validation is not None
    assert noisy.validation.p90_mape is not None
    assert noisy.validation.p90_mape < 3
    for pair in noisy.validation.pairs:
        assert pair.p90_ms is not None
        assert pair.p90_ms / pair.measured_ms == pytest.approx(EXACT, rel=0.03)


def test_a_table_of_90th_percentiles_predicts_them_and_is_another_table(noisy: LatencyTable, tmp_path: Path) -> None:
    high = noisy.at_percentile(90)
    assert noisy.p90 is not None
    archs = np.array([[0, 1, 2, 0], [2, 2, 1, 1]])[:, : len(noisy.slots)]
    assert high.predict(archs) == pytest.approx(noisy.p90 * noisy.predict(archs))
    assert high.incumbent_ms == pytest.approx(noisy.p90 * noisy.incumbent_ms)
    assert high.hash != noisy.hash
    assert high.at_percentile(90) is high
    assert noisy.at_percentile(50) is noisy
    high.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == high


def test_what_a_table_does_not_know_is_refused_in_one_line(noisy: LatencyTable, space: SearchSpace) -> None:
    with pytest.raises(
        TableError, match=r"^the latency table must say how far the 90th percentile is above[^\n]*nar-hw profile$"
    ):
        LatencyTable.load(shipped_tables()[0]).at_percentile(90)
    with pytest.raises(UserError, match="percentile must be one of 50, 90, but got 75"):
        noisy.at_percentile(75)
    high = noisy.at_percentile(90)
    for use in (lambda: high.at_percentile(50), lambda: validate(high, space), lambda: revalidate(high, children=3, seed=1)):
        with pytest.raises(TableError, match=r"^a table of medians is needed, but this one holds 90th percentiles[^\n]*$"):
            use()


def test_the_device_is_measured_in_the_percentile_of_the_table(noisy: LatencyTable, space: SearchSpace) -> None:
    archs = [space.incumbent, tuple(slot.candidates[-1] for slot in space.slots)]
    with FakeRuntime.on(FakeDevice(noise=NOISE)):
        meters = [device_meter(space, table) for table in (noisy, noisy.at_percentile(90))]
        assert all(meters)
        middle, high = (meter(archs) for meter in meters if meter)
    exact = [FakeRuntime.truth(space.build(arch), SHAPE, device=FakeDevice(noise=NOISE)) for arch in archs]
    assert middle == pytest.approx(exact, rel=0.03)
    assert high == pytest.approx([EXACT * ms for ms in exact], rel=0.04)


@pytest.mark.parametrize("edit", [{"p90": 0.9}, {"p90": "x"}, {"percentile": 75}, {"contention": {"seconds": "x"}}])
def test_damaged_fields_are_refused(noisy: LatencyTable, tmp_path: Path, edit: dict[str, Any]) -> None:
    (tmp_path / "t.json").write_text(json.dumps({**noisy.content(), **edit}))
    with pytest.raises(UserError, match=rf"^latency table [^\n]*{next(iter(edit))}[^\n]*$"):
        LatencyTable.load(tmp_path / "t.json")


def test_a_search_by_the_90th_percentile_says_so(run: Run, search_table: Path, tmp_path: Path) -> None:
    high = LatencyTable.load(search_table).at_percentile(90)
    target = sum(high.bounds()) / 2
    found = ok(run(line(search_table, "--percentile 90 --json", target=target)))
    kept = LatencyTable.load(tmp_path / "x" / "table.json")
    assert kept.percentile == 90
    assert found["predicted_ms"] == pytest.approx(high.predict(high.parse(",".join(found["arch"]))))
    assert found["predicted_ms"] <= target
    old = json.loads(search_table.read_text())
    del old["p90"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert "must say how far the 90th percentile" in refused(run(line(tmp_path / "old.json", "--percentile 90")))


# ------------------------------------------------------------------------------------------------------------ conditions


def test_several_conditions_make_a_file_each(run: Run, tmp_path: Path) -> None:
    base = f"profile --model {NET} --input 3x8x8 --classes 4 --operators conv3x3,max3x3 --runtime fake --rounds 2 --validate 0"
    found = ok(run(f"{base} --batch 1,2,2 --threads 1,2 -o t.json --json"))["tables"]
    names = ["t.b1.t1.json", "t.b1.t2.json", "t.b2.t1.json", "t.b2.t2.json"]
    assert [Path(item["table"]).name for item in found] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [(item["batch"], item["threads"]) for item in found] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert found[2]["incumbent_ms"] > 1.03 * found[0]["incumbent_ms"], "the fake's launches cost the same for two images"
    alone = ok(run(f"{base} --batch 2 -o u.json --json"))
    assert alone["table"] == "u.json"
    for option in ("--fill", "--kit k"):
        output = "" if option == "--kit k" else "-o t.json"
        assert "for one batch size and thread count, but got 2" in refused(run(f"{base} --batch 1,2 {option} {output}"))
    assert "--batch must be a whole number" in refused(run(f"{base} --batch 1,x -o v.json"))


def test_what_was_complete_is_kept_when_it_goes_on(space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {tmp_path / f"{size}.json": replace(FAKE, batch=size) for size in (1, 2)}
    options: dict[str, Any] = {"model_name": "own", "rounds": 2, "validate": 0}
    made: list[int] = []

    def counted(space: SearchSpace, *, config: RuntimeConfig, **settings: Any) -> LatencyTable:
        made.append(config.batch)
        if len(made) == 2:
            raise KeyboardInterrupt
        return profile(space, config=config, **settings)

    monkeypatch.setattr(steps, "profile", counted)
    with pytest.raises(KeyboardInterrupt):
        profiles(space, outputs, **options)
    tables = profiles(space, outputs, resume=True, **options)
    assert made == [1, 2, 2]
    assert list(tables) == list(outputs)
    assert LatencyTable.load(tmp_path / "1.json") == tables[tmp_path / "1.json"]
    (tmp_path / "1.json").write_bytes((tmp_path / "2.json").read_bytes())
    with pytest.raises(TableMismatchError, match="batch is 2 in the table, 1 here"):
        profiles(space, outputs, resume=True, **options)


def test_one_export_serves_all_thread_counts_of_a_batch_size(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    from nar_hw.export import splice

    exports: list[tuple[int, bool]] = []

    class Counted:
        def __init__(self, space: SearchSpace, *, batch: int, weights_in: Path | None) -> None:
            exports.append((batch, weights_in is not None))

    monkeypatch.setattr(splice, "ChildExporter", Counted)
    files = ChildFiles(space)
    for batch, threads in ((1, 1), (1, 2), (8, 1), (8, 2), (1, 3)):
        ChildLoader(space, RuntimeConfig(batch=batch, threads=threads), files).close()
    assert exports == [(1, True), (8, True)]
    ChildLoader(space, RuntimeConfig()).close()
    assert exports[2:] == [(1, True)]
    folder = files.new().parent
    assert folder.is_dir()
    files.close()
    assert not folder.exists()
