"""The main road: refine; and eval and ensemble, which score weights as they are."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nar_hw.cli.app import (
    FINE,
    LONG,
    WHAT,
    WHERE,
    WRITTEN,
    AllowMismatch,
    Baseline,
    Batch,
    Classes,
    Data,
    DataRoot,
    Json,
    LimitParams,
    Manner,
    Model,
    Operators,
    Out,
    Precision,
    RuntimeName,
    Seed,
    Slots,
    Threads,
    TrainDevice,
    app,
    console,
    emit,
    grid,
    model_info,
    progress_bar,
    sentence,
)
from nar_hw.cli.runs import accuracies
from nar_hw.cli.values import MOST_EPOCHS, choice, whole
from nar_hw.records import plain, with_settings
from nar_hw.runtimes.config import RuntimeConfig
from nar_hw.search.config import FITTED

CONDITIONS = RuntimeConfig()

Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The trained weights: safetensors or a torch file of tensors (a state dict or a checkpoint of one).",
        rich_help_panel=WHAT,
    ),
]


@app.command()
def refine(
    model: Model,
    data: Data,
    targets: Annotated[
        str,
        typer.Option(
            metavar="TARGETS",
            help="Shares of the network's measured latency (0.6) or times (0.4ms), separated by commas.",
            rich_help_panel=WHAT,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="Of everything that is made; a stopped refinement goes on in it.", rich_help_panel=WRITTEN
        ),
    ],
    weights: Weights = None,
    baseline: Baseline = None,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A latency table of the device; default: profile this one.", rich_help_panel=WHERE),
    ] = None,
    runtime: RuntimeName = CONDITIONS.runtime,
    precision: Precision = CONDITIONS.precision,
    batch: Batch = CONDITIONS.batch,
    threads: Threads = CONDITIONS.threads,
    manner: Manner = "conv",
    operators: Operators = None,
    slots: Slots = None,
    limit_params: LimitParams = True,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="RECIPE",
            help="How children are trained: finetune, another recipe or a .json file.",
            rich_help_panel=LONG,
        ),
    ] = "finetune",
    search_settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the search; once for each.", rich_help_panel=FINE),
    ] = None,
    seed: Seed = 0,
    device: TrainDevice = "cpu",
    data_root: DataRoot = None,
    allow_mismatch: AllowMismatch = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Print what will be done and how long it takes, and stop.", rich_help_panel=LONG),
    ] = False,
    as_json: Json = False,
) -> None:
    """From trained weights and this device to faster networks: profile, search once, train, export and measure each.

    Example: nar-hw refine --model timm:resnet18 --weights mine.safetensors --data folder:photos@64 --targets 0.8,0.6 --out runs/x
    """
    from nar_hw.distributed import launched
    from nar_hw.errors import UserError
    from nar_hw.steps.plan import estimate
    from nar_hw.steps.refine import RefineConfig, Refinement, export_for
    from nar_hw.steps.task import load_task
    from nar_hw.training.recipes import RECIPES, recipe_named

    if (weights is None) == (baseline is None):
        raise UserError("refining starts from trained weights: give either --weights FILE or --baseline FOLDER")
    with launched(device) as device, progress_bar() as progress:
        task = load_task(data, root=data_root, device=device)
        shape = "x".join(map(str, task.input_shape))
        info = model_info(model, shape, manner, operators, task.num_classes, slots, limit_params)
        conditions = RuntimeConfig(
            runtime=runtime,
            precision=precision,
            batch=batch,
            threads=threads,
            device=device if runtime != "openvino" else "cpu",
        )
        config = RefineConfig(
            model=info,
            data=data,
            targets=tuple(item.strip() for item in targets.split(",")),
            conditions=conditions,
            search=with_settings(FITTED, search_settings or ()),
            recipe=recipe_named(recipe),
            export=export_for(conditions),
            seed=seed,
        )
        words = ["refine", *info.options(but=("input_shape", "num_classes")), "--data", data, "--targets", targets]
        words += conditions.options(but=("device", "memory_format"))
        for option, value in (("weights", weights), ("baseline", baseline), ("table", table), ("data-root", data_root)):
            words += [] if value is None else [f"--{option}", str(value)]
        words += [word for item in search_settings or () for word in ("--set", item)]
        words += ["--recipe", recipe, "--seed", str(seed), "--device", device]
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
            command=tuple(words),
            loaded=task,
        )
        if plan:
            refinement.check_possible()
            steps = estimate(refinement)
            result: dict[str, Any] = {"stages": plain(steps), "seconds": sum(step.seconds for step in steps)}
        else:
            refinement.check()
            page = refinement.run()
            result = {"out": str(out), "report": str(page), **refinement.outcome()}

    def show() -> None:
        if plan:
            rows = [(step.stage, step.what, "done" if step.done else duration(step.seconds)) for step in steps]
            console.print(grid(("stage", "what", "about"), rows))
            console.print(f"about {duration(result['seconds'])} in all, measured on a few steps", highlight=False)
            return
        show_networks(result)

    emit(as_json, result, show)


def show_networks(value: dict[str, Any]) -> None:
    """Print what a refinement came to."""
    rows = [
        (
            row["name"],
            "" if row["target_ms"] is None else f"{row['target_ms']:.4g} ms",
            f"{row['measured_ms']:.4g} ms",
            f"{row['ratio']:.3f}",
            f"{100 * row['test_accuracy']:.2f} %",
            f"{row['params']:,}",
            f"{row['flops']:,}",
        )
        for row in value["networks"]
    ]
    console.print(
        grid(
            ("network", "asked", "measured", "of the network", f"test {value['networks'][0]['metric']}", "parameters", "FLOPs"),
            rows,
        )
    )
    console.print(f"report {value['report']}\nbundles {Path(value['out']) / 'bundles'}", highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a small network on embedded data and refine it for three targets. Example: nar-hw demo"""
    from nar_hw.steps.demo import run_demo

    with progress_bar() as progress:
        outcome = run_demo(out, seed=seed, progress=progress)

    def show() -> None:
        show_networks(outcome)
        console.print(
            f"open {outcome['report']} in a browser; then your own network (build returns it):\n\n"
            "  nar-hw space --model net.py:build --input 3x64x64\n"
            "  nar-hw refine --model net.py:build --weights mine.safetensors \\\n"
            "      --data folder:photos@64 --targets 0.8,0.6 --out runs/mine --plan\n\n"
            "The first says what can be searched in it, the second what will be done and how\n"
            "long it takes; without --plan it is done. photos has a folder for each class.",
            highlight=False,
            soft_wrap=True,
        )

    emit(as_json, outcome, show)


