"""The GPU session: stages in miniature, and pieces that are kept, stopped and taken up again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import cifar, plan, session
from benchmarks.gpu.measuring import targets
from benchmarks.gpu.runner import (
    BEGUN,
    FAILED,
    NOT_BEGUN,
    STOPPED,
    NotReadyError,
    OutOfTime,
    Piece,
    Record,
    alarm,
    run_stage,
)
from nar_hw.data import data_root, load_data
from nar_hw.errors import RunError
from nar_hw.latency import children as children_module
from nar_hw.latency.profiler import profile
from nar_hw.latency.table import LatencyTable
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.space.flops import SpaceCounts
from nar_hw.space.space import SearchSpace
from tests.networks import TinyResNet

ROOT = Path(__file__).parent.parent
SHEETS = data_root() / "cifar10"


@pytest.mark.skipif("NAR_HW_SLOW_TESTS" not in os.environ, reason="takes half a minute: set NAR_HW_SLOW_TESTS=1")
def test_every_stage_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One test, because one session makes what all the checks look at."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert session.main(["--smoke", "--out", str(tmp_path)]) == 0
        (device,) = tmp_path.iterdir()
        for check in (check_doctor, check_tables, check_training, check_cifar10, check_export):
            check(device)
        # a second call measures nothing
        before = {stage: pieces(device, stage) for stage in session.STAGES}
        capsys.readouterr()
        assert session.main(["--smoke", "--out", str(tmp_path)]) == 0
        assert "2 of 2 pieces are finished" in capsys.readouterr().out
        assert {stage: pieces(device, stage) for stage in session.STAGES} == before
    finally:
        torch.set_num_threads(threads)


def pieces(device: Path, stage: str) -> dict[str, dict[str, Any]]:
    content = json.loads((device / f"{stage}.json").read_text())
    assert content["smoke"] is True
    assert content["missing"] == {}
    assert {"command", "versions", "device", "system"} <= content.keys()
    found: dict[str, dict[str, Any]] = content["pieces"]
    assert all({"date", "seconds"} <= piece.keys() for piece in found.values())
    return found


def check_doctor(device: Path) -> None:
    found = pieces(device, "doctor")
    assert {item["name"] for item in found["runtimes"]["runtimes"]} >= {"cuda_graph", "torch_compile", "aoti"}
    (noise,) = (piece for key, piece in found.items() if key.startswith("noise"))
    assert [row["subject"] for row in noise["rows"]] == ["network", "copy"]
    assert len(noise["comparisons"]) == 1


def check_tables(device: Path) -> None:
    found = pieces(device, "tables")
    assert [piece["method"]["name"] for piece in found.values()] == ["regression", "in-context"]
    for piece in found.values():
        table = LatencyTable.load(device / "latency_tables" / piece["file"])
        assert table.validation is not None
        assert table.validation.children == piece["validation"]["children"] == 4
        assert table.incumbent_ms == piece["incumbent_ms"]
        assert piece["file"].startswith(("fake-device__fake__fp32__TinyResNet", f"{device.name}__torch_eager__fp32__TinyResNet"))
    assert not list((device / "work/profiles").glob("*.part"))


def check_training(device: Path) -> None:
    found = pieces(device, "training")
    assert found["loop bf16"]["images"] == 128
    faces = found["supernet TinyResNet-3x8x8 faces fp32"]
    # the paper's search at so many images a second: 150 epochs of 144,000 images
    minutes = 150 * 144_000 / faces["images_per_s"] / 60
    assert faces["the paper's face search"]["GPU minutes"] == pytest.approx(minutes, rel=0.01)
    assert "the paper's face search" not in found["supernet TinyResNet-3x8x8 fp32"]


def check_cifar10(device: Path) -> None:
    found = pieces(device, "cifar10")
    search, summary = found["search"], found["summary"]
    assert [item["share"] for item in search["refused"]] == [0.01]
    assert "must be within" in search["refused"][0]["reason"]
    assert search["share"] == 1.05
    assert search["target_ms"] == pytest.approx(1.05 * search["incumbent_ms"])
    assert found["child, seed 0"]["arch"] == found["child, inherited, seed 0"]["arch"] == search["arch"]
    assert (found["child, seed 0"]["init"], found["child, inherited, seed 0"]["init"]) == ("scratch", "inherited")
    difference = found["child, seed 0"]["accuracy"]["test"] - found["baseline, seed 0"]["accuracy"]["test"]
    assert summary["points above the baseline"]["child"] == pytest.approx(100 * difference, abs=1e-3)
    (share,) = (row["of the baseline"] for row in found["latency"]["rows"] if row["network"] == "child")
    assert summary["targets"]["latency <= 0.6 of the baseline"] == {"value": share, "holds": share <= 0.6}


def check_export(device: Path) -> None:
    found = pieces(device, "export")
    assert found["bundle child onnx fp32 batch 1-8"]["variants"]["fp32"]["file"] == "model.onnx"
    bench = found["bench onnxruntime fp32 batch 2 on the CPU"]
    assert [row["subject"] for row in bench["rows"]] == ["baseline", "child"]
    assert (bench["comparisons"][0]["subject"], bench["comparisons"][0]["against"]) == ("child", "baseline")
    if not torch.cuda.is_available():
        assert "CUDA" in found["bench onnxruntime fp32 batch 1"]["left_out"]
    told = found["asked, predicted, measured"]
    assert told["asked_ms"] == pieces(device, "cifar10")["search"]["target_ms"]
    assert told["of the baseline"] == pytest.approx(
        told["measured_ms (p50) by the benchmark"] / told["baseline_ms (p50) by the benchmark"]
    )


def kept(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "stage.json").read_text())
    return found


def run(tmp_path: Path, *todo: Piece, seconds: float = 60) -> tuple[Record, list[str]]:
    said: list[str] = []
    record = Record(tmp_path / "stage.json", {"stage": "stage"})
    assert run_stage(record, todo, seconds=seconds, say=said.append)
    return record, said


def never() -> dict[str, Any]:
    raise AssertionError("this piece is finished")


def endless() -> dict[str, Any]:
    while True:
        time.sleep(0.001)


def failing(problem: BaseException) -> Callable[[], dict[str, Any]]:
    def fail() -> dict[str, Any]:
        raise problem

    return fail


def test_a_stage_stops_at_its_time_and_goes_on(tmp_path: Path) -> None:
    run(tmp_path, Piece("a", lambda: {"x": 1}))
    run(tmp_path, Piece("a", never), Piece("b", endless), Piece("c", never), seconds=1)
    assert kept(tmp_path)["missing"] == {"b": STOPPED, "c": NOT_BEGUN}
    assert kept(tmp_path)["pieces"]["a"]["x"] == 1
    run(tmp_path, Piece("a", never), Piece("b", lambda: {}), Piece("c", lambda: {}))
    assert kept(tmp_path)["missing"] == {}
    assert list(kept(tmp_path)["pieces"]) == ["a", "b", "c"]


def test_a_failure_is_told_and_comes_last_in_the_next_call(tmp_path: Path) -> None:
    run(tmp_path, Piece("a", failing(ValueError("a bad\nthing"))), Piece("b", lambda: {}))
    assert kept(tmp_path)["missing"] == {"a": f"{FAILED}ValueError: a bad thing"}
    order: list[str] = []
    run(tmp_path, *(Piece(key, lambda key=key: order.append(key) or {}) for key in ("a", "c")))  # type: ignore[func-returns-value,misc]
    assert order == ["c", "a"]


def test_a_piece_waits_for_another_of_its_stage(tmp_path: Path) -> None:
    done: list[str] = []

    def needs_b() -> dict[str, Any]:
        if "b" not in done:
            raise NotReadyError("'b'")
        return {}

    run(tmp_path, Piece("a", needs_b), Piece("b", lambda: done.append("b") or {}))  # type: ignore[func-returns-value]
    assert kept(tmp_path)["missing"] == {}
    _, said = run(tmp_path, Piece("z", failing(NotReadyError("'y'"))))
    assert said == ["z: waits for 'y'"]


def test_ctrl_c_ends_the_session_and_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Piece("a", failing(KeyboardInterrupt())))
    assert kept(tmp_path)["missing"] == {"a": NOT_BEGUN}


def test_a_kill_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from benchmarks.gpu.runner import Piece, Record, run_stage\n"
        "pieces = [Piece('a', lambda: {'x': 1}), Piece('b', lambda: time.sleep(600) or {}), Piece('c', lambda: {})]\n"
        "run_stage(Record(Path(sys.argv[1]), {}), pieces, seconds=600, say=lambda text: print(text, flush=True))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "stage.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"a:")
        while kept(tmp_path)["missing"]["b"] != BEGUN:
            time.sleep(0.01)
        process.kill()
    assert kept(tmp_path)["pieces"]["a"]["x"] == 1
    record = Record(tmp_path / "stage.json", {})
    left = [Piece(key, never) for key in ("a", "b", "c")]
    assert [piece.key for piece in record.left(left)] == ["c", "b"]  # what ended the program last


def test_results_of_other_versions_are_not_mixed(tmp_path: Path) -> None:
    Record(tmp_path / "stage.json", {"versions": {"torch": "2.11"}}).lack({})
    with pytest.raises(
        RunError, match=r"the same versions, but it has \{'torch': '2.11'\} and here are \{'torch': '2.12'\}: move it"
    ):
        Record(tmp_path / "stage.json", {"versions": {"torch": "2.12"}})


def test_the_alarm_gives_back_the_timer_that_was_set() -> None:
    seconds, interval = signal.getitimer(signal.ITIMER_REAL)
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(OutOfTime), alarm(0.02):
        endless()
    assert signal.getsignal(signal.SIGALRM) is handler
    after = signal.getitimer(signal.ITIMER_REAL)
    assert after[1] == interval
    assert bool(after[0]) == bool(seconds)
    assert after[0] <= seconds


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--stages", "doktor"], "stages are doctor, tables"), (["--minutes", "many"], "invalid float value")],
)
def test_wrong_arguments(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        session.main(arguments)
    assert said in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert session.missing_packages(session.STAGES, "cpu") == []
    monkeypatch.setitem(session.NEEDED_BY, "cuda", {"no_such_module": "no-such-package"})
    assert session.missing_packages(["doctor"], "cpu") == []
    assert session.main(["--stages", "doctor"]) == 2
    assert "missing packages: no-such-package" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_only_the_smoke_run_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(session.NEEDED_BY, "cuda", {})
    assert session.main(["--out", str(tmp_path)]) == 2
    assert "needs a CUDA device" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_full_plan_is_what_was_asked() -> None:
    full = plan.full()
    regression = {
        (plan.short(job.network), job.config.runtime, job.config.precision, job.config.batch)
        for job in full.tables
        if job.method == "regression"
    }
    networks = ("resnet18-3x32x32", "resnet18-3x224x224", "resnet50-3x224x224", "lresnet50e_ir-3x112x112")
    assert regression >= {
        (network, runtime, precision, batch)
        for network in networks
        for runtime in ("cuda_graph", "torch_compile", "aoti")
        for precision in ("fp16", "fp32")
        for batch in (1, 64)
    }
    for job in full.tables:  # per-layer times are there where they are asked for
        assert job.method == "regression" or runtime_class(job.config.runtime).layers_on(job.config)
        assert runtime_class(job.config.runtime).unavailable(job.config) is None or not torch.cuda.is_available()
    assert len({job.stem for job in full.tables}) == len({job.key for job in full.tables}) == len(full.tables)
    assert full.held_out >= 100
    assert len(full.seeds) == 3
    assert {job.config.batch for job in full.search_tables} == {1, 64}
    assert set(full.search_tables) <= set(full.tables)
    assert {config.batch for config in full.benches} == {1, 8, 64, 256}
    assert {job.config for job in full.search_tables} <= set(full.benches)


def test_the_papers_children() -> None:
    """ResNet-18-8, 1,0,0,0,0,0,0,0 by block, has 1.1625e7 parameters; ResNet-18-16 has 20 % less FLOPs than the network."""
    network = plan.NETWORKS[1]
    counts = SpaceCounts(network.space())
    assert counts.count(plan.PAPER_CHILDREN["resnet18-8"]).params == pytest.approx(1.1625e7, rel=1e-4)
    ratio = counts.count(plan.PAPER_CHILDREN["resnet18-16"]).flops / counts.count((0,) * 16).flops
    assert ratio == pytest.approx(0.8, abs=0.03)
    assert plan.PAPER_CHILDREN["resnet18-16"] == (1, 0, 0, 2, 0, 0, 0, 0, 1, *[0] * 6, 2)  # the print ends in 2


def test_targets_of_a_table() -> None:
    good = targets({"mape": 2.0, "within_10": 1.0, "spearman": 0.995})
    assert [item["holds"] for item in good.values()] == [True] * 3
    bad = targets({"mape": 2.1, "within_10": 0.99, "spearman": 0.99})
    assert [item["holds"] for item in bad.values()] == [False] * 3


def test_slow_loading_is_measured_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that is stopped while its children compile keeps those that were measured."""
    space = SearchSpace.from_model(TinyResNet(), (3, 8, 8), operators=["conv3x3", "max3x3"])
    config = RuntimeConfig(runtime="fake")
    monkeypatch.setattr(children_module, "LOADING_S", -1.0)
    batches: list[int] = []
    add = children_module.Journal.add

    def watched(journal: Any, stage: Any, keys: Any, members: Any, batch: Any) -> None:
        batches.append(len(members))
        assert len(batch.children) == len(members)
        add(journal, stage, keys, members, batch)

    monkeypatch.setattr(children_module.Journal, "add", watched)
    table = profile(space, config=config, model_name="tiny", method="regression", validate=0, journal=tmp_path / "p.part")
    assert sum(batches) == table.method.children
    assert batches[:-1] == [children_module.MARK_EVERY] * (len(batches) - 1)
    monkeypatch.setattr(children_module, "LOADING_S", 60.0)
    batches.clear()
    whole = profile(space, config=config, model_name="tiny", method="regression", validate=0, journal=tmp_path / "q.part")
    assert len(batches) == 1
    assert table.predict(space.incumbent) == pytest.approx(whole.predict(space.incumbent), rel=0.05)


