"""Search strategies by name. Adding one is one file, one line here, and one run of the conformance tests."""

from nar_hw.search.strategies.base import Strategy
from nar_hw.search.strategies.evolution import EvolutionStrategy
from nar_hw.search.strategies.exact import ExactStrategy
from nar_hw.search.strategies.random import RandomStrategy
from nar_hw.search.strategies.reinforce import ReinforceStrategy

STRATEGIES: dict[str, type[Strategy]] = {
    "reinforce": ReinforceStrategy,
    "random": RandomStrategy,
    "evolution": EvolutionStrategy,
    "exact": ExactStrategy,
}

__all__ = ["STRATEGIES", "EvolutionStrategy", "ExactStrategy", "RandomStrategy", "ReinforceStrategy", "Strategy"]
