"""The command line: parse, call, print."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from nar_hw import __version__
from nar_hw.errors import NarError, UserError

if TYPE_CHECKING:
    from nar_hw.runs import ModelInfo
    from nar_hw.runtimes import RuntimeConfig

# Everything that needs torch is imported inside the command that uses it: --help answers at once.


class Commands(typer.core.TyperGroup):
    """Errors in one line and exit code 2; --debug anywhere shows the traceback instead."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except NarError as error:
            message = " ".join(str(error).split())
        except OSError as error:
            if isinstance(error, BrokenPipeError) or error.strerror is None:
                raise
            where = f": {error.filename}" if error.filename else ""
            message = f"{error.strerror}{where} (is the disk full, or the folder read-only?)"
        except KeyboardInterrupt:
            _errors.print("nar-hw: stopped; what was finished is kept", style="yellow")
            raise typer.Exit(130) from None
        if _debug:
            _errors.print_exception()
        _errors.print(f"nar-hw: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2)


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode="rich")
table_app = typer.Typer(no_args_is_help=True)
app.add_typer(table_app, name="table", help="Look at latency tables, check them against the device, predict with them.")

_console = Console()
_errors = Console(stderr=True)
_debug = False

Model = Annotated[str, typer.Option("--model", help="Our name, a torchvision name, timm:NAME or path/to/file.py:function.")]
Input = Annotated[str, typer.Option("--input", help="Shape of one image: CxHxW.")]
Manner = Annotated[str, typer.Option(help="One slot per convolution (conv) or per residual block (block).")]
Operators = Annotated[str | None, typer.Option(help="Operator names to choose from, separated by commas; default: all that suit.")]
Classes = Annotated[int | None, typer.Option(help="Outputs of the network; default: 10 up to 64 pixels, else 1000.")]
Data = Annotated[str, typer.Option("--data", help="digits, cifar10, cifar100, fashion-mnist, folder:PATH or fake:CxHxWxclasses.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of downloaded data sets; default: $NAR_HW_DATA or .data.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Seed = Annotated[int, typer.Option(help="Decides everything random.")]
RuntimeName = Annotated[str, typer.Option("--runtime", help="Inference runtime; `nar-hw doctor` lists those that work here.")]
Precision = Annotated[str, typer.Option(help="fp32, fp16, bf16 or int8.")]
Batch = Annotated[int, typer.Option(help="Images per inference.")]
Threads = Annotated[int, typer.Option(help="CPU threads of one inference.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:<index>.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Make a trained CNN fit your device: measured latency tables, operator search under a target, deployable bundles."""
    global _debug
    _debug = debug


def main() -> None:
    """The entry point."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        sys.stdout.write(f"nar-hw {__version__}\n")
        return
    if "--debug" in arguments:  # accepted anywhere on the line, since it is added after a failure
        arguments = ["--debug", *(argument for argument in arguments if argument != "--debug")]
    app(arguments)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The whole path on embedded data: table, search, train, export, bench, report. Example: nar-hw demo"""
    from nar_hw.demo import run_demo
    from nar_hw.report import terminal_table

    with _progress() as progress:
        outcome = run_demo(out, seed=seed, progress=progress)

    def show() -> None:
        _console.print(terminal_table(out))
        _console.print(f"report  {outcome['report']}\nbundle  {outcome['bundle']}", highlight=False, soft_wrap=True)

    _emit(as_json, outcome, show)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Which runtimes work here, and for each that does not, why and what to do. Example: nar-hw doctor"""
    from nar_hw.latency.device import fingerprint
    from nar_hw.pipeline import versions
    from nar_hw.runtimes import RuntimeConfig, survey

    here = fingerprint(RuntimeConfig(runtime="torch_eager"))
    machine = {key: here[key] for key in ("cpu", "isa", "cores", "os")}
    runtimes = [item for item in survey() if item["name"] != "fake"]

    def show() -> None:
        _console.print(f"{machine['cpu']}, {machine['cores']} cores, {machine['os']}", highlight=False)
        _console.print(f"instruction sets: {', '.join(machine['isa'] or ['unknown'])}", highlight=False)
        _console.print(", ".join(f"{name} {version}" for name, version in versions().items()), highlight=False)
        table = Table("runtime", "works", "devices", "precisions", "per-layer times", "version, or what to do")
        for item in runtimes:
            version = next(iter(item["versions"].values()), "")
            table.add_row(
                item["name"],
                "yes" if item["works"] else "no",
                " ".join(item["devices"]),
                " ".join(item["precisions"]),
                "yes" if item["layers"] else "no",
                version if item["works"] else item["reason"],
            )
        _console.print(table)

    _emit(as_json, {"versions": versions(), **machine, "runtimes": runtimes}, show)


@app.command()
def space(
    model: Model,
    input: Input,
    manner: Manner = "conv",
    operators: Operators = None,
    classes: Classes = None,
    as_json: Json = False,
) -> None:
    """The slots of a network and what may stand in them. Example: nar-hw space --model resnet18 --input 3x32x32"""
    from nar_hw.flops import SpaceCounts

    found = _info(model, input, manner, operators, classes).space()
    counts = SpaceCounts(found)
    total = counts.count(found.incumbent)
    slots = [
        {
            "slot": position,
            "name": slot.name,
            "convolutions": [site.conv for site in slot.sites],
            "input": [slot.sites[0].incumbent.c_in, slot.sites[0].incumbent.h, slot.sites[0].incumbent.w],
            "output": [slot.sites[-1].incumbent.c_out, *slot.sites[-1].calls[0][1]],
            "incumbent": found.operators[slot.incumbent],
            "fixed": slot.fixed,
            "candidates": [
                {"code": code, "operator": found.operators[code], **_counted(counts.candidate(position, code))}
                for code in slot.candidates
            ],
        }
        for position, slot in enumerate(found.slots)
    ]

    def show() -> None:
        table = Table("slot", "name", "input", "output", "incumbent", "candidates (code name: M multiply-adds)")
        for row in slots:
            candidates = ", ".join(f"{item['code']} {item['operator']}: {item['flops'] / 1e6:.3g}" for item in row["candidates"])
            shapes = ["x".join(map(str, row[key])) for key in ("input", "output")]
            table.add_row(str(row["slot"]), row["name"], *shapes, row["incumbent"], "fixed" if row["fixed"] else candidates)
        _console.print(table)
        _console.print(f"{len(slots)} slots, {found.size:.4g} archs; the network itself: {_sentence(_counted(total))}", highlight=False)

    value = {"model": model, "manner": manner, "slots": slots, "archs": str(found.size), **_counted(total)}
    _emit(as_json, value, show)


@app.command()
def count(
    model: Model,
    input: Input,
    arch: Annotated[str | None, typer.Option(help="Codes or names, separated by commas; default: the network itself.")] = None,
    manner: Manner = "conv",
    operators: Operators = None,
    classes: Classes = None,
    as_json: Json = False,
) -> None:
    """Parameters, FLOPs and pool operations. Example: nar-hw count --model lresnet50e_ir --input 3x112x112 --manner block"""
    from nar_hw.flops import SpaceCounts, count_module

    info = _info(model, input, manner, operators, classes)
    if arch is None:
        value = {"model": model, "input_shape": list(info.input_shape), **_counted(count_module(info.build(), info.input_shape))}
        _emit(as_json, value, lambda: _console.print(_sentence(value), highlight=False))
        return
    found = info.space()
    counts = SpaceCounts(found)
    codes = found.parse(arch)
    total = counts.count(codes)
    rows = [
        {"slot": slot.name, "operator": name, **_counted(cost)}
        for slot, name, cost in zip(found.slots, found.names(codes), counts.per_slot(codes), strict=True)
    ]

    def show() -> None:
        table = Table("slot", "operator", "params", "multiply-adds", "pool operations")
        for row in rows:
            table.add_row(row["slot"], row["operator"], *(f"{row[key]:,}" for key in ("params", "flops", "pool_ops")))
        _console.print(table)
        _console.print(_sentence(_counted(total)), highlight=False)

    value = {"model": model, "input_shape": list(info.input_shape), "arch": list(found.names(codes)), **_counted(total), "slots": rows}
    _emit(as_json, value, show)


@app.command()
def profile(
    model: Model,
    input: Input,
    output: Annotated[Path, typer.Option("--output", "-o", help="The table file.")],
    runtime: RuntimeName = "onnxruntime",
    precision: Precision = "fp32",
    batch: Batch = 1,
    threads: Threads = 1,
    device: Device = "cpu",
    memory_format: Annotated[str, typer.Option(help="contiguous or channels_last.")] = "contiguous",
    method: Annotated[str, typer.Option(help="How to measure: in-context where the runtime has per-layer times.")] = "in-context",
    manner: Manner = "conv",
    operators: Operators = None,
    classes: Classes = None,
    validate: Annotated[int, typer.Option(help="Held-out children to check the table with; 0 for none.")] = 40,
    budget: Annotated[float | None, typer.Option(help="Seconds to spend at most.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure a latency table on this device. Example: nar-hw profile --model resnet18 --input 3x32x32 -o table.json"""
    from nar_hw.latency.profiler import profile as run_profile
    from nar_hw.runtimes import RuntimeConfig

    info = _info(model, input, manner, operators, classes)
    config = RuntimeConfig(
        runtime=runtime, precision=precision, batch=batch, threads=threads, device=device, memory_format=memory_format
    )
    with _progress() as progress:
        table = run_profile(
            info.space(),
            config=config,
            model_name=model,
            method=method,
            seed=seed,
            validate=validate,
            budget_s=budget,
            progress=progress,
        )
    table.save(output)
    _emit(as_json, {"table": str(output), **_outline(table)}, lambda: _show_outline(table, output))


@table_app.command("list")
def table_list(
    folder: Annotated[Path | None, typer.Argument(help="Folder of tables; default: the tables that ship with nar_hw.")] = None,
    as_json: Json = False,
) -> None:
    """The tables of a folder. Example: nar-hw table list"""
    from nar_hw.latency.table import LatencyTable, shipped_tables

    paths = shipped_tables() if folder is None else sorted(folder.glob("*.json"))
    tables = [{"file": str(path), **_outline(LatencyTable.load(path))} for path in paths]

    def show() -> None:
        table = Table("file", "device", "runtime", "precision", "batch", "model", "incumbent ms", "MAPE %")
        for row in tables:
            shape = "x".join(map(str, row["input_shape"]))
            error = "" if row["mape_percent"] is None else f"{row['mape_percent']:.1f}"
            cells = (row[key] for key in ("device", "runtime", "precision", "batch"))
            table.add_row(Path(row["file"]).name, *map(str, cells), f"{row['model']} {shape}", f"{row['incumbent_ms']:.4g}", error)
        _console.print(table if tables else "no tables here: make one with `nar-hw profile`")

    _emit(as_json, {"tables": tables}, show)


@table_app.command("show")
def table_show(path: Path, as_json: Json = False) -> None:
    """What a table says, slot by slot. Example: nar-hw table show table.json"""
    from nar_hw.latency.table import LatencyTable

    table = LatencyTable.load(path)
    slots = [
        {"slot": slot.name, "ms": {name: float(row[table.operators.index(name)]) for name in slot.candidates}}
        for slot, row in zip(table.slots, table.matrix, strict=True)
    ]

    def show() -> None:
        names = list(dict.fromkeys(name for row in slots for name in row["ms"]))
        shown = Table("slot", *(f"{name} ms" for name in names))
        for row in slots:
            shown.add_row(row["slot"], *(f"{row['ms'][name]:.4f}" if name in row["ms"] else "" for name in names))
        _console.print(shown)
        _show_outline(table, path)

    _emit(as_json, {**_outline(table), "slots": slots}, show)


@table_app.command("predict")
def table_predict(
    path: Path, arch: Annotated[str, typer.Option(help="Codes or names, separated by commas.")], as_json: Json = False
) -> None:
    """The latency of one arch. Example: nar-hw table predict table.json --arch 0,0,2,0,1,0,0,0"""
    from nar_hw.latency.table import LatencyTable

    table = LatencyTable.load(path)
    ms = table.predict(table.parse(arch))
    value = {"predicted_ms": ms, "incumbent_ms": table.incumbent_ms}
    _emit(as_json, value, lambda: _console.print(f"{ms:.4f} ms; the network itself: {table.incumbent_ms:.4f} ms", highlight=False))


@table_app.command("validate")
def table_validate(
    path: Path,
    children: Annotated[int, typer.Option(help="Held-out random children to measure.")] = 40,
    seed: Seed = 1,
    as_json: Json = False,
) -> None:
    """Measure held-out children and keep the errors in the table. Example: nar-hw table validate table.json"""
    from nar_hw.latency.table import LatencyTable
    from nar_hw.pipeline import revalidate

    with _progress() as progress:
        table = revalidate(LatencyTable.load(path), children=children, seed=seed, progress=progress)
    table.save(path)
    _emit(as_json, _outline(table), lambda: _show_outline(table, path))


@app.command()
def search(
    model: Model,
    data: Data,
    table: Annotated[Path, typer.Option("--table", help="The latency table of the device to deploy on.")],
    target_ms: Annotated[float, typer.Option(help="The latency not to be exceeded.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    reward: Annotated[str, typer.Option(help="absolute, one-sided, mnasnet-soft, mnasnet-hard, proxyless-rl or accuracy.")] = "absolute",
    strategy: Annotated[str, typer.Option(help="How archs are proposed.")] = "reinforce",
    epochs: Annotated[int, typer.Option(help="Epochs of shared weights and strategy in turn.")] = 140,
    warmup_epochs: Annotated[int, typer.Option(help="Epochs of the shared weights alone, before these.")] = 10,
    batch: Annotated[int, typer.Option(help="Training images per step.")] = 128,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="Where to train: cpu or cuda.")] = "cpu",
    data_root: DataRoot = None,
    allow_mismatch: Annotated[bool, typer.Option("--allow-mismatch", help="Use a table of another device.")] = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Search operators for a latency target. Example: nar-hw search --model resnet_digits --data digits --table t.json --target-ms 0.2 --out runs/x"""
    from nar_hw.latency.table import LatencyTable
    from nar_hw.pipeline import search_run
    from nar_hw.search.config import SearchConfig

    loaded = LatencyTable.load(table)
    config = SearchConfig(
        strategy=strategy, reward=reward, epochs=epochs, warmup_epochs=warmup_epochs, batch=batch, seed=seed
    )
    with _progress() as progress:
        result = search_run(
            _info_of(loaded, model),
            data,
            loaded,
            target_ms=target_ms,
            out=out,
            config=config,
            data_root=data_root,
            device=device,
            resume=resume,
            allow_mismatch=allow_mismatch,
            progress=progress,
        )
    value = {
        "out": str(out),
        "arch": [loaded.operators[code] for code in result.arch],
        "accuracy": result.pick.accuracy,
        "target_ms": target_ms,
        "predicted_ms": result.pick.predicted_ms,
        "measured_ms": result.pick.measured_ms,
        "met": result.met,
    }

    def show() -> None:
        _console.print(",".join(value["arch"]), highlight=False, soft_wrap=True)
        _console.print(result.note, highlight=False, soft_wrap=True)

    _emit(as_json, value, show)


@app.command()
def train(
    arch: Annotated[str, typer.Option(help="A search folder, codes or names separated by commas, or `incumbent` for the network itself.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the child.")],
    model: Annotated[str | None, typer.Option("--model", help="The network; not needed with a search folder.")] = None,
    recipe: Annotated[str, typer.Option(help="Name of a recipe: paper, fast or demo.")] = "paper",
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    init: Annotated[str, typer.Option(help="scratch, or inherited from --baseline.")] = "scratch",
    baseline: Annotated[Path | None, typer.Option(help="Folder of the trained network itself, for --init inherited.")] = None,
    manner: Manner = "conv",
    operators: Operators = None,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="Where to train: cpu or cuda.")] = "cpu",
    data_root: DataRoot = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Train a child. Example: nar-hw train --arch runs/x --data digits --recipe demo --out runs/x/child"""
    from dataclasses import asdict

    from nar_hw.pipeline import find_arch, train_named

    with _progress() as progress:
        child = train_named(
            find_arch(arch, model=model, data=data, manner=manner, operators=_names(operators), data_root=data_root),
            data,
            out=out,
            recipe=recipe,
            epochs=epochs,
            init=init,
            baseline=baseline,
            seed=seed,
            device=device,
            data_root=data_root,
            resume=resume,
            progress=progress,
        )
    value = {"out": str(out), **asdict(child)}

    def show() -> None:
        accuracy = ", ".join(f"{split} {100 * value:.2f} %" for split, value in child.accuracy.items())
        _console.print(f"accuracy: {accuracy}; {_sentence(value)}; weights in {out}", highlight=False, soft_wrap=True)

    _emit(as_json, value, show)


@app.command()
def export(
    child: Annotated[Path, typer.Argument(help="Folder of a trained child.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    to: Annotated[str, typer.Option(help="Formats, separated by commas.")] = "onnx",
    precision: Annotated[str, typer.Option(help="Precisions, separated by commas.")] = "fp32",
    batch: Annotated[str, typer.Option(help="One batch size, or a range like 1-64.")] = "1-64",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Write a bundle that runs without nar_hw. Example: nar-hw export runs/x/child --to onnx --out bundle"""
    from nar_hw.pipeline import export_child

    fewest, _, most = batch.partition("-")
    if not fewest.isdigit() or not (most or fewest).isdigit():
        raise UserError(f"--batch must be one number or a range like 1-64, but got {batch!r}")
    with _progress() as progress:
        path = export_child(
            child,
            out,
            targets=to.split(","),
            precisions=precision.split(","),
            batch=(int(fewest), int(most or fewest)),
            data_root=data_root,
            progress=progress,
        )
    value = {"bundle": str(path), "files": sorted(file.name for file in path.iterdir())}
    _emit(as_json, value, lambda: _console.print(f"bundle {path}: {', '.join(value['files'])}", highlight=False, soft_wrap=True))


@app.command()
def bench(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    against: Annotated[Path | None, typer.Option(help="A second bundle, measured in turn with the first.")] = None,
    runtime: RuntimeName = "onnxruntime",
    precision: Precision = "fp32",
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1",
    threads: Threads = 1,
    device: Device = "cpu",
    rounds: Annotated[int, typer.Option(help="Visits to each bundle.")] = 40,
    as_json: Json = False,
) -> None:
    """Time bundles side by side on this device. Example: nar-hw bench bundle --against baseline --batch 1,8"""
    from nar_hw.pipeline import bench_bundles
    from nar_hw.runtimes import RuntimeConfig

    if not all(size.isdigit() for size in batch.split(",")):
        raise UserError(f"--batch must be numbers separated by commas, but got {batch!r}")
    configs = [
        RuntimeConfig(runtime=runtime, precision=precision, batch=int(size), threads=threads, device=device)
        for size in batch.split(",")
    ]
    with _progress() as progress:
        value = bench_bundles([bundle, *([against] if against else [])], configs, rounds=rounds, progress=progress)

    def show() -> None:
        table = Table("bundle", "runtime", "precision", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s")
        for row in value["rows"]:
            cells = [f"{row[key]:.4g}" for key in ("p50_ms", "p90_ms", "p99_ms", "throughput")]
            table.add_row(row["subject"], row["runtime"], row["precision"], str(row["batch"]), *cells)
        _console.print(table)
        for item in value["comparisons"]:
            _console.print(
                f"batch {item['batch']}: {item['subject']} takes {item['ratio']:.3f} of {item['against']}"
                f" (95 % interval {item['low']:.3f} to {item['high']:.3f})",
                highlight=False,
            )

    _emit(as_json, value, show)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page; default: report.html in the run.")] = None,
    as_json: Json = False,
) -> None:
    """One self-contained HTML page of a run. Example: nar-hw report runs/x"""
    from nar_hw.report import write_report

    page = write_report(run, output)
    _emit(as_json, {"report": str(page)}, lambda: _console.print(f"report {page}", highlight=False, soft_wrap=True))


def _info(model: str, input: str, manner: str, operators: str | None, classes: int | None) -> "ModelInfo":
    from nar_hw.runs import ModelInfo, parse_shape

    shape = parse_shape(input)
    number = classes or (10 if max(shape[1:]) <= 64 else 1000)
    return ModelInfo(name=model, input_shape=shape, num_classes=number, manner=manner, operators=_names(operators))  # type: ignore[arg-type]


def _names(operators: str | None) -> tuple[str, ...] | None:
    return None if operators is None else tuple(name.strip() for name in operators.split(","))


def _counted(counts: Any) -> dict[str, int]:
    return {key: getattr(counts, key) for key in ("params", "flops", "pool_ops")}


def _sentence(counts: dict[str, Any]) -> str:
    return f"{counts['params']:,} parameters, {counts['flops']:,} FLOPs (multiply-adds), {counts['pool_ops']:,} pool operations"


def _outline(table: Any) -> dict[str, Any]:
    fastest, slowest = table.bounds()
    validation = table.validation or {}
    return {
        "model": table.model,
        "input_shape": list(table.input_shape),
        "manner": table.manner,
        **{key: table.fingerprint.get(key) for key in ("device", "runtime", "runtime_version", "precision", "batch", "threads")},
        "method": table.method.get("name"),
        "slots": len(table.slots),
        "entries": len(table.entries),
        "fixed_ms": table.fixed_ms,
        "incumbent_ms": table.incumbent_ms,
        "fastest_ms": fastest,
        "slowest_ms": slowest,
        "mape_percent": validation.get("mape_percent"),
        "noise_floor_percent": validation.get("noise_floor_percent"),
        "spearman": validation.get("spearman"),
        "notes": list(table.notes),
    }


def _show_outline(table: Any, path: Path) -> None:
    outline = _outline(table)
    shape = "x".join(map(str, outline["input_shape"]))
    _console.print(
        f"{path}: {outline['model']} {shape} on {outline['device']}, {outline['runtime']} {outline['runtime_version']}, "
        f"{outline['precision']}, batch {outline['batch']}, {outline['threads']} threads",
        highlight=False,
        soft_wrap=True,
    )
    _console.print(
        f"the network itself {outline['incumbent_ms']:.4g} ms; reachable {outline['fastest_ms']:.4g} to {outline['slowest_ms']:.4g} ms",
        highlight=False,
    )
    if outline["mape_percent"] is not None:
        _console.print(
            f"held-out children: error {outline['mape_percent']:.1f} % (noise floor {outline['noise_floor_percent']:.1f} %), "
            f"rank correlation {outline['spearman']:.3f}",
            highlight=False,
        )
    for note in outline["notes"]:
        _console.print(f"note: {note}", style="yellow", highlight=False)


def _emit(as_json: bool, value: dict[str, Any], show: Callable[[], None]) -> None:
    if as_json:
        sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
    else:
        show()


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_errors) as progress:
        yield progress
