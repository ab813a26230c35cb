"""EfficientNet's compound scaling (Tan and Le 2019, section 3.3): one number for depth, width and resolution together."""

import math
from typing import NamedTuple

from nar_hw.errors import ModelError


class Scaling(NamedTuple):
    """By what a network grows."""

    depth: float
    """Factor of the number of layers, alpha^phi."""
    width: float
    """Factor of the channels, beta^phi."""
    resolution: float
    """Factor of the images' sides, gamma^phi."""

    @property
    def flops(self) -> float:
        """Factor of the multiply-adds of convolutions: depth * width^2 * resolution^2."""
        return self.depth * self.width**2 * self.resolution**2

    def layers(self, count: int) -> int:
        """So many layers, scaled and rounded up."""
        return math.ceil(self.depth * count)

    def channels(self, count: int, *, multiple: int = 8) -> int:
        """So many channels, scaled to the nearest ``multiple`` that is not more than a tenth too few."""
        wanted = self.width * count
        rounded = max(multiple, int(wanted + multiple / 2) // multiple * multiple)
        return rounded + multiple if rounded < 0.9 * wanted else rounded

    def pixels(self, side: int) -> int:
        """A side of the images, scaled and rounded."""
        return round(self.resolution * side)


def compound_scaling(phi: float, *, alpha: float = 1.2, beta: float = 1.1, gamma: float = 1.15) -> Scaling:
    """What to scale a network by with 2^``phi`` times its FLOPs; the factors are those found for EfficientNet-B0.

    Raises ModelError unless each factor is at least 1, as the paper asks, and ``phi`` is not negative.
    """
    if phi < 0 or min(alpha, beta, gamma) < 1:
        raise ModelError(
            f"phi >= 0 and alpha, beta, gamma >= 1 must hold for compound scaling, but got (phi={phi:g}, alpha={alpha:g}, "
            f"beta={beta:g}, gamma={gamma:g})"
        )
    return Scaling(alpha**phi, beta**phi, gamma**phi)
