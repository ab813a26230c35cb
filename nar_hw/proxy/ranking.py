"""Does a proxy rank children as the full set does? A handful of them, trained on both."""

import random
from dataclasses import dataclass

import torch
from rich.progress import Progress
from scipy import stats

from nar_hw.errors import DataError
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch
from nar_hw.tasks import ClassificationTask
from nar_hw.training.loop import train
from nar_hw.training.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Validation accuracies in [0, 1] of children trained on either set, and how alike they rank."""

    archs: tuple[Arch, ...]
    full: tuple[float, ...]
    proxy: tuple[float, ...]

    @property
    def kendall(self) -> float | None:
        """Kendall's tau-b; None where all are equal on one side."""
        tau = float(stats.kendalltau(self.full, self.proxy).statistic)
        return tau if tau == tau else None

    @property
    def regret(self) -> float:
        """Accuracy on the full set that is lost by taking the proxy's best child instead of the best: mean over its ties."""
        best = [full for full, proxy in zip(self.full, self.proxy, strict=True) if proxy == max(self.proxy)]
        return max(self.full) - sum(best) / len(best)


def ranking(
    space: SearchSpace,
    full: ClassificationTask,
    proxy: ClassificationTask,
    recipe: Recipe,
    *,
    children: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Ranking:
    """Train ``children`` different random archs on both, for the same epochs, from the same initial weights.

    Raises DataError for fewer than 3 children or more than the space has, and what `nar_hw.training.loop.train` raises.
    """
    if not 3 <= children <= space.size:
        raise DataError(f"3 <= children <= archs of the space ({space.size:,}) must hold to compare rankings, but got {children}")
    rng = random.Random(seed)
    archs: dict[Arch, None] = {}
    while len(archs) < children:
        archs[space.sample(rng)] = None
    runs = [(arch, task) for arch in archs for task in (full, proxy)]
    accuracies = []
    for number, (arch, task) in enumerate(runs if progress is None else progress.track(runs, description="ranking children")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            child = space.build(arch)
        accuracies.append(train(child, task, recipe, seed=seed + number // 2).valid_accuracy)
    return Ranking(archs=tuple(archs), full=tuple(accuracies[::2]), proxy=tuple(accuracies[1::2]))
