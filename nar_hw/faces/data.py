"""Faces by identity: ``faces:PATH[,option=value,...]``, the options those of :class:`FaceConfig`.

PATH is a folder with ``train.rec`` and ``train.idx`` (InsightFace), with ``train/`` and ``valid/`` of identities' folders (as
`nar-hw data faces-proxy` makes), or of identities' folders itself.

Shape legend: N images of a split, S pixels a side.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nar_hw.data import FACES
from nar_hw.data.base import SPLITS
from nar_hw.errors import DataError, unknown_name
from nar_hw.faces.images import Encoded, FaceImages, Files, identity_folders
from nar_hw.faces.pairs import Pairs, by_identity, drawn_pairs, load_pairs
from nar_hw.faces.records import Records
from nar_hw.files import expanded

HeadKind = Literal["arcface", "cosface", "softmax"]
MARGINS: dict[HeadKind, float] = {"arcface": 0.5, "cosface": 0.35, "softmax": 0.0}
"""Head -> the margin of its paper."""
CHOICES: dict[str, tuple[str, ...]] = {
    "head": tuple(MARGINS),
    "score": ("identification", "verification"),
    "distance": ("cosine", "l2"),
}
MEAN, STD = (127.5 / 255,) * 3, (128 / 255,) * 3
"""(x - 127.5) / 128, for pixels in [0, 1]."""
TESTED = 0.1
"""Share of the identities held out for testing where there is no other test set."""


@dataclass(frozen=True, kw_only=True)
class FaceConfig:
    """The options behind the path of a ``faces:`` data set."""

    head: HeadKind = "arcface"
    """arcface (additive angular margin), cosface (additive cosine margin), or plain softmax."""
    margin: float | None = None
    """By default that of the head's paper: 0.5 or 0.35."""
    scale: float = 64.0
    """What cosines are multiplied by (s)."""
    margin_warmup: float = 1.0
    """Epochs in which the margin rises from 0, so that small sets converge."""
    sampled: float = 1.0
    """Share of the identities that a step compares with, among them those of the batch (PartialFC); 1: all."""
    embedding: int = 512
    """Outputs of the network."""
    score: Literal["identification", "verification"] = "identification"
    """The accuracy of validation images: how often the head's nearest identity is theirs, or how often pairs are told right."""
    distance: Literal["cosine", "l2"] = "cosine"
    """How embeddings are compared in verification."""
    size: int | None = None
    """Bring every image to this many pixels a side; None: all must be 112x112."""
    valid: int = 1
    """Images of each identity held out for validation, where there is no folder of them. 0: none; validation is of one image
    of each that is trained on, too: it says whether the training fits, and nothing of other images."""
    min: int | None = None
    """Leave out identities with fewer images; None: too few are an error."""
    pairs: str | None = None
    """Verification set to test on: .bin, a list, or CFP's folder. Without it, identities are held out."""
    images: str | None = None
    """Folder of the images that ``pairs`` lists."""

    def __post_init__(self) -> None:
        """Raises UnknownNameError for a choice, DataError for a value outside its range."""
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown_name(f"faces {name}", getattr(self, name), known)
        _require(self, "0 <= margin < 1", "margin", 0 <= self.margin_used < 1)
        _require(self, "margin = 0 with softmax", "margin", self.head != "softmax" or self.margin_used == 0)
        _require(self, "scale > 0", "scale", self.scale > 0)
        _require(self, "margin_warmup >= 0", "margin_warmup", self.margin_warmup >= 0)
        _require(self, "0 < sampled <= 1", "sampled", 0 < self.sampled <= 1)
        _require(self, "sampled = 1 with softmax", "sampled", self.head != "softmax" or self.sampled == 1)
        _require(self, "embedding >= 2", "embedding", self.embedding >= 2)
        _require(self, "8 <= size <= 1024", "size", self.size is None or 8 <= self.size <= 1024)
        _require(self, "valid >= 0", "valid", self.valid >= 0)

    @property
    def margin_used(self) -> float:
        """The margin asked for, or the head's own."""
        return MARGINS[self.head] if self.margin is None else self.margin


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceSplit:
    """Images for one purpose; splits may share what they are taken from."""

    images: FaceImages
    indices: NDArray[np.int64]
    """(N,) positions in ``images``."""
    labels: NDArray[np.int64]
    """(N,) identities, from 0; of a verification set the positions."""
    pairs: Pairs | None = None
    """Of positions in ``indices``; None where images are told apart by identity."""

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, chosen: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images (B, 3, S, S) at the positions ``chosen`` (B,)."""
        return self.images[self.indices[chosen]]

    @property
    def record(self) -> dict[str, Any]:
        """Sizes and a SHA-256 of which images there are, whose, and how they are paired, for JSON."""
        parts = [self.indices, self.labels]
        if self.pairs is not None:
            parts += [self.pairs.first, self.pairs.second, self.pairs.same.astype(np.int64), self.pairs.folds]
        digest = hashlib.sha256(b"".join(part.astype("<i8").tobytes() for part in parts)).hexdigest()
        return {"size": len(self), "pairs": 0 if self.pairs is None else len(self.pairs), "sha256": digest}


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceData:
    """Faces to learn from, to validate on (of the same identities) and to test on (pairs, of others)."""

    name: str
    """What :func:`load_faces` was given."""
    seed: int
    config: FaceConfig
    train: FaceSplit
    valid: FaceSplit
    test: FaceSplit
    identities: int
    """How many there are in train."""

    mean = MEAN
    std = STD
    classes: tuple[str, ...] = ()
    """None: the network's outputs are an embedding."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(3, S, S)."""
        return 3, self.train.images.size, self.train.images.size

    def split(self, name: str) -> FaceSplit:
        """The split called "train", "valid" or "test". Raises UnknownNameError."""
        if name not in SPLITS:
            raise unknown_name("split", name, SPLITS)
        split: FaceSplit = getattr(self, name)
        return split

    @property
    def record(self) -> dict[str, Any]:
        """Name, seed, options and splits, for JSON."""
        splits = {name: self.split(name).record for name in SPLITS}
        return {
            "name": self.name,
            "seed": self.seed,
            "identities": self.identities,
            "config": asdict(self.config),
            "splits": splits,
        }


