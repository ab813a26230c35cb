"""Measuring networks side by side, comparing them round by round, and what a GPU tells of itself."""

import csv
import io
import json
import math
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from rich.progress import Progress
from torch import nn

from nar_hw.bench.benchmark import bench
from nar_hw.bench.rows import BenchFile, BenchRow, compare, noise_floor, to_csv
from nar_hw.errors import MeasurementError, ModelError, RunError, RuntimeUnavailableError, SpaceError, UnknownNameError
from nar_hw.latency import meters
from nar_hw.latency.measure import measure_children
from nar_hw.latency.meters import Gpu, HostMemory
from nar_hw.records import plain, replace
from nar_hw.report.latencies import bench_png
from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.fake import FakeDevice, FakeRuntime
from nar_hw.space.space import SearchSpace
from nar_hw.steps.bench import bench_bundles
from tests.bundles import exported
from tests.networks import TinyResNet
from tests.test_profiler import Placed

SHAPE = (3, 8, 8)
FAKE = RuntimeConfig(runtime="fake")
QUIET = FakeDevice(noise=0.0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.Flatten())


SMALL, LARGE = network(8), network(64)


def row(round_ms: list[float], subject: str = "a", **fields: Any) -> BenchRow:
    values: dict[str, Any] = {
        **plain(FAKE),
        **dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "images_per_s", "rel", "noise_floor"), 1.0),
        **{"n": 1, "session": "s", "fingerprint": {}},
    }
    return BenchRow(subject=subject, round_ms=tuple(round_ms), **{**values, **fields})


# Rows


def test_every_network_under_every_config_has_its_row() -> None:
    configs = [FAKE, replace(FAKE, batch=8)]
    device = FakeDevice(noise=0.01)
    with FakeRuntime.on(device):
        rows = bench({"small": SMALL, "large": LARGE}, input_shape=SHAPE, configs=configs, rounds=12)
    assert [(item.subject, item.batch) for item in rows] == [("small", 1), ("large", 1), ("small", 8), ("large", 8)]
    for item in rows:
        truth = FakeRuntime.truth(SMALL if item.subject == "small" else LARGE, SHAPE, batch=item.batch, device=device)
        assert item.p50_ms == pytest.approx(truth, rel=0.01)
        assert item.p99_ms is not None
        assert item.p90_ms is not None
        # Quantiles of the log-normal noise of one run.
        assert item.p90_ms == pytest.approx(truth * math.exp(0.01 * scipy.stats.norm.ppf(0.9)), rel=0.01)
        assert item.p50_ms < item.p90_ms < item.p99_ms
        assert item.images_per_s == pytest.approx(1000 * item.batch / item.p50_ms)
        assert len(item.round_ms) == 12
        assert item.n % 12 == 0
        assert item.rel is not None
        assert 0 < item.rel < 0.01
        assert item.config == replace(FAKE, batch=item.batch)
        assert item.fingerprint["batch"] == item.batch
        assert item.gpu_memory_mib is item.energy_mj_per_image is item.sm_clock_mhz is None


def test_without_noise_all_percentiles_are_the_truth() -> None:
    with FakeRuntime.on(QUIET):
        (only,) = bench({"a": SMALL}, input_shape=SHAPE, configs=[FAKE], rounds=6)
        truth = FakeRuntime.truth(SMALL, SHAPE)
    assert (only.p50_ms, only.p90_ms, only.p99_ms) == pytest.approx((truth,) * 3)
    assert (only.rel, only.noise_floor) == pytest.approx((0, 0), abs=1e-12)


def test_everything_is_visited_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    visits: list[tuple[int, int]] = []
    whole = FakeRuntime.time_ms

    def logged(self: FakeRuntime, repeats: int) -> list[float]:
        if repeats > 5:  # warming up runs five at a time
            visits.append((id(self), repeats))
        return whole(self, repeats)

    monkeypatch.setattr(FakeRuntime, "time_ms", logged)
    with FakeRuntime.on(QUIET):
        rows = bench({"a": SMALL, "b": LARGE, "c": network(16)}, input_shape=SHAPE, configs=[FAKE], rounds=4)
    order = [number for number, _ in visits]
    assert order == (order[:6] * 3)[:15]  # one visit more than rounds, which is dropped; each is loaded twice
    assert len(set(order[:6])) == 6
    # The first run of a visit is left out.
    assert [item.n for item in rows] == [4 * (repeats - 1) for _, repeats in visits[:3]]


