"""What every search strategy must do."""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from nar_hw.errors import TrainingError
from nar_hw.search.feasible import Feasible
from nar_hw.search.strategies.base import Strategy
from nar_hw.space.spec import Arch
from nar_hw.space.sums import Sums

CANDIDATES = ((0, 1, 2), (1, 3), (0, 1, 2, 3), (2,), (0, 2, 3), (0, 1, 2, 3))
FIXED_MS = 0.5
Maker = Callable[..., Strategy]


def feasible(share: float = 0.4, seed: int = 0, *, sums: int = 1) -> Feasible:
    """Six slots with other candidates each, one of them without a choice; the target is ``share`` of the way to the slowest.

    With ``sums=2`` light archs save what a cache saves them: the latency is the lesser of two sums.
    """
    rng = np.random.default_rng(seed)
    cost = np.full((len(CANDIDATES), 4), np.inf)
    for position, codes in enumerate(CANDIDATES):
        cost[position, list(codes)] = rng.uniform(0.1, 1, len(codes))
    known = Sums.one(cost, FIXED_MS)
    if sums == 2:
        weights = rng.uniform(0, 0.4, cost.shape)
        known = Sums(entries=np.stack([cost, cost + weights]), fixed=np.array([FIXED_MS, FIXED_MS - rng.uniform(0.4, 1.6)]))
    target = known.least + share * (known.most - known.least)
    return Feasible(candidates=CANDIDATES, cost=known, target_ms=target)


def quality(archs: list[Arch]) -> list[float]:
    """A made accuracy in [0, 1]."""
    return [0.5 + 0.4 * math.sin(sum((position + 1) * code for position, code in enumerate(arch))) for arch in archs]


def slopes(archs: list[Arch]) -> list[list[float]]:
    """A made gradient for each slot of each arch."""
    return [[math.cos((position + 1) * code) for position, code in enumerate(arch)] for arch in archs]


