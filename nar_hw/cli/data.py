"""Commands about data: data faces-proxy, faces-verify, faces-identify."""

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from nar_hw.cli.app import App, Group, Json, Seed, TrainDevice, app, console, emit, grid
from nar_hw.cli.values import MOST_IMAGES, whole

data_app = App(cls=Group)
app.add_typer(data_app, name="data", help="Make subsets of large sets of faces; test face networks on the field's sets.")

ChildFolder = Annotated[Path, typer.Argument(help="Folder of a trained child.")]


@data_app.command()
def faces_proxy(
    source: Annotated[Path, typer.Argument(help="Folder of identities' folders, or with train.rec and train.idx.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Of the proxy; must not exist.")],
    identities: Annotated[int, whole("--identities", "Identities to learn.", 2, MOST_IMAGES)] = 4000,
    images: Annotated[int, whole("--images", "Images of each.", 2, MOST_IMAGES)] = 40,
    valid: Annotated[int, whole("--valid", "Images of each that are for validation.", 1, MOST_IMAGES)] = 4,
    test_identities: Annotated[int, whole("--test-identities", "Further identities, for testing.", 0, MOST_IMAGES)] = 100,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Copy a part of a set of faces to search on. Example: nar-hw data faces-proxy faces_emore --out proxy"""
    from nar_hw.faces.proxy import LISTING, make_proxy

    made = make_proxy(source, out, identities=identities, images=images, valid=valid, test_identities=test_identities, seed=seed)

    def show() -> None:
        console.print(
            f"{identities:,} identities x {images} images ({images - valid} to learn, {valid} to validate) and "
            f"{test_identities:,} identities to test, listed in {out / LISTING}",
            highlight=False,
            soft_wrap=True,
        )
        if small := made["too_small"]:
            some = ", ".join(f"{name} ({count})" for name, count in list(small.items())[:3])
            text = f"{len(small):,} of {made['found']:,} identities have fewer than {images} images: {some}"
            console.print(f"{text}{', ...' if len(small) > 3 else ''}", highlight=False, soft_wrap=True)

    emit(as_json, made, show)


@data_app.command()
def faces_verify(
    child: ChildFolder,
    pairs: Annotated[Path, typer.Option(metavar="PAIRS", help="A .bin file, a list like LFW's pairs.txt, or CFP's folder.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the images that a list names; default: the list's own.")] = None,
    distance: Annotated[Literal["cosine", "l2"], typer.Option(help="How embeddings are compared.")] = "cosine",
    plot: Annotated[Path | None, typer.Option(help="Draw the ROC to this file.")] = None,
    device: TrainDevice = "cpu",
    as_json: Json = False,
) -> None:
    """10-fold verification of pairs. Example: nar-hw data faces-verify runs/x/child --pairs lfw.bin --plot roc.png"""
    from nar_hw.faces.metrics import plot_roc, roc
    from nar_hw.faces.protocols import verify
    from nar_hw.training.child import Child

    trained = Child.load(child)
    size = trained.model.input_shape[-1]
    found = verify(trained.network(child), pairs, images=images, size=size, distance=distance, device=device)
    if plot is not None:
        plot_roc(plot, {f"{pairs.stem}: {100 * found.verification.accuracy:.2f} %": roc(found.scores, found.same)})

    def show() -> None:
        console.print(
            f"{len(found.same):,} pairs: {100 * found.verification.accuracy:.2f} % +- {100 * found.verification.deviation:.2f} "
            f"right over {len(found.verification.thresholds)} folds",
            highlight=False,
        )
        rows = [(f"{far:g}", "too few pairs" if tar is None else f"{100 * tar:.2f} %") for far, tar in found.tar.items()]
        console.print(grid(("FAR", "TAR"), rows))

    value = {
        "pairs": len(found.same),
        "accuracy": found.verification.accuracy,
        "deviation": found.verification.deviation,
        "thresholds": [value if math.isfinite(value) else None for value in found.verification.thresholds],
        "tar_at_far": {f"{far:g}": tar for far, tar in found.tar.items()},
    }
    emit(as_json, value, show)


@data_app.command()
def faces_identify(
    child: ChildFolder,
    gallery: Annotated[Path, typer.Option(help="Folder of identities' folders: the faces that are known.")],
    probes: Annotated[Path, typer.Option(help="The same of the faces to be recognised.")],
    device: TrainDevice = "cpu",
    as_json: Json = False,
) -> None:
    """Rank-1 identification. Example: nar-hw data faces-identify runs/x/child --gallery known --probes seen"""
    from nar_hw.faces.protocols import identify
    from nar_hw.training.child import Child

    trained = Child.load(child)
    share, known, asked = identify(trained.network(child), gallery, probes, size=trained.model.input_shape[-1], device=device)
    value = {"rank_1": share, "gallery": known, "probes": asked}
    text = f"{100 * share:.2f} % of {asked:,} probes are nearest to an image of their own identity, of {known:,} in the gallery"
    emit(as_json, value, lambda: console.print(text, highlight=False, soft_wrap=True))
