from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from nar_hw.search.reward import REWARDS
from nar_hw.testing import RewardConformance

Q = st.floats(0.001, 1)
MS = st.floats(0.01, 100)


class TestRewards(RewardConformance):
    @pytest.fixture(params=REWARDS)
    def reward(self, request: pytest.FixtureRequest) -> Any:
        return REWARDS[request.param]


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("accuracy", lambda q, latency, target: q),
        ("mnasnet-soft", lambda q, latency, target: q * (latency / target) ** -0.07),
        ("mnasnet-hard", lambda q, latency, target: q if latency <= target else q * (latency / target) ** -1),
        ("proxyless-rl", lambda q, latency, target: q * (target / latency) ** 0.1),
        ("absolute", lambda q, latency, target: q - 0.10 * abs(latency / target - 1)),
        ("one-sided", lambda q, latency, target: q - 0.10 * max(0, latency / target - 1)),
    ],
)
@given(q=Q, latency=MS, target=MS)
def test_follows_its_formula(name, formula, q: float, latency: float, target: float) -> None:
    assert REWARDS[name](q, latency, target) == pytest.approx(formula(q, latency, target), rel=1e-9, abs=1e-9)


def test_every_reward_has_a_formula_above() -> None:
    assert set(REWARDS) == {"accuracy", "mnasnet-soft", "mnasnet-hard", "proxyless-rl", "absolute", "one-sided"}


@pytest.mark.parametrize("name", ["mnasnet-soft", "proxyless-rl"])
@given(q=Q, target=MS, ratios=st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)))
def test_being_slower_always_costs(name: str, q: float, target: float, ratios: tuple[float, float]) -> None:
    fast, slow = sorted(ratios)
    assert REWARDS[name](q, fast * target, target) >= REWARDS[name](q, slow * target, target)


@pytest.mark.parametrize("name", ["mnasnet-hard", "one-sided"])
@given(q=Q, target=MS, under=st.floats(0.01, 1), over=st.tuples(st.floats(1.01, 10), st.floats(1.01, 10)))
def test_being_slower_costs_above_the_target_only(
    name: str, q: float, target: float, under: float, over: tuple[float, float]
) -> None:
    less, more = sorted(over)
    assert REWARDS[name](q, under * target, target) == pytest.approx(q, rel=1e-12)
    assert q > REWARDS[name](q, less * target, target) >= REWARDS[name](q, more * target, target)


@given(q=Q, target=MS, ratio=st.floats(0.01, 10))
def test_absolute_is_largest_at_the_target(q: float, target: float, ratio: float) -> None:
    assert REWARDS["absolute"](q, ratio * target, target) <= q
    assert REWARDS["absolute"](q, 0.5 * target, target) == pytest.approx(REWARDS["absolute"](q, 1.5 * target, target))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("mnasnet-soft", {"exponent": -1.0}, 0.4),
        ("mnasnet-hard", {"exponent": -2.0}, 0.2),
        ("proxyless-rl", {"exponent": 1.0}, 0.4),
        ("absolute", {"slope": -0.5}, 0.3),
        ("one-sided", {"slope": -0.2}, 0.6),
    ],
)
def test_parameters_are_used(name: str, options: dict[str, float], expected: float) -> None:
    assert REWARDS[name](0.8, 2.0, 1.0, **options) == pytest.approx(expected)
    np.testing.assert_allclose(REWARDS[name](np.array([0.8]), np.array([2.0]), 1.0, **options), [expected])
