"""Networks x runtimes x batch sizes, measured side by side: latency, throughput and, on a GPU, memory, energy and clocks.

Everything that is to be compared is loaded at once and visited in turn, so that a drifting or shared machine slows all of
it alike; two networks are compared round by round. Where a network lies in memory matters as well (`visits.again`): on a CPU all
are loaded twice, the second time in the opposite order, where that is quick, and each round visits the other copies.
"""

import math
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from nar_hw.bench.rows import BenchRow, Floats, noise_floor
from nar_hw.bundles.manifest import Bundle, load_bundle
from nar_hw.device.visits import twice
from nar_hw.errors import MeasurementError, ModelError, RunError, RuntimeUnavailableError
from nar_hw.latency.children import alone, says
from nar_hw.latency.contention import Watch
from nar_hw.latency.device import fingerprint
from nar_hw.latency.meters import Gpu, HostMemory, cpu_energy_mj
from nar_hw.latency.timing import check_samples, interleave, stable, summarize
from nar_hw.records import plain, replace
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.runtimes.base import Runtime

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch import nn

Key = tuple[str, RuntimeConfig]

VISIT_MS = 20.0
"""About how long one visit takes; at least FEWEST and at most MOST runs."""
FEWEST, MOST = 5, 20
FOR_P90, FOR_P99 = 10, 100
"""Runs below which a percentile says nothing."""
WINDOWS = 3
"""How often everything is measured until its times are stable."""


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
        stack.enter_context(alone(configs, progress))
        visitors: dict[Key, _Visitor] = {}
        opened = {name: _opened(network) for name, network in subjects.items()}
        for config in configs:
            for name, network in opened.items():
                gpu = stack.enter_context(Gpu(config)) if config.device_type == "cuda" else None
                file = _file(network, input_shape, config)
                visitors[name, config] = _Visitor(stack, file, input_shape, config, gpu)
        for config in configs:
            _load_again([visitors[name, config] for name in opened], stack)
        # One GPU at most is asked: benchmarks are of one device
        shown = max(configs, key=lambda config: config.device_type == "cuda")
        watch = stack.enter_context(Watch(shown, says(progress)))
        timed, windows = _stable_window(visitors, rounds, progress, watch)
        contention = watch.found()
        session = uuid.uuid4().hex
        return [replace(_row(key, item, timed[key], session, windows), contention=contention) for key, item in visitors.items()]


def _load_again(visitors: "Sequence[_Visitor]", stack: ExitStack) -> None:
    """Load all of one config once more, last first, where that is quick and there is room."""
    taken = [math.inf if item.host_mib is None or item.gpu else item.host_mib for item in visitors]
    if twice(len(visitors), sum(item.seconds for item in visitors), sum(taken) * 2**20):
        for visitor in reversed(visitors):
            visitor.load(stack)
            visitor.runtimes[-1].time_ms(FEWEST)


def _stable_window(
    visitors: "Mapping[Key, _Visitor]", rounds: int, progress: "Progress | None", watch: Watch
) -> tuple[dict[Key, Floats], int]:
    """Times that can be trusted, and which of at most WINDOWS windows they are: what is unstable is measured again as a whole.

    Raises MeasurementError when the last window is unstable too.
    """
    for window in range(1, WINDOWS + 1):
        for visitor in visitors.values():
            visitor.begin(watch)
        watch.begin()
        # Of a runtime, a visitor has only what is timed.
        timed = interleave({key: cast(Runtime, item) for key, item in visitors.items()}, rounds=rounds, progress=progress)
        try:
            trust(timed)
        except MeasurementError:
            if window == WINDOWS:
                raise
        else:
            return timed, window
    raise AssertionError("a window is either stable or refused")


def unusable(bundle: Bundle, config: RuntimeConfig) -> str | None:
    """Why ``bundle`` cannot be measured under ``config`` here, in one line; None when it can."""
    runtime = runtime_class(config.runtime)
    if reason := runtime.unavailable(config):
        return reason
    if runtime.consumes == "module" and not runtime.files:
        return f"{config.runtime} runs torch modules, which bundles do not hold: use onnxruntime, openvino, tensorrt or aoti"
    fewest, most = bundle.manifest.input.batch
    if not fewest <= config.batch <= most:
        return f"bundle {bundle.path} takes {fewest} to {most} images, not {config.batch}: export it again"
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
    if (shape := network.manifest.input.shape) != input_shape:
        raise ModelError(f"bundle {network.path} takes images of shape {shape}, but got {input_shape}")
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
        self._network, self._shape, self._config = network, input_shape, config
        self.runtimes: list[Runtime] = []
        start = time.monotonic()
        self.load(stack)
        self.seconds = time.monotonic() - start
        self.repeats = self._warm_up()
        after = gpu.used_mib() if gpu else None
        self.gpu, self.host_mib = gpu, host.peak_mib()
        self.memory_mib = None if before is None or after is None else after - before
        self.visits: list[list[float]] = []

    def load(self, stack: ExitStack) -> None:
        """Load it, or load it once more."""
        self.runtimes.append(stack.enter_context(runtime_class(self._config.runtime)(self._network, self._shape, self._config)))

    def _warm_up(self, limit_s: float = 2.0) -> int:
        """Run until the times settle, or for long enough; returns how many runs a visit takes."""
        samples: list[float] = []
        start = time.monotonic()
        while not stable(samples, 0.05) and time.monotonic() - start < limit_s and len(samples) < 200:
            samples += self.runtimes[0].time_ms(5)
        ms = float(np.median(samples[-5:]))
        # Times that are no times are refused later, with the name of what gave them.
        return max(FEWEST, min(MOST, math.ceil(VISIT_MS / ms))) if ms > 0 else FEWEST

    def begin(self, watch: Watch) -> None:
        """A new window."""
        self.visits.clear()
        self._watch = watch

    def time_ms(self, repeats: int) -> list[float]:
        """The times of one visit to the next copy; its first run finds the caches of another network and is left out."""
        self._watch.look()
        runtime = self.runtimes[len(self.visits) % len(self.runtimes)]
        self.visits.append(runtime.time_ms(self.repeats)[1:])
        return self.visits[-1]


def trust(timed: Mapping[Key, Floats]) -> None:
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
    energy, clock = visitor.gpu.under_load(visitor.runtimes[0]) if visitor.gpu else (cpu_energy_mj(visitor.runtimes[0]), None)
    return replace(
        row_of(subject, config, np.concatenate(visitor.visits[1:]), timed, session, fingerprint(config)),
        host_memory_mib=visitor.host_mib,
        gpu_memory_mib=visitor.memory_mib,
        energy_mj_per_image=None if energy is None else energy / config.batch,
        sm_clock_mhz=clock,
        windows=windows,
    )


def row_of(
    subject: str, config: RuntimeConfig, samples: Floats, timed: Floats, session: str, mark: Mapping[str, Any]
) -> BenchRow:
    """What times say: ``samples`` (runs,) ms of single inferences, ``timed`` (rounds,) their medians, ``mark`` a fingerprint."""
    p50, p90, p99 = (float(value) for value in np.quantile(samples, (0.5, 0.9, 0.99)))
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
        round_ms=tuple(timed.tolist()),
        session=session,
        fingerprint=mark,
    )
