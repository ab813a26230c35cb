import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from rich.progress import Progress
from scipy.linalg import null_space
from scipy.stats import multivariate_normal
from torch import nn

from nar_hw.device.machine import cores
from nar_hw.device.visits import FEWEST_ROUNDS, Clock, again, in_turn, normalised, twice, typical
from nar_hw.errors import MeasurementError, RuntimeUnavailableError, UnknownNameError, UserError
from nar_hw.latency import in_context
from nar_hw.latency.children import batch_of, clock_of, joined, measure
from nar_hw.latency.designs import contexts, orthogonal, profiled as profiled_children
from nar_hw.latency.estimate import calibrate, mean_of_middle
from nar_hw.latency.in_context import NOISES, SPREAD, Join, likely_noise
from nar_hw.latency.journal import ChildTimes
from nar_hw.latency.loader import WEIGHED, ChildLoader, children_at_once
from nar_hw.latency.profiler import mixed, profile
from nar_hw.latency.regression import guess_by_work, leverage
from nar_hw.latency.table import LatencyTable
from nar_hw.models.info import ModelInfo
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.base import Runtime
from nar_hw.runtimes.fake import FakeDevice, FakeRuntime
from nar_hw.space.space import SearchSpace, Slot
from nar_hw.space.spec import Arch, OpSpec
from tests.networks import SharedConv, TinyResNet

SHAPE = (3, 16, 16)
FAKE = RuntimeConfig(runtime="fake")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return SearchSpace.from_model(TinyResNet(), SHAPE, operators=["conv3x3", "dwsep3x3", "max3x3"])


def truth(space: SearchSpace, arch: Arch, device: FakeDevice) -> float:
    return FakeRuntime.truth(space.build(arch), space.input_shape, device=replace(device, profiling_ms=0.0))


def largest_error(space: SearchSpace, table: LatencyTable, device: FakeDevice) -> float:
    archs = list(itertools.product(*(slot.candidates for slot in space.slots)))
    exact = np.array([truth(space, arch, device) for arch in archs])
    return float(np.abs(table.predict(np.array(archs)) / exact - 1).max())


def profiled(space: SearchSpace, device: FakeDevice, **settings: Any) -> LatencyTable:
    with FakeRuntime.on(device):
        return profile(space, config=FAKE, model_name="own", **{"rounds": 4, "validate": 0, **settings})


# -------------------------------------------------------------------------------------------- known truth, in-context


def test_additive_truth_without_noise_is_recovered_exactly(space: SearchSpace) -> None:
    device = FakeDevice(noise=0.0, interaction=0.0)
    table = profiled(space, device)
    assert largest_error(space, table, device) < 1e-3
    assert table.incumbent_ms == pytest.approx(truth(space, space.incumbent, device), rel=1e-5)


def test_additive_truth_is_recovered_within_the_noise(space: SearchSpace) -> None:
    device = FakeDevice(noise=0.02, interaction=0.0)
    assert largest_error(space, profiled(space, device), device) < 0.01


def test_a_drifting_machine_cancels_out(space: SearchSpace) -> None:
    """The device swings by 30 %; relative to the network itself, what is predicted stays the truth."""
    device = FakeDevice(interaction=0.0, drift=0.3)
    table = profiled(space, device)
    archs = [space.incumbent, *ends(space)]
    exact = np.array([truth(space, arch, device) for arch in archs])
    relative = table.predict(np.array(archs)) / table.incumbent_ms
    np.testing.assert_allclose(relative, exact / exact[0], rtol=0.02)


def ends(space: SearchSpace) -> list[Arch]:
    return [tuple(slot.candidates[number] for slot in space.slots) for number in (1, 2)]


def test_the_slowdown_by_profiling_is_taken_out(space: SearchSpace) -> None:
    """Each node takes 8 us longer while it is profiled, which would add a third to the whole."""
    device = FakeDevice(noise=0.005, interaction=0.0, profiling_ms=0.008)
    table = profiled(space, device)
    assert largest_error(space, table, device) < 0.02
    assert table.method.overhead_ms == pytest.approx(0.008, rel=0.5)


