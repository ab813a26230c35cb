"""Commands about this machine and about networks: doctor, space, count, classify."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nar_hw.cli.app import (
    FINE,
    WHAT,
    WRITTEN,
    Classes,
    Input,
    Json,
    LimitParams,
    Manner,
    Model,
    Operators,
    OptionalModel,
    Slots,
    app,
    console,
    counted,
    emit,
    grid,
    model_info,
    sentence,
)
from nar_hw.cli.values import MOST_CLASSES, choice, whole
from nar_hw.errors import UserError
from nar_hw.export.forms import Form
from nar_hw.records import replace

if TYPE_CHECKING:
    from nar_hw.models.info import ModelInfo

COUNTED = ("params", "flops", "pool_ops")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Which runtimes work here, and for each that does not, why and what to do. Example: nar-hw doctor"""
    from nar_hw._version import versions
    from nar_hw.latency.device import fingerprint
    from nar_hw.runtimes import RuntimeConfig, survey

    here = fingerprint(RuntimeConfig(runtime="torch_eager"))
    machine = {key: here[key] for key in ("cpu", "isa", "cores", "os")}
    runtimes = [item for item in survey() if item["name"] != "fake"]

    def show() -> None:
        console.print(f"{machine['cpu']}, {machine['cores']} cores, {machine['os']}", highlight=False)
        console.print(f"instruction sets: {', '.join(machine['isa'] or ['unknown'])}", highlight=False)
        console.print(", ".join(f"{name} {version}" for name, version in versions("torch").items()), highlight=False)
        rows = [
            (
                item["name"],
                "yes" if item["works"] else "no",
                " ".join(item["devices"]),
                " ".join(item["precisions"]),
                "yes" if item["layers"] else "no",
                next(iter(item["versions"].values()), "") if item["works"] else "",
            )
            for item in runtimes
        ]
        console.print(grid(("runtime", "works", "devices", "precisions", "per-layer times", "version"), rows))
        for item in runtimes:
            if not item["works"]:
                console.print(f"{item['name']}: {item['reason']}", highlight=False, soft_wrap=True, markup=False)

    emit(as_json, {"versions": versions("torch"), **machine, "runtimes": runtimes}, show)


@app.command()
def space(
    model: Model,
    input: Input,
    manner: Manner = "conv",
    operators: Operators = None,
    slots: Slots = None,
    limit_params: LimitParams = True,
    classes: Classes = None,
    check: Annotated[
        str | None,
        choice("--check", "Which operators of which slots TensorRT's parser would refuse.", "check", ("tensorrt",), panel=WHAT),
    ] = None,
    as_json: Json = False,
) -> None:
    """The slots of a network and what may stand in them. Example: nar-hw space --model resnet18 --input 3x32x32"""
    from nar_hw.errors import ModelError
    from nar_hw.space.flops import SpaceCounts

    found = model_info(model, input, manner, operators, classes, slots, limit_params).space()
    checked = None
    if check is not None:
        from nar_hw.steps.check import check_space

        checked = check_space(found, check)
    uncounted: dict[str, Any] = {}
    total: dict[str, int | None] = {
        "params": sum(item.numel() for item in found.model.parameters()),
        "flops": None,
        "pool_ops": None,
    }
    try:
        counts = SpaceCounts(found)
        total = dict(counted(counts.count(found.incumbent)))
    except ModelError as problem:  # the slots are known all the same
        counts, uncounted = None, {"uncounted": str(problem)}

    def cost(position: int, code: int) -> dict[str, int | None]:
        return dict.fromkeys(total) if counts is None else dict(counted(counts.candidate(position, code)))

    rows: list[dict[str, Any]] = [
        {
            "slot": position,
            "name": slot.name,
            "convolutions": [site.conv for site in slot.sites],
            "input": [slot.sites[0].incumbent.c_in, slot.sites[0].incumbent.h, slot.sites[0].incumbent.w],
            "output": [slot.sites[-1].incumbent.c_out, *slot.sites[-1].calls[0][1]],
            "incumbent": found.operators[slot.incumbent],
            "fixed": slot.fixed,
            "reason": slot.reason,
            "candidates": [{"code": code, "operator": found.operators[code], **cost(position, code)} for code in slot.candidates],
        }
        for position, slot in enumerate(found.slots)
    ]

    def show() -> None:
        lines = []
        for row in rows:
            candidates = ", ".join(
                f"{item['code']} {item['operator']}" + ("" if item["flops"] is None else f": {item['flops'] / 1e6:.3g}")
                for item in row["candidates"]
            )
            shapes = ["x".join(map(str, row[key])) for key in ("input", "output")]
            lines.append((str(row["slot"]), row["name"], *shapes, row["incumbent"], "fixed" if row["fixed"] else candidates))
        titles = ("slot", "name", "input", "output", "incumbent", "candidates (code name: M multiply-adds)")
        console.print(grid(titles, lines))
        why: dict[str, list[str]] = {}
        for row in rows:
            if row["reason"] is not None:
                why.setdefault(row["reason"], []).append(row["name"])
        for reason, where in why.items():
            console.print(f"fixed: {', '.join(where)}: {reason}", highlight=False, soft_wrap=True, markup=False)
        for path, reason in found.hidden.items():
            console.print(f"not searched: {path or 'the network'}: {reason}", highlight=False, soft_wrap=True, markup=False)
        console.print(f"{len(rows)} slots, {found.size:.4g} archs; the network itself: {sentence(total)}", highlight=False)
        for reason in uncounted.values():
            console.print(f"not counted: {reason}", soft_wrap=True)
        if checked is None:
            return
        said = f"refuses {len(checked['refused'])} nodes" if checked["refused"] else "reads every operator in every slot"
        console.print(f"{checked['parser']} {said} ({checked['children']} children tried)", highlight=False)
        for item in checked["refused"]:
            place = "every child" if item["slot"] is None else f"slot {item['slot']} with {item['operator']}"
            console.print(f"{place}: {item['node']}: {item['reason']}", highlight=False, soft_wrap=True, markup=False)

    value = {
        "model": model,
        "manner": manner,
        "slots": rows,
        "not_searched": dict(found.hidden),
        "archs": str(found.size),
        **total,
        **uncounted,
        **({} if checked is None else {"check": checked}),
    }
    emit(as_json, value, show)


