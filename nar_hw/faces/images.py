"""Face images in folders, records and pair files: found, decoded and kept in memory where they fit.

Shape legend: N images, B of a batch, S pixels a side; images are uint8 (3, S, S).
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from nar_hw.data.base import MEMORY_LIMIT_GIB
from nar_hw.data.images import folders_in, images_in, read_image, refused
from nar_hw.errors import DataError

ALIGNED = 112
"""Pixels a side of the field's aligned faces."""


class Encoded(Protocol):
    """A sequence of encoded images: files, or their bytes."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int) -> Path | bytes:
        """A file, or the content of one."""

    def name(self, index: int) -> str:
        """What to call an image in an error."""


class Files:
    """Images in files of their own."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Path:
        return self.paths[index]

    def name(self, index: int) -> str:
        """The path."""
        return str(self.paths[index])


class FaceImages:
    """The images of one source as uint8 (3, S, S).

    They are decoded once and kept where they fit in the memory limit; else every batch is decoded when it is read.
    """

    def __init__(self, encoded: Encoded, *, size: int | None = None) -> None:
        """``size``: what each image is brought to (scaled until it covers the square, its centre cut out); None: all are 112x112.

        Raises:
            DataError: images cannot be read, or without ``size`` are not 112x112; says how many. (Of a source that does not
                fit in memory, this is known of an image when it is read.)
        """
        self._encoded, self._fit = encoded, size is not None
        self.size = size or ALIGNED
        self._workers = ThreadPoolExecutor(os.cpu_count())
        self._kept: NDArray[np.uint8] | None = None
        if len(encoded) * 3 * self.size**2 <= MEMORY_LIMIT_GIB * 2**30:
            self._kept = self._decoded(range(len(encoded)))

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images (B, 3, S, S) at ``indices`` (B,)."""
        return self._decoded(indices.tolist()) if self._kept is None else self._kept[indices]

    def _decoded(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        images = np.empty((len(indices), 3, self.size, self.size), np.uint8)
        unreadable: list[tuple[int, str]] = []
        unfit: list[tuple[int, str]] = []

        def decode(place: int) -> None:
            try:
                colour = read_image(self._encoded[indices[place]])
            except DataError as problem:
                unreadable.append((place, str(problem)))
                return
            if self._fit:
                colour = ImageOps.fit(colour, (self.size, self.size), Image.Resampling.BILINEAR)
            elif colour.size != (self.size, self.size):
                unfit.append((place, f"has {colour.width}x{colour.height}"))
                return
            images[place] = np.asarray(colour).transpose(2, 0, 1)

        for _ in self._workers.map(decode, range(len(indices))):
            pass
        for bad, rule, fix in (
            (unreadable, "every image must be readable", "replace or remove them"),
            (unfit, f"aligned faces must be {self.size}x{self.size}", "align them, or bring all to one size with size=PIXELS"),
        ):
            if bad:
                raise refused(
                    rule, fix, [(self._encoded.name(indices[place]), what) for place, what in sorted(bad)], len(indices)
                )
        return images


def identity_folders(folder: Path, *, at_least: int = 2) -> dict[str, list[Path]]:
    """Name of an identity -> its image files, both sorted. Raises DataError when there are fewer than ``at_least`` identities."""
    if not folder.is_dir():
        raise DataError(f"a set of faces must be a folder of identities' folders, but {folder} is none")
    found = {item.name: images_in(item) for item in folders_in(folder)}
    found = {name: files for name, files in found.items() if files}
    if len(found) < at_least:
        raise DataError(
            f"a set of faces must have {at_least} or more identities, one folder of images each, but {folder} has {len(found)}: "
            "name the folder that holds the identities' folders"
        )
    return found
