"""What every reward must do."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

RNG = np.random.default_rng(0)
ACCURACY = RNG.uniform(0.01, 1, 200)
LATENCY = RNG.uniform(0.2, 5, 200)
TARGET = 1.7
Reward = Callable[..., Any]


class RewardConformance:
    """Subclass and provide the fixture ``reward``: the function of (accuracy, latency, target)."""

    def test_is_the_accuracy_at_the_target(self, reward: Reward) -> None:
        np.testing.assert_allclose(reward(ACCURACY, np.full(200, TARGET), TARGET), ACCURACY, rtol=1e-12)

    def test_is_continuous_at_the_target(self, reward: Reward) -> None:
        below, above = (reward(ACCURACY, np.full(200, TARGET * (1 + step)), TARGET) for step in (-1e-9, 1e-9))
        np.testing.assert_allclose(below, above, atol=1e-8)

    def test_rises_with_accuracy(self, reward: Reward) -> None:
        lower, higher = (reward(ACCURACY + step, LATENCY, TARGET) for step in (0, 0.01))
        assert (higher > lower).all()

    def test_depends_on_the_ratio_of_latency_and_target_only(self, reward: Reward) -> None:
        in_ms = reward(ACCURACY, LATENCY, TARGET)
        in_us = reward(ACCURACY, 1000 * LATENCY, 1000 * TARGET)
        np.testing.assert_allclose(in_ms, in_us, rtol=1e-12)

    def test_is_elementwise_for_floats_arrays_and_tensors(self, reward: Reward) -> None:
        whole = reward(ACCURACY, LATENCY, TARGET)
        each = [reward(float(q), float(ms), TARGET) for q, ms in zip(ACCURACY, LATENCY, strict=True)]
        tensor = reward(torch.from_numpy(ACCURACY), torch.from_numpy(LATENCY), TARGET)
        np.testing.assert_allclose(whole, each, rtol=1e-12)
        np.testing.assert_allclose(whole, tensor.numpy(), rtol=1e-12)

    def test_does_not_change_its_arguments(self, reward: Reward) -> None:
        q, ms = ACCURACY.copy(), LATENCY.copy()
        reward(q, ms, TARGET)
        assert (q == ACCURACY).all()
        assert (ms == LATENCY).all()

    def test_its_parameters_are_keywords_with_defaults(self, reward: Reward) -> None:
        first, *others = list(inspect.signature(reward).parameters.values())[2:]
        assert first.name == "target_ms"
        for parameter in others:
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            assert isinstance(parameter.default, float)

    def test_is_described(self, reward: Reward) -> None:
        assert reward.__doc__
