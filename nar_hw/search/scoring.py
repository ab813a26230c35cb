"""The accuracy of children with shared weights."""

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from nar_hw.search.config import SearchConfig
from nar_hw.search.supernet import Supernet
from nar_hw.space import Arch
from nar_hw.tasks import Task, evaluating


class Scorer:
    """Scores archs as the shared weights are now; nothing is kept from one call to the next.

    Before an arch is scored, its BatchNorm statistics are estimated on a few training batches. Validation images are only ever
    seen in eval mode and without gradients: they change neither weights nor statistics.
    """

    def __init__(self, supernet: Supernet, task: Task, config: SearchConfig, generator: torch.Generator) -> None:
        self._supernet = supernet
        self._task = task
        self._config = config
        self._generator = generator
        self._calibration: list[Tensor] = []

    def renew(self) -> None:
        """Take other training batches for the statistics: once per epoch is enough."""
        batches = self._task.train_batches(self._config.batch, self._generator, augment=False)
        self._calibration = [self.laid_out(images) for images, _ in islice(batches, self._config.recalibration_batches)]

    def laid_out(self, images: Tensor) -> Tensor:
        """Images in the memory format of the weights."""
        return images.contiguous(memory_format=torch.channels_last) if self._config.channels_last else images

    def on_minibatch(self, archs: Sequence[Arch]) -> list[float]:
        """Accuracy in [0, 1] of each arch on one random validation minibatch, the same for all."""
        images, targets = next(self._task.eval_batches("valid", self._config.valid_batch, generator=self._generator))
        images = self.laid_out(images)
        correct: dict[Arch, Tensor] = {}
        with evaluating(self._supernet):
            for arch in dict.fromkeys(archs):
                self._prepare(arch)
                correct[arch] = self._task.correct(self._supernet(images), targets)
        counts = torch.stack([correct[arch] for arch in archs])
        return [count / len(images) for count in counts.tolist()]  # one wait for the device

    def on_all(self, arch: Arch) -> float:
        """Accuracy in [0, 1] on the whole validation split."""
        self._prepare(arch)
        return self._task.evaluate(self._supernet, "valid")

    def _prepare(self, arch: Arch) -> None:
        self._supernet.activate(arch)
        self._supernet.recalibrate(self._calibration)
