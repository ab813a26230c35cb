"""The accuracy of children with shared weights."""

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from nar_hw.data.loader import Batch
from nar_hw.distributed import all_reduce_sum, ranks, share
from nar_hw.search.config import SearchConfig
from nar_hw.search.feasible import Floats
from nar_hw.search.supernet import Supernet
from nar_hw.space.network import detached, in_float
from nar_hw.space.spec import Arch
from nar_hw.tasks import Task, evaluating
from nar_hw.training.precision import autocast
from nar_hw.training.recipes import Precision


class Scorer:
    """Scores archs as the shared weights are now; nothing is kept from one call to the next, unless the weights are fixed.

    Before an arch is scored, its BatchNorm statistics are estimated on a few training batches. Validation images are only ever
    seen in eval mode and without gradients: they change neither weights nor statistics.
    """

    def __init__(
        self,
        supernet: Supernet,
        task: Task,
        config: SearchConfig,
        generator: torch.Generator,
        known: dict[Arch, float] | None = None,
    ) -> None:
        """``known``: where the weights are fixed, scores so far. What is scored is added; the images, drawn once, depend on the
        seed alone, so that scores are the same for every target and after a stop."""
        self.known = known
        self._drawn: Batch | None = None
        self._supernet = supernet
        self._task = task
        self._config = config
        self._generator = generator if known is None else torch.Generator().manual_seed(config.seed)
        self._calibration: list[Tensor] = []

    def renew(self) -> None:
        """Take other training batches for the statistics: once per epoch is enough; where the weights are fixed, only once."""
        if self.known is not None and self._calibration:
            return
        batches = self._task.train_batches(self._config.batch, self._generator, augment=False)
        self._calibration = [self.laid_out(images) for images, _ in islice(batches, self._config.recalibration_batches)]

    def laid_out(self, images: Tensor) -> Tensor:
        """Images in the memory format of the weights."""
        return images.contiguous(memory_format=torch.channels_last) if self._config.channels_last else images

    def on_minibatch(self, archs: Sequence[Arch]) -> list[float]:
        """Accuracy in [0, 1] of each arch on one random validation minibatch, the same for all."""
        if self.known is not None:
            new = [arch for arch in dict.fromkeys(archs) if arch not in self.known]
            self.known.update(zip(new, self._on_images(new), strict=True))
            return [self.known[arch] for arch in archs]
        return self._on_images(archs)

    def _on_images(self, archs: Sequence[Arch]) -> list[float]:
        images, targets = self._minibatch()
        with evaluating(self._supernet):
            scores = self._each(archs, lambda: self._task.accuracy(self._supernet(images), targets))
        return [accuracy for (accuracy,) in scores]

    def with_slopes(self, archs: Sequence[Arch]) -> tuple[list[float], list[list[float]]]:
        """The accuracies of `on_minibatch` and the slopes, per arch and slot, of the loss in a factor on the slot's output."""
        images, targets = self._minibatch()
        gates = torch.ones(len(self._supernet.space.slots), device=self._task.device, requires_grad=True)

        def score() -> Tensor:
            with torch.enable_grad(), self._supernet.gated(gates):
                output = self._supernet(images)
                (slopes,) = torch.autograd.grad(self._task.loss(in_float(output), targets), gates)
            return torch.cat([self._task.accuracy(detached(output), targets)[None], slopes])

        with evaluating(self._supernet):
            scores = self._each(archs, score, 1 + len(gates), self._slopes_precision)
        return [accuracy for accuracy, *_ in scores], [slopes for _, *slopes in scores]

    def with_mixture(self, weights: Floats) -> Floats:
        """(S, V) slopes of the loss on one random validation minibatch in the ``weights`` (S, V) of the operators' mixture."""
        images, targets = self._minibatch()
        shares = torch.tensor(weights, dtype=torch.float32, device=self._task.device, requires_grad=True)
        arithmetic = autocast(self._task.device, self._slopes_precision)
        with evaluating(self._supernet), torch.enable_grad(), self._supernet.mixed(shares), arithmetic:
            self._supernet.recalibrate(self._calibration)
            loss = self._task.loss(in_float(self._supernet(images)), targets)
            (slopes,) = torch.autograd.grad(loss, shares)
        return np.asarray((all_reduce_sum(slopes.double()) / ranks()).cpu().numpy())

    @property
    def _slopes_precision(self) -> Precision:
        return "fp32" if self._config.precision == "fp16" else self._config.precision  # small slopes vanish

    def on_all(self, archs: Sequence[Arch]) -> list[float]:
        """Accuracy in [0, 1] of each arch on the whole validation split."""
        return [accuracy for (accuracy,) in self._each(archs, lambda: self._task.evaluate(self._supernet, "valid"))]

    def _minibatch(self) -> Batch:
        if self._drawn is not None:
            return self._drawn
        images, targets = next(self._task.eval_batches("valid", self._config.valid_batch, generator=self._generator))
        batch = self.laid_out(images), targets
        if self.known is not None:
            self._drawn = batch
        return batch

    def _each(
        self, archs: Sequence[Arch], score: Callable[[], Tensor | float], width: int = 1, precision: Precision | None = None
    ) -> list[list[float]]:
        """The ``width`` numbers that ``score`` gives for each arch; of several processes, each scores its share."""
        different = list(dict.fromkeys(archs))
        scores = torch.zeros(len(different), width, dtype=torch.float64, device=self._task.device)
        for index in share(range(len(different))):
            self._supernet.activate(different[index])
            with autocast(self._task.device, precision or self._config.precision):
                self._supernet.recalibrate(self._calibration)
                scores[index] = score()
        known = dict(zip(different, all_reduce_sum(scores).tolist(), strict=True))  # one wait for the device
        return [known[arch] for arch in archs]
