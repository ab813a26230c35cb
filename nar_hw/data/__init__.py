"""Data sets by name: see :func:`load_data`."""

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from nar_hw.data.base import MEAN, PIXEL_MEAN, SPLITS, Augmentation, ImageData, Part, Split, SplitName, subtracting
from nar_hw.errors import DataError, unknown_name
from nar_hw.files import expanded

__all__ = ["DATA_SETS", "FACES", "SPLITS", "Augmentation", "ImageData", "Part", "Split", "SplitName", "data_root", "load_data"]

DATA_SETS: dict[str, str] = {
    "digits": "nar_hw.data.digits:load",
    "cifar10": "nar_hw.data.vision:load",
    "cifar100": "nar_hw.data.vision:load",
    "fashion-mnist": "nar_hw.data.vision:load",
    "folder:": "nar_hw.data.folder:load",
    "stream:": "nar_hw.data.stream:load",
    "fake:": "nar_hw.data.fake:load",
}
"""Name -> module and function that loads it; a name that ends in a colon is followed by a detail of the user's."""
FACES = "faces:"
"""Begins the name of a set of faces, which is loaded by :func:`nar_hw.faces.data.load_faces`."""
ROOT_VARIABLE = "NAR_HW_DATA"
"""Environment variable that names the folder of downloaded data sets."""


def load_data(name: str, *, root: str | Path | None = None, seed: int = 0, download: bool = False) -> ImageData:
    """The data set called ``name``, split.

    The splits are disjoint, have every class in its proportion, and depend on the seed only. The test split is the official
    one where there is one. digits: 70/10/20; cifar10, cifar100, fashion-mnist: 90/10 of the official training images, and the
    official test images; ``folder:PATH[@[CROP/]SIZE]`` (in memory): see :mod:`nar_hw.data.folder`; ``stream:PATH[@CROP[/SIZE]]``
    (read when needed): see :mod:`nar_hw.data.stream`; ``fake:CxHxWxclasses``: 70/10/20. Each may be followed by ``,mean`` or
    ``,pixel-mean``: pixels in [0, 255] of which the mean of the channel or of the pixel is subtracted, and no more.

    Args:
        name: a key of :data:`DATA_SETS`, with its detail behind the colon where it ends in one.
        root: folder of the downloaded sets; by default what NAR_HW_DATA names, else ``.data``.
        seed: decides the splits (and the images of a fake set).
        download: fetch cifar10, cifar100 or fashion-mnist into ``root`` where it is absent.

    Raises:
        UnknownNameError: there is no such data set.
        DataError: the images are absent or cannot be used.
    """
    base, comma, subtracted = name.rpartition(",")
    if comma and subtracted in (MEAN, PIXEL_MEAN):
        return subtracting(load_data(base, root=root, seed=seed, download=download), name, subtracted)
    key, colon, detail = name.partition(":")
    if key + colon == FACES:
        raise DataError(f"{name!r} holds identities, not classes: load it with nar_hw.faces.data.load_faces")
    if key + colon not in DATA_SETS:
        raise unknown_name("data set", name, (*DATA_SETS, FACES))
    module, function = DATA_SETS[key + colon].split(":")
    load: Callable[..., ImageData] = getattr(import_module(module), function)
    if not 0 <= seed < 2**32:
        raise DataError(f"0 <= seed < 2**32 must hold, but got {seed}")
    return load(name, detail, root=data_root(root), seed=seed, download=download)


def data_root(root: str | Path | None = None) -> Path:
    """The folder of downloaded data sets: ``root``, else what NAR_HW_DATA names, else ``.data``."""
    return expanded(root or os.environ.get(ROOT_VARIABLE) or ".data")
