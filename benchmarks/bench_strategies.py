"""The search strategies against an optimum that was planted: 24 slots of 6 operators, a latency target, noisy scores.

Quality is a sum of a term for each operator and a smaller one for each two neighbours, in standard deviations of random archs
under the target; a score is it with noise of half a standard deviation, as of a validation minibatch. The target is the 25th
percentile of the latencies. At each number of evaluations the 32 archs that the strategy would have had scored on the whole
validation split (its own choice, then those with the best scores) are compared without noise and the best is its pick. The
optimum is found by dynamic programming on latencies in whole microseconds. No setting was tuned on the instances reported.
The gradient strategy needs the slopes of a real loss and is compared in nar_bench_digits.
"share" is quality / the optimum's; "near" how many picks are within 2 % of the target. Strategies are
compared with the tool's default reward; rewards with its default strategy and with the controller, which draw from archs under
the target, and with a controller that draws from all.
Result: results/strategies.json.

    OMP_NUM_THREADS=1 python benchmarks/bench_strategies.py [--seeds 20] [--out benchmarks/results/strategies.json]
"""

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from nar_hw._version import versions
from nar_hw.files import write_json
from nar_hw.latency.device import fingerprint
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.search.config import SearchConfig
from nar_hw.search.feasible import Feasible
from nar_hw.search.reward import REWARDS
from nar_hw.search.strategies import strategy_class
from nar_hw.search.strategies.base import Strategy
from nar_hw.space.spec import Arch
from nar_hw.space.sums import Sums

SLOTS, CODES = 24, 6
PAIR, NOISE = 0.3, 0.5
MARKS = (300, 1000, 2000)
AT_ONCE = 10
RESCORED = 32
NEAR = 0.02
LIKE_ACCURACY = ("mnasnet-hard", "one-sided")
"""Rewards that are the accuracy wherever the target is met."""
FIXED_US = 1000

CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "evolution": ("evolution", {}),
    "reinforce, as in ENAS": (
        "reinforce",
        {"update": "reinforce", "lr": 3.5e-4, "lstm_lr": 3.5e-4, "entropy_weight": 1e-4, "baseline_decay": 0.99},
    ),
    "reinforce": ("reinforce", {}),
    "surrogate": ("surrogate", {}),
}


