"""Commands about proxy data: proxy study, select."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from nar_hw.cli.app import App, Data, DataRoot, Json, Model, Resume, Seed, app, console, emit, progress_bar
from nar_hw.cli.values import MOST_BATCH, MOST_CHILDREN, MOST_EPOCHS, MOST_IMAGES, number, whole

if TYPE_CHECKING:
    from nar_hw.proxy.steps import Scorer

proxy_app = App(no_args_is_help=True)
app.add_typer(proxy_app, name="proxy", help="Compare mini-batches with the full gradient; choose images to search on.")

Metric = Annotated[str, typer.Option(help="intensity, colour, edges, perceptual, loss, el2n or grand.")]
ScoreEpochs = Annotated[
    int, whole("--score-epochs", "Epochs of the short training that loss, el2n, grand and gradient go by.", 1, MOST_EPOCHS)
]
Backbone = Annotated[str, typer.Option(help="Network whose features perceptual compares.")]
BackboneWeights = Annotated[Path | None, typer.Option(help="Its weights; default: torchvision's, which are downloaded.")]
TrainDevice = Annotated[str, typer.Option(help="Where to compute: cpu or cuda.")]


@proxy_app.command()
def study(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the study.")],
    metric: Metric = "intensity",
    batch: Annotated[int, whole("--batch", "Images per mini-batch.", 1, MOST_BATCH)] = 256,
    epochs: Annotated[
        int, whole("--epochs", "Epochs in all; the learning rate falls to a tenth after each third.", 1, MOST_EPOCHS)
    ] = 150,
    lr: Annotated[float, number("--lr", "First learning rate.", above=0, most=1e6)] = 0.1,
    exact: Annotated[bool, typer.Option("--exact", help="Distances without error, for half as much time again.")] = False,
    score_epochs: ScoreEpochs = 3,
    backbone: Backbone = "alexnet",
    backbone_weights: BackboneWeights = None,
    seed: Seed = 0,
    device: TrainDevice = "cpu",
    data_root: DataRoot = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """How near the gradient of every mini-batch is to the full one, while a network learns (Lasky et al.).

    Example: nar-hw proxy study --model resnet_digits --data digits --batch 64 --epochs 30 --out runs/study
    """
    from nar_hw.distributed import launched
    from nar_hw.proxy.steps import run_study
    from nar_hw.records import plain

    with launched(device) as device, progress_bar() as progress:
        scorer = _scorer(model, data, data_root, score_epochs, backbone, backbone_weights, device, seed, progress)
        found = run_study(scorer, metric, epochs=epochs, batch=batch, lr=lr, exact=exact, out=out, resume=resume)
    value: dict[str, Any] = {
        "out": str(out),
        "epochs": found.distances.shape[0],
        "batches": found.distances.shape[1],
        "standard_error": found.standard_error,
        "quarters": plain(found.quarters),
        "findings": plain(found.findings),
    }

    def show() -> None:
        table = Table("", "finding of the paper", "this run", "farther than the others by (95 % interval)")
        for item in found.findings:
            intervals = "\n".join(f"{one.mean:+.1f} % ({one.low:+.1f} to {one.high:+.1f})" for one in item.differences)
            table.add_row(str(item.number), item.text, item.verdict, intervals)
        console.print(table)
        console.print(f"heat maps and quartiles: {out / 'study.html'}", highlight=False, soft_wrap=True)

    emit(as_json, value, show)


@proxy_app.command()
def select(
    model: Model,
    data: Data,
    size: Annotated[int, whole("--size", "Images to choose.", 1, MOST_IMAGES)],
    out: Annotated[Path, typer.Option(help="The index file, for nar-hw search --proxy.")],
    by: Annotated[str, typer.Option(help="gradient, metric, random or stratified.")] = "stratified",
    metric: Metric = "intensity",
    check: Annotated[
        int, whole("--check", "Children to train on the proxy and on all images, to compare rankings.", 0, MOST_CHILDREN)
    ] = 0,
    recipe: Annotated[str, typer.Option(help="How these are trained: paper, fast, demo or a .json file.")] = "demo",
    score_epochs: ScoreEpochs = 3,
    backbone: Backbone = "alexnet",
    backbone_weights: BackboneWeights = None,
    seed: Seed = 0,
    device: TrainDevice = "cpu",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Choose training images to search on.

    Example: nar-hw proxy select --model resnet18 --data cifar10 --size 5000 --by gradient --out proxy.json
    """
    from nar_hw.distributed import launched
    from nar_hw.proxy.steps import run_select

    with launched(device) as device, progress_bar() as progress:
        scorer = _scorer(model, data, data_root, score_epochs, backbone, backbone_weights, device, seed, progress)
        found = run_select(scorer, size=size, by=by, metric=metric, out=out, check=check, recipe=recipe)

    def show() -> None:
        lines = [f"{size:,} of {found['images']:,} images by {by}, listed in {out}"]
        if "gradient_error" in found:
            own, other = 100 * found["gradient_error"], 100 * found["random_gradient_error"]
            lines.append(f"its mean gradient is {own:.1f} % off the full one; that of as many random images {other:.1f} %")
        if check:
            tau = "undefined (all equal)" if found["kendall"] is None else f"{found['kendall']:.2f}"
            regret = 100 * found["regret"]
            lines.append(
                f"{check} children: Kendall's tau {tau} with the full set; its best child is {regret:.2f} points below the best"
            )
        console.print("\n".join(lines), highlight=False, soft_wrap=True)

    emit(as_json, found, show)


def _scorer(
    model: str,
    data: str,
    data_root: Path | None,
    epochs: int,
    backbone: str,
    backbone_weights: Path | None,
    device: str,
    seed: int,
    progress: Progress,
) -> "Scorer":
    from nar_hw.proxy.steps import Scorer, load

    return Scorer(
        model,
        load(data, data_root),
        epochs=epochs,
        backbone=backbone,
        backbone_weights=backbone_weights,
        device=device,
        seed=seed,
        progress=progress,
    )
