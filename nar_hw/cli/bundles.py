"""Commands about what is deployed: export, bench and bundle."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nar_hw.bundles.config import ExportConfig
from nar_hw.cli.app import (
    FINE,
    LONG,
    WHAT,
    WHERE,
    WRITTEN,
    DataRoot,
    Device,
    Json,
    Kit,
    RuntimeVersion,
    SshHost,
    SshPython,
    Threads,
    TimesFile,
    app,
    bundle_app,
    console,
    emit,
    emit_kit,
    grid,
    output_files,
    progress_bar,
)
from nar_hw.cli.values import MOST_BATCH, MOST_ROUNDS, choice, span, whole, wholes
from nar_hw.export.calibration import Calibration
from nar_hw.export.forms import Form
from nar_hw.records import plain
from nar_hw.runtimes import PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nar_hw.bench.rows import BenchRow, Conditions
    from nar_hw.runtimes import RuntimeConfig

USUAL = ExportConfig()
TRITON = ("onnx", "tensorrt")
"""What Triton serves of a bundle."""
Folder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")]


@app.command()
def export(
    child: Annotated[
        Path, typer.Argument(help="Folder of a trained child, or the name of one of the paper, whose weights are untrained.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Of the bundle.", rich_help_panel=WRITTEN)],
    to: Annotated[
        str,
        typer.Option(
            metavar="TARGETS",
            help="Of onnx, tensorrt, tensorrt-rtx, aoti, openvino, litert, ncnn, mnn and executorch, separated by commas.",
            rich_help_panel=WHAT,
        ),
    ] = ",".join(USUAL.targets),
    precision: Annotated[
        str,
        typer.Option(metavar="PRECISIONS", help="Of fp32, fp16, bf16 and int8, separated by commas.", rich_help_panel=WHAT),
    ] = ",".join(USUAL.precisions),
    batch: Annotated[
        Any, span("--batch", "One batch size, or a range like 1-64; aoti takes the first.", 1, MOST_BATCH, panel=WHAT)
    ] = f"{USUAL.batch[0]}-{USUAL.batch[1]}",
    calibration: Annotated[
        Calibration, typer.Option(help="How int8 finds its ranges in training images.", rich_help_panel=FINE)
    ] = USUAL.calibration,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Where aoti files shall run: cpu or cuda.", rich_help_panel=WHERE)
    ] = USUAL.device,
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="GPUS",
            help="For tensorrt-rtx: GPUs like sm89 or RTX 4090, separated by commas, or all.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    dense: Annotated[
        Form | None,
        typer.Option(
            "--dense",
            help="Write the network for larger images too: a map of classes, or one with its last pool at every offset.",
            rich_help_panel=WHAT,
        ),
    ] = USUAL.dense,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Write a bundle that runs without nar_hw. Example: nar-hw export runs/x/child --to onnx,openvino --out bundle"""
    from nar_hw.bundles.manifest import load_bundle
    from nar_hw.steps.export import export_child

    config = ExportConfig(
        targets=tuple(to.split(",")),
        precisions=tuple(precision.split(",")),
        batch=batch,
        calibration=calibration,
        device=device,
        gpus=tuple(name.strip() for name in gpus.split(",")) if gpus else (),
        dense=dense,
    )
    with progress_bar() as progress:
        progress.add_task("exporting", total=None)
        manifest = load_bundle(path := export_child(child, out, config, data_root=data_root)).manifest
    value: dict[str, Any] = {
        "bundle": str(path),
        "files": sorted(file.name for file in path.iterdir()),
        **{
            key: plain(getattr(manifest, key))
            for key in ("variants", "compiled", "dense", "left_out", "tensorrt_parser", "validation")
        },
    }

    def show() -> None:
        rows = []
        for target, precision, item in manifest.entries():
            delta = "" if item.accuracy_delta is None else f"{100 * item.accuracy_delta:+.2f} points"
            accuracy = "" if item.accuracy is None else f"{100 * item.accuracy:.2f} %"
            most = item.max_abs_error
            error = "not run here" if most is None else f"{most / item.reference_scale:.1e}"
            rows.append((target, precision, item.file, error, accuracy, delta))
        console.print(grid(("target", "precision", "file", "largest error", "accuracy", "against torch"), rows))
        for name, said in manifest.tensorrt_parser.items():
            console.print(f"TensorRT parser on {name}: {said}", highlight=False, soft_wrap=True, markup=False)
        for name, reason in manifest.left_out.items():
            console.print(f"left out {name}: {reason}", highlight=False, soft_wrap=True, markup=False)
        console.print(f"bundle {path}", highlight=False, soft_wrap=True)

    emit(as_json, value, show)


