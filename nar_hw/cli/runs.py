"""Commands that make and use children: demo, search, train, export, bench, report."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nar_hw.cli.app import (
    FINE,
    LONG,
    WHAT,
    WHERE,
    AllowMismatch,
    Baseline,
    Data,
    DataRoot,
    Json,
    LimitParams,
    Manner,
    Operators,
    OptionalData,
    OptionalModel,
    Out,
    Resume,
    Seed,
    Settings,
    Slots,
    Tensorboard,
    TrainDevice,
    app,
    console,
    emit,
    names,
    progress_bar,
    sentence,
)
from nar_hw.cli.values import MOST_BATCH, MOST_EPOCHS, MOST_THREADS, choice, number, whole
from nar_hw.errors import UserError
from nar_hw.records import plain, replace, with_settings
from nar_hw.search.config import COMBINE, FITTED, PATHS, SearchConfig
from nar_hw.search.reward import REWARDS
from nar_hw.search.strategies import STRATEGIES
from nar_hw.training.recipes import PRECISIONS

SEARCH = SearchConfig()


@app.command()
def search(
    ctx: typer.Context,
    target_ms: Annotated[
        list[float],
        number(
            "--target-ms",
            "The latency not to be exceeded; once for each of several targets. Of several tables: one for all, or once for each.",
            above=0,
            panel=WHAT,
        ),
    ],
    out: Out,
    model: OptionalModel = None,
    data: OptionalData = None,
    table: Annotated[
        list[Path] | None,
        typer.Option(
            "--table",
            metavar="FILE",
            help="The latency table of the device to deploy on; once for each of several.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FOLDER",
            help="A finished search: choose for other targets by its shared weights, instead of all else.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Trained weights: candidates are fitted inside the trained network and scored as they are.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    baseline: Baseline = None,
    reward: Annotated[str, choice("--reward", "Of accuracy and latency.", "reward", REWARDS, panel=FINE)] = SEARCH.reward,
    combine: Annotated[
        str,
        choice(
            "--combine",
            "Of several tables: each target is met, or the mean of latency / target is at most 1.",
            "combine",
            COMBINE,
            panel=WHERE,
        ),
    ] = SEARCH.combine,
    weight: Annotated[
        list[float] | None, number("--weight", "Of a table in the mean; once for each.", above=0, panel=WHERE)
    ] = None,
    max_flops: Annotated[
        int | None, whole("--max-flops", "Most FLOPs (multiply-adds of one image).", 1, 10**18, panel=WHAT)
    ] = None,
    max_params: Annotated[int | None, whole("--max-params", "Most parameters.", 1, 10**18, panel=WHAT)] = None,
    strategy: Annotated[
        str, choice("--strategy", "How archs are proposed.", "strategy", STRATEGIES, panel=FINE)
    ] = SEARCH.strategy,
    epochs: Annotated[
        int, whole("--epochs", "Epochs of shared weights and strategy in turn.", 1, MOST_EPOCHS, panel=LONG)
    ] = SEARCH.epochs,
    warmup_epochs: Annotated[
        int, whole("--warmup-epochs", "Epochs of the shared weights alone, before these.", 0, MOST_EPOCHS, panel=LONG)
    ] = SEARCH.warmup_epochs,
    warmup_paths: Annotated[
        str,
        choice(
            "--warmup-paths",
            "Whether these deal operators (fair) or draw them.",
            "paths",
            PATHS,
            panel=FINE,
            hidden=("strategy",),
        ),
    ] = SEARCH.warmup_paths,
    paths: Annotated[
        str,
        choice("--paths", "The same of the other epochs, or what the strategy draws.", "paths", PATHS, panel=FINE),
    ] = SEARCH.paths,
    batch: Annotated[int, whole("--batch", "Training images per step.", 2, MOST_BATCH, panel=LONG)] = SEARCH.batch,
    precision: Annotated[
        str, choice("--precision", "Arithmetic of the shared weights.", "precision", PRECISIONS, panel=FINE)
    ] = SEARCH.precision,
    channels_last: Annotated[
        bool,
        typer.Option("--channels-last", help="Store images with the channels innermost.", rich_help_panel=FINE),
    ] = False,
    seed: Seed = 0,
    settings: Settings = None,
    device: TrainDevice = "cpu",
    data_root: DataRoot = None,
    proxy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Search on the images that nar-hw proxy select chose.", rich_help_panel=LONG),
    ] = None,
    allow_mismatch: AllowMismatch = False,
    tensorboard: Tensorboard = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Search operators for a latency target. On several GPUs: torchrun --nproc-per-node 4 -m nar_hw search ...

    Example: nar-hw search --model resnet_digits --data digits --table t.json --target-ms 0.2 --out runs/x
    """
    from nar_hw.distributed import launched
    from nar_hw.latency.table import LatencyTable
    from nar_hw.search.folder import TABLE
    from nar_hw.steps.search import search_again, search_run

    if source is None and (model is None or data is None or not table):
        raise UserError("a search needs --model, --data and --table, or --from a finished search")
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    asked = {name: ctx.params[name] for name, found in sources.items() if found is not None and found.name == "COMMANDLINE"}
    if "weight" in asked:
        asked["weights"] = tuple(asked.pop("weight"))
    given = weights or baseline
    chosen = {name: asked[name] for name in SearchConfig.__struct_fields__ if name in asked and (name != "weights" or weight)}
    config = with_settings(replace(SEARCH if given is None else FITTED, **chosen), settings or ())
    with launched(device) as device, progress_bar() as progress:
        common: dict[str, Any] = {
            "target_ms": target_ms,
            "out": out,
            "data_root": data_root,
            "device": device,
            "resume": resume,
            "progress": progress,
        }
        if source is not None:
            result = search_again(source, **common)
        else:
            result = search_run(
                str(model),
                str(data),
                [LatencyTable.load(path) for path in table or ()],
                config=config,
                proxy=proxy,
                trained=given,
                allow_mismatch=allow_mismatch,
                tensorboard=tensorboard,
                **common,
            )
    operators = LatencyTable.load(out / TABLE).operators
    value: dict[str, Any] = {
        "out": str(out),
        "arch": [operators[code] for code in result.arch],
        "accuracy": result.pick.accuracy,
        "target_ms": result.target_ms,
        "predicted_ms": result.pick.predicted_ms,
        "measured_ms": result.pick.measured_ms,
        "others": plain(result.others),
        "targets": [
            {
                "target_ms": item.target_ms,
                "arch": [operators[code] for code in item.pick.arch],
                "accuracy": item.pick.accuracy,
                "predicted_ms": item.pick.predicted_ms,
                "measured_ms": item.pick.measured_ms,
                "met": item.met,
            }
            for item in result.outcomes
        ],
        "met": result.met,
        "allowed_mismatch": list(result.allowed_mismatch),
    }

    def show() -> None:
        for item in value["targets"]:
            console.print(",".join(item["arch"]), highlight=False, soft_wrap=True)
        console.print(result.note, highlight=False, soft_wrap=True)

    emit(as_json, value, show)


