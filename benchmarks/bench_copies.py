"""How much the same network differs from one loading to another: why the network itself is loaded among the children.

One process loads resnet18 six times among 30 random children (five after each) and visits all in turn. "copies" are the
medians of the six in the order of loading, beside their own median; "error" is the standard error of such a median. Repeated in
processes of their own, the medians over these say what loading early costs. Result: results/copies.json. Five minutes; let
nothing else run.

    OMP_NUM_THREADS=1 python benchmarks/bench_copies.py [--processes 5]
"""

import argparse
import json
import os
import random
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_latency_table import SEED, space_of

from nar_hw.device.visits import normalised
from nar_hw.files import write_json
from nar_hw.latency.children import clock_of
from nar_hw.latency.designs import held_out
from nar_hw.latency.device import fingerprint
from nar_hw.latency.loader import ChildLoader
from nar_hw.runtimes import RuntimeConfig

RUNTIMES = ("onnxruntime", "openvino", "torch_eager")
COPIES, BETWEEN, ROUNDS = 6, 5, 12


def once(runtime: str) -> dict[str, Any]:
    """One process's copies."""
    torch.set_num_threads(1)
    space = space_of("resnet18", 32)
    others = iter(held_out(space, COPIES * BETWEEN, seed=SEED))
    order = [arch for _ in range(COPIES) for arch in (space.incumbent, *(next(others) for _ in range(BETWEEN)))]
    with ChildLoader(space, RuntimeConfig(runtime=runtime)) as load, ExitStack() as stack:
        networks = [stack.enter_context(load(arch)) for arch in order]
        clock = clock_of(networks[0])
        runs = np.zeros((ROUNDS + 1, len(networks), 5))
        for turn in range(ROUNDS + 1):
            for item in random.Random(turn).sample(range(len(networks)), len(networks)):
                runs[turn, item] = clock.time_ms(networks[item], 5)
    whole, _ = normalised(runs[1:])  # (rounds, networks)
    own = whole[:, [number for number, arch in enumerate(order) if arch == space.incumbent]]
    medians = np.median(own, axis=0)
    spread = 1.4826 * np.median(np.abs(own - medians), axis=0) / medians
    return {
        "ms": round(float(np.median(medians)), 3),
        "copies": [round(float(value), 3) for value in medians / np.median(medians)],
        "error": round(float(1.2533 * spread.mean() / np.sqrt(ROUNDS)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5, help="for each runtime")
    parser.add_argument("--once", default="", help="a runtime: measure here, and print")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "copies.json")
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(once(arguments.once)))
        return
    load = round(os.getloadavg()[0], 2)
    rows: dict[str, list[dict[str, Any]]] = {runtime: [] for runtime in RUNTIMES}
    for _ in range(arguments.processes):
        for runtime, found in rows.items():
            command = [sys.executable, "-W", "ignore", __file__, "--once", runtime]
            said = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
            found.append(json.loads(said.splitlines()[-1]))
    cases = {
        runtime: {
            "first": round(float(np.median([row["copies"][0] for row in found])), 3),
            "last": round(float(np.median([row["copies"][-1] for row in found])), 3),
            "spread": round(float(np.median([np.std(row["copies"], ddof=1) for row in found])), 3),
            "processes": found,
            "fingerprint": fingerprint(RuntimeConfig(runtime=runtime)),
        }
        for runtime, found in rows.items()
    }
    command = f"OMP_NUM_THREADS=1 python benchmarks/bench_copies.py --processes {arguments.processes}"
    write_json(arguments.out, {"command": command, "network": "resnet18 3x32x32", "load before": load, "cases": cases})
    for runtime, case in cases.items():
        print(runtime, {key: case[key] for key in ("first", "last", "spread")})


if __name__ == "__main__":
    main()
