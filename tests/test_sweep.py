"""Sweeps: plans that are refused with their line, cells that share a search, results that no stop changes."""

import base64
import csv
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from nar_hw.errors import RunError, UserError
from nar_hw.latency.profiler import profile
from nar_hw.latency.table import LatencyTable
from nar_hw.locks import writing
from nar_hw.models.info import ModelInfo
from nar_hw.models.weights import save_weights
from nar_hw.runtimes import RuntimeConfig
from nar_hw.sweep import job as jobs
from nar_hw.sweep.job import Answer, Cell, Request, metric_of, perform, read_cells
from nar_hw.sweep.page import write_page
from nar_hw.sweep.plan import Job, line_of, read_plan
from nar_hw.sweep.processes import in_processes
from nar_hw.sweep.run import Outcome, run_sweep
from nar_hw.tasks import DatasetTask
from tests.networks import TinyResNet
from tests.test_cli import Run, ok, refused, run
from tests.test_report import Page

__all__ = ["run"]  # a fixture

SMALL, LARGE = (f"{__file__}:{name}" for name in ("small", "large"))
DATA = "fake:3x8x8x4"
SEARCH = """
[search]
warmup_epochs = 0
epochs = 1
updates = 1
samples = 2
batch = 64
valid_batch = 16
recalibration_batches = 1
rescored = 2
finalists = 1
"""


def small(num_classes: int = 4) -> nn.Module:
    """Wide enough that convolutions decide its latency."""
    return TinyResNet(width=32, classes=num_classes)


