"""The demo's claims over seeds: measured latency against the asked and the predicted one, accuracy against the network.

Each seed runs `nar-hw demo` in a folder of its own, on whatever device is here. "search" is the pick's time measured beside the
network by the search, on the table's clock (the thread's) and scale; "benchmark" the bundle's median wall time.
Result: results/demo.json, from which benchmarks/pictures.py draws the front.

    OMP_NUM_THREADS=1 python benchmarks/bench_demo.py [--seeds 0 1 2] [--work FOLDER] [--out benchmarks/results/demo.json]
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.progress import Progress

from nar_hw._version import versions
from nar_hw.files import write_json
from nar_hw.latency.table import LatencyTable
from nar_hw.records import plain
from nar_hw.steps.demo import run_demo


def measure(seed: int, folder: Path) -> dict[str, Any]:
    start, began = time.monotonic(), time.process_time()
    with Progress() as progress:
        outcome = run_demo(folder, seed=seed, progress=progress)
    seconds, cpu = time.monotonic() - start, time.process_time() - began
    table = LatencyTable.load(folder / "table.json")
    validation = {key: value for key, value in (plain(table.validation) or {}).items() if key != "pairs"}
    network, *children = outcome["networks"]
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "cpu seconds": round(cpu, 1),
        "networks": outcome["networks"],
        "claims": {child["name"]: claims(network, child) for child in children},
        "table validation": validation,
        "fingerprint": table.fingerprint,
    }


def claims(network: dict[str, Any], child: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The three claims of one child."""
    lost = 100 * (network["test_accuracy"] - child["test_accuracy"])
    over, ratio = child["measured_ms"] / child["target_ms"], child["predicted_ms"] / child["measured_ms"]
    return {
        "accuracy at most 1.0 point below the network": {"points lost": lost, "holds": lost <= 1.0},
        "measured <= asked + 5 %": {"measured / asked": over, "holds": over <= 1.05},
        "predicted within 10 % of measured": {"predicted / measured": ratio, "holds": abs(ratio - 1) <= 0.1},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, help="keep the runs in this new folder, one for each seed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "demo.json")
    arguments = parser.parse_args()
    if arguments.work is not None:
        arguments.work.mkdir(parents=True)  # a run that is there already would not be timed
    results, loads = [], [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            results.append(measure(seed, (arguments.work or Path(folder)) / str(seed)))
            loads.append(os.getloadavg()[0])
            command = f"python benchmarks/bench_demo.py --seeds {' '.join(map(str, arguments.seeds))}"
            found = {
                "command": command,
                "cores": os.cpu_count(),
                "loads": loads,
                "versions": versions("torch"),
                "results": results,
            }
            write_json(arguments.out, found)


if __name__ == "__main__":
    main()