@app.command("eval")
def evaluate(
    model: Model,
    data: Data,
    weights: Annotated[
        Path, typer.Option(metavar="FILE", help="The weights: safetensors or a torch file of tensors.", rich_help_panel=WHAT)
    ],
    input: Annotated[
        str | None,
        typer.Option("--input", metavar="CxHxW", help="Shape of one image; default: the data's.", rich_help_panel=WHAT),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep it as a trained network, for --baseline and export.", rich_help_panel=WRITTEN),
    ] = None,
    test_views: Annotated[
        str,
        choice(
            "--test-views",
            "Score the centre of an image, or the mean of corners, centre, and these mirrored (data @CROP/SIZE).",
            "number of views",
            ("1", "10"),
            panel=WHAT,
        ),
    ] = "1",
    classes: Classes = None,
    device: TrainDevice = "cpu",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Score trained weights as they are. Example: nar-hw eval --model resnet18 --weights mine.safetensors --data cifar10"""
    from nar_hw.distributed import launched
    from nar_hw.steps.task import load_task
    from nar_hw.steps.train import score_weights

    with launched(device) as device:
        task = load_task(data, root=data_root, device=device, ten_views=test_views == "10")
        shape = input or "x".join(map(str, task.input_shape))
        info = model_info(model, shape, "conv", None, classes or task.num_classes)
        child, loaded = score_weights(info, weights, task, out=out)
    value = {"weights": loaded._asdict(), **plain(child), "out": None if out is None else str(out)}

    def show() -> None:
        scores = ", ".join(f"{split} {100 * accuracy:.2f} %" for split, accuracy in child.accuracy.items())
        console.print(f"{loaded}\n{child.metric}: {scores}; {sentence(plain(child))}", highlight=False, soft_wrap=True)

    emit(as_json, value, show)


@app.command("ensemble")
def ensemble_(
    trainings: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Of trained networks.")],
    snapshots: Annotated[
        int,
        whole(
            "--snapshots",
            "Of each, the latest that nar-hw train --ensemble kept; 1: its last weights.",
            1,
            MOST_EPOCHS,
            panel=WHAT,
        ),
    ] = 1,
    fallback: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Whose last snapshot decides where votes are equal; default: the best on the validation images.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    split: Annotated[Literal["valid", "test"], typer.Option(help="Images to score on.", rich_help_panel=WHAT)] = "test",
    device: TrainDevice = "cpu",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Score trained networks together, by mean and by majority vote. Example: nar-hw ensemble runs/a runs/b --fallback runs/b"""
    from nar_hw.distributed import launched
    from nar_hw.steps.ensemble import ensemble, plain_scores

    with launched(device) as device:
        found = ensemble(trainings, snapshots=snapshots, fallback=fallback, split=split, root=data_root, device=device)
    value = plain_scores(found)

    def show() -> None:
        rows = [
            (str(member.folder), "last" if member.epoch is None else str(member.epoch), f"{100 * accuracy:.2f} %")
            for member, accuracy in zip(found.members, found.scores.members, strict=True)
        ]
        console.print(grid(("training", "epoch", split), rows))
        scores = found.scores
        console.print(
            f"{len(rows)} together: {accuracies(scores.mean, scores.mean_top5)} by mean, {100 * scores.vote:.2f} % by majority "
            f"vote; {found.fallback.folder} decided {scores.undecided:,} images of equal votes",
            highlight=False,
            soft_wrap=True,
        )

    emit(as_json, value, show)
