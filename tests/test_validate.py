import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, spearmanr

from nar_hw.errors import TableError, TableMismatchError
from nar_hw.latency.children import ChildTimes, Measured
from nar_hw.latency.designs import contexts
from nar_hw.latency.profiler import profile
from nar_hw.latency.table import LatencyTable
from nar_hw.latency.validate import NOISY_NOTE, _ranks, compare, validate, with_validation
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.fake import FakeDevice, FakeRuntime
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch
from tests.networks import TinyResNet

SHAPE = (3, 16, 16)
CONFIG = RuntimeConfig(runtime="fake", batch=2)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return SearchSpace.from_model(TinyResNet(), SHAPE, operators=["conv3x3", "dwsep3x3", "max3x3"])


@pytest.fixture(scope="module")
def table(space: SearchSpace, one_thread: None) -> LatencyTable:
    with FakeRuntime.on(FakeDevice(noise=0.0)):
        return profile(space, config=CONFIG, model_name="own", rounds=3, validate=0)


def measured(archs: list[Arch], whole: np.ndarray, reference: float) -> Measured:
    children = {arch: ChildTimes(whole=visits, layers={}, producers={}) for arch, visits in zip(archs, whole, strict=True)}
    return Measured(children=children, reference=np.full(8, reference), clock="wall", rounds=whole.shape[1], doubts=())


def test_ranks_with_ties() -> None:
    """By hand: five of six pairs in the same order, one tied in the first; ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4."""
    first, second = np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0, 4.0])
    assert _ranks(first, second) == pytest.approx((4.5 / (4.5 * 5) ** 0.5, 5 / (5 * 6) ** 0.5), rel=1e-5)


def test_the_numbers_are_those_of_independent_formulas(table: LatencyTable, space: SearchSpace) -> None:
    rng = random.Random(1)
    archs = list(dict.fromkeys(space.sample(rng) for _ in range(12)))
    predicted = table.predict(np.array(archs))
    noise = np.random.default_rng(0).normal(1.0, 0.06, (len(archs), 6))
    whole = predicted[:, None] * noise  # (children, rounds)
    found = compare(table, space, measured(archs, whole, table.incumbent_ms), seed=1, seconds=0.0)
    actual = np.median(whole, axis=1)
    errors = np.abs(predicted - actual) / actual
    odd, even = np.median(whole[:, [0, 2, 4]], axis=1), np.median(whole[:, [1, 3, 5]], axis=1)
    assert found.mape == pytest.approx(100 * errors.mean(), rel=1e-4)
    assert found.max_error == pytest.approx(100 * errors.max(), rel=1e-4)
    assert found.within_5 == np.mean(errors <= 0.05)
    assert found.within_10 == np.mean(errors <= 0.10)
    assert found.floor_mape == pytest.approx(100 * np.mean(np.abs(even - odd) / odd) / np.sqrt(2), rel=1e-4)
    assert found.floor_spearman == pytest.approx(spearmanr(odd, even).statistic, rel=1e-4)
    assert found.spearman == pytest.approx(spearmanr(predicted, actual).statistic, rel=1e-4)
    assert found.kendall == pytest.approx(kendalltau(predicted, actual).statistic, rel=1e-4)
    assert found.speed == pytest.approx(1.0, rel=1e-4)
    assert [pair.arch for pair in found.pairs] == [space.names(arch) for arch in archs]
    assert [pair.predicted_ms for pair in found.pairs] == pytest.approx(predicted.tolist(), rel=1e-4)
    assert [pair.measured_ms for pair in found.pairs] == pytest.approx(actual.tolist(), rel=1e-4)


