import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from nar_hw.errors import TargetError
from nar_hw.search import feasible as module
from nar_hw.search.feasible import Feasible
from nar_hw.space.spec import Arch
from nar_hw.space.sums import Sums
from nar_hw.testing.strategies import CANDIDATES, FIXED_MS, feasible

EVERY = list(itertools.product(*CANDIDATES))


def cost(limits: Feasible, arch: Arch) -> float:
    """By adding up: the least of the sums."""
    return min(
        float(fixed) + math.fsum(entries[position, code] for position, code in enumerate(arch))
        for fixed, entries in zip(limits.cost.fixed, limits.cost.entries, strict=True)
    )


def under(limits: Feasible) -> list[Arch]:
    return [arch for arch in EVERY if cost(limits, arch) <= limits.target_ms + 1e-9]


SUMS = st.sampled_from([1, 2])


@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), sums=SUMS)
@settings(max_examples=80, deadline=None)
def test_latency_bounds_and_count_agree_with_listing_all_archs(seed: int, share: float, sums: int) -> None:
    limits = feasible(share, seed, sums=sums)
    times = [cost(limits, arch) for arch in EVERY]
    np.testing.assert_allclose(limits.latency_ms(EVERY), times)
    assert limits.bounds_ms == pytest.approx((min(times), max(times)))
    members = set(under(limits))
    assert limits.meets(EVERY).tolist() == [arch in members for arch in EVERY]
    if sums == 2:
        assert len(members) <= limits.count <= len(EVERY)
        return
    assert limits.count == len(members)
    # the bins round down: no arch is missed, and an arch counted in error is over by at most a bin per slot
    spare = limits.target_ms - min(times)
    almost = [time for time in times if time <= limits.target_ms + len(CANDIDATES) * spare / module.BINS + 1e-6]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "HALF", 0)
        assert len(members) <= feasible(share, seed).count <= len(almost)


@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), sums=SUMS)
@settings(max_examples=80, deadline=None)
def test_best_is_the_best_of_all_archs_under_the_target(seed: int, share: float, sums: int) -> None:
    limits = feasible(share, seed, sums=sums)
    scores = np.random.default_rng(seed + 1).normal(size=limits.cost.entries.shape[1:])
    found = limits.best(scores)
    value = {arch: sum(scores[position, code] for position, code in enumerate(arch)) for arch in EVERY}
    assert found in under(limits)
    assert value[found] == pytest.approx(max(value[arch] for arch in under(limits)))


@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), sums=SUMS)
@settings(max_examples=80, deadline=None)
def test_best_counts_what_neighbours_are_worth_together(seed: int, share: float, sums: int) -> None:
    limits, rng = feasible(share, seed, sums=sums), np.random.default_rng(seed + 1)
    scores = rng.normal(size=(limits.slots, limits.codes))
    pairs = rng.normal(size=(limits.slots - 1, limits.codes, limits.codes))

    def value(arch: Arch) -> float:
        alone = sum(scores[position, code] for position, code in enumerate(arch))
        return float(alone + sum(pairs[position, arch[position], arch[position + 1]] for position in range(len(pairs))))

    assert value(limits.best(scores, pairs)) == pytest.approx(max(map(value, under(limits))))


def test_best_is_near_the_best_where_there_are_too_many_partial_archs() -> None:
    rng = np.random.default_rng(0)
    cost_ms, scores = rng.uniform(0.1, 1, (16, 5)), rng.normal(size=(16, 5))
    limits = Feasible(candidates=((0, 1, 2, 3, 4),) * 16, cost=Sums.one(cost_ms, 0.1), target_ms=6.5)
    exact = limits.best(scores)
    thinned = limits.best(scores, states=300)
    value = [sum(scores[position, code] for position, code in enumerate(arch)) for arch in (exact, thinned)]
    assert limits.meets([exact, thinned]).all()
    assert value[0] - 0.2 <= value[1] <= value[0]


@pytest.mark.parametrize("sums", [1, 2])
def test_samples_are_uniform_over_the_archs_under_the_target(sums: int) -> None:
    limits = feasible(0.35, 4, sums=sums)
    members = under(limits)
    if sums == 2:  # some are under it by one sum, some by the other, some by both
        ways = {tuple(row) for row in (limits.cost.each(members) <= limits.target_ms).tolist()}
        assert ways == {(True, False), (False, True), (True, True)}
    draws = 200 * len(members)
    counts = Counter(limits.sample(draws, np.random.default_rng(0)))
    assert set(counts) == set(members)
    chi_square = sum((counts[arch] - 200) ** 2 / 200 for arch in members)
    spread = math.sqrt(2 * len(members))
    assert abs(chi_square - len(members)) < 5 * spread


@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), draws=st.integers(1, 20), sums=SUMS)
@settings(max_examples=60, deadline=None)
def test_samples_meet_every_target(seed: int, share: float, draws: int, sums: int) -> None:
    limits = feasible(share, seed, sums=sums)
    archs = limits.sample(draws, np.random.default_rng(seed))
    assert len(archs) == draws
    assert set(archs) <= set(under(limits))


def test_a_target_at_the_very_fastest_or_slowest_arch_is_reachable() -> None:
    fastest = feasible(0.0)
    assert len(set(fastest.sample(50, np.random.default_rng(0)))) == 1
    assert fastest.best(np.zeros(fastest.cost.entries.shape[1:])) == fastest.sample(1, np.random.default_rng(0))[0]
    assert feasible(1.0).meets(EVERY).all()
    assert feasible(1.0).count == len(EVERY)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_an_unreachable_target_is_refused_with_the_range(share: float) -> None:
    low, high = feasible().bounds_ms
    with pytest.raises(TargetError, match=f"must be within {low:.4g} and {high:.4g} ms.*but got"):
        feasible(share)


@pytest.mark.parametrize("sums", [1, 2])
def test_what_is_allowed_leaves_a_way_under_the_target(sums: int) -> None:
    limits = feasible(0.3, sums=sums)
    for position in range(len(CANDIDATES)):
        for head in itertools.product(*CANDIDATES[:position]):
            spent = np.array([[sum(entries[p, code] for p, code in enumerate(head)) for entries in limits.cost.entries]])
            tails = list(itertools.product(*CANDIDATES[position:]))
            possible = {tail[0] for tail in tails if cost(limits, (*head, *tail)) <= limits.target_ms}
            nearest = min(tails, key=lambda tail: cost(limits, (*head, *tail)))[0]
            allowed = set(np.flatnonzero(limits.allowed(position, spent)[0]))
            assert allowed == (possible or {nearest})


def test_fixed_cost_counts() -> None:
    arch = EVERY[0]
    assert feasible().latency_ms([arch])[0] == pytest.approx(
        FIXED_MS + sum(feasible().cost.entries[0, p, c] for p, c in enumerate(arch))
    )


def test_a_large_space_is_sampled_and_solved_quickly() -> None:
    rng = np.random.default_rng(0)
    cost_ms = rng.uniform(0.1, 1, (48, 6))
    target = float(np.percentile(cost_ms[np.arange(48), rng.integers(0, 6, (4000, 48))].sum(1), 5))
    limits = Feasible(candidates=(tuple(range(6)),) * 48, cost=Sums.one(cost_ms, 0.0), target_ms=target)
    archs = limits.sample(1000, rng)
    assert limits.meets(archs).all()
    assert limits.count == pytest.approx(0.05 * 6**48, rel=0.3)
    assert limits.meets([limits.best(rng.normal(size=(48, 6)))]).all()
