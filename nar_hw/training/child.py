"""Run folders: which network a result belongs to, and trained children on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from nar_hw.errors import RunError
from nar_hw.files import misfits, read_json, write_json
from nar_hw.models.info import ModelInfo
from nar_hw.models.weights import load_weights, save_weights
from nar_hw.space.space import SearchSpace

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Child:
    """A trained child on disk: child.json and weights.safetensors."""

    model: ModelInfo
    arch: tuple[str, ...]
    """Operator names, one per slot."""
    data: str
    recipe: Mapping[str, Any]
    seed: int
    init: str
    accuracy: Mapping[str, float]
    """Split -> top-1 accuracy in [0, 1]."""
    params: int
    flops: int
    """Multiply-adds as fvcore counts them."""
    pool_ops: int
    target_ms: float | None
    """The latency asked for."""
    predicted_ms: float | None
    """By the latency table whose hash and fingerprint follow."""
    table_hash: str | None
    fingerprint: Mapping[str, Any] | None
    mean: Sequence[float]
    """Normalisation per channel, for pixels in [0, 1]."""
    std: Sequence[float]
    classes: Sequence[str]
    versions: Mapping[str, str] = field(default_factory=dict)
    top5: Mapping[str, float] = field(default_factory=dict)
    """Split -> top-5 accuracy in [0, 1]; empty where there are five classes or fewer."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Of the data: seed, size and hash of each split, augmentation; see `nar_hw.tasks.Task.record`."""
    ensemble: Mapping[str, Any] | None = None
    """Test accuracies of the training's snapshots, see `nar_hw.training.snapshots.Ensemble`; None without them."""

    def save(self, folder: Path, network: nn.Module) -> None:
        """Write the child; the weights first, so that a child.json never stands alone."""
        save_weights(folder / "weights.safetensors", network)
        write_json(folder / "child.json", {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> "Child":
        """Read child.json. Raises RunError in one line."""
        path = folder / "child.json"
        value = read_json(path, what="trained child")
        if value.pop("schema", None) != SCHEMA:
            raise RunError(f"{path} must have schema {SCHEMA}: it was written by another version of nar_hw")
        value["model"] = ModelInfo.from_json(value.get("model"), path=path)
        if wrong := misfits(cls, value):
            raise RunError(f"{path} is not a trained child ({', '.join(map(repr, wrong))[:200]}): train it again")
        return cls(**value)

    def space(self) -> SearchSpace:
        """The search space that the child was taken from, with fresh weights."""
        return self.model.space()

    def network(self, folder: Path, space: SearchSpace | None = None) -> nn.Module:
        """The child with its trained weights, in eval mode. Raises RunError when weights and arch do not match."""
        space = space or self.space()
        arch = space.parse(list(self.arch))
        network = space.build(arch)
        load_weights(network, folder / "weights.safetensors")
        return network.eval()
