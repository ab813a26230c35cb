"""Which network, with which slots and operators: what is needed to make a search space again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import nn

from nar_hw.errors import RunError, UserError
from nar_hw.files import misfits
from nar_hw.models import build_model
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Manner


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
