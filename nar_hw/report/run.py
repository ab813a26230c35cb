"""What a page shows of one run: the records of its folder, and what follows from them.

An absent value is None, never zero. Accuracies are in [0, 1], times in ms, FLOPs are multiply-adds of one image.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from nar_hw.bench.rows import BenchFile, BenchRow, Comparison, Conditions
from nar_hw.bundles.manifest import MANIFEST, Manifest, load_bundle
from nar_hw.errors import RunError
from nar_hw.files import read_json
from nar_hw.latency.table import LatencyTable
from nar_hw.records import plain
from nar_hw.report.commands import Commands
from nar_hw.runtimes.config import RuntimeConfig
from nar_hw.search.record import RESULT, RunFile, load_run
from nar_hw.training.child import CHILD, Child
from nar_hw.training.result import HISTORY, EpochLog, History

BENCH, REFINE = "bench.json", "refine.json"


@dataclass(frozen=True, kw_only=True)
class Network:
    """The baseline or the child."""

    trained: Child | None
    arch: tuple[str, ...] | None
    predicted_ms: float | None
    measured_ms: float | None
    curve: tuple[EpochLog, ...]
    """One item per epoch of its training."""

    def accuracy(self, split: str) -> float | None:
        """The score on a split."""
        return None if self.trained is None else self.trained.accuracy.get(split)

    def images(self, split: str) -> int | None:
        """How many images its accuracy is of, where that was kept."""
        return None if self.trained is None else images(self.trained, split)

    def count(self, name: str) -> int | None:
        """Parameters (``params``), FLOPs (``flops``) or pool operations (``pool_ops``)."""
        return None if self.trained is None else getattr(self.trained, name)


def images(trained: Child, split: str) -> int | None:
    """How many images a split has by a child's record; None where the record does not say."""
    splits = trained.record.get("splits")
    size = splits.get(split, {}).get("size") if isinstance(splits, dict) and isinstance(splits.get(split), dict) else None
    return size if type(size) is int and size > 0 else None


class SlotCost(NamedTuple):
    """What the operators of one slot cost in the latency table, in ms; None where the table has no entry."""

    name: str
    incumbent: str
    chosen: str
    incumbent_ms: float | None
    chosen_ms: float | None


class Standing(NamedTuple):
    """A network that is trained and measured."""

    name: str
    trained: Child
    measured_ms: float


