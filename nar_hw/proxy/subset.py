"""A part of a data set's training images, and the file that names it."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nar_hw.data import ImageData, Split
from nar_hw.errors import DataError
from nar_hw.records import Record, read_record, write_record

SCHEMA = 1


def images_of(data: ImageData) -> Split:
    """The training images. Raises DataError where they are not in memory."""
    if not isinstance(data.train, Split):
        raise DataError(f"proxy data is made of images in memory, but those of {data.name!r} are in files: use folder:PATH@SIZE")
    return data.train


def subset(data: ImageData, positions: Sequence[int] | NDArray[np.int64]) -> ImageData:
    """``data`` with the training images at ``positions``, in that order; its normalisation and other splits are kept.

    Raises DataError where the images are not in memory.
    """
    whole, chosen = images_of(data), np.asarray(positions, np.int64)
    train = replace(whole, images=whole.images[chosen], labels=whole.labels[chosen], indices=whole.indices[chosen])
    return replace(data, train=train)


def with_valid(data: ImageData) -> ImageData:
    """``data`` with its validation images among the training images too, in the order of their collection.

    Raises DataError where the two are not of one collection, or not in memory.
    """
    train, valid = images_of(data), data.valid
    if not isinstance(valid, Split) or valid.source != train.source:
        raise DataError(
            f"training and validation images must be of one collection to be joined, but those of {data.name!r} are not"
        )
    order = np.argsort(np.concatenate([train.indices, valid.indices]))

    def joined(name: str) -> NDArray[Any]:
        both: NDArray[Any] = np.concatenate([getattr(train, name), getattr(valid, name)])[order]
        return both

    train = replace(train, images=joined("images"), labels=joined("labels"), indices=joined("indices"))
    mean, std = train.statistics()
    return replace(data, train=train, mean=mean, std=std)


def fingerprint(data: ImageData) -> str:
    """SHA-256 of the training labels (little-endian int64) and images, in hex."""
    train = images_of(data)
    digest = hashlib.sha256(train.labels.astype("<i8").tobytes())
    digest.update(np.ascontiguousarray(train.images).data)
    return digest.hexdigest()


class ProxyIndex(Record, frozen=True, kw_only=True):
    """Which training images of which data set a search uses."""

    data: str
    """The name of the data set."""
    sha256: str
    """:func:`fingerprint` of it."""
    by: str
    """How the images were chosen."""
    seed: int
    indices: tuple[int, ...]
    """Positions in the training split, in the order in which they were chosen: the first n are a proxy too."""

    def __post_init__(self) -> None:
        """Raises DataError unless it names one image or more, each once."""
        if not self.indices or len(set(self.indices)) < len(self.indices) or min(self.indices) < 0:
            raise DataError("a proxy must name one image or more, each once: select it again")

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_record(path, self, schema=SCHEMA)

    @classmethod
    def load(cls, path: Path) -> "ProxyIndex":
        """Read what :meth:`save` wrote. Raises DataError for another file or a damaged one."""
        return read_record(path, cls, what="proxy", schema=SCHEMA, error=DataError, fix="make it with nar-hw proxy select")

    def apply(self, data: ImageData) -> ImageData:
        """``data`` with these training images only, in ascending order. Raises DataError for another data set."""
        if self.sha256 != fingerprint(data) or max(self.indices) >= len(data.train):
            raise DataError(
                f"a proxy must be of the data set that it is used with, but this one is of {self.data!r} "
                f"and the images of {data.name!r} differ: run nar-hw proxy select --data {data.name}"
            )
        return subset(data, np.sort(np.array(self.indices)))
