"""Children measured in turn, beside the network itself, a few at a time.

Shape legend: rounds = visits that are kept, repeats = runs of one visit.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from nar_hw.device.visits import LOADING_S, MARK_EVERY, Clock, again, in_turn, normalised, typical
from nar_hw.errors import MeasurementError
from nar_hw.latency.contention import Contention, Watch, together
from nar_hw.latency.journal import Batch, ChildTimes, Journal
from nar_hw.latency.timing import check_samples, summarize
from nar_hw.locks import measuring
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.runtimes.base import Runtime

if TYPE_CHECKING:
    from rich.progress import Progress

Floats = npt.NDArray[np.float64]
K = TypeVar("K", bound=Hashable)


@contextmanager
def alone(configs: Iterable[RuntimeConfig], progress: "Progress | None" = None) -> Iterator[None]:
    """Whoever measures under ``configs`` waits here while another process measures on this machine, and says so."""
    if all(runtime_class(config.runtime).simulated for config in configs):
        yield
        return
    with measuring(says(progress)):
        yield


def says(progress: "Progress | None") -> Callable[[str], None]:
    """What prints a line above the bars; nothing without them."""
    return lambda text: None if progress is None else progress.console.print(text, highlight=False, soft_wrap=True)


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
    contention: Contention | None = None
    """What else the machine did meanwhile."""

    def only(self, keys: Iterable[K]) -> "Measured[K]":
        """Some of the children."""
        return replace(self, children={key: self.children[key] for key in keys})

    def without(self, keys: Collection[K]) -> "Measured[K]":
        """The other children."""
        return self.only(key for key in self.children if key not in keys)


def measure(
    load: Callable[[K, bool], Runtime],
    archs: Sequence[K],
    own: Callable[[], Runtime],
    *,
    at_once: int,
    rounds: int,
    threads: Callable[[], int] = lambda: 1,
    repeats: int | None = None,
    profile: bool = False,
    deadline: float = math.inf,
    tolerance: float = 0.0,
    stage: str = "children",
    journal: Journal | None = None,
    tick: Callable[[int], object] = lambda steps: None,
    say: Callable[[str], object] = lambda text: None,
) -> Measured[K]:
    """Time children end to end or, with ``profile``, node by node.

    ``at_once`` of them are loaded together and visited in turn, ``rounds`` times (and once before, which is dropped), in another
    order each time; every time is divided by how slow the machine was in that round. The reference network is visited in
    between, never twice in a row: that would find its weights in the caches. It shows how slow the machine was beside other
    batches, so that all children are given at the speed of the whole measurement.

    Args:
        load: makes a runtime of (arch, whether it is profiled).
        archs: the children, or whatever ``load`` takes; one that comes twice is measured once.
        own: loads the network itself, the reference: first, and again among the children (`nar_hw.device.visits.again`).
        at_once: how many children may be loaded together.
        threads: how many may load children at the same time; asked before each.
        repeats: runs of each visit; by default about 12 ms of the reference, at least 5.
        rounds: visits of each child; fewer, but at least two, when the deadline comes first.
        profile: with the runtime's profiler on, which slows the children down.
        deadline: time.monotonic() at which to stop.
        tolerance: stop after FEWEST_ROUNDS or more when the children's times are known this well (see `settled`); 0 never.
        stage: what the journal calls these children.
        journal: keeps each batch that is finished; what it holds already is not measured again.
        tick: called with the number of visits made; there are rounds + 1 of each child.
        say: told, once and while it measures, when the machine is busy.

    Raises:
        MeasurementError: times that are not positive, or that drift or split so that the reference does not cancel it.
    """
    distinct = list(dict.fromkeys(archs))
    found = journal.batches(stage, distinct) if journal else []
    done = {arch for members, _ in found for arch in members}
    tick((rounds + 1) * len(done))
    missing = [arch for arch in distinct if arch not in done]
    with closing(own()) as reference, Watch(reference.config, say) as watch:
        clock = clock_of(reference)
        runs = _repeats(clock, reference)
        while missing:
            now = time.monotonic()
            batches = math.ceil(len(missing) / at_once)
            until = now + (deadline - now) / batches
            group = missing[: math.ceil(len(missing) / batches)]
            batch = _measure_batch(
                load, group, reference, own, clock, rounds, threads, repeats or runs, profile, until, tolerance, tick, watch
            )
            group, missing = missing[: len(batch.children)], missing[len(batch.children) :]
            found.append((group, batch))
            if journal:
                journal.add(stage, distinct, group, batch)
    measured = joined([batch for _, batch in found], [arch for members, _ in found for arch in members], clock.name)
    return replace(measured, children={arch: measured.children[arch] for arch in distinct})


def joined(batches: Sequence[Batch], keys: Sequence[K], clock: str) -> Measured[K]:
    """Batches as one measurement, all at the speed that the reference had in the median over all of them."""
    every = np.concatenate([batch.reference for batch in batches])
    speed = float(np.median(every))
    times = [_at_speed(child, speed / float(np.median(batch.reference))) for batch in batches for child in batch.children]
    disturbed = float(np.mean([batch.disturbed for batch in batches]))
    busy = f"busy machine: {disturbed:.0%} of the runs took over 1.3 times as long as one before them"
    return Measured(
        children=dict(zip(keys, times, strict=True)),
        reference=every,
        clock=clock,
        rounds=min(batch.rounds for batch in batches),
        doubts=(*dict.fromkeys(doubt for batch in batches for doubt in batch.doubts), *([busy] if disturbed > 0.2 else [])),
        contention=together(batch.contention for batch in batches),
    )


def _at_speed(times: ChildTimes, factor: float) -> ChildTimes:
    return replace(times, whole=times.whole * factor, layers={name: values * factor for name, values in times.layers.items()})


def clock_of(runtime: Runtime) -> Clock:
    """The clock for networks in a runtime, of which ``runtime`` is one."""
    config = runtime.config
    # The fake's time is virtual
    return Clock(runtime, alone=config.runtime != "fake" and config.device_type == "cpu" and config.threads == 1)


def _repeats(clock: Clock, reference: Runtime) -> int:
    """Runs of one visit."""
    _positive(f"{reference.name}, the network itself", np.array(clock.time_ms(reference, 3)))
    return clock.repeats(reference)


def _measure_batch(
    load: Callable[[K, bool], Runtime],
    archs: Sequence[K],
    reference: Runtime,
    own: Callable[[], Runtime],
    clock: Clock,
    rounds: int,
    threads: Callable[[], int],
    repeats: int,
    profile: bool,
    deadline: float,
    tolerance: float,
    tick: Callable[[int], object],
    watch: Watch,
) -> Batch:
    """The first of ``archs``: as many as are loaded in time."""
    start = time.monotonic()
    with ExitStack() as stack:
        runtimes: list[Runtime] = []
        references = [reference]
        with closing(_loaded(load, archs, profile, threads)) as loading:
            for number in range(len(archs)):
                seconds = time.monotonic() - start
                if number >= MARK_EVERY and seconds > LOADING_S:
                    break
                if again(number, len(archs), seconds):
                    references.append(stack.enter_context(closing(own())))
                runtimes.append(stack.enter_context(closing(next(loading))))

        def visited(steps: int) -> None:
            watch.look()
            tick(steps)

        watch.begin()
        kept = list(
            in_turn(
                runtimes,
                references,
                clock,
                repeats=repeats,
                rounds=rounds,
                tolerance=tolerance,
                deadline=deadline,
                tick=visited,
            )
        )
        seen = watch.found()
        layers = [Layers(item.layer_ms(), item.producers()) for item in runtimes] if profile else None
        times = np.array([visit for visit, _ in kept])
        batch = batch_of(reference.name, archs, times, np.array([mark for _, mark in kept]), layers)
        children = tuple(replace(child, mib=item.mib) for child, item in zip(batch.children, runtimes, strict=True))
        return replace(batch, children=children, contention=seen)


def _loaded(
    load: Callable[[K, bool], Runtime], archs: Sequence[K], profile: bool, threads: Callable[[], int]
) -> Generator[Runtime, None, None]:
    """The children in order, some loaded ahead by ``threads``; closed early, it closes those that nobody took."""
    ahead: deque[Future[Runtime]] = deque()
    with ThreadPoolExecutor() as pool:
        try:
            for arch in archs:
                if (several := threads()) == 1:
                    yield load(arch, profile)
                    continue
                ahead.append(pool.submit(load, arch, profile))
                if len(ahead) >= several:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                if not future.cancel() and future.exception() is None:
                    future.result().close()


class Layers(NamedTuple):
    """What a runtime's profile says of one child."""

    runs: list[dict[str, float]]
    """Node -> ms, for each inference since loading."""
    producers: dict[str, list[str]]


