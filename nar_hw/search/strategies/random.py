"""Random search with the latency table as filter: the baseline that every other strategy has to beat."""

from nar_hw.search.feasible import Floats
from nar_hw.search.strategies.base import Strategy
from nar_hw.space.spec import Arch


class RandomStrategy(Strategy):
    """Uniformly random archs among those that meet the target; nothing is learned."""

    def ask(self, n: int) -> list[Arch]:
        """``n`` archs, independent of each other."""
        return self.feasible.sample(n, self.rng)

    def learn(self, archs: list[Arch], rewards: Floats, slopes: Floats | None) -> None:
        """Nothing."""
