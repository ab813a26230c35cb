"""The command that measures latency tables: profile."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nar_hw.cli.app import (
    FINE,
    LONG,
    WHAT,
    WHERE,
    WRITTEN,
    Classes,
    Device,
    Json,
    Kit,
    LimitParams,
    Manner,
    Operators,
    Precision,
    Resume,
    RuntimeName,
    RuntimeVersion,
    Seed,
    Slots,
    SshHost,
    SshPython,
    TimesFile,
    app,
    emit,
    emit_kit,
    model_info,
    output_files,
    progress_bar,
)
from nar_hw.cli.tables import outline, show_outline
from nar_hw.cli.values import MOST_BATCH, MOST_CHILDREN, MOST_ROUNDS, MOST_THREADS, choice, number, whole, wholes
from nar_hw.errors import UserError
from nar_hw.runtimes import MEMORY_FORMATS

if TYPE_CHECKING:
    from nar_hw.latency.kit import Plan
    from nar_hw.latency.table import LatencyTable
    from nar_hw.runtimes import RuntimeConfig

METHODS = ("in-context", "regression", "isolated")
"""Those of nar_hw.latency.profiler, which needs torch."""


@app.command()
def profile(
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NETWORK", help="As in other commands; none with --from.", rich_help_panel=WHAT),
    ] = None,
    input: Annotated[
        str | None,
        typer.Option("--input", metavar="CxHxW", help="Shape of one image; none with --from.", rich_help_panel=WHAT),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The table; none with --kit.", rich_help_panel=WRITTEN),
    ] = None,
    runtime: RuntimeName = "onnxruntime",
    precision: Precision = "fp32",
    batch: Annotated[
        Any,
        wholes("--batch", "Images per inference; several, separated by commas, make a table each.", 1, MOST_BATCH, panel=WHERE),
    ] = "1",
    threads: Annotated[
        Any,
        wholes(
            "--threads",
            "CPU threads of one inference, at most 4 a core; several make a table each.",
            1,
            MOST_THREADS,
            panel=WHERE,
        ),
    ] = "1",
    device: Device = "cpu",
    memory_format: Annotated[
        str, choice("--memory-format", "How activations lie in memory.", "memory format", MEMORY_FORMATS, panel=WHERE)
    ] = "contiguous",
    method: Annotated[
        str,
        choice(
            "--method",
            "In-context where the runtime has per-layer times.",
            "profiling method",
            METHODS,
            panel=FINE,
        ),
    ] = "in-context",
    manner: Manner = "conv",
    operators: Operators = None,
    slots: Slots = None,
    limit_params: LimitParams = True,
    classes: Classes = None,
    validate: Annotated[
        int, whole("--validate", "Held-out children to check the table with; 0 for none.", 0, MOST_CHILDREN, panel=LONG)
    ] = 40,
    rounds: Annotated[
        int,
        whole("--rounds", "Visits of each child at most; fewer once its time is known well enough.", 2, MOST_ROUNDS, panel=LONG),
    ] = 12,
    budget: Annotated[float | None, number("--budget", "Seconds to spend at most.", above=0, panel=LONG)] = None,
    seed: Seed = 0,
    resume: Resume = False,
    fill: Annotated[
        bool,
        typer.Option("--fill", help="Measure only what the table at --output lacks, and add it.", rich_help_panel=LONG),
    ] = False,
    kit: Kit = None,
    shell: Annotated[
        bool,
        typer.Option(
            "--shell",
            help="With --kit, for devices without Python: a script around benchmark_model (litert) or trtexec (tensorrt).",
            rich_help_panel=WRITTEN,
        ),
    ] = False,
    runtime_version: RuntimeVersion = None,
    ssh: SshHost = None,
    ssh_python: SshPython = "python3",
    times: TimesFile = None,
    as_json: Json = False,
) -> None:
    """Measure a latency table on this device. Example: nar-hw profile --model resnet18 --input 3x32x32 -o table.json"""
    from nar_hw.latency.fill import fill as run_fill
    from nar_hw.latency.kit import table_from, write_kit
    from nar_hw.latency.shell import times_in
    from nar_hw.latency.ssh import measured_over_ssh
    from nar_hw.latency.table import LatencyTable
    from nar_hw.runtimes import RuntimeConfig
    from nar_hw.steps.profile import profiles

    if times is not None and (kit, ssh, model, input) != (None, None, None, None):
        raise UserError("--from takes what it needs from the times, but got --kit, --ssh, --model or --input: leave them out")
    if kit is not None and (output is not None or ssh is not None or fill or resume):
        raise UserError("--kit measures nothing here, but got --output, --ssh, --fill or --resume: leave them out")
    if ssh is not None and (fill or resume):
        raise UserError("--ssh goes on from what the device has by itself, but got --fill or --resume: leave them out")
    if shell and kit is None:
        raise UserError("--shell goes with --kit, but got it alone: add --kit and a folder")
    if runtime_version is not None and kit is None and ssh is None:
        raise UserError(f"--runtime-version goes with --kit or --ssh, but got {runtime_version} alone")
    if times is not None:
        if output is None:
            raise UserError("--from needs the file of the table: add -o table.json")
        with output_files(output):
            table = table_from(times_in(times))
            table.save(output)
        _emit_tables(as_json, {output: table})
        return
    if model is None or input is None:
        raise UserError("a profile needs a network: add --model and --input, like --model resnet18 --input 3x32x32")
    info = model_info(model, input, manner, operators, classes, slots, limit_params)
    configs = [
        RuntimeConfig(runtime=runtime, precision=precision, batch=size, threads=count, device=device, memory_format=memory_format)
        for size in dict.fromkeys(batch)
        for count in dict.fromkeys(threads)
    ]
    if len(configs) > 1 and (fill or kit is not None or ssh is not None):
        raise UserError(
            f"--fill, --kit and --ssh are for one batch size and thread count, but got {len(configs)}: call it once for each"
        )
    config = configs[0]

    def kit_in(folder: Path) -> "Plan":
        return write_kit(
            info.space(),
            folder,
            config=config,
            model_name=model,
            method=method,
            rounds=rounds,
            seed=seed,
            validate=validate,
            budget_s=budget,
            runtime_version=runtime_version,
            shell=shell,
        )

    if kit is not None:
        plan = kit_in(kit)
        size = sum(file.stat().st_size for file in kit.rglob("*") if file.is_file())
        what = f"{len(plan.children)} children, {size / 1e6:.1f} MB"
        emit_kit(as_json, kit, plan, what, "profile", children=len(plan.children), bytes=size)
        return
    if output is None:
        raise UserError("a profile needs the file of the table: add -o table.json")
    made = {output if len(configs) == 1 else _of(output, config): config for config in configs}
    with output_files(*made), progress_bar() as progress:
        if ssh is not None:
            say = partial(progress.console.print, highlight=False, markup=False)
            with measured_over_ssh(kit_in, ssh, python=ssh_python, say=say) as brought:
                tables = {output: table_from(brought)}
                tables[output].save(output)
        elif fill:
            old, journal = LatencyTable.load(output), output.with_name(f"{output.name}.part")
            tables = {output: run_fill(old, info.space(), validate=validate, journal=journal, resume=resume, progress=progress)}
            tables[output].save(output)
        else:
            tables = profiles(
                info.space(),
                made,
                model_name=model,
                method=method,
                rounds=rounds,
                seed=seed,
                validate=validate,
                budget_s=budget,
                resume=resume,
                progress=progress,
            )
    _emit_tables(as_json, tables)


def _emit_tables(as_json: bool, tables: Mapping[Path, "LatencyTable"]) -> None:
    found = [{"table": str(path), **outline(table)} for path, table in tables.items()]

    def show() -> None:
        for path, table in tables.items():
            show_outline(table, path)

    emit(as_json, found[0] if len(found) == 1 else {"tables": found}, show)


def _of(output: Path, config: "RuntimeConfig") -> Path:
    """The file of one of several tables: table.b8.t2.json."""
    return output.with_name(f"{output.stem}.b{config.batch}.t{config.threads}{output.suffix}")
