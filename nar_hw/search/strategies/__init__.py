"""Search strategies by name. Adding one is one file, one line here, and one run of the conformance tests."""

import importlib
from typing import TYPE_CHECKING, cast

from nar_hw.errors import unknown_name

if TYPE_CHECKING:
    from nar_hw.search.strategies.base import Strategy

__all__ = ["STRATEGIES", "strategy_class"]

STRATEGIES: dict[str, "str | type[Strategy]"] = {
    "reinforce": "nar_hw.search.strategies.reinforce:ReinforceStrategy",
    "random": "nar_hw.search.strategies.random:RandomStrategy",
    "evolution": "nar_hw.search.strategies.evolution:EvolutionStrategy",
    "gradient": "nar_hw.search.strategies.gradient:GradientStrategy",
    "darts": "nar_hw.search.strategies.darts:DartsStrategy",
    "proxyless": "nar_hw.search.strategies.proxyless:ProxylessStrategy",
    "surrogate": "nar_hw.search.strategies.surrogate:SurrogateStrategy",
}
"""Name -> class, or where it is: imported when it is used, so that settings need no torch."""


def strategy_class(name: str) -> "type[Strategy]":
    """The class of strategy ``name``. Raises UnknownNameError."""
    if name not in STRATEGIES:
        raise unknown_name("strategy", name, STRATEGIES)
    found = STRATEGIES[name]
    if isinstance(found, str):
        module, _, attribute = found.partition(":")
        found = cast("type[Strategy]", getattr(importlib.import_module(module), attribute))
    return found
