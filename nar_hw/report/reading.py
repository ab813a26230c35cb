"""What a run folder says: each of its files is read here and nowhere else.

An absent field stays None, never zero. A field of the wrong type is a RunError that names the file and the field.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from nar_hw.errors import RunError, TableError
from nar_hw.files import read_json
from nar_hw.latency.table import LatencyTable
from nar_hw.report.commands import Commands
from nar_hw.report.fields import Fields


@dataclass(frozen=True, kw_only=True)
class Network:
    """The baseline or the child; accuracies in [0, 1], FLOPs = multiply-adds of one image."""

    arch: tuple[str, ...] | None = None
    valid_accuracy: float | None = None
    test_accuracy: float | None = None
    params: float | None = None
    flops: float | None = None
    pool_ops: float | None = None
    predicted_ms: float | None = None
    measured_ms: float | None = None
    curve: tuple[dict[str, float], ...] = ()
    """One item per epoch of its training."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A child that the search scored."""

    arch: tuple[str, ...] | None
    accuracy: float
    predicted_ms: float | None
    measured_ms: float | None


@dataclass(frozen=True, kw_only=True)
class SlotCost:
    """What the operators of one slot cost in the latency table, in ms; None where the table has no entry."""

    name: str
    incumbent: str
    chosen: str
    incumbent_ms: float | None
    chosen_ms: float | None


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Held-out children of the table; the noise floor is the mean error in % of measuring the same children twice."""

    predicted_ms: tuple[float, ...] = ()
    measured_ms: tuple[float, ...] = ()
    floor_percent: float | None = None
    mape_percent: float | None = None
    spearman: float | None = None


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One row of a benchmark."""

    subject: str
    setting: str
    """Runtime, precision, batch and threads, in words."""
    values: Mapping[str, float]
    """By the names of the fields of `nar_hw.benchmark.BenchRow`."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two subjects of one benchmark: the ratio of their latencies with its 95 % interval."""

    subject: str
    against: str
    setting: str
    ratio: float
    low: float
    high: float
    rounds: float | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that the files of one run folder say."""

    folder: Path
    model: str
    input_shape: tuple[int, ...]
    child: Network
    baseline: Network
    target_ms: float | None
    scored: tuple[Scored, ...] = ()
    finalists: tuple[Scored, ...] = ()
    front: tuple[Scored, ...] = ()
    history: tuple[dict[str, float], ...] = ()
    slots: tuple[SlotCost, ...] = ()
    validation: Validation | None = None
    bench: tuple[Bench, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    measured_by: str | None = None
    """Where the measured latencies come from."""
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Heading -> name -> value: device, versions, settings, bundle."""
    commands: tuple[str, ...] = ()
    """How to make this run again."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Part of the report -> why it is left out and the command that makes it."""


