"""Children as loaded networks, and their measurement: in turn, beside a reference, a few at a time.

A network that runs in the calling thread alone is timed by that thread's own clock, which stands still while other programs
have the core: on an idle machine it agrees with the wall clock, on a busy one it is the time the network would have taken.

Shape legend: rounds = visits that are kept, repeats = runs of one visit.
"""

import itertools
import math
import os
import random
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt

from nar_hw.errors import MeasurementError
from nar_hw.files import Scratch
from nar_hw.latency.journal import Batch, ChildTimes, Journal
from nar_hw.latency.timing import check_samples, summarize
from nar_hw.locks import measuring
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.runtimes.base import Runtime
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch

if TYPE_CHECKING:
    from rich.progress import Progress

Floats = npt.NDArray[np.float64]
K = TypeVar("K", bound=Hashable)

FEWEST_ROUNDS = 6
MARK_EVERY = 4
"""Children between two visits of the reference."""
LOADING_S = 60.0
"""Seconds of loading after which what is loaded is measured, if it is MARK_EVERY children or more: what takes minutes to compile
is to be kept."""
MEMORY = 2**32
"""Bytes that loaded children may take together; a loaded network takes about 2.5 x its weights."""


class ChildLoader:
    """Loads children of a space in one runtime: ``loader(arch, profile)``; close it, or use it as a context.

    Their weights do not matter and are those of the network where they fit. Runtimes that read ONNX files get them by
    surgery on one export of the network.
    """

    def __init__(self, space: SearchSpace, config: RuntimeConfig) -> None:
        self.space, self.config = space, config
        self._runtime = runtime_class(config.runtime)
        self._folder: Path | None = None
        self._close: Callable[[], object] = lambda: None
        if self._runtime.consumes == "onnx" and self._runtime.unavailable(config) is None:
            from nar_hw.export.splice import ChildExporter  # pulls in onnx

            self._exporter = ChildExporter(space, batch=config.batch)
            scratch = Scratch()
            self._folder = Path(scratch.name)
            self._close = weakref.finalize(self, scratch.cleanup)
        self._numbers = itertools.count()

    def __call__(self, arch: Arch, profile: bool = False) -> Runtime:
        """The child, loaded. Raises SpaceError, RuntimeUnavailableError."""
        if self._folder is None:
            return self._runtime(self.space.build(arch), self.space.input_shape, self.config, profile=profile)
        path = self._folder / f"{next(self._numbers)}.onnx"
        self._exporter.export(arch, path)
        runtime = self._runtime(path, self.space.input_shape, self.config, profile=profile)
        weakref.finalize(runtime, path.unlink, missing_ok=True)
        return runtime

    def close(self) -> None:
        """Delete the files; may be called twice."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextmanager
def alone(configs: Iterable[RuntimeConfig], progress: "Progress | None" = None) -> Iterator[None]:
    """Whoever measures under ``configs`` waits here while another process measures on this machine, and says so."""
    if all(runtime_class(config.runtime).simulated for config in configs):
        yield
        return
    with measuring(lambda text: None if progress is None else progress.console.print(text, highlight=False, soft_wrap=True)):
        yield


def child_loader(space: SearchSpace, config: RuntimeConfig) -> ChildLoader:
    """What loads the children of ``space`` in the runtime of ``config``."""
    return ChildLoader(space, config)


@dataclass(frozen=True, kw_only=True)
class Measured(Generic[K]):
    """What `measure` found."""

    children: dict[K, ChildTimes]
    reference: Floats
    """(visits,) ms of the network itself, at the speed of the children."""
    clock: str
    """"thread" or "wall": see Clock."""
    rounds: int
    """Visits of each child that were kept: the fewest over all children."""
    doubts: tuple[str, ...]
    """What is wrong with the times although they can be used."""


def measure(
    load: Callable[[K, bool], Runtime],
    archs: Sequence[K],
    reference: Runtime,
    *,
    at_once: int,
    rounds: int,
    repeats: int | None = None,
    profile: bool = False,
    deadline: float = math.inf,
    tolerance: float = 0.0,
    stage: str = "children",
    journal: Journal | None = None,
    tick: Callable[[int], object] = lambda steps: None,
) -> Measured[K]:
    """Time children end to end or, with ``profile``, node by node.

    ``at_once`` of them are loaded together and visited in turn, ``rounds`` times (and once before, which is dropped), in another
    order each time; every time is divided by how slow the machine was in that round. The reference network is visited in
    between, never twice in a row: that would find its weights in the caches. It shows how slow the machine was beside other
    batches, so that all children are given at the speed of the whole measurement.

    Args:
        load: makes a runtime of (arch, whether it is profiled).
        archs: the children, or whatever ``load`` takes; one that comes twice is measured once.
        reference: the network itself, loaded.
        at_once: how many children may be loaded at the same time.
        repeats: runs of each visit; by default about 12 ms of the reference, at least 5.
        rounds: visits of each child; fewer, but at least two, when the deadline comes first.
        profile: with the runtime's profiler on, which slows the children down.
        deadline: time.monotonic() at which to stop.
        tolerance: stop after FEWEST_ROUNDS or more when the children's times are known this well (see `settled`); 0 never.
        stage: what the journal calls these children.
        journal: keeps each batch that is finished; what it holds already is not measured again.
        tick: called with the number of visits made; there are rounds + 1 of each child.

    Raises:
        MeasurementError: times that are not positive, or that drift or split so that the reference does not cancel it.
    """
    distinct = list(dict.fromkeys(archs))
    clock = Clock(reference)
    runs = _repeats(clock, reference)
    found = journal.batches(stage, distinct) if journal else []
    done = {arch for members, _ in found for arch in members}
    tick((rounds + 1) * len(done))
    missing = [arch for arch in distinct if arch not in done]
    while missing:
        now = time.monotonic()
        until = now + (deadline - now) / math.ceil(len(missing) / at_once)
        group = missing[:at_once]
        batch = _measure_batch(load, group, reference, clock, rounds, repeats or runs, profile, until, tolerance, tick)
        group, missing = missing[: len(batch.children)], missing[len(batch.children) :]
        found.append((group, batch))
        if journal:
            journal.add(stage, distinct, group, batch)
    measured = _joined([batch for _, batch in found], [arch for members, _ in found for arch in members], clock.name)
    return replace(measured, children={arch: measured.children[arch] for arch in distinct})


def _joined(batches: Sequence[Batch], keys: Sequence[K], clock: str) -> Measured[K]:
    """Batches as one measurement, all at the speed that the reference had in the median over all of them."""
    every = np.concatenate([batch.reference for batch in batches])
    speed = float(np.median(every))
    times = [_at_speed(child, speed / float(np.median(batch.reference))) for batch in batches for child in batch.children]
    disturbed = float(np.mean([batch.disturbed for batch in batches]))
    busy = f"busy machine: {disturbed:.0%} of the runs took over 1.3 times as long as the fastest beside them and were left out"
    return Measured(
        children=dict(zip(keys, times, strict=True)),
        reference=every,
        clock=clock,
        rounds=min(batch.rounds for batch in batches),
        doubts=(*dict.fromkeys(doubt for batch in batches for doubt in batch.doubts), *([busy] if disturbed > 0.2 else [])),
    )


def _at_speed(times: ChildTimes, factor: float) -> ChildTimes:
    return ChildTimes(
        whole=times.whole * factor,
        layers={name: values * factor for name, values in times.layers.items()},
        producers=times.producers,
    )


class Clock:
    """Times runs by the clock that suits a runtime: see the top of this file."""

    def __init__(self, runtime: Runtime) -> None:
        """``runtime``: any loaded network in the runtime that is to be timed."""
        fine = time.get_clock_info("thread_time").resolution <= 1e-6
        config = runtime.config
        alone = config.runtime != "fake" and config.device_type == "cpu" and config.threads == 1  # the fake's time is virtual
        self.name = "thread" if fine and alone and _in_calling_thread(runtime) else "wall"

    def time_ms(self, runtime: Runtime, repeats: int) -> list[float]:
        """Milliseconds of each of ``repeats`` runs."""
        if self.name == "wall":
            return runtime.time_ms(repeats)
        times = []
        for _ in range(repeats):
            start = time.thread_time()
            runtime.run()
            runtime.synchronize()
            times.append((time.thread_time() - start) * 1e3)
        return times


def _in_calling_thread(runtime: Runtime) -> bool:
    """Whether the calling thread does all the work; asked several times, since idle workers may spin for a while."""
    for _ in range(5):
        process, thread = time.process_time(), time.thread_time()
        for _ in range(10):
            runtime.run()
            runtime.synchronize()
        if time.thread_time() - thread > 0.9 * (time.process_time() - process):
            return True
    return False


def _repeats(clock: Clock, reference: Runtime) -> int:
    """Runs of one visit: about 12 ms, at least 5."""
    clock.time_ms(reference, 3)
    times = np.array(clock.time_ms(reference, 3))
    _positive(f"{reference.name}, the network itself", times)
    return max(5, min(20, math.ceil(12 / float(np.median(times)))))


def _measure_batch(
    load: Callable[[K, bool], Runtime],
    archs: Sequence[K],
    reference: Runtime,
    clock: Clock,
    rounds: int,
    repeats: int,
    profile: bool,
    deadline: float,
    tolerance: float,
    tick: Callable[[int], object],
) -> Batch:
    """The first of ``archs``: as many as are loaded in time."""
    start = time.monotonic()
    with ExitStack() as stack:
        runtimes: list[Runtime] = []
        for arch in archs:
            if len(runtimes) >= MARK_EVERY and time.monotonic() - start > LOADING_S:
                break
            runtimes.append(stack.enter_context(closing(load(arch, profile))))
        visits: list[list[list[float]]] = []  # rounds of items of repeats
        marks: list[list[list[float]]] = []  # rounds of visits of repeats of the reference
        for turn in range(rounds + 1):
            visit: list[list[float]] = [[] for _ in runtimes]
            mark = []
            for number, item in enumerate(random.Random(turn).sample(range(len(runtimes)), len(runtimes))):
                if number % MARK_EVERY == 0:
                    mark.append(clock.time_ms(reference, repeats))
                visit[item] = clock.time_ms(runtimes[item], repeats)
                tick(1)
            visits.append(visit)
            marks.append(mark)
            enough = tolerance and turn >= FEWEST_ROUNDS and settled(_normalised(visits)[0], tolerance)
            if turn >= 2 and (enough or time.monotonic() > deadline):
                tick((rounds - turn) * len(runtimes))
                break
        raw = np.array(visits[1:])  # (rounds, items, repeats)
        for item, runtime in enumerate(runtimes):
            _positive(f"{runtime.name}, {_named(archs[item])}", raw[:, item])
        own_speed = typical(np.array(marks[1:]))  # (rounds, marks)
        whole, factors = _normalised(visits)
        children = tuple(
            ChildTimes(
                whole=whole[:, item],
                layers=_layers(runtime, factors, repeats) if profile else {},
                producers=runtime.producers() if profile else {},
            )
            for item, runtime in enumerate(runtimes)
        )
        return Batch(
            children=children,
            reference=(own_speed * factors[:, None]).ravel(),
            rounds=len(raw),
            disturbed=1 - float(_undisturbed(raw).mean()),
            doubts=_doubts(runtimes[0].name, own_speed.ravel(), whole),
        )


def _normalised(visits: Sequence[list[list[float]]]) -> tuple[Floats, Floats]:
    """(rounds, items) ms at the machine's usual speed, and the factors (rounds,) that made it so; without the first round.

    A round is as slow as the median of its items is beside their own medians over all rounds.
    """
    times = typical(np.array(visits[1:]))  # (rounds, items)
    slowness = np.ones(len(times))
    for _ in range(5):  # median polish
        own = np.median(times / slowness[:, None], axis=0)
        slowness = np.median(times / own, axis=1)
    factors = np.median(slowness) / slowness
    return times * factors[:, None], factors


def settled(whole: Floats, tolerance: float) -> bool:
    """Whether more rounds are not worth it: half of the items' medians have a relative standard error up to ``tolerance``.

    whole (rounds, items); the standard error of a median is 1.25 sigma / sqrt(rounds), and sigma comes from the median
    deviation, which single disturbed visits do not move.
    """
    middle = np.median(whole, axis=0)  # (items,)
    sigma = 1.4826 * np.median(np.abs(whole - middle), axis=0) / middle
    return bool(1.2533 * np.median(sigma) / math.sqrt(len(whole)) <= tolerance)


def typical(runs: Floats) -> Floats:
    """(..., repeats) -> (...) ms: the median of the runs that took at most 1.3 x as long as the fastest of their visit.

    Where another program took the core, a run takes several times as long; how often that happens is not the network's.
    """
    kept = np.where(_undisturbed(runs), runs, np.nan)
    return np.asarray(np.nanmedian(kept, axis=-1), dtype=np.float64)


def _undisturbed(runs: Floats) -> npt.NDArray[np.bool_]:
    return np.asarray(runs <= 1.3 * runs.min(axis=-1, keepdims=True))


def _named(key: Hashable) -> str:
    return f"child {','.join(map(str, key))}" if isinstance(key, tuple) else str(key)


def _positive(name: str, runs: Floats) -> None:
    try:
        summarize(runs.ravel())
    except MeasurementError as problem:
        raise MeasurementError(f"{name}: {str(problem).removeprefix('times: ')}") from None


def _doubts(runtime: str, reference: Floats, whole: Floats) -> tuple[str, ...]:
    """What is wrong with usable times. Raises MeasurementError where the reference (visits,) does not cancel it.

    whole (rounds, items) normalised.
    """
    low, middle, high = np.quantile(whole, (0.1, 0.5, 0.9), axis=0)  # (items,)
    spread = float(np.median((high - low) / middle))
    try:
        check_samples(f"{runtime}, the network itself", reference)
    except MeasurementError as problem:
        if spread > 0.3 or reference.max() > 4 * reference.min():
            raise
        return (str(problem),)
    return ()


def _layers(runtime: Runtime, factors: Floats, repeats: int) -> dict[str, Floats]:
    """Node -> (rounds * (repeats - 1),) normalised ms; a visit's first run finds cold caches and is left out."""
    runs = runtime.layer_ms()[-len(factors) * repeats :]
    names = dict.fromkeys(name for run in runs for name in run)
    if not names:
        raise MeasurementError(f"{runtime.name}: its profile holds no nodes: use method regression or isolated")
    table = np.array([[run.get(name, 0.0) for run in runs] for name in names])  # (nodes, rounds * repeats)
    visits = table.reshape(len(names), len(factors), repeats)[:, :, 1:] * factors[:, None]
    return {name: values.ravel() for name, values in zip(names, visits, strict=True)}


def children_at_once(space: SearchSpace) -> int:
    """How many loaded children fit into MEMORY, and into a quarter of this machine's."""
    weights = sum(parameter.nbytes for parameter in space.model.parameters())
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else MEMORY
    return max(1, int(min(MEMORY, machine / 4) / (2.5 * weights + 1)))


class Steps:
    """A bar for a known number of steps; silent without a progress display."""

    def __init__(self, progress: "Progress | None", title: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=total) if progress else None

    def __call__(self, steps: int) -> None:
        """Advance."""
        if self._progress and self._task is not None:
            self._progress.advance(self._task, steps)
