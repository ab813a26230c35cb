"""Commands about this machine and about networks: doctor, space, count."""

from typing import Annotated, Any

import typer
from rich.table import Table

from nar_hw.cli.app import (
    Classes,
    Input,
    Json,
    LimitParams,
    Manner,
    Model,
    Operators,
    Slots,
    app,
    console,
    counted,
    emit,
    model_info,
    sentence,
)


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
        table = Table("runtime", "works", "devices", "precisions", "per-layer times", "version")
        for item in runtimes:
            version = next(iter(item["versions"].values()), "")
            table.add_row(
                item["name"],
                "yes" if item["works"] else "no",
                " ".join(item["devices"]),
                " ".join(item["precisions"]),
                "yes" if item["layers"] else "no",
                version if item["works"] else "",
            )
        console.print(table)
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
    as_json: Json = False,
) -> None:
    """The slots of a network and what may stand in them. Example: nar-hw space --model resnet18 --input 3x32x32"""
    from nar_hw.space.flops import SpaceCounts

    found = model_info(model, input, manner, operators, classes, slots, limit_params).space()
    counts = SpaceCounts(found)
    total = counts.count(found.incumbent)
    rows: list[dict[str, Any]] = [
        {
            "slot": position,
            "name": slot.name,
            "convolutions": [site.conv for site in slot.sites],
            "input": [slot.sites[0].incumbent.c_in, slot.sites[0].incumbent.h, slot.sites[0].incumbent.w],
            "output": [slot.sites[-1].incumbent.c_out, *slot.sites[-1].calls[0][1]],
            "incumbent": found.operators[slot.incumbent],
            "fixed": slot.fixed,
            "candidates": [
                {"code": code, "operator": found.operators[code], **counted(counts.candidate(position, code))}
                for code in slot.candidates
            ],
        }
        for position, slot in enumerate(found.slots)
    ]

    def show() -> None:
        table = Table("slot", "name", "input", "output", "incumbent", "candidates (code name: M multiply-adds)")
        for row in rows:
            candidates = ", ".join(f"{item['code']} {item['operator']}: {item['flops'] / 1e6:.3g}" for item in row["candidates"])
            shapes = ["x".join(map(str, row[key])) for key in ("input", "output")]
            table.add_row(str(row["slot"]), row["name"], *shapes, row["incumbent"], "fixed" if row["fixed"] else candidates)
        console.print(table)
        console.print(
            f"{len(rows)} slots, {found.size:.4g} archs; the network itself: {sentence(counted(total))}", highlight=False
        )

    value = {"model": model, "manner": manner, "slots": rows, "archs": str(found.size), **counted(total)}
    emit(as_json, value, show)


@app.command()
def count(
    model: Model,
    input: Input,
    arch: Annotated[str | None, typer.Option(help="Codes or names, separated by commas; default: the network itself.")] = None,
    manner: Manner = "conv",
    operators: Operators = None,
    slots: Slots = None,
    limit_params: LimitParams = True,
    classes: Classes = None,
    as_json: Json = False,
) -> None:
    """Parameters, FLOPs and pool operations. Example: nar-hw count --model lresnet50e_ir --input 3x112x112 --manner block"""
    from nar_hw.space.flops import SpaceCounts, count_module

    info = model_info(model, input, manner, operators, classes, slots, limit_params)
    if arch is None:
        value = {"model": model, "input_shape": list(info.input_shape), **counted(count_module(info.build(), info.input_shape))}
        emit(as_json, value, lambda: console.print(sentence(value), highlight=False))
        return
    found = info.space()
    counts = SpaceCounts(found)
    codes = found.parse(arch)
    total = counts.count(codes)
    rows: list[dict[str, Any]] = [
        {"slot": slot.name, "operator": name, **counted(cost)}
        for slot, name, cost in zip(found.slots, found.names(codes), counts.per_slot(codes), strict=True)
    ]

    def show() -> None:
        table = Table("slot", "operator", "params", "multiply-adds", "pool operations")
        for row in rows:
            table.add_row(row["slot"], row["operator"], *(f"{row[key]:,}" for key in ("params", "flops", "pool_ops")))
        console.print(table)
        console.print(sentence(counted(total)), highlight=False)

    value = {
        "model": model,
        "input_shape": list(info.input_shape),
        "arch": list(found.names(codes)),
        **counted(total),
        "slots": rows,
    }
    emit(as_json, value, show)