def load_faces(name: str, *, seed: int = 0) -> FaceData:
    """The set called ``faces:PATH[,option=value,...]``.

    Where PATH has no ``valid/``, ``valid`` images of each identity are held out; where there are neither ``pairs`` nor ``test/``,
    a tenth of the identities (two at least) is, for pairs of people that were never learned. All of it is drawn by ``seed``.

    Raises:
        DataError: no such folder, too few images or identities, images that cannot be read or have other sizes, a damaged file;
            in one line with counts.
        UnknownNameError: an option that does not exist.
    """
    path, config = _parsed(name)
    rng = np.random.RandomState(seed)
    test = None if config.pairs is None else _paired(config)
    if (path / "train").is_dir() and (path / "valid").is_dir():
        train, valid, held = _folders(path, config)
        test = test or held
    else:
        encoded, labels, names = labelled(path)
        train, valid, held = _drawn(encoded, labels, names, config, rng, whole=test is not None)
        test = test or held
    if test is None:
        raise DataError(f"faces need a test set, but {path} has no test/ folder: name verification pairs with pairs=FILE")
    pairs = None
    if config.score == "verification":
        pairs = drawn_pairs(valid.labels, seed)
    valid = FaceSplit(images=valid.images, indices=valid.indices, labels=valid.labels, pairs=pairs)
    if test.pairs is None:
        test = FaceSplit(images=test.images, indices=test.indices, labels=test.labels, pairs=drawn_pairs(test.labels, seed))
    return FaceData(
        name=name, seed=seed, config=config, train=train, valid=valid, test=test, identities=int(train.labels.max()) + 1
    )


def _parsed(name: str) -> tuple[Path, FaceConfig]:
    text, *pairs = re.split(r",(?=\w+=)", name.removeprefix(FACES))
    known = {field.name: str(field.type) for field in fields(FaceConfig)}
    options: dict[str, Any] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in known:
            raise unknown_name("faces option", key, known)
        kind = int if "int" in known[key] else float if "float" in known[key] else str
        try:
            options[key] = kind(value)
        except ValueError:
            raise DataError(
                f"faces option {key} must be {'a whole number' if kind is int else 'a number'}, but is {value!r}"
            ) from None
    path = expanded(text)
    if not text or not path.is_dir():
        raise DataError(f"{name!r} must name an existing folder of faces, but {str(path)!r} is none: use faces:PATH")
    return path, FaceConfig(**options)


