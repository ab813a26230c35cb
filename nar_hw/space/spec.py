"""The words of a search space, without torch: operators' specs, archs, and what was asked of a space."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Pair = tuple[int, int]
Arch = tuple[int, ...]
"""One operator code per slot."""
Manner = Literal["conv", "block"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpSpec:
    """Everything the cost of one operator depends on; the key of a latency table's entries."""

    operator: str
    """Name in OPERATORS, a user's operator, or "incumbent" for a convolution that no operator describes."""
    c_in: int
    c_out: int
    h: int
    """Input height."""
    w: int
    """Input width."""
    stride: Pair = (1, 1)
    groups: int = 1
    """Groups of the convolution whose slot this is: 1 dense, c_in depthwise, else grouped."""
    bias: bool = False
    kernel: Pair | None = None
    """Kernel, padding, dilation and module: only for "incumbent", whose name does not tell them."""
    padding: Pair | str | None = None
    dilation: Pair | None = None
    module: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields that differ from their default, as plain JSON values."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "OpSpec":
        """The inverse of `to_json`. Raises TypeError or ValueError when ``value`` is no OpSpec."""
        fields: dict[str, Any] = {name: two(tuple(item)) if isinstance(item, list) else item for name, item in value.items()}
        spec = cls(**fields)
        sizes = (spec.c_in, spec.c_out, spec.h, spec.w, spec.groups, *spec.stride)
        if not isinstance(spec.operator, str) or not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(f"an operator spec needs a name and positive integer sizes, but got {dict(value)}")
        return spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What was asked of `SearchSpace.from_model` beside the network and the manner: enough to make the space again."""

    operators: tuple[str, ...] | None = None
    """Names, ``path/to/file.py:function`` for a user's own; None for all that suit."""
    slots: str | None = None
    """Glob over module paths."""
    limit_params: bool = True


def two(value: tuple[int, ...]) -> Pair:
    """``value`` as a pair. Raises ValueError when it holds more or fewer than two."""
    first, second = value
    return int(first), int(second)
