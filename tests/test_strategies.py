import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from nar_hw.errors import TrainingError
from nar_hw.search.feasible import Feasible
from nar_hw.search.strategies import STRATEGIES, strategy_class
from nar_hw.search.strategies.base import Strategy
from nar_hw.search.strategies.darts import DartsStrategy
from nar_hw.search.strategies.evolution import EvolutionStrategy
from nar_hw.search.strategies.gradient import GradientStrategy
from nar_hw.search.strategies.proxyless import ProxylessStrategy
from nar_hw.search.strategies.random import RandomStrategy
from nar_hw.search.strategies.reinforce import GRADIENT_NORM, Baseline, ReinforceStrategy
from nar_hw.search.strategies.surrogate import PAIRS, SHRINKAGE, SurrogateStrategy
from nar_hw.space.spec import Arch
from nar_hw.space.sums import Sums
from nar_hw.testing.strategies import CANDIDATES, StrategyConformance, copied, feasible, play, quality

torch.set_num_threads(1)


class TestStrategies(StrategyConformance):
    @pytest.fixture(params=STRATEGIES)
    def strategy(self, request: pytest.FixtureRequest) -> type[Strategy]:
        return strategy_class(request.param)


class PlainReinforce(ReinforceStrategy):
    """The controller with ENAS's update."""

    def __init__(self, limits: Feasible, *, seed: int) -> None:
        super().__init__(limits, seed=seed, update="reinforce", lr=5e-3, entropy_weight=1e-3)


class TestPlainReinforce(StrategyConformance):
    @pytest.fixture
    def strategy(self) -> type[Strategy]:
        return PlainReinforce