@pytest.mark.parametrize(
    ("module", "name", "value", "ratio", "loads"),
    [
        ("nar_hw.device.visits", "AGAIN_S", 1.0, 1.0, 4),
        ("nar_hw.device.visits", "AGAIN_S", 0.0, 1.2 / 1.18, 2),
        ("nar_hw.device.visits", "MEMORY", 0.0, 1.2 / 1.18, 2),
        ("nar_hw.latency.meters", "_resident", lambda field: None, 1.2 / 1.18, 2),
    ],
    ids=["quick", "slow", "too large", "memory unknown"],
)
def test_a_place_in_memory_favours_none(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, value: Any, ratio: float, loads: int
) -> None:
    """Both are loaded once more, in the opposite order, where loading is quick and there is room."""
    monkeypatch.setattr("nar_hw.bench.benchmark.runtime_class", lambda name: Placed)
    monkeypatch.setattr(Placed, "loaded", 0)
    monkeypatch.setattr(f"{module}.{name}", value)
    with FakeRuntime.on(QUIET):
        first, second = bench({"a": SMALL, "b": SMALL}, input_shape=SHAPE, configs=[FAKE], rounds=8)
    assert Placed.loaded == loads
    (found,) = compare([first], [second])
    assert found.ratio == pytest.approx(ratio, rel=0.001)


def test_percentiles_that_few_runs_do_not_show_are_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nar_hw.bench.benchmark.VISIT_MS", 0.0)  # five runs a visit, of which four count
    with FakeRuntime.on(QUIET):
        (few,) = bench({"a": SMALL}, input_shape=SHAPE, configs=[FAKE], rounds=2)
        (some,) = bench({"a": SMALL}, input_shape=SHAPE, configs=[FAKE], rounds=24)
        (many,) = bench({"a": SMALL}, input_shape=SHAPE, configs=[FAKE], rounds=25)
    assert (few.n, few.p90_ms, few.p99_ms, few.rel, few.noise_floor) == (8, None, None, None, None)
    assert (some.n, some.p99_ms) == (96, None)
    assert some.p90_ms is not None
    assert many.n == 100
    assert many.p99_ms is not None


def test_a_progress_bar_reaches_its_end() -> None:
    with FakeRuntime.on(QUIET), Progress(disable=True) as progress:
        bench({"a": SMALL}, input_shape=SHAPE, configs=[FAKE], rounds=3, progress=progress)
        (task,) = progress.tasks
    assert task.completed == task.total == 4


def test_the_file_keeps_everything_and_csv_a_line_per_row(tmp_path: Path) -> None:
    with FakeRuntime.on(QUIET):
        rows = bench({"small": SMALL, "large, wide": LARGE}, input_shape=SHAPE, configs=[FAKE], rounds=5)
    file = BenchFile(rows=tuple(rows), comparisons=compare(rows[:1], rows[1:]))
    file.save(tmp_path / "bench.json")
    assert BenchFile.load(tmp_path / "bench.json") == file
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["schema"] == 1
    assert [item["p50_ms"] for item in content["rows"]] == [item.p50_ms for item in rows]
    assert content["rows"][0]["fingerprint"]["device"] == "fake device"
    assert content["rows"][0]["round_ms"] == list(rows[0].round_ms)
    assert content["comparisons"][0]["subject"] == "small"
    table = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [line["subject"] for line in table] == ["small", "large, wide"]
    assert [float(line["p50_ms"]) for line in table] == [item.p50_ms for item in rows]
    assert table[0]["device_name"] == "fake device"
    assert table[0]["gpu_memory_mib"] == ""


