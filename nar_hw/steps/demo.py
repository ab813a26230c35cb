"""The whole path on data that comes with scikit-learn: table, baseline, search, child, bundles, benchmark, report."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from nar_hw.files import read_json, write_json
from nar_hw.latency.profiler import profile
from nar_hw.latency.table import LatencyTable
from nar_hw.models.info import ModelInfo
from nar_hw.records import check_same, plain, replace
from nar_hw.report import write_report
from nar_hw.runtimes import RuntimeConfig
from nar_hw.search.config import SearchConfig
from nar_hw.search.record import load_run
from nar_hw.steps.bench import bench_bundles
from nar_hw.steps.export import export_child
from nar_hw.steps.search import search_run
from nar_hw.steps.task import load_task
from nar_hw.steps.train import train_child
from nar_hw.training.child import Child
from nar_hw.training.recipes import RECIPES

MODEL = ModelInfo(name="resnet_digits", input_shape=(1, 8, 8), num_classes=10)
TARGET = 0.6
"""Asked latency as a share of the baseline's."""
SEARCH = SearchConfig(warmup_epochs=20, epochs=10, batch=64, updates=6, samples=8)


def run_demo(out: Path, *, seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Run every stage that ``out`` does not hold yet; returns the paths of the report and the bundle, and the benchmark.

    Raises RunError when ``out`` holds a demo with another seed.
    """
    settings = {"seed": seed, "target": TARGET, "search": plain(SEARCH), "recipe": plain(RECIPES["demo"])}
    _same_settings(out / "demo.json", settings)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = RuntimeConfig(runtime="onnxruntime", device=device)
    recipe = RECIPES["demo"]

    stage = _Stages(progress)
    stage("latency table", out / "table.json", lambda: _profile(out, config, seed, progress))
    table = LatencyTable.load(out / "table.json")
    target_ms = TARGET * table.incumbent_ms
    common: dict[str, Any] = {
        "recipe": recipe,
        "seed": seed,
        "table": table,
        "progress": progress,
        "resume": True,
    }
    task = partial(load_task, "digits", device=device)
    stage("baseline", out / "baseline" / "child.json", lambda: train_child(MODEL, None, task(), out=out / "baseline", **common))
    stage(
        "search",
        out / "run.json",
        lambda: search_run(
            MODEL.name,
            "digits",
            table,
            target_ms=target_ms,
            out=out,
            config=replace(SEARCH, seed=seed),
            device=device,
            resume=True,
            progress=progress,
        ),
    )
    found = load_run(out)
    stage(
        "child",
        out / "child" / "child.json",
        lambda: train_child(found.network, found.arch, task(), out=out / "child", target_ms=target_ms, **common),
    )
    for name, bundle in (("baseline", "baseline_bundle"), ("child", "bundle")):
        stage(f"export {name}", out / bundle / "manifest.json", partial(export_child, out / name, out / bundle))
    stage("benchmark", out / "bench.json", lambda: _bench(out, config, progress))
    report = write_report(out)
    child, baseline = (Child.load(out / name) for name in ("child", "baseline"))
    return {
        "report": str(report),
        "bundle": str(out / "bundle"),
        "target_ms": target_ms,
        "arch": list(child.arch),
        "test_accuracy": {"baseline": baseline.accuracy["test"], "child": child.accuracy["test"]},
        "predicted_ms": child.predicted_ms,
        "bench": read_json(out / "bench.json"),
    }


class _Stages:
    """Runs a stage unless its last file is there already."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def __call__(self, name: str, result: Path, run: Callable[[], object]) -> None:
        if result.exists():
            if self._progress is not None:
                self._progress.add_task(f"{name}: done before", total=1, completed=1)
            return
        run()


def _same_settings(path: Path, settings: dict[str, Any]) -> None:
    if not path.exists():
        write_json(path, settings)
    else:
        fix = "use the same settings, choose another folder with --out, or delete this one"
        check_same(read_json(path, what="demo"), settings, where=str(path.parent), fix=fix)


def _profile(out: Path, config: RuntimeConfig, seed: int, progress: Progress | None) -> None:
    table = profile(MODEL.space(), config=config, model_name=MODEL.name, seed=seed, progress=progress)
    table.save(out / "table.json")


def _bench(out: Path, config: RuntimeConfig, progress: Progress | None) -> None:
    subjects = {"child": out / "bundle", "baseline": out / "baseline_bundle"}
    bench_bundles(subjects, [config], progress=progress).save(out / "bench.json")
