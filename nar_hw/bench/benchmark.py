"""Networks x runtimes x batch sizes, measured side by side: latency, throughput and, on a GPU, memory, energy and clocks.

Everything that is to be compared is loaded at once and visited in turn, so that a drifting or shared machine slows all of
it alike; two networks are compared round by round.
"""

import csv
import io
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from nar_hw.bench.meters import Gpu, HostMemory
from nar_hw.bundles.manifest import Bundle, load_bundle
from nar_hw.errors import MeasurementError, ModelError, RunError, RuntimeUnavailableError
from nar_hw.latency.device import fingerprint
from nar_hw.latency.timing import check_samples, interleave, stable, summarize
from nar_hw.records import plain
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.runtimes.base import Runtime

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch import nn

Floats = npt.NDArray[np.float64]
Key = tuple[str, RuntimeConfig]

SCHEMA = 1
VISIT_MS = 20.0
"""About how long one visit takes; at least FEWEST and at most MOST runs."""
FEWEST, MOST = 5, 20
FOR_P90, FOR_P99 = 10, 100
"""Runs below which a percentile says nothing."""
WINDOWS = 3
"""How often everything is measured until its times are stable."""
DRAWS = 2000
"""Of a bootstrap."""


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One network under one runtime config."""

    subject: str
    runtime: str
    precision: str
    batch: int
    threads: int
    device: str
    memory_format: str
    p50_ms: float
    """Percentiles of single inferences of one batch, ms; without the first visit and the first run of each other visit."""
    p90_ms: float | None
    """None below 10 runs."""
    p99_ms: float | None
    """None below 100 runs."""
    n: int
    """Runs that the percentiles stand on."""
    images_per_s: float
    """Images per second: batch over the median."""
    rel: float | None
    """Half-width of the 95 % confidence interval of the median over rounds, relative to it."""
    noise_floor: float | None
    """Mean relative difference of two measurements with half of the rounds each; None below 4 rounds."""
    host_memory_mib: float | None = None
    """How far the process's memory rose at most while it was loaded and warmed up, MiB, the runtime's libraries included for the
    first of each runtime; None where the system does not tell."""
    gpu_memory_mib: float | None = None
    """GPU memory that loading and running it took, MiB, the runtime's libraries included for the first of each runtime; None on a
    CPU, or where the device does not tell (so all below)."""
    energy_mj_per_image: float | None = None
    """Energy of the whole device while it ran, mJ per image."""
    sm_clock_mhz: float | None = None
    round_ms: tuple[float, ...]
    """The median of each round, for comparisons."""
    windows: int = 1
    """Which window of rounds this is: those before were unstable (they drifted, or had two modes) and were thrown away."""
    session: str
    """Equal for all rows that were measured side by side."""
    fingerprint: Mapping[str, Any] = field(repr=False)
    """Device and conditions (latency/device.py)."""

    @property
    def config(self) -> RuntimeConfig:
        """The config that it ran under."""
        return RuntimeConfig(**{name: getattr(self, name) for name in _CONFIG})


_CONFIG = RuntimeConfig.__struct_fields__


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two networks under one runtime config: the ratio of their times, round by round."""

    subject: str
    against: str
    runtime: str
    precision: str
    batch: int
    threads: int
    device: str
    memory_format: str
    ratio: float
    """Median over rounds of the subject's time over the other's; below 1 the subject is faster."""
    low: float
    """95 % interval of the ratio (bootstrap over rounds)."""
    high: float
    rounds: int


def bench(
    subjects: Mapping[str, "Path | nn.Module"],
    *,
    input_shape: tuple[int, int, int],
    configs: Sequence[RuntimeConfig],
    rounds: int = 30,
    progress: "Progress | None" = None,
) -> list[BenchRow]:
    """Measure every subject under every config, all of them interleaved.

    Args:
        subjects: name -> bundle folder, ONNX file or module.
        input_shape: (C, H, W) of one image.
        configs: runtimes, precisions, batch sizes, ...
        rounds: visits of each.
        progress: is given a bar.

    Returns:
        One row per config and subject, config by config.

    Raises:
        MeasurementError: nothing to measure, fewer than 2 rounds, or times that cannot be trusted.
        RunError: a folder that is no whole bundle, or a bundle without an int8 file when that is asked for.
        RuntimeUnavailableError: a config that does not work here.
        ModelError: a network that does not fit the runtime or the input shape.
    """
    configs = list(dict.fromkeys(configs))
    if not subjects or not configs:
        raise MeasurementError(f"a benchmark needs networks and runtimes, but got {len(subjects)} and {len(configs)}")
    if rounds < 2:
        raise MeasurementError(f"rounds >= 2 must hold, but got (rounds={rounds})")
    for config in configs:
        if reason := runtime_class(config.runtime).unavailable(config):
            raise RuntimeUnavailableError(reason)
    with ExitStack() as stack:
        visitors: dict[Key, _Visitor] = {}
        opened = {name: _opened(network) for name, network in subjects.items()}
        for config in configs:
            for name, network in opened.items():
                gpu = stack.enter_context(Gpu(config)) if config.device_type == "cuda" else None
                file = _file(network, input_shape, config)
                visitors[name, config] = _Visitor(stack, file, input_shape, config, gpu)
        timed, windows = _stable_window(visitors, rounds, progress)
        session = uuid.uuid4().hex
        return [_row(key, item, timed[key], session, windows) for key, item in visitors.items()]