def test_an_unstable_window_is_measured_again_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    visits = 0
    whole = FakeRuntime.time_ms

    def disturbed(self: FakeRuntime, repeats: int) -> list[float]:
        nonlocal visits
        times = whole(self, repeats)
        if repeats == 5:  # warming up
            return times
        visits += 1
        return [2 * ms if visits in (2, 4, 6, 8) else ms for ms in times]  # of the first nine

    monkeypatch.setattr(FakeRuntime, "time_ms", disturbed)
    with FakeRuntime.on(QUIET):
        (only,) = bench({"a": SMALL}, input_shape=SHAPE, configs=[FAKE], rounds=8)
        truth = FakeRuntime.truth(SMALL, SHAPE)
    assert only.windows == 2
    assert visits == 2 * 9
    assert only.p99_ms == pytest.approx(truth)


def test_memory_is_what_the_process_gained() -> None:
    memory = HostMemory()
    if memory.peak_mib() is None:
        pytest.skip("this system does not tell")
    array = np.ones(64 * 2**17)  # 64 MiB
    assert 60 < (memory.peak_mib() or 0) < 90
    del array
    assert (memory.peak_mib() or 0) > 60
    assert (HostMemory().peak_mib() or 0) < 30


BEFORE = {
    **{"subject": "a", "runtime": "fake", "precision": "fp32", "batch": 1, "threads": 1, "device": "cpu"},
    **{"memory_format": "contiguous", "p50_ms": 1, "p90_ms": 1.5, "p99_ms": None, "n": 20, "images_per_s": 1000.0, "rel": 0.1},
    **{"noise_floor": None, "round_ms": [1.0, 1], "session": "s", "fingerprint": {"device": "a CPU"}},
}
"""A row of schema 1 as it was before memory, energy and windows were noted."""


def test_files_without_what_came_later_are_read(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps({"schema": 1, "rows": [BEFORE], "comparisons": []}))
    (only,) = BenchFile.load(tmp_path / "bench.json").rows
    assert (only.config, only.p50_ms, only.round_ms, only.windows) == (FAKE, 1.0, (1.0, 1.0), 1)
    assert only.host_memory_mib is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "must have schema 1 or less, but has 2"),
        ({"rows": [{**BEFORE, "p50_ms": "fast"}]}, r"rows[0].p50_ms must be float, but is 'fast'"),
        ({"rows": [{key: BEFORE[key] for key in BEFORE if key != "runtime"}]}, "rows[0] must have 'runtime'"),
        ({"left_out": {}}, "left_out must be"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"schema": 1, "rows": [BEFORE], **change}))
    with pytest.raises(RunError) as caught:
        BenchFile.load(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"benchmark {path}")
    assert "\n" not in str(caught.value)


def test_a_picture_of_rows(tmp_path: Path) -> None:
    rows = [row([2.0]), row([3.0], subject="other", p90_ms=None, p99_ms=None, batch=8)]
    bench_png(rows, tmp_path / "rows.png")
    bench_png(rows, tmp_path / "again.png")
    assert (tmp_path / "rows.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    with Image.open(tmp_path / "rows.png") as image:
        assert image.width > image.height
    with pytest.raises(MeasurementError, match="needs times"):
        bench_png([], tmp_path / "none.png")


# Comparing


def test_drift_of_the_machine_cancels_in_a_comparison() -> None:
    device = FakeDevice(noise=0.005, drift=0.3, period_ms=150.0)
    with FakeRuntime.on(device):
        rows = bench({"small": SMALL, "large": LARGE}, input_shape=SHAPE, configs=[FAKE], rounds=40)
        truth = FakeRuntime.truth(SMALL, SHAPE) / FakeRuntime.truth(LARGE, SHAPE)
    (found,) = compare(rows[:1], rows[1:])
    assert max(rows[0].round_ms) / min(rows[0].round_ms) > 1.3  # it did drift
    assert found.ratio == pytest.approx(truth, rel=0.02)
    assert found.low < found.ratio < found.high
    assert found.rounds == 40


rounds = st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=5, max_size=25).filter(lambda pairs: len(pairs) % 2)