class Planted:
    """Twelve slots of four operators: additive quality with pairwise terms, noisy scores, a target at the 25th percentile."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.main = rng.normal(size=(12, 4))
        self.pair = 0.3 * rng.normal(size=(11, 4, 4))
        cost = rng.uniform(0.2, 1, (12, 4))
        archs = rng.integers(0, 4, (4000, 12))
        target = float(np.percentile(cost[np.arange(12), archs].sum(1), 25)) + 1
        self.limits = Feasible(candidates=((0, 1, 2, 3),) * 12, cost=Sums.one(cost, 1.0), target_ms=target)
        self.mean, self.spread = self.raw(archs).mean(), self.raw(archs).std()
        self.rng = rng

    def raw(self, archs: Any) -> np.ndarray:
        codes = np.asarray(archs)
        return self.main[np.arange(12), codes].sum(1) + self.pair[np.arange(11), codes[:, :-1], codes[:, 1:]].sum(1)

    def quality(self, archs: list[Arch]) -> np.ndarray:
        """In standard deviations above a random arch."""
        return (self.raw(archs) - self.mean) / self.spread

    def search(self, strategy: Strategy, evaluations: int = 600) -> float:
        """Quality of the pick: the best, without noise, of the strategy's choice and the ten archs with the best noisy scores."""
        seen: dict[Arch, float] = {}
        for _ in range(evaluations // 10):
            archs = strategy.ask(10)
            scores = (0.8 + 0.02 * (self.quality(archs) + 0.5 * self.rng.normal(size=10))).tolist()
            strategy.tell(archs, scores)
            seen.update(zip(archs, scores, strict=True))
        best = strategy.best()
        hopefuls = sorted(seen, key=lambda arch: -seen[arch])[:10] + ([] if best is None else [best])
        return float(self.quality(hopefuls).max())


@pytest.fixture(scope="module")
def random_quality() -> float:
    return mean_quality("random")


def mean_quality(name: str) -> float:
    tasks = [Planted(seed) for seed in range(4)]
    return float(np.mean([task.search(strategy_class(name)(task.limits, seed=seed)) for seed, task in enumerate(tasks)]))


@pytest.mark.parametrize(
    "name", sorted(name for name in STRATEGIES if name != "random" and not issubclass(strategy_class(name), GradientStrategy))
)
def test_learning_beats_random_search_at_equal_evaluations(name: str, random_quality: float) -> None:
    assert mean_quality(name) > random_quality + 0.5


@pytest.mark.parametrize("name", ["gradient", "proxyless"])
def test_slopes_lead_to_the_best_arch_under_the_target(name: str) -> None:
    """The loss is the sum of the operators' own; its slope in an operator's output is then that operator's, with noise."""
    limits = feasible()
    rng = np.random.default_rng(0)
    losses = rng.normal(size=limits.cost.entries.shape[1:])
    strategy = strategy_class(name)(limits, seed=0)
    for _ in range(150):
        archs = strategy.ask(10)
        slopes = [[losses[p, code] + 0.3 * rng.normal() for p, code in enumerate(arch)] for arch in archs]
        strategy.tell(archs, [0.0] * 10, slopes)
    assert strategy.best() == limits.best(-losses)


def test_a_mixture_descends_its_slopes_through_the_softmax() -> None:
    """dL/da_i = p_i (g_i - sum_j p_j g_j), and of an expected latency over the target (sum_j p_j c_j / T)."""
    limits = feasible(share=0.1)
    strategy = DartsStrategy(limits, seed=0, lr=1e-3, weight_decay=0.0, latency_weight=0.5)
    with torch.no_grad():
        strategy.logits.copy_(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))
    before = strategy.logits.detach().clone().numpy()
    shares, slopes = strategy.mixture(), np.random.default_rng(0).normal(size=(6, 4))
    expected = np.zeros((6, 4))
    for p, codes in enumerate(CANDIDATES):
        weights = np.exp(before[p, list(codes)])
        np.testing.assert_allclose(shares[p, list(codes)], weights / weights.sum())
        gain = slopes[p, list(codes)] + 0.5 * limits.cost.entries[0, p, list(codes)] / limits.target_ms
        mean = (weights / weights.sum() * gain).sum()
        expected[p, list(codes)] = weights / weights.sum() * (gain - mean)
    open_cost = np.where(np.isfinite(limits.cost.entries[0]), limits.cost.entries[0], 0)
    assert (shares * open_cost).sum() + limits.cost.fixed[0] > limits.target_ms
    strategy.descend(slopes)
    np.testing.assert_allclose(strategy.logits.grad.numpy(), expected, atol=1e-12)
    # the first step of Adam is of the learning rate, against the sign of the slope
    step = strategy.logits.detach().numpy() - before
    np.testing.assert_allclose(step, -1e-3 * np.sign(expected) * (np.abs(expected) > 1e-12), atol=1e-6)


def test_a_mixture_leads_to_the_best_arch_under_the_target_and_goes_on_after_a_stop() -> None:
    limits = feasible()
    losses = np.random.default_rng(0).normal(size=limits.cost.entries.shape[1:])
    one, two = DartsStrategy(limits, seed=0), DartsStrategy(limits, seed=1)
    for _ in range(60):
        one.descend(losses)
    two.load_state_dict(copied(one.state_dict()))
    for strategy in (one, two):
        for _ in range(60):
            strategy.descend(losses)
    assert one.best() == limits.best(-losses)
    np.testing.assert_array_equal(one.mixture(), two.mixture())
    with pytest.raises(TrainingError, match="finite"):
        one.descend(np.full(losses.shape, np.nan))