@app.command()
def count(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NETWORKS",
            help="As in other commands; several with commas for one table; not needed with a child of the paper.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    input: Annotated[
        str | None,
        typer.Option("--input", metavar="CxHxW", help="Shape of one image; default: the network's usual.", rich_help_panel=WHAT),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="ARCH",
            help="A child of the paper by name, codes or names with commas; default: the network itself.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    manner: Manner = "conv",
    operators: Operators = None,
    slots: Slots = None,
    limit_params: LimitParams = True,
    classes: Classes = None,
    as_json: Json = False,
) -> None:
    """Parameters, FLOPs and pool operations. Example: nar-hw count --model alexnet,vgg19,googlenet

    Of a child: nar-hw count --arch resnet18-8
    """
    from nar_hw.bundles.children import child_names, named_child
    from nar_hw.models import usual_input
    from nar_hw.models.info import parse_shape

    if arch in child_names():
        for name in ("manner", "operators", "slots"):
            found = ctx.get_parameter_source(name)
            if found is not None and found.name == "COMMANDLINE":
                raise UserError(f"the child {arch} says what its slots are, but got --{name}: leave it out")
        child = named_child(str(arch), model=model)
        shape = child.model.input_shape if input is None else parse_shape(input)
        info = replace(child.model, input_shape=shape, num_classes=classes or child.model.num_classes)
        _count_child(info, ",".join(child.arch), as_json)
        return
    if model is None:
        raise UserError(f"counting needs --model, or --arch with a child of the paper: {', '.join(child_names())}")
    infos = [
        model_info(name, input or "x".join(map(str, usual_input(name))), manner, operators, classes, slots, limit_params)
        for name in (item.strip() for item in model.split(","))
    ]
    if arch is None:
        _count_networks(infos, as_json)
    elif len(infos) > 1:
        raise UserError(f"--arch is of one network, but --model names {len(infos)}: leave one out")
    else:
        _count_child(infos[0], arch, as_json)


def _count_networks(infos: "list[ModelInfo]", as_json: bool) -> None:
    """One network in a line, several in a table."""
    from nar_hw.space.flops import count_with_gaps

    rows: list[dict[str, Any]] = []
    for info in infos:
        total, gaps = count_with_gaps(info.build(), info.input_shape)
        rows.append({"model": info.name, "input_shape": list(info.input_shape), **counted(total), "not_counted": gaps})

    def uncounted(row: dict[str, Any]) -> str:
        return ", ".join(f"{name} ({calls} times)" for name, calls in row["not_counted"].items())

    def show() -> None:
        if len(rows) == 1:
            left_out = f"; not counted: {uncounted(rows[0])}" if rows[0]["not_counted"] else ""
            console.print(f"{sentence(rows[0])}{left_out}", highlight=False, soft_wrap=True)
            return
        lines = [
            (row["model"], "x".join(map(str, row["input_shape"])), *(f"{row[key]:,}" for key in COUNTED), uncounted(row))
            for row in rows
        ]
        console.print(grid(("network", "input", "params", "multiply-adds", "pool operations", "not counted"), lines))

    emit(as_json, rows[0] if len(rows) == 1 else {"networks": rows}, show)