@settings(deadline=None, max_examples=25)
@given(rounds)
def test_a_comparison_turned_round_is_its_reciprocal(pairs: list[tuple[float, float]]) -> None:
    first, second = row([a for a, _ in pairs]), row([b for _, b in pairs], "b")
    (there,), (back,) = compare([first], [second]), compare([second], [first])
    assert there.ratio * back.ratio == pytest.approx(1)
    assert there.low <= there.ratio <= there.high
    assert there.ratio == pytest.approx(sorted(a / b for a, b in pairs)[len(pairs) // 2])
    assert compare([first], [second]) == (there,)  # the same draws again


def test_the_interval_is_that_of_scipy() -> None:
    rng = np.random.default_rng(3)
    ratios = 0.8 * np.exp(rng.normal(0, 0.05, 40))
    (found,) = compare([row(ratios.tolist())], [row([1.0] * 40, "b")])
    expected = scipy.stats.bootstrap((ratios,), np.median, n_resamples=9999, method="percentile", random_state=1)
    assert found.low == pytest.approx(expected.confidence_interval.low, rel=0.01)
    assert found.high == pytest.approx(expected.confidence_interval.high, rel=0.01)


def test_rows_pair_by_config() -> None:
    ours = [row([2.0] * 5), row([9.0] * 5, batch=8), row([1.0] * 5, precision="int8")]
    theirs = [row([3.0] * 5, "b", batch=8), row([1.0] * 5, "b")]
    assert [(item.batch, item.ratio) for item in compare(ours, theirs)] == [(1, 2.0), (8, 3.0)]


def test_the_noise_floor_of_normal_noise_is_known() -> None:
    # Medians of halves of n rounds have the variance pi s^2 / n, their difference twice that, its mean size 2 s / sqrt(n).
    floors = [noise_floor(noise) for noise in np.random.default_rng(0).normal(1, 0.01, (30, 400))]
    assert np.mean([floor for floor in floors if floor is not None]) == pytest.approx(2 * 0.01 / math.sqrt(400), rel=0.1)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.floats(0.5, 2), min_size=4, max_size=20), st.floats(0.01, 100))
def test_the_noise_floor_is_relative(values: list[float], factor: float) -> None:
    floor = noise_floor(np.array(values))
    assert floor is not None
    assert noise_floor(np.array(values) * factor) == pytest.approx(floor)
    assert noise_floor(np.array(values[:3])) is None


# Children


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    torch.manual_seed(0)
    return SearchSpace.from_model(TinyResNet(width=16), SHAPE)


def test_children_are_measured_beside_the_network_itself(space: SearchSpace) -> None:
    archs = [
        tuple(slot.candidates[-1] for slot in space.slots),
        space.incumbent,
        tuple(slot.candidates[1] for slot in space.slots),
    ]
    device = FakeDevice(noise=0.003, drift=0.2, period_ms=100.0)
    with FakeRuntime.on(device), Progress(disable=True) as progress:
        found = measure_children(space, [*archs, archs[0]], FAKE, rounds=12, progress=progress)
        truths = [FakeRuntime.truth(space.build(arch), SHAPE) for arch in archs]
        own = FakeRuntime.truth(space.model, SHAPE)
        assert all(task.finished for task in progress.tasks)
    assert [ms / found.incumbent_ms for ms in found.ms[:3]] == pytest.approx([truth / own for truth in truths], rel=0.03)
    assert found.ms[3] == found.ms[0]
    assert found.rounds == 12
    assert all(rel is not None and rel < 0.1 for rel in found.rel)


def test_children_must_be_of_the_space(space: SearchSpace) -> None:
    with pytest.raises(SpaceError, match="one code per slot"):
        measure_children(space, [(0,)], FAKE)
    with pytest.raises(MeasurementError, match="at least one arch"):
        measure_children(space, [], FAKE)


# Bundles


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    return exported(TinyResNet().eval(), out)


