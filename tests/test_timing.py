"""Measuring: statistics, interleaving, dividing out drift, and times that must not be trusted."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from rich.progress import Progress
from scipy.stats import binom
from torch import nn

from nar_hw.errors import MeasurementError
from nar_hw.latency.timing import check_samples, interleave, stable, summarize
from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.fake import FAULTS, FakeDevice, FakeRuntime

SHAPE = (3, 16, 16)
CONFIG = RuntimeConfig(runtime="fake")
times = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60)


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.Flatten())


def load(width: int) -> FakeRuntime:
    return FakeRuntime(network(width), SHAPE, CONFIG)


# Statistics


@given(times, st.floats(0.1, 10), st.randoms())
def test_summary_is_what_numpy_says_scales_and_ignores_order(
    samples: list[float], factor: float, rng: "np.random.Random"
) -> None:
    timing = summarize(samples)
    assert timing.n == len(samples)
    assert (timing.p10, timing.ms, timing.p90) == pytest.approx(tuple(np.percentile(samples, (10, 50, 90))))
    assert timing.p10 <= timing.ms <= timing.p90
    assert (timing.rel is None) == (len(samples) < 6)
    shuffled = list(samples)
    rng.shuffle(shuffled)
    scaled = summarize([sample * factor for sample in shuffled])
    assert scaled.ms == pytest.approx(timing.ms * factor)
    if timing.rel is not None:
        assert scaled.rel == pytest.approx(timing.rel, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("n", [6, 7, 8, 9, 10, 17, 20, 25, 64, 100, 1001])
def test_interval_is_the_narrowest_symmetric_one_that_covers_95_percent(n: int) -> None:
    """Ranks of the samples as values: the interval's ends can be read from its half-width, and scipy knows its coverage."""
    rel = summarize([1e6 + rank for rank in range(n)]).rel
    assert rel is not None
    width = round(2 * rel * (1e6 + (n - 1) / 2))
    skipped = (n - 1 - width) // 2
    assert n - 1 - width == 2 * skipped
    assert 1 - 2 * binom.cdf(skipped, n, 0.5) >= 0.95
    assert 1 - 2 * binom.cdf(skipped + 1, n, 0.5) < 0.95


def test_interval_covers_the_median_in_95_of_100_experiments() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for samples in np.exp(rng.normal(0, 0.1, (2000, 12))):
        timing = summarize(samples)
        assert timing.rel is not None
        hits += abs(timing.ms - 1) <= 2 * timing.rel * timing.ms
    assert hits / 2000 > 0.95


@given(st.lists(st.floats(0.9, 1.1), min_size=10, max_size=30), st.floats(1.5, 3))
def test_a_device_that_still_warms_up_is_not_stable(samples: list[float], slow: float) -> None:
    assert stable([*[slow] * 5, *samples[:5]], 0.2) is False
    assert stable([*[slow] * 20, *samples], 0.25)
    assert not stable(samples[:9], 10.0)
    assert stable(samples[:9], 10.0, window=4)


# Interleaving


def test_interleave_gives_each_items_own_time_without_its_first_visit() -> None:
    class Cold(FakeRuntime):
        """Takes twice as long in its first visit."""

        visits = 0

        def time_ms(self, repeats: int) -> list[float]:
            self.visits += 1
            return [ms * (2 if self.visits == 1 else 1) for ms in super().time_ms(repeats)]

    with FakeRuntime.on(FakeDevice(noise=0.0)):
        items = {width: Cold(network(width), SHAPE, CONFIG) for width in (4, 8, 16)}
        with Progress(disable=True) as progress:
            found = interleave(items, rounds=5, repeats=3, progress=progress)
            (task,) = progress.tasks
        truth = {width: FakeRuntime.truth(network(width), SHAPE) for width in items}
    assert list(found) == list(items)
    for width, visits in found.items():
        assert visits.shape == (5,)
        assert visits == pytest.approx(truth[width])
    assert task.finished
    assert task.completed == 3 * (5 + 1)
    assert interleave({}, rounds=3) == {}


# Times that cannot be trusted


@settings(max_examples=200)
@given(st.integers(1, 60), st.floats(0, 0.05), st.integers(0, 10**6))
def test_honest_noise_is_accepted(n: int, noise: float, seed: int) -> None:
    check_samples("honest", np.exp(np.random.default_rng(seed).normal(0, noise, n)))


@given(st.integers(12, 60), st.floats(0, 0.02), st.integers(0, 10**6), st.sampled_from([0, 1]))
def test_one_interruption_is_accepted(n: int, noise: float, seed: int, position: int) -> None:
    samples = np.exp(np.random.default_rng(seed).normal(0, noise, n))
    samples[position * (n - 1)] *= 5
    check_samples("interrupted", samples)


@given(times.filter(lambda samples: len(samples) > 1), st.sampled_from([math.nan, math.inf, -1.0, 0.0]), st.data())
def test_a_single_time_that_is_no_time_is_refused(samples: list[float], wrong: float, data: st.DataObject) -> None:
    samples[data.draw(st.integers(0, len(samples) - 1))] = wrong
    what = {-1.0: "negative", 0.0: "zero"}.get(wrong, "not a number")
    with pytest.raises(MeasurementError, match=rf"^x: times must be positive, but 1 of {len(samples)} are {what}: [^\n]+$"):
        check_samples("x", samples)
    with pytest.raises(MeasurementError, match=what):
        summarize(samples)


def test_no_times_at_all_are_refused() -> None:
    with pytest.raises(MeasurementError, match="x: at least one time is needed"):
        check_samples("x", [])


@given(st.integers(6, 60), st.floats(1.8, 4), st.booleans(), st.floats(0, 0.02), st.integers(0, 10**6))
def test_a_drift_is_refused_in_both_directions(n: int, growth: float, rising: bool, noise: float, seed: int) -> None:
    trend = np.geomspace(1, growth**1.5, n)
    samples = trend[:: 1 if rising else -1] * np.exp(np.random.default_rng(seed).normal(0, noise, n))
    with pytest.raises(MeasurementError, match=r"^child 3: times must not drift, but the last third takes [\d.]+ times as long"):
        check_samples("child 3", samples)


@given(st.integers(4, 30), st.integers(4, 30), st.floats(1.5, 4), st.floats(0, 0.02), st.integers(0, 10**6))
def test_two_modes_are_refused(fast: int, slow: int, ratio: float, noise: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    fast, slow = max(fast, slow // 2), max(slow, fast // 2)  # a third at least
    samples = np.concatenate([np.ones(fast), np.full(slow, ratio)]) * np.exp(rng.normal(0, noise, fast + slow))
    # Mixed so that there is no trend, which would be called a drift
    mixed = rng.permutation(samples)
    with pytest.raises(MeasurementError, match=r"^fast: times must (have one mode|not drift)"):
        check_samples("fast", mixed)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_the_fake_device_is_named(fault: str) -> None:
    with FakeRuntime.on(FakeDevice(fault=fault)), load(8) as loaded:
        samples = loaded.time_ms(40)
    words = {"nan": "not a number", "zero": "zero", "negative": "negative", "drifting": "must not drift", "bimodal": "one mode"}
    if not fault:
        check_samples("fake", samples)
        return
    with pytest.raises(MeasurementError, match=rf"^fake: [^\n]*{words[fault]}[^\n]*$"):
        check_samples("fake", samples)
