"""`nar-hw search` through its real entry point: what it takes, what it refuses, what it records."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from nar_hw.latency.profiler import profile
from nar_hw.latency.table import LatencyTable
from nar_hw.models.info import ModelInfo
from nar_hw.runtimes import RuntimeConfig
from tests.networks import TinyResNet
from tests.test_cli import DATA, Run, ok, reachable, refused, run

__all__ = ["run"]  # a fixture

NET = f"{__file__}:small"
Edit = Callable[[dict[str, Any]], None]


def small(num_classes: int) -> nn.Module:
    """For --model."""
    return TinyResNet(classes=num_classes)


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
    busy = "busy machine: this machine's lease was removed"

    def edit(content: dict[str, Any]) -> None:
        content["fingerprint"]["device"] = "a phone"
        content["notes"] = [busy, "not validated"]

    other = edited(table, tmp_path / "t.json", edit)
    differs = "device is a phone in the table, fake device here"
    found = ok(run(line(other, "--allow-mismatch --json")))
    assert found["allowed_mismatch"] == [differs]
    assert found["measured_ms"] is None
    assert json.loads((tmp_path / "x/run.json").read_text())["allowed_mismatch"] == [differs]
    code, out, err = run(line(other, "--allow-mismatch --resume"))
    assert code == 0
    assert f"note: the latency table of a phone: {busy}" in " ".join(err.split())
    assert "not validated" not in err
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


def tablet(table: Path, path: Path) -> Path:
    """The same network on another device, where pools are slow."""

    def edit(content: dict[str, Any]) -> None:
        content["fingerprint"].update(device="a tablet")
        for entry in content["entries"]:
            entry["ms"] *= 9 if entry["spec"]["operator"] == "max3x3" else 2

    return edited(table, path, edit)


def test_several_tables_flops_and_params(run: Run, table: Path, tmp_path: Path) -> None:
    other = tablet(table, tmp_path / "t.json")
    asked = reachable(other)
    limits = f"--table {other} --target-ms {asked} --max-flops 1000000 --max-params 30000"
    found = ok(run(line(table, limits, "--json")))
    assert found["met"]
    assert found["measured_ms"] is not None
    latency, flops, params = found["others"]
    assert latency["name"] == "ms on a tablet (fake fp32)"
    assert latency["cost"] == pytest.approx(LatencyTable.load(other).predict(parsed(table, found)))
    assert latency["cost"] <= asked
    assert 0 < flops["cost"] <= flops["target"] == 1_000_000
    assert 0 < params["cost"] <= params["target"] == 30_000
    assert ok(run(line(table, limits, "--resume --json"))) == found
    mean = ok(run(line(table, limits, "--combine mean --weight 3 --weight 1 --json").replace("--out x", "--out y")))
    assert json.loads((tmp_path / "y/run.json").read_text())["load"] == pytest.approx(
        max(
            0.75 * mean["predicted_ms"] / mean["target_ms"] + 0.25 * mean["others"][0]["cost"] / asked,
            0.75 * mean["measured_ms"] / mean["target_ms"] + 0.25 * mean["others"][0]["cost"] / asked,
            mean["others"][1]["cost"] / 1_000_000,
            mean["others"][2]["cost"] / 30_000,
        )
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--max-params 1000", r"one arch must meet all targets, but none does: the nearest takes .* of 1000 parameters"),
        ("--table {table} --combine median", r"unknown combine 'median': use one of mean"),
        ("--table {table} --weight 1 --weight 2", r"combine=mean with weights must hold"),
        ("--target-ms 3", r"the target must be within .* ms, which this space reaches by its table, but got 3 ms"),
        ("--max-flops 0", r"--max-flops must be a whole number from 1 to"),
        ("--precision int4", r"unknown precision 'int4': use one of"),
        ("--warmup-paths strategy", r"warmup_paths is fair or uniform must hold"),
    ],
)
def test_limits_that_cannot_be_are_refused_before_the_search(
    run: Run, table: Path, tmp_path: Path, options: str, message: str
) -> None:
    assert re.search(message, refused(run(line(table, options.format(table=table)))))
    assert not (tmp_path / "x").exists()


def test_how_weights_are_trained_is_kept(run: Run, table: Path, tmp_path: Path) -> None:
    ok(run(line(table, "--strategy evolution --warmup-paths uniform --paths strategy --precision bf16 --channels-last --json")))
    config = json.loads((tmp_path / "x/run.json").read_text())["identity"]["config"]
    found = [config[name] for name in ("strategy", "warmup_paths", "paths", "precision", "channels_last")]
    assert found == ["evolution", "uniform", "strategy", "bf16", True]
    ok(run("report x --json"))
    wanted = (
        "--strategy evolution --warmup-epochs 0 --warmup-paths uniform --epochs 1 --paths strategy --batch 32 --precision bf16"
    )
    assert wanted in (tmp_path / "x/report.html").read_text()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_gets_what_the_history_has_once_an_epoch(run: Run, table: Path, tmp_path: Path) -> None:
    """Also where an interrupted search has written of epochs that are repeated."""
    pytest.importorskip("tensorboard")
    from nar_hw.training.tensorboard import TensorBoard

    interrupted = TensorBoard(tmp_path / "x/tensorboard")
    for epoch in (1, 2, 3):
        interrupted({"epoch": epoch, "warmup": 0, "reward": 99.0})
    ok(run(line(table, "--tensorboard --json").replace("--epochs 1", "--epochs 2")))
    history = json.loads((tmp_path / "x/run.json").read_text())["history"]
    found = scalars(tmp_path / "x/tensorboard")
    assert {"reward", "accuracy", "load", "latency_ms", "entropy", "loss"} <= found.keys()
    for tag, values in found.items():
        assert values == [(number, pytest.approx(log[tag])) for number, log in enumerate(history, 1)]
        assert len(values) == 2


def test_tensorboard_that_is_not_installed_is_one_line(run: Run, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    message = refused(run(line(table, "--tensorboard")))
    assert "need the package tensorboard" in message
    assert "pip install 'nar-hw[tensorboard]'" in message
    assert not Path("x").exists()
    assert ok(run(line(table, "--json")))
