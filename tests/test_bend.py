"""Tables of networks whose time grows faster than the sum of their operators: found, kept, predicted and searched exactly."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from nar_hw import profile
from nar_hw.cli.tables import outline, show_outline
from nar_hw.errors import TableError
from nar_hw.latency.children import Measured
from nar_hw.latency.fill import fill
from nar_hw.latency.journal import ChildTimes
from nar_hw.latency.regression import FEWEST, SLOPE, Fit, bent_squares, counted, estimate, least_squares, whole_ms
from nar_hw.latency.table import LatencyTable
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.fake import FakeDevice, FakeRuntime
from nar_hw.search.feasible import Feasible
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch, OpSpec
from nar_hw.space.sums import Bend, Sums
from tests.networks import TinyResNet
from tests.test_cache import CHILDREN, EVERY, SPACE, SPECS, table as cached
from tests.test_table import for_space, made

FIXED_MS = 0.1
BEND = Bend(per_ms=0.8, at_ms=0.5)


def bent(ms: float, bend: Bend = BEND) -> float:
    """The formula."""
    return ms + bend.per_ms * (ms - bend.at_ms) ** 2


def fitted(*, curve: float = BEND.per_ms, noise: float = 0.005, seed: int = 0) -> tuple[dict[OpSpec, float], Fit]:
    """True milliseconds of each spec, and what is made of children whose times are bent sums of these."""
    rng = np.random.default_rng(seed)
    true = {spec: float(rng.uniform(0.01, 0.3)) for spec in SPECS}
    sums = {arch: FIXED_MS + sum(true[spec] for _, _, spec in SPACE.specs(arch)) for arch in CHILDREN}
    times = {arch: (ms + curve * (ms - BEND.at_ms) ** 2) * float(np.exp(rng.normal(0, noise))) for arch, ms in sums.items()}
    guess = {spec: ms * float(np.exp(rng.normal(0, 0.03))) for spec, ms in true.items()}
    return true, bent_squares(SPACE, times, lambda ms, cached: least_squares(SPACE, ms, guess, spread=0.07, cached=cached))


@pytest.mark.parametrize("seed", range(4))
def test_a_bend_that_was_planted_is_found(seed: int) -> None:
    true, found = fitted(seed=seed)
    assert found.bend is not None
    assert found.cache is None
    truth = np.array([bent(FIXED_MS + sum(true[spec] for _, _, spec in SPACE.specs(arch))) for arch in EVERY])
    sums = np.array([found.fixed_ms + sum(found.ms[spec] for _, _, spec in SPACE.specs(arch)) for arch in EVERY])
    errors = np.abs(found.bend.bent(sums) / truth - 1)
    assert errors.mean() < 0.015
    assert errors.max() < 0.06
    assert found.residual_mape < 1.5, "3.8 by sums"


@pytest.mark.parametrize("curve", [0.0, -0.15], ids=["none", "the wrong way round"])
def test_no_bend_is_seen_where_there_is_none(curve: float) -> None:
    found = [fitted(curve=curve, noise=0.02, seed=seed)[1] for seed in range(40)]
    assert sum(fit.bend is not None for fit in found) <= 1, "three standard errors"


def test_few_children_do_not_show_a_bend() -> None:
    rng = np.random.default_rng(0)
    some = rng.choice(len(EVERY), FEWEST - 1, replace=False)
    guess = {spec: float(rng.uniform(0.01, 0.3)) for spec in SPECS}
    times = {EVERY[i]: bent(FIXED_MS + sum(guess[spec] for _, _, spec in SPACE.specs(EVERY[i]))) for i in some}
    found = bent_squares(SPACE, times, lambda ms, cached: least_squares(SPACE, ms, guess, spread=0.07, cached=cached))
    assert found.bend is None


@pytest.mark.parametrize("noise", [0.05, 0.2])
@pytest.mark.parametrize("curve", [0.8, 1.5, 3.0])
def test_no_bend_is_believed_that_falls_in_some_network(curve: float, noise: float) -> None:
    """Noise and strong curves have some child below the lowest point of their parabola: no sum has its time."""
    for seed in (2, 7, 47, 107):
        found = fitted(curve=curve, noise=noise, seed=seed)[1]
        assert np.isfinite([*found.ms.values(), found.fixed_ms, found.residual_mape]).all()
        if found.bend is not None:
            lightest = min(found.fixed_ms + sum(found.ms[spec] for _, _, spec in SPACE.specs(arch)) for arch in EVERY)
            assert found.bend.slope(lightest) >= SLOPE


def test_the_network_itself_is_what_its_visits_as_the_reference_say() -> None:
    """As a child it lies where it is slower by a tenth; the reference lies in several places."""
    rng = np.random.default_rng(0)
    true = {spec: float(rng.uniform(0.1, 0.12)) for spec in SPECS}
    sums = {arch: FIXED_MS + sum(true[spec] for _, _, spec in SPACE.specs(arch)) for arch in CHILDREN}
    own = sums[SPACE.incumbent]
    children = {
        arch: ChildTimes(whole=np.full(4, ms * (1.1 if arch == SPACE.incumbent else 1.0)), layers={}, producers={}, p90=None)
        for arch, ms in sums.items()
    }
    measured = Measured(children=children, reference=np.full(20, own), clock="wall", rounds=4, doubts=())
    assert whole_ms(SPACE, measured) == pytest.approx(sums)
    assert counted(SPACE, CHILDREN).tolist() == [4.0 if arch == SPACE.incumbent else 1.0 for arch in CHILDREN]
    found = estimate(SPACE, measured)
    predicted = found.fixed_ms + sum(found.entries[spec].ms for _, _, spec in SPACE.specs(SPACE.incumbent))
    assert predicted == pytest.approx(own, rel=0.01)


class Crowded(FakeRuntime):
    """On it times grow faster than sums."""

    def time_ms(self, repeats: int) -> list[float]:
        return [ms * (ms / 0.17) ** 3 for ms in super().time_ms(repeats)]


@pytest.mark.parametrize("method", ["in-context", "regression"])
def test_profiles_see_it(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr("nar_hw.latency.loader.runtime_class", lambda name: Crowded)
    with FakeRuntime.on(FakeDevice(noise=0.003)):
        found = profile(SPACE, config=RuntimeConfig(runtime="fake"), model_name="own", method=method, validate=20)
    assert found.bend is not None
    assert found.validation is not None
    assert found.validation.mape < 0.6
    sums = replace(found, bend=None).predict(np.array(EVERY)) / found.predict(np.array(EVERY))
    assert np.ptp(sums) > 0.02, "what a sum would be off by"


@given(st.floats(1e-3, 10), st.floats(0.01, 100), st.floats(0, 1))
def test_sums_and_latencies_lead_to_each_other(per_ms: float, at_ms: float, more: float) -> None:
    bend = Bend(per_ms=per_ms, at_ms=at_ms)
    sums = bend.lowest_ms + np.array([0.01, 0.3, 1.0, 5.0]) * (1 + more) * (at_ms + 1 / per_ms)
    latencies = bend.bent(sums)
    assert (np.diff(latencies) > 0).all()
    np.testing.assert_allclose(bend.straight(latencies), sums, rtol=1e-6, atol=1e-9 * at_ms)
    lowest = float(bend.bent(bend.lowest_ms))
    assert bend.straight(lowest - 1e-3 * (1 + abs(lowest))) == -np.inf
    step = 1e-4 * (at_ms + 1 / per_ms)
    for ms in sums:
        assert (bend.bent(ms + step) - bend.bent(ms - step)) / (2 * step) == pytest.approx(bend.slope(ms), rel=1e-4, abs=1e-6)


def table(**changes: Any) -> LatencyTable:
    entries = for_space(SPACE, lambda spec: 0.02 + 0.01 * (len(spec.operator) + spec.c_in))
    return replace(entries, fixed_ms=FIXED_MS, **{"bend": BEND, **changes})


def by_hand(known: LatencyTable, arch: Arch) -> float:
    calls = [i for slot, code in zip(known.slots, arch, strict=True) for i in slot.candidates[SPACE.operators[code]]]
    assert known.bend is not None
    return bent(known.fixed_ms + sum(known.entries[i].ms for i in calls), known.bend)


def test_predictions_and_bounds_are_those_of_the_formula() -> None:
    known = table()
    expected = [by_hand(known, arch) for arch in EVERY]
    np.testing.assert_allclose(known.predict(np.array(EVERY)), expected)
    assert known.predict(EVERY[3]) == pytest.approx(expected[3])
    assert known.bounds() == pytest.approx((min(expected), max(expected)))
    high = replace(known, p90=1.25).at_percentile(90)
    np.testing.assert_allclose(high.predict(np.array(EVERY)), 1.25 * np.array(expected))


@given(share=st.floats(0.01, 1), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_search_space_under_a_target_is_that_of_the_formula(share: float, seed: int) -> None:
    known = table()
    times = np.array([by_hand(known, arch) for arch in EVERY])
    target = float(np.quantile(times, share))
    limits = Feasible.from_table(SPACE, known, target)
    assert limits.meets(EVERY).tolist() == (times <= target * (1 + 1e-9)).tolist()
    assert limits.count == (times <= target * (1 + 1e-9)).sum()
    assert limits.bounds_ms == pytest.approx((times.min(), times.max()))
    scores = np.random.default_rng(seed).normal(size=(len(SPACE.slots), len(SPACE.operators)))
    value = [sum(scores[p, code] for p, code in enumerate(arch)) for arch in EVERY]
    assert limits.best(scores) == EVERY[int(np.argmax(np.where(times <= target * (1 + 1e-9), value, -np.inf)))]
    assert set(limits.sample(5, np.random.default_rng(seed))) <= {EVERY[i] for i in np.flatnonzero(limits.meets(EVERY))}


def test_costs_of_sums_are_bent_whatever_their_number() -> None:
    rng = np.random.default_rng(0)
    known = Sums(entries=rng.uniform(0, 1, (2, 3, 4)), fixed=np.array([0.5, 0.3]), bend=BEND)
    archs = list(itertools.product(range(4), repeat=3))
    expected = [
        min(bent(float(f + sum(e[s, c] for s, c in enumerate(arch)))) for e, f in zip(known.entries, known.fixed, strict=True))
        for arch in archs
    ]
    np.testing.assert_allclose(known.of(archs), expected)
    assert (known.least, known.most) == pytest.approx((min(expected), max(expected)))


def test_the_file_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = table()
    known.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == known
    content = json.loads((tmp_path / "table.json").read_text())
    assert (content["schema"], content["bend"]) == (6, {"per_ms": 0.8, "at_ms": 0.5})
    assert len({known.hash, replace(known, bend=None).hash, replace(known, bend=Bend(per_ms=0.8, at_ms=0.6)).hash}) == 3
    assert cached().content()["schema"] == 5
    assert "bend" not in cached().content()
    assert made([{"conv3x3": 1.0, "max3x3": 0.3}]).content()["schema"] == 4
    assert outline(known)["bend"] == {"per_ms": 0.8, "at_ms": 0.5}
    show_outline(known, tmp_path / "table.json")
    assert "times grow faster than sums: an operator costs" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("bend", "message"),
    [
        ({"per_ms": 0.0, "at_ms": 0.5}, "per_ms"),
        ({"per_ms": 0.8, "at_ms": -0.5}, "at_ms"),
        ({"per_ms": 9.0, "at_ms": 5.0}, "latencies must grow with their sums, which begin at"),
    ],
)
def test_a_damaged_bend_is_refused_in_one_line(tmp_path: Path, bend: dict[str, float], message: str) -> None:
    content = json.loads(json.dumps(table().content())) | {"bend": bend}
    (tmp_path / "table.json").write_text(json.dumps(content))
    with pytest.raises(TableError, match=message) as caught:
        LatencyTable.load(tmp_path / "table.json")
    assert "\n" not in str(caught.value)


def test_a_table_has_a_cache_or_a_bend() -> None:
    with pytest.raises(TableError, match="must have a cache or a bend, but has both"):
        cached(bend=BEND)


def test_entries_are_not_added_to_a_table_whose_entries_were_fitted_with_a_bend() -> None:
    more = SearchSpace.from_model(TinyResNet(), (3, 16, 16), operators=["conv3x3", "dwsep3x3", "max3x3", "avg3x3", "dwsep5x5"])
    with pytest.raises(TableError, match=r"fitted with all entries together: measure all of them with `nar-hw profile") as caught:
        fill(table(), more)
    assert "--fill" not in str(caught.value)
    assert fill(table(), SPACE) == table()