def test_a_machine_that_became_slower_as_a_whole_is_taken_out_and_told(table: LatencyTable, space: SearchSpace) -> None:
    rng = random.Random(1)
    archs = list(dict.fromkeys(space.sample(rng) for _ in range(12)))
    whole = 1.5 * table.predict(np.array(archs))[:, None].repeat(4, axis=1)
    found = compare(table, space, measured(archs, whole, 1.5 * table.incumbent_ms), seed=1, seconds=0.0)
    assert found.mape == pytest.approx(0, abs=1e-3)
    assert found.speed == pytest.approx(1.5)


def test_an_order_that_does_not_exist_has_no_correlation(table: LatencyTable, space: SearchSpace) -> None:
    archs = [space.incumbent]
    found = compare(table, space, measured(archs, np.ones((1, 4)), table.incumbent_ms), seed=1, seconds=0.0)
    assert (found.spearman, found.kendall, found.floor_spearman) == (0.0, 0.0, 0.0)


def test_held_out_children_are_measured_as_the_table_was(table: LatencyTable, space: SearchSpace) -> None:
    with FakeRuntime.on(FakeDevice(noise=0.01)):
        found = validate(table, space, children=10, rounds=4, seed=5)
    profiled = {space.names(arch) for arch in contexts(space, replicates=table.method.replicates, seed=table.method.seed)}
    archs = {pair.arch for pair in found.pairs}
    assert len(archs) == found.children == 10
    assert not archs & profiled
    assert (found.rounds, found.seed) == (4, 5)
    assert found.seconds > 0
    assert found.mape < 2
    assert found.within_10 == 1
    # the table was measured at batch 2, and so were they
    device = FakeDevice(noise=0.0)
    for pair in found.pairs:
        exact = FakeRuntime.truth(space.build(space.parse(pair.arch)), SHAPE, batch=2, device=device)
        assert pair.measured_ms == pytest.approx(exact, rel=0.03)


def test_a_profile_is_validated_by_default_and_saved_with_it(
    space: SearchSpace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("table") / "table.json"
    with FakeRuntime.on(FakeDevice()):
        found = profile(space, config=CONFIG, model_name="own", rounds=3, validate=6)
    assert found.validation is not None
    assert found.validation.children == 6
    found.save(path)
    assert LatencyTable.load(path) == found


def test_a_noisy_machine_is_marked_and_a_quiet_one_loses_the_mark(table: LatencyTable, space: SearchSpace) -> None:
    with FakeRuntime.on(FakeDevice(noise=0.2)):
        noisy = with_validation(table, validate(table, space, children=10, rounds=4))
    assert noisy.notes[0] == NOISY_NOTE
    assert all("measure again" in note for note in noisy.notes)
    with FakeRuntime.on(FakeDevice(noise=0.001)):
        quiet = with_validation(noisy, validate(table, space, children=10, rounds=4))
    assert quiet.notes == ()
    assert quiet.hash == noisy.hash == table.hash


def test_conditions_come_from_the_fingerprint(table: LatencyTable) -> None:
    assert table.config == CONFIG
    mark = {**table.fingerprint, "runtime": "onnxruntime", "kind": "cuda", "threads": 3, "precision": "fp16"}
    expected = RuntimeConfig(runtime="onnxruntime", device="cuda", threads=3, precision="fp16", batch=2)
    assert replace(table, fingerprint=mark).config == expected


def test_another_space_or_a_space_without_unseen_children_is_refused(table: LatencyTable, space: SearchSpace) -> None:
    with pytest.raises(TableMismatchError, match="another search space"):
        validate(table, SearchSpace.from_model(TinyResNet(width=4), SHAPE), children=5)
    small = SearchSpace.from_model(TinyResNet(), SHAPE, slots="layer1.conv1", operators=["conv3x3", "max3x3"])
    with FakeRuntime.on(FakeDevice()):
        unvalidated = profile(small, config=CONFIG, model_name="own", rounds=2)
        assert unvalidated.validation is None
        assert any("not validated" in note for note in unvalidated.notes)
        with pytest.raises(TableError, match="at least 3 children that were not profiled, but there are 0"):
            validate(unvalidated, small)