def test_the_sampled_paths_compete_and_the_others_keep_their_probabilities() -> None:
    """BinaryConnect's gradient, equation 3 of ProxylessNAS, among the sampled: dL/da_i = sum_j dL/dg_j p_j (d_ij - p_i)."""
    limits = feasible(share=1.0)
    strategy = ProxylessStrategy(limits, seed=0, lr=1e-3, latency_weight=0.0)
    with torch.no_grad():
        strategy.logits.copy_(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))
    before = strategy.logits.detach().clone()
    probabilities = strategy._log_probs().exp().detach()
    archs = [(0, 1, 2, 2, 0, 3), (0, 3, 1, 2, 2, 3), (1, 1, 2, 2, 0, 0)]
    slopes = np.random.default_rng(0).normal(size=(3, 6))
    strategy.tell(archs, [0.5] * 3, slopes.tolist())
    gradient = strategy.logits.grad
    assert gradient is not None
    after = strategy._log_probs().exp().detach()
    for slot, codes in enumerate(CANDIDATES):
        seen = sorted({arch[slot] for arch in archs})
        means = {code: np.mean([slopes[row, slot] for row in range(3) if archs[row][slot] == code]) for code in seen}
        odds = np.exp(before[slot, seen].numpy())
        share = dict(zip(seen, odds / odds.sum(), strict=True))
        for code in codes:
            wanted = sum(means[other] * share[other] * ((other == code) - share[code]) for other in seen) if code in seen else 0.0
            assert gradient[slot, code] == pytest.approx(wanted, abs=1e-12)
            if code not in seen:
                assert after[slot, code] == pytest.approx(float(probabilities[slot, code]), rel=1e-9)
    assert not torch.equal(after, probabilities)