def play(strategy: Strategy, rounds: int, n: int = 5) -> list[list[Arch]]:
    """Ask and tell some times, and descend where there is a mixture; returns what was proposed."""
    proposed = []
    for number in range(rounds):
        if strategy.wants_mixture:
            strategy.descend(np.cos(number + np.arange(24.0)).reshape(len(CANDIDATES), 4))
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
    """Subclass and provide the fixture ``strategy``: its class, or what makes one of (feasible archs, seed=...)."""

    def make(self, strategy: Maker, limits: Feasible | None = None, seed: int = 3) -> Strategy:
        """The strategy on its archs."""
        return strategy(limits or feasible(), seed=seed)

    @pytest.mark.parametrize(("n", "sums"), [(1, 1), (7, 1), (7, 2)])
    def test_proposes_as_many_archs_as_asked_all_under_the_target(self, strategy: Maker, n: int, sums: int) -> None:
        first = self.make(strategy, feasible(seed=4, sums=sums))
        for _ in range(6):
            for archs in (first.ask(n), first.paths(n)):
                assert len(archs) == n
                assert all(type(arch) is tuple and all(type(code) is int for code in arch) for arch in archs)
                assert all(code in codes for arch in archs for code, codes in zip(arch, CANDIDATES, strict=True))
                assert first.feasible.meets(archs).all()
            first.tell(archs, quality(archs), slopes(archs))

    @pytest.mark.parametrize("sums", [1, 2])
    def test_its_own_choice_is_under_the_target(self, strategy: Maker, sums: int) -> None:
        first = self.make(strategy, feasible(seed=4, sums=sums))
        for _ in range(4):
            best = first.best()
            assert best is None or first.feasible.meets([best]).all()
            play(first, 3)

    def test_the_same_seed_gives_the_same_proposals(self, strategy: Maker) -> None:
        one, two, other = (play(self.make(strategy, seed=seed), 6) for seed in (3, 3, 4))
        assert one == two
        assert one != other

    def test_draws_from_no_global_generator(self, strategy: Maker) -> None:
        before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].tolist()
        play(self.make(strategy), 3)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == np.random.get_state(legacy=False)["state"]["key"].tolist()

    def test_a_restored_copy_goes_on_as_the_original(self, strategy: Maker) -> None:
        first, other = self.make(strategy), self.make(strategy, seed=9)
        play(first, 5)
        other.load_state_dict(copied(first.state_dict()))
        assert play(first, 5) == play(other, 5)
        assert first.paths(4) == other.paths(4)
        assert first.best() == other.best()
        assert first.scalars() == other.scalars()

    def test_a_state_may_be_restored_more_than_once(self, strategy: Maker) -> None:
        first = self.make(strategy)
        play(first, 3)
        state = copied(first.state_dict())
        expected = play(first, 3)
        for _ in range(2):
            first.load_state_dict(state)
            assert play(first, 3) == expected

    def test_learns_from_archs_that_it_did_not_propose(self, strategy: Maker) -> None:
        first = self.make(strategy)
        archs = feasible().sample(8, np.random.default_rng(1))
        slow = [
            tuple(codes[int(np.argmax([feasible().cost.entries[0, p, c] for c in codes]))] for p, codes in enumerate(CANDIDATES))
        ]
        assert not feasible().meets(slow).any()
        first.tell(archs + slow, quality(archs + slow), slopes(archs + slow))
        assert first.feasible.meets(first.ask(20)).all()

    @pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
    def test_a_reward_that_is_no_number_changes_nothing(self, strategy: Maker, wrong: float) -> None:
        first, other = self.make(strategy), self.make(strategy)
        archs = feasible().sample(6, np.random.default_rng(1))
        rewards = quality(archs)
        kept = archs[:2] + archs[3:]
        other.tell(kept, quality(kept), slopes(kept))
        rewards[2] = wrong
        first.tell(archs, rewards, slopes(archs))
        assert play(first, 4) == play(other, 4)

    def test_a_slope_that_is_no_number_changes_nothing(self, strategy: Maker) -> None:
        first, other = self.make(strategy), self.make(strategy)
        archs = feasible().sample(3, np.random.default_rng(1))
        other.tell(archs[:2], quality(archs[:2]), slopes(archs[:2]))
        first.tell(archs, quality(archs), [*slopes(archs[:2]), [0.1, math.nan, 0.1, 0.1, 0.1, 0.1]])
        assert play(first, 4) == play(other, 4)

    def test_rewards_that_are_all_no_numbers_are_an_error(self, strategy: Maker) -> None:
        first, other = self.make(strategy), self.make(strategy)
        archs = feasible().sample(3, np.random.default_rng(1))
        with pytest.raises(TrainingError, match="all 3 told at once are not"):
            first.tell(archs, [math.nan] * 3)
        assert play(first, 3) == play(other, 3)

    def test_equal_rewards_are_no_reason_to_stop(self, strategy: Maker) -> None:
        first = self.make(strategy)
        for _ in range(10):
            archs = first.ask(4)
            first.tell(archs, [0.5] * 4, slopes(archs))
        assert all(math.isfinite(value) for value in first.scalars().values())

    def test_archs_may_be_told_one_by_one(self, strategy: Maker) -> None:
        first = self.make(strategy)
        play(first, 20, n=1)
        assert all(math.isfinite(value) for value in first.scalars().values())

    def test_being_told_nothing_changes_nothing(self, strategy: Maker) -> None:
        first, other = self.make(strategy), self.make(strategy)
        first.tell([], [])
        assert play(first, 3) == play(other, 3)

    def test_a_target_that_only_the_fastest_arch_meets_is_met(self, strategy: Maker) -> None:
        first = self.make(strategy, feasible(share=0.0))
        fastest = tuple(min(codes, key=lambda code: feasible().cost.entries[0, p, code]) for p, codes in enumerate(CANDIDATES))
        assert set(first.ask(20)) == {fastest}
        play(first, 3)
        assert set(first.paths(20)) == {fastest}

    def test_unequal_numbers_of_archs_and_rewards_are_an_error(self, strategy: Maker) -> None:
        with pytest.raises(ValueError, match="zip"):
            self.make(strategy).tell([(0, 1, 0, 2, 0, 0)], [0.1, 0.2])

    def test_its_mixture_is_of_the_candidates_alone(self, strategy: Maker) -> None:
        first = self.make(strategy)
        if not first.wants_mixture:
            return
        play(first, 3)
        shares = first.mixture()
        assert shares.shape == (len(CANDIDATES), 4)
        for row, codes in zip(shares, CANDIDATES, strict=True):
            assert row[list(codes)].sum() == pytest.approx(1)
            assert (row[list(codes)] > 0).all()
            assert np.delete(row, codes).sum() == 0
        with pytest.raises(TrainingError, match="diverged"):
            first.descend(np.full(shares.shape, np.nan))
        assert np.array_equal(first.mixture(), shares)

    def test_says_what_it_is(self, strategy: Maker) -> None:
        assert strategy.__doc__
