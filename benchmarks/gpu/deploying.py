"""Stage export: bundles of the baseline and of the child, and both side by side at several batch sizes."""

from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.gpu.cifar import BASELINE, CHILD, trained_child
from benchmarks.gpu.plan import Session, called
from benchmarks.gpu.runner import NotReadyError, Piece
from nar_hw.bench.benchmark import bench, unusable
from nar_hw.bench.rows import BenchFile, compare
from nar_hw.bundles.config import ExportConfig
from nar_hw.bundles.manifest import load_bundle
from nar_hw.records import plain
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.steps.export import export_child
from nar_hw.training.child import Child

NAMES = (BASELINE, CHILD)


def export(session: Session) -> list[Piece]:
    plan = session.plan
    return [
        *(
            Piece(f"bundle {name} {stem(*bundle)}", lambda name=name, bundle=bundle: _bundle(session, name, *bundle))
            for bundle in plan.bundles
            for name in NAMES
        ),
        *(Piece(f"bench {called(config)}", lambda config=config: _bench(session, config)) for config in plan.benches),
        Piece("asked, predicted, measured", lambda: _asked(session)),
    ]


def stem(target: str, precisions: tuple[str, ...], batch: tuple[int, int]) -> str:
    return f"{target} {'+'.join(precisions)} batch {'-'.join(map(str, dict.fromkeys(batch)))}"


def _place(session: Session, name: str, stem: str) -> Path:
    return session.work / "bundles" / f"{name} {stem}".replace(" ", "-")


def _bundle(session: Session, name: str, target: str, precisions: tuple[str, ...], batch: tuple[int, int]) -> dict[str, Any]:
    """Exported, and every file compared with torch on the validation images."""
    path = export_child(
        trained_child(session, name),
        _place(session, name, stem(target, precisions, batch)),
        ExportConfig(targets=(target,), precisions=precisions, batch=batch, device=session.plan.device),
        data_root=session.data_root,
    )
    manifest = load_bundle(path).manifest
    sizes = {file.name: round(file.stat().st_size / 2**20, 2) for file in sorted(path.iterdir()) if file.is_file()}
    kept = ("variants", "compiled", "left_out", "validation")
    return {**{key: plain(getattr(manifest, key)) for key in kept}, "mib": sizes}


def _bench(session: Session, config: RuntimeConfig) -> dict[str, Any]:
    """Baseline and child in turn. A runtime that does not work here is left out, and the result says why."""
    runtime = runtime_class(config.runtime)
    if reason := runtime.unavailable(config):
        return {"left_out": reason}
    subjects: dict[str, Path | nn.Module] = {}
    for name in NAMES:
        child = trained_child(session, name)
        bundled = runtime.consumes == "onnx" or bool(runtime.files)
        subjects[name] = _bundle_for(session, name, config) if bundled else Child.load(child).network(child)
    rows = bench(subjects, input_shape=session.plan.network.input_shape, configs=[config], rounds=session.plan.rounds)
    return plain(BenchFile(rows=tuple(rows), comparisons=compare(rows[1:], rows[:1])))


def _bundle_for(session: Session, name: str, config: RuntimeConfig) -> Path:
    """The first bundle that can run under ``config``. Raises NotReadyError."""
    for bundle in session.plan.bundles:
        path = _place(session, name, stem(*bundle))
        if path.exists() and unusable(load_bundle(path), config) is None:
            return path
    raise NotReadyError(f"a bundle of {name} for {called(config)}")


def _asked(session: Session) -> dict[str, Any]:
    """The child's latency as it was asked for, predicted by the table, measured by the search and by the benchmark."""
    search = session.found("cifar10", "search")
    (job,) = (job for job in session.plan.search_tables if job.key == search["table"])
    rows = session.found("export", f"bench {called(job.config)}").get("rows", [])
    p50 = {row["subject"]: row["p50_ms"] for row in rows}
    return {
        "table": search["table"],
        "asked_ms": search["target_ms"],
        "predicted_ms": search["predicted_ms"],
        "measured_ms by the search": search["measured_ms"],
        "measured_ms (p50) by the benchmark": p50.get(CHILD),
        "baseline_ms (p50) by the benchmark": p50.get(BASELINE),
        "of the baseline": p50[CHILD] / p50[BASELINE] if p50 else None,
    }