def test_noise_given_a_choice_is_that_of_draws_that_made_the_choice() -> None:
    """Gumbel noise conditioned on its maximum, against the mean of unconditioned draws that happen to have it."""
    strategy = GradientStrategy(feasible(), seed=0, draws=20_000)
    with torch.no_grad():
        strategy.logits.copy_(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    arch = torch.tensor([[1, 3, 0, 2, 2, 3]])
    found = strategy._softmax_given(arch).detach().mean(0)[0]
    logits = strategy.logits.detach().masked_fill(~strategy._open, -math.inf)
    noisy = logits + strategy._gumbel(200_000, 6, 4)
    for slot, code in enumerate(arch[0].tolist()):
        chosen = noisy[noisy[:, slot].argmax(1) == code, slot].softmax(1)
        torch.testing.assert_close(found[slot], chosen.mean(0), atol=0.01, rtol=0)


def test_an_expected_latency_above_the_target_is_a_loss() -> None:
    limits = feasible(share=0.2)
    strategy = GradientStrategy(limits, seed=0)

    def expected() -> float:
        return limits.cost.fixed[0] + float((strategy._log_probs().exp() * strategy._cost).sum().detach())

    assert expected() > limits.target_ms
    for _ in range(60):
        archs = strategy.ask(4)
        strategy.tell(archs, [0.5] * 4, [[0.0] * 6] * 4)
    assert 0.8 * limits.target_ms < expected() <= 1.01 * limits.target_ms


def test_plain_reinforce_learns_too() -> None:
    task = Planted(0)
    strategy = ReinforceStrategy(task.limits, seed=0, update="reinforce", lr=2e-2, lstm_lr=2e-3, entropy_weight=1e-3)
    task.search(strategy)
    assert (
        np.mean(task.quality(strategy.ask(100))) > np.mean(task.quality(task.limits.sample(100, np.random.default_rng(0)))) + 0.5
    )


def test_random_proposals_do_not_depend_on_rewards() -> None:
    first, second = RandomStrategy(feasible(), seed=0), RandomStrategy(feasible(), seed=0)
    archs = first.ask(10)
    assert second.ask(10) == archs
    first.tell(archs, quality(archs))
    second.tell(archs, [0.0] * 9 + [1.0])
    assert first.ask(10) == second.ask(10)


def test_training_paths_follow_the_policy() -> None:
    strategy = ReinforceStrategy(feasible(share=1.0), seed=0)
    for _ in range(60):
        archs = strategy.ask(10)
        rewards = [float(arch[2] == 3) for arch in archs]
        strategy.tell(archs, rewards)
    assert np.mean([arch[2] == 3 for arch in strategy.paths(200)]) > 0.6
    assert strategy.best()[2] == 3


@pytest.mark.parametrize("update", ["ppo", "reinforce"])
def test_the_first_update_favours_what_scored_above_the_others(update: Any) -> None:
    strategy = ReinforceStrategy(feasible(), seed=0, update=update, entropy_weight=0.0)
    good, bad = (0, 1, 0, 2, 0, 0), (1, 3, 1, 2, 2, 1)
    before = strategy.controller(torch.tensor([good, bad])).log_prob.sum(1).detach()
    strategy.tell([good, bad], [0.9, 0.1])
    after = strategy.controller(torch.tensor([good, bad])).log_prob.sum(1).detach()
    assert after[0] > before[0]
    assert after[1] < before[1]


def test_entropy_is_part_of_the_objective() -> None:
    """Without any difference in reward, the entropy alone moves a policy that has become narrow."""
    entropies = []
    for weight in (0.0, 0.5):
        strategy = ReinforceStrategy(feasible(share=1.0), seed=0, entropy_weight=weight)
        with torch.no_grad():
            strategy.controller.biases[:, 0] = 3.0
        for _ in range(30):
            archs = strategy.ask(10)
            strategy.tell(archs, [0.5] * 10)
        entropies.append(strategy.scalars()["entropy"])
    assert entropies[1] > entropies[0] + 0.5


def test_a_clipped_update_moves_no_arch_far() -> None:
    """However often a batch is used, the probability of a step changes by about the clip; without the clip by much more."""
    moves = []
    for clip in (0.2, 1e9):
        strategy = ReinforceStrategy(feasible(share=1.0), seed=0, clip=clip, steps=200, entropy_weight=0.0, lr=5e-3)
        archs = strategy.ask(20)
        before = strategy.controller(torch.tensor(archs)).log_prob.detach()
        strategy.tell(archs, quality(archs))
        after = strategy.controller(torch.tensor(archs)).log_prob.detach()
        moves.append(float((after - before).exp().sub(1).abs().mean()))
    assert moves[0] < 0.35
    assert moves[1] > 2 * moves[0]


def test_gradients_are_clipped_before_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient that the optimiser sees has at most the allowed norm, though rewards are huge."""
    strategy = ReinforceStrategy(feasible(), seed=0, update="reinforce")
    norms = []
    step = strategy.optimizer.step

    def spy() -> None:
        gradients = [parameter.grad for parameter in strategy.controller.parameters() if parameter.grad is not None]
        norms.append(math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients)))
        step()

    monkeypatch.setattr(strategy.optimizer, "step", spy)
    archs = strategy.ask(10)
    strategy.tell(archs, [1e6 * value for value in quality(archs)])
    assert norms == [pytest.approx(GRADIENT_NORM, rel=1e-3)]


def test_the_baseline_is_a_running_mean_and_not_the_last_reward() -> None:
    baseline = Baseline(decay=0.9)
    batches = [np.array([0.2, 0.4]), np.array([0.9, 0.7]), np.array([0.1])]
    mean = 0.3
    baseline.move(batches[0])
    assert baseline.mean == pytest.approx(mean)
    for batch in batches[1:]:
        baseline.move(batch)
        mean = 0.9 * mean + 0.1 * batch.mean()
        assert baseline.mean == pytest.approx(mean)
        assert abs(baseline.mean - batch.mean()) > 0.1
    np.testing.assert_allclose(baseline.advantages(np.array([1.0, mean]), scaled=False), [1 - mean, 0], atol=1e-12)


def test_advantages_are_in_units_of_the_spread() -> None:
    baseline = Baseline(decay=0.9)
    rewards = np.array([0.1, 0.2, 0.3, 0.4])
    baseline.move(rewards)
    scaled = baseline.advantages(rewards, scaled=True)
    assert scaled.std() == pytest.approx(1)
    np.testing.assert_allclose(scaled, (rewards - rewards.mean()) / rewards.std())
    other = Baseline(decay=0.9)
    other.move(100 * rewards + 7)
    np.testing.assert_allclose(other.advantages(100 * rewards + 7, scaled=True), scaled)


def test_without_spread_there_are_no_advantages() -> None:
    baseline = Baseline(decay=0.9)
    rewards = np.full(3, 0.1)
    assert rewards.mean() != 0.1  # by rounding
    baseline.move(rewards)
    assert baseline.advantages(rewards, scaled=True).tolist() == [0, 0, 0]


def test_scalars_are_logged_once_there_are_rewards() -> None:
    strategy = ReinforceStrategy(feasible(share=1.0), seed=0)
    assert strategy.scalars() == {}
    play(strategy, 1)
    assert strategy.scalars()["entropy"] == pytest.approx(sum(math.log(len(codes)) for codes in CANDIDATES), rel=0.05)


def test_every_arch_under_the_target_can_be_proposed() -> None:
    members = {arch for arch in itertools.product(*CANDIDATES) if feasible().meets([arch])[0]}
    for name in STRATEGIES:
        assert set(strategy_class(name)(feasible(), seed=0).ask(30 * len(members))) == members


def features(archs: list[Arch]) -> np.ndarray:
    """One-hot operators, and one-hot pairs of neighbours."""
    rows = []
    for arch in archs:
        row = [arch[p] == code for p, codes in enumerate(CANDIDATES) for code in codes]
        for p in range(len(CANDIDATES) - 1):
            row += [arch[p : p + 2] == (u, v) for u in CANDIDATES[p] for v in CANDIDATES[p + 1]]
        rows.append(row)
    return np.array(rows, dtype=float)


def test_the_surrogate_fits_a_ridge_regression_with_one_offset_per_block() -> None:
    """The offsets are free, the weights of operators and of pairs shrunk as its evidence says."""
    strategy = SurrogateStrategy(feasible(), seed=0, block=10)
    archs = feasible().sample(60, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    design = features(archs)
    rewards = design[:, :17] @ rng.normal(size=17) + rng.normal(size=60)
    for start in range(0, 60, 10):
        strategy.tell(archs[start : start + 10], rewards[start : start + 10].tolist())
    strategy.ask(1)
    single, pair = (float(values[index]) for values, index in zip((SHRINKAGE, PAIRS), strategy.penalties, strict=True))
    shrink = np.diag([single] * 17 + [single * pair] * (design.shape[1] - 17) + [0.0] * 6)
    whole = np.hstack([design, np.kron(np.eye(6), np.ones((10, 1)))])
    expected = np.linalg.lstsq(whole.T @ whole + shrink, whole.T @ rewards, rcond=None)[0][: design.shape[1]]
    np.testing.assert_allclose(strategy._posterior(strategy.penalties)[0], expected, atol=1e-8)


def test_the_evidence_is_the_likelihood_of_what_was_seen() -> None:
    """At its best noise: the density of the rewards within blocks under the prior, up to a constant, by scipy."""
    strategy = SurrogateStrategy(feasible(), seed=0, block=30)
    archs = feasible().sample(30, np.random.default_rng(0))
    rewards = np.random.default_rng(1).normal(size=30)
    strategy.tell(archs, rewards.tolist())
    design = features(archs)
    basis = np.linalg.svd(np.eye(30) - 1 / 30)[0][:, :29]  # differences within the block
    found, expected = [], []
    for penalties in itertools.product((0, 4, 8), (0, 3)):
        prior = np.full(design.shape[1], 1 / SHRINKAGE[penalties[0]])
        prior[17:] /= PAIRS[penalties[1]]
        spread = basis.T @ (np.eye(29 + 1) + design * prior @ design.T) @ basis
        _, _, noise, evidence = strategy._posterior(penalties)
        density = scipy.stats.multivariate_normal(np.zeros(29), noise * spread)
        found.append(evidence)
        expected.append(density.logpdf(basis.T @ rewards))
    np.testing.assert_allclose(np.subtract(found, found[0]), np.subtract(expected, expected[0]), atol=1e-8)


def test_the_surrogate_learns_what_neighbours_are_worth_together() -> None:
    limits = feasible(share=1.0)
    strategy = SurrogateStrategy(limits, seed=0)
    for _ in range(40):
        archs = strategy.ask(10)
        # the first and the third operator of two slots are only good together
        rewards = [0.5 + 0.1 * (arch[4:] == (3, 1)) - 0.04 * (arch[4] == 3) - 0.04 * (arch[5] == 1) for arch in archs]
        strategy.tell(archs, rewards)
    assert strategy.best()[4:] == (3, 1)


def test_the_surrogate_does_not_mind_that_the_shared_weights_get_better() -> None:
    """A constant added to all rewards of a block says nothing about its archs."""
    first, second = (SurrogateStrategy(feasible(), seed=0, warmup=0) for _ in range(2))
    for drift in range(5):
        archs = first.ask(10)
        assert second.ask(10) == archs
        first.tell(archs, quality(archs))
        second.tell(archs, [value + drift for value in quality(archs)])
    assert first.best() == second.best()


def test_the_surrogate_finds_the_best_arch_of_an_additive_problem() -> None:
    limits = feasible()
    scores = np.random.default_rng(5).normal(size=limits.cost.entries.shape[1:])
    strategy = SurrogateStrategy(limits, seed=0)
    for _ in range(8):
        archs = strategy.ask(10)
        rewards = [0.5 + 0.01 * sum(scores[p, code] for p, code in enumerate(arch)) for arch in archs]
        strategy.tell(archs, rewards)
    assert strategy.best() == limits.best(scores)


def test_the_surrogate_tells_how_much_its_proposals_differ() -> None:
    strategy = SurrogateStrategy(feasible(), seed=0)
    archs = strategy.ask(8)
    expected = -sum(
        share * math.log(share) for slot in zip(*archs, strict=True) for share in [slot.count(c) / 8 for c in set(slot)]
    )
    assert strategy.scalars() == {"entropy": pytest.approx(expected)}
    fastest = SurrogateStrategy(feasible(share=0.0), seed=0)
    fastest.ask(8)
    assert fastest.scalars() == {"entropy": 0.0}


def test_the_surrogate_tries_what_it_does_not_know() -> None:
    strategy = SurrogateStrategy(feasible(share=1.0), seed=0, warmup=0)
    archs = feasible(share=1.0).sample(10, np.random.default_rng(0))
    strategy.tell(archs, np.random.default_rng(1).normal(size=10).tolist())
    assert len(set(strategy.ask(20))) > 10


def test_mutants_differ_from_a_living_arch_in_one_slot() -> None:
    strategy = EvolutionStrategy(feasible(), seed=0, population=10, tournament=3)
    assert len(strategy.alive) == 0
    play(strategy, 2)
    alive = [arch for arch, _ in strategy.alive]
    assert len(alive) == 10
    for child in strategy.ask(30):
        assert any(sum(a != b for a, b in zip(child, parent, strict=True)) == 1 for parent in alive)


def test_the_oldest_die() -> None:
    strategy = EvolutionStrategy(feasible(), seed=0, population=10)
    rounds = play(strategy, 5, n=4)
    assert [arch for arch, _ in strategy.alive] == [arch for archs in rounds for arch in archs][-10:]


def test_winners_of_tournaments_are_the_better_archs() -> None:
    strategy = EvolutionStrategy(feasible(), seed=0, population=20, tournament=10)
    archs = list(dict.fromkeys(feasible().sample(200, np.random.default_rng(0))))[:20]
    strategy.tell(archs, [float(index) for index in range(20)])
    ranks = [archs.index(strategy._parent()) for _ in range(200)]
    assert np.mean(ranks) == pytest.approx(20 * 10 / 11, abs=1.5)  # the largest of ten of twenty
