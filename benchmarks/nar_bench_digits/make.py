"""Train every child of the yardstick alone, and measure the latency of each.

The children are trained in an order drawn once, each finished one is kept in a journal, and a run that was stopped goes on; so
does one with more ``--repeated`` children or seeds. Once all are trained, their latencies and a latency table are measured in
ONNX Runtime at batch 128 (``--stage latency``) on an otherwise idle machine.
Result: children.json and table.json beside this file; about 1.4 s of one core per training.

    OMP_NUM_THREADS=1 python benchmarks/nar_bench_digits/make.py [--stage train|latency] [--seeds 3] [--repeated 128] [--jobs 1]
"""

import argparse
import json
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress, track
from yardstick import ARCHS, CHILDREN, FOLDER, RECIPE, TABLE, Yardstick, space, task

from nar_hw._version import versions
from nar_hw.files import read_json, write_json
from nar_hw.latency.measure import measure_children
from nar_hw.latency.profiler import profile
from nar_hw.records import plain
from nar_hw.runtimes import RuntimeConfig
from nar_hw.space.spec import Arch
from nar_hw.tasks import ClassificationTask
from nar_hw.training.loop import train

JOURNAL = FOLDER / "journal.part"
RUNTIME = RuntimeConfig(runtime="onnxruntime", device="cpu", batch=128)
AT_ONCE = 128
"""Children measured in the same rounds."""


def trained(item: tuple[int, int]) -> tuple[int, int, float, float]:
    """Index, seed, validation and test accuracy of a child."""
    index, seed = item
    torch.set_num_threads(1)
    child = space(seed).build(ARCHS[index])
    train(child, shared_task(), RECIPE, seed=seed)
    return index, seed, shared_task().evaluate(child, "valid"), shared_task().evaluate(child, "test")


@cache
def shared_task() -> ClassificationTask:
    return task()


def wanted(seeds: int, repeated: int) -> list[tuple[int, int]]:
    """Every child with seed 0, then ``repeated`` of them with the other seeds."""
    order = random.Random(0).sample(range(len(ARCHS)), len(ARCHS))
    return [(index, 0) for index in order] + [(index, seed) for seed in range(1, seeds) for index in order[:repeated]]


def journal(path: Path = JOURNAL) -> Iterator[tuple[int, int, float, float]]:
    if path.exists():
        for line in path.read_text().splitlines():
            index, seed, valid, test = json.loads(line)
            yield index, seed, valid, test


def train_all(seeds: int, repeated: int, jobs: int) -> None:
    done = {(index, seed) for index, seed, *_ in journal()}
    left = [item for item in wanted(seeds, repeated) if item not in done]
    with ProcessPoolExecutor(jobs) as pool, JOURNAL.open("a") as file:
        for result in track(pool.map(trained, left), total=len(left), description="children"):
            file.write(json.dumps(result) + "\n")
            file.flush()
    accuracies = np.full((2, seeds, len(ARCHS)), np.nan)
    for index, seed, valid, test in journal():
        accuracies[:, seed, index] = valid, test
    sizes = {name: len(shared_task().data.split(name)) for name in ("valid", "test")}
    rounded = [
        [[None if np.isnan(value) else round(value, 6) for value in row] for row in split] for split in accuracies.tolist()
    ]
    write_json(
        CHILDREN,
        {
            "command": f"python benchmarks/nar_bench_digits/make.py --seeds {seeds} --repeated {repeated}",
            "versions": versions("torch"),
            "recipe": plain(RECIPE),
            "splits": shared_task().data.splits,
            "order": "itertools.product of the operators, the last slot fastest",
            "images": sizes,
            "valid": rounded[0],
            "test": rounded[1],
        },
    )


def measure_all() -> None:
    """Latencies of all children, in milliseconds that belong together: each part is divided by the network's own time in it."""
    content = read_json(CHILDREN)
    with Progress() as progress:
        table = profile(space(), config=RUNTIME, model_name="nar_bench_digits", seed=0, progress=progress)
        parts: list[Arch] = random.Random(1).sample(ARCHS, len(ARCHS))
        ratios: dict[Arch, float] = {}
        for start in range(0, len(parts), AT_ONCE):
            some = parts[start : start + AT_ONCE]
            measured = measure_children(space(), some, RUNTIME, progress=progress)
            ratios |= zip(some, (ms / measured.incumbent_ms for ms in measured.ms), strict=True)
    table.save(TABLE)
    latency = [round(ratios[arch] * table.incumbent_ms, 6) for arch in ARCHS]
    write_json(CHILDREN, {**content, "fingerprint": table.fingerprint, "latency_ms": latency})
    known = Yardstick.load()
    error = known.predicted_ms / known.latency_ms - 1
    print(f"table error over all children: mean {100 * np.abs(error).mean():.2f} %, largest {100 * np.abs(error).max():.2f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("train", "latency"), default="train")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeated", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.stage == "train":
        train_all(arguments.seeds, arguments.repeated, arguments.jobs)
    else:
        measure_all()


if __name__ == "__main__":
    main()
