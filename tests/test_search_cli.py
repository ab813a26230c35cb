"""`nar-hw search` through its real entry point: what it takes, what it refuses, what it records."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nar_hw.latency.profiler import profile
from nar_hw.latency.table import LatencyTable
from nar_hw.runs import ModelInfo
from nar_hw.runtimes import RuntimeConfig
from tests.test_cli import DATA, NET, Run, ok, reachable, refused, run

__all__ = ["run"]  # a fixture

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    info = ModelInfo(name=NET, input_shape=(3, 8, 8), num_classes=4, operators=("conv3x3", "dwsep3x3", "max3x3"))
    path = tmp_path_factory.mktemp("tables") / "table.json"
    profile(info.space(), config=RuntimeConfig(runtime="fake"), model_name=NET, validate=0).save(path)
    return path


def edited(table: Path, path: Path, edit: Edit) -> Path:
    content = json.loads(table.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return path


def line(table: Path, *options: str, target: float | None = None) -> str:
    asked = reachable(table) if target is None else target
    short = "--epochs 1 --warmup-epochs 0 --batch 32 --out x"
    return " ".join([f"search --model {NET} --data {DATA} --table {table} --target-ms {asked} {short}", *options])


def test_what_was_allowed_to_differ_is_told_and_kept(run: Run, table: Path, tmp_path: Path) -> None:
    other = edited(table, tmp_path / "t.json", lambda content: content["fingerprint"].update(device="a phone"))
    differs = "device is a phone in the table, fake device here"
    found = ok(run(line(other, "--allow-mismatch --json")))
    assert found["allowed_mismatch"] == [differs]
    assert found["measured_ms"] is None
    assert json.loads((tmp_path / "x/run.json").read_text())["allowed_mismatch"] == [differs]
    code, out, _ = run(line(other, "--allow-mismatch --resume"))
    assert code == 0
    assert re.search(rf"asked for; allowed: {differs}", " ".join(out.split()))


def test_nothing_is_told_of_a_table_that_fits(run: Run, table: Path, tmp_path: Path) -> None:
    assert ok(run(line(table, "--json")))["allowed_mismatch"] == []
    record = json.loads((tmp_path / "x/run.json").read_text())
    assert record["allowed_mismatch"] == []
    assert "allowed" not in record["note"]
    assert refused(run(line(table))).startswith("nar-hw: x holds a search already")


def test_the_pick_is_measured_where_the_device_is_here(run: Run, table: Path) -> None:
    found = ok(run(line(table, "--json")))
    assert found["measured_ms"] == pytest.approx(LatencyTable.load(table).predict(parsed(table, found)), rel=0.05)


def parsed(table: Path, found: dict[str, Any]) -> tuple[int, ...]:
    return LatencyTable.load(table).parse(",".join(found["arch"]))
