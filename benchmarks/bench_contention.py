"""Whether a table made beside a busy process says so, and what such a table is worth.

The same profile, quiet and beside a spinner that is pinned to one core. Every table must be marked beside the spinner, with the
reason, and none without it. A quiet run in which other processes of this machine had more than INTRUDED of a core, by the
account of each, was not quiet and is kept as "intruded". Ranks are judged by held-out children that are measured once,
before all others. "said" counts the profiles that said while they ran that the machine is busy.
Result: results/contention.json. Runs in the file are not measured again, so it can be made in several short
sessions; let nothing else run.

    OMP_NUM_THREADS=1 python benchmarks/bench_contention.py [--runs 20] [--seconds 200] [--out benchmarks/results/contention.json]
"""

import argparse
import io
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from scipy.stats import spearmanr

from nar_hw.files import read_json, write_json
from nar_hw.latency.designs import contexts, held_out
from nar_hw.latency.device import fingerprint
from nar_hw.latency.measure import measure_children
from nar_hw.latency.profiler import profile
from nar_hw.models import build_model
from nar_hw.records import plain
from nar_hw.runtimes import RuntimeConfig
from nar_hw.space.operators import PAPER_OPERATORS
from nar_hw.space.space import SearchSpace

MODEL, SHAPE, CLASSES = "resnet_digits", (1, 8, 8), 10
CONFIG = RuntimeConfig(runtime="onnxruntime")
FOUR = PAPER_OPERATORS[:4]
JUDGES = 40
VALIDATE = 16
INTRUDED = 0.05


@contextmanager
def spinner(core: int | None) -> Iterator[None]:
    """A program that keeps one core busy; none for None."""
    if core is None:
        yield
        return
    program = f"import os\nos.sched_setaffinity(0, {{{core}}})\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def others() -> dict[str, float]:
    """CPU seconds of every process but this one, so far."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if folder.name != str(os.getpid()):
            found[folder.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


@contextmanager
def account() -> Iterator[dict[str, float]]:
    """Cores that each other process of this machine had during the block, by its own account: read twice a second."""
    first, last, ended = others(), {}, threading.Event()
    start = time.monotonic()

    def read() -> None:
        last.update(others())
        while not ended.wait(0.5):
            last.update(others())

    reader = threading.Thread(target=read)
    reader.start()
    cores: dict[str, float] = {}
    try:
        yield cores
    finally:
        ended.set()
        reader.join()
        seconds = time.monotonic() - start
        cores |= {process: (value - first.get(process, 0.0)) / seconds for process, value in last.items()}


def judges(space: SearchSpace) -> list[tuple[int, ...]]:
    """Held-out children that no profile here has seen."""
    return held_out(space, JUDGES, exclude=contexts(space, replicates=7, seed=0), seed=99)


def run(space: SearchSpace, truth: dict[str, float], core: int | None) -> dict[str, Any]:
    said = io.StringIO()
    start = time.monotonic()
    with spinner(core), account() as cores, Progress(console=Console(file=said, width=1000)) as progress:
        table = profile(space, config=CONFIG, model_name=MODEL, validate=VALIDATE, progress=progress)
    archs = np.array([space.parse(name) for name in truth])
    predicted = table.predict(archs)
    assert table.validation is not None
    return {
        "marked": any("busy machine" in note for note in table.notes),
        "said": "the machine is busy" in said.getvalue(),
        "notes": list(table.notes),
        "rank": float(spearmanr(predicted, list(truth.values())).statistic),
        "mape": 100 * float(np.mean(np.abs(predicted / np.array(list(truth.values())) - 1))),
        "own validation": {name: getattr(table.validation, name) for name in ("mape", "floor_mape", "spearman")},
        "reloaded": plain(table.validation.reloaded),
        "contention": plain(table.contention),
        "other processes": round(sum(cores.values()), 3),
        "seconds": round(time.monotonic() - start, 1),
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    if not runs:
        return {}
    ranks = [item["rank"] for item in runs]
    return {
        "runs": len(runs),
        "marked": sum(item["marked"] for item in runs),
        "said": sum(item["said"] for item in runs),
        "rank": {"min": min(ranks), "median": statistics.median(ranks)},
        "mape": {"median": statistics.median(item["mape"] for item in runs), "max": max(item["mape"] for item in runs)},
        "noise floor": statistics.median(item["own validation"]["floor_mape"] for item in runs),
        "noise between sessions": statistics.median(item["reloaded"]["mape"] for item in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run later than this")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "contention.json")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    space = SearchSpace.from_model(build_model(MODEL, input_shape=SHAPE, num_classes=CLASSES), SHAPE, operators=FOUR)
    cores = sorted(os.sched_getaffinity(0))
    result: dict[str, Any] = (
        read_json(arguments.out)
        if arguments.out.exists()
        else {
            "command": "OMP_NUM_THREADS=1 python benchmarks/bench_contention.py",
            "network": f"{MODEL} {'x'.join(map(str, SHAPE))}, onnxruntime fp32",
            "cores": len(cores),
            "fingerprint": fingerprint(CONFIG),
            "truth_ms": {},
            "quiet": [],
            "spinner": [],
            "intruded": [],
        }
    )
    if not result["truth_ms"]:
        archs = judges(space)
        found = measure_children(space, archs, CONFIG, rounds=30)
        names = [",".join(map(str, arch)) for arch in archs]
        result["truth_ms"] = {name: round(ms, 6) for name, ms in zip(names, found.ms, strict=True)}
    for number in range(arguments.runs):
        for kind in ("quiet", "spinner"):
            if len(result[kind]) <= number and time.monotonic() < deadline:
                core = cores[number % len(cores)] if kind == "spinner" else None
                found = run(space, result["truth_ms"], core)
                intruded = kind == "quiet" and found["other processes"] > INTRUDED
                result["intruded" if intruded else kind].append({"core": core, **found})
                result["summary"] = {name: summary(result[name]) for name in ("quiet", "spinner", "intruded")}
                write_json(arguments.out, result)
                print(kind, number, {key: found[key] for key in ("marked", "said", "rank", "seconds")}, intruded, flush=True)


if __name__ == "__main__":
    main()
