"""The commands that make a run again, and the one that makes what a report lacks."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Commands:
    """What the command lines of one run are made of; what the run does not say is left to the commands' defaults."""

    folder: Path
    model: str
    input_shape: tuple[int, ...]
    classes: int | None = None
    manner: str | None = None
    operators: tuple[str, ...] | None = None
    data: str | None = None
    conditions: tuple[tuple[str, str], ...] = ()
    """Runtime, precision, batch, ... of the table."""
    target_ms: float | None = None
    search_options: tuple[tuple[str, str], ...] = ()
    """Reward, strategy, epochs, ..."""
    recipe: str | None = None
    """Name of the child's recipe, where it has one."""
    init: str | None = None
    train_seed: int | None = None
    demo_seed: int | None = None
    """Where the run is the demo's."""

    @property
    def profile(self) -> str:
        """Measures the latency table."""
        shape = "x".join(map(str, self.input_shape)) or "CxHxW"
        network = (("model", self.model), ("input", shape), ("classes", self.classes), *self._space)
        return _line("profile", *_options(network), *_options(self.conditions), "-o", str(self.folder / "table.json"))

    @property
    def search(self) -> str:
        """Finds the arch."""
        options = (
            ("model", self.model),
            ("data", self._data),
            ("table", self.folder / "table.json"),
            ("target-ms", "MS" if self.target_ms is None else f"{self.target_ms:g}"),
            *self.search_options,
            ("out", self.folder),
        )
        return _line("search", *_options(options))

    @property
    def train(self) -> str:
        """Trains the child."""
        baseline = self.folder / "baseline" if self.init == "inherited" else None
        options = (("arch", self.folder), ("data", self._data), *self._training, ("init", self.init), ("baseline", baseline))
        return _line("train", *_options(options), "--out", str(self.folder / "child"))

    @property
    def baseline(self) -> str:
        """Trains the network that the search started from, by the child's recipe."""
        options = (("arch", "incumbent"), ("model", self.model), ("data", self._data), *self._space, *self._training)
        return _line("train", *_options(options), "--out", str(self.folder / "baseline"))

    @property
    def export(self) -> str:
        """Makes the child's bundle."""
        return self._export("child", "bundle")

    @property
    def bench(self) -> str:
        """Measures baseline and child side by side."""
        bundle, against = (str(self.folder / name) for name in ("bundle", "baseline_bundle"))
        return f"{_line('bench', bundle, '--against', against, '--json')} > {shlex.quote(str(self.folder / 'bench.json'))}"

    @property
    def validate(self) -> str:
        """Measures held-out children against the table's predictions."""
        return _line("table", "validate", str(self.folder / "table.json"))

    @property
    def everything(self) -> tuple[str, ...]:
        """All steps in their order."""
        if self.demo_seed is not None:
            return (_line("demo", "--out", str(self.folder), "--seed", str(self.demo_seed)),)
        exports = (self._export("baseline", "baseline_bundle"), self.export)
        report = _line("report", str(self.folder))
        return (self.profile, self.search, self.baseline, self.train, *exports, self.bench, report)

    @property
    def _data(self) -> str:
        return self.data or "DATA"

    @property
    def _space(self) -> tuple[tuple[str, str | None], ...]:
        names = None if self.operators is None else ",".join(self.operators)
        return (("manner", None if self.manner == "conv" else self.manner), ("operators", names))

    @property
    def _training(self) -> tuple[tuple[str, object], ...]:
        return (("recipe", self.recipe), ("seed", self.train_seed))

    def _export(self, network: str, bundle: str) -> str:
        return _line("export", str(self.folder / network), "--to", "onnx", "--out", str(self.folder / bundle))


def _line(*words: str) -> str:
    return shlex.join(["nar-hw", *words])


def _options(pairs: Sequence[tuple[str, object]]) -> list[str]:
    return [word for name, value in pairs if value is not None for word in (f"--{name}", str(value)) if word]