def batch_of(runtime: str, keys: Sequence[Hashable], runs: Floats, marks: Floats, layers: Sequence[Layers] | None) -> Batch:
    """What visits in turn say of the first of ``keys``.

    Args:
        runtime: its name.
        keys: what was measured.
        runs: (rounds, items, repeats) ms.
        marks: (rounds, visits, repeats) ms of the network itself in between.
        layers: of each item, where it was profiled.

    Raises MeasurementError for times that cannot be trusted.
    """
    for item in range(runs.shape[1]):
        _positive(f"{runtime}, {_named(keys[item])}", runs[:, item])
    _positive(f"{runtime}, the network itself", marks)
    own_speed = typical(marks)  # (rounds, visits)
    whole, factors = normalised(runs)
    children = tuple(
        ChildTimes(
            whole=whole[:, item],
            layers=_layers(runtime, layers[item].runs, factors, runs.shape[2]) if layers else {},
            producers=layers[item].producers if layers else {},
            p90=_p90(runs[:, item, 1:]) if runs.shape[2] > 1 else None,
        )
        for item in range(runs.shape[1])
    )
    return Batch(
        children=children,
        reference=(own_speed * factors[:, None]).ravel(),
        rounds=len(runs),
        # The first runs of a visit find cold caches: what is slower than a run before it is disturbed
        disturbed=float((runs > 1.3 * np.minimum.accumulate(runs, axis=2)).mean()),
        doubts=_doubts(runtime, own_speed.ravel(), whole),
    )


