"""The result of a search on disk: run.json, its archs as names of operators."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nar_hw.errors import RunError
from nar_hw.models.info import ModelInfo
from nar_hw.records import Record, read_record, write_record
from nar_hw.search.config import SearchConfig
from nar_hw.search.result import Standing
from nar_hw.space.spec import Manner
from nar_hw.tasks import Task

RESULT = "run.json"
SCHEMA = 1


class ScoredNames(Record, frozen=True, kw_only=True):
    """An arch with what is known of it; see `nar_hw.search.result.Scored`."""

    arch: tuple[str, ...]
    accuracy: float
    predicted_ms: float | None
    measured_ms: float | None = None
    load: float


class OutcomeNames(Record, frozen=True, kw_only=True):
    """What was found for one target; see `nar_hw.search.result.Outcome`."""

    target_ms: float | None
    met: bool
    note: str
    pick: ScoredNames
    others: tuple[Standing, ...] = ()
    finalists: tuple[ScoredNames, ...]


class Identity(Record, frozen=True, kw_only=True):
    """What must be equal for a search to be resumed."""

    model: ModelInfo | None
    manner: Manner
    slots: tuple[tuple[str, tuple[str, ...]], ...]
    """Slot and the names of its candidates."""
    data: Mapping[str, Any]
    """The task's record."""
    target_ms: float | None
    """None where the search had no latency table."""
    table_hash: str | None
    more_targets_ms: tuple[float, ...] = ()
    """Of the other tables, or further targets of the only one."""
    more_tables: tuple[str, ...] = ()
    """Their hashes."""
    config: SearchConfig
    weights: str | None = None
    """SHA-256 of the trained weights in which candidates were fitted, or of shared weights that are not trained further."""


class RunFile(Record, frozen=True, kw_only=True):
    """What run.json says: the outcome of a search, and what it was asked for."""

    model: ModelInfo | None
    manner: Manner
    operators: tuple[str, ...]
    """All candidates."""
    data: str | None
    target_ms: float | None
    reward: str
    strategy: str
    seed: int
    table: str | None
    """Where the first table lies; None where there was none."""
    tables: tuple[str, ...] = ()
    """The files of all tables, in the folder."""
    table_hash: str | None
    allowed_mismatch: tuple[str, ...] = ()
    versions: Mapping[str, str]
    arch: tuple[str, ...]
    """The pick, which is to be trained."""
    predicted_ms: float | None
    measured_ms: float | None = None
    accuracy: float
    load: float
    others: tuple[Standing, ...] = ()
    met: bool
    note: str
    pick: ScoredNames
    finalists: tuple[ScoredNames, ...]
    pareto: tuple[ScoredNames, ...]
    more: tuple[OutcomeNames, ...] = ()
    """What was found for further targets."""
    history: tuple[Mapping[str, float], ...]
    scored: tuple[ScoredNames, ...]
    identity: Identity

    @property
    def outcomes(self) -> tuple[OutcomeNames, ...]:
        """What was found for each target, in the order asked."""
        first = OutcomeNames(
            target_ms=self.target_ms, met=self.met, note=self.note, pick=self.pick, others=self.others, finalists=self.finalists
        )
        return (first, *self.more)

    def outcome(self, target_ms: float | None = None) -> OutcomeNames:
        """What was found for a target, by default the first. Raises RunError for a target that was not asked for."""
        if target_ms is None:
            return self.outcomes[0]
        known = {item.target_ms: item for item in self.outcomes if item.target_ms is not None}
        found = next((item for target, item in known.items() if math.isclose(target, target_ms)), None)
        if found is None:
            asked = f"{', '.join(f'{target:g}' for target in known)} ms" if known else "none"
            raise RunError(f"the target must be one that the search was asked for ({asked}), but got {target_ms:g}")
        return found

    @property
    def network(self) -> ModelInfo:
        """The network that was searched. Raises RunError where the search did not keep how to build it."""
        if self.model is None:
            raise RunError("the search did not keep how to build its network: pass model= to nar_hw.search")
        return self.model

    @property
    def metric(self) -> str:
        """What the task calls its scores, which is accuracy where it does not say."""
        return str(self.identity.data.get("metric", Task.metric))

    def save(self, folder: Path) -> None:
        """Write run.json, atomically."""
        write_record(folder / RESULT, self, schema=SCHEMA)


def load_run(folder: Path) -> RunFile:
    """Read run.json. Raises RunError in one line, also for a search that is not finished."""
    return read_record(folder / RESULT, RunFile, what="search result", schema=SCHEMA, fix="search again or choose another folder")
