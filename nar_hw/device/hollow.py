"""Files of networks without their weights, on which latency does not depend: the device makes some up."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

SMALLEST = 1024
"""Values of the smallest weight that is left out."""
_BLOCK = 1 << 18


def hollowed(data: bytes, weights: Iterable[npt.NDArray[np.float32]]) -> bytes:
    """The file ``data``, compressed, without those of ``weights`` that it holds as they are; their mean and spread are noted.

    It is fastest where they come in the order of the file. Small ones stay: biases keep a signal alive, constants have a meaning.
    """
    found: dict[int, list[float]] = {}
    end = 0
    for array in weights:
        raw = array.tobytes()
        at = data.find(raw, end) if array.size >= SMALLEST else -1
        at = data.find(raw) if at < 0 and array.size >= SMALLEST else at
        if at >= 0:
            found[at] = [at, array.size, float(array.mean()), float(array.std())]
            end = at + len(raw)
    holes, pieces, end = [], [], 0
    for at, hole in sorted(found.items()):
        if at >= end:
            holes.append(hole)
            pieces.append(data[end:at])
            end = at + 4 * int(hole[1])
    return zlib.compress(json.dumps(holes).encode() + b"\n" + b"".join(pieces) + data[end:], 9)


def filled(packed: bytes, period: int = _BLOCK) -> bytes:
    """The whole file again, with random weights of the same mean and spread, which repeat after ``period``.

    Raises ValueError for anything else.
    """
    try:
        head, separator, data = zlib.decompress(packed).partition(b"\n")
    except zlib.error as problem:
        raise ValueError(str(problem)) from None
    if not separator:
        raise ValueError("it is no file of a kit")
    noise = np.random.default_rng(0).standard_normal(period, dtype=np.float32)
    pieces, written, read = [], 0, 0
    for at, count, mean, spread in json.loads(head):
        pieces.append(data[read : read + at - written])
        read += at - written
        pieces.append(np.resize(noise * np.float32(spread) + np.float32(mean), count).tobytes())
        written = at + 4 * count
    return b"".join([*pieces, data[read:]])
