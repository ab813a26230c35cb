"""From trained weights to trained children: candidates fitted inside the network against a search from scratch.

Per seed, on the digits: the network is trained once (not counted). "fitted" is what `nar-hw demo` (refine) does: candidates are
fitted, archs scored and chosen, children fine-tuned. "scratch" is the demo's way before: shared weights trained from nothing for
one target, the child trained from nothing; three targets took it three searches. Both use the latency table that ships with
nar_hw, nothing is measured on the device, and seconds are CPU seconds of the process. "before fine-tuning" is the accuracy of a
child put together from fitted candidates, on the validation images, as the search scored it. Result: results/refine.json.

    OMP_NUM_THREADS=1 python benchmarks/bench_refine.py [--seeds 0 1 2]
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from nar_hw._version import versions
from nar_hw.files import write_json
from nar_hw.latency.table import LatencyTable, shipped_tables
from nar_hw.records import replace
from nar_hw.search.config import SearchConfig
from nar_hw.search.loop import search
from nar_hw.search.record import load_run
from nar_hw.steps.demo import MODEL, RECIPE, SEARCH, TARGETS
from nar_hw.steps.search import trained_network
from nar_hw.steps.task import load_task
from nar_hw.steps.train import train_child
from nar_hw.training.recipes import RECIPES

TABLE = next(path for path in shipped_tables() if "onnxruntime__fp32__resnet_digits" in path.name)
OUT = Path(__file__).parent / "results" / "refine.json"
SCRATCH = SearchConfig(warmup_epochs=20, epochs=10, batch=64, updates=6, samples=8)


def fitted(table: LatencyTable, targets: list[float], seed: int, baseline: Path, out: Path) -> dict[str, Any]:
    start = time.process_time()
    task = load_task("digits")
    config = replace(SEARCH, seed=seed)
    space = MODEL.space(trained_network(MODEL, baseline))
    result = search(space, task, table, target_ms=targets, config=config, model=MODEL, out=out)
    searched = time.process_time() - start
    children = [
        train_child(
            MODEL,
            item.pick.arch,
            task,
            out=out / str(index),
            recipe=RECIPE,
            seed=seed,
            baseline=baseline,
            fitted=out,
            target_ms=item.target_ms,
        )
        for index, item in enumerate(load_run(out).outcomes)
    ]
    return {
        "seconds": time.process_time() - start,
        "of these, search": searched,
        "before fine-tuning": [item.pick.accuracy for item in result.outcomes],
        "test accuracy": [child.accuracy["test"] for child in children],
    }


def scratch(table: LatencyTable, target: float, seed: int, out: Path) -> dict[str, Any]:
    start = time.process_time()
    task = load_task("digits")
    result = search(MODEL.space(), task, table, target_ms=target, config=replace(SCRATCH, seed=seed), model=MODEL, out=out)
    child = train_child(MODEL, load_run(out).arch, task, out=out / "child", recipe=RECIPES["demo"], seed=seed)
    return {
        "seconds": time.process_time() - start,
        "before training": result.pick.accuracy,
        "test accuracy": child.accuracy["test"],
    }


def measured(seed: int, folder: Path) -> dict[str, Any]:
    task = load_task("digits")
    baseline = train_child(MODEL, None, task, out=folder / "baseline", recipe=RECIPES["demo"], seed=seed)
    table = LatencyTable.load(TABLE)
    one = [0.6 * table.incumbent_ms]
    three = [float(share) * table.incumbent_ms for share in TARGETS]
    new = fitted(table, one, seed, folder / "baseline", folder / "one")
    old = scratch(table, one[0], seed, folder / "scratch")
    many = fitted(table, three, seed, folder / "baseline", folder / "three")
    return {
        "seed": seed,
        "network": dict(baseline.accuracy),
        "one target, fitted": new,
        "one target, scratch": old,
        "three targets, fitted": many,
        "seconds, one target": new["seconds"] / old["seconds"],
        "seconds, three targets": many["seconds"] / (len(three) * old["seconds"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    results = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measured(seed, Path(folder)))
        command = f"OMP_NUM_THREADS=1 python benchmarks/bench_refine.py --seeds {' '.join(map(str, arguments.seeds))}"
        note = "other processes ran on the same two cores; seconds are CPU seconds"
        write_json(OUT, {"command": command, "versions": versions("torch"), "note": note, "results": results})


if __name__ == "__main__":
    main()
