"""Tables of networks that are small enough for the processor's caches: found, kept, predicted and searched exactly."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nar_hw.errors import TableError
from nar_hw.latency.designs import contexts
from nar_hw.latency.diff import diff
from nar_hw.latency.fill import fill
from nar_hw.latency.record import Cache
from nar_hw.latency.regression import Fit, least_squares
from nar_hw.latency.table import LatencyTable
from nar_hw.records import replace
from nar_hw.search.feasible import Feasible
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch, OpSpec
from tests.networks import TinyResNet
from tests.test_table import for_space, made

torch.manual_seed(0)
SPACE = SearchSpace.from_model(TinyResNet(), (3, 16, 16), operators=["conv3x3", "dwsep3x3", "max3x3", "avg3x3"])
EVERY: list[Arch] = list(itertools.product(*(slot.candidates for slot in SPACE.slots)))
CHILDREN = list(dict.fromkeys(contexts(SPACE, replicates=7, seed=0)))
SPECS = list(dict.fromkeys(spec for arch in EVERY for _, _, spec in SPACE.specs(arch)))
FIXED_MS = 0.3


def size(arch: Arch) -> int:
    """By counting."""
    convolutions = [SPACE.module_for(site, code) for slot, code in zip(SPACE.slots, arch, strict=True) for site in slot.sites]
    own = [SPACE.module_for(site, slot.incumbent) for slot in SPACE.slots for site in slot.sites]
    count = [sum(item.numel() for module in modules for item in module.parameters()) for modules in (convolutions, own)]
    return sum(item.numel() for item in SPACE.model.parameters()) + count[0] - count[1]


SIZES = {arch: size(arch) for arch in EVERY}
PLACE = float(np.median([SIZES[arch] for arch in CHILDREN]))
RATE = 0.25 * FIXED_MS / (PLACE - min(SIZES.values()))
"""ms per parameter: the lightest arch saves a quarter of what is fixed."""


def fitted(*, rate: float = RATE, noise: float = 0.005, seed: int = 0) -> tuple[dict[OpSpec, float], Fit]:
    """True milliseconds of each spec, and what is made of children whose times are these sums, less what a cache saves."""
    rng = np.random.default_rng(seed)
    true = {spec: float(rng.uniform(0.02, 0.1)) for spec in SPECS}
    times = {
        arch: (FIXED_MS + sum(true[spec] for _, _, spec in SPACE.specs(arch)) - rate * max(0.0, PLACE - SIZES[arch]))
        * float(np.exp(rng.normal(0, noise)))
        for arch in CHILDREN
    }
    guess = {spec: ms * float(np.exp(rng.normal(0, 0.07))) for spec, ms in true.items()}
    return true, least_squares(SPACE, times, guess, spread=0.07)


def test_a_cache_that_was_planted_is_found() -> None:
    true, found = fitted()
    cache = found.cache
    assert cache is not None
    assert cache.ms_per_million == pytest.approx(1e6 * RATE, rel=0.3)
    for arch in EVERY:
        truth = FIXED_MS + sum(true[spec] for _, _, spec in SPACE.specs(arch)) - RATE * max(0.0, PLACE - SIZES[arch])
        sums = found.fixed_ms + sum(found.ms[spec] for _, _, spec in SPACE.specs(arch))
        assert sums - cache.saved_by(SPACE.names(arch)) == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize("rate", [0.0, -RATE], ids=["none", "the wrong way round"])
def test_no_cache_is_seen_where_there_is_none(rate: float) -> None:
    assert [fitted(rate=rate, noise=0.02, seed=seed)[1].cache for seed in range(8)] == [None] * 8


def test_a_cache_that_would_save_almost_all_of_a_networks_time_is_not_believed() -> None:
    assert fitted(rate=0.85 * FIXED_MS / (PLACE - min(SIZES.values())))[1].cache is not None
    rng = np.random.default_rng(0)
    times = {arch: 1.0 - 0.999 * max(0.0, PLACE - SIZES[arch]) / (PLACE - min(SIZES.values())) for arch in CHILDREN}
    guess = {spec: 1e-4 * float(rng.uniform(0.5, 1)) for spec in SPECS}
    assert least_squares(SPACE, times, guess, spread=0.07).cache is None


def table(**changes: Any) -> LatencyTable:
    own = sum(
        item.numel()
        for slot in SPACE.slots
        for site in slot.sites
        for item in SPACE.module_for(site, slot.incumbent).parameters()
    )
    cache = Cache(
        params=round(PLACE),
        ms_per_million=1e6 * RATE,
        fixed=SIZES[SPACE.incumbent] - own,
        slots=tuple(
            {
                SPACE.operators[code]: sum(p.numel() for site in slot.sites for p in SPACE.module_for(site, code).parameters())
                for code in slot.candidates
            }
            for slot in SPACE.slots
        ),
    )
    entries = for_space(SPACE, lambda spec: 0.02 + 0.001 * (len(spec.operator) + spec.c_in))
    return replace(entries, fixed_ms=FIXED_MS, **{"cache": cache, **changes})


def by_hand(known: LatencyTable, arch: Arch) -> float:
    assert known.cache is not None
    entries = [
        known.entries[i].ms for slot, code in zip(known.slots, arch, strict=True) for i in slot.candidates[SPACE.operators[code]]
    ]
    saved = known.cache.ms_per_million * max(0, known.cache.params - SIZES[arch]) / 1e6
    return known.fixed_ms + sum(entries) - saved


def test_predictions_and_bounds_are_those_of_the_formula() -> None:
    known = table()
    expected = [by_hand(known, arch) for arch in EVERY]
    np.testing.assert_allclose(known.predict(np.array(EVERY)), expected)
    assert known.bounds() == pytest.approx((min(expected), max(expected)))
    saved = replace(known, cache=None).predict(np.array(EVERY)) - known.predict(np.array(EVERY))
    assert (saved > 1e-9).tolist() == [SIZES[arch] < round(PLACE) for arch in EVERY]
    high = replace(known, p90=1.25).at_percentile(90)
    np.testing.assert_allclose(high.predict(np.array(EVERY)), 1.25 * np.array(expected))


def test_a_search_space_under_a_target_is_that_of_the_formula() -> None:
    known = table()
    times = np.array([by_hand(known, arch) for arch in EVERY])
    target = float(np.quantile(times, 0.3))
    limits = Feasible.from_table(SPACE, known, target)
    assert limits.meets(EVERY).tolist() == (times <= target * (1 + 1e-9)).tolist()
    scores = np.random.default_rng(0).normal(size=(len(SPACE.slots), len(SPACE.operators)))
    value = [sum(scores[p, code] for p, code in enumerate(arch)) for arch in EVERY]
    assert limits.best(scores) == EVERY[int(np.argmax(np.where(times <= target, value, -np.inf)))]


def test_the_file_says_it_and_tables_without_one_are_as_before(tmp_path: Path) -> None:
    known = table()
    known.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == known
    content = json.loads((tmp_path / "table.json").read_text())
    assert (content["schema"], content["cache"]["params"]) == (5, round(PLACE))
    assert known.cache is not None
    assert len({known.hash, replace(known, cache=None).hash, replace(known, cache=replace(known.cache, params=9)).hash}) == 3
    plain = made([{"conv3x3": 1.0, "max3x3": 0.3}])
    assert plain.content()["schema"] == 4
    assert "cache" not in plain.content()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda c: c["slots"].pop(), "the cache must know the parameters of each slot's candidates"),
        (lambda c: c["slots"][0].pop("conv3x3"), "the cache must know the parameters of each slot's candidates"),
        (lambda c: c.update(ms_per_million=0.0), "ms_per_million"),
        (lambda c: c.update(ms_per_million=1e9), "the fastest arch must take more than 0 ms"),
        (lambda c: c.update(params=-1), "params"),
    ],
)
def test_a_damaged_cache_is_refused_in_one_line(tmp_path: Path, fault: Any, message: str) -> None:
    content = json.loads(json.dumps(table().content()))
    fault(content["cache"])
    (tmp_path / "table.json").write_text(json.dumps(content))
    with pytest.raises(TableError, match=message) as caught:
        LatencyTable.load(tmp_path / "table.json")
    assert "\n" not in str(caught.value)


def test_operators_that_differ_in_the_cache_are_no_ties() -> None:
    even = for_space(SPACE, lambda spec: 0.05)
    assert ("conv3x3", "max3x3") in replace(even, fixed_ms=FIXED_MS).ties()[SPACE.slots[0].name]
    cache = table().cache
    assert cache is not None
    tied = replace(even, fixed_ms=FIXED_MS, cache=replace(cache, ms_per_million=100 * cache.ms_per_million, params=1)).ties()
    assert ("conv3x3", "max3x3") not in tied.get(SPACE.slots[0].name, [])


def test_entries_are_not_added_to_a_table_whose_entries_were_fitted_with_a_cache() -> None:
    more = SearchSpace.from_model(TinyResNet(), (3, 16, 16), operators=["conv3x3", "dwsep3x3", "max3x3", "avg3x3", "dwsep5x5"])
    with pytest.raises(
        TableError, match=r"fitted with all entries together: measure all of them with `nar-hw profile .*dwsep5x5"
    ) as caught:
        fill(table(), more)
    assert "--fill" not in str(caught.value)
    assert fill(table(), SPACE) == table()


def test_tables_with_and_without_a_cache_can_be_compared() -> None:
    assert diff(table(), table(cache=None)).spearman == pytest.approx(1)
