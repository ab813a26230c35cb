"""How well embeddings tell people apart: verification of pairs, its error trade-off, and identification on a gallery.

Shape legend: P pairs, N images, D embedding size, G images of a gallery. A score is greater the more alike two faces are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nar_hw.errors import DataError
from nar_hw.files import atomic_path

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
FARS = (1e-1, 1e-2, 1e-3, 1e-4)


def scores(first: NDArray[np.floating], second: NDArray[np.floating], distance: Literal["cosine", "l2"] = "cosine") -> Floats:
    """The cosine of each pair of embeddings (P, D), or minus their squared distance: (P,)."""
    one, two = first.astype(np.float64), second.astype(np.float64)
    if distance == "l2":
        one, two = one - two, two - one
    else:
        one, two = _unit(one), _unit(two)
    values: Floats = (one * two).sum(axis=1)
    return values


def _unit(embeddings: Floats) -> Floats:
    lengths: Floats = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.maximum(lengths, 1e-12)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Accuracy over the folds of a protocol."""

    accuracy: float
    """Mean over folds, in [0, 1]."""
    deviation: float
    """Standard deviation over folds."""
    thresholds: tuple[float, ...]
    """Of each fold, chosen on the others: a pair is of one person if its score is greater."""


def verification(values: Floats, same: Flags, folds: NDArray[np.int64]) -> Verification:
    """The protocol of LFW: each fold is judged by the threshold that is best on all the others.

    Args:
        values: scores (P,).
        same: whether a pair is of one person (P,).
        folds: (P,).

    Raises:
        DataError: fewer than two folds.
    """
    numbers = np.unique(folds)
    if len(numbers) < 2:
        raise DataError(f"verification needs two or more folds, but got {len(numbers)}")
    thresholds = [best_threshold(values[folds != fold], same[folds != fold]) for fold in numbers]
    rights = [
        float(((values[folds == fold] > threshold) == same[folds == fold]).mean())
        for fold, threshold in zip(numbers, thresholds, strict=True)
    ]
    return Verification(accuracy=float(np.mean(rights)), deviation=float(np.std(rights)), thresholds=tuple(thresholds))


def best_threshold(values: Floats, same: Flags) -> float:
    """The threshold with the most pairs right: between two neighbouring scores (P,), or infinite; of equals the least."""
    order = np.argsort(values, kind="stable")
    ordered, flags = values[order], same[order]
    # At place i, the pairs from i on are said to be of one person.
    right = flags.sum() + np.concatenate([[0], np.cumsum(np.where(flags, -1, 1))])
    possible = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])
    place = int(np.argmax(np.where(possible, right, -1)))
    if place in (0, len(ordered)):
        return -np.inf if place == 0 else np.inf
    return float((ordered[place - 1] + ordered[place]) / 2)


def balanced_accuracy(values: Floats, same: Flags) -> float:
    """The mean of the shares of pairs of one person and of two that the best threshold tells right; NaN where one is missing."""
    genuine, impostors = np.sort(values[same]), np.sort(values[~same])
    if not len(genuine) or not len(impostors):
        return float("nan")
    thresholds = np.concatenate([[-np.inf], np.unique(values)])
    accepted = 1 - np.searchsorted(genuine, thresholds, side="right") / len(genuine)
    refused = np.searchsorted(impostors, thresholds, side="right") / len(impostors)
    return float((accepted + refused).max() / 2)


def tar_at_far(values: Floats, same: Flags, fars: Sequence[float] = FARS) -> dict[float, float | None]:
    """FAR -> the share of pairs of one person accepted (TAR) at the least threshold that accepts at most FAR of the others.

    None where there are fewer than 1 / FAR pairs of two persons: they cannot tell.
    """
    genuine, impostors = values[same], -np.sort(-values[~same])
    found: dict[float, float | None] = {}
    for far in fars:
        allowed = int(far * len(impostors) + 1e-9)
        found[far] = None if allowed == 0 else float((genuine > impostors[allowed]).mean()) if allowed < len(impostors) else 1.0
    return found


def roc(values: Floats, same: Flags) -> tuple[Floats, Floats]:
    """(FAR, TAR) at every threshold, both rising from 0 to 1; pairs of equal score are accepted together."""
    order = np.argsort(-values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(order) - 1)
    accepted = same[order]
    tar, far = (np.concatenate([[0.0], np.cumsum(flags)[ends] / flags.sum()]) for flags in (accepted, ~accepted))
    return far, tar


def plot_roc(path: Path, curves: dict[str, tuple[Floats, Floats]]) -> None:
    """Draw (FAR, TAR) curves by name, FAR on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, (far, tar) in curves.items():
        axes.step(far, tar, where="post", label=name)
    least = min(far[far > 0].min() for far, _ in curves.values())
    axes.set(xscale="log", xlim=(least, 1), ylim=(0, 1.01), xlabel="false accept rate", ylabel="true accept rate")
    axes.plot(ticks := np.geomspace(least, 1), ticks, color="0.7", linestyle=":", label="chance")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def rank_1(
    gallery: NDArray[np.floating], identities: NDArray[np.int64], probes: NDArray[np.floating], labels: NDArray[np.int64]
) -> float:
    """How often the most alike of a gallery (G, D) is of the probe's own identity, for probes (N, D).

    Raises:
        DataError: a probe's identity is not in the gallery; says how many.
    """
    if absent := int((~np.isin(labels, identities)).sum()):
        raise DataError(f"every probe's identity must be in the gallery, but {absent:,} of {len(labels):,} probes' are not")
    known, asked = (_unit(embeddings.astype(np.float64)) for embeddings in (gallery, probes))
    nearest = [(asked[start : start + 1024] @ known.T).argmax(axis=1) for start in range(0, len(asked), 1024)]
    return float((identities[np.concatenate(nearest)] == labels).mean())
