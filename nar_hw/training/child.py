"""A trained child on disk: child.json and weights.safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from nar_hw.data.preprocessing import Preprocessing
from nar_hw.models.info import ModelInfo
from nar_hw.models.weights import load_weights, save_weights
from nar_hw.records import Record, read_record, write_record
from nar_hw.space.space import SearchSpace
from nar_hw.training.recipes import Recipe

CHILD, WEIGHTS = "child.json", "weights.safetensors"
SCHEMA = 2


class Child(Record, frozen=True, kw_only=True):
    """A trained child on disk: child.json and weights.safetensors."""

    model: ModelInfo
    arch: tuple[str, ...]
    """Operator names, one per slot."""
    data: str
    recipe: Recipe | None
    """None where the weights were given."""
    seed: int
    init: str
    accuracy: Mapping[str, float]
    """Split -> top-1 accuracy, or what else the task scores by (``metric``), in [0, 1]."""
    metric: str = "accuracy"
    params: int
    flops: int | None
    """Multiply-adds as fvcore counts them; None where they could not be counted."""
    pool_ops: int | None
    target_ms: float | None
    """The latency asked for."""
    predicted_ms: float | None
    """By the latency table whose hash and fingerprint follow."""
    table_hash: str | None
    fingerprint: Mapping[str, Any] | None
    preprocessing: Preprocessing
    versions: Mapping[str, str] = {}
    top5: Mapping[str, float] = {}
    """Split -> top-5 accuracy in [0, 1]; empty where there are five classes or fewer."""
    record: Mapping[str, Any] = {}
    """Of the data: seed, size and hash of each split, augmentation; see `nar_hw.tasks.Task.record`."""
    ensemble: Mapping[str, Any] | None = None
    """Test accuracies of the training's snapshots, see `nar_hw.training.snapshots.Ensemble`; None without them."""
    uncounted: str | None = None
    """Why ``flops`` and ``pool_ops`` are not known."""

    def save(self, folder: Path, network: nn.Module) -> None:
        """Write the child; the weights first, so that a child.json never stands alone."""
        save_weights(folder / WEIGHTS, network)
        write_record(folder / CHILD, self, schema=SCHEMA)

    @classmethod
    def load(cls, folder: Path) -> "Child":
        """Read child.json. Raises RunError in one line."""
        return read_record(folder / CHILD, cls, what="trained child", schema=SCHEMA, fix="train it again", upgrade=_upgraded)

    def space(self) -> SearchSpace:
        """The search space that the child was taken from, with fresh weights."""
        return self.model.space()

    def network(self, folder: Path, space: SearchSpace | None = None) -> nn.Module:
        """The child with its trained weights, in eval mode. Raises RunError when weights and arch do not match."""
        space = space or self.space()
        arch = space.parse(list(self.arch))
        network = space.build(arch)
        load_weights(network, folder / WEIGHTS)
        network.eval()
        return network


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 had the fields of the preprocessing beside the others."""
    if content.pop("schema") > 1 or not {"mean", "std", "classes"} <= content.keys():
        return content
    return {**content, "preprocessing": {name: content.pop(name) for name in ("mean", "std", "classes")}}
