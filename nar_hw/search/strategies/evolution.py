"""Regularised evolution under a latency target."""

from collections import deque
from typing import Any

from nar_hw.search.feasible import Feasible, Floats
from nar_hw.search.strategies.base import Strategy
from nar_hw.space.spec import Arch

TRIES = 100


class EvolutionStrategy(Strategy):
    """Children of tournament winners, with the oldest dying (Real et al. 2019, algorithm 1).

    Args:
        population: how many of the archs told last are alive; until there are so many, proposals are random.
        tournament: how many of them compete to be a parent.
    """

    def __init__(self, feasible: Feasible, *, seed: int, population: int = 50, tournament: int = 10) -> None:
        super().__init__(feasible, seed=seed)
        self.tournament = tournament
        self.alive: deque[tuple[Arch, float]] = deque(maxlen=population)

    def ask(self, n: int) -> list[Arch]:
        """``n`` archs that differ from a tournament's winner in one slot."""
        if len(self.alive) < (self.alive.maxlen or 0):
            return self.feasible.sample(n, self.rng)
        return [self._mutant(self._parent()) for _ in range(n)]

    def _parent(self) -> Arch:
        rivals = self.rng.integers(len(self.alive), size=self.tournament)
        return max((self.alive[index] for index in rivals), key=lambda item: item[1])[0]

    def _mutant(self, parent: Arch) -> Arch:
        """``parent`` with another operator in one slot; a random arch where hardly any change meets the target."""
        for _ in range(TRIES):
            position = int(self.rng.integers(len(parent)))
            code = int(self.rng.choice(self.feasible.candidates[position]))
            child = (*parent[:position], code, *parent[position + 1 :])
            if code != parent[position] and self.feasible.meets([child])[0]:
                return child
        return self.feasible.sample(1, self.rng)[0]

    def learn(self, archs: list[Arch], rewards: Floats, slopes: Floats | None) -> None:
        """The told archs are born; as many of the oldest die."""
        self.alive.extend(zip(archs, rewards.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The generator and who is alive."""
        return {**super().state_dict(), "alive": list(self.alive)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state)
        self.alive = deque(state["alive"], maxlen=self.alive.maxlen)