def test_an_interaction_is_averaged_over_its_contexts(space: SearchSpace) -> None:
    """A reorder between unlike neighbours cannot be a sum over slots; what is left is smaller than the reorders are."""
    device = FakeDevice(noise=0.0, interaction=0.1)
    plain = replace(device, interaction=0.0)
    reorders = max(truth(space, arch, device) / truth(space, arch, plain) - 1 for arch in [space.incumbent, *ends(space)])
    table = profiled(space, device)
    assert reorders > 0.04
    assert largest_error(space, table, device) < reorders


def test_block_slots_and_unequal_candidates_are_profiled() -> None:
    device = FakeDevice(noise=0.0, interaction=0.0)
    space = SearchSpace.from_model(TinyResNet(), SHAPE, manner="block")
    assert largest_error(space, profiled(space, device), device) < 1e-3
    unequal = SearchSpace.from_model(TinyResNet(), SHAPE, operators=["conv3x3", "conv5x5", "max3x3"])
    cut = [replace(slot, candidates=slot.candidates[:number]) for slot, number in zip(unequal.slots, (1, 2, 2, 1), strict=True)]
    unequal.slots = tuple(cut)
    assert largest_error(unequal, profiled(unequal, device), device) < 1e-3


def test_a_convolution_that_runs_twice_costs_the_sum_of_its_calls() -> None:
    device = FakeDevice(noise=0.0, interaction=0.0)
    space = SearchSpace.from_model(SharedConv(), SHAPE, operators=["conv3x3", "dwsep3x3"])
    table = profiled(space, device)
    assert [len(calls) for calls in table.slots[0].candidates.values()] == [2, 2]
    assert largest_error(space, table, device) < 1e-3


def test_entries_with_one_spec_are_pooled_over_slots(space: SearchSpace) -> None:
    table = profiled(space, FakeDevice())
    first, second = table.slots[:2]
    assert first.candidates == second.candidates  # both convolutions of the first block: 8 -> 8 on 16 x 16
    assert len(table.entries) == 9
    for entry in table.entries:
        assert entry.p10 <= entry.ms <= entry.p90
        assert entry.rel is not None


def test_the_table_says_how_it_was_measured_and_for_what(space: SearchSpace) -> None:
    table = profiled(space, FakeDevice(), seed=7)
    assert table.method.name == "in-context"
    assert table.method.rounds == 4
    assert table.method.seed == 7
    assert table.method.children <= 7 * 3 + 1
    assert table.network == ModelInfo.of(space, "own")
    assert table.fingerprint["runtime"] == "fake"
    assert table.check(space, table.fingerprint) == []
    assert table.validation is None


def test_a_profile_is_the_same_for_the_same_seed(space: SearchSpace) -> None:
    first, second = profiled(space, FakeDevice(), seed=3), profiled(space, FakeDevice(), seed=3)
    assert first.entries == second.entries
    assert first.fixed_ms == second.fixed_ms


def test_progress_ends_full(space: SearchSpace) -> None:
    progress = Progress(disable=True)
    profiled(space, FakeDevice(), progress=progress, validate=3)
    assert [task.description for task in progress.tasks] == [
        "profiling operators in context",
        "profiling children",
        "reloaded",
    ]
    assert all(task.finished for task in progress.tasks)


def test_a_budget_cuts_rounds_and_children_but_leaves_two_rounds(space: SearchSpace) -> None:
    progress = Progress(disable=True)
    table = profiled(space, FakeDevice(), budget_s=0.0, rounds=50, progress=progress)
    assert table.method.rounds == 2
    assert table.method.replicates == 4
    assert progress.tasks[0].finished


# ---------------------------------------------------------------------------------------- regression, isolated operators


@pytest.mark.parametrize("method", ["regression", "isolated"])
def test_other_methods_recover_additive_truth(space: SearchSpace, method: str) -> None:
    exact = FakeDevice(noise=0.0, interaction=0.0)
    assert largest_error(space, profiled(space, exact, method=method), exact) < 2e-3
    noisy = FakeDevice(noise=0.02, interaction=0.0)
    assert largest_error(space, profiled(space, noisy, method=method), noisy) < 0.02
    block = SearchSpace.from_model(TinyResNet(), SHAPE, manner="block", operators=["conv3x3", "dwsep3x3", "max3x3"])
    assert largest_error(block, profiled(block, exact, method=method), exact) < 2e-3


