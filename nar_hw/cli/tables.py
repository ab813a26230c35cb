"""Commands about latency tables: table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nar_hw.cli.app import (
    Json,
    Seed,
    console,
    emit,
    grid,
    output_files,
    progress_bar,
    table_app,
)
from nar_hw.cli.values import MOST_CHILDREN, choice, whole
from nar_hw.errors import UserError
from nar_hw.runtimes import PRECISIONS, RUNTIMES

if TYPE_CHECKING:
    from nar_hw.latency.table import LatencyTable


@table_app.command("list")
def table_list(
    folder: Annotated[Path | None, typer.Argument(help="Folder of tables; default: the tables that ship with nar_hw.")] = None,
    device: Annotated[str | None, typer.Option(metavar="TEXT", help="Part of the device's name.")] = None,
    runtime: Annotated[str | None, choice("--runtime", "Only this runtime.", "runtime", RUNTIMES, hidden=("fake",))] = None,
    precision: Annotated[str | None, choice("--precision", "Only this precision.", "precision", PRECISIONS)] = None,
    model: Annotated[str | None, typer.Option(metavar="NETWORK", help="Only this network.")] = None,
    as_json: Json = False,
) -> None:
    """The tables of a folder and of the folders in it. Example: nar-hw table list --runtime onnxruntime --model resnet18"""
    from nar_hw.errors import TableError
    from nar_hw.latency.table import LatencyTable, shipped_tables

    if folder is not None and not folder.is_dir():
        raise TableError(
            f"a folder of tables must exist, but {folder} does not: leave it out for the tables that ship with nar_hw"
        )
    paths = shipped_tables() if folder is None else tables_in(folder)
    found, skipped = [], {}
    for path in paths:
        try:
            found.append({"file": str(path), **outline(LatencyTable.load(path))})
        except UserError as problem:
            skipped[str(path)] = str(problem)
    asked = {"runtime": runtime, "precision": precision, "model": model}
    tables = [
        row
        for row in found
        if all(value in (None, row[key]) for key, value in asked.items())
        and (device or "").lower() in (row["device"] or "").lower()
    ]

    def show() -> None:
        for row in tables:
            shape = "x".join(map(str, row["input_shape"]))
            error = "not validated" if row["mape_percent"] is None else f"error {row['mape_percent']:.1f} %"
            console.print(
                f"{row['model']} {shape}  {row['runtime']} {row['precision']}, batch {row['batch']}, "
                f"{row['threads']} threads  {row['incumbent_ms']:.4g} ms, {error}",
                highlight=False,
                soft_wrap=True,
            )
            console.print(f"  {row['device']}\n  {row['file']}", style="dim", highlight=False, soft_wrap=True, markup=False)
        if not tables:
            console.print("no such tables here: make one with `nar-hw profile`")
        for problem in skipped.values():
            console.print(f"no table: {problem}", style="dim", highlight=False, soft_wrap=True, markup=False)

    emit(as_json, {"tables": tables, "skipped": skipped}, show)


@table_app.command("show")
def table_show(path: Path, as_json: Json = False) -> None:
    """What a table says, slot by slot. Example: nar-hw table show table.json"""
    from nar_hw.latency.table import LatencyTable

    table = LatencyTable.load(path)
    slots: list[dict[str, Any]] = [
        {"slot": slot.name, "ms": {name: float(row[table.operators.index(name)]) for name in slot.candidates}}
        for slot, row in zip(table.slots, table.matrix, strict=True)
    ]
    ties = table.ties()

    def show() -> None:
        names = list(dict.fromkeys(name for row in slots for name in row["ms"]))
        rows = [[row["slot"], *(f"{row['ms'][name]:.4f}" if name in row["ms"] else "" for name in names)] for row in slots]
        console.print(grid(("slot", *(f"{name} ms" for name in names)), rows))
        where: dict[str, list[str]] = {}
        for slot, pairs in ties.items():
            where.setdefault(", ".join(f"{a} = {b}" for a, b in pairs), []).append(slot)
        for tied, same in where.items():
            console.print(f"within noise: {tied}\n  in {', '.join(same)}", highlight=False, soft_wrap=True)
        show_outline(table, path)

    emit(
        as_json, {**outline(table), "slots": slots, "ties": {slot: list(map(list, pairs)) for slot, pairs in ties.items()}}, show
    )


@table_app.command("predict")
def table_predict(
    path: Path,
    arch: Annotated[str, typer.Option(metavar="ARCH", help="Codes or names, separated by commas, or incumbent.")],
    as_json: Json = False,
) -> None:
    """The latency of one arch. Example: nar-hw table predict table.json --arch 0,0,2,0,1,0,0,0"""
    from nar_hw.latency.table import LatencyTable

    table = LatencyTable.load(path)
    ms = table.predict(table.parse(arch))
    high = table.at_percentile(90).predict(table.parse(arch)) if table.p90 is not None else None
    value = {"predicted_ms": ms, "predicted_p90_ms": high, "incumbent_ms": table.incumbent_ms}
    most = "" if high is None else f" (90 % of the runs up to {high:.4f} ms)"
    emit(
        as_json,
        value,
        lambda: console.print(f"{ms:.4f} ms{most}; the network itself: {table.incumbent_ms:.4f} ms", highlight=False),
    )


@table_app.command("validate")
def table_validate(
    path: Path,
    children: Annotated[int, whole("--children", "Held-out random children to measure.", 3, MOST_CHILDREN)] = 40,
    seed: Seed = 1,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a scatter of predicted against measured to this PNG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure held-out children, keep the errors in the table. Example: nar-hw table validate table.json --plot table.png"""
    from nar_hw.latency.table import LatencyTable
    from nar_hw.report.scatter import validation_png
    from nar_hw.steps.profile import revalidate

    with output_files(path, plot), progress_bar() as progress:
        table = revalidate(LatencyTable.load(path), children=children, seed=seed, progress=progress)
        table.save(path)
    if plot is not None:
        validation_png(table, plot)
    emit(as_json, outline(table), lambda: show_outline(table, path))


