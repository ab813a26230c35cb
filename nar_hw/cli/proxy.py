"""Commands about proxy data: proxy study, select."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from nar_hw.cli.app import (
    FINE,
    LONG,
    WHAT,
    WRITTEN,
    App,
    Data,
    DataRoot,
    Group,
    Json,
    Model,
    Out,
    Resume,
    Seed,
    TrainDevice,
    app,
    console,
    emit,
    grid,
    progress_bar,
)
from nar_hw.cli.values import MOST_BATCH, MOST_CHILDREN, MOST_EPOCHS, MOST_IMAGES, choice, number, whole

if TYPE_CHECKING:
    from nar_hw.proxy.steps import Scorer

proxy_app = App(cls=Group)
app.add_typer(proxy_app, name="proxy", help="Compare mini-batches with the full gradient; choose images to search on.")

METRICS = ("intensity", "colour", "edges", "perceptual", "loss", "el2n", "grand")
SELECTIONS = ("gradient", "metric", "random", "stratified")
"""These and METRICS are those of nar_hw.proxy, which needs torch."""

Metric = Annotated[str, choice("--metric", "What images are ordered by.", "metric", METRICS, panel=WHAT)]
ScoreEpochs = Annotated[
    int,
    whole(
        "--score-epochs", "Epochs of the short training that loss, el2n, grand and gradient go by.", 1, MOST_EPOCHS, panel=LONG
    ),
]
Backbone = Annotated[
    str,
    typer.Option(
        metavar="NETWORK", help="Whose features perceptual compares; lpips: with learned weights.", rich_help_panel=FINE
    ),
]
AllTrain = Annotated[
    bool, typer.Option("--all-train", help="Use the validation images too: of cifar10, 50,000.", rich_help_panel=WHAT)
]
BackboneWeights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Its weights; default: torchvision's, which are downloaded.", rich_help_panel=FINE),
]


@proxy_app.command()
def study(
    model: Model,
    data: Data,
    out: Out,
    metric: Annotated[
        str,
        choice(
            "--metric", "What images are ordered by; all: the paper's four in one study.", "metric", (*METRICS, "all"), panel=WHAT
        ),
    ] = "intensity",
    all_train: AllTrain = False,
    batch: Annotated[int, whole("--batch", "Images per mini-batch.", 1, MOST_BATCH, panel=WHAT)] = 256,
    epochs: Annotated[
        int,
        whole("--epochs", "Epochs in all; the learning rate falls to a tenth after each third.", 1, MOST_EPOCHS, panel=LONG),
    ] = 150,
    lr: Annotated[float, number("--lr", "First learning rate.", above=0, most=1e6, panel=FINE)] = 0.1,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Distances without error, for half as much time again.", rich_help_panel=LONG),
    ] = False,
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
        scorer = _scorer(model, data, data_root, score_epochs, backbone, backbone_weights, device, seed, progress, all_train)
        studies = run_study(scorer, metric, epochs=epochs, batch=batch, lr=lr, exact=exact, out=out, resume=resume)
    parts: list[dict[str, Any]] = [
        {
            "metric": found.metric,
            "epochs": found.distances.shape[0],
            "batches": found.distances.shape[1],
            "standard_error": found.standard_error,
            "quarters": plain(found.quarters),
            "findings": plain(found.findings),
        }
        for found in studies
    ]
    value: dict[str, Any] = {"out": str(out), **(parts[0] if len(parts) == 1 else {"studies": parts})}

    def show() -> None:
        rows = []
        for found in studies:
            for item in found.findings:
                if len(studies) > 1 and item.verdict == "not tested":
                    continue
                intervals = "\n".join(f"{one.mean:+.1f} % ({one.low:+.1f} to {one.high:+.1f})" for one in item.differences)
                rows.append((str(item.number), found.metric, item.text, item.verdict, intervals))
        titles = ("", "metric", "finding of the paper", "this run", "farther than the others by (95 % interval)")
        console.print(grid(titles, rows))
        pages = [folder / "study.html" for folder in ([out] if len(studies) == 1 else [out / found.metric for found in studies])]
        console.print(f"heat maps and quartiles: {', '.join(map(str, pages))}", highlight=False, soft_wrap=True)

    emit(as_json, value, show)


@proxy_app.command()
def select(
    model: Model,
    data: Data,
    size: Annotated[int, whole("--size", "Images to choose.", 1, MOST_IMAGES, panel=WHAT)],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The index, for nar-hw search --proxy.", rich_help_panel=WRITTEN)],
    by: Annotated[str, choice("--by", "How images are chosen.", "way to select", SELECTIONS, panel=WHAT)] = "stratified",
    metric: Metric = "intensity",
    check: Annotated[
        int,
        whole("--check", "Children to train on the proxy and on all images, to compare rankings.", 0, MOST_CHILDREN, panel=LONG),
    ] = 0,
    recipe: Annotated[
        str,
        typer.Option(metavar="RECIPE", help="How these are trained: paper, fast, demo or a .json file.", rich_help_panel=LONG),
    ] = "demo",
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
    all_train: bool = False,
) -> "Scorer":
    from nar_hw.proxy.steps import Scorer, load

    return Scorer(
        model,
        load(data, data_root, all_train=all_train),
        epochs=epochs,
        backbone=backbone,
        backbone_weights=backbone_weights,
        device=device,
        seed=seed,
        progress=progress,
    )