def test_a_bundle_is_measured_by_its_file(bundle: Path) -> None:
    rows = bench({"b": bundle, "file": bundle / "model.onnx"}, input_shape=SHAPE, configs=[RuntimeConfig(batch=2)], rounds=2)
    assert [item.subject for item in rows] == ["b", "file"]
    assert all(item.p50_ms > 0 for item in rows)
    with pytest.raises(RunError, match="int8 is asked for"):
        bench({"b": bundle}, input_shape=SHAPE, configs=[RuntimeConfig(precision="int8")])
    with pytest.raises(ModelError, match=r"takes images of shape \(3, 8, 8\), but got \(3, 9, 9\)"):
        bench({"b": bundle}, input_shape=(3, 9, 9), configs=[RuntimeConfig()])
    with pytest.raises(ModelError, match="runs a torch module"):
        bench({"b": bundle}, input_shape=SHAPE, configs=[FAKE])


def test_what_bundles_cannot_run_is_left_out_with_the_reason(bundle: Path) -> None:
    good = RuntimeConfig(batch=2)
    bad = {
        replace(good, precision="int8"): "has fp32, but int8 is asked for",
        replace(good, precision="bf16"): "onnxruntime needs precision",
        replace(good, batch=65): "takes 1 to 64 images, not 65",
        replace(good, runtime="torch_eager"): "torch_eager runs torch modules, which bundles do not hold",
    }
    found = bench_bundles({"b": bundle}, [good, *bad], rounds=2)
    assert [item.batch for item in found.rows] == [2]
    assert [item.config for item in found.left_out] == list(bad)
    for item, message in zip(found.left_out, bad.values(), strict=True):
        assert message in item.reason
    with pytest.raises(RuntimeUnavailableError, match="int8 is asked for"):
        bench_bundles({"b": bundle}, list(bad), rounds=2)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="manifest"):
        bench({"b": tmp_path}, input_shape=SHAPE, configs=[RuntimeConfig()])


# Refusals


def test_there_must_be_something_to_measure() -> None:
    with pytest.raises(MeasurementError, match="got 0 and 1"):
        bench({}, input_shape=SHAPE, configs=[FAKE])
    with pytest.raises(MeasurementError, match="got 1 and 0"):
        bench({"a": SMALL}, input_shape=SHAPE, configs=[])
    with pytest.raises(MeasurementError, match="rounds >= 2 must hold"):
        bench({"a": SMALL}, input_shape=SHAPE, configs=[FAKE], rounds=1)


def test_configs_must_work_here() -> None:
    with pytest.raises(UnknownNameError, match="onnxruntime"):
        bench({"a": SMALL}, input_shape=SHAPE, configs=[RuntimeConfig(runtime="onnxruntim")])
    with pytest.raises(RuntimeUnavailableError, match="device"):
        bench({"a": SMALL}, input_shape=SHAPE, configs=[FAKE, replace(FAKE, device="cuda")])


@pytest.mark.parametrize(
    ("fault", "what"),
    [("nan", "not a number"), ("zero", "zero"), ("negative", "negative"), ("drifting", "drift"), ("bimodal", "one mode")],
)
def test_times_that_cannot_be_trusted_are_refused_with_the_name_of_what_gave_them(
    fault: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nar_hw.bench.benchmark.WINDOWS", 1)
    with (
        FakeRuntime.on(FakeDevice(fault=fault)),
        pytest.raises(MeasurementError, match=rf"^odd one in fake, fp32, batch 1: .*{what}"),
    ):
        bench({"odd one": SMALL}, input_shape=SHAPE, configs=[FAKE], rounds=30)


def test_only_what_was_measured_together_is_compared() -> None:
    with pytest.raises(MeasurementError, match="these are from two"):
        compare([row([1.0])], [row([1.0], session="t")])
    with pytest.raises(MeasurementError, match="share none"):
        compare([row([1.0])], [row([1.0], batch=2)])


# GPU


class NVMLError(Exception):
    pass


class FakeNvml(types.ModuleType):
    """A driver of a device that takes 50 mJ per run and 3 MiB per load."""

    NVMLError = NVMLError
    NVML_CLOCK_SM = 1

    def __init__(self, silent: tuple[str, ...] = ()) -> None:
        super().__init__("pynvml")
        self.energy, self.used, self.open, self.silent = 0, 2**20, 0, silent

    def _tell(self, name: str, value: Any) -> Any:
        if name in self.silent:
            raise NVMLError(name)
        return value

    def nvmlInit(self) -> None:  # noqa: N802
        self._tell("init", None)
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        if not self.open:
            raise NVMLError("not initialised")
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:  # noqa: N802
        assert name == "GPU-1234"
        return str(self._tell("handle", "handle"))

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return self._tell("memory", types.SimpleNamespace(used=self.used))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        return int(self._tell("energy", self.energy))

    def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:  # noqa: N802
        assert clock == self.NVML_CLOCK_SM
        return int(self._tell("clock", 1980))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda index: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: types.SimpleNamespace(uuid="1234"))


