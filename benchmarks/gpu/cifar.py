"""Stage cifar10: a baseline, a search at a share of its latency, and children trained like it."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import ROOT, Session, TableJob
from benchmarks.gpu.runner import NotReadyError, Piece
from nar_hw.errors import RunError, TargetError
from nar_hw.files import read_json, write_bytes
from nar_hw.latency.measure import measure_children
from nar_hw.latency.table import LatencyTable
from nar_hw.records import plain
from nar_hw.steps.search import search_run
from nar_hw.steps.task import load_task
from nar_hw.steps.train import train_child
from nar_hw.training.child import Child
from nar_hw.training.recipes import Recipe

SHEETS, RESTORE, DATA = 120, "restore_cifar10.py", "data"
BASELINE, CHILD, INHERITED = "baseline", "child", "child, inherited"
SEARCH_MINUTES, SHARE, POINTS, NEAR = 5.0, 0.6, 0.1, 0.02
"""The targets."""


def restore(sheets: Path, work: Path) -> str:
    """Make the official files in ``work``/DATA from sheets of images once all are there; they may come in parts, a call each.

    ``sheets`` holds ``<batch>_<number>.webp``, and with one of the parts the script that turns them into those files and what it
    reads. Returns where it stands. Raises RunError when the script fails.
    """
    gathered, root = work / "sheets", work / DATA
    if not (root / "cifar-10-batches-py" / "test_batch").exists():
        gathered.mkdir(parents=True, exist_ok=True)
        for file in filter(Path.is_file, sheets.iterdir()):
            write_bytes(gathered / file.name, file.read_bytes())
        count = len(list(gathered.glob("*.webp")))
        if count < SHEETS or not (gathered / RESTORE).exists():
            return f"{count} of {SHEETS} sheets of CIFAR-10 are here: give the others, and {RESTORE}, to the next call"
        made = subprocess.run([sys.executable, gathered / RESTORE, root], capture_output=True, text=True, check=False)
        if made.returncode:
            raise RunError(f"{gathered / RESTORE} failed: {(made.stderr.strip() or made.stdout).splitlines()[-1]}")
    return f"CIFAR-10 is in {root}"


def cifar10(session: Session) -> list[Piece]:
    plan = session.plan

    def trained(name: str, arch: Sequence[int] | None) -> Callable[[int], dict[str, Any]]:
        return lambda seed: _trained(session, name, arch, seed, recipe=plan.recipe)

    def found(name: str) -> Callable[[int], dict[str, Any]]:
        return lambda seed: _found_child(session, name, seed)

    def seeds(name: str, run: Callable[[int], dict[str, Any]]) -> list[Piece]:
        return [Piece(f"{name}, seed {seed}", partial(run, seed)) for seed in plan.seeds]

    return [
        *seeds(BASELINE, trained(BASELINE, None)),
        Piece("search", lambda: _search(session)),
        *(piece for name in (CHILD, INHERITED) for piece in seeds(name, found(name))),
        *(piece for name, codes in plan.paper_children.items() for piece in seeds(name, trained(name, codes))),
        Piece("latency", lambda: _latency(session)),
        Piece("summary", lambda: _summary(session)),
    ]


def folder(session: Session, name: str, seed: int) -> Path:
    """Where a trained network lies."""
    return session.work / "children" / f"{name.replace(', ', '-')}-{seed}"


def _found_child(session: Session, name: str, seed: int) -> dict[str, Any]:
    """The search's child, from scratch or with the weights of the baseline of the same seed."""
    arch = session.found("cifar10", "search")["arch"]
    if name == CHILD:
        return _trained(session, name, arch, seed, recipe=session.plan.recipe)
    session.found("cifar10", f"{BASELINE}, seed {seed}")
    baseline = folder(session, BASELINE, seed)
    if not (baseline / "child.json").exists():
        raise NotReadyError(f"the weights in {baseline}, which another machine has")
    return _trained(session, name, arch, seed, recipe=session.plan.fine_tuning, baseline=baseline)


def _trained(
    session: Session,
    name: str,
    arch: Sequence[str | int] | None,
    seed: int,
    *,
    recipe: Recipe,
    baseline: Path | None = None,
) -> dict[str, Any]:
    """One training; one that was stopped goes on from its last epoch."""
    plan, start, out = session.plan, time.monotonic(), folder(session, name, seed)
    child = train_child(
        plan.network,
        arch,
        load_task(plan.data, root=session.data_root, device=plan.device),
        out=out,
        recipe=recipe,
        seed=seed,
        baseline=baseline,
        resume=True,
    )
    rates = [epoch["images_per_s"] for epoch in read_json(out / "history.json")["epochs"]]
    return {
        "arch": list(child.arch),
        "init": child.init,
        "accuracy": child.accuracy,
        "params": child.params,
        "flops": child.flops,
        "pool_ops": child.pool_ops,
        "recipe": plain(child.recipe),
        "images_per_s": round(statistics.median(rates), 1),
        "training_s": round(time.monotonic() - start, 1),
    }


