"""Profiles through kits, what operators cost on each runtime, and one child for two of them.

    python benchmarks/bench_devices.py kit       a kit on this machine against the profile in place
    python benchmarks/bench_devices.py runtimes  what each operator takes on each runtime, relative to the network's own
    python benchmarks/bench_devices.py both      searches for one runtime, for another, and for both
    python benchmarks/bench_devices.py sizes     how large kits are

`kit` and `runtimes` can be called for one runtime after the other (--runtimes litert): they add to their result files.
What each found last is in benchmarks/results/devices_*.json.
kit, 2026-11-28, resnet18 at 3x32x32, ONNX Runtime 1.31 on two shared cores (31 to 35 % of the runs disturbed, noise floor 3.7
and 5.4 %): error on the same held-out children 13.3 % by the kit, 12.0 % in place (ratio 1.11);
105 CPU seconds against 116; the kit takes 0.45 MB.
kit, 2026-11-29, resnet_digits at 1x8x8, other programs stopped, one run each: LiteRT 2.3.0 2.2 % by the kit, 3.2 % in place
(ratio 0.67), 14.6 CPU seconds on the device and 9.2 to make the kit and read its times against 19.6 (noise floors 1.8 and 0.8 %);
ncnn 1.0.20261020 2.6 % and 3.5 % (ratio 0.76), 16.2 and 8.6 against 23.6 (1.3 and 1.4 %; pnnx's own seconds are in neither).
"""

import argparse
import json
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
from nar_hw.latency.measure import measure_children
from nar_hw.latency.profiler import profile
from nar_hw.latency.programs import PROGRAMS
from nar_hw.latency.table import LatencyTable
from nar_hw.models.info import ModelInfo
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch
from nar_hw.steps.demo import SEARCH as DEMO_SEARCH
from nar_hw.steps.search import search_run
from nar_hw.steps.task import load_task
from nar_hw.steps.train import train_child
from nar_hw.training.recipes import RECIPES

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


def winners(table: LatencyTable) -> dict[str, int]:
    """Operator -> the slots in which it costs least."""
    best = [
        table.operators[min((row[table.operators.index(name)], table.operators.index(name)) for name in slot.candidates)[1]]
        for slot, row in zip(table.slots, table.matrix, strict=True)
    ]
    return {name: best.count(name) for name in table.operators if name in best}


def everywhere(info: ModelInfo, config: RuntimeConfig) -> dict[str, dict[str, float | None]]:
    """Operator -> the time of the network that has it wherever it may stand, over the network's own, and +- how much of that."""
    space = info.space()
    codes = sorted({code for slot in space.slots for code in slot.candidates if code != slot.incumbent})
    archs = [tuple(code if code in slot.candidates else slot.incumbent for slot in space.slots) for code in codes]
    names = [space.operators[code] for code in codes]
    found = measure_children(space, archs, config)
    return {
        name: {"ratio": ms / found.incumbent_ms, "rel": rel} for name, ms, rel in zip(names, found.ms, found.rel, strict=True)
    }


def tabled(info: ModelInfo, config: RuntimeConfig, children: int, budget_s: float | None) -> LatencyTable:
    method = "in-context" if runtime_class(config.runtime).layers_on(config) else "regression"
    return profile(info.space(), config=config, model_name=info.name, method=method, validate=children, budget_s=budget_s)


def runtimes(info: ModelInfo, names: list[str], children: int, budget_s: float | None, output: Path) -> dict[str, Any]:
    before = json.loads(output.read_text()) if output.exists() else {}
    same = (before.get("network"), before.get("input_shape")) == (info.name, list(info.input_shape))
    found: dict[str, Any] = dict(before["runtimes"]) if same else {}
    for name in names:
        config = RuntimeConfig(runtime=name)
        if reason := runtime_class(name).unavailable(config):
            print(f"{name}: {reason}")
            continue
        whole = everywhere(info, config)
        print(name, {key: round(value["ratio"] or 0.0, 3) for key, value in whole.items()})
        found[name] = {"everywhere": whole, "fingerprint": fingerprint(config), "command": " ".join(["python", *sys.argv])}
        if not children:
            continue
        try:
            table = tabled(info, config, children, budget_s)
        except MeasurementError as problem:  # of one runtime: the others have taken minutes
            print(f"{name}: {problem}")
            found[name]["refused"] = str(problem)
            continue
        found[name] |= {**bare(table), "method": table.method.name, "costs": costs(table), "winners": winners(table)}
    return {"network": info.name, "input_shape": info.input_shape, "runtimes": found}


def on_each(space: SearchSpace, arch: Arch, tables: dict[str, LatencyTable]) -> dict[str, dict[str, float]]:
    """What an arch takes on the runtime of each table, predicted and measured, of the network's own time."""
    found = {}
    for name, table in tables.items():
        there = measure_children(space, [arch], table.config)
        found[name] = {
            "predicted_ms": table.predict(arch),
            "predicted_of_network": table.predict(arch) / table.incumbent_ms,
            "measured_of_network": there.ms[0] / there.incumbent_ms,
        }
    return found


