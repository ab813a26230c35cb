"""Which network, with which slots and operators: what is needed to make a search space again."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from msgspec import UNSET, UnsetType

from nar_hw.errors import UserError
from nar_hw.records import Record
from nar_hw.space.spec import Manner

if TYPE_CHECKING:
    from torch import nn

    from nar_hw.space.space import SearchSpace


def parse_shape(text: str) -> tuple[int, int, int]:
    """(C, H, W) from "3x224x224". Raises UserError."""
    found = re.fullmatch(r"([1-9][0-9]{0,6})[xX]([1-9][0-9]{0,6})[xX]([1-9][0-9]{0,6})", text)
    if found is None:
        raise UserError(f"an input shape (each size at most 9999999) must be CxHxW, like 3x224x224, but got {text[:60]!r}")
    channels, height, width = map(int, found.groups())
    return channels, height, width


class ModelInfo(Record, frozen=True, kw_only=True):
    """A network and what of it is searched: enough to build both again."""

    OPTIONS: ClassVar[Mapping[str, str]] = {"name": "model", "input_shape": "input", "num_classes": "classes"}

    name: str
    """As given to --model."""
    input_shape: tuple[int, int, int]
    """(C, H, W) of one image."""
    num_classes: int
    """Outputs of the network."""
    manner: Manner = "conv"
    operators: tuple[str, ...] | None = None
    """Names, ``path/to/file.py:function`` for a user's own; None for all that suit."""
    slots: str | None = None
    """Glob over the convolutions to search; None for all spatial ones behind the stem."""
    limit_params: bool = True
    """Only operators with no more parameters than the network's own (paper 3.1)."""

    skips: Literal[True] | UnsetType = UNSET
    """Skip connections may be taken out; left out of files where they may not, as before there was a choice."""

    def __post_init__(self) -> None:
        """Raises UserError for sizes that are not positive."""
        if min(self.input_shape) < 1:
            raise UserError(f"input_shape must be three positive sizes (C, H, W), but got {self.input_shape}")
        if self.num_classes < 1:
            raise UserError(f"num_classes must be at least 1, but got {self.num_classes}")

    @classmethod
    def of(cls, space: "SearchSpace", name: str) -> "ModelInfo":
        """What makes ``space`` again, of the network called ``name``."""
        shape, classes = space.input_shape, space.num_classes
        return cls(name=name, input_shape=shape, num_classes=classes, manner=space.manner, **space.asked)

    def build(self) -> "nn.Module":
        """The network with fresh weights."""
        from nar_hw.models import build_model

        return build_model(self.name, input_shape=self.input_shape, num_classes=self.num_classes)

    def space(self, model: "nn.Module | None" = None) -> "SearchSpace":
        """The search space of ``model`` (default: a fresh one)."""
        from nar_hw.space.space import SearchSpace

        return SearchSpace.from_model(
            self.build() if model is None else model,
            self.input_shape,
            operators=self.operators,
            manner=self.manner,
            slots=self.slots,
            limit_params=self.limit_params,
            skips=self.skips is True,
        )
