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
from nar_hw.search.config import COMBINE, FITTED, PATHS, SKIPS, SearchConfig
from nar_hw.search.presets import PRESETS, preset_named
from nar_hw.search.reward import REWARDS
from nar_hw.search.strategies import STRATEGIES
from nar_hw.training.recipes import PRECISIONS

SEARCH = SearchConfig()


@app.command()
def search(
    ctx: typer.Context,
    out: Out,
    target_ms: Annotated[
        list[float] | None,
        number(
            "--target-ms",
            "The latency not to be exceeded; once for each of several targets. Of several tables: one for all, or once for each.",
            above=0,
            panel=WHAT,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        choice(
            "--preset",
            "A paper's own search, with no latency in it: LSTM controller, accuracy as reward. Other options change it.",
            "preset",
            PRESETS,
            panel=WHAT,
        ),
    ] = None,
    model: OptionalModel = None,
    data: OptionalData = None,
    table: Annotated[
        list[Path] | None,
        typer.Option(
            "--table",
            metavar="FILE",
            help="The latency table of the device to deploy on, which says what is searched; once for each of several.",
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
    percentile: Annotated[
        str,
        choice("--percentile", "Of single inferences, that targets and latencies are.", "percentile", ("50", "90"), panel=WHAT),
    ] = "50",
    max_flops: Annotated[
        int | None, whole("--max-flops", "Most FLOPs (multiply-adds of one image).", 1, 10**18, panel=WHAT)
    ] = None,
    max_params: Annotated[int | None, whole("--max-params", "Most parameters.", 1, 10**18, panel=WHAT)] = None,
    max_energy: Annotated[
        float | None,
        number("--max-energy", "Most mJ of one image, by a table with energies (nar-hw table energy).", above=0, panel=WHAT),
    ] = None,
    max_memory: Annotated[
        float | None,
        number("--max-memory", "Most MiB of a loaded network that runs, by the first table.", above=0, panel=WHAT),
    ] = None,
    manner: Manner = "conv",
    operators: Operators = None,
    slots: Slots = None,
    limit_params: LimitParams = True,
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
    skips: Annotated[
        str,
        choice(
            "--skips",
            "Whether skip connections stay, or are searched with the operators or in turns.",
            "skips",
            SKIPS,
            panel=WHAT,
        ),
    ] = SEARCH.skips,
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

    A setting of the controller is --set controller.lr=0.001, of the reward --set reward.slope=-0.2.
    Example: nar-hw search --model resnet_digits --data digits --table t.json --target-ms 0.2 --out runs/x
    """
    from nar_hw.distributed import barrier, launched
    from nar_hw.latency.table import LatencyTable
    from nar_hw.search.record import load_run
    from nar_hw.steps.search import search_again, search_run

    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    asked = {name: ctx.params[name] for name, found in sources.items() if found is not None and found.name == "COMMANDLINE"}
    _check_search(asked)
    if "weight" in asked:
        asked["weights"] = tuple(asked.pop("weight"))
    given = weights or baseline
    chosen = {name: asked[name] for name in SearchConfig.__struct_fields__ if name in asked and (name != "weights" or weight)}
    searched: dict[str, Any] = {"manner": manner, "operators": names(operators)}
    base = SEARCH if given is None else FITTED
    if preset is not None:
        named = preset_named(preset)
        base, searched = named.search, {"manner": named.manner, "operators": named.operators}
        searched |= {name: value for name, value in (("manner", manner), ("operators", names(operators))) if name in asked}
    for name in ("strategy", "reward"):  # options are of one strategy, and of one reward
        if chosen.get(name, getattr(base, name)) != getattr(base, name):
            chosen[f"{name}_options"] = {}
    config = with_settings(replace(base, **chosen), settings or ())
    with launched(device) as device, progress_bar() as progress:
        common: dict[str, Any] = {
            "target_ms": target_ms or (),
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
                **searched,
                slots=slots,
                limit_params=limit_params,
                proxy=proxy,
                trained=given,
                allow_mismatch=allow_mismatch,
                tensorboard=tensorboard,
                percentile=int(percentile),
                **common,
            )
        barrier()  # the first process writes what all read
    outcomes = load_run(out).outcomes
    value: dict[str, Any] = {
        "out": str(out),
        "arch": list(outcomes[0].pick.arch),
        "accuracy": result.pick.accuracy,
        "target_ms": result.target_ms,
        "predicted_ms": result.pick.predicted_ms,
        "measured_ms": result.pick.measured_ms,
        "others": plain(result.others),
        "targets": [
            {
                "target_ms": item.target_ms,
                "arch": list(item.pick.arch),
                "accuracy": item.pick.accuracy,
                "predicted_ms": item.pick.predicted_ms,
                "measured_ms": item.pick.measured_ms,
                "met": item.met,
            }
            for item in outcomes
        ],
        "met": result.met,
        "allowed_mismatch": list(result.allowed_mismatch),
    }

    def show() -> None:
        for item in value["targets"]:
            console.print(",".join(item["arch"]), highlight=False, soft_wrap=True)
        console.print(result.note, highlight=False, soft_wrap=True)

    emit(as_json, value, show)


def _check_search(asked: dict[str, Any]) -> None:
    """Raises UserError for options of `nar-hw search` that do not go together; ``asked`` are those on the line."""
    if "source" in asked:
        if "target_ms" not in asked:
            raise UserError("--from chooses for other targets: give --target-ms")
        return
    if not {"model", "data"} <= asked.keys() or not {"table", "preset", "max_flops", "max_params"} & asked.keys():
        raise UserError(
            "a search needs --model, --data and what to search for (--table with --target-ms, --max-flops, --max-params or "
            "--preset), or --from a finished search"
        )
    if ("table" in asked) != ("target_ms" in asked):
        raise UserError("--table and --target-ms go together, but one of them is missing: give both, or neither")
    if "table" in asked and asked.get("skips", "fixed") != "fixed":
        raise UserError(
            "a latency table is of networks with all their skips, so that it cannot tell the latency without one: search skips "
            "with --max-flops, --max-params or --preset instead of --table, then nar-hw bench the child"
        )
    for name in ("manner", "operators", "slots", "limit_params"):
        if "table" in asked and name in asked:
            raise UserError(
                f"the latency table says what is searched, but got --{name.replace('_', '-')} beside it: leave one out"
            )
    if "preset" in asked and {"weights", "baseline"} & asked.keys():
        raise UserError("a --preset searches from scratch, but got trained weights: leave one out")


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
            help="paper, paper-faces, fast, finetune, demo, or a .json file of a recipe's fields.",
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
    batches: Annotated[
        str | None,
        typer.Option(
            metavar="KEEP:METRIC",
            help="Batches by a metric, some left out: keep-all, -middle, -lowest or -highest; intensity, colour or edges.",
            rich_help_panel=FINE,
        ),
    ] = None,
    augment: Annotated[
        list[str] | None,
        typer.Option(
            "--augment",
            metavar="NAME=VALUE",
            help="Another augmentation than the data's own, such as pca_colour=0.1 or cutout=8; once for each.",
            rich_help_panel=FINE,
        ),
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
        task = load_task(data, root=data_root, device=device, workers=workers, download=download, augment=augment or ())
        if batches is not None:
            from nar_hw.proxy.batches import chosen_batches

            task = chosen_batches(task, batches, chosen.batch)
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
    runs: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="A run, or trainings of nar-hw train to be shown side by side.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The page; default: report.html in the first folder."),
    ] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """One self-contained HTML page of a run, or of trainings. Example: nar-hw report runs/x"""
    page = output or runs[0] / "report.html"
    if len(runs) == 1 and not (runs[0] / "child.json").is_file():
        from nar_hw.report import write_report

        write_report(runs[0], page)
    else:
        from nar_hw.steps.trainings import report_trainings

        report_trainings(runs, page, root=data_root)
    emit(as_json, {"report": str(page)}, lambda: console.print(f"report {page}", highlight=False, soft_wrap=True))
