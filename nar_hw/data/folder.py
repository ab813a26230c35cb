"""One's own images in memory: ``folder:PATH``, ``folder:PATH@SIZE`` or ``folder:PATH@CROP/SIZE``.

Two layouts, each with one folder per class that may hold further folders:
``PATH/train/CLASS/...`` with ``PATH/val/CLASS/...`` and, or, ``PATH/test/CLASS/...`` (or training, valid, validation, testing, in
any case); or flat, ``PATH/CLASS/...``. What is hidden, at any depth, is no image.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from nar_hw.data.base import Augmentation, ImageData, Pool, assemble, require_memory
from nar_hw.data.images import SUFFIXES, folders_in, images_in, read_image, refused
from nar_hw.errors import DataError
from nar_hw.files import expanded

MOST_PIXELS = 1024
"""Greatest side that images may be scaled to."""
KEPT_SIZE = 64
"""Images of at most this many pixels a side keep their size when no SIZE is given."""
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Name of a folder, in lower case -> what it is for."""
LIKE_SPLITS = re.compile(
    r"(train|test|val|valid|dev|eval)(ing|idation|uation)?[ _-]?(set|data|dataset|images|imgs|split|dir|\d+)?", re.IGNORECASE
)
"""Names that no class has when another folder beside it has one of them too."""


