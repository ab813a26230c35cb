"""The commands that make a run again, and the one that makes what a report lacks."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Commands:
    """What the command lines of one run are made of; None where the run does not say."""

    folder: Path
    model: str
    input_shape: tuple[int, ...]
    manner: str | None = None
    operators: tuple[str, ...] | None = None
    data: str | None = None
    table: str | None = None
    conditions: tuple[tuple[str, str], ...] = ()
    """Runtime, precision, batch, ... of the table."""
    target_ms: float | None = None
    reward: str | None = None
    strategy: str | None = None
    seed: int | None = None
    train_seed: int | None = None
    init: str | None = None

    @property
    def profile(self) -> str:
        """Measures the latency table."""
        return self._line("profile", *self._network, *_options(self.conditions), "-o", self._table)

    @property
    def search(self) -> str:
        """Finds the arch."""
        options = (
            ("data", self._data),
            ("table", self._table),
            ("target-ms", "MS" if self.target_ms is None else f"{self.target_ms:g}"),
            ("reward", self.reward),
            ("strategy", self.strategy),
            ("seed", self.seed),
            ("out", self.folder),
        )
        return self._line("search", *self._network, *_options(options))

    @property
    def train(self) -> str:
        """Trains the child."""
        return self._train(str(self.folder), "child", self.init)

    @property
    def baseline(self) -> str:
        """Trains the network that the search started from, by the same recipe."""
        return self._train("incumbent", "baseline", "scratch" if self.init == "scratch" else None)

    @property
    def export(self) -> str:
        """Makes the bundle."""
        return self._line("export", str(self.folder / "child"), "--to", "onnx", "--out", str(self.folder / "bundle"))

    @property
    def bench(self) -> str:
        """Measures baseline and child side by side."""
        bundle, against, out = (str(self.folder / name) for name in ("bundle", "baseline-bundle", "bench.json"))
        return self._line("bench", bundle, "--against", against, "-o", out)

    @property
    def validate(self) -> str:
        """Measures held-out children against the table's predictions."""
        return self._line("table", "validate", self._table)

    @property
    def report(self) -> str:
        """Makes the report."""
        return self._line("report", str(self.folder))

    @property
    def everything(self) -> tuple[str, ...]:
        """All steps in their order."""
        return (self.profile, self.search, self.baseline, self.train, self.export, self.bench, self.report)

    @property
    def _data(self) -> str:
        return self.data or "DATA"

    @property
    def _table(self) -> str:
        return self.table or "table.json"

    @property
    def _network(self) -> Sequence[str]:
        shape = "x".join(map(str, self.input_shape)) or None
        names = None if self.operators is None else ",".join(self.operators)
        manner = None if self.manner == "conv" else self.manner
        return _options((("model", self.model), ("input", shape), ("manner", manner), ("operators", names)))

    def _train(self, arch: str, name: str, init: str | None) -> str:
        options = (
            ("arch", arch),
            ("model", self.model),
            ("data", self._data),
            ("init", init),
            ("seed", self.train_seed),
            ("out", self.folder / name),
        )
        return self._line("train", *_options(options))

    def _line(self, *words: str) -> str:
        return shlex.join(["nar-hw", *words])


def _options(pairs: Sequence[tuple[str, object]]) -> list[str]:
    return [word for name, value in pairs if value is not None for word in (f"--{name}", str(value))]