def large(num_classes: int = 4) -> nn.Module:
    return TinyResNet(width=40, classes=num_classes)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each network, of a device that is not here."""
    folder = tmp_path_factory.mktemp("phone")
    for name in (SMALL, LARGE):
        info = ModelInfo(name=name, input_shape=(3, 8, 8), num_classes=4, operators=("conv3x3", "dwsep3x3", "max3x3"))
        table = profile(info.space(), config=RuntimeConfig(runtime="fake"), model_name=name, validate=0)
        path = folder / f"{name.rpartition(':')[2]}.json"
        table.save(path)
        content = json.loads(path.read_text())
        content["fingerprint"]["device"] = "a phone"
        path.write_text(json.dumps(content))
    return folder


def written(
    tmp_path: Path, tables: Path, *, networks: Iterable[str] = (SMALL, LARGE), more: str = "", search: str = SEARCH
) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(
        f"networks = {json.dumps(list(networks))}\ndata = ['{DATA}']\ntables = ['{tables}/*.json']\n"
        f"targets = ['0.98', '0.95']\n{more}{search}"
    )
    return path


def here(asked: Iterable[Job], request: Callable[[Job], bytes]) -> Iterator[tuple[Job, bytes | str]]:
    """Jobs in this process."""
    threads, cwd = torch.get_num_threads(), Path.cwd()
    for job in asked:
        answer = perform(request(job))
        torch.set_num_threads(threads)
        os.chdir(cwd)
        yield job, answer


def swept(plan: Path, out: Path, **options: Any) -> Outcome:
    return run_sweep(read_plan(plan), out, **{"execute": here, **options})


def results(out: Path) -> dict[str, bytes]:
    """What no stop may change: the cells, all shared weights, the pages of results."""
    names = [*out.glob("runs/*/cells.json"), *out.glob("runs/*/supernet.safetensors"), *out.glob("*.csv"), *out.glob("*.html")]
    return {str(path.relative_to(out)): path.read_bytes() for path in [*names, out / "cells.json"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> Outcome:
    folder = tmp_path_factory.mktemp("whole")
    return swept(written(folder, tables, more="seeds = [0, 1]\n"), folder / "x")


# What a sweep does


def test_every_cell_is_a_row(whole: Outcome) -> None:
    asked = {(network, target, seed) for network in (SMALL, LARGE) for target in ("0.98", "0.95") for seed in (0, 1)}
    assert {(cell.network, cell.target, cell.seed) for cell in whole.cells} == asked
    assert whole.counts == {"failed": 0, "short": 0, "met": 8}
    for cell in whole.cells:
        assert (cell.device, cell.runtime, cell.measured_ms) == ("a phone", "fake", None)
        assert cell.target_ms == pytest.approx(float(cell.target) * cell.incumbent_ms)  # type: ignore[operator]
        assert cell.predicted_ms is not None
        assert cell.predicted_ms <= cell.target_ms  # type: ignore[operator]


def test_one_search_serves_all_targets_of_a_network(whole: Outcome) -> None:
    runs = list((whole.out / "runs").iterdir())
    assert len(runs) == 4  # networks x seeds
    record = json.loads((runs[0] / "run.json").read_text())
    assert [record["target_ms"], record["more"][0]["target_ms"]] == [
        cell.target_ms for cell in read_cells(runs[0] / "cells.json")
    ]


def test_a_cell_is_what_a_search_finds(run: Run, whole: Outcome, tables: Path, tmp_path: Path) -> None:
    table = LatencyTable.load(tables / "small.json")
    mine = {cell.target: cell for cell in whole.cells if (cell.network, cell.seed) == (SMALL, 1)}
    targets = " ".join(f"--target-ms {float(target) * table.incumbent_ms!r}" for target in ("0.98", "0.95"))
    settings = " ".join(f"--set {line.replace(' ', '')}" for line in SEARCH.splitlines()[2:])
    line = f"search --model {SMALL} --data {DATA} --table {tables}/small.json --allow-mismatch --seed 1"
    found = ok(run(f"{line} {targets} {settings} --out {tmp_path}/s --json"))
    for target, item in zip(("0.98", "0.95"), found["targets"], strict=True):
        assert (tuple(item["arch"]), item["accuracy"]) == (mine[target].arch, mine[target].accuracy)


def test_results_for_pandas(whole: Outcome) -> None:
    with (whole.out / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = json.loads((whole.out / "cells.json").read_text())
    assert len(rows) == len(cells) == 8
    for row, cell in zip(rows, cells, strict=True):
        assert row["measured_ms"] == ""
        assert float(row["predicted_ms"]) == cell["predicted_ms"]
        assert row["arch"].split(",") == cell["arch"]


def test_what_is_done_is_not_done_again(whole: Outcome, tables: Path, tmp_path: Path) -> None:
    plan = written(tmp_path, tables, more="seeds = [0, 1]\n")
    asked: list[Job] = []

    def none(wanted: Iterable[Job], request: Callable[[Job], bytes]) -> Iterator[tuple[Job, bytes | str]]:
        asked.extend(wanted)
        return iter(())

    before = results(whole.out)
    with pytest.raises(RunError, match="holds a sweep already: resume it, or choose another folder"):
        swept(plan, whole.out)
    again = swept(plan, whole.out, resume=True, execute=none)
    assert asked == []
    assert (again.cells, results(whole.out)) == (whole.cells, before)


def test_a_stop_at_any_job_changes_nothing(whole: Outcome, tables: Path, tmp_path: Path) -> None:
    plan = written(tmp_path, tables, more="seeds = [0, 1]\n")

    def stopped(wanted: Iterable[Job], request: Callable[[Job], bytes]) -> Iterator[tuple[Job, bytes | str]]:
        for count, item in enumerate(here(wanted, request)):
            yield item
            if count == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swept(plan, tmp_path / "x", execute=stopped)
    swept(plan, tmp_path / "x", resume=True)
    assert results(tmp_path / "x") == results(whole.out)


def test_two_sweeps_into_one_folder_do_not_mix(tables: Path, tmp_path: Path) -> None:
    plan = written(tmp_path, tables)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(RunError, match="must be a new folder or one of nar-hw sweep, but holds something else"):
        swept(plan, tmp_path / "other")
    context = multiprocessing.get_context("fork")
    inside, leave = context.Event(), context.Event()

    def hold() -> None:
        with writing(tmp_path / "x"):
            inside.set()
            leave.wait()

    other = context.Process(target=hold, daemon=True)
    other.start()
    inside.wait()
    with pytest.raises(RunError, match="is being written by process"):
        swept(plan, tmp_path / "x")
    leave.set()
    other.join()


def test_a_cell_that_fails_is_a_row_with_its_reason(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = written(tmp_path, tables, more="seeds = [0, 1]\n")
    plan.write_text(plan.read_text().replace("'0.95'", "'0.0001ms'"))
    real = jobs.search_run

    def broken(model: str, *arguments: Any, **options: Any) -> Any:
        if options["config"].seed == 1:
            raise ZeroDivisionError("division\nby zero")
        return real(model, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "search_run", broken)
        outcome = swept(plan, tmp_path / "x")
    assert outcome.counts == {"failed": 6, "short": 0, "met": 2}
    reasons = {(cell.target, cell.seed): cell.reason for cell in outcome.cells}
    assert reasons["0.98", 0] == ""
    assert "targets must be within" in reasons["0.0001ms", 0]
    assert reasons["0.98", 1].startswith("ZeroDivisionError: division by zero (see runs/")
    (file, *_) = (tmp_path / "x").glob("runs/*/error.txt")
    assert "ZeroDivisionError" in file.read_text()
    mended = swept(plan, tmp_path / "x", resume=True)
    assert mended.counts == {"failed": 4, "short": 0, "met": 4}
    assert list((tmp_path / "x").glob("runs/*/error.txt")) == []


def test_a_table_is_measured_once_and_what_needs_it_says_why_it_is_not(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = written(tmp_path, tables, networks=[SMALL], more="seeds = [0, 1]\n")
    text = plan.read_text().replace(f"['{tables}/*.json']", "[{runtime = 'fake'}, {runtime = 'fake', precision = 'fp16'}]")
    plan.write_text(text)
    real, profiled = jobs.profile, []

    def counted(*arguments: Any, **options: Any) -> Any:
        profiled.append(options["config"])
        return real(*arguments, **{**options, "validate": 0})

    monkeypatch.setattr(jobs, "profile", counted)
    outcome = swept(plan, tmp_path / "x")
    assert profiled == [RuntimeConfig(runtime="fake"), RuntimeConfig(runtime="fake", precision="fp16")]
    assert outcome.counts["failed"] == 4
    failed = [cell for cell in outcome.cells if cell.precision == "fp16"]
    assert {(cell.status, cell.device, cell.incumbent_ms) for cell in failed} == {("failed", None, None)}
    assert all(cell.reason.startswith("latency table: ") and "fp16" in cell.reason for cell in failed)
    good = [cell for cell in outcome.cells if cell.precision == "fp32"]
    assert all(cell.device == "fake device" and cell.measured_ms is not None for cell in good)
    (table,) = (tmp_path / "x/tables").glob("*.json")
    assert LatencyTable.load(table).network.name == SMALL


def test_cells_are_refined_to_the_end(tables: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_weights(tmp_path / "w.safetensors", small())
    (tmp_path / "r.json").write_text('{"epochs": 1, "batch": 64}')
    (tmp_path / "t").mkdir()
    content = json.loads((tables / "small.json").read_text())
    content["fingerprint"]["runtime"] = "onnxruntime"
    (tmp_path / "t/small.json").write_text(json.dumps(content))
    plan = written(tmp_path, tmp_path / "t", search=SEARCH + "fit = {epochs = 1, batch = 64}\n[refine]\nrecipe = 'r.json'\n")
    text = plan.read_text().replace("['0.98', '0.95']", "['0.98']").replace("'r.json'", f"'{tmp_path}/r.json'")
    networks = f"[{{model = '{SMALL}', name = 'mine', weights = '{tmp_path}/w.safetensors'}}]"
    plan.write_text(text.replace(json.dumps([SMALL, LARGE]), networks))
    (cell,) = swept(plan, tmp_path / "x").cells
    assert (cell.network, cell.status, cell.measured_ms) == ("mine", "met", None), cell.reason
    child = json.loads((tmp_path / "x" / str(cell.folder) / "children/0.98/child.json").read_text())
    assert cell.test_accuracy == child["accuracy"]["test"]
    assert f'<a href="{cell.folder}/report.html">mine</a>' in (tmp_path / "x/report.html").read_text()


def nearness(device: str) -> DatasetTask:
    """For data of a plan."""

    def items(seed: int) -> TensorDataset:
        images = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        return TensorDataset(images, images.mean((2, 3)).sum(1, keepdim=True).expand(32, 4))

    def score(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (1 - (output - target).abs().mean(1)).clamp(0, 1)

    return DatasetTask(*map(items, range(3)), loss=nn.functional.mse_loss, score=score, outputs=4, metric="IoU", device=device)


def test_scores_are_called_what_the_task_calls_them(tables: Path, tmp_path: Path) -> None:
    plan = written(tmp_path, tables, networks=[SMALL], search=SEARCH.replace("batch = 64", "batch = 16"))
    plan.write_text(plan.read_text().replace(DATA, f"{__file__}:nearness"))
    outcome = swept(plan, tmp_path / "x")
    assert {(cell.status, cell.metric) for cell in outcome.cells} == {("met", "IoU")}, outcome.cells[0].reason
    text = (tmp_path / "x/report.html").read_text()
    assert "validation IoU</button>" in text
    assert "IoU of validation images" in text
    assert "validation IoU against predicted latency" in text
    assert not re.search("(?i)accuracy", re.sub("<style>.*?</style>", "", text, flags=re.DOTALL))
    both = [*outcome.cells, cell(accuracy=0.5), cell(status="failed")]
    assert metric_of(both) == "score"
    write_page(tmp_path / "both.html", both, refined=False)
    assert '<small class="below">IoU</small>' in (tmp_path / "both.html").read_text()


def test_a_machine_that_does_not_see_the_folder_says_which_it_is(tables: Path, tmp_path: Path) -> None:
    (job, *_) = read_plan(written(tmp_path, tables)).runs
    asked = Request(job=job, cwd=str(tmp_path), out=str(tmp_path / "elsewhere"))
    answer = msgspec.json.decode(perform(msgspec.json.encode(asked)), type=Answer)
    assert [cell.status for cell in answer.cells] == ["failed", "failed"]
    assert answer.cells[0].reason.startswith(f"{socket.gethostname()} must see the sweep's folder, but there is no {tmp_path}")
    assert not (tmp_path / "elsewhere").exists()


# Processes


def dying(num_classes: int = 4) -> nn.Module:
    """Kills its process the first time that it is built."""
    mark = Path("mark")  # where the driver was started: the server of processes may be older than the test and its variables
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return small(num_classes)


def always_dying(num_classes: int = 4) -> nn.Module:
    os._exit(3)


def test_processes_that_die_are_begun_again_and_nothing_else_notices(
    whole: Outcome, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes in processes of their own, too."""
    devices = tmp_path / "devices"
    devices.mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("dying", "always_dying"):
        content = json.loads((tables / "small.json").read_text())
        content["network"]["name"] = f"{__file__}:{name}"
        (devices / f"{name}.json").write_text(json.dumps(content))
    (devices / "small.json").write_bytes((tables / "small.json").read_bytes())
    plan = written(tmp_path, devices, networks=[f"{__file__}:dying", f"{__file__}:always_dying", SMALL])
    outcome = swept(plan, tmp_path / "x", execute=lambda jobs, request: in_processes(jobs, request, retries=1))
    found = {(cell.network.rpartition(":")[2], cell.target): cell for cell in outcome.cells}
    assert found["always_dying", "0.98"].reason == "its process ended with exit code 3, 2 times in all: is there enough memory?"
    same = {cell.target: cell for cell in whole.cells if (cell.network, cell.seed) == (SMALL, 0)}
    for target in ("0.98", "0.95"):
        for name in ("dying", "small"):
            cell = found[name, target]
            assert (cell.arch, cell.accuracy) == (same[target].arch, same[target].accuracy), cell.reason


