"""Verification sets: pairs of faces, whether they show one person, and the folds of the protocol.

Read from LFW's ``pairs.txt`` and ``pairsDevTest.txt``, from lists of ``path path flag`` (as AgeDB-30 is passed on), from CFP's
own ``Protocol`` folder, and from InsightFace's ``.bin`` files.

Shape legend: P pairs.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nar_hw.data.images import SUFFIXES
from nar_hw.errors import DataError
from nar_hw.faces.bin import read_bin
from nar_hw.faces.images import Encoded, Files
from nar_hw.records import is_whole

FOLDS = 10
Listed = tuple[Path, Path, bool, int]
"""Two images, whether they show one person, and the fold."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Which images of a set are compared."""

    first: NDArray[np.int64]
    """(P,) positions of images."""
    second: NDArray[np.int64]
    """(P,)"""
    same: NDArray[np.bool_]
    """(P,) whether both show one person."""
    folds: NDArray[np.int64]
    """(P,) from 0; thresholds of a fold's pairs are chosen on the others."""

    def __len__(self) -> int:
        return len(self.same)

    def check(self, name: object) -> None:
        """Raises DataError, with counts, unless every fold has as many pairs of one person as of two, and all have the same."""
        counts = {
            int(fold): (self.same[self.folds == fold].sum(), (~self.same[self.folds == fold]).sum())
            for fold in np.unique(self.folds)
        }
        sizes = Counter((int(same), int(different)) for same, different in counts.values())
        (usual, _), *others = sizes.most_common()
        if others or usual[0] != usual[1]:
            fold = next(fold for fold, size in counts.items() if tuple(size) != usual or usual[0] != usual[1])
            same, different = counts[fold]
            raise DataError(
                f"all {len(counts)} folds must have the same number of pairs, half of them of one person, but fold {fold + 1} of "
                f"{name} has {same:,} of one person and {different:,} of two, most {usual[0]:,} and {usual[1]:,}: complete it"
            )


class Bytes:
    """Encoded images in memory."""

    def __init__(self, images: Sequence[bytes], source: Path) -> None:
        self.images, self.source = images, source

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> bytes:
        return self.images[index]

    def name(self, index: int) -> str:
        """The file and the position."""
        return f"image {index} of {self.source}"


def load_pairs(path: Path, images: Path | None = None) -> tuple[Encoded, Pairs]:
    """The images and pairs of a verification set, each image once.

    Args:
        path: a ``.bin`` file, a list, or CFP's folder (frontal against profile, its hard half).
        images: the folder that a list speaks of; by default the list's own.

    Raises:
        DataError: a file is absent or damaged, images that a list names do not exist, or the folds are unbalanced; with counts.
    """
    if path.suffix == ".bin":
        encoded, flags = read_bin(path)
        numbers, folds = np.arange(len(flags)), _folds(len(flags), path)
        pairs = Pairs(first=2 * numbers, second=2 * numbers + 1, same=np.array(flags, np.bool_), folds=folds)
        pairs.check(path)
        return Bytes(encoded, path), pairs
    if (path / "Protocol").is_dir():
        return _indexed(list(_cfp(path / "Protocol")), path)
    if not path.is_file():
        raise DataError(f"verification pairs {path} do not exist: name a pairs.txt, a .bin file or CFP's folder")
    lines = [line.split() for line in _text(path).splitlines() if line.strip()]
    listed = _flagged if lines and len(lines[0]) == 3 else _lfw
    return _indexed(list(listed(lines, path, images or path.parent)), path)


def _folds(count: int, path: Path) -> NDArray[np.int64]:
    """Ten folds of ``count`` pairs that lie one after another in equal parts."""
    if count % FOLDS or count == 0:
        raise DataError(f"a verification set must have {FOLDS} equal folds, but {path} has {count:,} pairs: complete it")
    return np.repeat(np.arange(FOLDS), count // FOLDS)


def _lfw(lines: list[list[str]], path: Path, images: Path) -> Iterator[Listed]:
    """A first line with pairs per fold (after the number of folds, if not one), then ``name i j`` and ``name i other j``."""
    head, *rows = lines or [[]]
    if not 1 <= len(head) <= 2 or not all(is_whole(word) for word in head):
        raise DataError(
            f"{path} must begin with the number of folds and of pairs, as LFW's lists do, or be lines of 'path path flag'"
        )
    folds, per_fold = (1, int(head[0])) if len(head) == 1 else (int(head[0]), int(head[1]))
    total = folds * 2 * per_fold
    if len(rows) != total:
        raise DataError(
            f"{path} must list {folds} x 2 x {per_fold} = {total:,} pairs, as it says, but lists {len(rows):,}: complete it"
        )
    for number, row in enumerate(rows):
        match row:
            case [name, first, second] if is_whole(first) and is_whole(second):
                pair = (_image(images, name, first), _image(images, name, second), True)
            case [name, first, other, second] if is_whole(first) and is_whole(second):
                pair = (_image(images, name, first), _image(images, other, second), False)
            case _:
                raise DataError(f"pair {number + 1} of {path} must be 'name i j' or 'name i other j', but is {' '.join(row)!r}")
        yield *pair, number // (2 * per_fold)


def _flagged(rows: list[list[str]], path: Path, images: Path) -> Iterator[Listed]:
    """``path path flag``, in ten equal folds one after another."""
    folds = _folds(len(rows), path)
    for number, (row, fold) in enumerate(zip(rows, folds.tolist(), strict=True)):
        if len(row) != 3 or row[2] not in ("0", "1", "-1"):
            raise DataError(f"pair {number + 1} of {path} must be 'path path flag', with flag 1 or 0, but is {' '.join(row)!r}")
        yield images / row[0], images / row[1], row[2] == "1", fold


def _image(images: Path, name: str, number: str) -> Path:
    """LFW's file of an identity's image, in whichever format it is."""
    path = images / name / f"{name}_{int(number):04d}.jpg"
    if not path.exists():
        others = (path.with_suffix(suffix) for suffix in sorted(SUFFIXES))
        return next((other for other in others if other.exists()), path)
    return path


def _cfp(protocol: Path) -> Iterator[Listed]:
    """CFP: ``Pair_list_F.txt`` and ``_P.txt`` of numbers and paths, ten splits with ``same.txt`` and ``diff.txt`` of numbers."""
    frontal, profile = (_cfp_list(protocol / f"Pair_list_{kind}.txt") for kind in "FP")
    for fold in range(FOLDS):
        for name, same in (("same", True), ("diff", False)):
            file = protocol / "Split" / "FP" / f"{fold + 1:02d}" / f"{name}.txt"
            for line in _text(file).split():
                first, comma, second = line.partition(",")
                if not comma or first not in frontal or second not in profile:
                    raise DataError(f"{file} must hold pairs of numbers from the lists beside it, but holds {line!r}")
                yield frontal[first], profile[second], same, fold


def _cfp_list(file: Path) -> dict[str, Path]:
    rows = [line.split() for line in _text(file).splitlines() if line.strip()]
    if not all(len(row) == 2 for row in rows):
        raise DataError(f"{file} must hold lines of a number and a path, but does not")
    return {number: (file.parent / name.replace("\\", "/")).resolve() for number, name in rows}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"CFP's protocol must have {file}, but it does not exist: unpack the whole set") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} must be a text, but is not: name a pairs.txt, a .bin file or CFP's folder") from None


