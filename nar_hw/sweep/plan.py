"""The plan of a sweep: a TOML file of axes, checked line by line, and the product of them as jobs.

Cells that can share a search do: one search serves all targets of one network, table, strategy and seed.
"""

import glob
import hashlib
import itertools
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from nar_hw.data import DATA_SETS, FACES
from nar_hw.errors import RunError, TableMismatchError, UserError, unknown_name
from nar_hw.files import sha256
from nar_hw.latency.table import LatencyTable
from nar_hw.models import builder
from nar_hw.records import Record, as_record, plain, replace, shown
from nar_hw.runtimes import RUNTIMES, RuntimeConfig
from nar_hw.search.config import FITTED, SearchConfig
from nar_hw.search.strategies import STRATEGIES
from nar_hw.space.spec import Manner
from nar_hw.steps.refine import distinct, in_ms
from nar_hw.training.child import WEIGHTS
from nar_hw.training.recipes import recipe_named
from nar_hw.userfile import is_file_name

MOST_SEED = 2**32 - 1
Steps = Sequence[str | int]
"""The way to a value in the plan: keys and indices."""


class Network(Record, frozen=True, kw_only=True):
    """One network of a plan; a name alone is its model."""

    model: str
    """As for --model."""
    name: str = ""
    """What its cells are called; by default as the model."""
    weights: str | None = None
    """Trained weights in which candidates are fitted, a file or the folder of a trained network; None: a search from scratch."""
    manner: Manner = "conv"
    operators: tuple[str, ...] | None = None
    slots: str | None = None
    limit_params: bool = True

    @property
    def asked(self) -> dict[str, Any]:
        """What is asked of its search space."""
        return {key: getattr(self, key) for key in ("manner", "operators", "slots", "limit_params")}


class Resources(Record, frozen=True, kw_only=True):
    """What one run of a sweep may use."""

    cpus: int = 1
    """Threads; results on a CPU depend on their number."""
    gpus: float = 0.0
    """A share of one GPU, or several; above 0, networks are trained on it."""
    retries: int = 2
    """How often a run is begun again whose process, or machine, died."""

    def __post_init__(self) -> None:
        """Raises UserError for values outside their range."""
        for name, least, most in (("cpus", 1, 1024), ("gpus", 0, 1024), ("retries", 0, 100)):
            if not least <= getattr(self, name) <= most:
                raise UserError(f"{name} must be from {least} to {most}, but got {getattr(self, name)}")


class Refining(Record, frozen=True, kw_only=True):
    """How each cell is refined to the end: trained, exported, measured, as `nar-hw refine` does."""

    recipe: str = "finetune"
    """As for --recipe."""


class Plan(Record, frozen=True, kw_only=True):
    """A plan file. Every list is an axis; the cells are their product."""

    networks: tuple[Network | str, ...]
    data: tuple[str, ...]
    """As for --data."""
    tables: tuple[RuntimeConfig | str, ...]
    """Files of a device, one for each network, by a pattern; or conditions under which this device is profiled."""
    targets: tuple[float | str, ...]
    """Shares of a network's latency or times ("0.4ms")."""
    strategies: tuple[str, ...] = ("surrogate",)
    seeds: tuple[int, ...] = (0,)
    search: Mapping[str, Any] = {}
    """Settings of all searches, as for --set."""
    refine: Refining | None = None
    """Where it is there, cells are refined to the end, else searched."""
    resources: Resources = Resources()


class TableJob(Record, frozen=True, kw_only=True, tag="table"):
    """A latency table that is measured for the sweep, once for all cells that need it."""

    network: Network
    data: str
    """Which says the shape of images and the number of classes."""
    conditions: RuntimeConfig
    files: tuple[str, ...] = ()
    """The SHA-256 of all files that are named above."""

    @property
    def id(self) -> str:
        """Of the file in tables/."""
        return _id(self)


class RunJob(Record, frozen=True, kw_only=True, tag="run"):
    """One search or refinement, for all targets."""

    network: Network
    data: str
    table: str
    """The file of the table; of one that is measured for the sweep, its id."""
    conditions: RuntimeConfig | None = None
    """Of a table that is measured for the sweep."""
    targets: tuple[str, ...]
    config: SearchConfig
    """With the strategy and the seed."""
    refine: Refining | None = None
    resources: Resources = Resources()
    files: tuple[str, ...] = ()
    """The SHA-256 of all files that are named above."""

    @property
    def id(self) -> str:
        """Of the folder in runs/: of all that its results depend on."""
        return _id(structs.replace(self, resources=Resources(cpus=self.resources.cpus)))


Job = TableJob | RunJob


def _id(job: Job) -> str:
    return hashlib.sha256(msgspec.json.encode(job, order="deterministic")).hexdigest()[:16]


