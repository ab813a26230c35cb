"""How int8 finds the ranges of activations; see `nar_hw.export.quantize.to_int8`."""

from typing import Literal

Calibration = Literal["minmax", "entropy", "percentile"]
"""The extremes, the smallest information loss, or 99.999 % of all values."""
