"""Proxies: which training images to search on. A new way to choose them is a function and a line in METHODS."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nar_hw.data import ImageData
from nar_hw.errors import DataError, unknown_name
from nar_hw.proxy.gradients import Gradients, herd
from nar_hw.proxy.subset import ProxyIndex, fingerprint

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """What a method may go by; what costs time is computed when it is called."""

    labels: Indices
    """(N,)."""
    size: int
    seed: int
    values: Callable[[], NDArray[np.float64]]
    """The metric of each image, (N,)."""
    gradients: Callable[[], list[Gradients]]
    """Gradients of each image, at several weights."""

    @property
    def random(self) -> np.random.RandomState:
        """A generator made of the seed; its stream is the same with every NumPy."""
        return np.random.RandomState(self.seed)

    def per_class(self) -> list[tuple[Indices, int]]:
        """Members of each class and how many of them to choose, in proportion, by largest remainder."""
        members = [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]
        exact = np.array([len(part) for part in members]) * self.size / len(self.labels)
        counts = np.floor(exact).astype(int)
        counts[np.argsort(counts - exact, kind="stable")[: self.size - counts.sum()]] += 1
        return list(zip(members, counts.tolist(), strict=True))


def random(choice: Choice) -> Indices:
    """Any images."""
    return choice.random.permutation(len(choice.labels))[: choice.size]


def stratified(choice: Choice) -> Indices:
    """Any images, every class in its proportion."""
    rng = choice.random
    return np.concatenate([rng.permutation(members)[:count] for members, count in choice.per_class()])


def metric(choice: Choice) -> Indices:
    """Within each class, images evenly spaced in the order of the metric, so that it is distributed as in the whole."""
    rng, values = choice.random, choice.values()
    parts = []
    for members, count in choice.per_class():
        ordered = members[np.argsort(values[members], kind="stable")]
        places = (np.arange(count) + rng.rand()) * len(members) / max(count, 1)
        parts.append(ordered[places.astype(int)])
    return np.concatenate(parts)


def gradient(choice: Choice) -> Indices:
    """Images whose mean gradient follows the full one; the first n of them are a proxy of n."""
    return np.fromiter(herd(choice.gradients(), choice.size), np.int64)


METHODS: dict[str, Callable[[Choice], Indices]] = {
    "gradient": gradient,
    "metric": metric,
    "random": random,
    "stratified": stratified,
}


def select(
    data: ImageData,
    size: int,
    by: str,
    *,
    seed: int = 0,
    values: Callable[[], NDArray[np.float64]],
    gradients: Callable[[], list[Gradients]],
) -> ProxyIndex:
    """``size`` training images of ``data``; ``values`` and ``gradients`` are called by the methods that go by them.

    Raises:
        UnknownNameError: there is no such method.
        DataError: the size is not between 1 and the number of training images, or the images are not in memory.
    """
    if by not in METHODS:
        raise unknown_name("way to select", by, METHODS)
    if not 1 <= size <= len(data.train):
        raise DataError(f"1 <= size <= training images must hold, but got (size={size}, images={len(data.train)})")
    mark = fingerprint(data)
    chosen = METHODS[by](Choice(labels=data.train.labels, size=size, seed=seed, values=values, gradients=gradients))
    return ProxyIndex(data=data.name, sha256=mark, by=by, seed=seed, indices=tuple(chosen.tolist()))