@table_app.command("energy")
def table_energy(path: Path, as_json: Json = False) -> None:
    """Measure energies and keep them in the table, for search --max-energy. Example: nar-hw table energy table.json"""
    from nar_hw.latency.table import LatencyTable
    from nar_hw.steps.profile import with_energy

    with output_files(path), progress_bar() as progress:
        table = with_energy(LatencyTable.load(path), progress=progress)
        table.save(path)
    emit(as_json, outline(table), lambda: show_outline(table, path))


@table_app.command("diff")
def table_diff(
    first: Annotated[Path, typer.Argument(help="A table; or a folder of the tables of several devices.")],
    second: Annotated[
        Path | None,
        typer.Argument(help="Another of the same network; or a folder with the same names of files. None: all pairs in FIRST."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Two tables of one network slot by slot, or those of folders in pairs: devices, runtimes or days.

    Example: nar-hw table diff monday.json friday.json
    """
    if first.is_dir():
        diff_folders(first, second, as_json)
        return
    if second is None:
        raise UserError(f"a table is compared with another, but got {first} alone: add one, or give a folder of tables")
    from nar_hw.latency.diff import diff
    from nar_hw.latency.table import LatencyTable
    from nar_hw.records import plain

    found = diff(LatencyTable.load(first), LatencyTable.load(second))
    real = [item for item in found.changes if item.beyond_noise]

    def show() -> None:
        names = list(dict.fromkeys(item.operator for item in found.changes))
        rows = []
        for slot in dict.fromkeys(item.slot for item in found.changes):
            cells = {
                item.operator: f"{item.second_ms / item.first_ms:.2f}{'' if item.beyond_noise else ' ~'}"
                for item in found.changes
                if item.slot == slot
            }
            rows.append([slot, *(cells.get(name, "") for name in names)])
        console.print(grid(("slot", *names), rows))
        for name, (old, new) in found.conditions.items():
            console.print(f"{name}: {old} -> {new}", highlight=False, soft_wrap=True, markup=False)
        before, after = found.incumbent_ms
        rank = "" if found.spearman is None else f"Rank correlation {found.spearman:.3f}."
        console.print(
            f"second / first; ~ within noise. {len(real)} of {len(found.changes)} differences exceed the noise. "
            f"The network itself: {before:.4g} -> {after:.4g} ms ({after / before:.2f}). {rank}",
            highlight=False,
        )
        flips: dict[tuple[str, str], list[str]] = {}
        for slot, faster, slower in found.flips:
            flips.setdefault((faster, slower), []).append(slot)
        for (faster, slower), where in flips.items():
            console.print(
                f"{faster} is faster than {slower} in the first and slower in the second: {', '.join(where)}", highlight=False
            )

    changes = [{**plain(item), "beyond_noise": item.beyond_noise} for item in found.changes]
    value = {**plain(found), "beyond_noise": len(real), "changes": changes}
    emit(as_json, value, show)


def tables_in(folder: Path) -> list[Path]:
    """The JSON files in a folder and in the folders in it, one for each device."""
    return sorted({*folder.glob("*.json"), *folder.glob("*/*.json")})


def diff_folders(first: Path, second: Path | None, as_json: bool) -> None:
    """Compare the tables in a folder that are of one network, all pairs, or those of two folders that have the same names.

    Raises TableError where nothing can be compared, and of the first file that is no table.
    """
    from itertools import combinations

    from nar_hw.errors import TableError
    from nar_hw.latency.diff import diff
    from nar_hw.latency.table import LatencyTable
    from nar_hw.records import plain

    if second is not None and not second.is_dir():
        raise UserError(f"a folder is compared with a folder, but {second} is none: give two tables, or two folders")
    tables = {path: LatencyTable.load(path) for path in [*tables_in(first), *([] if second is None else tables_in(second))]}

    def network(path: Path) -> tuple[object, ...]:
        of = tables[path].network
        return of.name, of.input_shape, of.manner, tuple(slot.name for slot in tables[path].slots)

    if second is None:
        pairs = [pair for pair in combinations(tables, 2) if network(pair[0]) == network(pair[1])]
    else:
        others = {path.relative_to(first): path for path in tables_in(first)}
        pairs = [(others[name], path) for path in tables_in(second) if (name := path.relative_to(second)) in others]
    if not pairs:
        how = "of one network" if second is None else "with the same names"
        folders = " and ".join(map(str, filter(None, (first, second))))
        raise TableError(f"there must be two tables {how} in {folders}, but there are none")
    rows = []
    for one, other in pairs:
        found = diff(tables[one], tables[other])
        real = sum(item.beyond_noise is True for item in found.changes)
        rows.append(
            {
                "model": tables[one].network.name,
                "first": str(one),
                "second": str(other),
                "incumbent_ms": list(found.incumbent_ms),
                "ratio": found.incumbent_ms[1] / found.incumbent_ms[0],
                "spearman": found.spearman,
                "entries": len(found.changes),
                "beyond_noise": real,
                "flips": plain(list(found.flips)),
                "conditions": plain(found.conditions),
            }
        )

    def show() -> None:
        cells = [
            (
                row["model"],
                row["first"],
                row["second"],
                f"{row['ratio']:.2f}",
                "" if row["spearman"] is None else f"{row['spearman']:.3f}",
                f"{row['beyond_noise']} of {row['entries']}",
                str(len(row["flips"])),
            )
            for row in rows
        ]
        console.print(grid(("network", "first", "second", "ratio", "rank correlation", "beyond noise", "flips"), cells))
        console.print(
            "ratio: of the network itself, second / first; flips: pairs of operators that change their order beyond noise"
        )

    emit(as_json, {"pairs": rows}, show)


def outline(table: "LatencyTable") -> dict[str, Any]:
    """What a table says as a whole, for JSON."""
    fastest, slowest = table.bounds()
    validation, cache = table.validation, table.cache
    return {
        "model": table.network.name,
        "input_shape": list(table.network.input_shape),
        "manner": table.network.manner,
        **{key: table.fingerprint.get(key) for key in ("device", "runtime", "runtime_version", "precision", "batch", "threads")},
        "method": table.method.name,
        "slots": len(table.slots),
        "entries": len(table.entries),
        "fixed_ms": table.fixed_ms,
        "cache": cache and {"params": cache.params, "ms_per_million": cache.ms_per_million},
        "bend": table.bend and {"per_ms": table.bend.per_ms, "at_ms": table.bend.at_ms},
        "incumbent_ms": table.incumbent_ms,
        "incumbent_mj": None if table.energy is None else table.energy.incumbent_mj,
        "energy_mape_percent": None if table.energy is None else table.energy.mape,
        "incumbent_mib": None if table.memory is None else table.memory.incumbent_mib,
        "memory_mape_percent": None if table.memory is None else table.memory.mape,
        "incumbent_p90_ms": None if table.p90 is None else table.at_percentile(90).incumbent_ms,
        "percentile": table.percentile or 50,
        "incumbent_predicted_ms": table.predict(table.incumbent),
        "fastest_ms": fastest,
        "slowest_ms": slowest,
        "p90_mape_percent": None if validation is None else validation.p90_mape,
        "mape_percent": None if validation is None else validation.mape,
        "noise_floor_percent": None if validation is None else validation.floor_mape,
        "noise_between_sessions_percent": None if validation is None or not validation.reloaded else validation.reloaded.mape,
        "spearman": None if validation is None else validation.spearman,
        "notes": list(table.notes),
    }


def show_outline(table: "LatencyTable", path: Path) -> None:
    """Print what a table says as a whole."""
    whole = outline(table)
    shape = "x".join(map(str, whole["input_shape"]))
    lines = [
        f"{path}: {whole['model']} {shape} on {whole['device']}",
        f"{whole['runtime']} {whole['runtime_version']}, {whole['precision']}, "
        f"batch {whole['batch']}, {whole['threads']} threads",
        f"the network itself {whole['incumbent_ms']:.4g} ms, predicted {whole['incumbent_predicted_ms']:.4g} ms; "
        f"archs are predicted from {whole['fastest_ms']:.4g} to {whole['slowest_ms']:.4g} ms",
    ]
    if (cache := table.cache) is not None:
        lines.append(
            f"networks of less than {cache.params / 1e6:.3g} million parameters stay in the caches: they save "
            f"{cache.ms_per_million:.3g} ms for each million less"
        )
    if (bend := table.bend) is not None:
        least, most = (bend.slope(bend.straight(ms)) for ms in table.bounds())
        lines.append(
            f"times grow faster than sums: an operator costs {least:.2f} times its entry in the fastest network, "
            f"{most:.2f} times in the slowest"
        )
    if whole["mape_percent"] is not None:
        again = whole["noise_between_sessions_percent"]
        between = "" if again is None else f", {again:.1f} % between sessions"
        lines.append(
            f"held-out children: error {whole['mape_percent']:.1f} % "
            f"(noise floor {whole['noise_floor_percent']:.1f} %{between}), rank correlation {whole['spearman']:.3f}"
        )
    if whole["incumbent_mj"] is not None:
        error = whole["energy_mape_percent"]
        known = "" if error is None else f"; held-out children: error {error:.1f} %"
        lines.append(f"an image takes the network itself {whole['incumbent_mj']:.4g} mJ of the whole device{known}")
    if whole["incumbent_mib"] is not None:
        lines.append(
            f"loaded and run, the network itself takes {whole['incumbent_mib']:.4g} MiB; children by their parameters: "
            f"error {whole['memory_mape_percent']:.1f} % of each when the others are fitted"
        )
    if whole["percentile"] != 50:
        lines.append(f"all of these are {whole['percentile']}th percentiles of single runs")
    elif whole["incumbent_p90_ms"] is not None:
        error = (
            ""
            if whole["p90_mape_percent"] is None
            else f"; 90th percentiles of held-out children: error {whole['p90_mape_percent']:.1f} %"
        )
        lines.append(f"90 % of the runs of the network itself take up to {whole['incumbent_p90_ms']:.4g} ms{error}")
    lines += [f"note: {note}" for note in whole["notes"]]
    console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
