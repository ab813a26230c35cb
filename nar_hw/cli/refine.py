"""The main road: refine; and eval, which scores weights as they are."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from nar_hw.bundles.config import ExportConfig
from nar_hw.cli.app import (
    Batch,
    Classes,
    Data,
    DataRoot,
    Input,
    Json,
    LimitParams,
    Manner,
    Model,
    Operators,
    Precision,
    RuntimeName,
    Seed,
    Slots,
    Threads,
    app,
    console,
    emit,
    model_info,
    progress_bar,
    sentence,
)
from nar_hw.records import plain, with_settings
from nar_hw.runtimes.config import RuntimeConfig
from nar_hw.search.config import FITTED

CONDITIONS = RuntimeConfig()

Weights = Annotated[
    Path | None,
    typer.Option(help="The trained weights: safetensors or a torch file of tensors (a state dict or a checkpoint of one)."),
]


@app.command()
def refine(
    model: Model,
    data: Data,
    targets: Annotated[
        str, typer.Option(help="Shares of the network's measured latency (0.6) or times (0.4ms), separated by commas.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of everything that is made; a stopped refinement goes on in it.")],
    weights: Weights = None,
    baseline: Annotated[Path | None, typer.Option(help="Folder of a trained network instead of --weights.")] = None,
    table: Annotated[Path | None, typer.Option(help="A latency table of the device; default: profile this one.")] = None,
    runtime: RuntimeName = CONDITIONS.runtime,
    precision: Precision = CONDITIONS.precision,
    batch: Batch = CONDITIONS.batch,
    threads: Threads = CONDITIONS.threads,
    manner: Manner = "conv",
    operators: Operators = None,
    slots: Slots = None,
    limit_params: LimitParams = True,
    recipe: Annotated[
        str, typer.Option(help="How children are trained: finetune, or another recipe or .json file.")
    ] = "finetune",
    search_settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the search, as name=value; once for each.")
    ] = None,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="Where to train: cpu or cuda.")] = "cpu",
    data_root: DataRoot = None,
    allow_mismatch: Annotated[bool, typer.Option("--allow-mismatch", help="Use a table of another device.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print what will be done and how long it takes, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """From trained weights and this device to faster networks: profile, search once, train, export and measure each.

    Example: nar-hw refine --model timm:resnet18 --weights mine.safetensors --data folder:photos@64 --targets 0.8,0.6 --out runs/x
    """
    from nar_hw.distributed import launched
    from nar_hw.errors import UserError
    from nar_hw.steps.plan import estimate
    from nar_hw.steps.refine import RefineConfig, Refinement
    from nar_hw.steps.task import load_task
    from nar_hw.training.recipes import RECIPES, recipe_named

    if (weights is None) == (baseline is None):
        raise UserError("refining starts from trained weights: give either --weights FILE or --baseline FOLDER")
    with launched(device) as device, progress_bar() as progress:
        task = load_task(data, root=data_root, device=device)
        shape = "x".join(map(str, task.input_shape))
        info = model_info(model, shape, manner, operators, task.num_classes, slots, limit_params)
        precisions = tuple(dict.fromkeys(("fp32", precision)))
        config = RefineConfig(
            model=info,
            data=data,
            targets=tuple(item.strip() for item in targets.split(",")),
            conditions=RuntimeConfig(
                runtime=runtime,
                precision=precision,
                batch=batch,
                threads=threads,
                device=device if runtime != "openvino" else "cpu",
            ),
            search=with_settings(FITTED, search_settings or ()),
            recipe=recipe_named(recipe),
            export=ExportConfig(
                targets=("onnx", "aoti") if runtime == "aoti" else ("onnx",),
                precisions=precisions,
                batch=(batch if runtime == "aoti" else 1, max(64, batch)),
            ),
            seed=seed,
        )
        refinement = Refinement(
            config=config,
            out=out,
            weights=weights or baseline,
            table=table,
            from_scratch=RECIPES["paper"],
            device=device,
            data_root=data_root,
            allow_mismatch=allow_mismatch,
            progress=progress,
            loaded=task,
        )
        if plan:
            steps = estimate(refinement)
            value: dict[str, Any] = {"stages": plain(steps), "seconds": sum(step.seconds for step in steps)}
        else:
            refinement.check()
            page = refinement.run()
            value = {"out": str(out), "report": str(page), **refinement.outcome()}

    def show() -> None:
        if plan:
            shown = Table("stage", "what", "about")
            for step in steps:
                shown.add_row(step.stage, step.what, "done" if step.done else duration(step.seconds))
            console.print(shown)
            console.print(f"about {duration(value['seconds'])} in all, measured on a few steps", highlight=False)
            return
        shown = Table("network", "asked", "measured", "of the network", "test accuracy", "parameters", "FLOPs")
        for row in value["networks"]:
            shown.add_row(
                row["name"],
                "" if row["target_ms"] is None else f"{row['target_ms']:.4g} ms",
                f"{row['measured_ms']:.4g} ms",
                f"{row['ratio']:.3f}",
                f"{100 * row['test_accuracy']:.2f} %",
                f"{row['params']:,}",
                f"{row['flops']:,}",
            )
        console.print(shown)
        console.print(f"report {value['report']}\nbundles {out / 'bundles'}", highlight=False, soft_wrap=True)

    emit(as_json, value, show)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@app.command("eval")
def evaluate(
    model: Model,
    data: Data,
    weights: Annotated[Path, typer.Option(help="The weights: safetensors or a torch file of tensors.")],
    input: Annotated[Input | None, typer.Option("--input", help="Shape of one image, CxHxW; default: the data's.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep it as a trained network in this folder, for --baseline and export.")
    ] = None,
    classes: Classes = None,
    device: Annotated[str, typer.Option(help="Where to run: cpu or cuda.")] = "cpu",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Score trained weights as they are. Example: nar-hw eval --model resnet18 --weights mine.safetensors --data cifar10"""
    from nar_hw.distributed import launched
    from nar_hw.steps.task import load_task
    from nar_hw.steps.train import score_weights

    with launched(device) as device:
        task = load_task(data, root=data_root, device=device)
        shape = input or "x".join(map(str, task.input_shape))
        info = model_info(model, shape, "conv", None, classes or task.num_classes)
        child, loaded = score_weights(info, weights, task, out=out)
    value = {"weights": loaded._asdict(), **plain(child), "out": None if out is None else str(out)}

    def show() -> None:
        scores = ", ".join(f"{split} {100 * accuracy:.2f} %" for split, accuracy in child.accuracy.items())
        console.print(f"{loaded}\naccuracy: {scores}; {sentence(plain(child))}", highlight=False, soft_wrap=True)

    emit(as_json, value, show)
