"""What a run folder says: each of its files is read here and nowhere else.

An absent field stays None, never zero. A field of the wrong type is a RunError that names the file and the field.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from nar_hw.errors import RunError
from nar_hw.files import read_json
from nar_hw.latency.table import LatencyTable
from nar_hw.records import plain
from nar_hw.report.commands import Commands
from nar_hw.report.fields import Fields
from nar_hw.report.run import Bench, Comparison, Network, Run, Scored, SlotCost, Validation
from nar_hw.training.recipes import RECIPES


def read_run(folder: Path) -> Run:
    """Read the folder of a search, with whatever training, export and benchmark have put into it since.

    Files: run.json (required), the table that it names, child/ and baseline/ with child.json and history.json,
    bundle/manifest.json, bench.json (subjects: "baseline" and "child", or folders of bundles), demo.json.

    Raises RunError when run.json is absent or a file is damaged, TableError for a damaged table.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise RunError(f"a run folder must hold run.json, but {folder} does not: make it with nar-hw search ... --out {folder}")
    run = _read(path, "search result")
    child_file, baseline_file = (_optional(folder / name / "child.json", f"trained {name}") for name in ("child", "baseline"))
    manifest = _optional(folder / "bundle" / "manifest.json", "bundle")
    table, no_table = _table(folder, run)
    bench, comparisons = _bench(_optional(folder / "bench.json", "benchmark"))
    commands = _commands(folder, run, child_file, table)

    incumbent = None if table is None else tuple(slot.incumbent for slot in table.slots)
    arch = run.names("arch") or child_file.names("arch")
    measured = _measured(run, table, bench)
    child = replace(
        _network(child_file, folder / "child"),
        arch=arch,
        predicted_ms=_first(run.number("predicted_ms"), child_file.number("predicted_ms")),
        measured_ms=measured.child,
    )
    baseline = _network(baseline_file, folder / "baseline")
    baseline = replace(
        baseline,
        arch=_first(incumbent, baseline.arch),
        predicted_ms=_first(baseline.predicted_ms, _predicted(table, incumbent)),
        measured_ms=measured.baseline,
    )
    found = Run(
        folder=folder,
        model=commands.model,
        input_shape=commands.input_shape,
        child=child,
        baseline=baseline,
        target_ms=_first(run.number("target_ms"), child_file.number("target_ms")),
        scored=_scored(run, "scored"),
        finalists=_scored(run, "finalists"),
        front=_scored(run, "pareto"),
        history=tuple(item.numbers() for item in run.objects("history")),
        slots=_slots(table, arch),
        validation=_validation(table),
        bench=bench,
        comparisons=comparisons,
        measured_by=measured.how,
        facts=_facts(run, child_file, table, manifest),
        commands=commands.everything,
    )
    absent = {
        "child": (child_file.value, "the trained child", commands.train),
        "baseline": (baseline_file.value, "the trained baseline", commands.baseline),
        "measured": (child.measured_ms, "the measured latency", commands.bench),
        "scored": (found.scored or found.finalists, "what the search scored", commands.search),
        "history": (found.history, "the history of the search", commands.search),
        "table": (table, no_table, commands.profile),
        "validation": (found.validation or table is None, "the table's validation", commands.validate),
        "training": (child.curve or baseline.curve, "the training curves", commands.train),
        "bench": (bench, "the benchmark", commands.bench),
        "bundle": (manifest.value, "the exported bundle", commands.export),
    }
    missing = {part: (what, command) for part, (there, what, command) in absent.items() if not there}
    return replace(found, missing=missing)


def _read(path: Path, what: str) -> Fields:
    return Fields(read_json(path, what=what), str(path))


def _optional(path: Path, what: str) -> Fields:
    """Empty when the file is absent."""
    return _read(path, what) if path.exists() else Fields({}, str(path))


T = TypeVar("T")


def _first(*values: T | None) -> T | None:
    return next((value for value in values if value is not None), None)