def drive(plan: str, out: str) -> None:
    """A driver, for a process of its own."""
    run_sweep(read_plan(Path(plan)), Path(out), resume=True, execute=lambda jobs, request: in_processes(jobs, request, retries=0))


def test_a_driver_that_is_killed_loses_nothing(whole: Outcome, tables: Path, tmp_path: Path) -> None:
    plan = written(tmp_path, tables, more="seeds = [0, 1]\n")
    context = multiprocessing.get_context("fork")
    driver = context.Process(target=drive, args=(str(plan), str(tmp_path / "x")))
    driver.start()
    moment = random.Random(time.time_ns()).choice([0, 1, 2])
    while driver.is_alive() and len(list((tmp_path / "x").glob("runs/*/cells.json"))) < moment + 1:
        time.sleep(0.02)
    driver.kill()
    driver.join()
    swept(plan, tmp_path / "x", resume=True)
    assert results(tmp_path / "x") == results(whole.out)


# Plans


def refusal(tmp_path: Path, text: str) -> str:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_plan(path)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{path}, ", "").replace(str(path), "PLAN")


GOOD = "networks = ['resnet_digits']\ndata = ['digits']\ntables = [{runtime = 'fake'}]\ntargets = [0.9, '0.4ms']\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("networks", "netwroks"), r"line 1: it has an unknown field 'netwroks' \(is 'networks' meant\?\)"),
        ("data = ['digits']\n", r"line 1: it must have 'networks'"),
        (GOOD + "seed = [1]\n", r"line 5: it has an unknown field 'seed' \(is 'seeds' meant\?\)"),
        (GOOD + "seeds = [\n 0,\n 1,\n 'x',\n]\n", r"line 8: seeds\[2\] must be int, but is 'x'"),
        (GOOD + "seeds = [0, -1]\n", r"line 5: seeds\[1\]: a seed must be from 0 to 4294967295, but got -1"),
        (GOOD + "seeds = [1, 1]\n", r"line 5: seeds\[1\]: every one must be another, but 1 comes twice"),
        (GOOD.replace("0.9,", "0.9, '0.4', '.90',"), r"line 4: targets\[2\]: every one must be .* '\.90' comes twice"),
        (GOOD + "seeds = []\n", r"line 5: seeds: at least one is needed"),
        (GOOD + "strategies = ['evolutoin']\n", r"line 5: strategies\[0\]: unknown strategy 'evolutoin': use one of evolution"),
        (GOOD.replace("0.9,", "1.5,"), r"line 4: targets\[0\]: a target must be a share .* but got '1\.5'"),
        (GOOD.replace("0.9,", "nan,"), r"line 4: targets\[0\]: a target must be a share .* but got 'nan'"),
        (GOOD.replace("'fake'", "'onnx'"), r"line 3: tables\[0\]\.runtime: unknown runtime 'onnx': use one of onnxruntime"),
        (
            GOOD.replace("'fake'", "'fake', presicion = 'fp32'"),
            r"line 3: tables\[0\] has an unknown field 'presicion' \(is 'precision' meant\?\)",
        ),
        (GOOD.replace("'fake'", "'fake', precision = 'fp8'"), r"line 3: tables\[0\]: unknown precision 'fp8': use one of"),
        (GOOD.replace("{runtime = 'fake'}", "'no/*.json'"), r"line 3: tables\[0\]: a table must be a file .* there is no no/"),
        (GOOD + "[search]\nepochs = 2\nbacth = 3\n", r"line 7: search: it has an unknown field 'bacth' \(is 'batch' meant\?\)"),
        (GOOD + "[search]\nepochs = 'x'\n", r"line 6: search: epochs must be int, but is 'x'"),
        (GOOD + "[search]\nepochs = 0\n", r"line 5: search: epochs >= 1 must hold in a search"),
        (GOOD + "[search]\nseed = 0\n", r"line 6: search\.seed: it is an axis: write seeds = \[\.\.\.\]"),
        (GOOD + "[search]\nfit = {epochs = 1}\n", r"line 6: search\.fit: .* give resnet_digits weights"),
        (GOOD + "[resources]\ncpus = 0\n", r"line 5: resources: cpus must be from 1 to 1024, but got 0"),
        (GOOD + "[resources]\n\ngpu = 1\n", r"line 7: resources has an unknown field 'gpu' \(is 'gpus' meant\?\)"),
        (GOOD + "[refine]\nrecipe = 'fintune'\n", r"line 6: refine\.recipe: unknown recipe 'fintune'.*finetune"),
        (
            "[[networks]]\nmodel = 'a'\n[[networks]]\nmodel = 'b'\nwieghts = 'w'\n",
            r"line 5: networks\[1\] has an unknown field 'wieghts' \(is 'weights' meant\?\)",
        ),
        (
            GOOD.replace("['resnet_digits']", "[\n 'resnet18',\n {model = 'resnet50', weights = 'none.pt'},\n]"),
            r"line 3: networks\[1\]\.weights: trained weights must be a file .* there is no none\.pt",
        ),
        (
            GOOD.replace("['resnet_digits']", "['nin', 'nin']"),
            r"line 1: networks\[1\]: every one must be another, but 'nin' comes twice",
        ),
        (
            GOOD.replace("resnet_digits", "resnet_digit"),
            r"line 1: networks\[0\]: unknown model 'resnet_digit': use .*resnet_digits",
        ),
        (GOOD.replace("['digits']", "[\n'digit',\n]"), r"line 3: data\[0\]: unknown data set 'digit': use one of digits"),
        (GOOD.replace("[0.9", "[0.9,, "), r"plan PLAN must be TOML: .*line 4"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    assert re.search(message, refusal(tmp_path, text)), refusal(tmp_path, text)


def test_a_table_of_another_network_is_refused(tables: Path, tmp_path: Path) -> None:
    text = written(tmp_path, tables, networks=[SMALL, LARGE]).read_text().replace("*.json", "small.json")
    message = refusal(tmp_path, text)
    assert message.startswith(f"line 3: tables[0]: one table must be of {LARGE}, but {tables}/small.json is of {SMALL}")
    other = text.replace(json.dumps([SMALL, LARGE]), f"[{{model = '{SMALL}', manner = 'block'}}]")
    assert "manner block" in refusal(tmp_path, other)
    (tables / "twice.json").write_bytes((tables / "small.json").read_bytes())
    try:
        assert f"but {tables}/small.json, {tables}/twice.json are: name one, or narrow" in refusal(
            tmp_path, text.replace("small.json", "*.json")
        )
    finally:
        (tables / "twice.json").unlink()


@pytest.mark.parametrize("data", [b"\xff", b"networks = ['\xe9']"])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "plan.toml").write_bytes(data)
    with pytest.raises(RunError, match="must be UTF-8 text"):
        read_plan(tmp_path / "plan.toml")
    with pytest.raises(RunError, match="cannot be read: No such file"):
        read_plan(tmp_path / "none.toml")