def _count_child(info: "ModelInfo", arch: str, as_json: bool) -> None:
    """A child with the costs of its slots."""
    from nar_hw.space.flops import SpaceCounts

    found = info.space()
    counts = SpaceCounts(found)
    codes = found.parse(arch)
    total = counts.count(codes)
    rows: list[dict[str, Any]] = [
        {"slot": slot.name, "operator": name, **counted(cost)}
        for slot, name, cost in zip(found.slots, found.names(codes), counts.per_slot(codes), strict=True)
    ]

    def show() -> None:
        lines = [(row["slot"], row["operator"], *(f"{row[key]:,}" for key in COUNTED)) for row in rows]
        console.print(grid(("slot", "operator", "params", "multiply-adds", "pool operations"), lines))
        console.print(sentence(counted(total)), highlight=False)

    value = {
        "model": info.name,
        "input_shape": list(info.input_shape),
        "arch": list(found.names(codes)),
        **counted(total),
        "slots": rows,
    }
    emit(as_json, value, show)


@app.command()
def classify(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    model: OptionalModel = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The weights: safetensors or a torch file of tensors.", rich_help_panel=WHAT),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FOLDER", help="Of a bundle or a trained network, instead of --model.", rich_help_panel=WHAT
        ),
    ] = None,
    top: Annotated[int, whole("--top", "Classes to name of each image.", 1, MOST_CLASSES, panel=WRITTEN)] = 5,
    input: Annotated[
        str | None,
        typer.Option("--input", metavar="CxHxW", help="Shape of one image; default: the network's usual.", rich_help_panel=WHAT),
    ] = None,
    classes: Classes = None,
    names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Names of the classes, one a line; default: ImageNet's for 1,000.", rich_help_panel=FINE
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="Of the pixels in [0, 1], with commas; default: of the weights' library.",
            rich_help_panel=FINE,
        ),
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Their standard deviation; the same.", rich_help_panel=FINE)
    ] = None,
    dense: Annotated[
        Form | None,
        typer.Option(
            "--dense",
            help="By OverFeat's rule: of each class the greatest probability at any place, mean over six sizes of the image.",
            rich_help_panel=FINE,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """The likeliest classes of images by any network. Example: nar-hw classify cat.jpg --model vgg19 --weights vgg19.pth --top 12

    By a bundle: nar-hw classify cat.jpg --from bundle
    """
    from nar_hw.data.preprocessing import Preprocessing
    from nar_hw.models import usual_input
    from nar_hw.steps.classify import Classifier, class_names, numbers, usual_normalisation

    if (folder is None) == (model is None) or (model is None) != (weights is None):
        raise UserError("classifying needs --model with --weights, or --from with a bundle or the folder of a trained network")
    if folder is not None:
        given = {"input": input, "classes": classes, "names": names, "mean": mean, "std": std}
        if said := [name for name, value in given.items() if value is not None]:
            raise UserError(f"{folder} says what its images and classes are, but got --{said[0]}: leave it out")
        classifier = Classifier.of_folder(folder)
    else:
        assert model is not None
        assert weights is not None
        info = model_info(model, input or "x".join(map(str, usual_input(model))), "conv", None, classes)
        named = class_names(names, info.num_classes)
        if names is not None and classes is None:
            info = replace(info, num_classes=len(named))
        if (mean is None) != (std is None):
            raise UserError("--mean and --std go together, but one of them is missing: give both, or neither")
        if mean is None or std is None:
            means, stds = usual_normalisation(model, info.input_shape[0])
        else:
            means, stds = numbers(mean, name="--mean"), numbers(std, name="--std")
        classifier = Classifier.of_weights(info, weights, Preprocessing(mean=tuple(means), std=tuple(stds), classes=named))
    if dense is not None:
        classifier = classifier.at_six_sizes(dense)
    found = {str(path): classifier.classify(path, top) for path in images}
    value = {"images": [{"file": file, "classes": [guess._asdict() for guess in guesses]} for file, guesses in found.items()]}

    def show() -> None:
        for file, guesses in found.items():
            console.print(file, highlight=False, soft_wrap=True)
            console.print(grid(("class", "probability"), [(guess.name, f"{100 * guess.probability:.2f} %") for guess in guesses]))

    emit(as_json, value, show)
