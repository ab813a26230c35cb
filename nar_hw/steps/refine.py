"""What `nar-hw refine` does, from Python: from trained weights and a device to a front of faster networks.

Every stage is a step that has a command of its own and leaves that command's files: baseline/ (`nar-hw eval` or `train`),
table.json (`profile`), run.json (`search`), children/NAME (`train`), bundles/NAME (`export`), bench.json (`bench`) and
report.html (`report`). A stage whose files are there is not done again.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rich.progress import Progress

from nar_hw.bundles.config import ExportConfig
from nar_hw.bundles.manifest import MANIFEST
from nar_hw.errors import RunError, RuntimeUnavailableError, TargetError, UserError
from nar_hw.files import sha256, write_bytes
from nar_hw.latency.profiler import profile
from nar_hw.latency.table import LatencyTable
from nar_hw.locks import LOCK, writing
from nar_hw.models.info import ModelInfo
from nar_hw.records import Record, check_same, plain, read_record, replace, write_record
from nar_hw.report import write_report
from nar_hw.report.run import BENCH, REFINE, read_run
from nar_hw.runtimes import runtime_class
from nar_hw.runtimes.config import RuntimeConfig
from nar_hw.search.config import FITTED, SearchConfig
from nar_hw.search.folder import TABLE
from nar_hw.search.record import RESULT, load_run
from nar_hw.space.space import SearchSpace
from nar_hw.steps.bench import bench_bundles
from nar_hw.steps.export import export_child
from nar_hw.steps.search import search_run
from nar_hw.steps.task import fitted_to, load_task
from nar_hw.steps.train import load_given, score_weights, train_child
from nar_hw.tasks import Task
from nar_hw.training.child import CHILD, Child
from nar_hw.training.recipes import RECIPES, Recipe

SCHEMA = 1
BASELINE, CHILDREN, BUNDLES = "baseline", "children", "bundles"


class RefineConfig(Record, frozen=True, kw_only=True):
    """What is asked of a refinement."""

    model: ModelInfo
    data: str
    targets: tuple[str, ...]
    """Shares of the network's latency ("0.6") or milliseconds ("0.4ms")."""
    conditions: RuntimeConfig = RuntimeConfig()
    """How the networks will run on the device."""
    search: SearchConfig = FITTED
    recipe: Recipe = RECIPES["finetune"]
    """How children are trained."""
    export: ExportConfig = ExportConfig()
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises TargetError for a target that is no share and no time, or comes twice."""
        if not self.targets:
            raise TargetError("at least one target is needed, such as 0.6 (of the network's latency) or 0.4ms")
        for target in self.targets:
            in_ms(target, 1.0)
        if len(set(map(distinct, self.targets))) < len(self.targets):
            raise TargetError(f"every target must be another one, but got {', '.join(self.targets)}")


class Asked(Record, frozen=True, kw_only=True):
    """refine.json: a refinement goes on in its folder with equal values only."""

    config: RefineConfig
    weights: str | None
    """SHA-256 of the file of weights, or of the baseline folder's."""
    table: str | None
    """SHA-256 of the table's file, where one was given."""
    command: tuple[str, ...] = ()
    """The words behind nar-hw that ask for it again."""