def _p90(runs: Floats) -> float:
    """90th percentile over median of (rounds, repeats - 1) runs: a visit's first run finds cold caches and is left out."""
    middle, high = np.quantile(runs, (0.5, 0.9))
    return float(high / middle)


def p90_of(measured: Measured[K]) -> float | None:
    """The median over the children; None where older measurements do not say."""
    known = [times.p90 for times in measured.children.values() if times.p90 is not None]
    return float(f"{max(1.0, np.median(known)):.6g}") if known else None


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


def _layers(runtime: str, profile: Sequence[dict[str, float]], factors: Floats, repeats: int) -> dict[str, Floats]:
    """Node -> (rounds * (repeats - 1),) normalised ms; a visit's first run finds cold caches and is left out."""
    runs = profile[-len(factors) * repeats :]
    names = dict.fromkeys(name for run in runs for name in run)
    if not names:
        raise MeasurementError(f"{runtime}: its profile holds no nodes: use method regression or isolated")
    table = np.array([[run.get(name, 0.0) for run in runs] for name in names])  # (nodes, rounds * repeats)
    visits = table.reshape(len(names), len(factors), repeats)[:, :, 1:] * factors[:, None]
    return {name: values.ravel() for name, values in zip(names, visits, strict=True)}


class Steps:
    """A bar for a known number of steps; silent without a progress display."""

    def __init__(self, progress: "Progress | None", title: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=total) if progress else None

    def __call__(self, steps: int) -> None:
        """Advance."""
        if self._progress and self._task is not None:
            self._progress.advance(self._task, steps)