def _stable_window(visitors: "Mapping[Key, _Visitor]", rounds: int, progress: "Progress | None") -> tuple[dict[Key, Floats], int]:
    """Times that can be trusted, and which of at most WINDOWS windows they are: what is unstable is measured again as a whole.

    Raises MeasurementError when the last window is unstable too.
    """
    for window in range(1, WINDOWS + 1):
        for visitor in visitors.values():
            visitor.visits.clear()
        # Of a runtime, a visitor has only what is timed.
        timed = interleave({key: cast(Runtime, item) for key, item in visitors.items()}, rounds=rounds, progress=progress)
        try:
            _trust(timed)
        except MeasurementError:
            if window == WINDOWS:
                raise
        else:
            return timed, window
    raise AssertionError("a window is either stable or refused")


def compare(rows: Sequence[BenchRow], against: Sequence[BenchRow], *, seed: int = 0) -> list[Comparison]:
    """The ratio of ``rows`` (of one subject) to ``against`` (of another) under each config that both have.

    Raises MeasurementError when they share no config or were not measured side by side.
    """
    others = {row.config: row for row in against}
    pairs = [(row, others[row.config]) for row in rows if row.config in others]
    if not pairs:
        raise MeasurementError("networks must share a runtime config to be compared, but these share none: measure both together")
    if any(row.session != other.session for row, other in pairs):
        raise MeasurementError("times must be from one benchmark to be compared, but these are from two: measure both together")
    return [_compared(row, other, seed) for row, other in pairs]


def to_json(rows: Sequence[BenchRow], comparisons: Sequence[Comparison] = ()) -> dict[str, Any]:
    """The content of a bench.json."""
    return {"schema": SCHEMA, "rows": [asdict(row) for row in rows], "comparisons": [asdict(item) for item in comparisons]}


def read_rows(content: Mapping[str, Any]) -> list[BenchRow]:
    """The inverse of `to_json`."""
    return [BenchRow(**{**row, "round_ms": tuple(row["round_ms"])}) for row in content["rows"]]


def to_csv(rows: Sequence[BenchRow]) -> str:
    """One line per row, with the device's name, the runtime's version and the date; empty where unknown."""
    names = [item.name for item in fields(BenchRow) if item.name not in ("round_ms", "session", "fingerprint")]
    known = {"device_name": "device", "runtime_version": "runtime_version", "driver": "driver", "date": "date"}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *known])
    for row in rows:
        writer.writerow([*(getattr(row, name) for name in names), *(row.fingerprint.get(key) for key in known.values())])
    return text.getvalue()


def unusable(bundle: Bundle, config: RuntimeConfig) -> str | None:
    """Why ``bundle`` cannot be measured under ``config`` here, in one line; None when it can."""
    runtime = runtime_class(config.runtime)
    if reason := runtime.unavailable(config):
        return reason
    if runtime.consumes == "module" and not runtime.files:
        return f"{config.runtime} runs torch modules, which bundles do not hold: use onnxruntime, openvino, tensorrt or aoti"
    if not bundle.batch[0] <= config.batch <= bundle.batch[1]:
        return f"bundle {bundle.path} takes {bundle.batch[0]} to {bundle.batch[1]} images, not {config.batch}: export it again"
    try:
        bundle.file(config.runtime, config.precision, config.batch)
    except RunError as problem:
        return str(problem)
    return None


def _opened(network: "Path | nn.Module") -> "Path | nn.Module | Bundle":
    return load_bundle(network) if isinstance(network, Path) and network.is_dir() else network


