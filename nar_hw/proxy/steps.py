"""What `nar-hw proxy study` and `nar-hw proxy select` do, from Python."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import nn

from nar_hw.data import ImageData, load_data
from nar_hw.errors import DataError
from nar_hw.locks import one_writer
from nar_hw.models import build_model
from nar_hw.proxy.gradients import Gradients
from nar_hw.proxy.metrics import measure
from nar_hw.proxy.perceptual import load_backbone
from nar_hw.proxy.ranking import ranking
from nar_hw.proxy.select import select
from nar_hw.proxy.study import Study, paper_recipe, study
from nar_hw.proxy.subset import with_valid
from nar_hw.space.space import SearchSpace
from nar_hw.tasks import ClassificationTask
from nar_hw.training.loop import train
from nar_hw.training.recipes import Recipe, recipe_named

BATCH = 128
PAPER_METRICS = ("intensity", "colour", "edges", "perceptual")
RANDOM = 10
"""Random subsets of equal size that a proxy's mean gradient is compared with."""


class Scorer:
    """What images are scored with: the network, trained for a few epochs where that is needed, and a backbone."""

    def __init__(
        self,
        model: str,
        data: ImageData,
        *,
        epochs: int = 3,
        backbone: str = "alexnet",
        backbone_weights: Path | None = None,
        device: str = "cpu",
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Computes nothing yet. ``epochs``: of the short training after whose epochs gradients are taken."""
        self.model, self.data, self.epochs, self.device, self.seed, self.progress = model, data, epochs, device, seed, progress
        self.task = ClassificationTask(data, device)
        self.gradients = cache(self._gradients)
        """After every epoch of the short training; raises ModelError where the network does not end in a linear layer."""
        self._network = cache(self._trained)
        self._backbone = cache(lambda: load_backbone(backbone, backbone_weights).to(device))

    def fresh(self) -> nn.Module:
        """The network with weights drawn from the seed. Raises UnknownNameError or ModelError."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return build_model(self.model, input_shape=self.data.input_shape, num_classes=self.data.num_classes)

    def _trained(self, on_epoch: Callable[[nn.Module], None] = lambda _: None) -> nn.Module:
        network = self.fresh()
        batch = min(BATCH, max(1, len(self.data.train) // 4))
        recipe = Recipe(epochs=self.epochs, batch=batch, schedule="one-cycle", nesterov=True)
        train(network, self.task, recipe, seed=self.seed, progress=self.progress, on_epoch=lambda _: on_epoch(network))
        return network

    def _gradients(self) -> list[Gradients]:
        found: list[Gradients] = []
        self._trained(lambda network: found.append(Gradients.of(network, self.task)))
        return found

    def values(self, metric: str) -> NDArray[np.float64]:
        """The metric of each training image. Raises what `nar_hw.proxy.measure` and the network or backbone raise."""
        return measure(
            metric, self.data, network=self._network, backbone=self._backbone, device=self.device, progress=self.progress
        )


def run_study(
    scorer: Scorer,
    metric: str,
    *,
    epochs: int,
    batch: int,
    lr: float,
    exact: bool,
    out: Path,
    resume: bool,
) -> list[Study]:
    """A study by the paper's recipe, or with the metric "all" those of its four. Raises what `nar_hw.proxy.study` raises."""
    recipe = paper_recipe(epochs, batch, lr)
    return study(
        scorer.fresh(),
        scorer.data,
        {name: scorer.values(name) for name in (PAPER_METRICS if metric == "all" else (metric,))},
        recipe=recipe,
        device=scorer.device,
        exact=exact,
        seed=scorer.seed,
        out=out,
        resume=resume,
        progress=scorer.progress,
    )


@one_writer(whole=True)
def run_select(
    scorer: Scorer,
    *,
    size: int,
    by: str,
    metric: str,
    out: Path,
    check: int = 0,
    recipe: str = "demo",
) -> dict[str, Any]:
    """Select a proxy, write its index file and say how it compares; with ``check``, how it ranks that many children.

    Raises what `nar_hw.proxy.select` and `nar_hw.proxy.ranking.ranking` raise.
    """
    data, seed = scorer.data, scorer.seed
    index = select(data, size, by, seed=seed, values=lambda: scorer.values(metric), gradients=scorer.gradients)
    index.save(out)
    found: dict[str, Any] = {"proxy": str(out), "data": data.name, "by": by, "size": size, "images": len(data.train)}
    if by == "gradient":
        rng = np.random.RandomState(seed)
        draws = [torch.from_numpy(rng.permutation(len(data.train))[:size]) for _ in range(RANDOM)]
        kept = scorer.gradients()
        errors = [np.mean([item.error(chosen) for item in kept]) for chosen in (torch.tensor(index.indices), *draws)]
        found["gradient_error"], found["random_gradient_error"] = float(errors[0]), float(np.mean(errors[1:]))
    if check:
        space = SearchSpace.from_model(scorer.fresh(), data.input_shape)
        part = ClassificationTask(index.apply(data), scorer.device)
        ranked = ranking(space, scorer.task, part, recipe_named(recipe), children=check, seed=seed, progress=scorer.progress)
        found |= {"children": check, "kendall": ranked.kendall, "regret": ranked.regret}
        found |= {"accuracy_full": list(ranked.full), "accuracy_proxy": list(ranked.proxy)}
    return found


def load(name: str, root: Path | None, *, all_train: bool = False) -> ImageData:
    """A data set of classes in memory; with ``all_train``, to learn from its validation images too.

    Raises DataError, UnknownNameError.
    """
    data = load_data(name, root=root)
    if data.crop is not None:
        raise DataError(f"proxy data is made of whole images, but {name!r} shows windows of them: use folder:PATH@SIZE")
    return with_valid(data) if all_train else data
