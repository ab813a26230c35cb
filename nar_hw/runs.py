"""Run folders: which network a result belongs to, and trained children on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from torch import nn

from nar_hw.checkpoints import load_weights, save_weights
from nar_hw.errors import RunError, UserError
from nar_hw.files import misfits, read_json, write_json
from nar_hw.models import build_model
from nar_hw.space import Manner, SearchSpace

SCHEMA = 1


def parse_shape(text: str) -> tuple[int, int, int]:
    """(C, H, W) from "3x224x224". Raises UserError."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"an input shape must be CxHxW, like 3x224x224, but got {text!r}")
    channels, height, width = map(int, parts)
    return channels, height, width


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is needed to build a network and its search space again."""

    name: str
    """As given to --model."""
    input_shape: tuple[int, int, int]
    num_classes: int
    manner: Manner = "conv"
    operators: tuple[str, ...] | None = None
    """The operators asked for; None for all that suit."""
    slots: str | None = None
    """Glob over the convolutions to search; None for all spatial ones behind the stem."""
    limit_params: bool = True

    def build(self) -> nn.Module:
        """The network with fresh weights."""
        return build_model(self.name, input_shape=self.input_shape, num_classes=self.num_classes)

    def space(self, model: nn.Module | None = None) -> SearchSpace:
        """The search space of ``model`` (default: a fresh one)."""
        return SearchSpace.from_model(
            self.build() if model is None else model,
            self.input_shape,
            operators=self.operators,
            manner=self.manner,
            slots=self.slots,
            limit_params=self.limit_params,
        )

    @classmethod
    def from_json(cls, value: Any, *, path: Path) -> "ModelInfo":
        """The inverse of `dataclasses.asdict`. Raises RunError naming ``path``."""
        wrong = misfits(cls, value) if isinstance(value, dict) else [value]
        if wrong or value.get("manner", "conv") not in get_args(Manner):
            raise RunError(
                f"{path} must describe its model (name, input_shape as [C, H, W], num_classes, manner as conv or block, "
                f"operators), but {', '.join(map(repr, wrong))[:200] or repr(value['manner'])[:200]} does not"
            )
        operators = value.get("operators")
        shapes = {"input_shape": tuple(value["input_shape"]), "operators": None if operators is None else tuple(operators)}
        return cls(**{**value, **shapes})


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
    """Test accuracies of the training's snapshots, see `nar_hw.training.Ensemble`; None without them."""

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
        load_weights(folder / "weights.safetensors", network)
        return network.eval()


def read_arch(folder: Path) -> tuple[ModelInfo, tuple[str, ...], dict[str, Any]]:
    """The model, the found arch (names) and all of run.json of a search. Raises RunError."""
    path = folder / "run.json"
    value = read_json(path, what="search result")
    arch = value.get("arch")
    if not isinstance(arch, list) or not all(isinstance(name, str) for name in arch):
        raise RunError(f"{path} must hold the found arch as a list of operator names: the search is not finished")
    return ModelInfo.from_json(value.get("model"), path=path), tuple(arch), value
