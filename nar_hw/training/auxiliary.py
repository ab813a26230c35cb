"""Auxiliary classifiers: heads in the middle of GoogLeNet and Inception-v3 that a training learns beside them and does not keep.

They put gradients into the early layers (Szegedy et al. 2015, "Going deeper with convolutions", section 5).
Shape legend: B images, K classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import torchvision
from torch import Tensor, nn
from torchvision.models import GoogLeNet, Inception3

from nar_hw.errors import TrainingError
from nar_hw.userfile import user_code

PLACES: dict[type[nn.Module], tuple[str, dict[str, str]]] = {
    GoogLeNet: ("googlenet", {"aux1": "inception4a", "aux2": "inception4d"}),
    Inception3: ("inception_v3", {"AuxLogits": "Mixed_6e"}),
}
"""Class of a network -> its torchvision name and, for each auxiliary classifier, the module whose output it reads."""


class AuxiliaryClassifiers(nn.Module):
    """The auxiliary classifiers of a network, freshly initialised as torchvision does; each sees what its place puts out last."""

    def __init__(self, network: nn.Module) -> None:
        """Raises TrainingError for a network that has none."""
        super().__init__()
        kind = next((kind for kind in PLACES if isinstance(network, kind)), None)
        if kind is None:
            raise TrainingError(
                f"auxiliary = 0 must hold for a network without auxiliary classifiers, such as this {type(network).__name__}: "
                f"only {' and '.join(name for name, _ in PLACES.values())} have some"
            )
        name, places = PLACES[kind]
        classes = cast(nn.Linear, network.get_submodule("fc")).out_features
        whole: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=classes, aux_logits=True, init_weights=True
        )
        self.heads = nn.ModuleDict({head: whole.get_submodule(head) for head in places})
        self._places = places
        self._seen: dict[str, Tensor] = {}

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        """Within it, what ``network`` puts out at the places of the classifiers is kept for them."""

        def keep(head: str, module: nn.Module, inputs: object, output: Tensor) -> None:
            self._seen[head] = output

        hooks = [network.get_submodule(at).register_forward_hook(partial(keep, head)) for head, at in self._places.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def forward(self) -> list[Tensor]:
        """Logits (B, K) of each classifier for the images that the network saw last while it was watched."""
        with user_code("auxiliary classifiers must run on what the network computes, but they"):
            return [head(self._seen.pop(name)) for name, head in self.heads.items()]