def _require(config: FaceConfig, rule: str, name: str, holds: bool) -> None:
    if not holds:
        raise DataError(f"{rule} must hold for faces, but got {name}={getattr(config, name)}")


def _paired(config: FaceConfig) -> FaceSplit:
    """The verification set that the options name."""
    images = None if config.images is None else expanded(config.images)
    encoded, pairs = load_pairs(expanded(str(config.pairs)), images)
    numbers = np.arange(len(encoded))
    return FaceSplit(images=FaceImages(encoded, size=config.size), indices=numbers, labels=numbers, pairs=pairs)


def labelled(path: Path) -> tuple[Encoded, NDArray[np.int64], Sequence[str]]:
    """All images of a folder that is not split, their identities (N,) from 0, and the identities' names. Raises DataError."""
    if (path / "train.rec").is_file():
        records = Records(path / "train.rec")
        numbers, labels = np.unique(records.labels, return_inverse=True)
        return records, labels, [f"{number:07d}" for number in numbers]
    return _files(identity_folders(path))


def _files(identities: dict[str, list[Path]]) -> tuple[Files, NDArray[np.int64], Sequence[str]]:
    files = Files([file for paths in identities.values() for file in paths])
    return files, np.repeat(np.arange(len(identities)), [len(paths) for paths in identities.values()]), list(identities)


def _folders(path: Path, config: FaceConfig) -> tuple[FaceSplit, FaceSplit, FaceSplit | None]:
    """What ``train/``, ``valid/`` and, where it is there, ``test/`` hold."""
    train, valid = (identity_folders(path / part) for part in ("train", "valid"))
    if train.keys() != valid.keys():
        lonely = sorted(train.keys() ^ valid.keys())
        raise DataError(
            f"train/ and valid/ must hold the same identities, but {len(lonely):,} of {path} are in one only "
            f"(first {lonely[0]}): make the proxy again"
        )
    splits = [_whole(identities, config) for identities in (train, valid)]
    test = _whole(identity_folders(path / "test"), config) if (path / "test").is_dir() else None
    return splits[0], splits[1], test


def _whole(identities: dict[str, list[Path]], config: FaceConfig) -> FaceSplit:
    files, labels, _ = _files(identities)
    return FaceSplit(images=FaceImages(files, size=config.size), indices=np.arange(len(files)), labels=labels)


def _drawn(
    encoded: Encoded,
    labels: NDArray[np.int64],
    names: Sequence[str],
    config: FaceConfig,
    rng: np.random.RandomState,
    *,
    whole: bool,
) -> tuple[FaceSplit, FaceSplit, FaceSplit | None]:
    """``valid`` images of each identity held out (0: one of each, which is trained on, too) and, unless ``whole``, identities."""
    least, counts = config.valid + 1, np.bincount(labels)
    small = np.flatnonzero(counts < max(least, config.min or 0))
    if len(small) and (config.min is None or config.min < least):
        raise DataError(
            f"every identity must have at least {least} images, {config.valid} of them for validation, but {len(small):,} of "
            f"{len(counts):,} have fewer (first {names[small[0]]} with {counts[small[0]]}): add images, or leave them out with "
            f"min={least}"
        )
    kept = rng.permutation(np.flatnonzero(~np.isin(np.arange(len(counts)), small)))
    tested = 0 if whole else max(2, round(TESTED * len(kept)))
    if len(kept) < tested + 2:
        raise DataError(
            f"faces need two or more identities to learn{'' if whole else ' and two to test'}, but {len(kept):,} of "
            f"{len(counts):,} have {max(least, config.min or 0)} images or more: add identities, or lower min and valid"
        )
    images = FaceImages(encoded, size=config.size)
    learned = np.sort(kept[tested:])
    members = by_identity(labels)
    mixed = [rng.permutation(members[identity]) for identity in learned]
    shown = max(1, config.valid)
    parts = [
        np.concatenate([np.sort(m[: len(m) - config.valid]) for m in mixed]),
        np.concatenate([np.sort(m[-shown:]) for m in mixed]),
    ]
    number = np.full(len(counts), -1)
    number[learned] = np.arange(len(learned))
    held = np.flatnonzero(np.isin(labels, kept[:tested]))
    splits = [FaceSplit(images=images, indices=part, labels=number[labels[part]]) for part in parts]
    return splits[0], splits[1], FaceSplit(images=images, indices=held, labels=labels[held]) if tested else None
