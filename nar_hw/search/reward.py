"""What a search maximises: rewards of accuracy and latency under a target.

Pure functions of Q (accuracy in [0, 1]), L (latency, ms) and T (target, ms), elementwise over floats, numpy arrays or tensors.
Every one equals Q at L = T, is continuous there, and rises with Q.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value", float, NDArray[np.float64], "Tensor")


def accuracy(q: Value, latency_ms: Value, target_ms: float) -> Value:
    """Q: the reward of the NAR paper. Only the feasibility that the strategies know keeps the latency at bay."""
    return q


def mnasnet_soft(q: Value, latency_ms: Value, target_ms: float, *, exponent: float = -0.07) -> Value:
    """Q * (L / T)^w (MnasNet, section 3.1, alpha = beta = w): trades accuracy for latency on both sides of T."""
    return q * _power(latency_ms / target_ms, exponent)


def mnasnet_hard(q: Value, latency_ms: Value, target_ms: float, *, exponent: float = -1.0) -> Value:
    """Q where L <= T, else Q * (L / T)^w (MnasNet, section 3.1, alpha = 0, beta = w)."""
    return q * _power(1 + _excess(latency_ms / target_ms), exponent)


def proxyless_rl(q: Value, latency_ms: Value, target_ms: float, *, exponent: float = 0.1) -> Value:
    """Q * (T / L)^w (ProxylessNAS, appendix on REINFORCE)."""
    return q * _power(target_ms / latency_ms, exponent)


def absolute(q: Value, latency_ms: Value, target_ms: float, *, slope: float = -0.10) -> Value:
    """Q + b * |L / T - 1| (TuNAS, section 3.2): is largest at the target, so that a search ends there."""
    return q + slope * abs(latency_ms / target_ms - 1)


def one_sided(q: Value, latency_ms: Value, target_ms: float, *, slope: float = -0.10) -> Value:
    """Q + b * max(0, L / T - 1): being faster than asked costs nothing."""
    return q + slope * _excess(latency_ms / target_ms)


def _power(base: Value, exponent: float) -> Value:
    result: Value = base**exponent
    return result


def _excess(ratio: Value) -> Value:
    """max(0, ratio - 1) in operations that floats, arrays and tensors share."""
    over = ratio - 1
    return (over + abs(over)) / 2


Reward = Callable[..., Any]

REWARDS: dict[str, Reward] = {
    "accuracy": accuracy,
    "mnasnet-soft": mnasnet_soft,
    "mnasnet-hard": mnasnet_hard,
    "proxyless-rl": proxyless_rl,
    "absolute": absolute,
    "one-sided": one_sided,
}
