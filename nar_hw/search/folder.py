"""A search on disk: run.json once it is finished, and until then a checkpoint after every epoch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import structs

from nar_hw._version import versions
from nar_hw.distributed import rank
from nar_hw.errors import RunError, SpaceError
from nar_hw.models.info import ModelInfo
from nar_hw.models.weights import save_weights
from nar_hw.records import check_same, plain
from nar_hw.search.config import SearchConfig
from nar_hw.search.fitting import STATE as FIT
from nar_hw.search.record import RESULT, Identity, OutcomeNames, RunFile, ScoredNames, load_run
from nar_hw.search.result import Outcome, Scored, SearchResult
from nar_hw.search.supernet import Supernet
from nar_hw.space.space import SearchSpace
from nar_hw.tasks import Task
from nar_hw.training.checkpoints import load_state, save_state

if TYPE_CHECKING:
    from nar_hw.latency.table import LatencyTable

STATE, WEIGHTS, TABLE = "state.pt", "supernet.safetensors", "table.json"


class SearchFolder:
    """The folder of one search; it refuses the checkpoint or result of another."""

    def __init__(
        self,
        path: Path,
        space: SearchSpace,
        task: Task,
        tables: "Sequence[LatencyTable]",
        *,
        targets_ms: Sequence[float],
        config: SearchConfig,
        model: ModelInfo | None,
        weights: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.space, self.tables = space, tables
        self.identity = Identity(
            model=model,
            manner=space.manner,
            slots=tuple((slot.name, tuple(space.operators[code] for code in slot.candidates)) for slot in space.slots),
            data=task.record,
            target_ms=targets_ms[0] if tables else None,
            table_hash=tables[0].hash if tables else None,
            more_targets_ms=tuple(targets_ms[1:]),
            more_tables=tuple(table.hash for table in tables[1:]),
            config=config,
            weights=weights,
        )
        """What must be equal for a search to be resumed."""

    def refuse_to_overwrite(self) -> None:
        """Raises RunError when there is a search in the folder, whichever it is."""
        if found := [name for name in (RESULT, STATE) if (self.path / name).exists()]:
            raise RunError(f"{self.path} holds a search already ({found[0]}): resume it, or choose another folder")

    @property
    def _files(self) -> "dict[str, LatencyTable]":
        """The tables by the names of their files here: table.json, table-2.json and so on."""
        return {TABLE if number == 1 else f"table-{number}.json": table for number, table in enumerate(self.tables, 1)}

    def tidy(self) -> None:
        """Delete the checkpoint of a search that is finished, which a killed process may have left."""
        if rank() != 0:
            return
        if (self.path / RESULT).exists():
            for name in (STATE, FIT):
                (self.path / name).unlink(missing_ok=True)

    def finished(self) -> SearchResult | None:
        """The result of this very search, if it is there. Raises RunError for one with other settings or a damaged one."""
        path = self.path / RESULT
        if not path.exists():
            return None
        found = load_run(self.path)
        check_same(found.identity, self.identity, where=str(path))
        return SearchResult(
            outcomes=tuple(
                Outcome(
                    target_ms=item.target_ms,
                    pick=self._scored(item.pick),
                    others=item.others,
                    finalists=tuple(map(self._scored, item.finalists)),
                )
                for item in found.outcomes
            ),
            pareto=tuple(map(self._scored, found.pareto)),
            scored=tuple(map(self._scored, found.scored)),
            history=found.history,
            allowed_mismatch=found.allowed_mismatch,
        )

    def checkpoint(self) -> dict[str, Any] | None:
        """The state after the last whole epoch, if there is one. Raises RunError when it is of another search or damaged."""
        path = self.path / STATE
        if not path.exists():
            return None
        state = load_state(path)
        check_same(state.get("identity"), self.identity, where=str(path))
        return state

    def restore(self, load: Callable[[dict[str, Any]], None], state: dict[str, Any]) -> None:
        """Hand a checkpoint to ``load``. Raises RunError when it does not fit."""
        try:
            load(state["run"])
        except (KeyError, RuntimeError, TypeError, ValueError) as problem:
            reason = " ".join(str(problem).split())[:200]
            raise RunError(f"{self.path / STATE} does not fit this search ({reason}): choose another folder") from problem

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; a program killed here leaves the old or the new one, whole."""
        if rank() != 0:
            return
        save_state(self.path / STATE, {"identity": plain(self.identity), "run": state})

    def finish(self, result: SearchResult, supernet: Supernet) -> None:
        """Write the tables, the shared weights and, last, run.json; the checkpoint is then no longer needed."""
        if rank() != 0:
            return
        for name, table in self._files.items():
            table.save(self.path / name)
        save_weights(self.path / WEIGHTS, supernet)
        self._record(result).save(self.path)
        self.tidy()

    def _record(self, result: SearchResult) -> RunFile:
        identity, pick = self.identity, result.pick
        operators = {name for _, names in identity.slots for name in names}
        return RunFile(
            model=identity.model,
            manner=identity.manner,
            operators=tuple(sorted(operators, key=self.space.operators.index)),
            data=identity.data.get("name"),
            target_ms=result.target_ms,
            reward=identity.config.reward,
            strategy=identity.config.strategy,
            seed=identity.config.seed,
            table=str(self.path / TABLE) if self.tables else None,
            tables=tuple(self._files),
            table_hash=identity.table_hash,
            allowed_mismatch=result.allowed_mismatch,
            versions=versions("torch", "numpy"),
            arch=self.space.names(pick.arch),
            predicted_ms=pick.predicted_ms,
            measured_ms=pick.measured_ms,
            accuracy=pick.accuracy,
            load=pick.load,
            others=result.others,
            met=result.met,
            note=result.note,
            pick=self._named(pick),
            finalists=tuple(map(self._named, result.finalists)),
            more=tuple(
                OutcomeNames(
                    target_ms=item.target_ms,
                    met=item.met,
                    note=item.note,
                    pick=self._named(item.pick),
                    others=item.others,
                    finalists=tuple(map(self._named, item.finalists)),
                )
                for item in result.outcomes[1:]
            ),
            pareto=tuple(map(self._named, result.pareto)),
            history=result.history,
            scored=tuple(map(self._named, result.scored)),
            identity=identity,
        )

    def _named(self, item: Scored) -> ScoredNames:
        return ScoredNames(**{**structs.asdict(item), "arch": self.space.names(item.arch)})

    def _scored(self, item: ScoredNames) -> Scored:
        try:
            return Scored(**{**structs.asdict(item), "arch": self.space.parse(list(item.arch))})
        except SpaceError as problem:
            raise RunError(f"{self.path / RESULT} must be of this search, but {problem}: choose another folder") from None