def _file(network: "Path | nn.Module | Bundle", input_shape: tuple[int, int, int], config: RuntimeConfig) -> "Path | nn.Module":
    if not isinstance(network, Bundle):
        return network
    if network.input_shape != input_shape:
        raise ModelError(f"bundle {network.path} takes images of shape {network.input_shape}, but got {input_shape}")
    return network.file(config.runtime, config.precision, config.batch)


class _Visitor:
    """A loaded, warm network; each visit runs it for about VISIT_MS and keeps the times."""

    def __init__(
        self,
        stack: ExitStack,
        network: "Path | nn.Module",
        input_shape: tuple[int, int, int],
        config: RuntimeConfig,
        gpu: "Gpu | None",
    ) -> None:
        before, host = gpu.used_mib() if gpu else None, HostMemory()
        self.runtime = stack.enter_context(runtime_class(config.runtime)(network, input_shape, config))
        self.repeats = self._warm_up()
        after = gpu.used_mib() if gpu else None
        self.gpu, self.host_mib = gpu, host.peak_mib()
        self.memory_mib = None if before is None or after is None else after - before
        self.visits: list[list[float]] = []

    def _warm_up(self, limit_s: float = 2.0) -> int:
        """Run until the times settle, or for long enough; returns how many runs a visit takes."""
        samples: list[float] = []
        start = time.monotonic()
        while not stable(samples, 0.05) and time.monotonic() - start < limit_s and len(samples) < 200:
            samples += self.runtime.time_ms(5)
        ms = float(np.median(samples[-5:]))
        # Times that are no times are refused later, with the name of what gave them.
        return max(FEWEST, min(MOST, math.ceil(VISIT_MS / ms))) if ms > 0 else FEWEST

    def time_ms(self, repeats: int) -> list[float]:
        """The times of one visit; its first run finds the caches of another network and is left out."""
        self.visits.append(self.runtime.time_ms(self.repeats)[1:])
        return self.visits[-1]


def _trust(timed: Mapping[Key, Floats]) -> None:
    """Refuse times that are not positive, or drift or split as the other networks in the same rounds do not."""
    for (name, config), values in timed.items():
        if not (np.isfinite(values).all() and (values > 0).all()):
            check_samples(_called(name, config), values)
    for key, values in timed.items():
        others = [other / np.median(other) for name, other in timed.items() if name != key]
        machine = np.median(others, axis=0) if others else 1.0  # (rounds,)
        check_samples(_called(*key), values / machine)


def _called(name: str, config: RuntimeConfig) -> str:
    return f"{name} in {config.runtime}, {config.precision}, batch {config.batch}"


def _row(key: Key, visitor: _Visitor, timed: Floats, session: str, windows: int) -> BenchRow:
    subject, config = key
    samples = np.concatenate(visitor.visits[1:])
    p50, p90, p99 = (float(value) for value in np.quantile(samples, (0.5, 0.9, 0.99)))
    energy, clock = visitor.gpu.under_load(visitor.runtime) if visitor.gpu else (None, None)
    return BenchRow(
        subject=subject,
        **plain(config),
        p50_ms=p50,
        p90_ms=p90 if len(samples) >= FOR_P90 else None,
        p99_ms=p99 if len(samples) >= FOR_P99 else None,
        n=len(samples),
        images_per_s=1e3 * config.batch / p50,
        rel=summarize(timed).rel,
        noise_floor=noise_floor(timed),
        host_memory_mib=visitor.host_mib,
        gpu_memory_mib=visitor.memory_mib,
        energy_mj_per_image=None if energy is None else energy / config.batch,
        sm_clock_mhz=clock,
        round_ms=tuple(timed.tolist()),
        windows=windows,
        session=session,
        fingerprint=fingerprint(config),
    )


def noise_floor(round_ms: Floats, *, seed: int = 0) -> float | None:
    """How much two measurements of the same thing differ, relative: the mean over random halves of the rounds."""
    half = len(round_ms) // 2
    if half < 2:
        return None
    shuffled = np.random.default_rng(seed).permuted(np.tile(round_ms, (DRAWS, 1)), axis=1)  # (draws, rounds)
    first, second = np.median(shuffled[:, :half], axis=1), np.median(shuffled[:, half : 2 * half], axis=1)
    return float(np.mean(np.abs(first / second - 1)))


def _compared(row: BenchRow, other: BenchRow, seed: int) -> Comparison:
    ratios = np.array(row.round_ms) / np.array(other.round_ms)  # (rounds,)
    drawn = np.random.default_rng(seed).choice(ratios, (DRAWS, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return Comparison(
        subject=row.subject,
        against=other.subject,
        **plain(row.config),
        ratio=float(np.median(ratios)),
        low=float(low),
        high=float(high),
        rounds=len(ratios),
    )