def in_ms(target: str, incumbent_ms: float) -> float:
    """A target in milliseconds: "0.4ms", or a share of the network's own latency. Raises TargetError."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})\s*(ms)?", target.strip())
    value = float(found[1]) if found else 0.0
    if not found or value <= 0 or (not found[2] and value >= 1):
        raise TargetError(
            f"a target must be a share of the network's latency between 0 and 1, like 0.6, or a time, like 0.4ms, "
            f"but got {target!r}"
        )
    return value if found[2] else value * incumbent_ms


def distinct(target: str) -> tuple[float, bool]:
    """Equal for targets that ask for the same. Raises TargetError."""
    return in_ms(target, 1.0), in_ms(target, 2.0) == in_ms(target, 1.0)


def export_for(conditions: RuntimeConfig) -> ExportConfig:
    """The bundles of networks that will run under ``conditions``."""
    compiled = conditions.runtime == "aoti"
    return ExportConfig(
        targets=("onnx", "aoti") if compiled else ("onnx",),
        precisions=tuple(dict.fromkeys(("fp32", conditions.precision))),
        batch=(conditions.batch if compiled else 1, max(64, conditions.batch)),
    )


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """One refinement in its folder. Usually made by `refine`."""

    config: RefineConfig
    out: Path
    weights: Path | None
    """A file of weights, or the folder of a trained baseline; None: the baseline is trained first, by ``from_scratch``."""
    table: Path | None
    from_scratch: Recipe
    device: str
    data_root: Path | None
    allow_mismatch: bool
    progress: Progress | None
    command: tuple[str, ...] = ()
    """The words behind nar-hw that ask for this, for the report."""
    loaded: Task | None = None

    @cached_property
    def task(self) -> Task:
        """The data, read once."""
        return self.loaded or load_task(self.config.data, root=self.data_root, device=self.device)

    @cached_property
    def model(self) -> ModelInfo:
        """The network, for the data's classes."""
        return fitted_to(self.config.model, self.task)

    @property
    def stages(self) -> Mapping[str, tuple[Path, Callable[[], object]]]:
        """Name -> the file that says that it is done, and what does it; in their order."""
        names = [BASELINE, *self.config.targets]
        return {
            "baseline": (self.out / BASELINE / CHILD, self._baseline),
            "latency table": (self.out / TABLE, self._table),
            "search": (self.out / RESULT, self._search),
            **{f"train {name}": (self.out / CHILDREN / name / CHILD, partial(self._train, name)) for name in self.config.targets},
            **{f"export {name}": (self.out / BUNDLES / name / MANIFEST, partial(self._export, name)) for name in names},
            "benchmark": (self.out / BENCH, self._bench),
        }

    def check(self) -> None:
        """Refuse what cannot work before anything long starts, and keep what is asked for in refine.json.

        Raises UserError and its kin in one line, RunError for a folder with other settings, or that another process writes.
        """
        with writing(self.out):
            self._check()

    def _check(self) -> None:
        config, given = self.config, None
        if self.weights is not None:
            file = self.weights / "weights.safetensors" if self.weights.is_dir() else self.weights
            given = sha256(file, what="trained network")
        asked = Asked(
            config=config,
            weights=given,
            table=None if self.table is None else sha256(self.table, what="latency table"),
            command=self.command,
        )
        file = self.out / REFINE
        if file.exists():
            kept = read_record(file, Asked, what="refinement", schema=SCHEMA)
            check_same(plain(replace(kept, command=())), plain(replace(asked, command=())), where=str(self.out))
        elif any(path.name != LOCK for path in self.out.iterdir()):
            raise RunError(f"{self.out} must be a new folder or one of nar-hw refine, but holds something else: choose another")
        self.check_possible()
        write_record(file, asked, schema=SCHEMA)

    def check_possible(self) -> None:
        """Refuse what cannot work whatever the folder holds, as `check` does; nothing is written."""
        config = self.config
        runtime = runtime_class(config.conditions.runtime)
        if reason := runtime.unavailable(config.conditions):
            raise RuntimeUnavailableError(reason)
        if runtime.consumes == "module" and not runtime.files:
            raise UserError(
                f"networks are measured as they are deployed, in a runtime that loads files, but {runtime.name} runs torch "
                "modules: use onnxruntime, openvino, tensorrt or aoti"
            )
        space = self.model.space()
        if all(slot.fixed for slot in space.slots):
            raise UserError(f"{self.model.name} has no slot with a choice: see nar-hw space {' '.join(self.model.options())}")
        if self.table is not None:
            self._check_targets(LatencyTable.load(self.table), space)
        if self.weights is not None and not self.weights.is_dir() and not (self.out / BASELINE / CHILD).exists():
            load_given(self.model, self.weights, self.task)

    def _check_targets(self, table: LatencyTable, space: SearchSpace) -> None:
        table.check(space, allow_mismatch=True)
        fastest, slowest = table.bounds()
        for target in self.config.targets:
            if not fastest <= in_ms(target, table.incumbent_ms):
                raise TargetError(
                    f"targets must be within {fastest:.4g} and {slowest:.4g} ms ({fastest / table.incumbent_ms:.2f} to "
                    f"{slowest / table.incumbent_ms:.2f} of the network's {table.incumbent_ms:.4g}), but got {target}"
                )

    def run(self) -> Path:
        """Do what is not done yet; returns the report."""
        with writing(self.out):
            for name, (done, do) in self.stages.items():
                if done.exists():
                    self._say(f"{name}: done before")
                else:
                    do()
            return write_report(self.out)

    def outcome(self) -> dict[str, Any]:
        """What came out, for JSON: the networks, each with what was asked of it, measured and scored.

        ``measured_ms`` is the search's measurement of all picks in turn, on the table's scale as the targets are; where the
        device is not this one, the benchmark's, which ``bench_ms`` is in any case.
        """
        run = read_run(self.out)
        bench = {row.subject: row.p50_ms for row in run.rows}
        rows = []
        for name in (BASELINE, *self.config.targets):
            child = run.trained[name]
            rows.append(
                {
                    "name": name,
                    "target_ms": child.target_ms,
                    "predicted_ms": child.predicted_ms if run.table is None or name != BASELINE else run.table.incumbent_ms,
                    "measured_ms": run.times[name],
                    "ratio": run.times[name] / run.times[BASELINE],
                    "bench_ms": bench[name],
                    "metric": child.metric,
                    "valid_accuracy": child.accuracy["valid"],
                    "test_accuracy": child.accuracy["test"],
                    "params": child.params,
                    "flops": child.flops,
                    "arch": list(child.arch),
                    "bundle": str(self.out / BUNDLES / name),
                }
            )
        return {"networks": rows}

    def _say(self, text: str) -> None:
        if self.progress is not None:
            self.progress.console.print(text, highlight=False, soft_wrap=True)

    def _baseline(self) -> None:
        out = self.out / BASELINE
        if self.weights is None:
            config = self.config
            train_child(
                self.model,
                None,
                self.task,
                out=out,
                recipe=self.from_scratch,
                seed=config.seed,
                resume=True,
                progress=self.progress,
            )
        elif self.weights.is_dir():
            child = Child.load(self.weights)
            if replace(child.model, **_choices(self.model)) != self.model:
                raise RunError(
                    f"{self.weights} must hold the trained {self.model.name} for the same images, but holds {child.model}"
                )
            network = child.network(self.weights)
            child.save(out, network)
        else:
            child, loaded = score_weights(self.model, self.weights, self.task, out=out)
            self._say(f"weights: {loaded}; test accuracy {100 * child.accuracy['test']:.2f} %")

    def _table(self) -> None:
        space = self.model.space()
        if self.table is not None:
            write_bytes(self.out / TABLE, self.table.read_bytes())
            return
        table = profile(
            space,
            config=self.config.conditions,
            model_name=self.model.name,
            seed=self.config.seed,
            journal=self.out / f"{TABLE}.part",
            resume=True,
            progress=self.progress,
        )
        self._check_targets(table, space)
        table.save(self.out / TABLE)

    def _search(self) -> None:
        table = LatencyTable.load(self.out / TABLE)
        search_run(
            self.model.name,
            self.config.data,
            table,
            target_ms=[in_ms(target, table.incumbent_ms) for target in self.config.targets],
            out=self.out,
            config=replace(self.config.search, seed=self.config.seed),
            data_root=self.data_root,
            trained=self.out / BASELINE,
            device=self.device,
            resume=True,
            allow_mismatch=self.allow_mismatch,
            progress=self.progress,
        )

    def _train(self, name: str) -> None:
        table = LatencyTable.load(self.out / TABLE)
        outcome = load_run(self.out).outcome(in_ms(name, table.incumbent_ms))
        fitted = self.out if self.config.search.fit is not None else None
        train_child(
            self.model,
            outcome.pick.arch,
            self.task,
            out=self.out / CHILDREN / name,
            recipe=self.config.recipe,
            seed=self.config.seed,
            baseline=self.out / BASELINE,
            fitted=fitted,
            table=table,
            target_ms=outcome.target_ms,
            resume=True,
            progress=self.progress,
        )

    def _export(self, name: str) -> None:
        folder = self.out / BASELINE if name == BASELINE else self.out / CHILDREN / name
        export_child(folder, self.out / BUNDLES / name, config=self.config.export, task=self.task)

    def _bench(self) -> None:
        names = [BASELINE, *self.config.targets]
        bench_bundles({name: self.out / BUNDLES / name for name in names}, [self.config.conditions], progress=self.progress).save(
            self.out / BENCH
        )


