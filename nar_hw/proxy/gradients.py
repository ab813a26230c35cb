"""What a network's last layer learns from each image: the gradient of its weights, kept as its two factors.

For a linear layer after cross-entropy, an image's gradient is the outer product of the error of the probabilities and of the
layer's input with a 1 for the bias (Katharopoulos & Fleuret 2018): inner products need the factors only.

Shape legend: N images, K classes, F inputs of the last layer and a 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nar_hw.errors import ModelError
from nar_hw.tasks import ClassificationTask, evaluating


@dataclass(frozen=True, kw_only=True, eq=False)
class Gradients:
    """Gradients of every training image, at some weights."""

    errors: Tensor
    """(N, K)."""
    inputs: Tensor
    """(N, F)."""

    @classmethod
    def of(cls, network: nn.Module, task: ClassificationTask) -> "Gradients":
        """At the weights of ``network``. Raises ModelError where it does not end in a linear layer."""
        layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not layers or layers[-1].out_features != task.num_classes:
            raise ModelError("a proxy chosen by gradients needs a network that ends in a linear layer: choose another --by")
        seen: list[Tensor] = []

        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen.append(F.pad(args[0].flatten(1), (0, 1), value=1.0))

        handle = layers[-1].register_forward_pre_hook(hook)
        try:
            with evaluating(network):
                errors = [
                    network(images).softmax(1) - F.one_hot(labels, task.num_classes)
                    for images, labels in task.eval_batches("train", task.scored_batch)
                ]
        finally:
            handle.remove()
        return cls(errors=torch.cat(errors), inputs=torch.cat(seen))

    @property
    def mean(self) -> Tensor:
        """The full gradient, (K, F)."""
        return self.errors.T @ self.inputs / len(self.errors)

    def products(self, other: Tensor) -> Tensor:
        """Inner products of all gradients with ``other`` (K, F): (N,)."""
        return ((self.errors @ other) * self.inputs).sum(1)

    def error(self, chosen: Tensor) -> float:
        """How far the mean gradient of the ``chosen`` images is from the full one, relative to the latter's length."""
        mean = self.errors[chosen].T @ self.inputs[chosen] / len(chosen)
        return float((mean - self.mean).norm() / self.mean.norm())


def herd(gradients: list[Gradients], size: int) -> Iterator[int]:
    """Images whose mean gradient follows the full one, at all weights together: each next one brings it nearest (Welling 2009).

    After t images with the sum s, the next one x minimises |(t + 1) g - s - x|^2, g being the full gradient.
    """
    pulls = torch.stack([item.products(item.mean) for item in gradients]).sum(0)
    squares = torch.stack([item.errors.square().sum(1) * item.inputs.square().sum(1) for item in gradients]).sum(0)
    known = torch.zeros_like(pulls)  # inner products with s
    free = torch.ones_like(pulls, dtype=torch.bool)
    for count in range(1, size + 1):
        scores = (count * pulls - known - squares / 2).masked_fill(~free, -torch.inf)
        best = int(scores.argmax())
        free[best] = False
        for item in gradients:
            known += (item.errors @ item.errors[best]) * (item.inputs @ item.inputs[best])
        yield best
