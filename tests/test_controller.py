import itertools
import math
import time
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from nar_hw.search.controller import LSTMController
from nar_hw.search.feasible import Feasible
from nar_hw.space.sums import Sums
from nar_hw.testing.strategies import CANDIDATES, feasible

torch.set_num_threads(1)

EVERY = torch.tensor(list(itertools.product(*CANDIDATES)))
OPEN = torch.from_numpy(feasible().meets(EVERY.numpy()))


def controller(seed: int = 0, spread: float = 1.0, **options: float) -> LSTMController:
    """A policy that has opinions."""
    policy = LSTMController(feasible(), seed=seed, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return policy


def log_prob(policy: LSTMController, archs: Tensor) -> Tensor:
    with torch.no_grad():
        return policy(archs).log_prob.sum(dim=1)


def test_probabilities_of_all_archs_under_the_target_sum_to_one() -> None:
    assert 0 < OPEN.sum() < len(EVERY)
    assert log_prob(controller(), EVERY[OPEN]).exp().sum() == pytest.approx(1, abs=1e-4)


def test_a_fresh_policy_is_uniform_at_every_step() -> None:
    policy = LSTMController(feasible(share=1.0), seed=0)
    likelihood = policy(EVERY)
    expected = torch.tensor([math.log(len(codes)) for codes in CANDIDATES]).expand_as(likelihood.entropy)
    torch.testing.assert_close(likelihood.entropy, expected)
    torch.testing.assert_close(likelihood.log_prob, -expected)


def test_draws_follow_the_probabilities() -> None:
    policy = controller(spread=0.7)
    draws = 40_000
    counts = Counter(map(tuple, policy.sample(draws, torch.Generator().manual_seed(0)).tolist()))
    members = EVERY[OPEN]
    assert set(counts) <= set(map(tuple, members.tolist()))
    expected = draws * log_prob(policy, members).exp().double().numpy()
    seen = np.array([counts[tuple(arch)] for arch in members.tolist()])
    frequent = expected > 5
    chi_square = ((seen - expected)[frequent] ** 2 / expected[frequent]).sum()
    assert abs(chi_square - frequent.sum()) < 5 * math.sqrt(2 * frequent.sum())


def test_greedy_takes_the_most_probable_operator_at_each_step() -> None:
    policy = controller()
    arch = policy.greedy()
    with torch.no_grad():
        assert torch.equal(policy.log_probs(arch).argmax(dim=2), arch)


def test_entropy_is_of_the_whole_distribution() -> None:
    policy = controller()
    with torch.no_grad():
        likelihood, log_probs = policy(EVERY), policy.log_probs(EVERY).double()
    expected = torch.zeros(EVERY.shape, dtype=torch.float64)
    for row, step, code in itertools.product(*map(range, log_probs.shape)):
        if (value := float(log_probs[row, step, code])) > -math.inf:
            expected[row, step] -= math.exp(value) * value
    torch.testing.assert_close(likelihood.entropy.double(), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(likelihood.entropy, -likelihood.log_prob, atol=0.1)  # that would be of the sampled action only


def test_gradients_are_finite_where_codes_are_masked() -> None:
    policy = controller()
    likelihood = policy(EVERY)
    assert likelihood.log_prob.isfinite().all()
    (likelihood.log_prob.sum() + likelihood.entropy.sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in policy.parameters())


def test_codes_are_the_spaces_own() -> None:
    """A slot that admits codes 1 and 3 draws 1 and 3, not 0 and 1."""
    archs = LSTMController(feasible(share=1.0), seed=0).sample(500, torch.Generator().manual_seed(0))
    assert [tuple(sorted(set(column.tolist()))) for column in archs.T] == list(CANDIDATES)


def test_archs_over_the_target_have_probabilities_too() -> None:
    """They may have been told from elsewhere, and must not become infinities."""
    assert log_prob(controller(), EVERY[~OPEN]).isfinite().all()


def test_each_step_sees_the_one_before() -> None:
    policy = controller()
    with torch.no_grad():
        first, second = policy.log_probs(torch.tensor([[0, 1, 2, 2, 0, 1], [2, 1, 2, 2, 0, 1]]))
    assert torch.equal(first[0], second[0])
    assert not torch.allclose(first[1:].exp(), second[1:].exp(), atol=1e-3)


def test_the_tanh_constant_bounds_every_preference() -> None:
    policy = controller(spread=50, tanh_constant=1.5, temperature=2.0)
    with torch.no_grad():
        log_probs = policy.log_probs(EVERY[OPEN])
    finite = log_probs.isfinite()
    spread = log_probs.masked_fill(~finite, -math.inf).amax(2) - log_probs.masked_fill(~finite, math.inf).amin(2)
    assert spread.max() <= 3.0 + 1e-5  # logits lie within +-1.5
    hotter = controller(spread=0.3, temperature=10.0)
    colder = controller(spread=0.3, temperature=0.1)
    assert hotter(EVERY).entropy.mean() > colder(EVERY).entropy.mean()


def test_the_seed_decides_the_weights_and_no_global_generator_is_used() -> None:
    before = torch.get_rng_state()
    first, second, other = (LSTMController(feasible(), seed=seed).embedding.weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_a_thousand_archs_take_little_time() -> None:
    """24 slots with 6 operators: at most 50 ms of one core."""
    rng = np.random.default_rng(0)
    cost_ms = rng.uniform(0.1, 1, (24, 6))
    limits = Feasible(candidates=(tuple(range(6)),) * 24, cost=Sums.one(cost_ms, 1.0), target_ms=12.0)
    policy, generator = LSTMController(limits, seed=0), torch.Generator().manual_seed(0)
    times: list[float] = []
    while len(times) < 12 or (min(times) > 0.050 and len(times) < 100):  # other programs share the core's caches
        start = time.thread_time()
        archs = policy.sample(1000, generator)
        times.append(time.thread_time() - start)
    assert archs.shape == (1000, 24)
    assert limits.meets(archs.numpy()).all()
    assert min(times) <= 0.050, times
