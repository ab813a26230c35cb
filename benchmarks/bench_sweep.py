"""What a sweep costs beside its searches: many tiny cells in processes, on one and on two workers of Ray, and planning alone.

Each cell is a search of one epoch over the fake runtime's table; its seconds are taken where it runs. Ray and the imports of its
workers are started by a few cells before, in seconds of their own. Overhead of a cell: what the workers were not searching,
wall seconds times workers less all seconds of cells; efficiency: wall seconds of one worker by twice those of two. Memory: of a
driver whose cells are answered at once, beyond its imports.
Result: results/sweep.json, on two cores with everything else stopped (beside a training on one of them the efficiency was 0.34,
which says something of that core, not of the sweep).

    OMP_NUM_THREADS=1 python benchmarks/bench_sweep.py [--cells 200] [--out benchmarks/results/sweep.json]
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from nar_hw._version import versions
from nar_hw.files import write_json
from nar_hw.latency.device import fingerprint
from nar_hw.latency.profiler import profile
from nar_hw.models.info import ModelInfo
from nar_hw.runtimes import RuntimeConfig
from nar_hw.sweep.job import Answer, failed
from nar_hw.sweep.plan import Job, Resources, RunJob, read_plan
from nar_hw.sweep.processes import in_processes
from nar_hw.sweep.run import Execute, run_sweep

NETWORK = f"{Path(__file__).resolve()}:network"
SHAPE, CLASSES = (3, 8, 8), 4
SEARCH = {
    "warmup_epochs": 0,
    "epochs": 1,
    "updates": 1,
    "samples": 2,
    "batch": 32,
    "valid_batch": 16,
    "recalibration_batches": 1,
    "rescored": 2,
    "finalists": 1,
}


def network(num_classes: int = CLASSES) -> nn.Module:
    """Four convolutions, wide enough that they decide the latency."""
    layers: list[nn.Module] = []
    for width in (3, 32, 32, 32):
        layers += [nn.Conv2d(width, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))


def plan(folder: Path, cells: int, name: str = "plan.toml") -> Path:
    path = folder / name
    settings = "".join(f"{key} = {value}\n" for key, value in SEARCH.items())
    path.write_text(
        f"networks = ['{NETWORK}']\ndata = ['fake:{'x'.join(map(str, (*SHAPE, CLASSES)))}']\ntables = ['{folder}/table.json']\n"
        f"targets = [0.95]\nseeds = {list(range(cells))}\n[search]\n{settings}"
    )
    return path


@contextmanager
def on(workers: int, ray: bool) -> Iterator[Execute]:
    """Ray also for one worker, for which a sweep does not take it."""
    if not ray:
        yield partial(in_processes, retries=0)
        return
    from nar_hw.sweep.cluster import connected, on_ray  # not in each process, which runs this script again

    with connected(None, cpus=workers, resources=Resources()):
        yield partial(on_ray, resources=Resources())


def passed(folder: Path, cells: int, workers: int, execute: Execute, name: str) -> dict[str, Any]:
    """Seconds of a sweep whose workers are warm, and of its cells."""
    start = time.perf_counter()
    run_sweep(read_plan(plan(folder, 2 * workers, "warm.toml")), folder / f"{name}-warm", execute=execute)
    started, seconds = time.perf_counter() - start, []
    start, cpu = time.perf_counter(), time.process_time()
    outcome = run_sweep(
        read_plan(plan(folder, cells)),
        folder / name,
        execute=execute,
        done=lambda job, answer: seconds.append(answer.seconds),
    )
    wall = time.perf_counter() - start
    assert outcome.counts["failed"] == 0, outcome.cells[0].reason
    return {
        "cells": cells,
        "workers": workers,
        "seconds until warm": round(started, 1),
        "wall seconds": round(wall, 2),
        "seconds in cells": round(sum(seconds), 2),
        "overhead of a cell, ms": round(1e3 * (workers * wall - sum(seconds)) / cells, 1),
        "CPU of the driver a cell, ms": round(1e3 * (time.process_time() - cpu) / cells, 1),
        "workers busy": round(sum(seconds) / (workers * wall), 3),
    }


def driver(folder: Path, cells: int) -> dict[str, float]:
    """In a process of its own: planning, and a sweep whose cells are answered at once."""

    def at_once(jobs: Iterable[Job], request: Callable[[Job], bytes]) -> Iterator[tuple[Job, bytes | str]]:
        for job in jobs:
            assert isinstance(job, RunJob)
            request(job)
            yield job, msgspec.json.encode(Answer(cells=failed(job, "not run"), seconds=0.0))

    read_plan(plan(folder, 1, "warm.toml"))  # imports the networks' libraries
    before = resident_mb()
    path = plan(folder, cells, f"{cells}.toml")
    start = time.perf_counter()
    sweep = read_plan(path)
    assert len({job.id for job in sweep.runs}) == cells
    planned = time.perf_counter() - start
    outcome = run_sweep(sweep, folder / f"driver-{cells}", execute=at_once)
    grown = resident_mb() - before
    assert len(outcome.cells) == cells
    return {"cells": cells, "planning seconds": round(planned, 3), "MB of all cells and their page": round(grown, 1)}


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sweep.json")
    parser.add_argument("--driver", nargs=2, metavar=("FOLDER", "CELLS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.driver:
        print(json.dumps(driver(Path(arguments.driver[0]), int(arguments.driver[1]))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        info = ModelInfo(name=NETWORK, input_shape=SHAPE, num_classes=CLASSES, operators=("conv3x3", "dwsep3x3", "max3x3"))
        profile(info.space(), config=RuntimeConfig(runtime="fake"), model_name=NETWORK, validate=0).save(folder / "table.json")
        passes: dict[str, dict[str, Any]] = {}
        count = arguments.cells
        for label, workers, ray, cells in (
            ("processes", 1, False, count // 10),
            ("ray, 1 worker", 1, True, count),
            ("ray, 2 workers", 2, True, count),
        ):
            with on(workers, ray) as execute:
                passes[label] = passed(folder, cells, workers, execute, label.replace(" ", "-").replace(",", ""))
            print(label, passes[label])
        drivers = []
        for cells in (100, 1000, 10_000):
            words = [sys.executable, __file__, "--driver", str(folder), str(cells)]
            drivers.append(json.loads(subprocess.run(words, capture_output=True, check=True, text=True).stdout))
            print(drivers[-1])
    one, two = passes["ray, 1 worker"], passes["ray, 2 workers"]
    efficiency = round(one["wall seconds"] / (2 * two["wall seconds"]), 3)
    write_json(
        arguments.out,
        {
            "command": f"OMP_NUM_THREADS=1 python benchmarks/bench_sweep.py --cells {arguments.cells}",
            "versions": versions("torch", "ray"),
            "device": fingerprint(RuntimeConfig(runtime="torch_eager"))["device"],
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "passes": passes,
            "efficiency of 2 workers": efficiency,
            "note": "efficiency: wall seconds of one worker by twice those of two",
            "driver": drivers,
            "overhead <= 50 ms holds": max(one["overhead of a cell, ms"], two["overhead of a cell, ms"]) <= 50,
            "efficiency >= 0.9 holds": efficiency >= 0.9,
            "10,000 cells planned in <= 2 s holds": drivers[-1]["planning seconds"] <= 2,
        },
    )


if __name__ == "__main__":
    main()