@pytest.mark.parametrize("method", ["regression", "isolated"])
def test_other_methods_need_no_layer_times(space: SearchSpace, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeRuntime, "layers", False)
    table = profiled(space, FakeDevice(), method=method, validate=5)
    assert table.method.name == method
    assert table.validation is not None
    assert table.validation.mape < 2


def test_regression_tells_operators_apart_that_differ_and_ties_those_that_do_not() -> None:
    """max3x3 and avg3x3 cost the same on the fake device, and the other operators something else."""
    space = SearchSpace.from_model(TinyResNet(), SHAPE, operators=["conv3x3", "dwsep3x3", "max3x3", "avg3x3"])
    table = profiled(space, FakeDevice(interaction=0.0), method="regression", rounds=10)
    assert all(("max3x3", "avg3x3") in pairs for pairs in table.ties().values())
    assert len(table.ties()) == 4
    assert not any(("conv3x3", "dwsep3x3") in pairs for pairs in table.ties().values())


def test_regression_children_are_the_network_and_an_orthogonal_array(space: SearchSpace) -> None:
    table = profiled(space, FakeDevice(), method="regression")
    assert set(profiled_children(space, table.method)) == {space.incumbent, *orthogonal(space, seed=0)}
    assert table.method.children == len(set(profiled_children(space, table.method)))


def test_isolated_operators_are_calibrated_on_at_least_eight_children(space: SearchSpace) -> None:
    """On the fake device an operator alone pays the fixed part of a run each time: the plain sum would be far off."""
    device = FakeDevice(noise=0.0, interaction=0.0, fixed_ms=0.5)
    table = profiled(space, device, method="isolated")
    assert table.method.children >= 8
    assert table.method.overhead_ms > 0.3
    assert largest_error(space, table, device) < 2e-3


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("fault", ["nan", "zero", "negative"])
def test_times_that_are_none_are_named(space: SearchSpace, fault: str) -> None:
    named = {"nan": "not a number", "zero": "zero", "negative": "negative"}[fault]
    with pytest.raises(
        MeasurementError, match=f"fake, the network itself: times must be positive, but 3 of 3 are {named}|{named}"
    ):
        profiled(space, FakeDevice(fault=fault))


def test_a_runtime_that_becomes_slower_with_every_run_is_refused(space: SearchSpace) -> None:
    with pytest.raises(MeasurementError, match="drift"):
        profiled(space, FakeDevice(fault="drifting"), rounds=10)


def test_a_runtime_with_two_speeds_is_noted(space: SearchSpace) -> None:
    table = profiled(space, FakeDevice(fault="bimodal"))
    assert any("of the runs took over 1.3 times as long as one before them" in note for note in table.notes)
    assert profiled(space, FakeDevice()).notes == ()


def test_unknown_methods_runtimes_and_rounds_are_refused(space: SearchSpace) -> None:
    with pytest.raises(UnknownNameError, match="unknown profiling method 'in-contxt': use one of in-context"):
        profile(space, config=FAKE, model_name="own", method="in-contxt")
    with pytest.raises(UnknownNameError, match="unknown runtime"):
        profile(space, config=RuntimeConfig(runtime="fakes"), model_name="own")
    with pytest.raises(RuntimeUnavailableError, match="fake needs precision fp32, but got bf16"):
        profile(space, config=RuntimeConfig(runtime="fake", precision="bf16"), model_name="own")
    with pytest.raises(UserError, match="rounds must be at least 2, but got 1"):
        profile(space, config=FAKE, model_name="own", rounds=1)


def test_a_runtime_without_layer_times_is_refused(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeRuntime, "layers", False)
    with pytest.raises(RuntimeUnavailableError, match="fake has no per-layer times on cpu, which method in-context needs"):
        profile(space, config=FAKE, model_name="own")


