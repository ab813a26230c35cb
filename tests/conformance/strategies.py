"""What every search strategy must do; a new one is one more parameter of the fixture."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch

from nar_hw.errors import TrainingError
from nar_hw.search.feasible import Feasible
from nar_hw.search.strategies import strategy_class
from nar_hw.search.strategies.base import Strategy
from nar_hw.space.spec import Arch

CANDIDATES = ((0, 1, 2), (1, 3), (0, 1, 2, 3), (2,), (0, 2, 3), (0, 1, 2, 3))
FIXED_MS = 0.5


def feasible(share: float = 0.4, seed: int = 0) -> Feasible:
    """Six slots with other candidates each, one of them without a choice; the target is ``share`` of the way to the slowest."""
    rng = np.random.default_rng(seed)
    cost = np.full((len(CANDIDATES), 4), np.inf)
    for position, codes in enumerate(CANDIDATES):
        cost[position, list(codes)] = rng.uniform(0.1, 1, len(codes))
    ends = [sum(pick(cost[p, list(codes)]) for p, codes in enumerate(CANDIDATES)) for pick in (min, max)]
    target = FIXED_MS + ends[0] + share * (ends[1] - ends[0])
    return Feasible(candidates=CANDIDATES, cost_ms=cost, fixed_ms=FIXED_MS, target_ms=float(target))


def quality(archs: list[Arch]) -> list[float]:
    """A made accuracy in [0, 1]."""
    return [0.5 + 0.4 * math.sin(sum((position + 1) * code for position, code in enumerate(arch))) for arch in archs]


def slopes(archs: list[Arch]) -> list[list[float]]:
    """A made gradient for each slot of each arch."""
    return [[math.cos((position + 1) * code) for position, code in enumerate(arch)] for arch in archs]


def play(strategy: Strategy, rounds: int, n: int = 5) -> list[list[Arch]]:
    """Ask and tell some times; returns what was proposed."""
    proposed = []
    for _ in range(rounds):
        archs = strategy.ask(n)
        strategy.tell(archs, quality(archs), slopes(archs))
        proposed.append(archs)
    return proposed


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """Through a file that may hold data only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


