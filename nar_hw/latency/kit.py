"""Profiles of devices that have neither torch nor nar_hw: a folder goes there, one file comes back.

The folder holds the children of the profile without their weights, plan.json, and measure.py, made of nar_hw/device: what visits
the children there is what visits them here, and from then on nothing differs either.
"""

import gzip
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nar_hw._version import __version__
from nar_hw.device.hollow import filled, hollowed
from nar_hw.device.measure import PLAN, checksum, same_version
from nar_hw.errors import RunError, RuntimeUnavailableError, UserError, unknown_name
from nar_hw.export.splice import ChildExporter
from nar_hw.files import Scratch, atomic_folder, read_json, write_bytes, write_json, write_text
from nar_hw.latency.children import Layers, Measured, batch_of, joined
from nar_hw.latency.journal import Batch
from nar_hw.latency.loader import weight_bytes
from nar_hw.latency.profiler import METHODS, ROUNDS, TOLERANCE, design, space_hash, table_of
from nar_hw.latency.programs import PROGRAMS, schedule, shell_script
from nar_hw.latency.scripts import script
from nar_hw.latency.table import LatencyTable
from nar_hw.latency.validate import compare, with_validation
from nar_hw.locks import writing
from nar_hw.models.info import ModelInfo
from nar_hw.records import Record, as_record, plain
from nar_hw.runtimes import RUNTIMES, Runtime, RuntimeConfig, runtime_class
from nar_hw.runtimes.exporting import DeviceLayers
from nar_hw.runtimes.onnx_graph import weights as onnx_weights, with_precision
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch

SCHEMA = 1
_PERIOD = 1021
"""Random weights of kits without Python repeat after so many, which gzip sees; a prime, so that no two filters are alike."""
_AGAIN = "bring it from the device again, or measure again"


class Stage(Record, frozen=True, kw_only=True):
    """Children that are measured together."""

    name: str
    members: tuple[int, ...]
    """Numbers of the children."""
    profile: bool
    """With their layers."""
    rounds: int
    tolerance: float
    by: float
    """Share of the budget that may be spent by the end of it."""
    reference: bool = True
    """Whether the network itself is visited in between."""


class Profile(Record, frozen=True, kw_only=True):
    """What the table is made of again."""

    network: ModelInfo
    space: str
    """Hash of the search space."""
    method: str
    seed: int
    validate: int
    archs: tuple[tuple[int, ...], ...]
    """Of the children, by their numbers."""


class Bench(Record, frozen=True, kw_only=True):
    """What is compared."""

    subjects: tuple[str, ...]
    """Names of the children."""
    predicted_ms: tuple[float | None, ...]
    """What a table said of each."""
    files: tuple[str, ...] = ()
    """SHA-256 of all files, child by child: kits of other bundles have other plans."""


class Plan(Record, frozen=True, kw_only=True):
    """plan.json: what measure.py does. Paths are relative to it."""

    schema: int = SCHEMA
    nar_hw: str = __version__
    config: RuntimeConfig
    runtime_version: str
    """Which the device must have, by its major and minor number."""
    input_shape: tuple[int, int, int]
    weight_bytes: int
    """Of one child, about."""
    budget_s: float | None
    children: tuple[tuple[str, ...], ...]
    """Files of each, the one to load first."""
    reference: int | None
    """Number of the network itself."""
    stages: tuple[Stage, ...]
    profile: Profile | None = None
    bench: Bench | None = None


class Visits(Record, frozen=True, kw_only=True):
    """Children that were loaded together."""

    stage: str
    members: tuple[int, ...]
    runs: tuple[tuple[tuple[float, ...], ...], ...]
    """(rounds, members, repeats) ms."""
    marks: tuple[tuple[tuple[float, ...], ...], ...]
    """(rounds, visits, repeats) ms of the network itself."""
    layers: tuple[DeviceLayers, ...] | None
    seconds: float


