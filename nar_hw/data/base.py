"""What a data set is: its three splits, in memory or in files, and how images are augmented by default.

Shape legend: N images, C channels, H height, W width; images are uint8 (N, C, H, W), labels int64 (N,).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nar_hw.errors import DataError, unknown_name
from nar_hw.records import Record, plain, replace

MEAN, PIXEL_MEAN = "mean", "pixel-mean"
"""What may be subtracted from images instead of normalising them: behind a comma in a data set's name."""
SplitName = Literal["train", "valid", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")
HOLD_OUT = (70, 10, 20)
"""Percent of train, valid and test images where a data set has no splits of its own."""
VALID_OF_TRAIN = (90, 10)
"""Percent of train and valid images where only the test set is official."""
MEMORY_LIMIT_GIB = 16
"""Data sets that would need more than this are refused instead of filling the memory."""


class Augmentation(Record, frozen=True, kw_only=True):
    """Random changes of training images: of images in memory applied to whole batches on the device."""

    crop_padding: int = 0
    """Zero pixels added to every side before a random crop of the original size; 0: no crop."""
    flip: bool = False
    """Mirror left to right with probability 1/2 (wrong for digits and letters)."""
    cutout: int = 0
    """Side, in pixels, of the square set to the mean colour at a random place (DeVries & Taylor 2017); 0: none."""
    least_area: float = 1.0
    """Of images in files: least share of the image that a random crop holds, which is then scaled (Szegedy et al. 2015); 1: the
    centre is taken as in evaluation."""
    pca_colour: float = 0.0
    """Deviation of the random factors by which each image's colour is shifted along the principal components of the training
    pixels, times the component's variance, for pixels in [0, 1] (Krizhevsky et al. 2012, section 4.1: 0.1); 0: none."""

    def __post_init__(self) -> None:
        """Raises DataError for a negative size or deviation or an area that is no share."""
        if not 0 <= self.pca_colour <= 1e3:
            raise DataError(f"0 <= pca_colour <= 1000 must hold, but got {self.pca_colour}")
        if not 0 < self.least_area <= 1:
            raise DataError(f"0 < least_area <= 1 must hold, but got {self.least_area}")
        if self.crop_padding < 0 or self.cutout < 0:
            raise DataError(
                f"crop_padding >= 0 and cutout >= 0 must hold, but got (crop_padding={self.crop_padding}, cutout={self.cutout})"
            )

    @property
    def record(self) -> dict[str, Any]:
        """For JSON; without ``pca_colour`` where it is not used, so that trainings begun before it was there can go on."""
        return {name: value for name, value in plain(self).items() if name != "pca_colour" or value}


@dataclass(frozen=True, kw_only=True, eq=False)
class Part(ABC):
    """Images for one purpose, wherever they are."""

    labels: NDArray[np.int64]
    """(N,) in [0, classes)."""
    indices: NDArray[np.int64]
    """(N,) ascending positions in ``source``."""
    source: str
    """The collection that the indices count in, such as "train" or "all"."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""

    @abstractmethod
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel, for pixels scaled to [0, 1]."""

    @abstractmethod
    def covariance(self) -> NDArray[np.float64]:
        """Of the channels (C, C), for pixels scaled to [0, 1]."""

    @property
    def record(self) -> dict[str, Any]:
        """Source, size and the SHA-256 of the indices (little-endian int64), for JSON."""
        digest = hashlib.sha256(self.indices.astype("<i8").tobytes()).hexdigest()
        return {"source": self.source, "size": len(self), "sha256": digest}


@dataclass(frozen=True, kw_only=True, eq=False)
class Split(Part):
    """Images in memory."""

    images: NDArray[np.uint8]
    """(N, C, H, W)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel, of all images."""
        return channel_statistics(self.images)

    def covariance(self) -> NDArray[np.float64]:
        """Of the channels (C, C), of all images."""
        return channel_covariance(self.images)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageData:
    """A classification data set, split; all its splits are of one kind."""

    name: str
    """What :func:`nar_hw.data.load_data` was given; loads the same images again."""
    seed: int
    train: Part
    valid: Part
    test: Part
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel over the training split (of images in files, a sample of it), for pixels scaled to [0, 1]."""
    std: tuple[float, ...]
    augmentation: Augmentation
    mean_image: NDArray[np.float32] | None = None
    """Mean of the training images (C, H, W) scaled to [0, 1], which is subtracted instead of ``mean``."""
    crop: int | None = None
    """Side of the window of images in memory that a network sees: a random one in training, else the centre; None: all."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train.shape
        return (channels, height, width) if self.crop is None else (channels, self.crop, self.crop)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def splits(self) -> dict[str, dict[str, Any]]:
        """The record of each split: two runs with equal records trained, chose and tested on the same images."""
        return {name: self.split(name).record for name in SPLITS}

    @property
    def record(self) -> dict[str, Any]:
        """Name, seed, splits and augmentation, for JSON."""
        return {"name": self.name, "seed": self.seed, "splits": self.splits, "augmentation": self.augmentation.record}

    def split(self, name: str) -> Part:
        """The split called "train", "valid" or "test". Raises UnknownNameError."""
        if name not in SPLITS:
            raise unknown_name("split", name, SPLITS)
        split: Part = getattr(self, name)
        return split


@dataclass(frozen=True, kw_only=True, eq=False)
class Unsplit(ABC):
    """Images that are still to be split."""

    source: str
    labels: NDArray[np.int64]

    @abstractmethod
    def take(self, indices: NDArray[np.int64]) -> Part:
        """The split that holds the images at ``indices``."""

    def all(self) -> Part:
        """One split that holds every image."""
        return self.take(np.arange(len(self.labels)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool(Unsplit):
    """Images in memory that are still to be split."""

    images: NDArray[np.uint8]

    def take(self, indices: NDArray[np.int64]) -> Split:
        """The split that holds the images at ``indices``."""
        whole = len(indices) == len(self.labels)  # ascending indices of all: no copy
        images, labels = (self.images, self.labels) if whole else (self.images[indices], self.labels[indices])
        return Split(images=images, labels=labels, indices=indices, source=self.source)


def assemble(
    name: str,
    pool: Unsplit,
    *,
    classes: Sequence[str],
    augmentation: Augmentation,
    seed: int,
    valid: Unsplit | None = None,
    test: Unsplit | None = None,
    crop: int | None = None,
) -> ImageData:
    """Splits ``pool`` into what is missing of train, valid and test and computes the normalisation of the training images.

    Raises DataError when a class has too few images to be in every split.
    """
    if test is None:
        parts = [pool.take(indices) for indices in stratified(pool.labels, HOLD_OUT, seed)]
    elif valid is None:
        parts = [pool.take(indices) for indices in stratified(pool.labels, VALID_OF_TRAIN, seed)] + [test.all()]
    else:
        parts = [pool.all(), valid.all(), test.all()]
    mean, std = parts[0].statistics()
    return ImageData(
        name=name,
        seed=seed,
        train=parts[0],
        valid=parts[1],
        test=parts[2],
        classes=tuple(classes),
        mean=mean,
        std=std,
        augmentation=augmentation,
        crop=crop,
    )


def stratified(labels: NDArray[np.int64], shares: Sequence[int], seed: int) -> list[NDArray[np.int64]]:
    """Disjoint ascending index arrays, one per share (percent, in all 100), each with its share of every class.

    Shares are rounded by largest remainder within a class, and every class has at least one image in every part.
    The same arguments give the same parts on every machine and with every NumPy (RandomState's stream is frozen).

    Raises:
        DataError: a class has fewer images than there are parts.
    """
    rng = np.random.RandomState(seed)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in shares]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < len(shares):
            raise DataError(
                f"every class must have at least {len(shares)} images to be split, but class {label} has {len(members)}: "
                "add images or remove the class"
            )
        bounds = np.cumsum(_rounded(len(members), shares))[:-1]
        for part, chosen in zip(parts, np.split(members, bounds), strict=True):
            part.append(chosen)
    return [np.sort(np.concatenate(part)) for part in parts]


def _rounded(total: int, shares: Sequence[int]) -> list[int]:
    counts = [total * share // 100 for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda part: (-(total * shares[part] % 100), part))
    for part in by_remainder[: total - sum(counts)]:
        counts[part] += 1
    while 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts


def channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of ``images`` (N, C, H, W) scaled to [0, 1], from exact integer sums.

    Raises:
        DataError: a channel has the same value everywhere.
    """
    means, deviations = [], []
    values = np.arange(256)
    for channel in range(images.shape[1]):
        counts = np.zeros(256, np.int64)
        for start in range(0, len(images), 4096):  # bincount widens its input eightfold
            counts += np.bincount(images[start : start + 4096, channel].reshape(-1), minlength=256)
        total, first, second = (int(item) for item in (counts.sum(), counts @ values, counts @ values**2))
        variance = (total * second - first**2) / (total * 255) ** 2
        if variance == 0:
            raise DataError(
                f"the training images must vary in every channel, but channel {channel} is {first / total:g} everywhere"
            )
        means.append(first / (total * 255))
        deviations.append(variance**0.5)
    return tuple(means), tuple(deviations)


def channel_covariance(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The covariance (C, C) of the channels of ``images`` (N, C, H, W) scaled to [0, 1], from exact integer sums."""
    channels = images.shape[1]
    count, first, second = 0, np.zeros(channels, np.int64), np.zeros((channels, channels), np.int64)
    for start in range(0, len(images), 512):
        pixels = images[start : start + 512].transpose(1, 0, 2, 3).reshape(channels, -1).astype(np.float64)  # (C, pixels)
        count += pixels.shape[1]
        first += pixels.sum(1).astype(np.int64)  # whole numbers below 2**53: exact
        second += (pixels @ pixels.T).astype(np.int64)
    mean = first / count
    covariance: NDArray[np.float64] = (second / count - np.outer(mean, mean)) / 255**2
    return covariance


def subtracting(data: ImageData, name: str, what: str) -> ImageData:
    """``data`` as ``name``, of whose pixels in [0, 255] nothing but the mean of the channel or of the pixel is subtracted.

    Raises DataError for the mean of pixels whose images are read when they are needed.
    """
    data = replace(data, name=name, std=(1 / 255,) * len(data.std))
    if what == MEAN:
        return data
    if not isinstance(data.train, Split):
        raise DataError(
            f"the mean of each pixel is of images in memory, but {name!r} reads them when needed: use ,{MEAN}, or folder:PATH"
        )
    total = sum(data.train.images[start : start + 512].sum(0, dtype=np.int64) for start in range(0, len(data.train), 512))
    return replace(data, mean_image=(total / (255 * len(data.train))).astype(np.float32))


def require_memory(name: str, count: int, shape: tuple[int, int, int], fix: str) -> None:
    """Raises DataError when ``count`` images of ``shape`` (C, H, W) would take more than the limit."""
    needed = count * int(np.prod(shape)) / 2**30
    if needed > MEMORY_LIMIT_GIB:
        raise DataError(f"a data set must fit in {MEMORY_LIMIT_GIB} GiB, but {name} needs {needed:.1f} GiB: {fix}")
