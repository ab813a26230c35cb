"""Search strategies by name. Adding one is one file, one line here, and one run of the conformance tests."""

from nar_hw.search.strategies.base import Strategy
from nar_hw.search.strategies.evolution import EvolutionStrategy
from nar_hw.search.strategies.gradient import GradientStrategy
from nar_hw.search.strategies.random import RandomStrategy
from nar_hw.search.strategies.reinforce import ReinforceStrategy
from nar_hw.search.strategies.surrogate import SurrogateStrategy

STRATEGIES: dict[str, type[Strategy]] = {
    "reinforce": ReinforceStrategy,
    "random": RandomStrategy,
    "evolution": EvolutionStrategy,
    "gradient": GradientStrategy,
    "surrogate": SurrogateStrategy,
}

__all__ = [
    "STRATEGIES",
    "EvolutionStrategy",
    "GradientStrategy",
    "RandomStrategy",
    "ReinforceStrategy",
    "Strategy",
    "SurrogateStrategy",
]