class Times(Record, frozen=True, kw_only=True):
    """times.json: what a device measured."""

    plan: Plan
    fingerprint: dict[str, Any]
    clock: str
    repeats: int
    """Runs of each visit."""
    batches: tuple[Visits, ...]

    @classmethod
    def load(cls, path: Path) -> "Times":
        """Read it. Raises RunError, in one line, for a file that is not whole, as it was written, and of one plan and version."""
        value = read_json(path, what="times of a kit")
        where = f"times of a kit {path}"
        if value.pop("schema", None) != SCHEMA:
            raise RunError(f"{where} must have schema {SCHEMA}: use the nar_hw that made the kit")
        mark = value.pop("sha256", None)
        if mark != checksum({"schema": SCHEMA, **value}):
            raise RunError(f"{where} must be as measure.py wrote it, but its checksum differs: {_AGAIN}")
        found = as_record(value, cls, where=where, fix=_AGAIN)
        found.check(where)
        return found

    def check(self, where: str) -> None:
        """Raises RunError where the parts do not fit together."""
        wanted, version = self.plan.runtime_version, self.fingerprint.get("runtime_version")
        if not isinstance(version, str) or not same_version(version, wanted):
            raise RunError(
                f"{where} were measured with {self.plan.config.runtime} {version}, but the kit is for {wanted}: "
                f"make a kit with --runtime-version {version}"
            )
        self._check_plan(where)
        for stage in self.plan.stages:
            found = [member for batch in self.batches if batch.stage == stage.name for member in batch.members]
            if sorted(found) != sorted(stage.members):
                lacking = len(set(stage.members) - set(found))
                raise RunError(
                    f"{where} must hold each of the {len(stage.members)} children of stage {stage.name!r} once, but "
                    f"{lacking} are missing: start measure.py again on the device, it goes on from what it has"
                )
        for batch in self.batches:
            self._check_batch(batch, where)

    def _check_plan(self, where: str) -> None:
        plan = self.plan
        named = [len(plan.profile.archs)] if plan.profile is not None else []
        named += [len(plan.bench.subjects), len(plan.bench.predicted_ms)] if plan.bench is not None else []
        members = {member for stage in plan.stages for member in stage.members}
        if {*named} != {len(plan.children)} or not members <= set(range(len(plan.children))):
            raise RunError(f"{where} must say what each of the plan's {len(plan.children)} children is, but do not: {_AGAIN}")

    def _check_batch(self, batch: Visits, where: str) -> None:
        sizes = {(len(turn), len(item)) for turn in batch.runs for item in turn}
        if wrong := sum(not ms > 0 for turn in (*batch.runs, *batch.marks) for visit in turn for ms in visit):
            raise RunError(
                f"{where} must hold positive times, but {wrong} of stage {batch.stage!r} are negative or zero: "
                "the device's clock does not work"
            )
        stage = next((stage for stage in self.plan.stages if stage.name == batch.stage), None)
        if stage is None:
            raise RunError(f"{where} must hold the stages of the plan, but hold {batch.stage!r}: {_AGAIN}")
        counts, lengths = {len(turn) for turn in batch.marks}, {len(visit) for turn in batch.marks for visit in turn}
        even = len(counts) == 1 and (0 not in counts) == stage.reference and lengths <= {self.repeats}
        rounds = len(batch.runs) if len(batch.runs) == len(batch.marks) else 0
        if sizes != {(len(batch.members), self.repeats)} or rounds < 2 or not even:
            raise RunError(f"{where} must hold {self.repeats} runs of each child in each round, but do not: {_AGAIN}")
        if stage.profile != (batch.layers is not None and len(batch.layers) == len(batch.members)):
            raise RunError(f"{where} must hold the layers of what is profiled, but do not: {_AGAIN}")
        for layers in batch.layers or ():
            if len(layers.ms) < len(batch.runs) * self.repeats or any(len(run) != len(layers.names) for run in layers.ms):
                raise RunError(f"{where} must hold a time of each layer for each run, but do not: {_AGAIN}")
            if wrong := sum(not ms >= 0 for run in layers.ms for ms in run):
                raise RunError(f"{where} must hold layers' times of 0 or more, but {wrong} are negative: {_AGAIN}")

    @property
    def seconds(self) -> float:
        """How long the device measured, without what came to nothing."""
        return sum(batch.seconds for batch in self.batches)


