"""A sweep in its folder: what is not done yet is done, one process after another or on Ray, and every cell becomes a row."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nar_hw._version import versions
from nar_hw.errors import RunError
from nar_hw.files import write_json, write_text
from nar_hw.locks import LOCK, writing
from nar_hw.sweep.job import CELLS, PLAN, RUNS, TABLES, Answer, Cell, Request, Status, failed, read_cells, write_cells, write_csv
from nar_hw.sweep.page import write_page
from nar_hw.sweep.plan import Job, RunJob, Sweep, TableJob

SWEEP, CSV, PAGE = "sweep.json", "cells.csv", "report.html"
ORDER: tuple[Status, ...] = ("failed", "short", "met")
Execute = Callable[[Iterable[Job], Callable[[Job], bytes]], Iterator[tuple[Job, bytes | str]]]
"""Does jobs, each as the request that is made of it, in any order: a job with its answer or why its process, and those that were
begun in its place, died. Ends what it began when it is closed."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a sweep."""

    out: Path
    cells: tuple[Cell, ...]
    """Failed ones first, then those that fell short."""

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each status."""
        return {status: sum(cell.status == status for cell in self.cells) for status in ORDER}


def run_sweep(
    sweep: Sweep,
    out: Path,
    *,
    resume: bool = False,
    execute: Execute,
    data_root: Path | None = None,
    done: Callable[[Job, Answer], object] = lambda job, answer: None,
) -> Outcome:
    """Measure the tables that the plan needs, do its searches or refinements, and write cells.csv, cells.json and report.html.

    A run is in a folder that is named after the hash of all that it depends on: what is finished there is read and not done
    again, also for another plan that asks for it.

    Args:
        sweep: the plan, checked.
        out: the folder; only one process writes it.
        resume: go on in a folder that holds a sweep.
        execute: what does the jobs; see `nar_hw.sweep.workers.chosen`.
        data_root: where downloaded data sets are.
        done: is called with every job and its answer, also those of earlier sweeps.

    Raises:
        RunError: ``out`` is being written, or holds a sweep and ``resume`` is not set, or something else.
    """
    out = Path(out).resolve()
    with writing(out):
        _begin(sweep, out, resume)

        def request(job: Job) -> bytes:
            root = None if data_root is None else str(Path(data_root).expanduser().resolve())
            return msgspec.json.encode(Request(job=job, cwd=str(Path.cwd()), out=str(out), data_root=root))

        def answers(jobs: Iterable[Job]) -> Iterator[tuple[Job, Answer]]:
            for job, found in execute(jobs, request):
                yield job, msgspec.json.decode(found, type=Answer) if isinstance(found, bytes) else _dead(job, found)

        broken: dict[str, str] = {}
        wanted = {job.id: job for job in sweep.table_jobs if not (out / TABLES / f"{job.id}.json").exists()}
        for table, answer in answers(wanted.values()):
            done(table, answer)
            if answer.problem:
                broken[table.id] = answer.problem
        runs = {job.id: job for job in sweep.runs}
        rows: dict[str, tuple[Cell, ...]] = {}
        for name, answer in _runs(runs, out, broken, answers):
            done(runs[name], answer)
            rows[name] = answer.cells
        cells = tuple(cell for name in runs for cell in rows[name])
        return _finish(sweep, out, cells)


def _begin(sweep: Sweep, out: Path, resume: bool) -> None:
    if (out / SWEEP).exists():
        if not resume:
            raise RunError(f"{out} holds a sweep already: resume it, or choose another folder")
    elif any(path.name != LOCK for path in out.iterdir()):
        raise RunError(f"{out} must be a new folder or one of nar-hw sweep, but holds something else: choose another")
    for name in (TABLES, RUNS):
        (out / name).mkdir(exist_ok=True)
    write_text(out / PLAN, sweep.text)
    write_json(out / SWEEP, {"schema": 1, "versions": versions("torch", "numpy"), **sweep.counts})


def _runs(
    runs: Mapping[str, RunJob],
    out: Path,
    broken: Mapping[str, str],
    answers: Callable[[Iterable[Job]], Iterator[tuple[Job, Answer]]],
) -> Iterator[tuple[str, Answer]]:
    """The id of every run with its answer: first what needs no work, then the others as they are finished."""
    left = []
    for name, job in runs.items():
        if (file := out / RUNS / name / CELLS).exists():
            yield name, Answer(cells=read_cells(file), seconds=0.0)
        elif job.table in broken:
            yield name, Answer(cells=failed(job, f"latency table: {broken[job.table]}"), seconds=0.0)
        else:
            left.append(name)
    for done, answer in answers(runs[name] for name in left):
        yield done.id, answer


def _dead(job: Job, reason: str) -> Answer:
    return Answer(problem=reason, seconds=0.0) if isinstance(job, TableJob) else Answer(cells=failed(job, reason), seconds=0.0)


def _finish(sweep: Sweep, out: Path, cells: tuple[Cell, ...]) -> Outcome:
    """The results of all cells: files in the order of the plan, the outcome and the page with those first that fell short."""
    write_cells(out / CELLS, cells)
    write_csv(out / CSV, cells)
    outcome = Outcome(out=out, cells=tuple(sorted(cells, key=_worst_first)))
    write_page(out / PAGE, outcome.cells, refined=sweep.plan.refine is not None)
    return outcome


def _worst_first(cell: Cell) -> tuple[int, float]:
    excess = 0.0 if cell.ms is None or cell.target_ms is None else cell.ms / cell.target_ms
    return ORDER.index(cell.status), -excess if cell.status == "short" else 0.0
