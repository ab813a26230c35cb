"""What every reward must do; a new one is one more parameter of the fixture."""

import inspect

import numpy as np
import torch

from nar_hw.search.reward import REWARDS

RNG = np.random.default_rng(0)
ACCURACY = RNG.uniform(0.01, 1, 200)
LATENCY = RNG.uniform(0.2, 5, 200)
TARGET = 1.7


class RewardConformance:
    """Subclass and provide the fixture ``name``."""

    def test_is_the_accuracy_at_the_target(self, name: str) -> None:
        np.testing.assert_allclose(REWARDS[name](ACCURACY, np.full(200, TARGET), TARGET), ACCURACY, rtol=1e-12)

    def test_is_continuous_at_the_target(self, name: str) -> None:
        below, above = (REWARDS[name](ACCURACY, np.full(200, TARGET * (1 + step)), TARGET) for step in (-1e-9, 1e-9))
        np.testing.assert_allclose(below, above, atol=1e-8)

    def test_rises_with_accuracy(self, name: str) -> None:
        lower, higher = (REWARDS[name](ACCURACY + step, LATENCY, TARGET) for step in (0, 0.01))
        assert (higher > lower).all()

    def test_depends_on_the_ratio_of_latency_and_target_only(self, name: str) -> None:
        in_ms = REWARDS[name](ACCURACY, LATENCY, TARGET)
        in_us = REWARDS[name](ACCURACY, 1000 * LATENCY, 1000 * TARGET)
        np.testing.assert_allclose(in_ms, in_us, rtol=1e-12)

    def test_is_elementwise_for_floats_arrays_and_tensors(self, name: str) -> None:
        whole = REWARDS[name](ACCURACY, LATENCY, TARGET)
        each = [REWARDS[name](float(q), float(ms), TARGET) for q, ms in zip(ACCURACY, LATENCY, strict=True)]
        tensor = REWARDS[name](torch.from_numpy(ACCURACY), torch.from_numpy(LATENCY), TARGET)
        np.testing.assert_allclose(whole, each, rtol=1e-12)
        np.testing.assert_allclose(whole, tensor.numpy(), rtol=1e-12)

    def test_does_not_change_its_arguments(self, name: str) -> None:
        q, ms = ACCURACY.copy(), LATENCY.copy()
        REWARDS[name](q, ms, TARGET)
        assert (q == ACCURACY).all()
        assert (ms == LATENCY).all()

    def test_its_parameters_are_keywords_with_defaults(self, name: str) -> None:
        first, *others = list(inspect.signature(REWARDS[name]).parameters.values())[2:]
        assert first.name == "target_ms"
        for parameter in others:
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            assert isinstance(parameter.default, float)

    def test_is_described(self, name: str) -> None:
        assert REWARDS[name].__doc__