class Planted:
    """One instance of the problem."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.main = rng.normal(size=(SLOTS, CODES))
        self.pair = PAIR * rng.normal(size=(SLOTS - 1, CODES, CODES))
        self.cost_us = rng.integers(200, 1001, (SLOTS, CODES))
        archs = rng.integers(0, CODES, (20_000, SLOTS))
        self.budget_us = int(np.percentile(self.cost_us[np.arange(SLOTS), archs].sum(1), 25))
        self.limits = Feasible(
            candidates=(tuple(range(CODES)),) * SLOTS,
            cost=Sums.one(self.cost_us / 1000, FIXED_US / 1000),
            target_ms=(FIXED_US + self.budget_us) / 1000,
        )
        sample = self._raw(self.limits.sample(4000, rng))
        self._mean, self._spread = sample.mean(), sample.std()
        best, cost_us = self._best()
        self.optimum = (best - self._mean) / self._spread
        self.optimum_ms = (FIXED_US + cost_us) / 1000

    def _raw(self, archs: list[Arch]) -> NDArray[np.float64]:
        codes = np.asarray(archs)
        neighbours = self.pair[np.arange(SLOTS - 1), codes[:, :-1], codes[:, 1:]]
        return np.asarray(self.main[np.arange(SLOTS), codes].sum(1) + neighbours.sum(1))

    def quality(self, archs: list[Arch]) -> NDArray[np.float64]:
        return np.asarray((self._raw(archs) - self._mean) / self._spread)

    def scores(self, archs: list[Arch]) -> NDArray[np.float64]:
        """Accuracies around 0.8."""
        return 0.8 + 0.02 * (self.quality(archs) + NOISE * self.rng.normal(size=len(archs)))

    def _best(self) -> tuple[float, int]:
        """The greatest sum and its cost. One best prefix for each last operator and each whole number of microseconds."""
        value = np.full((CODES, self.budget_us + 1), -np.inf)
        for code in range(CODES):
            value[code, self.cost_us[0, code] :] = self.main[0, code]
        for slot in range(1, SLOTS):
            longer = np.full_like(value, -np.inf)
            for code in range(CODES):
                cost = self.cost_us[slot, code]
                best = (value + self.pair[slot - 1, :, code, None]).max(0) + self.main[slot, code]
                longer[code, cost:] = best[: len(best) - cost]
            value = longer
        most = value.max(0)
        return float(most[-1]), int(np.argmax(most >= most[-1] - 1e-12))


def searched(task: Planted, strategy: Strategy, reward: str, marks: tuple[int, ...] = MARKS) -> list[dict[str, float]]:
    """What the strategy has come to at each mark: of the archs that meet the target, where any does."""
    seen: dict[Arch, float] = {}
    rows: list[dict[str, float]] = []
    seconds, target = 0.0, task.limits.target_ms
    for evaluations in range(AT_ONCE, marks[-1] + 1, AT_ONCE):
        start = time.process_time()
        archs = strategy.ask(AT_ONCE)
        seconds += time.process_time() - start
        scores = task.scores(archs)
        rewards = REWARDS[reward](scores, task.limits.latency_ms(archs), target)
        start = time.process_time()
        strategy.tell(archs, rewards.tolist())
        seconds += time.process_time() - start
        seen |= zip(archs, rewards.tolist(), strict=True)
        if evaluations in marks:
            own = strategy.best()
            first = [own] if own is not None else []
            hopefuls = [*first, *sorted(seen, key=lambda arch: -seen[arch])][:RESCORED]
            meeting = [arch for arch in hopefuls if task.limits.meets([arch])[0]] or hopefuls
            pick = meeting[int(task.quality(meeting).argmax())]
            quality = float(task.quality([pick])[0])
            rows.append(
                {
                    "evaluations": evaluations,
                    "regret": task.optimum - quality,
                    "share": quality / task.optimum,
                    "latency / target": float(task.limits.latency_ms([pick])[0]) / target,
                    "own choice: latency / target": float("nan")
                    if own is None
                    else float(task.limits.latency_ms([own])[0]) / target,
                    "ms per evaluation": 1000 * seconds / evaluations,
                }
            )
    return rows


def unlimited(task: Planted) -> Feasible:
    """All archs: whether the target is met is then up to the reward."""
    return replace(task.limits, target_ms=task.limits.bounds_ms[1])


def summary(runs: list[list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Per mark, over seeds."""
    rows = []
    for results in zip(*runs, strict=True):
        of = {name: np.array([row[name] for row in results]) for name in results[0]}
        latency = of["latency / target"]
        rows.append(
            {
                "evaluations": int(of["evaluations"][0]),
                "regret": mean_and_spread(of["regret"]),
                "share": mean_and_spread(of["share"]),
                "latency / target": mean_and_spread(latency),
                "near": f"{int((abs(latency - 1) <= NEAR).sum())} of {len(latency)}",
                "own choice: latency / target": mean_and_spread(of["own choice: latency / target"]),
                "own choice near": f"{int((abs(of['own choice: latency / target'] - 1) <= NEAR).sum())} of {len(latency)}",
                "ms per evaluation": round(float(np.median(of["ms per evaluation"])), 3),
            }
        )
    return rows


def mean_and_spread(values: NDArray[np.float64]) -> dict[str, float] | None:
    if np.isnan(values).any():
        return None
    return {
        "mean": round(float(values.mean()), 4),
        "std": round(float(values.std(ddof=1)), 4),
        "worst": round(float(values.max()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "strategies.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(arguments.seeds)
    tasks = [Planted(seed) for seed in seeds]
    strategies, rewards = {}, {}
    for label, (name, options) in CONTENDERS.items():
        runs = []
        for seed in track(seeds, description=label):
            task = Planted(seed)
            runs.append(searched(task, strategy_class(name)(task.limits, seed=seed, **options), SearchConfig().reward))
        strategies[label] = summary(runs)
    for reward, (name, everything) in itertools.product(
        REWARDS, (("surrogate", False), ("reinforce", False), ("reinforce", True))
    ):
        if reward in LIKE_ACCURACY and not everything:
            continue
        label = f"{reward}, {name}{' over all archs' if everything else ''}"
        runs = []
        for seed in track(seeds, description=label):
            task = Planted(seed)
            limits = unlimited(task) if everything else task.limits
            runs.append(searched(task, strategy_class(name)(limits, seed=seed), reward, (1000,)))
        rewards[label] = summary(runs)[0]
    write_json(
        arguments.out,
        {
            "command": f"python benchmarks/bench_strategies.py --seeds {arguments.seeds}",
            "versions": versions("torch"),
            "device": fingerprint(RuntimeConfig(runtime="torch_eager"))["device"],
            "problem": {"slots": SLOTS, "codes": CODES, "pair": PAIR, "noise": NOISE, "rescored": RESCORED},
            "optima within 2 % of the target": sum(
                bool(abs(task.optimum_ms / task.limits.target_ms - 1) <= NEAR) for task in tasks
            ),
            "strategies": strategies,
            "rewards at 1,000 evaluations": rewards,
        },
    )


if __name__ == "__main__":
    main()
