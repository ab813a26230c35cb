"""Several limits at once: every answer is compared with listing all archs."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from nar_hw.data import load_data
from nar_hw.errors import RunError, TargetError, UnknownNameError, UserError
from nar_hw.records import as_record, plain, replace
from nar_hw.search.budget import Budget, Cost, Within
from nar_hw.search.config import SearchConfig
from nar_hw.search.loop import search
from nar_hw.search.result import SearchResult
from nar_hw.search.reward import REWARDS
from nar_hw.search.strategies import STRATEGIES
from nar_hw.space.flops import count_module
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch, OpSpec
from nar_hw.space.sums import Bend, Sums
from nar_hw.tasks import ClassificationTask
from nar_hw.testing.strategies import CANDIDATES
from tests.networks import SharedConv, TinyResNet
from tests.test_table import for_space

torch.set_num_threads(1)
EVERY: list[Arch] = list(itertools.product(*CANDIDATES))


def made_budget(seed: int, shares: tuple[float, ...], combine: str = "worst", cached: int = 0, bent: int = 0) -> Budget:
    """Costs of random entries; each target lies at its share of the way from the cheapest to the dearest arch.

    The first ``cached`` costs are the lesser of two sums each; the last ``bent`` ones grow faster than their sums.
    """
    rng = np.random.default_rng(seed)
    costs = []
    for number, share in enumerate(shares):
        entries = np.full((len(CANDIDATES), 4), np.inf)
        for position, codes in enumerate(CANDIDATES):
            entries[position, list(codes)] = rng.uniform(0.1, 1, len(codes))
        sums = Sums.one(entries, float(rng.uniform(0, 2)))
        if number < cached:
            lighter = entries + rng.uniform(0, 0.4, entries.shape)
            sums = Sums(entries=np.stack([entries, lighter]), fixed=sums.fixed[0] - np.array([0, rng.uniform(0.4, 1.6)]))
        if number >= len(shares) - bent:
            sums = replace(sums, bend=Bend(per_ms=float(rng.uniform(0.05, 1)), at_ms=float(rng.uniform(0.1, 0.5))))
        cost = Cost(name=f"cost {number}", sums=sums, target=1.0)
        values = cost.of(EVERY)
        costs.append(replace(cost, target=float(values.min() + share * np.ptp(values))))
    mixes = np.eye(len(costs)) if combine == "worst" else np.full((1, len(costs)), 1 / len(costs))
    return Budget(candidates=CANDIDATES, costs=tuple(costs), mixes=mixes)


def within(budget: Budget) -> list[Arch]:
    """By adding up: all archs of which every limit holds."""
    found = []
    for arch in EVERY:
        ratios = []
        for cost in budget.costs:
            spent = [sum(entries[slot, code] for slot, code in enumerate(arch)) for entries in cost.sums.entries]
            ms, bend = min(map(sum, zip(spent, cost.sums.fixed, strict=True))), cost.sums.bend
            ratios.append((ms if bend is None else ms + bend.per_ms * (ms - bend.at_ms) ** 2) / cost.target)
        if all(sum(w * r for w, r in zip(row, ratios, strict=True)) <= 1 + 1e-9 for row in budget.mixes):
            found.append(arch)
    return found


SHARES = st.lists(st.floats(0.05, 1), min_size=2, max_size=3).map(tuple)


@given(
    seed=st.integers(0, 10_000),
    shares=SHARES,
    combine=st.sampled_from(["worst", "mean"]),
    cached=st.integers(0, 2),
    bent=st.integers(0, 2),
)
@settings(max_examples=80, deadline=None)
def test_what_is_within_several_limits_is_found_or_refused(
    seed: int, shares: tuple[float, ...], combine: str, cached: int, bent: int
) -> None:
    budget = made_budget(seed, shares, combine, cached, bent)
    expected = within(budget)
    if not expected:
        with pytest.raises(TargetError, match=r"one arch must meet all targets, but none does: the nearest takes .*: raise one$"):
            _ = budget.feasible
        return
    limits = budget.feasible
    assert [arch for arch, meets in zip(EVERY, limits.meets(EVERY), strict=True) if meets] == expected
    assert set(limits.sample(10, np.random.default_rng(seed))) <= set(expected)
    scores = np.random.default_rng(seed + 1).normal(size=(len(CANDIDATES), 4))
    value = {arch: sum(scores[slot, code] for slot, code in enumerate(arch)) for arch in expected}
    assert value[limits.best(scores)] == pytest.approx(max(value.values()))
    pairs = np.random.default_rng(seed + 2).normal(size=(len(CANDIDATES) - 1, 4, 4))
    value = {
        arch: total + sum(pairs[slot, arch[slot], arch[slot + 1]] for slot in range(len(pairs))) for arch, total in value.items()
    }
    assert value[limits.best(scores, pairs)] == pytest.approx(max(value.values()))
    loads = budget.loads(EVERY)
    assert budget.loads([budget.nearest])[0] == pytest.approx(loads.min(), rel=1e-5)


@pytest.mark.parametrize("combine", ["worst", "mean"])
def test_a_target_that_no_sum_has_is_refused(combine: str) -> None:
    budget = made_budget(0, (0.5, 0.5), combine, bent=2)
    bend = Bend(per_ms=1.0, at_ms=1.5)
    costs = tuple(replace(cost, sums=replace(cost.sums, bend=bend), target=0.5) for cost in budget.costs)
    assert bend.straight(0.5) == -np.inf
    budget = replace(budget, costs=costs)
    with pytest.raises(TargetError, match=r"one arch must meet all targets, but none does: the nearest takes"):
        _ = budget.feasible
    assert budget.loads([budget.nearest])[0] == pytest.approx(budget.loads(EVERY).min(), rel=1e-5)


@pytest.mark.parametrize("cached", [0, 2])
def test_samples_are_uniform(cached: int) -> None:
    budget = made_budget(1, (0.4, 0.4), cached=cached)
    members = within(budget)
    assert 10 < len(members) < len(EVERY) / 4
    counts = Counter(budget.feasible.sample(100 * len(members), np.random.default_rng(0)))
    assert set(counts) == set(members)
    chi_square = sum((counts[arch] - 100) ** 2 / 100 for arch in members)
    assert abs(chi_square - len(members)) < 5 * np.sqrt(2 * len(members))


def test_where_few_archs_are_within_drawing_does_not_go_on_for_ever() -> None:
    """Two costs that contradict each other: about one arch in a thousand is within both limits."""
    rng = np.random.default_rng(0)
    entries = rng.uniform(0.1, 1, (16, 5))
    costs = tuple(Cost(name="", sums=Sums.one(values, 0.0), target=8.802) for values in (entries, 1.1 - entries))
    limits = Budget(candidates=((0, 1, 2, 3, 4),) * 16, costs=costs, mixes=np.eye(2)).feasible
    archs = limits.sample(20, rng)
    assert len(archs) == 20
    assert limits.meets(archs).all()
    assert limits.meets([limits.best(rng.normal(size=(16, 5)))]).all()


def test_of_several_limits_an_upper_bound_is_counted() -> None:
    budget = made_budget(3, (0.5, 0.5))
    times = budget.latency_ms(EVERY)
    text = budget.reach
    assert text.startswith(f"{min(times):.4g} to {max(times):.4g} ms by the table; up to ")
    assert text.endswith(f" of {len(EVERY):,} archs meet all targets")
    bound = int(text.split("up to ")[1].split(" ")[0].replace(",", ""))
    assert len(within(budget)) <= bound <= len(EVERY)


def test_targets_that_are_exactly_one_archs_costs_are_met() -> None:
    budget = made_budget(3, (0.5, 0.5))
    arch = min(EVERY, key=lambda arch: float(budget.loads([arch])[0]))
    exact = replace(budget, costs=tuple(replace(cost, target=float(cost.of([arch])[0])) for cost in budget.costs))
    assert exact.feasible.meets([arch]).all()
    assert set(exact.feasible.sample(5, np.random.default_rng(0))) <= set(within(exact))
    assert exact.feasible.best(np.zeros((len(CANDIDATES), 4))) in within(exact)


@given(seed=st.integers(0, 100), factors=st.tuples(st.floats(1, 3), st.floats(1, 3)))
@settings(max_examples=40, deadline=None)
def test_a_load_never_falls_with_a_cost_and_the_worst_is_at_least_the_mean(seed: int, factors: tuple[float, float]) -> None:
    worst, mean = (made_budget(seed, (0.5, 0.5), combine) for combine in ("worst", "mean"))
    assert (worst.loads(EVERY) >= mean.loads(EVERY) - 1e-12).all()
    for budget in (worst, mean):
        dearer = replace(
            budget,
            costs=tuple(replace(cost, target=cost.target / factor) for cost, factor in zip(budget.costs, factors, strict=True)),
        )
        assert (dearer.loads(EVERY) >= budget.loads(EVERY) - 1e-12).all()


@pytest.mark.parametrize("name", REWARDS)
@given(q=st.floats(0.01, 1), over=st.floats(0, 2), more=st.floats(0, 2))
def test_rewards_of_a_load(name: str, q: float, over: float, more: float) -> None:
    """Equal to the accuracy where the load is 1, continuous there, and above it never rising with the load."""
    reward = REWARDS[name]
    assert reward(q, 1.0, 1.0) == pytest.approx(q, rel=1e-12)
    assert reward(q, 1 + 1e-9, 1.0) == pytest.approx(reward(q, 1 - 1e-9, 1.0), abs=1e-8)
    assert reward(q, 1 + over + more, 1.0) <= reward(q, 1 + over, 1.0) + 1e-12


def test_a_budget_is_made_of_tables_and_counts() -> None:
    """Loads against predictions of the tables and counts of the built children."""
    budget = Budget.of(SPACE, [FAST, SLOW], TARGETS, replace(CONFIG, max_flops=LIMITS[0], max_params=LIMITS[1]))
    archs = [tuple(slot.candidates[turn % len(slot.candidates)] for slot in SPACE.slots) for turn in range(5)]
    expected = []
    for arch in archs:
        counts = count_module(SPACE.build(arch), SPACE.input_shape)
        ratios = [FAST.predict(arch) / TARGETS[0], SLOW.predict(arch) / TARGETS[1]]
        expected.append(max(*ratios, counts.flops / LIMITS[0], counts.params / LIMITS[1]))
    np.testing.assert_allclose(budget.loads(archs), expected)
    np.testing.assert_allclose(budget.latency_ms(archs), FAST.predict(archs))
    slower = [2 * ms for ms in FAST.predict(archs)]
    assert (budget.loads(archs, slower) >= budget.loads(archs)).all()
    np.testing.assert_allclose(budget.tightened(2).loads(archs), budget.loads(archs, slower))


def test_a_weighted_mean_of_tables() -> None:
    config = replace(CONFIG, combine="mean", weights=(3.0, 1.0))
    budget = Budget.of(SPACE, [FAST, SLOW], TARGETS, config)
    arch = SPACE.incumbent
    expected = 0.75 * FAST.predict(arch) / TARGETS[0] + 0.25 * SLOW.predict(arch) / TARGETS[1]
    assert budget.loads([arch])[0] == pytest.approx(expected)
    assert isinstance(budget.feasible, Within)


def cost_of(**factors: float) -> Any:
    def cost(spec: OpSpec) -> float:
        return 0.1 + factors[spec.operator] * spec.c_in * spec.c_out / 256 / spec.stride[0]

    return cost


torch.manual_seed(0)
SPACE = SearchSpace.from_model(TinyResNet(), (3, 8, 8), operators=("conv3x3", "dwsep3x3", "max3x3"))
FAST = for_space(SPACE, cost_of(conv3x3=1.0, dwsep3x3=0.2, max3x3=0.8))
SLOW = for_space(SPACE, cost_of(conv3x3=3.0, dwsep3x3=2.8, max3x3=0.5))
TARGETS = tuple(0.5 * sum(table.bounds()) for table in (FAST, SLOW))
LIMITS = (145_000, 5_000)
CONFIG = SearchConfig(
    warmup_epochs=0, epochs=1, batch=64, lr=0.05, t_0=1, updates=2, samples=4, valid_batch=32, rescored=6, finalists=3
)


def run(config: SearchConfig = CONFIG, **options: Any) -> SearchResult:
    task = ClassificationTask(load_data("fake:3x8x8x5"))
    return search(SPACE, task, [FAST, SLOW], **{"target_ms": TARGETS, "config": config, **options})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_everything_scored_is_within_every_limit(strategy: str) -> None:
    result = run(replace(CONFIG, strategy=strategy, max_flops=LIMITS[0], max_params=LIMITS[1]))
    assert result.met
    for item in result.scored:
        counts = count_module(SPACE.build(item.arch), SPACE.input_shape)
        assert item.load <= 1
        assert FAST.predict(item.arch) <= TARGETS[0]
        assert SLOW.predict(item.arch) <= TARGETS[1]
        assert (counts.flops <= LIMITS[0], counts.params <= LIMITS[1]) == (True, True)


def test_run_json_tells_every_target_and_resumes_with_the_same_only(tmp_path: Path) -> None:
    config = replace(CONFIG, max_flops=LIMITS[0])
    result = run(config, out=tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    arch = result.arch
    assert record["target_ms"] == TARGETS[0]
    assert record["predicted_ms"] == FAST.predict(arch)
    assert record["tables"] == ["table.json", "table-2.json"]
    assert [type(FAST).load(tmp_path / name).hash for name in record["tables"]] == [FAST.hash, SLOW.hash]
    other, flops = record["others"]
    assert (other["cost"], other["target"]) == (pytest.approx(SLOW.predict(arch)), TARGETS[1])
    assert (flops["cost"], flops["target"], flops["name"]) == (
        count_module(SPACE.build(arch), SPACE.input_shape).flops,
        LIMITS[0],
        "FLOPs",
    )
    assert f"of {TARGETS[1]:.4g} ms on a CPU (fake fp32), {flops['cost']:.4g} of {LIMITS[0]:.4g} FLOPs" in record["note"]
    assert run(config, out=tmp_path, resume=True) == result
    with pytest.raises(RunError, match="max_flops is 145000 there and None now"):
        run(out=tmp_path, resume=True)
    with pytest.raises(RunError, match="more_targets_ms is"):
        run(config, out=tmp_path, resume=True, target_ms=[TARGETS[0], 2 * TARGETS[1]])


def test_a_measurement_takes_the_place_of_the_first_tables_prediction() -> None:
    """Twice as slow as predicted: what is tried next is within half the first target, and within the second as it is."""
    asked: list[list[Arch]] = []

    def measure(archs: list[Arch]) -> list[float]:
        asked.append(archs)
        return [1.4 * FAST.predict(arch) for arch in archs]

    targets = [0.8 * FAST.bounds()[1], SLOW.bounds()[1]]
    result = run(replace(CONFIG, reward_options={"slope": -10.0}), target_ms=targets, measure=measure)
    assert result.met
    assert result.pick.measured_ms == pytest.approx(1.4 * FAST.predict(result.arch))
    assert result.pick.load == pytest.approx(max(result.pick.cost / targets[0], SLOW.predict(result.arch) / targets[1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_ms": [1.0, 2.0, 3.0]}, "one target, or one for each of 2 tables, but got 3"),
        ({"config": replace(CONFIG, combine="mean", weights=(1.0,))}, "one weight for each of 2 tables, but got 1"),
        ({"config": replace(CONFIG, max_flops=1000)}, r"none does: the nearest takes .* of 1000 FLOPs \(each alone"),
        ({"target_ms": [TARGETS[0], 0.01]}, r"the nearest takes .* of 0.01 ms on a CPU \(fake fp32\)"),
        ({"target_ms": [TARGETS[0], 0.0]}, "targets must be more than 0, but got"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_the_search(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(**options, out=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"combine": "best"}, UnknownNameError, "unknown combine 'best': use one of mean, worst"),
        ({"weights": (1.0, 2.0)}, UserError, r"combine=mean with weights must hold in a search, but got \(combine=worst"),
        ({"combine": "mean", "weights": (1.0, 0.0)}, UserError, "weights > 0"),
        ({"max_flops": 0}, UserError, r"max_flops >= 1 must hold in a search, but got \(max_flops=0\)"),
        ({"max_params": -5}, UserError, "max_params >= 1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], error: type[UserError], message: str) -> None:
    with pytest.raises(error, match=message):
        SearchConfig(**settings)


def test_settings_survive_json() -> None:
    config = SearchConfig(combine="mean", weights=(1.0, 2.0), max_flops=10, max_params=20)
    assert as_record(json.loads(json.dumps(plain(config))), SearchConfig, where="search") == config


def test_parameters_that_slots_share_cannot_be_limited() -> None:
    class Tied(TinyResNet):
        def __init__(self) -> None:
            super().__init__()
            self.layer1.conv2.weight = self.layer1.conv1.weight

    space = SearchSpace.from_model(Tied(), (3, 8, 8))
    config = SearchConfig(max_params=10**6)
    with pytest.raises(UserError, match="a limit of parameters needs slots that share none"):
        Budget.of(space, [for_space(space)], [10.0], config)
    shared = SearchSpace.from_model(SharedConv(), (3, 8, 8))
    assert len(Budget.of(shared, [for_space(shared)], [10.0], config).costs) == 2