def _table(session: Session, job: TableJob) -> LatencyTable:
    """As measured by this session, or as it comes with nar_hw for this device. Raises NotReadyError."""
    name = f"*__{job.stem}.json"
    if own := sorted((session.out / "latency_tables").glob(name)):
        return LatencyTable.load(own[0])
    device = session.out.name
    if shipped := sorted((ROOT / "latency_tables").glob(f"{device}__{job.stem}.json")):
        return LatencyTable.load(shipped[0])
    raise NotReadyError(f"{job.key!r} of stage tables")


def _search(session: Session) -> dict[str, Any]:
    """The first share of the network's latency that a table reaches; what was out of reach is told."""
    plan, refused = session.plan, []
    tables = {job.key: _table(session, job) for job in plan.search_tables}
    for share in plan.shares:
        for key, table in tables.items():
            target = share * table.incumbent_ms
            out = session.work / "search" / f"{list(tables).index(key)}-{share:g}"
            resumed, start = (out / "state.pt").exists(), time.monotonic()
            try:
                result = search_run(
                    plan.network.name,
                    plan.data,
                    table,
                    target_ms=target,
                    out=out,
                    config=plan.search,
                    data_root=session.data_root,
                    device=plan.device,
                    resume=True,
                )
            except TargetError as problem:
                refused.append({"table": key, "share": share, "reason": str(problem)})
                continue
            pick, seconds = result.pick, time.monotonic() - start
            measured = None if pick.measured_ms is None else pick.measured_ms / target
            return {
                "table": key,
                "share": share,
                "refused": refused,
                "arch": [table.operators[code] for code in pick.arch],
                "target_ms": target,
                "predicted_ms": pick.predicted_ms,
                "measured_ms": pick.measured_ms,
                "incumbent_ms": table.incumbent_ms,
                "shared_weights_accuracy": pick.accuracy,
                "note": result.note,
                "search_s": round(seconds, 1),
                "in one call": not resumed,
                "epochs_s": round(sum(log["train_s"] + log["strategy_s"] for log in result.history), 1),
                "config": plain(plan.search),
                "targets": {
                    f"<= {SEARCH_MINUTES:g} minutes": {
                        "value": None if resumed else round(seconds / 60, 2),
                        "holds": None if resumed else seconds <= 60 * SEARCH_MINUTES,
                    },
                    f"measured within {NEAR:.0%} of what was asked": {
                        "value": measured,
                        "holds": None if measured is None else abs(measured - 1) <= NEAR,
                    },
                },
            }
    raise RunError(f"a table must reach one of the shares {plan.shares}, but: {refused[-1]['reason']}")


def _latency(session: Session) -> dict[str, Any]:
    """The child and the paper's beside the network itself, under the conditions of every table for a search."""
    plan = session.plan
    space = plan.network.space()
    archs = {CHILD: space.parse(session.found("cifar10", "search")["arch"]), **plan.paper_children}
    rows = []
    for job in plan.search_tables:
        measured = measure_children(space, list(archs.values()), job.config, rounds=plan.rounds)
        for name, ms, rel in zip(archs, measured.ms, measured.rel, strict=True):
            ratio = ms / measured.incumbent_ms
            rows.append({"table": job.key, "network": name, "ms": ms, "rel": rel, "of the baseline": round(ratio, 4)})
    return {"rows": rows}


def _summary(session: Session) -> dict[str, Any]:
    """Means over the seeds, and the targets; waits for everything else."""
    plan = session.plan
    means = {
        name: statistics.mean(session.found("cifar10", f"{name}, seed {seed}")["accuracy"]["test"] for seed in plan.seeds)
        for name in (BASELINE, CHILD, INHERITED, *plan.paper_children)
    }
    search = session.found("cifar10", "search")
    rows = session.found("cifar10", "latency")["rows"]
    (share,) = (row["of the baseline"] for row in rows if (row["network"], row["table"]) == (CHILD, search["table"]))
    above = {name: round(100 * (mean - means[BASELINE]), 3) for name, mean in means.items() if name != BASELINE}
    best = max(above[CHILD], above[INHERITED])
    return {
        "test accuracy, mean": {name: round(mean, 5) for name, mean in means.items()},
        "points above the baseline": above,
        "seeds": list(plan.seeds),
        "targets": {
            f"latency <= {SHARE} of the baseline": {"value": share, "holds": share <= SHARE},
            f"accuracy >= baseline - {POINTS} points": {"value": best, "holds": best >= -POINTS},
        },
    }


def trained_child(session: Session, name: str) -> Path:
    """The folder of the first seed. Raises NotReadyError."""
    seed = session.plan.seeds[0]
    session.found("cifar10", f"{name}, seed {seed}")
    path = folder(session, name, seed)
    if not (path / "child.json").exists():
        raise NotReadyError(f"the weights in {path}, which another machine has")
    Child.load(path)
    return path