class StrategyConformance:
    """Subclass and provide the fixture ``name``."""

    def make(self, name: str, limits: Feasible | None = None, seed: int = 3) -> Strategy:
        return strategy_class(name)(limits or feasible(), seed=seed)

    @pytest.mark.parametrize("n", [1, 7])
    def test_proposes_as_many_archs_as_asked_all_under_the_target(self, name: str, n: int) -> None:
        strategy = self.make(name)
        for _ in range(6):
            for archs in (strategy.ask(n), strategy.paths(n)):
                assert len(archs) == n
                assert all(type(arch) is tuple and all(type(code) is int for code in arch) for arch in archs)
                assert all(code in codes for arch in archs for code, codes in zip(arch, CANDIDATES, strict=True))
                assert strategy.feasible.meets(archs).all()
            strategy.tell(archs, quality(archs), slopes(archs))

    def test_its_own_choice_is_under_the_target(self, name: str) -> None:
        strategy = self.make(name)
        for _ in range(4):
            best = strategy.best()
            assert best is None or strategy.feasible.meets([best]).all()
            play(strategy, 3)

    def test_the_same_seed_gives_the_same_proposals(self, name: str) -> None:
        first, second, other = (play(self.make(name, seed=seed), 6) for seed in (3, 3, 4))
        assert first == second
        assert first != other

    def test_draws_from_no_global_generator(self, name: str) -> None:
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()
        play(self.make(name), 3)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == np.random.get_state()[1].tolist()

    def test_a_restored_copy_goes_on_as_the_original(self, name: str) -> None:
        strategy, other = self.make(name), self.make(name, seed=9)
        play(strategy, 5)
        other.load_state_dict(copied(strategy.state_dict()))
        assert play(strategy, 5) == play(other, 5)
        assert strategy.paths(4) == other.paths(4)
        assert strategy.best() == other.best()
        assert strategy.scalars() == other.scalars()

    def test_a_state_may_be_restored_more_than_once(self, name: str) -> None:
        strategy = self.make(name)
        play(strategy, 3)
        state = copied(strategy.state_dict())
        expected = play(strategy, 3)
        for _ in range(2):
            strategy.load_state_dict(state)
            assert play(strategy, 3) == expected

    def test_learns_from_archs_that_it_did_not_propose(self, name: str) -> None:
        strategy = self.make(name)
        archs = feasible().sample(8, np.random.default_rng(1))
        slow = [tuple(codes[int(np.argmax([feasible().cost_ms[p, c] for c in codes]))] for p, codes in enumerate(CANDIDATES))]
        assert not feasible().meets(slow).any()
        strategy.tell(archs + slow, quality(archs + slow), slopes(archs + slow))
        assert strategy.feasible.meets(strategy.ask(20)).all()

    @pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
    def test_a_reward_that_is_no_number_changes_nothing(self, name: str, wrong: float) -> None:
        strategy, other = self.make(name), self.make(name)
        archs = feasible().sample(6, np.random.default_rng(1))
        rewards = quality(archs)
        kept = archs[:2] + archs[3:]
        other.tell(kept, quality(kept), slopes(kept))
        rewards[2] = wrong
        strategy.tell(archs, rewards, slopes(archs))
        assert play(strategy, 4) == play(other, 4)

    def test_a_slope_that_is_no_number_changes_nothing(self, name: str) -> None:
        strategy, other = self.make(name), self.make(name)
        archs = feasible().sample(3, np.random.default_rng(1))
        other.tell(archs[:2], quality(archs[:2]), slopes(archs[:2]))
        strategy.tell(archs, quality(archs), [*slopes(archs[:2]), [0.1, math.nan, 0.1, 0.1, 0.1, 0.1]])
        assert play(strategy, 4) == play(other, 4)

    def test_rewards_that_are_all_no_numbers_are_an_error(self, name: str) -> None:
        strategy, other = self.make(name), self.make(name)
        archs = feasible().sample(3, np.random.default_rng(1))
        with pytest.raises(TrainingError, match="all 3 told at once are not"):
            strategy.tell(archs, [math.nan] * 3)
        assert play(strategy, 3) == play(other, 3)

    def test_equal_rewards_are_no_reason_to_stop(self, name: str) -> None:
        strategy = self.make(name)
        for _ in range(10):
            archs = strategy.ask(4)
            strategy.tell(archs, [0.5] * 4, slopes(archs))
        assert all(math.isfinite(value) for value in strategy.scalars().values())

    def test_archs_may_be_told_one_by_one(self, name: str) -> None:
        strategy = self.make(name)
        play(strategy, 20, n=1)
        assert all(math.isfinite(value) for value in strategy.scalars().values())

    def test_being_told_nothing_changes_nothing(self, name: str) -> None:
        strategy, other = self.make(name), self.make(name)
        strategy.tell([], [])
        assert play(strategy, 3) == play(other, 3)

    def test_a_target_that_only_the_fastest_arch_meets_is_met(self, name: str) -> None:
        strategy = self.make(name, feasible(share=0.0))
        fastest = tuple(min(codes, key=lambda code: feasible().cost_ms[p, code]) for p, codes in enumerate(CANDIDATES))
        assert set(strategy.ask(20)) == {fastest}
        play(strategy, 3)
        assert set(strategy.paths(20)) == {fastest}

    def test_unequal_numbers_of_archs_and_rewards_are_an_error(self, name: str) -> None:
        with pytest.raises(ValueError, match="zip"):
            self.make(name).tell([(0, 1, 0, 2, 0, 0)], [0.1, 0.2])

    def test_says_what_it_is(self, name: str) -> None:
        assert strategy_class(name).__doc__