def test_lines_of_values() -> None:
    text = "a = 1\n\n[b]\nc = [\n  1,\n  2,\n]\n[[d]]\ne = 1\n[[d]]\nf.g = 2\n"
    places = {
        ("a",): 1,
        ("b",): 3,
        ("b", "c"): 4,
        ("b", "c", 1): 6,
        ("d", 0, "e"): 9,
        ("d", 1): 10,
        ("d", 1, "f", "g"): 11,
        ("x",): 1,
    }
    assert {steps: line_of(text, steps) for steps in places} == places


def test_ten_thousand_cells_are_planned_in_two_seconds(tables: Path, tmp_path: Path) -> None:
    seeds = f"seeds = {list(range(2500))}\n"
    path = written(tmp_path, tables, more=seeds)
    start = time.process_time()
    sweep = read_plan(path)
    assert sweep.counts == {"cells": 10_000, "runs": 5000, "profiles": 0}
    assert len({job.id for job in sweep.runs}) == 5000
    assert time.process_time() - start <= 2


def test_a_run_is_named_after_all_that_it_depends_on(tables: Path, tmp_path: Path) -> None:
    def ids(path: Path) -> list[str]:
        return [job.id for job in read_plan(path).runs]

    first = ids(written(tmp_path, tables))
    assert ids(written(tmp_path, tables, more="seeds = [0, 7]\n"))[::2] == first  # what is there already
    assert not set(ids(written(tmp_path, tables, search=SEARCH + "lr = 0.2\n"))) & set(first)
    assert ids(written(tmp_path, tables, search=SEARCH + "[resources]\nretries = 7\n")) == first
    assert not set(ids(written(tmp_path, tables, search=SEARCH + "[resources]\ncpus = 2\n"))) & set(first)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tables.iterdir():
        (copy / path.name).write_text(path.read_text())
    other = ids(written(tmp_path, copy))
    (copy / "small.json").write_text((copy / "small.json").read_text().replace("a phone", "a tablet"))
    assert [a == b for a, b in zip(ids(written(tmp_path, copy)), other, strict=True)] == [False, True]