def read_run(folder: Path) -> Run:
    """Read the folder of a search, with whatever training, export and benchmark have put into it since.

    Files: run.json (required), the table that it names, child/ and baseline/ with child.json and history.json,
    bundle/manifest.json, and bench.json with the subjects "baseline" and "child".

    Raises RunError when run.json is absent or a file is damaged.
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
    timed = _timed(bench)
    child = replace(
        _network(child_file, folder / "child"),
        arch=arch,
        predicted_ms=_first(run.number("predicted_ms"), child_file.number("predicted_ms")),
        measured_ms=_first(timed.get("child"), run.number("measured_ms")),
    )
    baseline = _network(baseline_file, folder / "baseline")
    baseline = replace(
        baseline,
        arch=_first(incumbent, baseline.arch),
        predicted_ms=_first(baseline.predicted_ms, _predicted(table, incumbent)),
        measured_ms=timed.get("baseline"),
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
        measured_by=_measured_by(timed, run),
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
    missing = {part: f"Left out: {what}. Make it with: {command}" for part, (there, what, command) in absent.items() if not there}
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
        try:
            table = LatencyTable.load(path)
        except TableError as problem:
            raise RunError(str(problem)) from problem
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
        Bench(subject=row.text("subject") or "network", setting=_setting(row), values=row.numbers())
        for row in file.objects("rows")
    )
    comparisons = []
    for item in file.objects("comparisons"):
        ratio, low, high = (item.number(name) for name in ("ratio", "low", "high"))
        if ratio is not None and low is not None and high is not None:
            comparisons.append(
                Comparison(
                    subject=item.text("subject") or "network",
                    against=item.text("against") or "network",
                    setting=_setting(item),
                    ratio=ratio,
                    low=low,
                    high=high,
                    rounds=item.number("rounds"),
                )
            )
    return rows, tuple(comparisons)


def _setting(row: Fields) -> str:
    """The conditions of one row in words; those that are at their usual value are not told."""
    numbers = row.numbers()
    parts = [text for name in ("runtime", "precision") if (text := row.text(name))]
    parts += [f"{name} {numbers[name]:g}" for name in ("batch", "threads") if name in numbers]
    parts += [
        text
        for name, usual in (("device", "cpu"), ("memory_format", "contiguous"))
        if (text := row.text(name)) not in (None, usual)
    ]
    return ", ".join(parts)


def _timed(bench: Sequence[Bench]) -> dict[str, float]:
    """The median ms of baseline and child in the first setting in which both were measured side by side."""
    medians = {(row.setting, row.subject): row.values["p50_ms"] for row in bench if "p50_ms" in row.values}
    for setting in dict.fromkeys(row.setting for row in bench):
        if (setting, "baseline") in medians and (setting, "child") in medians:
            return {subject: medians[setting, subject] for subject in ("baseline", "child")}
    return {}


def _measured_by(timed: Mapping[str, float], run: Fields) -> str | None:
    if timed:
        return "Measured side by side by nar-hw bench: median of interleaved rounds."
    return None if run.number("measured_ms") is None else "Measured by the search at its end, the baseline's not kept."


def _commands(folder: Path, run: Fields, child: Fields, table: LatencyTable | None) -> Commands:
    model = run.object("model") if run.value.get("model") else child.object("model")
    shape = model.value.get("input_shape")
    numbers = tuple(size for size in shape if isinstance(size, int)) if isinstance(shape, list) else ()
    conditions = [] if table is None else [(name, table.fingerprint.get(name)) for name in CONDITIONS]
    return Commands(
        folder=folder,
        model=_first(model.text("name"), None if table is None else table.model) or "MODEL",
        input_shape=numbers if table is None else table.input_shape,
        manner=_first(model.text("manner"), run.text("manner")),
        operators=model.names("operators"),
        data=_first(run.text("data"), child.text("data")),
        table=str(folder / "table.json"),
        conditions=tuple((name, str(value)) for name, value in conditions if value is not None),
        target_ms=run.number("target_ms"),
        reward=run.text("reward"),
        strategy=run.text("strategy"),
        seed=_whole(run.number("seed")),
        train_seed=_whole(child.number("seed")),
        init=child.text("init"),
    )


CONDITIONS = ("runtime", "precision", "batch", "threads")


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _facts(run: Fields, child: Fields, table: LatencyTable | None, manifest: Fields) -> dict[str, dict[str, str]]:
    search = {
        name: text
        for name, text in run.words().items()
        if name in ("target_ms", "reward", "strategy", "seed", "data", "manner", "note")
    }
    search |= run.object("identity").object("config").words()
    training = {name: text for name, text in child.words().items() if name in ("data", "init", "seed", "classes")}
    training |= child.object("recipe").words()
    files = manifest.object("files").words()
    return {
        "Device of the latency table": {} if table is None else Fields(table.fingerprint, "fingerprint").words(),
        "Latency table": {} if table is None else {**Fields(table.method, "method").words(), "hash": table.hash[:16]},
        "Search": search,
        "Training of the child": training,
        "Versions": {**run.object("versions").words(), **child.object("versions").words()},
        "Bundle": files,
    }