def test_sheets_may_come_in_two_halves(tmp_path: Path) -> None:
    """With a restoring script of our own: all files in one place, run once they are complete."""
    names = [f"data_batch_{number}_{sheet:02d}.webp" for number in range(1, 7) for sheet in range(20)]
    restoring = (
        "import sys; from pathlib import Path; here = Path(__file__).parent\n"
        "assert len(list(here.glob('*.webp'))) == 120\n"
        "out = Path(sys.argv[1]) / 'cifar-10-batches-py'; out.mkdir(parents=True); (out / 'test_batch').touch()\n"
    )
    halves = [tmp_path / "first", tmp_path / "second"]
    for half, some in zip(halves, (names[:60], names[60:]), strict=True):
        half.mkdir()
        for name in some:
            (half / name).write_bytes(b"")
    (halves[0] / cifar.RESTORE).write_text(restoring)
    root = tmp_path / "work" / cifar.DATA
    assert cifar.restore(halves[0], tmp_path / "work").startswith("60 of 120")
    assert not root.exists()
    assert cifar.restore(halves[1], tmp_path / "work") == f"CIFAR-10 is in {root}"
    assert (root / "cifar-10-batches-py/test_batch").exists()
    (halves[0] / cifar.RESTORE).write_text("raise SystemExit('data_batch_1: md5 differs')")
    for half in halves:
        shutil.copytree(half, tmp_path / "whole", dirs_exist_ok=True)
    with pytest.raises(RunError, match=r"restore_cifar10\.py failed: data_batch_1: md5 differs"):
        cifar.restore(tmp_path / "whole", tmp_path / "other")


@pytest.mark.skipif(not SHEETS.is_dir(), reason="the sheets of CIFAR-10 are not in NAR_HW_DATA/cifar10 or .data/cifar10")
def test_real_sheets_become_cifar10(tmp_path: Path) -> None:
    cifar.restore(SHEETS, tmp_path)
    data = load_data("cifar10", root=tmp_path / cifar.DATA)
    assert (len(data.train), len(data.valid), len(data.test)) == (45_000, 5_000, 10_000)
    assert data.classes[0] == "airplane"
