"""The commands that make a run again, from its records, and the one that makes what a report lacks."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from nar_hw.latency.table import LatencyTable
from nar_hw.records import command
from nar_hw.search.record import RunFile
from nar_hw.training.child import Child


@dataclass(frozen=True, kw_only=True)
class Commands:
    """The command lines of one run; what its records do not say is left to the commands' defaults."""

    folder: Path
    search: RunFile
    table: LatencyTable | None
    child: Child | None
    refinement: tuple[str, ...]
    """The words that made all of it, where one command did."""

    @property
    def profile(self) -> str:
        """Measures the latency table."""
        conditions = [] if self.table is None else self.table.config.options()
        return command("profile", *self.search.network.options(but=("skips",)), *conditions, "-o", self._in("table.json"))

    @property
    def find(self) -> str:
        """Finds the arch."""
        identity = self.search.identity
        words = ["--model", self.search.network.name, *self._data]
        if identity.target_ms is None:  # no table says what is searched
            words += self.search.network.options(but=("name", "input_shape", "num_classes", "skips"))
        else:
            for name in self.search.tables or ("table.json",):
                words += ["--table", self._in(name)]
            for target in (identity.target_ms, *identity.more_targets_ms):
                words += ["--target-ms", f"{target:g}"]
        words += ["--allow-mismatch"] if self.search.allowed_mismatch else []
        return command("search", *words, *identity.config.options(), "--out", str(self.folder))

    @property
    def train(self) -> str:
        """Trains the child."""
        inherited = self.child is not None and self.child.init == "inherited"
        words = ["--init", "inherited", "--baseline", self._in("baseline")] if inherited else []
        return command("train", "--arch", str(self.folder), *self._data, *self._training, *words, "--out", self._in("child"))

    @property
    def baseline(self) -> str:
        """Trains the network that the search started from, by the child's recipe."""
        network = self.search.network.options(but=("input_shape", "num_classes", "skips"))
        return command("train", "--arch", "incumbent", *network, *self._data, *self._training, "--out", self._in("baseline"))

    @property
    def score(self) -> str:
        """Scores weights of that network that are there already."""
        words = ["--model", self.search.network.name, "--weights", "WEIGHTS", *self._data]
        return command("eval", *words, "--out", self._in("baseline"))

    @property
    def export(self) -> str:
        """Makes the child's bundle."""
        return self._export("child", "bundle")

    @property
    def bench(self) -> str:
        """Measures baseline and child side by side."""
        line = command("bench", self._in("bundle"), "--against", self._in("baseline_bundle"), "--json")
        return f"{line} > {shlex.quote(self._in('bench.json'))}"

    @property
    def validate(self) -> str:
        """Measures held-out children against the table's predictions."""
        return command("table", "validate", self._in("table.json"))

    @property
    def everything(self) -> tuple[str, ...]:
        """All steps in their order."""
        if self.refinement:
            return (command(*self.refinement, "--out", str(self.folder)),)
        exports = (self._export("baseline", "baseline_bundle"), self.export)
        report = command("report", str(self.folder))
        profile = () if self.search.table_hash is None else (self.profile,)
        return (*profile, self.find, self.baseline, self.train, *exports, self.bench, report)

    def _in(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def _data(self) -> list[str]:
        return ["--data", self.search.data or "DATA"]

    @property
    def _training(self) -> list[str]:
        if self.child is None or self.child.recipe is None:
            return []
        return [*self.child.recipe.options(), "--seed", str(self.child.seed)]

    def _export(self, network: str, bundle: str) -> str:
        return command("export", self._in(network), "--to", "onnx", "--out", self._in(bundle))
