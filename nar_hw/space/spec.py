"""The words of a search space, without torch: operators' specs and archs."""

from typing import Annotated, Literal

from msgspec import Meta

from nar_hw.records import Record

Size = Annotated[int, Meta(ge=1)]
Pair = tuple[int, int]
Arch = tuple[int, ...]
"""One operator code per slot."""
Manner = Literal["conv", "block"]

INCUMBENT = "incumbent"
"""The operator of a slot whose own convolutions no operator describes."""
SKIP, NO_SKIP = "skip", "none"
"""The two operators of a skip connection that may be taken out: the addition, and nothing."""


class OpSpec(Record, frozen=True, kw_only=True, cache_hash=True):
    """Everything the cost of one operator depends on; the key of a latency table's entries."""

    operator: str
    """Name in OPERATORS, a user's operator, or "incumbent" for a convolution that no operator describes."""
    c_in: Size
    c_out: Size
    h: Size
    """Input height."""
    w: Size
    """Input width."""
    stride: tuple[Size, Size] = (1, 1)
    groups: Size = 1
    """Groups of the convolution whose slot this is: 1 dense, c_in depthwise, else grouped."""
    bias: bool = False
    kernel: Pair | None = None
    """Kernel, padding, dilation and module: only for "incumbent", whose name does not say them."""
    padding: Pair | str | None = None
    dilation: Pair | None = None
    module: str | None = None


def two(value: tuple[int, ...]) -> Pair:
    """``value`` as a pair. Raises ValueError when it holds more or fewer than two."""
    first, second = value
    return int(first), int(second)