def write_kit(
    space: SearchSpace,
    folder: Path,
    *,
    config: RuntimeConfig,
    model_name: str,
    method: str = "in-context",
    rounds: int = ROUNDS,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    validate: int = 40,
    budget_s: float | None = None,
    runtime_version: str | None = None,
    shell: bool = False,
) -> Plan:
    """Write what a device needs to measure the profile of ``space``; the arguments are those of `profile`.

    Args:
        folder: appears when it is complete; it must not exist, or be empty.
        runtime_version: what the device has; by default what is installed here.
        shell: for a device without Python: a shell script around the runtime's own benchmark program.

    Raises:
        UserError: a folder that is not empty, or a method that kits do not have.
        RuntimeUnavailableError: a runtime without kits, or not for this config, or one that is not installed here.
        ModelError, ExportError: a network that the runtime cannot have.
    """
    runtime = _able(config, method, shell)
    if shell and runtime_version is None:
        raise UserError(f"a kit for {PROGRAMS[runtime.name].name} needs the version of {runtime.name} there: --runtime-version")
    if shell and budget_s is not None:
        raise UserError(f"kits without Python stop after so many rounds, not seconds, but got budget {budget_s:g}: use --rounds")
    version = runtime_version or next(iter(runtime.versions().values()))
    budget = math.inf if budget_s is None else budget_s
    asks, _, _ = design(space, method, seed=seed, budget_s=budget, validate=validate)
    archs: dict[Arch, int] = {space.incumbent: 0}
    stages = tuple(
        Stage(
            name=ask.stage,
            members=tuple(dict.fromkeys(archs.setdefault(arch, len(archs)) for arch in ask.archs)),
            profile=ask.layers,
            rounds=rounds,
            tolerance=ask.enough(tolerance),
            by=ask.by,
        )
        for ask in asks
    )
    network = ModelInfo.of(space, model_name)
    with new_kit(folder, runtime, config if shell else None) as made:
        plan = Plan(
            config=config,
            runtime_version=version,
            input_shape=space.input_shape,
            weight_bytes=weight_bytes(space),
            budget_s=budget_s,
            children=_children(space, list(archs), runtime, config, made, shell),
            reference=0,
            stages=stages,
            profile=Profile(
                network=network, space=space_hash(space), method=method, seed=seed, validate=validate, archs=tuple(archs)
            ),
        )
        write_json(made / PLAN, plain(plan))
        if shell:
            visits = [(child, plan.children[child][0]) for _, _, child, _ in schedule(plan.stages, 0)]
            lines = [f"{number} {child} {name}\n" for number, (child, name) in enumerate(visits)]
            write_text(made / "visits.txt", "".join(lines))
    return plan


@contextmanager
def new_kit(folder: Path, runtime: type[Runtime], shell: RuntimeConfig | None = None) -> Iterator[Path]:
    """A new folder with measure.py that becomes ``folder`` when the block succeeds; with measure.sh for a config ``shell``.

    Raises UserError where there is something.
    """
    with writing(folder, whole=True):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"a kit is written to a new or empty folder, but {folder} is not: choose another, or delete it")
        with atomic_folder(folder) as made:
            if shell is None:
                write_text(made / "measure.py", script(runtime))
            else:
                write_text(made / "measure.sh", shell_script(PROGRAMS[runtime.name], shell))
            yield made


def table_from(times: Times) -> LatencyTable:
    """The table of what a device measured, by the code and with the validation of a profile on this machine.

    Raises RunError for times of a kit that this nar_hw cannot read, and MeasurementError for times that cannot be trusted.
    """
    plan = times.plan
    asked = plan.profile
    if asked is None:
        raise RunError("a table is made of a profile's times, but these are of a benchmark: use nar-hw bench --from")
    if asked.method not in METHODS:
        raise RunError(f"the kit's method must be one of {', '.join(METHODS)}, but is {asked.method!r}: {_AGAIN}")
    space = asked.network.space()
    if space_hash(space) != asked.space:
        raise RunError(
            f"the search space of {asked.network.name} must be that of the kit, which nar_hw {plan.nar_hw} made, but differs: "
            "make the kit again"
        )
    budget = math.inf if plan.budget_s is None else plan.budget_s
    asks, details, unseen = design(space, asked.method, seed=asked.seed, budget_s=budget, validate=asked.validate)
    children = _Children(space, times)
    mark = {"compute_capability": None, "driver": None, "cuda": None, "cudnn": None, "torch": None, **times.fingerprint}
    *answers, whole = [children.measured(ask.stage, ask.archs) for ask in asks]
    table = table_of(
        space,
        [*answers, whole.without(unseen)],
        method=asked.method,
        details=details,
        mark=mark,
        model_name=asked.network.name,
        seed=asked.seed,
        seconds=times.seconds,
        validate=asked.validate,
    )
    if not unseen:
        return table
    return with_validation(table, compare(table, space, whole.only(unseen), seed=asked.seed + 1, seconds=0.0))