# The command and the page


def test_the_command(run: Run, whole: Outcome, tables: Path, tmp_path: Path) -> None:
    plan = written(tmp_path, tables, more="seeds = [0, 1]\n")
    assert ok(run(f"sweep {plan} --out x --plan --json")) == {"cells": 8, "runs": 4, "profiles": 0}
    assert not (tmp_path / "x").exists()
    found = ok(run(f"sweep {plan} --out {whole.out} --resume --workers 1 --json"))
    assert (found["met"], found["short"], found["failed"], len(found["cells"])) == (8, 0, 0, 8)
    code, out, _ = run(f"sweep {plan} --out {whole.out} --resume --workers 1")
    assert code == 0
    assert "0 failed, 0 short, 8 met" in out
    assert f"report {whole.out}/report.html" in out
    assert "holds a sweep already" in refused(run(f"sweep {plan} --out {whole.out} --workers 1"))
    assert "--workers are of this machine" in refused(run(f"sweep {plan} --out y --workers 2 --address h:1"))
    plan.write_text(plan.read_text().replace("networks", "netwroks"))
    assert "line 1: it has an unknown field 'netwroks'" in refused(run(f"sweep {plan} --out y"))
    assert not (tmp_path / "y").exists()


class SweepPage(Page):
    VOID = (*Page.VOID, "input")