def both(info: ModelInfo, data: str, tables: dict[str, LatencyTable], share: float, epochs: int) -> dict[str, Any]:
    """Searches under the tables of two runtimes, alone and together; the target is ``share`` of the network on each.

    They begin with a trained network, inside which candidates are fitted: in short searches from scratch what is small scores
    best, for it learns fastest, and children are much faster than asked.
    """
    space, names = info.space(), list(tables)
    targets = {name: share * table.incumbent_ms for name, table in tables.items()}
    config = replace(DEMO_SEARCH, epochs=epochs)
    picks = {}
    with tempfile.TemporaryDirectory() as scratch:
        trained = Path(scratch) / "baseline"
        baseline = train_child(info, None, load_task(data), out=trained, recipe=RECIPES["demo"])
        for asked in ([names[0]], [names[1]], names):
            result = search_run(
                info.name,
                data,
                [tables[name] for name in asked],
                target_ms=[targets[name] for name in asked],
                out=Path(scratch) / " and ".join(asked),
                config=config,
                trained=trained,
            )
            found = {"arch": space.names(result.arch), "met": result.met, "accuracy": result.pick.accuracy}
            picks[" and ".join(asked)] = {**found, "on": on_each(space, result.arch, tables)}
            print(asked, picks[" and ".join(asked)]["on"], flush=True)
    return {
        "network": info.name,
        "input_shape": info.input_shape,
        "data": data,
        "target_of_network": share,
        "accuracy_of_network": baseline.accuracy,
        "tables": {name: {**bare(table), "method": table.method.name, "costs": costs(table)} for name, table in tables.items()},
        "picks": picks,
        "fingerprint": fingerprint(RuntimeConfig(runtime=names[0])),
        "command": " ".join(["python", *sys.argv]),
    }


def sizes(info: ModelInfo, names: list[str], children: int) -> dict[str, Any]:
    """MB of kits, and of all children as they are."""
    space, found = info.space(), {}
    for name in names:
        runtime = runtime_class(name)
        for shell in (False, *([True] if name in PROGRAMS else [])):
            config = RuntimeConfig(runtime=name)
            asked: dict[str, Any] = {"method": "in-context"} if runtime.layers_on(config) else {"method": "regression"}
            if shell:
                asked = {"method": "regression", "shell": True, "runtime_version": "1.0"}
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "kit"
                plan = write_kit(space, folder, config=config, model_name=info.name, validate=children, **asked)
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            found[f"{name} without Python" if shell else name] = {
                "children": len(plan.children),
                "megabytes": size / 1e6,
                "of_one_childs_weights": size / plan.weight_bytes,
            }
            print(name, shell, f"{size / 1e6:.2f} MB for {len(plan.children)} children")
    return {
        "network": info.name,
        "input_shape": info.input_shape,
        "kits": found,
        "fingerprint": fingerprint(RuntimeConfig(runtime=names[0])),
        "command": " ".join(["python", *sys.argv]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("kit", "runtimes", "both", "sizes"))
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--input", default="3x64x64")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--method", default="in-context")
    parser.add_argument("--runtimes", default="onnxruntime,openvino,litert,ncnn,mnn")
    parser.add_argument("--children", type=int, default=40, help="held out; 0: no table of the runtimes")
    parser.add_argument("--tables", default="", help="of `both`: files that `nar-hw profile` wrote, separated by commas")
    parser.add_argument("--budget", type=float, help="seconds of each profile")
    parser.add_argument("--share", type=float, default=0.6, help="target of the searches")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    channels, height, width = map(int, asked.input.split("x"))
    info = ModelInfo(name=asked.model, input_shape=(channels, height, width), num_classes=10)
    names = asked.runtimes.split(",")
    output = asked.output or RESULTS / f"devices_{asked.part}.json"
    if asked.part == "kit":
        found = kit(info, RuntimeConfig(runtime=names[0]), asked.method, asked.children)
        before = json.loads(output.read_text())["runtimes"] if output.exists() else {}
        result = {"runtimes": {**before, names[0]: found}}
        print(f"error {found['kit']['error_percent']:.2f} % by a kit, {found['in_place']['error_percent']:.2f} % in place")
    elif asked.part == "runtimes":
        result = runtimes(info, names, asked.children, asked.budget, output)
    elif asked.part == "both":
        if asked.tables:
            known = [LatencyTable.load(Path(file)) for file in asked.tables.split(",")]
        else:
            known = [tabled(info, RuntimeConfig(runtime=name), asked.children, None) for name in names[:2]]
        result = both(info, asked.data, {table.config.runtime: table for table in known}, asked.share, asked.epochs)
    else:
        result = sizes(info, names, asked.children)
    write_json(output, result)


if __name__ == "__main__":
    main()
