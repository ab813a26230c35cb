"""Profiles through kits, and what operators cost on each runtime.

    python benchmarks/bench_devices.py kit       a kit on this machine against the profile in place
    python benchmarks/bench_devices.py runtimes  cost of each operator relative to the network's own, by runtime

What each found last is in benchmarks/results/devices_kit.json and devices_runtimes.json.
kit, 2026-11-28, resnet18 at 3x32x32, ONNX Runtime 1.31 on two shared cores (31 to 35 % of the runs disturbed, noise floor 3.7
and 5.4 %): error on the same held-out children 13.3 % by the kit, 12.0 % in place (ratio 1.11);
105 CPU seconds against 116; the kit takes 0.45 MB.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from nar_hw.errors import MeasurementError
from nar_hw.files import write_json
from nar_hw.latency.device import fingerprint
from nar_hw.latency.kit import Times, table_from, write_kit
from nar_hw.latency.profiler import profile
from nar_hw.latency.table import LatencyTable
from nar_hw.models.info import ModelInfo
from nar_hw.runtimes import RuntimeConfig, runtime_class

RESULTS = Path(__file__).parent / "results"


def errors(table: LatencyTable, judges: list[LatencyTable]) -> float:
    """Mean absolute error, percent, on the held-out children of all tables, each at the speed that the network had there."""
    found = []
    for judge in judges:
        assert judge.validation is not None
        # A validation gives milliseconds at the speed of its own table
        speed = judge.incumbent_ms / table.incumbent_ms
        for pair in judge.validation.pairs:
            codes = [table.operators.index(name) for name in pair.arch]
            found.append(abs(table.predict(codes) * speed / pair.measured_ms - 1))
    return 100 * float(np.mean(found))


def bare(table: LatencyTable) -> dict[str, Any]:
    assert table.validation is not None
    names = ("mape", "floor_mape", "spearman", "kendall", "speed")
    return {
        "incumbent_ms": table.incumbent_ms,
        "seconds": table.method.seconds + table.validation.seconds,
        "notes": list(table.notes),
        **{name: getattr(table.validation, name) for name in names},
    }


def kit(info: ModelInfo, config: RuntimeConfig, method: str, children: int) -> dict[str, Any]:
    space = info.space()
    cpu = time.process_time()
    here = profile(space, config=config, model_name=info.name, method=method, validate=children)
    cpu = time.process_time() - cpu
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "kit"
        start = time.process_time()
        plan = write_kit(space, folder, config=config, model_name=info.name, method=method, validate=children)
        made = time.process_time() - start
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        before = sum(_times())
        subprocess.run([sys.executable, folder / "measure.py"], check=True)
        device = sum(_times()) - before
        times = Times.load(folder / "times.json")
        back = (folder / "times.json").stat().st_size
        start = time.process_time()
        there = table_from(times)
        read = time.process_time() - start
    both = [here, there]
    result = {
        "network": info.name,
        "input_shape": info.input_shape,
        "children": len(plan.children),
        "kit_bytes": size,
        "times_bytes": back,
        "in_place": {**bare(here), "cpu_s": cpu, "error_percent": errors(here, both)},
        "kit": {
            **bare(there),
            "cpu_s": device,
            "cpu_to_make_s": made,
            "cpu_to_read_s": read,
            "error_percent": errors(there, both),
        },
        "fingerprint": fingerprint(config),
        "command": " ".join(["python", *sys.argv]),
    }
    result["ratio_of_errors"] = result["kit"]["error_percent"] / result["in_place"]["error_percent"]
    return result


def _times() -> tuple[float, float]:
    """CPU seconds of children of this process."""
    import os

    found = os.times()
    return found.children_user, found.children_system


def costs(table: LatencyTable) -> dict[str, float]:
    """Operator -> its cost over that of the network's own, the median over the slots that have it."""
    ratios: dict[str, list[float]] = {}
    for slot, row in zip(table.slots, table.matrix, strict=True):
        own = row[table.operators.index(slot.incumbent)]
        for name in slot.candidates:
            if name != slot.incumbent:
                ratios.setdefault(name, []).append(row[table.operators.index(name)] / own)
    return {name: float(np.median(values)) for name, values in ratios.items()}


def runtimes(info: ModelInfo, names: list[str], children: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        config = RuntimeConfig(runtime=name)
        if reason := runtime_class(name).unavailable(config):
            print(f"{name}: {reason}")
            continue
        method = "in-context" if runtime_class(name).layers_on(config) else "regression"
        try:
            table = profile(info.space(), config=config, model_name=info.name, method=method, validate=children)
        except MeasurementError as problem:  # of one runtime: the others have taken minutes
            print(f"{name}: {problem}")
            found[name] = {"method": method, "refused": str(problem)}
            continue
        found[name] = {**bare(table), "method": method, "costs": costs(table), "fingerprint": table.fingerprint}
        print(name, {key: round(value, 2) for key, value in found[name]["costs"].items()}, f"{table.incumbent_ms:.3g} ms")
    return {
        "network": info.name,
        "input_shape": info.input_shape,
        "runtimes": found,
        "command": " ".join(["python", *sys.argv]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("kit", "runtimes"))
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--method", default="in-context")
    parser.add_argument("--runtimes", default="onnxruntime,openvino,ncnn")
    parser.add_argument("--children", type=int, default=40)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    info = ModelInfo(name=asked.model, input_shape=(3, asked.size, asked.size), num_classes=10)
    names = asked.runtimes.split(",")
    if asked.part == "kit":
        result = kit(info, RuntimeConfig(runtime=names[0]), asked.method, asked.children)
        print(f"error {result['kit']['error_percent']:.2f} % by a kit, {result['in_place']['error_percent']:.2f} % in place")
    else:
        result = runtimes(info, names, asked.children)
    write_json(asked.output or RESULTS / f"devices_{asked.part}.json", result)


if __name__ == "__main__":
    main()