def test_tables_of_several_devices_are_listed_and_compared(run: Run, tables: Path, tmp_path: Path) -> None:
    def device(name: str, factor: float) -> None:
        for path in tables.iterdir():
            content = json.loads(path.read_text())
            content["fingerprint"]["device"] = name
            content["incumbent_ms"] *= factor
            content["fixed_ms"] *= factor
            for entry in content["entries"]:
                entry["ms"] *= factor
            (tmp_path / "devices" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "devices" / name / path.name).write_text(json.dumps(content))

    for name, factor in (("phone", 1.0), ("server", 0.5), ("tablet", 2.0)):
        device(name, factor)
    assert [row["device"] for row in ok(run("table list devices --json"))["tables"]] == [
        name for name in ("phone", "server", "tablet") for _ in range(2)
    ]
    pairs = ok(run("table diff devices --json"))["pairs"]
    assert [(Path(pair["first"]).parent.name, Path(pair["second"]).parent.name, pair["model"]) for pair in pairs] == [
        ("phone", "server", LARGE),
        ("phone", "tablet", LARGE),
        ("phone", "server", SMALL),
        ("phone", "tablet", SMALL),
        ("server", "tablet", LARGE),
        ("server", "tablet", SMALL),
    ]
    assert [pair["ratio"] for pair in pairs] == pytest.approx([0.5, 2, 0.5, 2, 4, 4])
    assert all(pair["spearman"] == pytest.approx(1) and pair["flips"] == [] for pair in pairs)
    two = ok(run("table diff devices/phone devices/server --json"))["pairs"]
    assert [pair["ratio"] for pair in two] == pytest.approx([0.5, 0.5])
    code, out, _ = run("table diff devices")
    assert code == 0
    assert "rank correlation" in out
    table = "devices/phone/small.json"
    assert "a table is compared with another" in refused(run(f"table diff {table}"))
    assert "a folder is compared with a folder" in refused(run(f"table diff devices {table}"))
    (tmp_path / "none").mkdir()
    assert "there must be two tables of one network in none, but there are none" in refused(run("table diff none"))
    assert "there must be two tables with the same names in devices and none" in refused(run("table diff devices none"))