def _hashes(*names: str | None) -> tuple[str, ...]:
    """Of the files and folders of trained networks among ``names``; the others are names of ours."""
    hashes = []
    for name in filter(None, names):
        path = Path(name.rpartition(":")[0] if is_file_name(name) else name).expanduser()
        path = path / WEIGHTS if (path / WEIGHTS).is_file() else path
        if path.is_file():
            hashes.append(sha256(path))
    return tuple(hashes)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A plan that has been checked."""

    plan: Plan
    text: str
    """The file."""
    networks: tuple[Network, ...]
    targets: tuple[str, ...]
    configs: tuple[SearchConfig, ...]
    """Of each network."""
    tables: tuple[tuple[str | RuntimeConfig, ...], ...]
    """Of each network: a file, or conditions."""

    @property
    def table_jobs(self) -> Iterator[TableJob]:
        """The tables that have to be measured, each once."""
        for network, tables in zip(self.networks, self.tables, strict=True):
            for data, table in itertools.product(self.plan.data, tables):
                if not isinstance(table, str):
                    yield _table_job(network, data, table)

    @property
    def runs(self) -> Iterator[RunJob]:
        """The searches or refinements, in the order of the plan, one at a time: there may be very many."""
        plan = self.plan
        recipe = None if plan.refine is None else plan.refine.recipe
        for network, base, tables in zip(self.networks, self.configs, self.tables, strict=True):
            configs = [replace(base, strategy=name, seed=seed) for name, seed in itertools.product(plan.strategies, plan.seeds)]
            for data, table in itertools.product(plan.data, tables):
                given = table if isinstance(table, str) else None
                files = _hashes(network.model, *(network.operators or ()), data, network.weights, given, recipe)
                for config in configs:
                    yield RunJob(
                        network=network,
                        data=data,
                        table=table if isinstance(table, str) else _table_job(network, data, table).id,
                        conditions=None if isinstance(table, str) else table,
                        targets=self.targets,
                        config=config,
                        refine=plan.refine,
                        resources=plan.resources,
                        files=files,
                    )

    @property
    def counts(self) -> dict[str, int]:
        """How many cells, runs and tables that have to be measured there are."""
        plan = self.plan
        each = len(plan.data) * len(plan.strategies) * len(plan.seeds)
        runs = each * sum(map(len, self.tables))
        return {"cells": runs * len(self.targets), "runs": runs, "profiles": len({job.id for job in self.table_jobs})}


def _table_job(network: Network, data: str, conditions: RuntimeConfig) -> TableJob:
    asked = Network(model=network.model, **network.asked)
    files = _hashes(network.model, *(network.operators or ()), data)
    return TableJob(network=asked, data=data, conditions=conditions, files=files)


def read_plan(path: Path) -> Sweep:
    """Read and check a plan. Raises UserError and its kin in one line that names the line and the key."""
    try:
        text = Path(path).read_bytes().decode()
        value = tomllib.loads(text)
    except OSError as problem:
        raise RunError(f"plan {path} cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError as problem:
        raise RunError(f"plan {path} must be UTF-8 text, but byte {problem.start} is not: save it as UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as problem:
        raise RunError(f"plan {path} must be TOML: {problem}") from None

    def where(steps: Steps) -> str:
        return f"{path}, line {line_of(text, steps)}"

    plan = as_record(value, Plan, where=where, error=UserError, fix="see docs/how-to/sweeps.md")
    return _checked(plan, text, where)


def _checked(plan: Plan, text: str, where: Callable[[Steps], str]) -> Sweep:
    """What the types of a plan do not say. Raises UserError and its kin."""

    @contextmanager
    def at(*steps: str | int) -> Iterator[None]:
        try:
            yield
        except UserError as problem:
            key = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
            raise type(problem)(f"{where(steps)}: {key}: {problem}") from None

    def differ(axis: str, keys: Sequence[Any]) -> None:
        seen = set()
        for index, key in enumerate(keys):
            if key in seen:
                twice = shown(getattr(plan, axis)[index])
                with at(axis, index):
                    raise UserError(f"every one must be another, but {twice} comes twice: leave one out")
            seen.add(key)

    for axis in ("networks", "data", "tables", "targets", "strategies", "seeds"):
        if not getattr(plan, axis):
            with at(axis):
                raise UserError("at least one is needed, but there is none")
    targets = tuple(target if isinstance(target, str) else f"{target:.9g}" for target in plan.targets)
    for index, target in enumerate(targets):
        with at("targets", index):
            in_ms(target, 1.0)
    for index, strategy in enumerate(plan.strategies):
        with at("strategies", index):
            if strategy not in STRATEGIES:
                raise unknown_name("strategy", strategy, STRATEGIES)
    for index, seed in enumerate(plan.seeds):
        with at("seeds", index):
            if not 0 <= seed <= MOST_SEED:
                raise UserError(f"a seed must be from 0 to {MOST_SEED}, but got {seed}")
    if plan.refine is not None:
        with at("refine", "recipe"):
            recipe_named(plan.refine.recipe)
    for index, conditions in enumerate(plan.tables):
        if isinstance(conditions, RuntimeConfig) and conditions.runtime not in RUNTIMES:
            with at("tables", index, "runtime"):
                raise unknown_name("runtime", conditions.runtime, RUNTIMES)
    networks = tuple(Network(model=item) if isinstance(item, str) else item for item in plan.networks)
    networks = tuple(replace(network, name=network.name or network.model) for network in networks)
    configs = []
    for index, name in enumerate(plan.data):
        with at("data", index):
            if not is_file_name(name) and "".join(name.partition(":")[:2]) not in (*DATA_SETS, FACES):
                raise unknown_name("data set", name, (*DATA_SETS, FACES))
    for index, network in enumerate(networks):
        with at("networks", index):
            builder(network.model)
        if network.weights is not None and not Path(network.weights).expanduser().exists():
            with at("networks", index, "weights"):
                raise UserError(
                    f"trained weights must be a file or the folder of a trained network, but there is no {network.weights}"
                )
        configs.append(_search_config(plan, network, where))
    differ("networks", [network.name for network in networks])
    differ("targets", [distinct(target) for target in targets])
    for axis in ("data", "strategies", "seeds", "tables"):
        differ(axis, getattr(plan, axis))
    found: list[list[str | RuntimeConfig]] = [[] for _ in networks]
    tables = cache(_tables)
    for index, table in enumerate(plan.tables):
        with at("tables", index):
            for own, network in zip(found, networks, strict=True):
                own.append(_table_of(network, table, tables(table)) if isinstance(table, str) else table)
    return Sweep(
        plan=plan, text=text, networks=networks, targets=targets, configs=tuple(configs), tables=tuple(map(tuple, found))
    )


def _search_config(plan: Plan, network: Network, where: Callable[[Steps], str]) -> SearchConfig:
    base = SearchConfig() if network.weights is None and plan.refine is None else FITTED
    for key, axis in (("strategy", "strategies"), ("seed", "seeds")):
        if key in plan.search:
            raise UserError(
                f"{where(('search', key))}: search.{key}: it is an axis: write {axis} = [...] above all tables instead"
            )
    config = as_record(
        {**plain(base), **plan.search},
        SearchConfig,
        where=lambda steps: f"{where(('search', *steps))}: search",
        error=UserError,
        fix="see nar-hw search --help",
    )
    if config.fit is not None and network.weights is None and plan.refine is None:
        raise UserError(
            f"{where(('search', 'fit'))}: search.fit: candidates are fitted in trained networks: give {network.name} weights"
        )
    return config


def _table_of(network: Network, pattern: str, found: Mapping[str, LatencyTable]) -> str:
    """The file among those of ``pattern`` that is of ``network``. Raises TableMismatchError where there is not one."""
    if not found:
        raise UserError(f"a table must be a file or a pattern of files like 'phone/*.json', but there is no {pattern}")
    asked = {key: value for key, value in network.asked.items() if value != getattr(Network(model=""), key)}
    fits = [
        path
        for path, table in found.items()
        if table.network.name == network.model and all(getattr(table.network, key) == value for key, value in asked.items())
    ]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise TableMismatchError(
            f"one table must be of {network.name}, but {', '.join(fits)} are: name one, or narrow the pattern"
        )
    there = ", ".join(dict.fromkeys(table.network.name for table in found.values()))
    settings = "".join(f", {key} {value}" for key, value in asked.items())
    raise TableMismatchError(
        f"one table must be of {network.name}{settings}, but {pattern} is of {there}: measure it with nar-hw profile "
        f"--model {network.model}"
    )


def _tables(pattern: str) -> dict[str, LatencyTable]:
    return {path: LatencyTable.load(path) for path in _matching(pattern)}


def _matching(pattern: str) -> list[str]:
    return sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))  # noqa: PTH207  (it may begin with /)


def line_of(text: str, steps: Steps) -> int:
    """The line of a TOML text in which the value at the end of ``steps`` stands, or what it would stand in."""
    lines, begun = text.splitlines(), 0
    for count in range(1, len(lines) + 1):
        try:
            value = tomllib.loads("\n".join(lines[:count]))
        except tomllib.TOMLDecodeError:  # within a statement of several lines
            continue
        if (there := _there(value, steps)) is not None:
            return begun + 1 + _within(lines[begun:count], steps, there[0])
        begun = count
    return line_of(text, steps[:-1]) if steps else 1


def _there(value: Any, steps: Steps) -> tuple[Any] | None:
    for step in steps:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return (value,)


def _within(lines: Sequence[str], steps: Steps, value: Any) -> int:
    """Which of the lines of one statement names the last key, with its value where that can be told, or holds the last item."""
    key = next((step for step in reversed(steps) if isinstance(step, str)), "")
    named = rf"\b{re.escape(key)}\b[\"']?\s*=" if steps and isinstance(steps[-1], str) else ""
    literal = rf"(?<![\w.]){re.escape(str(value))}(?![\w.])" if isinstance(value, str | int | float) else ""
    for pattern in (named + ".*" + literal if named and literal else "", named or literal):
        for number, line in enumerate(lines):
            if pattern and re.search(pattern, line):
                return number
    return 0