@app.command()
def train(
    arch: Annotated[
        str,
        typer.Option(
            metavar="ARCH",
            help="A search folder, a child of the paper by name, codes or names with commas, or `incumbent`.",
            rich_help_panel=WHAT,
        ),
    ],
    data: Data,
    out: Out,
    model: OptionalModel = None,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="RECIPE",
            help="paper, fast, finetune, demo, or a .json file of a recipe's fields.",
            rich_help_panel=LONG,
        ),
    ] = "paper",
    epochs: Annotated[int | None, whole("--epochs", "Instead of the recipe's.", 1, MOST_EPOCHS, panel=LONG)] = None,
    init: Annotated[
        str, choice("--init", "From nothing, or from the --baseline.", "init", ("scratch", "inherited"), panel=WHAT)
    ] = "scratch",
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The trained network itself, for --init inherited and --distill: its folder, or a weights file.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    distill: Annotated[
        float | None,
        number("--distill", "Weight of the divergence from the --baseline's outputs in the loss.", least=0, most=1, panel=WHAT),
    ] = None,
    ensemble: Annotated[
        int, whole("--ensemble", "Snapshots to keep and to score together on the test images.", 0, MOST_EPOCHS, panel=FINE)
    ] = 0,
    manner: Manner = "conv",
    operators: Operators = None,
    slots: Slots = None,
    limit_params: LimitParams = True,
    seed: Seed = 0,
    settings: Settings = None,
    device: TrainDevice = "cpu",
    workers: Annotated[
        int | None,
        whole("--workers", "Processes that read stream: images; default: one a core, to 8.", 0, MOST_THREADS, panel=WHERE),
    ] = None,
    data_root: DataRoot = None,
    download: Annotated[
        bool,
        typer.Option(
            "--download", help="Fetch cifar10, cifar100 or fashion-mnist into the data root first.", rich_help_panel=FINE
        ),
    ] = False,
    tensorboard: Tensorboard = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Train a child. On several GPUs: torchrun --nproc-per-node 4 -m nar_hw train ...

    Example: nar-hw train --arch runs/x --data digits --recipe demo --out runs/x/child
    """
    from nar_hw.distributed import launched
    from nar_hw.steps.task import load_task
    from nar_hw.steps.train import find_arch, train_child
    from nar_hw.training.recipes import recipe_named

    chosen = with_settings(recipe_named(recipe), settings or ())
    chosen = replace(
        chosen, epochs=chosen.epochs if epochs is None else epochs, distill=chosen.distill if distill is None else distill
    )
    inherit = init == "inherited"
    if (inherit or chosen.distill > 0) != (baseline is not None):
        raise UserError(
            "--init must be scratch, or inherited together with --baseline, which --distill needs too, "
            f"but got --init {init}, --distill {chosen.distill:g} and --baseline {baseline}"
        )
    with launched(device) as device, progress_bar() as progress:
        task = load_task(data, root=data_root, device=device, workers=workers, download=download)
        wanted = find_arch(
            arch,
            model=model,
            task=task,
            manner=manner,
            operators=names(operators),
            slots=slots,
            limit_params=limit_params,
        )
        child = train_child(
            wanted.info,
            wanted.arch,
            task,
            out=out,
            recipe=chosen,
            seed=seed,
            baseline=baseline,
            inherit=inherit,
            ensemble=ensemble,
            table=wanted.table,
            target_ms=wanted.target_ms,
            resume=resume,
            tensorboard=tensorboard,
            progress=progress,
        )
    value: dict[str, Any] = {"out": str(out), **plain(child)}

    def show() -> None:
        parts = [f"{split} {accuracies(top1, child.top5.get(split))}" for split, top1 in child.accuracy.items()]
        console.print(f"{child.metric}: {', '.join(parts)}; {sentence(value)}; weights in {out}", highlight=False, soft_wrap=True)
        if (found := child.ensemble) is not None:
            members = ", ".join(f"{100 * value:.2f}" for value in found["members"])
            text = f"test {accuracies(found['mean'], found['mean_top5'])} by mean, {100 * found['vote']:.2f} % by majority vote"
            epochs = ", ".join(map(str, found["epochs"]))
            console.print(f"ensemble of epochs {epochs}: {text}; each alone {members} %", highlight=False, soft_wrap=True)

    emit(as_json, value, show)


def accuracies(top1: float, top5: float | None) -> str:
    """Top-1 accuracy in percent and, where there is one, top-5."""
    return f"{100 * top1:.2f} %" + ("" if top5 is None else f" (top-5 {100 * top5:.2f} %)")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page; default: report.html in the run.")
    ] = None,
    as_json: Json = False,
) -> None:
    """One self-contained HTML page of a run. Example: nar-hw report runs/x"""
    from nar_hw.report import write_report

    page = write_report(run, output)
    emit(as_json, {"report": str(page)}, lambda: console.print(f"report {page}", highlight=False, soft_wrap=True))