def _network(file: Fields, folder: Path) -> Network:
    accuracy = file.object("accuracy")
    return Network(
        arch=file.names("arch"),
        valid_accuracy=accuracy.number("valid"),
        test_accuracy=accuracy.number("test"),
        params=file.number("params"),
        flops=file.number("flops"),
        pool_ops=file.number("pool_ops"),
        predicted_ms=file.number("predicted_ms"),
        curve=tuple(item.numbers() for item in _optional(folder / "history.json", "training history").objects("epochs")),
    )


def _scored(run: Fields, name: str) -> tuple[Scored, ...]:
    return tuple(
        Scored(
            arch=item.names("arch"),
            accuracy=accuracy,
            predicted_ms=item.number("predicted_ms"),
            measured_ms=item.number("measured_ms"),
        )
        for item in run.objects(name)
        if (accuracy := item.number("accuracy")) is not None
    )


def _table(folder: Path, run: Fields) -> tuple[LatencyTable | None, str]:
    """The table of the search, or why there is none."""
    named, wanted = run.text("table"), run.text("table_hash")
    for path in dict.fromkeys((folder / "table.json", *([] if named is None else [Path(named)]))):
        if not path.is_file():
            continue
        table = LatencyTable.load(path)
        if wanted in (None, table.hash):
            return table, ""
        return None, f"the latency table, because {path} is another one than the search used"
    return None, "the latency table"


def _predicted(table: LatencyTable | None, names: tuple[str, ...] | None) -> float | None:
    if table is None or names is None:
        return None
    return table.predict([table.operators.index(name) for name in names])


def _slots(table: LatencyTable | None, arch: tuple[str, ...] | None) -> tuple[SlotCost, ...]:
    if table is None or arch is None or len(arch) != len(table.slots):
        return ()

    def cost(row: int, name: str) -> float | None:
        value = float(table.matrix[row, table.operators.index(name)]) if name in table.operators else math.nan
        return None if math.isnan(value) else value

    return tuple(
        SlotCost(
            name=slot.name,
            incumbent=slot.incumbent,
            chosen=chosen,
            incumbent_ms=cost(row, slot.incumbent),
            chosen_ms=cost(row, chosen),
        )
        for row, (slot, chosen) in enumerate(zip(table.slots, arch, strict=True))
    )


def _validation(table: LatencyTable | None) -> Validation | None:
    if table is None or table.validation is None:
        return None
    known = Fields(table.validation, "validation of the latency table")
    pairs = [(item.number("predicted_ms"), item.number("measured_ms")) for item in known.objects("pairs")]
    whole = [(predicted, measured) for predicted, measured in pairs if predicted is not None and measured is not None]
    return Validation(
        predicted_ms=tuple(predicted for predicted, _ in whole),
        measured_ms=tuple(measured for _, measured in whole),
        floor_percent=known.number("floor_mape"),
        mape_percent=known.number("mape"),
        spearman=known.number("spearman"),
    )


def _bench(file: Fields) -> tuple[tuple[Bench, ...], tuple[Comparison, ...]]:
    rows = tuple(
        Bench(subject=_role(row.text("subject")), setting=_setting(row), values=row.numbers()) for row in file.objects("rows")
    )
    comparisons = []
    for item in file.objects("comparisons"):
        ratio, low, high = (item.number(name) for name in ("ratio", "low", "high"))
        if ratio is not None and low is not None and high is not None:
            comparisons.append(
                Comparison(
                    subject=_role(item.text("subject")),
                    against=_role(item.text("against")),
                    setting=_setting(item),
                    ratio=ratio,
                    low=low,
                    high=high,
                    rounds=item.number("rounds"),
                )
            )
    return rows, tuple(comparisons)


def _role(subject: str | None) -> str:
    """What a benchmark measured: bundles go by the names of their folders."""
    name = Path(subject or "network").name
    return {"bundle": "child", "baseline_bundle": "baseline"}.get(name, name)


def _setting(row: Fields) -> str:
    """The conditions of one row in words; those that are at their usual value are not told."""
    numbers = row.numbers()
    parts = [text for name in ("runtime", "precision") if (text := row.text(name))]
    parts += [f"batch {numbers['batch']:g}"] if "batch" in numbers else []
    parts += [f"{numbers['threads']:g} thread{'s' * (numbers['threads'] != 1)}"] if "threads" in numbers else []
    parts += [
        text
        for name, usual in (("device", "cpu"), ("memory_format", "contiguous"))
        if (text := row.text(name)) not in (None, usual)
    ]
    return ", ".join(parts)


