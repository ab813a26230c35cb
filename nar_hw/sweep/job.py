"""One job of a sweep, in a process of its own anywhere: a table measured, or a search or refinement and the rows of its cells.

Nothing is raised: a job that fails is rows that say why.
"""

import csv
import io
import os
import socket
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import torch

from nar_hw.errors import NarError, RunError, TargetError
from nar_hw.files import write_bytes, write_json, write_text
from nar_hw.latency.profiler import profile
from nar_hw.latency.table import LatencyTable
from nar_hw.locks import writing
from nar_hw.models.info import ModelInfo
from nar_hw.records import Record, plain, replace
from nar_hw.search.record import OutcomeNames, load_run
from nar_hw.steps.refine import RefineConfig, export_for, in_ms, refine
from nar_hw.steps.search import search_run
from nar_hw.steps.task import load_task
from nar_hw.sweep.plan import Job, RunJob, TableJob
from nar_hw.tasks import Task
from nar_hw.tasks.base import common_metric
from nar_hw.training.recipes import recipe_named

TABLES, RUNS, CELLS, PLAN, ERROR = "tables", "runs", "cells.json", "plan.toml", "error.txt"
Status = Literal["met", "short", "failed"]


class Cell(Record, frozen=True, kw_only=True):
    """A row: what was asked for in one cell, and what came of it. What is not known is None."""

    network: str
    data: str
    device: str | None = None
    runtime: str | None = None
    precision: str | None = None
    batch: int | None = None
    threads: int | None = None
    target: str
    strategy: str
    seed: int
    status: Status
    """Whether the target is met, or not even the nearest finalist meets it, or there is no network."""
    reason: str = ""
    """Of a cell that fell short or failed."""
    target_ms: float | None = None
    predicted_ms: float | None = None
    measured_ms: float | None = None
    """Where the table's device is the one that searched."""
    incumbent_ms: float | None = None
    """Of the network itself, by the table."""
    metric: str = Task.metric
    """What the accuracies are, where the task calls its score something else."""
    accuracy: float | None = None
    """Of validation images: by shared weights or, in a refinement, of the trained child."""
    test_accuracy: float | None = None
    """Of the trained child."""
    arch: tuple[str, ...] = ()
    folder: str | None = None
    """Of the search or refinement, within the sweep's."""

    @property
    def ms(self) -> float | None:
        """Measured where it was measured, else predicted."""
        return self.predicted_ms if self.measured_ms is None else self.measured_ms


class Request(Record, frozen=True, kw_only=True):
    """A job, and what it needs to know of where it runs."""

    job: Job
    cwd: str
    """In which the plan's relative paths lead somewhere."""
    out: str
    """The sweep's folder, absolute."""
    data_root: str | None = None


class Answer(Record, frozen=True, kw_only=True):
    """What came of a job."""

    cells: tuple[Cell, ...] = ()
    problem: str = ""
    """Of a table."""
    seconds: float


def perform(request: bytes) -> bytes:
    """Do a `Request` as JSON in this process; an `Answer` as JSON."""
    asked = msgspec.json.decode(request, type=Request)
    start = time.perf_counter()
    cells, problem = _perform(asked)
    return msgspec.json.encode(Answer(cells=cells, problem=problem, seconds=time.perf_counter() - start))


def _perform(asked: Request) -> tuple[tuple[Cell, ...], str]:
    job, out = asked.job, Path(asked.out)
    try:
        if not (out / PLAN).exists():
            raise RunError(
                f"{socket.gethostname()} must see the sweep's folder, but there is no {out} here: "
                "a sweep on several machines needs a file system that they share"
            )
        os.chdir(asked.cwd)
        root = None if asked.data_root is None else Path(asked.data_root)
        if isinstance(job, TableJob):
            _measure(job, out / TABLES / f"{job.id}.json", root)
            return (), ""
        torch.set_num_threads(job.resources.cpus)
        with writing(out / RUNS / job.id, wait=lambda text: None):  # of a driver that was killed
            return _run(job, out, root), ""
    except Exception as problem:
        reason = " ".join(str(problem).split())
        if not isinstance(problem, NarError | OSError):
            reason = f"{type(problem).__name__}: {reason}"
            if (out / PLAN).exists():
                file = (out / RUNS / job.id / ERROR) if isinstance(job, RunJob) else out / TABLES / f"{job.id}.txt"
                write_text(file, traceback.format_exc())
                reason += f" (see {file.relative_to(out)})"
        return (failed(job, reason), "") if isinstance(job, RunJob) else ((), reason)


def failed(
    job: RunJob, reason: str, targets: Sequence[str] | None = None, *, table: LatencyTable | None = None
) -> tuple[Cell, ...]:
    """The rows of a job that came to nothing, or of some of its targets."""
    return tuple(
        replace(_cell(job, target, table), status="failed", reason=reason)
        for target in (job.targets if targets is None else targets)
    )


def _cell(job: RunJob, target: str, table: LatencyTable | None) -> Cell:
    """What is known before anything is done."""
    asked = job.conditions if table is None else table.config
    return Cell(
        network=job.network.name,
        data=job.data,
        device=None if table is None else table.fingerprint.get("device"),
        runtime=None if asked is None else asked.runtime,
        precision=None if asked is None else asked.precision,
        batch=None if asked is None else asked.batch,
        threads=None if asked is None else asked.threads,
        target=target,
        strategy=job.config.strategy,
        seed=job.config.seed,
        status="failed",
        incumbent_ms=None if table is None else table.incumbent_ms,
    )


