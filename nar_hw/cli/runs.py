"""Commands that make and use children: demo, search, train, export, bench, report."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nar_hw.cli.app import (
    Data,
    DataRoot,
    Json,
    LimitParams,
    Manner,
    Model,
    Operators,
    Resume,
    Seed,
    Settings,
    Slots,
    app,
    console,
    emit,
    names,
    progress_bar,
    sentence,
)
from nar_hw.cli.values import MOST_BATCH, MOST_EPOCHS, MOST_THREADS, number, whole
from nar_hw.errors import UserError
from nar_hw.records import plain, replace, with_settings
from nar_hw.search.config import SearchConfig

SEARCH = SearchConfig()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The whole path on embedded data: table, search, train, export, bench, report. Example: nar-hw demo"""
    from nar_hw.report import terminal_table
    from nar_hw.steps.demo import run_demo

    with progress_bar() as progress:
        outcome = run_demo(out, seed=seed, progress=progress)

    def show() -> None:
        console.print(terminal_table(out))
        console.print(f"report  {outcome['report']}\nbundle  {outcome['bundle']}", highlight=False, soft_wrap=True)

    emit(as_json, outcome, show)


@app.command()
def search(
    model: Model,
    data: Data,
    table: Annotated[
        list[Path], typer.Option("--table", help="The latency table of the device to deploy on; once for each of several.")
    ],
    target_ms: Annotated[
        list[float],
        number("--target-ms", "The latency not to be exceeded; of several tables one for all, or once for each.", above=0),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    reward: Annotated[
        str, typer.Option(help="absolute, one-sided, mnasnet-soft, mnasnet-hard, proxyless-rl or accuracy.")
    ] = SEARCH.reward,
    combine: Annotated[
        str, typer.Option(help="Of several tables: worst (each target is met) or mean (of latency / target, at most 1).")
    ] = SEARCH.combine,
    weight: Annotated[list[float] | None, number("--weight", "Of a table in the mean; once for each.", above=0)] = None,
    max_flops: Annotated[int | None, whole("--max-flops", "Most FLOPs (multiply-adds of one image).", 1, 10**18)] = None,
    max_params: Annotated[int | None, whole("--max-params", "Most parameters.", 1, 10**18)] = None,
    strategy: Annotated[
        str, typer.Option(help="How archs are proposed: surrogate, reinforce, gradient, evolution or random.")
    ] = SEARCH.strategy,
    epochs: Annotated[int, whole("--epochs", "Epochs of shared weights and strategy in turn.", 1, MOST_EPOCHS)] = SEARCH.epochs,
    warmup_epochs: Annotated[
        int, whole("--warmup-epochs", "Epochs of the shared weights alone, before these.", 0, MOST_EPOCHS)
    ] = SEARCH.warmup_epochs,
    warmup_paths: Annotated[
        str, typer.Option(help="Whether these deal operators (fair) or draw them (uniform).")
    ] = SEARCH.warmup_paths,
    paths: Annotated[
        str, typer.Option(help="The same of the other epochs, or what the strategy draws (strategy).")
    ] = SEARCH.paths,
    batch: Annotated[int, whole("--batch", "Training images per step.", 2, MOST_BATCH)] = SEARCH.batch,
    precision: Annotated[str, typer.Option(help="Arithmetic of the shared weights: fp32, bf16 or fp16.")] = SEARCH.precision,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Store images with the channels innermost.")] = False,
    seed: Seed = 0,
    settings: Settings = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu or cuda.")] = "cpu",
    data_root: DataRoot = None,
    proxy: Annotated[Path | None, typer.Option(help="Search on the images that nar-hw proxy select chose.")] = None,
    allow_mismatch: Annotated[bool, typer.Option("--allow-mismatch", help="Use a table of another device.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write scalars to OUT/tensorboard.")] = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Search operators for a latency target. On several GPUs: torchrun --nproc-per-node 4 -m nar_hw search ...

    Example: nar-hw search --model resnet_digits --data digits --table t.json --target-ms 0.2 --out runs/x
    """
    from nar_hw.distributed import launched
    from nar_hw.latency.table import LatencyTable
    from nar_hw.steps.search import search_run

    config = SearchConfig(
        strategy=strategy,
        reward=reward,
        combine=combine,  # type: ignore[arg-type]
        weights=tuple(weight or ()),
        max_flops=max_flops,
        max_params=max_params,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        warmup_paths=warmup_paths,  # type: ignore[arg-type]
        paths=paths,  # type: ignore[arg-type]
        batch=batch,
        precision=precision,  # type: ignore[arg-type]
        channels_last=channels_last,
        seed=seed,
    )
    config = with_settings(config, settings or ())
    tables = [LatencyTable.load(path) for path in table]
    with launched(device) as device, progress_bar() as progress:
        result = search_run(
            model,
            data,
            tables,
            target_ms=target_ms,
            out=out,
            config=config,
            data_root=data_root,
            proxy=proxy,
            device=device,
            resume=resume,
            allow_mismatch=allow_mismatch,
            tensorboard=tensorboard,
            progress=progress,
        )
    value: dict[str, Any] = {
        "out": str(out),
        "arch": [tables[0].operators[code] for code in result.arch],
        "accuracy": result.pick.accuracy,
        "target_ms": result.target_ms,
        "predicted_ms": result.pick.predicted_ms,
        "measured_ms": result.pick.measured_ms,
        "others": plain(result.others),
        "met": result.met,
        "allowed_mismatch": list(result.allowed_mismatch),
    }

    def show() -> None:
        console.print(",".join(value["arch"]), highlight=False, soft_wrap=True)
        console.print(result.note, highlight=False, soft_wrap=True)

    emit(as_json, value, show)


@app.command()
def train(
    arch: Annotated[
        str, typer.Option(help="A search folder, a child of the paper by name, codes or names with commas, or `incumbent`.")
    ],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the child.")],
    model: Annotated[str | None, typer.Option("--model", help="The network; not needed with a search folder.")] = None,
    recipe: Annotated[str, typer.Option(help="paper, fast, demo, or a .json file of a recipe's fields.")] = "paper",
    epochs: Annotated[int | None, whole("--epochs", "Instead of the recipe's.", 1, MOST_EPOCHS)] = None,
    init: Annotated[str, typer.Option(help="scratch, or inherited from --baseline.")] = "scratch",
    baseline: Annotated[
        Path | None,
        typer.Option(help="The trained network itself, for --init inherited and --distill: its folder, or a weights file."),
    ] = None,
    distill: Annotated[
        float | None,
        number("--distill", "Weight of the divergence from the --baseline's outputs in the loss.", least=0, most=1),
    ] = None,
    ensemble: Annotated[
        int, whole("--ensemble", "Snapshots to keep and to score together on the test images.", 0, MOST_EPOCHS)
    ] = 0,
    manner: Manner = "conv",
    operators: Operators = None,
    slots: Slots = None,
    limit_params: LimitParams = True,
    seed: Seed = 0,
    settings: Settings = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu or cuda.")] = "cpu",
    workers: Annotated[
        int | None, whole("--workers", "Processes that read stream: images; default: one a core, to 8.", 0, MOST_THREADS)
    ] = None,
    data_root: DataRoot = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch cifar10, cifar100 or fashion-mnist into the data root first.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write scalars to OUT/tensorboard.")] = False,
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
    if init not in ("scratch", "inherited") or (inherit or chosen.distill > 0) != (baseline is not None):
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
        console.print(f"accuracy: {', '.join(parts)}; {sentence(value)}; weights in {out}", highlight=False, soft_wrap=True)
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
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page; default: report.html in the run.")] = None,
    as_json: Json = False,
) -> None:
    """One self-contained HTML page of a run. Example: nar-hw report runs/x"""
    from nar_hw.report import write_report

    page = write_report(run, output)
    emit(as_json, {"report": str(page)}, lambda: console.print(f"report {page}", highlight=False, soft_wrap=True))