@app.command()
def bench(
    bundle: Annotated[Path | None, typer.Argument(metavar="[BUNDLE]", help="Folder of a bundle; none with --from.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="A second bundle, measured in turn with the first.", rich_help_panel=WHAT),
    ] = None,
    runtime: Annotated[
        str,
        typer.Option(metavar="RUNTIMES", help="Separated by commas; `nar-hw doctor` lists them.", rich_help_panel=WHERE),
    ] = "onnxruntime",
    precision: Annotated[str, typer.Option(metavar="PRECISIONS", help="Separated by commas.", rich_help_panel=WHERE)] = "fp32",
    batch: Annotated[Any, wholes("--batch", "Batch sizes, separated by commas.", 1, MOST_BATCH, panel=WHERE)] = "1",
    threads: Threads = 1,
    device: Device = "cpu",
    rounds: Annotated[int, whole("--rounds", "Visits to each bundle.", 2, MOST_ROUNDS, panel=LONG)] = 40,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the JSON object to this file too.", rich_help_panel=WRITTEN),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write one line per row to it.", rich_help_panel=WRITTEN)
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Write a picture of the latencies to this PNG.", rich_help_panel=WRITTEN),
    ] = None,
    kit: Kit = None,
    runtime_version: RuntimeVersion = None,
    ssh: SshHost = None,
    ssh_python: SshPython = "python3",
    times: TimesFile = None,
    as_json: Json = False,
) -> None:
    """Time bundles side by side on this device. Example: nar-hw bench bundle --against baseline --batch 1,8"""
    from nar_hw.bench.kit import bench_from, predictions, write_bench_kit
    from nar_hw.bench.rows import SCHEMA, to_csv
    from nar_hw.errors import UserError
    from nar_hw.files import write_text
    from nar_hw.latency.kit import Times
    from nar_hw.latency.ssh import measured_over_ssh
    from nar_hw.report.latencies import bench_png
    from nar_hw.steps.bench import bench_bundles

    if (bundle is None) != (times is not None):
        raise UserError("a benchmark takes either a bundle or --from times.json, but got both or none of them")
    if times is not None and (kit, ssh, against) != (None, None, None):
        raise UserError("--from takes what it needs from the times, but got --kit, --ssh or --against: leave them out")
    if kit is not None and ssh is not None:
        raise UserError("--kit measures nothing here, but got --ssh: leave one of them out")
    if runtime_version is not None and kit is None and ssh is None:
        raise UserError(f"--runtime-version goes with --kit or --ssh, but got {runtime_version} alone")
    configs = _configs(runtime, precision, batch, threads, device)
    subjects = {str(path): path for path in (bundle, against) if path is not None}
    predicted: dict[str, float] = {}
    if (kit, ssh) != (None, None) and len(configs) > 1:
        raise UserError(f"a kit is for one runtime, precision and batch size, but got {len(configs)}: make one kit for each")
    if kit is not None:
        plan = write_bench_kit(subjects, kit, configs[0], rounds=rounds, runtime_version=runtime_version)
        emit_kit(as_json, kit, plan, f"{len(subjects)} bundles", "bench")
        return
    with output_files(output, csv, plot):
        if times is not None:
            brought = Times.load(times)
            found = bench_from(brought)
            predicted = predictions(brought)
        elif ssh is not None:
            with progress_bar() as progress:
                say = partial(progress.console.print, highlight=False, markup=False)
                make = partial(write_bench_kit, subjects, config=configs[0], rounds=rounds, runtime_version=runtime_version)
                with measured_over_ssh(make, ssh, python=ssh_python, say=say) as brought:
                    found = bench_from(brought)
            predicted = predictions(brought)
        else:
            with progress_bar() as progress:
                found = bench_bundles(subjects, configs, rounds=rounds, progress=progress)
        if output is not None:
            found.save(output)
        if csv is not None:
            write_text(csv, to_csv(found.rows))
        if plot is not None:
            bench_png(found.rows, plot)

    def show() -> None:
        _show_rows(found.rows)
        for row in found.rows:
            if row.subject in predicted:
                ms = predicted[row.subject]
                console.print(f"{row.subject}: predicted {ms:.4g} ms, measured {row.p50_ms:.4g} ms", soft_wrap=True)
        for pair in found.comparisons:
            console.print(
                f"{_called(pair)}: {pair.subject} takes {pair.ratio:.3f} of {pair.against} (95 % interval {pair.low:.3f} to "
                f"{pair.high:.3f})",
                highlight=False,
                soft_wrap=True,
            )
        if found.rows and (beside := found.rows[0].contention) is not None and beside.note is not None:
            console.print(f"note: {beside.note}", highlight=False, soft_wrap=True, markup=False)
        for item in found.left_out:
            console.print(f"left out {_called(item)}: {item.reason}", highlight=False, soft_wrap=True, markup=False)

    emit(as_json, {"schema": SCHEMA, **plain(found)}, show)