def readings(nvml: FakeNvml) -> tuple[float | None, float | None, float | None]:
    class Worker(FakeRuntime):
        def time_ms(self, repeats: int) -> list[float]:
            nvml.energy += 50 * repeats
            return super().time_ms(repeats)

    with Gpu(RuntimeConfig(device="cuda")) as gpu:
        memory = gpu.used_mib()
        energy, clock = gpu.under_load(Worker(SMALL, SHAPE, FAKE), seconds=0.0)
    assert nvml.open == 0
    return memory, energy, clock


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("silent", "expected"),
    [
        ((), (1.0, 50.0, 1980.0)),
        (("energy",), (1.0, None, 1980.0)),
        (("clock", "memory"), (None, 50.0, None)),
        (("handle",), (None, None, None)),
        (("init",), (None, None, None)),
    ],
)
def test_what_a_gpu_does_not_tell_is_none(
    monkeypatch: pytest.MonkeyPatch, silent: tuple[str, ...], expected: tuple[float | None, ...]
) -> None:
    nvml = FakeNvml(silent)
    monkeypatch.setitem(__import__("sys").modules, "pynvml", nvml)
    assert readings(nvml) == expected


class Draining(FakeRuntime):
    """Each run takes 200 microjoules from both packages; their counters begin anew behind 9,999."""

    folder: Path

    def time_ms(self, repeats: int) -> list[float]:
        for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
            file = self.folder / name / "energy_uj"
            file.write_text(str((int(file.read_text()) + 200 * repeats) % 10_000))
        return super().time_ms(repeats)


def test_the_energy_of_a_cpu_is_that_of_its_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(meters, "RAPL", tmp_path)
    monkeypatch.setattr(Draining, "folder", tmp_path, raising=False)
    with Draining(SMALL, SHAPE, FAKE) as runtime:
        assert meters.cpu_energy_mj(runtime, seconds=0.0) is None, "no packages"
        for name, start in (("intel-rapl:0", 9_500), ("intel-rapl:1", 0), ("intel-rapl:0:0", 0)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "energy_uj").write_text(str(start))
            (tmp_path / name / "max_energy_range_uj").write_text("9999")
        assert meters.cpu_energy_mj(runtime, seconds=0.0) == pytest.approx(2 * 200 / 1e3)
        (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
        assert meters.cpu_energy_mj(runtime, seconds=0.0) is None, "what cannot be read is no zero"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured() -> None:
    config = RuntimeConfig(runtime="torch_eager", device="cuda", batch=8)
    rows = bench({"small": SMALL.cpu(), "large": LARGE.cpu()}, input_shape=SHAPE, configs=[config], rounds=5)
    for item in rows:
        assert item.gpu_memory_mib is not None
        assert item.gpu_memory_mib >= 0
        assert item.sm_clock_mhz is None or item.sm_clock_mhz > 100
        assert item.energy_mj_per_image is None or item.energy_mj_per_image > 0
        assert item.fingerprint["kind"] == "cuda"