def cell(**values: Any) -> Cell:
    common = {"network": "<b>n", "data": "d", "target": "0.5", "strategy": "surrogate", "seed": 0, "status": "met"}
    return Cell(**{**common, **values})


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
def test_the_page_sorts_and_filters(tmp_path: Path) -> None:
    """In a browser; the page's own script only, as its policy allows no other, which is taken away for what clicks here."""
    common: dict[str, Any] = {
        "device": "phone",
        "runtime": "ncnn",
        "precision": "fp32",
        "batch": 1,
        "threads": 1,
        "target_ms": 20.0,
    }
    cells = [cell(seed=seed, predicted_ms=ms, accuracy=0.5, **common) for seed, ms in ((10, 9.5), (9, 10.25), (2, 0.5))]
    cells.append(cell(seed=11, status="failed", reason="no such file"))
    write_page(tmp_path / "x.html", cells, refined=False)
    text = (tmp_path / "x.html").read_text()
    policy = re.search(r"<meta http-equiv.*\n", text)
    assert policy is not None
    clicks = """<script>
    const all = where => [...document.querySelectorAll(where)];
    const head = name => all(".cells button").find(item => item.textContent === name);
    const seeds = () => all(".cells tbody tr").filter(row => !row.hidden).map(row => row.cells[4].textContent);
    const found = [];
    head("latency").click(); found.push(seeds());
    head("latency").click(); found.push(seeds());
    head("seed").click(); found.push(seeds());
    const words = document.getElementById("words"), status = document.getElementById("status");
    words.value = "0.5 NO"; words.dispatchEvent(new Event("input")); found.push(seeds());
    words.value = ""; status.value = "met"; status.dispatchEvent(new Event("change")); found.push(seeds());
    document.title = JSON.stringify([...found, document.getElementById("count").textContent]);
    </script>"""
    (tmp_path / "clicked.html").write_text(text.replace(policy[0], "").replace("</body>", f"{clicks}</body>"))
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", (tmp_path / "clicked.html").as_uri()]
    shown = subprocess.run(browser, capture_output=True, text=True, check=True, timeout=120).stdout
    title = re.search(r"<title>(.*?)</title>", shown)
    assert title is not None
    assert json.loads(title[1]) == [
        ["2", "10", "9", "11"],  # what is not known comes last
        ["9", "10", "2", "11"],
        ["2", "9", "10", "11"],
        ["11"],
        ["2", "9", "10"],
        "3 of 4 cells",
    ]
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[0]


def test_the_page(tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "device": "phone",
        "runtime": "onnxruntime",
        "precision": "fp32",
        "batch": 1,
        "threads": 1,
        "target_ms": 2.0,
    }
    cells = [
        cell(status="failed", reason="</script><script>alert(1)</script>", seed=3),
        cell(status="short", reason="none meets it", predicted_ms=1.9, measured_ms=2.1, accuracy=0.5, **common),
        cell(predicted_ms=1.5, accuracy=0.9, network="other", **common),
        cell(predicted_ms=1.5, accuracy=0.8, **{**common, "device": "server"}),
    ]
    write_page(tmp_path / "x.html", cells, refined=False)
    text = (tmp_path / "x.html").read_text()
    page = SweepPage(text)
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text
    assert "2 met their target, 1 fell short, 1 failed" in text
    assert [attributes["data-status"] for tag, attributes in page.elements if tag == "tr" and "data-status" in attributes] == (
        ["failed", "short", "met", "met"]
    )
    assert text.count("<svg viewBox") >= 2  # a front for each device
    assert "105.0\u00a0% of the target" in text
    write_page(tmp_path / "none.html", [], refined=False)
    assert "<h1>0 cells</h1>" in (tmp_path / "none.html").read_text()
