"""TensorRT for RTX, the real library: what its parser takes and what it builds of searched networks, without a GPU.

    python benchmarks/bench_tensorrt.py [--only NAME ...] [--jobs 1]     the networks of bench_space.py
    python benchmarks/bench_tensorrt.py fleet                            1 to 6 compute capabilities in one engine
    python benchmarks/bench_tensorrt.py speed [--before CHECKOUT]        a bundle of resnet18 against a script by hand

Results: results/tensorrt.json, results/tensorrt_fleet.json and results/tensorrt_speed.json. The 120 networks go on where they
were stopped, small ones first. Of each network five random children are checked by onnx.checker and read by the parser in fp32,
and the first of them in fp16, bf16 and int8 too (calibrated on two random images; all five for the first few networks); the
first one is built for sm89, in one precision (--built all: in each). Networks of more than 60 MB: in fp32 and fp16 only, and
built in fp16.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torchvision
from bench_space import TIMM, input_size, prepare

from nar_hw.errors import NarError
from nar_hw.export.engine import info_file
from nar_hw.export.gpus import CARDS
from nar_hw.export.quantize import to_bf16, to_fp16, to_int8
from nar_hw.export.splice import ChildExporter
from nar_hw.export.tensorrt import build_engine, parser_verdicts
from nar_hw.files import write_json
from nar_hw.models import build_model
from nar_hw.space.space import SearchSpace

RESULTS = Path(__file__).parent / "results"
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
LARGE = 60 * 2**20
FLEET = ("resnet18", "mobilenet_v2")


def convert(source: Path, precision: str, shape: tuple[int, int, int]) -> Path:
    target = source.with_name(f"{source.stem}.{precision}.onnx")
    if precision == "int8":
        to_int8(source, target, np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32))
    elif precision != "fp32":
        {"fp16": to_fp16, "bf16": to_bf16}[precision](source, target)
    else:
        return source
    return target


def built(file: Path, gpus: tuple[str, ...]) -> dict[str, Any]:
    engine = file.with_suffix(".engine")
    start = time.perf_counter()
    try:
        info = build_engine(file, engine, library="tensorrt-rtx", gpus=gpus)
    except NarError as problem:
        return {"seconds": round(time.perf_counter() - start, 2), "refused": str(problem).replace(str(file.parent), "")[:300]}
    seconds = round(time.perf_counter() - start, 2)
    found = {"seconds": seconds, "mb": round(engine.stat().st_size / 1e6, 2), "onnx_mb": round(file.stat().st_size / 1e6, 2)}
    for path in (engine, info_file(engine)):
        path.unlink()
    return {**found, "datatypes": info.datatypes}


def examine(name: str, children: int, precisions: tuple[str, ...]) -> dict[str, Any]:
    start = time.perf_counter()
    size = input_size(name)
    shape = (3, size, size)
    row: dict[str, Any] = {"model": name, "input_shape": shape, "parsed": {}, "refused": [], "invalid": [], "built": {}}
    torch.manual_seed(0)
    model = build_model(name, input_shape=shape, num_classes=10).eval()
    try:
        space = SearchSpace.from_model(model, shape)
        exporter, rng = ChildExporter(space), random.Random(0)
    except NarError as error:
        return {**row, "left_out": str(error)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        first, files = folder / "0.onnx", {}
        for index in range(children):
            path = folder / f"{index}.onnx"
            exporter.export(space.sample(rng), path)
            if path == first:
                large = path.stat().st_size > LARGE
            for precision in ("fp32",) if index else ("fp32", "fp16") if large else PRECISIONS:
                try:
                    files[f"{precision} {index}"] = convert(path, precision, shape)
                    onnx.checker.check_model(str(files[f"{precision} {index}"]), full_check=True)
                except Exception as problem:
                    row["invalid"].append(f"{precision}: {type(problem).__name__}: {str(problem).splitlines()[0][:200]}")
        verdicts = parser_verdicts(files)
        for precision in PRECISIONS:
            found = [verdict for key, verdict in verdicts.items() if key.startswith(precision)]
            row["parsed"][precision] = [sum(not verdict.refused for verdict in found), len(found)]
            nodes = [node for verdict in found for node in verdict.refused]
            row["refused"] += [{"precision": precision, **node, "reason": node["reason"][:200]} for node in nodes[:3]]
            if f"{precision} 0" in files and precision in (("fp16",) if large else precisions):
                row["built"][precision] = built(files[f"{precision} 0"], ("sm89",))
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [row for row in rows if "left_out" not in row]
    parsed = {name: np.sum([row["parsed"][name] for row in rows], axis=0).tolist() for name in PRECISIONS}
    ratios = {}
    for name in PRECISIONS:
        works = [row["built"][name] for row in rows if "mb" in row["built"].get(name, {})]
        share = [
            row["built"][name]["mb"] / row["built"]["fp32"]["mb"]
            for row in rows
            if "mb" in row["built"].get(name, {}) and "mb" in row["built"].get("fp32", {})
        ]
        ratios[name] = {
            "built": len(works),
            "refused": sum("refused" in row["built"].get(name, {}) for row in rows),
            "seconds median": round(float(np.median([item["seconds"] for item in works])), 2),
            "seconds most": max(item["seconds"] for item in works),
            "size against fp32 median": round(float(np.median(share)), 3),
            "products by type": dict(sum((Counter(item["datatypes"]) for item in works), Counter())),
        }
    accepted, total = np.sum(list(parsed.values()), axis=0).tolist()
    return {
        "networks": len(rows),
        "files": total,
        "accepted": round(accepted / total, 4),
        "invalid files": sum(len(row["invalid"]) for row in rows),
        "accepted of each precision": parsed,
        "engines for sm89": ratios,
    }


def versions() -> dict[str, str]:
    names = ("torch", "torchvision", "timm", "onnx", "tensorrt_rtx_cu13")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def networks(arguments: argparse.Namespace) -> None:
    path = RESULTS / "tensorrt.json"
    names = [*torchvision.models.list_models(module=torchvision.models), *(f"timm:{name}" for name in TIMM)]
    turns = {name: PRECISIONS[index % len(PRECISIONS)] for index, name in enumerate(names)}  # all are built about as often
    effort = {row["model"]: row.get("seconds", 0) for row in json.loads((RESULTS / "space.json").read_text())["networks"]}
    names.sort(key=lambda name: effort.get(name, 0))
    rows: dict[str, dict[str, Any]] = {}
    if path.exists():
        rows = {row["model"]: row for row in json.loads(path.read_text())["networks"]}
    missing = arguments.only or [name for name in names if name not in rows]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, context, prepare) as pool:
        built = {name: PRECISIONS if arguments.built == "all" else (turns[name],) for name in missing}
        waiting = {pool.submit(examine, name, arguments.children, built[name]): name for name in missing}
        for work in as_completed(waiting):
            if problem := work.exception():
                print(f"{waiting[work]}: {type(problem).__name__}: {problem}", flush=True)
                continue
            row = work.result()
            rows[row["model"]] = row
            sizes = {key: item.get("mb", "refused") for key, item in row["built"].items()}
            print(f"{row['model']}: {row.get('left_out') or row['parsed']}, MB {sizes}, {row.get('seconds')} s", flush=True)
            write_json(
                path,
                {
                    "command": "python benchmarks/bench_tensorrt.py",
                    "machine": {"cores": os.cpu_count(), "note": "busy with other work; one thread per job"},
                    "versions": versions(),
                    "children": arguments.children,
                    "summary": summary(list(rows.values())),
                    "networks": [rows[name] for name in sorted(rows)],
                },
            )


def fleet() -> None:
    """Sizes and build seconds (the better of two) for 1 to 6 compute capabilities in one engine; int8 for 5, without sm75."""
    rows = []
    for name in FLEET:
        torch.manual_seed(0)
        shape = (3, 64, 64)
        space = SearchSpace.from_model(build_model(name, input_shape=shape, num_classes=10).eval(), shape)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "child.onnx"
            ChildExporter(space).export(space.incumbent, path)
            files = {precision: convert(path, precision, shape) for precision in ("fp16", "int8")}
            for precision, file in files.items():
                gpus = tuple(reversed(CARDS)) if precision == "fp16" else tuple(reversed(CARDS))[:-1]
                for count in range(1, len(gpus) + 1):
                    runs = [built(file, gpus[:count]) for _ in range(2)]
                    seconds = min(run["seconds"] for run in runs)
                    row = {"model": name, "precision": precision, "gpus": gpus[:count]}
                    rows.append({**row, "mb": runs[0]["mb"], "seconds": seconds})
                    print(rows[-1], flush=True)
    value = {"command": "python benchmarks/bench_tensorrt.py fleet", "versions": versions(), "input": "3x64x64", "rows": rows}
    write_json(RESULTS / "tensorrt_fleet.json", value)


def speed(before: Path | None) -> None:
    """A bundle (three ONNX files, engines of them for two GPUs, judged) against a script by hand; ONNX alone against before.

    Seconds without the imports of torch and torchvision. Before: the last commit without TensorRT for RTX (6916316).
    """
    ways = ["bundle", "hand", "onnx", *(["before"] if before else [])]
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(3):
        for way in ways:
            env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # as when installed
            env |= {"PYTHONPATH": str(before)} if way == "before" else {}
            script = Path(__file__).with_name("bench_tensorrt_once.py")
            done = subprocess.run([sys.executable, script, way], env=env, capture_output=True, text=True, check=True)
            runs[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(way, runs[way][-1], flush=True)
    middle = {way: {key: float(np.median([run[key] for run in found])) for key in found[0]} for way, found in runs.items()}
    ratios = {
        f"{top} to {bottom}": {key: round(middle[top][key] / middle[bottom][key], 3) for key in middle[top]}
        for top, bottom in (("bundle", "hand"), ("onnx", "before"))
        if bottom in middle
    }
    value = {
        "command": "python benchmarks/bench_tensorrt.py speed --before CHECKOUT",
        "network": "resnet18, 3x32x32, 512 images to calibrate",
    }
    machine = {"cores": os.cpu_count(), "note": "where other work goes on, the processor's seconds say more than the clock's"}
    write_json(
        RESULTS / "tensorrt_speed.json",
        {**value, "machine": machine, "versions": versions(), "medians": middle, "ratios": ratios, "runs": runs},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("networks", "fleet", "speed"), default="networks")
    parser.add_argument("--only", nargs="*", help="these networks, again where they are in the results already")
    parser.add_argument("--children", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--built", choices=("one", "all"), default="one", help="in how many precisions")
    parser.add_argument("--before", type=Path, help="an older checkout of nar_hw, whose exports are timed too")
    arguments = parser.parse_args()
    if arguments.what == "fleet":
        fleet()
    elif arguments.what == "speed":
        speed(arguments.before)
    else:
        networks(arguments)


if __name__ == "__main__":
    main()