def _choices(model: ModelInfo) -> dict[str, object]:
    return {name: getattr(model, name) for name in ("manner", "operators", "slots", "limit_params")}


def refine(
    config: RefineConfig,
    out: Path,
    *,
    weights: Path | None = None,
    table: Path | None = None,
    from_scratch: Recipe = RECIPES["paper"],
    device: str = "cpu",
    data_root: Path | None = None,
    allow_mismatch: bool = False,
    command: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Refinement:
    """Refine a trained network for every target, resuming what ``out`` holds; the folder's report.html shows the result.

    Args:
        weights: the trained weights (a file, see `nar_hw.models.weights.load_weights`) or the folder of a trained child;
            None: the network is trained first, by ``from_scratch``.
        table: a latency table of the device; None: this device is profiled under ``config.conditions``.
        device: where to train.
        allow_mismatch: use a table of another device.
        command: the words behind nar-hw that ask for this, for the report.

    Raises:
        TargetError: a target that nobody can reach; names the range.
        ModelError: weights of another network or other classes.
        RunError: ``out`` holds something else, or a refinement with other settings.
    """
    made = Refinement(
        config=config,
        out=out,
        weights=weights,
        table=table,
        from_scratch=from_scratch,
        device=device,
        data_root=data_root,
        allow_mismatch=allow_mismatch,
        command=command,
        progress=progress,
    )
    made.check()
    made.run()
    return made