class Measured(NamedTuple):
    """The measured ms of both networks, and how they were measured."""

    child: float | None = None
    baseline: float | None = None
    how: str | None = None


def _measured(run: Fields, table: LatencyTable | None, bench: Sequence[Bench]) -> Measured:
    """By the search, which measures on the table's scale as the target is, else by the first setting that was benchmarked."""
    child = run.number("measured_ms")
    if child is not None and table is not None:
        return Measured(
            child, table.incumbent_ms, "Measured by the search, in turn with the baseline, on the latency table's scale."
        )
    medians = {(row.setting, row.subject): row.values["p50_ms"] for row in bench if "p50_ms" in row.values}
    for setting in dict.fromkeys(row.setting for row in bench):
        if (setting, "baseline") in medians and (setting, "child") in medians:
            return Measured(
                medians[setting, "child"], medians[setting, "baseline"], f"Measured side by side by nar-hw bench: {setting}."
            )
    return Measured(child, None, None if child is None else "Measured by the search.")


def _commands(folder: Path, run: Fields, child: Fields, table: LatencyTable | None) -> Commands:
    model = run.object("model") if run.value.get("model") else child.object("model")
    shape = model.value.get("input_shape")
    sizes = tuple(size for size in shape if isinstance(size, int)) if isinstance(shape, list) else ()
    config = run.object("identity").object("config")
    recipe = child.object("recipe").value
    demo = _optional(folder / "demo.json", "demo")
    return Commands(
        folder=folder,
        model=_first(model.text("name"), None if table is None else table.model) or "MODEL",
        input_shape=sizes if table is None else table.input_shape,
        classes=_whole(model.number("num_classes")),
        manner=_first(model.text("manner"), run.text("manner")),
        operators=model.names("operators"),
        data=_first(run.text("data"), child.text("data")),
        conditions=() if table is None else _told(table.fingerprint, CONDITIONS),
        target_ms=run.number("target_ms"),
        search_options=_told({**run.value, **config.value}, SEARCH_OPTIONS),
        recipe=next((name for name, known in RECIPES.items() if plain(known) == recipe), None),
        init=child.text("init"),
        train_seed=_whole(child.number("seed")),
        demo_seed=_whole(demo.number("seed")),
    )


CONDITIONS = ("runtime", "precision", "batch", "threads")
SEARCH_OPTIONS = (
    *("reward", "strategy", "epochs", "warmup_epochs", "warmup_paths", "paths", "batch", "precision", "channels_last", "seed"),
    *("max_flops", "max_params"),
)


def _told(values: Mapping[str, Any], names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Those of ``names`` that ``values`` has, as options of a command; a switch has no value."""
    told = {name: "" if values[name] is True else str(values[name]) for name in names if values.get(name) not in (None, False)}
    return tuple((name.replace("_", "-"), text) for name, text in told.items())


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _facts(run: Fields, child: Fields, table: LatencyTable | None, manifest: Fields) -> dict[str, dict[str, str]]:
    search = {
        name: text for name, text in run.words().items() if name in ("data", "target_ms", "reward", "strategy", "seed", "note")
    }
    search |= run.object("identity").object("config").words()
    training = {name: text for name, text in child.words().items() if name in ("data", "init", "seed", "classes")}
    variants = manifest.object("variants")
    bundle = {
        precision: ", ".join(f"{name} {text}" for name, text in variants.object(precision).words().items())
        for precision in variants.value
    }
    files = {name: f"SHA-256 {text[:16]} ..." for name, text in manifest.object("files").words().items()}
    device = {} if table is None else Fields(table.fingerprint, "fingerprint").words()
    if device.get("cpu") == device.get("device"):
        device.pop("cpu", None)
    return {
        "Device of the latency table": device,
        "Latency table": {} if table is None else {**Fields(table.method, "method").words(), "hash": f"{table.hash[:16]} ..."},
        "Search": search,
        "Training of the child": training | child.object("recipe").words(),
        "Versions": run.object("versions").words() | child.object("versions").words(),
        "Bundle": bundle | files,
    }