class _Children:
    """What a device measured, by arch."""

    def __init__(self, space: SearchSpace, times: Times) -> None:
        self.times = times
        self._runtime = runtime_class(times.plan.config.runtime)
        assert times.plan.profile is not None
        self._archs = times.plan.profile.archs
        self._space = space

    @cached_property
    def _exporter(self) -> ChildExporter:
        return ChildExporter(self._space, batch=self.times.plan.config.batch)

    def measured(self, stage: str, archs: Sequence[Arch]) -> Measured[Arch]:
        """As `nar_hw.latency.children.measure`. Raises RunError where it is not these children that were measured."""
        mine = [batch for batch in self.times.batches if batch.stage == stage]
        found = [self._archs[number] for batch in mine for number in batch.members]
        if set(found) != set(archs):
            raise RunError(
                f"the children of stage {stage!r} must be those that nar_hw {__version__} measures, but the kit was made by "
                f"{self.times.plan.nar_hw}: make the kit again"
            )
        whole = joined([self._batch(batch) for batch in mine], found, self.times.clock)
        return Measured(
            children={arch: whole.children[arch] for arch in dict.fromkeys(archs)},
            reference=whole.reference,
            clock=whole.clock,
            rounds=whole.rounds,
            doubts=whole.doubts,
        )

    def _batch(self, visits: Visits) -> Batch:
        archs = [self._archs[number] for number in visits.members]
        layers = self._layers(archs, visits.layers) if visits.layers is not None else None
        return batch_of(self.times.plan.config.runtime, archs, np.array(visits.runs), np.array(visits.marks), layers)

    def _layers(self, archs: Sequence[Arch], layers: Sequence[DeviceLayers]) -> list[Layers]:
        with Scratch() as scratch:
            file = Path(scratch) / "child.onnx"
            named = []
            for arch, item in zip(archs, layers, strict=True):
                self._exporter.export(arch, file)
                named.append(Layers(*self._runtime.named_layers(item, file)))
            return named


def _able(config: RuntimeConfig, method: str, shell: bool) -> type[Runtime]:
    """The runtime of a profile's kit. Raises what `write_kit` raises."""
    if method not in METHODS:
        raise unknown_name("profiling method", method, METHODS)
    if shell:
        return _with_program(config, method)
    runtime = kit_runtime(config)
    if config.precision != "fp32":
        raise RuntimeUnavailableError(f"kits profile in fp32, but got {config.precision}: install nar_hw on the device for more")
    if method == "isolated":
        raise UserError("kits measure whole children, but got method isolated: use in-context or regression")
    if method == "in-context" and not runtime.layers_on(config):
        raise RuntimeUnavailableError(f"{runtime.name} has no per-layer times on devices: use method regression")
    return runtime


def _with_program(config: RuntimeConfig, method: str) -> type[Runtime]:
    """The runtime of a kit around its benchmark program. Raises what `write_kit` raises."""
    runtime = runtime_class(config.runtime)
    if runtime.name not in PROGRAMS:
        able = ", ".join(f"{name} ({program.name})" for name, program in PROGRAMS.items())
        raise RuntimeUnavailableError(f"kits without Python can be made for {able}, but got runtime {config.runtime}")
    asked = {"device": config.device_type, "precision": config.precision}
    for field, known in (("device", runtime.devices), ("precision", tuple({*runtime.precisions} - {"int8"}))):
        if asked[field] not in known:
            raise RuntimeUnavailableError(f"{runtime.name} needs {field} {' or '.join(sorted(known))}, but got {asked[field]}")
    if method != "regression":
        raise UserError(f"kits without Python time whole children, but got method {method}: use regression")
    return runtime


def kit_runtime(config: RuntimeConfig) -> type[Runtime]:
    """The runtime of a kit. Raises RuntimeUnavailableError where it has none for ``config``."""
    runtime = runtime_class(config.runtime)
    if not runtime.kit:
        able = ", ".join(name for name in RUNTIMES if runtime_class(name).kit)
        raise RuntimeUnavailableError(f"kits can be made for {able}, but got runtime {config.runtime}")
    if config.device_type != "cpu":
        raise RuntimeUnavailableError(f"kits measure on the device's CPU, but got {config.device}: install nar_hw there for more")
    return runtime


def _children(
    space: SearchSpace, archs: Sequence[Arch], runtime: type[Runtime], config: RuntimeConfig, folder: Path, shell: bool
) -> tuple[tuple[str, ...], ...]:
    """Write the children, hollow, or for a ``shell`` as files that gzip unpacks: the names of their files."""
    exporter = ChildExporter(space, batch=config.batch)
    names = []
    for number, arch in enumerate(archs):
        with Scratch() as scratch:
            onnx = Path(scratch) / "child.onnx"
            exporter.export(arch, onnx)
            own = []
            if config.precision != "fp32":  # of which only a shell's kit has any
                onnx.write_bytes(filled(hollowed(onnx.read_bytes(), onnx_weights(onnx)), period=_PERIOD))
                onnx = with_precision(onnx, config.precision, Path(scratch))
            for file, weights in runtime.device_files(onnx, config, Path(scratch)):
                name = f"children/{number}{file.suffix}.{'gz' if shell else 'z'}"
                data = hollowed(file.read_bytes(), weights)
                write_bytes(folder / name, gzip.compress(filled(data, period=_PERIOD), mtime=0) if shell else data)
                own.append(name)
        names.append(tuple(own))
    return tuple(names)