def load(name: str, detail: str, *, root: Path, seed: int, download: bool) -> ImageData:
    """The images below PATH in RGB, decoded into memory.

    Without SIZE all images must have one size, of at most 64 x 64. With SIZE the shorter side is scaled to SIZE (bilinear with
    antialiasing) and the centre is cut out; with CROP, networks see random windows of that side in training, else the centre.
    With train, val and test folders each is what it says; with train and one of val or test, that one is the test set and valid
    is a tenth of train; a flat folder is split 70/10/20.

    Raises:
        DataError: no such folder, no images, a class that is not in train, an unreadable image, or sizes that differ.
    """
    path, crop, size = parsed(name, detail)
    parts = parts_of(path)
    classes = classes_of(parts[0][1])
    pool, *held = (_pool(source, folder, classes, size) for source, folder in parts)
    shapes = {item.images.shape[1:] for item in (pool, *held)}
    if len(shapes) > 1:
        raise DataError(f"all images must have one size, but the parts of {path} have {_sizes(shapes)}: use {name}@SIZE")
    pixels = min(pool.images.shape[-2:])
    return assemble(
        name,
        pool,
        test=held[0] if held else None,
        valid=held[1] if len(held) > 1 else None,
        classes=classes,
        augmentation=Augmentation(crop_padding=0 if crop else pixels // 8, flip=True),
        seed=seed,
        crop=crop,
    )


def parsed(name: str, detail: str) -> tuple[Path, int | None, int | None]:
    """PATH, CROP and SIZE of a data set's name. Raises DataError when there is no such folder or a number is out of range."""
    match = re.fullmatch(r"(.*?)(?:@(?:([0-9]{1,9})/)?([0-9]{1,9}))?", detail, re.DOTALL)
    assert match is not None
    crop, size = (None if number is None else int(number) for number in match.groups()[1:])
    if not 1 <= (crop or 1) <= (size or 1) <= MOST_PIXELS or 0 in (crop, size):
        raise DataError(f"1 <= CROP <= SIZE <= {MOST_PIXELS} must hold in {name}, but got {detail.rpartition('@')[2]}")
    path = expanded(match[1])
    if not match[1] or not path.is_dir():
        raise DataError(f"{name!r} must name an existing folder of class folders, but {str(path)!r} is none: use folder:PATH")
    return path, crop, size


def parts_of(path: Path) -> list[tuple[str, Path]]:
    """(source, folder) of the images to learn, then of those to test on and, where both are there, to validate on."""
    named: dict[str, Path] = {}
    for folder in folders_in(path):
        kind = SPLIT_NAMES.get(folder.name.lower())
        if kind is not None and named.setdefault(kind, folder) != folder:
            raise DataError(
                f"a folder must have one part to {kind}, but {path} has {named[kind].name}/ and {folder.name}/: rename one"
            )
    train, held = named.get("train"), [named[kind] for kind in ("test", "val") if kind in named]
    if train is not None and not held:
        raise DataError(
            f"a folder with {train.name}/ must also have val/ or test/, but {path} has neither: use folder:{train} to split it"
        )
    if held and train is None:
        raise DataError(
            f"a folder with {held[0].name}/ must also have train/, but {path} has none: add it or rename {held[0].name}/"
        )
    if train is not None:
        return [("train", train), *((folder.name, folder) for folder in held)]
    alike = [folder.name for folder in folders_in(path) if LIKE_SPLITS.fullmatch(folder.name)]
    if len(alike) > 1:
        raise DataError(
            f"parts of a data set must be called train, val and test, but {path} has {' and '.join(alike)}: rename them, or give "
            "them names that no part has if they are classes"
        )
    return [("all", path)]


def classes_of(folder: Path) -> list[str]:
    """The names of the class folders, sorted. Raises DataError for fewer than two."""
    folders = folders_in(folder)
    if len(folders) < 2:
        inner = f", or name {folders[0]} if it holds the classes" if folders else ""
        raise DataError(
            f"a data set must have two or more class folders, but {folder} has {len(folders)}: make one folder per class{inner}"
        )
    for item in folders:
        parts = {SPLIT_NAMES[inner.name.lower()] for inner in folders_in(item) if inner.name.lower() in SPLIT_NAMES}
        if len(parts) > 1:
            raise DataError(
                f"classes must lie in train/, val/ and test/, but {item} has {' and '.join(sorted(parts))} in the class: make it "
                f"{folder / 'train' / item.name} and so on"
            )
    return [item.name for item in folders]


def files_of(source: str, folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """The images of ``folder`` with their labels, ordered by class and path. Raises DataError for classes that do not fit."""
    unknown = sorted({item.name for item in folders_in(folder)} - set(classes))
    if unknown:
        raise DataError(f"every class folder must also be in train/, but {folder / unknown[0]} is not: add it there or remove it")
    files = [(path, label) for label, name in enumerate(classes) if (folder / name).is_dir() for path in images_in(folder / name)]
    # A part to be tested on may lack a class, the images to be learned may not.
    empty = set(range(len(classes))) - {label for _, label in files} if source in ("all", "train") or not files else set()
    if empty:
        raise DataError(
            f"class folders must hold images ({', '.join(sorted(SUFFIXES))}), but {folder / classes[min(empty)]} has none: "
            "add some or remove it"
        )
    return files


def _pool(source: str, folder: Path, classes: list[str], size: int | None) -> Pool:
    files = files_of(source, folder, classes)
    shape = _first_shape(files[0][0], size)
    fix = "use a smaller @SIZE, or stream:PATH@SIZE, which reads images when they are needed"
    require_memory(f"folder {folder}", len(files), shape, fix)
    images = np.empty((len(files), *shape), np.uint8)

    def decode(index: int) -> str | None:
        try:
            images[index] = _decoded(files[index][0], size, shape)
        except DataError as problem:
            return str(problem)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        found = list(executor.map(decode, range(len(files))))
    bad = [(str(path), problem) for (path, _), problem in zip(files, found, strict=True) if problem is not None]
    if bad:
        fix = "mend or remove them; folder:PATH@SIZE, such as folder:PATH@64, brings all to one size"
        raise refused("every image must be readable and of one size", fix, bad, len(files))
    return Pool(source=source, images=images, labels=np.array([label for _, label in files], np.int64))


def _first_shape(path: Path, size: int | None) -> tuple[int, int, int]:
    if size is not None:
        return 3, size, size
    width, height = colour(path).size
    if max(width, height) > KEPT_SIZE:
        raise DataError(
            f"images larger than {KEPT_SIZE}x{KEPT_SIZE} need a size to be brought to, but {path} has {width}x{height}: "
            "use folder:PATH@SIZE, such as folder:PATH@64"
        )
    return 3, height, width


def colour(path: Path) -> Image.Image:
    """The image in RGB. Raises DataError when it cannot be read."""
    try:
        return read_image(path)
    except DataError as problem:
        raise DataError(f"every image must be readable, but {path} {problem}: replace or remove it") from problem


def _decoded(path: Path, size: int | None, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The image as (3, H, W). Raises DataError, which does not name the path."""
    image = read_image(path)
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    elif (image.height, image.width) != shape[1:]:
        raise DataError(f"has {image.width}x{image.height} pixels and the first {shape[2]}x{shape[1]}")
    return np.asarray(image).transpose(2, 0, 1)


def _sizes(shapes: set[tuple[int, ...]]) -> str:
    return " and ".join(f"{width}x{height}" for _, height, width in sorted(shapes))