class Measured(NamedTuple):
    """The measured ms of both networks, and how they were measured."""

    child: float | None = None
    baseline: float | None = None
    how: str | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder. Its properties say what the page shows."""

    folder: Path
    search: RunFile
    table: LatencyTable | None
    no_table: str
    """What is missing where there is no table."""
    trained: Mapping[str, Child]
    """"baseline", "child" and the children of a refinement by the names of their folders, as far as they are trained."""
    curves: Mapping[str, tuple[EpochLog, ...]]
    bench: BenchFile | None
    bundle: Manifest | None
    refinement: tuple[str, ...]
    """The words that made all of it, where one command did."""

    @property
    def model(self) -> str:
        """The network's name."""
        return self.search.network.name

    @property
    def metric(self) -> str:
        """What the scores are called."""
        return self.search.metric

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.search.network.input_shape

    @property
    def first(self) -> str:
        """The name of the child for the first target."""
        target = self.search.target_ms
        known = (name for name, child in self.trained.items() if name != "baseline" and child.target_ms == target)
        return next(known, "child")

    @cached_property
    def child(self) -> Network:
        """The pick of the search."""
        return self._network(self.first, self.search.arch, self.search.predicted_ms, self.measured.child)

    @cached_property
    def baseline(self) -> Network:
        """The network that was searched."""
        arch = None if self.table is None else tuple(slot.incumbent for slot in self.table.slots)
        predicted = None
        if self.table is not None and arch is not None:
            predicted = self.table.predict([self.table.operators.index(name) for name in arch])
        return self._network("baseline", arch, predicted, self.measured.baseline)

    def _network(self, name: str, arch: tuple[str, ...] | None, predicted: float | None, measured: float | None) -> Network:
        trained = self.trained.get(name)
        arch = arch or (None if trained is None else trained.arch)
        return Network(trained=trained, arch=arch, predicted_ms=predicted, measured_ms=measured, curve=self.curves.get(name, ()))

    @cached_property
    def front(self) -> tuple[Standing, ...]:
        """The networks that are trained and measured, the baseline first, the children by falling latency and target."""
        found = [Standing(name, child, self.times[name]) for name, child in self.trained.items() if name in self.times]
        return tuple(
            sorted(found, key=lambda item: (item.name != "baseline", -item.measured_ms, -(item.trained.target_ms or 0.0)))
        )

    @cached_property
    def times(self) -> dict[str, float]:
        """Network -> measured ms: by the search, which measured the picks of all targets in turn, else by the benchmark."""
        picks = {outcome.target_ms: outcome.pick.measured_ms for outcome in self.search.outcomes}
        asked = {name: picks.get(child.target_ms or 0.0) for name, child in self.trained.items() if name != "baseline"}
        times = {name: ms for name, ms in asked.items() if ms is not None}
        if self.table is not None and times and len(times) == len(asked):
            return {"baseline": self.table.incumbent_ms, **times}
        return {role(row.subject): row.p50_ms for row in self.rows if setting(row) == setting(self.rows[0])}

    @property
    def front_by(self) -> str:
        """How `times` were measured."""
        return str(self.measured.how or "")

    @cached_property
    def measured(self) -> Measured:
        """By the search, which measures on the table's scale as the target is, else by the first setting of the benchmark."""
        child = self.search.measured_ms
        if child is not None and self.table is not None:
            how = "Measured by the search, in turn with the baseline, on the latency table's scale."
            return Measured(child, self.table.incumbent_ms, how)
        medians = {(setting(row), role(row.subject)): row.p50_ms for row in self.rows}
        for name in dict.fromkeys(setting(row) for row in self.rows):
            if (name, "baseline") in medians and (name, self.first) in medians:
                how = f"Measured side by side by nar-hw bench: {name}."
                return Measured(medians[name, self.first], medians[name, "baseline"], how)
        return Measured(child, None, None if child is None else "Measured by the search.")

    @property
    def rows(self) -> tuple[BenchRow, ...]:
        """The rows of the benchmark."""
        return () if self.bench is None else self.bench.rows

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The comparisons of the benchmark."""
        return () if self.bench is None else self.bench.comparisons

    @cached_property
    def slots(self) -> tuple[SlotCost, ...]:
        """Every slot of the child; none where the table or the arch is unknown."""
        return self.slots_of(self.child.arch)

    def slots_of(self, arch: tuple[str, ...] | None) -> tuple[SlotCost, ...]:
        """Every slot with its operator in ``arch``; none where the table or the arch is unknown."""
        table = self.table
        if table is None or arch is None or len(arch) != len(table.slots):
            return ()

        def cost(row: int, name: str) -> float | None:
            value = float(table.matrix[row, table.operators.index(name)]) if name in table.operators else math.nan
            return None if math.isnan(value) else value

        return tuple(
            SlotCost(slot.name, slot.incumbent, chosen, cost(row, slot.incumbent), cost(row, chosen))
            for row, (slot, chosen) in enumerate(zip(table.slots, arch, strict=True))
        )

    @property
    def commands(self) -> Commands:
        """The commands that make this run."""
        child = self.trained.get(self.first)
        return Commands(folder=self.folder, search=self.search, table=self.table, child=child, refinement=self.refinement)

    @cached_property
    def missing(self) -> dict[str, tuple[str, str]]:
        """Part of the page -> what is missing, and the command that makes it."""
        commands, table = self.commands, self.table
        absent = {
            "child": (self.first in self.trained, "the trained child", commands.train),
            "baseline": ("baseline" in self.trained, "the trained baseline", commands.baseline),
            "measured": (self.measured.child is not None, "the measured latency", commands.bench),
            "table": (table is not None or self.search.table_hash is None, self.no_table, commands.profile),
            "validation": (table is None or table.validation is not None, "the table's validation", commands.validate),
            "training": (any(self.curves.values()), "the training curves", commands.train),
            "bench": (self.bench is not None, "the benchmark", commands.bench),
            "bundle": (self.bundle is not None, "the exported bundle", commands.export),
        }
        return {part: (what, command) for part, (there, what, command) in absent.items() if not there}

    @cached_property
    def facts(self) -> dict[str, dict[str, str]]:
        """Heading -> name -> value: device, versions, settings, bundle."""
        table, child, bundle = self.table, self.trained.get(self.first), self.bundle
        device = {} if table is None else texts(table.fingerprint)
        if device.get("cpu") == device.get("device"):
            device.pop("cpu", None)
        search = texts({name: getattr(self.search, name) for name in ("data", "target_ms", "note")})
        training = {}
        if child is not None:
            training = {"data": child.data, "init": child.init, "seed": str(child.seed)}
            training |= {
                "classes": ", ".join(child.preprocessing.classes),
                **({} if child.recipe is None else texts(plain(child.recipe))),
            }
        variants = {} if bundle is None else plain(bundle.variants)
        files = {} if bundle is None else bundle.files
        return {
            "Device of the latency table": device,
            "Latency table": {} if table is None else {**texts(plain(table.method)), "hash": f"{table.hash[:16]} ..."},
            "Search": search | texts(plain(self.search.identity.config)),
            "Training of the child": training,
            "Versions": {**self.search.versions, **({} if child is None else child.versions)},
            "Bundle": {
                **{name: ", ".join(f"{key} {text}" for key, text in texts(value).items()) for name, value in variants.items()},
                **{name: f"SHA-256 {digest[:16]} ..." for name, digest in files.items()},
            },
        }


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """What is neither absent nor an object, as texts."""
    return {
        name: f"{value:.6g}"
        if isinstance(value, float)
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
        for name, value in values.items()
        if value is not None and not isinstance(value, dict)
    }


def role(subject: str) -> str:
    """What a benchmark measured: bundles go by the names of their folders."""
    name = Path(subject).name
    return {"bundle": "child", "baseline_bundle": "baseline"}.get(name, name)


def setting(row: Conditions) -> str:
    """The conditions of one row in words, without those that are at their usual value."""
    parts = [row.runtime, row.precision, f"batch {row.batch}", f"{row.threads} thread{'s' * (row.threads != 1)}"]
    usual = RuntimeConfig()
    return ", ".join(
        parts + [value for name in ("device", "memory_format") if (value := getattr(row, name)) != getattr(usual, name)]
    )


def read_run(folder: Path) -> Run:
    """Read the folder of a search, with whatever training, export and benchmark have put into it since.

    Files: run.json (required), its table, child/ and baseline/ with child.json and history.json, bundle/manifest.json,
    bench.json (subjects: "baseline" and "child", or folders of bundles), refine.json.

    Raises RunError when run.json is absent or a file is damaged, TableError for a damaged table.
    """
    if not (folder / RESULT).is_file():
        raise RunError(f"a run folder must hold {RESULT}, but {folder} does not: make it with nar-hw search ... --out {folder}")
    search = load_run(folder)
    table, no_table = _table(folder, search)
    places = {"baseline": folder / "baseline", "child": folder / "child"}
    places |= {path.parent.name: path.parent for path in sorted(folder.glob(f"children/*/{CHILD}"))}
    return Run(
        folder=folder,
        search=search,
        table=table,
        no_table=no_table,
        trained={name: Child.load(path) for name, path in places.items() if (path / CHILD).exists()},
        curves={name: History.load(path).epochs for name, path in places.items() if (path / HISTORY).exists()},
        bench=BenchFile.load(folder / BENCH) if (folder / BENCH).exists() else None,
        bundle=_bundle(folder),
        refinement=_refinement(folder),
    )


def _refinement(folder: Path) -> tuple[str, ...]:
    path = folder / REFINE
    return tuple(map(str, read_json(path, what="refinement").get("command", ()))) if path.exists() else ()


def _bundle(folder: Path) -> Manifest | None:
    """The bundle of the child; of a refinement, of the first of its children."""
    places = [folder / "bundle", *sorted(path for path in folder.glob("bundles/*") if path.name != "baseline")]
    return next((load_bundle(path).manifest for path in places if (path / MANIFEST).exists()), None)


def _table(folder: Path, search: RunFile) -> tuple[LatencyTable | None, str]:
    """The table of the search, or why there is none."""
    if search.table is None:
        return None, "a latency table, which this search did without"
    for path in dict.fromkeys((folder / "table.json", Path(search.table))):
        if path.is_file():
            table = LatencyTable.load(path)
            if table.hash == search.table_hash:
                return table, ""
            return None, f"the latency table, because {path} is another one than the search used"
    return None, "the latency table"