def _called(item: "Conditions") -> str:
    return f"{item.runtime} {item.precision}, batch {item.batch}"


def _configs(runtimes: str, precisions: str, batches: list[int], threads: int, device: str) -> "list[RuntimeConfig]":
    from nar_hw.runtimes import RuntimeConfig

    return [
        RuntimeConfig(runtime=runtime, precision=precision, batch=size, threads=threads, device=device)
        for runtime in runtimes.split(",")
        for precision in precisions.split(",")
        for size in batches
    ]


_COLUMNS = {
    "p50_ms": "p50 ms",
    "p90_ms": "p90 ms",
    "p99_ms": "p99 ms",
    "images_per_s": "images/s",
    "host_memory_mib": "MiB",
    "gpu_memory_mib": "GPU MiB",
    "energy_mj_per_image": "mJ/image",
    "sm_clock_mhz": "MHz",
}


def _show_rows(rows: "Sequence[BenchRow]") -> None:
    known = {key: title for key, title in _COLUMNS.items() if any(getattr(row, key) is not None for row in rows)}
    several = len({row.subject for row in rows}) > 1
    lines = []
    for row in rows:
        cells = ["" if (value := getattr(row, key)) is None else f"{value:.4g}" for key in known]
        name = [row.subject] if several else []
        lines.append((*name, f"{row.runtime} {row.precision}, {row.batch}", *cells))
    console.print(grid((*(["bundle"] if several else []), "runtime, batch", *known.values()), lines))
    console.print(f"on {rows[0].fingerprint.get('device')}", highlight=False, soft_wrap=True, markup=False)


@bundle_app.command("verify")
def bundle_verify(
    bundle: Folder,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="Compute accuracies again on this data set's validation split."),
    ] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Check hashes, run every file, compare with what torch gave. Example: nar-hw bundle verify bundle"""
    from nar_hw.steps.verify import verify_again

    value: dict[str, Any] = {"bundle": str(bundle), "checked": verify_again(bundle, data=data, data_root=data_root)}

    def show() -> None:
        rows = []
        for name, item in value["checked"].items():
            if "skipped" in item:
                rows.append((item["file"], name, "not checked", ""))
                continue
            accuracy = "" if item.get("accuracy") is None else f"{100 * item['accuracy']:.2f} %"
            rows.append((item["file"], name, f"{item['max_abs_error']:.2e}", accuracy))
        console.print(grid(("file", "precision", "largest error", "accuracy"), rows))
        for name, item in value["checked"].items():
            if "tensorrt_parser" in item:
                said = item["tensorrt_parser"]
                console.print(f"TensorRT parser on {name}: {said}", highlight=False, soft_wrap=True, markup=False)
            if "skipped" in item:
                console.print(f"not checked {name}: {item['skipped']}", highlight=False, soft_wrap=True, markup=False)
        console.print(f"{bundle}: all hashes are right, and all files that run here compute what torch computed", highlight=False)

    emit(as_json, value, show)


@bundle_app.command("triton")
def bundle_triton(
    bundle: Folder,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The model repository, made where it does not exist.")],
    target: Annotated[str, choice("--target", "Which of the bundle's files.", "Triton target", TRITON)] = "onnx",
    precision: Annotated[str, choice("--precision", "Which of the bundle's.", "precision", PRECISIONS)] = "fp32",
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What clients call the model; default: the network's name.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Add a bundle to a Triton Inference Server repository. Example: nar-hw bundle triton bundle --out models"""
    from nar_hw.bundles.triton import triton_model

    path = triton_model(bundle, out, target=target, precision=precision, name=name)
    value = {"model": path.name, "files": sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())}

    def show() -> None:
        console.print(
            f"{path}: {', '.join(value['files'])}\nserve it with: tritonserver --model-repository {out}", highlight=False
        )

    emit(as_json, value, show)