def _measure(job: TableJob, path: Path, root: Path | None) -> None:
    with writing(path, whole=True, wait=lambda text: None):
        if path.exists():
            return
        task = load_task(job.data, root=root)
        network = job.network
        info = ModelInfo(name=network.model, input_shape=task.input_shape, num_classes=task.num_classes, **network.asked)
        journal = path.with_name(f"{path.name}.part")
        profile(info.space(), config=job.conditions, model_name=network.model, journal=journal, resume=True).save(path)


def _run(job: RunJob, out: Path, root: Path | None) -> tuple[Cell, ...]:
    """The cells of a search or refinement, which goes on where it was stopped; written when all else is."""
    folder = out / RUNS / job.id
    if (folder / CELLS).exists():
        return read_cells(folder / CELLS)
    table_file = Path(job.table) if job.conditions is None else out / TABLES / f"{job.table}.json"
    table = LatencyTable.load(table_file)
    within: list[str] = []
    cells: dict[str, Cell] = {}
    fastest, slowest = table.bounds()
    for target in job.targets:
        if fastest <= in_ms(target, table.incumbent_ms) <= slowest:
            within.append(target)
        else:
            text = (
                f"targets must be within {fastest:.4g} and {slowest:.4g} ms ({fastest / table.incumbent_ms:.2f} to "
                f"{slowest / table.incumbent_ms:.2f} of the network's {table.incumbent_ms:.4g}), but got {target}"
            )
            (cells[target],) = failed(job, text, [target], table=table)
    if within:
        device = "cuda" if job.resources.gpus > 0 else "cpu"
        go_on = _search if job.refine is None else _refine
        try:
            cells |= {cell.target: cell for cell in go_on(job, table, table_file, within, folder, device, root)}
        except TargetError as problem:  # by FLOPs or parameters
            cells |= {cell.target: cell for cell in failed(job, str(problem), within, table=table)}
    found = tuple(replace(cells[target], folder=f"{RUNS}/{job.id}") for target in job.targets)
    (folder / ERROR).unlink(missing_ok=True)
    write_cells(folder / CELLS, found)
    return found


def _search(
    job: RunJob, table: LatencyTable, file: Path, targets: Sequence[str], folder: Path, device: str, root: Path | None
) -> list[Cell]:
    search_run(
        job.network.model,
        job.data,
        table,
        target_ms=[in_ms(target, table.incumbent_ms) for target in targets],
        out=folder,
        config=job.config,
        trained=None if job.network.weights is None else Path(job.network.weights).expanduser(),
        data_root=root,
        device=device,
        resume=True,
        allow_mismatch=True,
    )
    found = load_run(folder)
    return [_found(job, table, target, outcome, found.metric) for target, outcome in zip(targets, found.outcomes, strict=True)]


def _refine(
    job: RunJob, table: LatencyTable, file: Path, targets: Sequence[str], folder: Path, device: str, root: Path | None
) -> list[Cell]:
    assert job.refine is not None
    task = load_task(job.data, root=root, device=device)
    conditions = table.config
    info = replace(table.network, name=job.network.model, num_classes=task.num_classes)
    made = refine(
        RefineConfig(
            model=info,
            data=job.data,
            targets=tuple(targets),
            conditions=conditions,
            search=job.config,
            recipe=recipe_named(job.refine.recipe),
            export=export_for(conditions),
            seed=job.config.seed,
        ),
        folder,
        weights=None if job.network.weights is None else Path(job.network.weights).expanduser(),
        table=file,
        device=device,
        data_root=root,
        allow_mismatch=True,
    )
    run, rows = load_run(folder), {row["name"]: row for row in made.outcome()["networks"]}
    cells = []
    for target in targets:
        cell = _found(job, table, target, run.outcome(in_ms(target, table.incumbent_ms)), run.metric)
        row = rows[target]
        cells.append(replace(cell, accuracy=row["valid_accuracy"], test_accuracy=row["test_accuracy"]))
    return cells


def _found(job: RunJob, table: LatencyTable, target: str, outcome: OutcomeNames, metric: str) -> Cell:
    pick = outcome.pick
    return replace(
        _cell(job, target, table),
        status="met" if outcome.met else "short",
        reason="" if outcome.met else outcome.note,
        target_ms=outcome.target_ms,
        predicted_ms=pick.predicted_ms,
        measured_ms=pick.measured_ms,
        metric=metric,
        accuracy=pick.accuracy,
        arch=pick.arch,
    )


def metric_of(cells: Sequence[Cell]) -> str:
    """What the scores of all cells are called; those of failed ones are not known."""
    return common_metric(cell.metric for cell in cells if cell.accuracy is not None)


def write_cells(path: Path, cells: Sequence[Cell]) -> None:
    """Write cells as a JSON list, which pandas reads as it is."""
    write_json(path, plain(list(cells)))


def read_cells(path: Path) -> tuple[Cell, ...]:
    """The inverse of `write_cells`. Raises RunError in one line for a damaged file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Cell, ...])
    except (OSError, ValueError) as problem:
        raise RunError(f"cells {path} cannot be read ({' '.join(str(problem).split())}): delete its folder, and resume") from None


def write_csv(path: Path, cells: Sequence[Cell]) -> None:
    """Write cells as CSV with a line of titles; what is not known is empty, an arch is names with commas."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Cell.__struct_fields__)
    for cell in cells:
        writer.writerow(
            [
                ",".join(value) if isinstance(value, tuple) else value
                for value in map(cell.__getattribute__, Cell.__struct_fields__)
            ]
        )
    write_bytes(path, text.getvalue().encode("utf-8", "replace"))