def _indexed(listed: Sequence[Listed], path: Path) -> tuple[Encoded, Pairs]:
    if not listed:
        raise DataError(f"{path} must list pairs, but lists none")
    files = sorted({file for first, second, _, _ in listed for file in (first, second)})
    if missing := [file for file in files if not file.is_file()]:
        lost = sum(not (first.is_file() and second.is_file()) for first, second, _, _ in listed)
        raise DataError(
            f"every pair must name two existing images, but {lost:,} of {len(listed):,} pairs of {path} do not, for want of "
            f"{len(missing):,} images (first {missing[0]}): name their folder with images=FOLDER"
        )
    place = {file: index for index, file in enumerate(files)}
    pairs = Pairs(
        first=np.array([place[first] for first, _, _, _ in listed], np.int64),
        second=np.array([place[second] for _, second, _, _ in listed], np.int64),
        same=np.array([same for _, _, same, _ in listed], np.bool_),
        folds=np.array([fold for _, _, _, fold in listed], np.int64),
    )
    pairs.check(path)
    if len(np.unique(pairs.folds)) == 1:
        pairs = in_folds(pairs)
    return Files(files), pairs


def in_folds(pairs: Pairs) -> Pairs:
    """The pairs of one fold dealt into ten (fewer when there are few), those of one person and of two in turn."""
    folds = np.empty(len(pairs), np.int64)
    for same in (True, False):
        members = np.flatnonzero(pairs.same == same)
        folds[members] = np.arange(len(members)) * min(FOLDS, len(members)) // len(members)
    return Pairs(first=pairs.first, second=pairs.second, same=pairs.same, folds=folds)


def drawn_pairs(labels: NDArray[np.int64], seed: int, most: int = 3000) -> Pairs:
    """Pairs among images of the identities ``labels`` (N,): up to ``most`` of one person and as many of two, in ten folds.

    Raises:
        DataError: fewer than ten pairs can be made of either kind.
    """
    rng = np.random.RandomState(seed)
    identities = by_identity(labels)
    genuine = np.concatenate([_of_one(members) for members in identities])
    genuine = genuine[np.sort(rng.permutation(len(genuine))[:most])]
    count = len(genuine) // FOLDS * FOLDS
    if count == 0 or len(identities) < 2:
        raise DataError(
            f"verification needs ten pairs of images of one person, and two persons, but {len(labels):,} images of "
            f"{len(identities):,} make {len(genuine):,}: hold out more with valid=COUNT, or name a test set with pairs=FILE"
        )
    first, second = rng.randint(len(labels), size=(2, 20 * count))
    different = np.flatnonzero(labels[first] != labels[second])[:count]
    count = len(different) // FOLDS * FOLDS  # fewer only where nearly all images are of one person
    return in_folds(
        Pairs(
            first=np.concatenate([genuine[:count, 0], first[different[:count]]]),
            second=np.concatenate([genuine[:count, 1], second[different[:count]]]),
            same=np.repeat([True, False], count),
            folds=np.zeros(2 * count, np.int64),
        )
    )


def by_identity(labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The ascending positions of each identity's images, of ``labels`` (N,)."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _of_one(members: NDArray[np.int64], most: int = 200) -> NDArray[np.int64]:
    """Pairs (., 2) of ``members``: each with each, or of many the nearest neighbours in the list."""
    first, second = np.triu_indices(len(members), 1)
    nearest = np.argsort(second - first, kind="stable")[:most]
    return np.stack([members[first[nearest]], members[second[nearest]]], axis=1)