def test_a_profile_whose_names_do_not_join_is_refused(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    def opaque(self: FakeRuntime) -> list[dict[str, float]]:
        return [{f"node_{number}": ms for number, ms in enumerate(run.values())} for run in own(self)]

    own = FakeRuntime._layer_ms
    monkeypatch.setattr(FakeRuntime, "_layer_ms", opaque)
    with pytest.raises(MeasurementError, match=r"the profile has no node for operator .* use method regression"):
        profiled(space, FakeDevice())


# ------------------------------------------------------------------------------------------------------ parts of the way


def test_a_few_children_at_a_time_give_the_same_as_all_at_once(space: SearchSpace) -> None:
    archs = [space.incumbent, *ends(space), space.incumbent]
    found = {}
    for at_once in (1, 3):
        with FakeRuntime.on(FakeDevice(noise=0.0, drift=0.3)), ChildLoader(space, FAKE) as load:
            found[at_once] = measure(load, archs, load.incumbent, at_once=at_once, rounds=4)
    assert list(found[1].children) == archs[:3]
    for arch in archs:
        relative = [np.median(item.children[arch].whole) / np.median(item.reference) for item in found.values()]
        assert relative[0] == pytest.approx(relative[1], rel=0.02)


@given(
    st.lists(st.floats(0.1, 10), min_size=1, max_size=8),
    st.lists(st.floats(0.5, 2), min_size=2, max_size=10),
)
def test_a_machine_whose_speed_changes_from_round_to_round_is_divided_out(truth: list[float], speeds: list[float]) -> None:
    whole, factors = normalised(np.array([[[ms * slow] * 3 for ms in truth] for slow in speeds]))
    np.testing.assert_allclose(whole, np.tile(np.median(speeds) * np.array(truth), (len(speeds), 1)), rtol=1e-9)
    np.testing.assert_allclose(factors * np.array(speeds), np.median(speeds), rtol=1e-9)


class Warm(FakeRuntime):
    """A network that ran last is a tenth faster: its weights are still in the caches."""

    last: "Warm | None" = None

    def time_ms(self, repeats: int) -> list[float]:
        warm = Warm.last is self
        Warm.last = self
        return [ms * (0.9 if warm else 1.0) for ms in super().time_ms(repeats)]


def test_what_the_caches_hold_does_not_favour_children_by_their_place(
    space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    archs = [space.incumbent, *ends(space), (0, 1, 2, 0), (2, 0, 1, 1)]
    monkeypatch.setattr("nar_hw.latency.loader.runtime_class", lambda name: Warm)
    device = FakeDevice(noise=0.0, drift=0.2, period_ms=3000.0)
    with FakeRuntime.on(device), ChildLoader(space, FAKE) as load:
        found = measure(load, archs, load.incumbent, at_once=len(archs), rounds=8)
    exact = np.array([truth(space, arch, device) for arch in archs])
    ratio = np.array([np.median(found.children[arch].whole) for arch in archs]) / exact
    assert np.ptp(ratio) < 0.01 * ratio.mean()


def test_large_networks_are_loaded_a_few_at_a_time(space: SearchSpace) -> None:
    assert children_at_once(space) > 100
    large = SearchSpace.from_model(TinyResNet(), SHAPE)
    large.model.fc = nn.Linear(40_000, 40_000, device="meta")  # 6.4 GB
    assert children_at_once(large) == 1


def test_disturbed_runs_do_not_count() -> None:
    assert typical(np.array([[1.0, 1.1, 5.0, 9.0, 1.2], [2.0, 2.0, 2.0, 2.4, 8.0]])).tolist() == [1.1, 2.0]


def test_cold_caches_are_no_other_programs() -> None:
    """The first run of every visit takes half as long again; then another program takes the last two, too."""
    runs = np.tile([1.5, 1.2, 1.0, 1.0, 1.0], (4, 3, 1))
    quiet = batch_of("own", ["a", "b", "c"], runs, runs[:, :1], None)
    assert (quiet.disturbed, joined([quiet], ["a", "b", "c"], "wall").doubts) == (0, ())
    runs[:, :, 3:] = 4.0
    busy = batch_of("own", ["a", "b", "c"], runs, runs[:, :1], None)
    assert busy.disturbed == 0.4
    assert "40% of the runs" in joined([busy], ["a", "b", "c"], "wall").doubts[0]


class Counted:
    """A network that counts its runs of ``ms`` each."""

    def __init__(self, ms: float) -> None:
        self.ms, self.visits = ms, list[int]()

    def run(self) -> None:
        raise AssertionError("times are asked for")

    def synchronize(self) -> None:
        return

    def time_ms(self, repeats: int) -> list[float]:
        self.visits.append(repeats)
        return [self.ms] * repeats


WALL = Clock(Counted(1.0), alone=False)


@pytest.mark.parametrize(("ms", "runs"), [(0.0, 5), (0.1, 20), (1.0, 12), (9.0, 5), (14.0, 5), (16.0, 3), (500.0, 3)])
def test_visits_last_until_the_caches_are_filled(ms: float, runs: int) -> None:
    assert WALL.repeats(Counted(ms)) == runs


def test_each_network_is_warmed_up_by_one_run_and_the_reference_comes_before_every_fourth() -> None:
    networks, reference = [Counted(1.0 + item) for item in range(17)], Counted(3.0)
    rounds = list(in_turn(networks, [reference], WALL, repeats=5, rounds=4))
    assert [item.visits for item in networks] == [[1, 5, 5, 5, 5]] * 17
    assert reference.visits == [5] * 5 * 4
    assert np.array([visit for visit, _ in rounds]).tolist() == [[[item.ms] * 5 for item in networks]] * 4
    assert np.array([mark for _, mark in rounds]).shape == (4, 5, 5)


def test_the_reference_is_loaded_among_the_others_where_that_is_quick() -> None:
    """At the mean place of the others: first, in the middle and near the end."""
    assert [number for number in range(29) if again(number, 29, 0.5)] == [14, 28]
    assert not any(again(number, 29, 100.0) for number in range(29))
    assert not any(again(number, 7, 0.1) for number in range(7)), "few are visited between two of its visits"


def test_sessions_of_the_reference_take_turns() -> None:
    many, reference = [Counted(1.0) for _ in range(69)], Counted(3.0)
    assert [len(mark) for _, mark in in_turn(many, [reference], WALL, repeats=5, rounds=2)] == [9, 9]
    networks, references = [Counted(1.0)] * 8, [Counted(3.0), Counted(4.0), Counted(5.0)]
    marks = [mark for _, mark in in_turn(networks, references, WALL, repeats=5, rounds=3)]
    assert [[mark[0] for mark in found] for found in marks] == [[4, 5], [5, 3], [3, 4]]


def test_networks_that_are_loaded_twice_take_turns() -> None:
    first, second = ([Counted(1.0 + more) for more in range(3)] for _ in range(2))
    rounds = list(in_turn(first, [], WALL, second=second, repeats=5, rounds=3))
    assert [item.visits for item in (*first, *second)] == [[1, 5]] * 3 + [[5, 5]] * 3
    assert [visit for visit, _ in rounds] == [[[item.ms] * 5 for item in first]] * 3
    assert twice(2, 1.9, 1e6)
    assert not twice(2, 2.1, 1e6), "loading takes over a second each"
    assert not twice(1, 0.1, 1e6), "there is nothing to be compared with"
    assert not twice(2, 0.1, 1e12), "there is no room"


class Placed(FakeRuntime):
    """The earlier it is loaded, the slower it is: up to a fifth."""

    loaded = 0

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.slow = 1.2 - 0.02 * Placed.loaded
        Placed.loaded += 1

    def time_ms(self, repeats: int) -> list[float]:
        return [self.slow * ms for ms in super().time_ms(repeats)]


def test_a_place_in_memory_does_not_favour_children(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    archs = [space.incumbent, *ends(space), (0, 1, 2, 0), (2, 0, 1, 1), (1, 0, 2, 2), (2, 2, 1, 0), (0, 0, 1, 2)]
    monkeypatch.setattr("nar_hw.latency.loader.runtime_class", lambda name: Placed)
    monkeypatch.setattr(Placed, "loaded", 0)
    device = FakeDevice(noise=0.0)
    with FakeRuntime.on(device), ChildLoader(space, FAKE) as load:
        found = measure(load, archs, load.incumbent, at_once=len(archs), rounds=6)
    exact = np.array([truth(space, arch, device) for arch in archs]) / truth(space, space.incumbent, device)
    ratios = np.array([np.median(found.children[arch].whole) for arch in archs]) / np.median(found.reference) / exact
    assert ratios.mean() == pytest.approx(1, abs=0.01), "0.92 beside a reference that is loaded first and never again"


def test_batches_are_of_one_size_and_hold_their_share_of_all_children(space: SearchSpace) -> None:
    loaded: list[Arch] = []
    sizes: list[int] = []
    archs = list(itertools.islice(itertools.product((0, 1, 2), repeat=4), 11))

    with FakeRuntime.on(FakeDevice()), ChildLoader(space, FAKE) as load:

        def watched(arch: Arch, profile: bool) -> Runtime:
            loaded.append(arch)
            return load(arch, profile)

        def tick(steps: int) -> None:
            if len(loaded) not in sizes:
                sizes.append(len(loaded))

        measure(watched, archs, load.incumbent, at_once=5, rounds=2, tick=tick)
    assert sizes == [0, 4, 8, 11]
    both = mixed([(0,), (1,), (2,), (3,)], [(4,), (5,)])
    assert [sum(arch < (4,) for arch in half) for half in (both[:3], both[3:])] == [2, 2]
    assert sorted(both) == [(number,) for number in range(6)]


def test_held_out_children_are_measured_in_the_rounds_of_the_others(space: SearchSpace) -> None:
    table = profiled(space, FakeDevice(noise=0.01), validate=10, rounds=9, tolerance=0.0)
    assert table.validation is not None
    assert (table.validation.children, table.validation.rounds, table.method.rounds) == (10, 9, 9)
    early = profiled(space, FakeDevice(noise=0.01), validate=10, rounds=9)
    assert early.validation is not None
    assert early.validation.rounds == early.method.rounds == FEWEST_ROUNDS
    assert early.method.children == table.method.children


def test_clock_of_virtual_time_is_the_runtimes_own(space: SearchSpace) -> None:
    with ChildLoader(space, FAKE) as load:
        assert clock_of(load(space.incumbent)).name == "wall"


def test_clock_of_a_network_in_the_calling_thread_is_the_threads(space: SearchSpace) -> None:
    with ChildLoader(space, RuntimeConfig(runtime="torch_eager")) as load, load(space.incumbent) as runtime:
        clock = clock_of(runtime)
        assert clock.name == "thread"
        assert all(ms > 0 for ms in clock.time_ms(runtime, 3))
    with ChildLoader(space, RuntimeConfig(runtime="torch_eager", threads=2)) as load, load(space.incumbent) as runtime:
        assert clock_of(runtime).name == "wall"


def drawn(space: SearchSpace, noise: float, seed: int) -> tuple[dict[Arch, float], dict[OpSpec, float]]:
    """Children (ms) as `least_squares` believes them to be, and the guess of their entries."""
    rng, archs = np.random.default_rng(seed), contexts(space, replicates=7, seed=seed)
    specs = list(dict.fromkeys(spec for slot in space.slots for code in slot.candidates for spec in specs_of(space, slot, code)))
    guess = {spec: float(ms) for spec, ms in zip(specs, rng.uniform(0.5, 2.0, len(specs)), strict=True)}
    true = {spec: ms * (1 + SPREAD * rng.standard_normal()) for spec, ms in guess.items()}
    exact = {arch: 1.0 + sum(true[spec] for _, _, spec in space.specs(arch)) for arch in archs}
    mean = float(np.mean(list(exact.values())))
    return {arch: ms + noise * math.sqrt(ms * mean) * rng.standard_normal() for arch, ms in exact.items()}, guess


def specs_of(space: SearchSpace, slot: Slot, code: int) -> list[OpSpec]:
    return [spec for site in slot.sites for spec in space.site_specs(site, code)]


@pytest.mark.parametrize("noise", [0.01, 0.04, 0.12])
def test_the_likely_noise_is_about_that_of_the_children(space: SearchSpace, noise: float) -> None:
    found = [likely_noise(space, *drawn(space, noise, seed)) for seed in range(30)]
    assert noise / 1.35 <= np.exp(np.mean(np.log(found))) <= 1.35 * noise


@pytest.mark.parametrize("seed", range(6))
def test_the_likely_noise_has_the_largest_density_without_the_fixed_part(space: SearchSpace, seed: int) -> None:
    whole, guess = drawn(space, 0.03, seed)
    times = np.array(list(whole.values()))
    contrasts = null_space(np.ones((1, len(times))))  # (children, children - 1)
    counts = [Counter(spec for _, _, spec in space.specs(arch)) for arch in whole]
    guessed = np.array([[count[spec] * ms for spec, ms in guess.items()] for count in counts])

    def density(noise: float) -> float:
        covariance = SPREAD**2 * guessed @ guessed.T + np.diag(noise**2 * times * times.mean())
        seen = contrasts.T @ (times - guessed.sum(axis=1))
        return float(multivariate_normal(cov=contrasts.T @ covariance @ contrasts).logpdf(seen))

    assert likely_noise(space, whole, guess) == max(NOISES, key=density)


def test_noisy_children_move_the_entries_less(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The likely noise is far above 1 % here: fits that believe it are closer to the truth than fits that believe 1 %."""
    errors = {}
    for fit in ("likely", "1 %"):
        if fit == "1 %":
            monkeypatch.setattr(in_context, "likely_noise", lambda *_: 0.01)
        devices = [FakeDevice(noise=0.15, interaction=0.0, seed=seed) for seed in range(5)]
        errors[fit] = np.mean([largest_error(space, profiled(space, device), device) for device in devices])
    assert errors["likely"] < 0.95 * errors["1 %"]


def test_mean_of_middle_is_finer_than_its_samples_and_ignores_outliers() -> None:
    assert mean_of_middle([3, 3, 4, 4, 4, 4, 5, 900]) == 4.0
    assert mean_of_middle([3.0, 3.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0]) == pytest.approx(3.75)
    assert mean_of_middle([7.0]) == 7.0


@pytest.mark.parametrize(("fixed", "scale", "overhead"), [(0.4, 1.0, 0.003), (0.05, 1.03, 0.0), (0.1, 0.97, 0.006)])
def test_calibration_recovers_what_made_the_whole(fixed: float, scale: float, overhead: float) -> None:
    rng = np.random.default_rng(0)
    ms, nodes = rng.uniform(6, 12, 15), rng.integers(10, 40, 15).astype(float)
    found = calibrate(fixed + scale * ms - overhead * nodes, ms, nodes, slowdown=0.006, smallest=0.02)
    np.testing.assert_allclose(found, (fixed, scale, overhead), atol=0.03)
    predicted = found[0] + found[1] * ms - found[2] * nodes
    np.testing.assert_allclose(predicted, fixed + scale * ms - overhead * nodes, rtol=1e-2)


def test_calibration_keeps_every_entry_positive() -> None:
    rng = np.random.default_rng(0)
    ms, nodes = rng.uniform(6, 12, 15), rng.integers(10, 40, 15).astype(float)
    _, scale, overhead = calibrate(ms - 0.05 * nodes, ms, nodes, slowdown=0.2, smallest=0.02)
    assert 0.015 < overhead < scale * 0.02
    _, _, overhead = calibrate(ms + 0.1 * nodes, ms, nodes, slowdown=-0.2, smallest=0.02)
    assert overhead <= 1e-3 * 0.02


def test_nodes_join_to_the_site_of_their_path() -> None:
    space = SearchSpace.from_model(TinyResNet(), SHAPE)
    join = Join(space, [])
    assert join.site("layer1.conv1/Conv") == "layer1.conv1"
    assert join.site("layer1.conv1.0/Conv") == "layer1.conv1"
    assert join.site("layer1.bn1/BatchNormalization") == "layer1.conv1"
    assert join.site("layer1.conv10/Conv") is None
    assert join.site("layer1/Add") is None
    assert join.site("ReorderInput") is None


def test_nodes_of_some_children_are_charged_to_the_operator_before_them(space: SearchSpace) -> None:
    def times(*nodes: str) -> ChildTimes:
        producers = {
            "layer1/Add": ["layer1.conv2/Pool", "layer1.skip/Identity"],
            "layer1.relu/Relu": ["layer1/Add"],
            "Reorder_1": ["layer2.conv1/Conv"],
            "lost/Relu": ["conv1/Conv"],
        }
        return ChildTimes(whole=np.ones(2), layers={node: np.ones(4) for node in nodes}, producers=producers)

    always = ("conv1/Conv", "layer1.conv2/Pool", "layer2.conv1/Conv", "fc/Gemm")
    rich = times(*always, "layer1/Add", "layer1.relu/Relu", "Reorder_1", "lost/Relu")
    join = Join(space, [rich, times(*always)])
    found = {site: len(nodes) for site, nodes in join.nodes(rich).items()}
    assert found == {"layer1.conv2": 3, "layer2.conv1": 2}
    assert {site: len(nodes) for site, nodes in join.nodes(times(*always)).items()} == {"layer1.conv2": 1, "layer2.conv1": 1}


# --------------------------------------------------------------------------------------------------------- real runtimes


@pytest.mark.parametrize(("runtime", "precision"), [("onnxruntime", "fp32"), ("torch_eager", "fp32"), ("onnxruntime", "int8")])
def test_a_real_runtime_is_profiled_into_a_table_that_predicts_the_network(
    space: SearchSpace, runtime: str, precision: str
) -> None:
    def measured() -> LatencyTable:
        config = RuntimeConfig(runtime=runtime, precision=precision)
        return profile(space, config=config, model_name="own", rounds=3, validate=4)

    try:
        table = measured()
    except MeasurementError:  # the machine was busy: it says to measure again
        table = measured()
    assert table.predict(space.incumbent) == pytest.approx(table.incumbent_ms, rel=0.25)
    assert table.validation is not None
    assert table.validation.children == 4
    assert table.method.clock == "thread"


def test_children_that_are_loaded_by_several_threads_come_in_order_and_are_closed(space: SearchSpace) -> None:
    """A child is refused; what was loaded ahead of it is closed, as is what stood in front."""
    archs = contexts(space, replicates=3, seed=0)[:9]
    loaded: list[Arch] = []
    closed: list[Arch] = []

    class Kept(FakeRuntime):
        arch: Arch

        def close(self) -> None:
            closed.append(self.arch)
            super().close()

    def load(arch: Arch, profile: bool) -> Runtime:
        time.sleep(0.01 * (archs.index(arch) % 3))
        if arch == archs[6]:
            raise MeasurementError("it does not load")
        runtime = Kept(space.build(arch), space.input_shape, FAKE, profile=profile)
        runtime.arch = arch
        loaded.append(arch)
        return runtime

    def own() -> Runtime:
        return FakeRuntime(space.model, space.input_shape, FAKE)

    found = measure(load, archs[:6], own, at_once=6, rounds=2, threads=lambda: 3)
    assert list(found.children) == archs[:6]
    one = measure(load, archs[:6], own, at_once=6, rounds=2)
    for arch in archs[:6]:
        assert np.median(found.children[arch].whole) == pytest.approx(np.median(one.children[arch].whole), rel=0.02)
    with pytest.raises(MeasurementError, match="it does not load"):
        measure(load, archs, own, at_once=9, rounds=2, threads=lambda: 3)
    assert Counter(loaded) == Counter(closed)
    assert archs[7] in closed


def test_one_thread_loads_children_while_memory_is_measured(space: SearchSpace) -> None:
    config = RuntimeConfig(runtime="onnxruntime")
    with ChildLoader(space, config) as load:
        assert load.threads() == (cores() or 1)
    with ChildLoader(space, config, memory=True) as load:
        for _ in range(WEIGHED):
            assert load.threads() == 1
            with load.incumbent() as own:
                assert own.mib is not None
        assert load.threads() == (cores() or 1)
        with load.incumbent() as own:
            assert own.mib is None
    for other in (FAKE, RuntimeConfig(runtime="torch_eager")):
        assert ChildLoader(space, other).threads() == 1


def test_a_table_is_as_exact_as_the_leverage_of_its_children_says(space: SearchSpace) -> None:
    """Children with errors of their own around a sum: what is left of these in the fit."""
    archs = [space.incumbent, *orthogonal(space, seed=0)]
    guess = guess_by_work(space, dict.fromkeys(archs, 1.0))
    calls = np.array([[Counter(spec for _, _, spec in space.specs(arch))[spec] for spec in guess] for arch in archs])
    truth = 1.0 + calls @ np.array(list(guess.values()))  # so large a fixed part that no bound is met
    noise, kept = 0.001, []
    for seed in range(200):
        times = truth * (1 + noise * np.random.default_rng(seed).standard_normal(len(archs)))
        rows = np.column_stack([calls, np.ones(len(archs))]) / noise
        known = np.diag([1 / (0.5 * ms) for ms in guess.values()])
        left = np.concatenate([rows / truth[:, None], np.column_stack([known, np.zeros(len(guess))])])
        right = np.concatenate([times / truth / noise, np.full(len(guess), 2.0)])
        fitted = np.linalg.lstsq(left, right)[0]
        kept.append(((fitted[:-1] @ calls.T + fitted[-1]) / truth - 1) / noise)
    variance = float(np.mean(np.var(kept, axis=0)))
    assert 0 < variance < 1
    # Not exactly: what pulls entries to their guess lets a little less of it through
    assert leverage(space, archs, spread=0.5, noise=noise / truth.mean()) == pytest.approx(variance, rel=0.15)
