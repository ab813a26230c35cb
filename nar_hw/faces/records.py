"""InsightFace's training records, read without mxnet: ``train.rec`` (RecordIO) with ``train.idx``.

A record is a magic number, a word with 3 bits of "part of a record" and 29 of length, and the data, padded to 4 bytes. Its data
is a header (flag, label, id, id2), ``flag`` further labels if there are any, and an encoded image. Record 0 tells with two
labels (first, last) that keys 1..first-1 are images; those from first on list the identities' ranges and are not needed. Files
of mxnet's im2rec have no such record: their record 0 is an image.
"""

import mmap
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nar_hw.errors import DataError

MAGIC = 0xCED7230A
HEADER = struct.Struct("<IfQQ")
WORDS = struct.Struct("<II")


class Records:
    """The images of a .rec file, as their encoded bytes."""

    def __init__(self, path: Path) -> None:
        """Reads the index and every header of ``path``. Raises DataError when a file is absent or damaged."""
        self.path = path
        try:
            lines = path.with_suffix(".idx").read_text(encoding="ascii").split("\n")
            offsets = {int(key): int(offset) for key, offset in (line.split() for line in lines if line)}
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        except FileNotFoundError as problem:
            raise DataError(f"a record file needs its index beside it, but {problem.filename} does not exist") from None
        except ValueError:
            raise DataError(
                f"{path.with_suffix('.idx')} must hold lines of a key and an offset, but does not: it is damaged"
            ) from None
        keys = sorted(offsets)
        if keys and keys[0] == 0 and HEADER.unpack_from(self._head(offsets[0]))[0] > 0:  # no image has labels beside its own
            labels = self._labels(offsets[0])
            keys = [key for key in keys[1:] if len(labels) < 2 or key < int(labels[0])]
        if not keys:
            raise DataError(f"{path} must hold images, but its index lists none")
        self._offsets = [offsets[key] for key in keys]
        self.labels: NDArray[np.int64] = np.array([int(self._labels(offset)[0]) for offset in self._offsets], np.int64)
        """Identity of each image, as numbered in the file."""

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> bytes:
        data = self._read(self._offsets[index])
        (flag, *_) = HEADER.unpack_from(data)
        return data[HEADER.size + 4 * flag :]

    def name(self, index: int) -> str:
        """The file and the position."""
        return f"{self.path} at byte {self._offsets[index]}"

    def _labels(self, offset: int) -> NDArray[np.float32]:
        """The labels, at least one, of the record at ``offset``; the image is not read."""
        flag, label, _, _ = HEADER.unpack(self._head(offset))
        if HEADER.size + 4 * flag > self._length(offset)[1]:
            raise self._damaged(offset)
        listed = np.frombuffer(self._bytes(offset + WORDS.size + HEADER.size, 4 * flag), np.float32)
        labels = listed if flag else np.array([label], np.float32)
        if not np.isfinite(labels[0]):
            raise self._damaged(offset)
        return labels

    def _head(self, offset: int) -> bytes:
        data = self._bytes(offset + WORDS.size, min(self._length(offset)[1], HEADER.size))
        if len(data) < HEADER.size:
            raise self._damaged(offset)
        return data

    def _read(self, offset: int) -> bytes:
        """The data of a record. Where it held the magic number it was cut there, and the number left out."""
        data, part = b"", 0
        while True:
            part, length = self._length(offset)
            data += self._bytes(offset + WORDS.size, length)
            if part in (0, 3):
                return data
            data += struct.pack("<I", MAGIC)
            offset += WORDS.size + length + -length % 4

    def _length(self, offset: int) -> tuple[int, int]:
        """Which part of a record (0 whole, 1 first, 2 middle, 3 last) is at ``offset``, and its length."""
        magic, word = WORDS.unpack(self._bytes(offset, WORDS.size))
        if magic != MAGIC:
            raise self._damaged(offset)
        return word >> 29, word & (1 << 29) - 1

    def _bytes(self, offset: int, count: int) -> bytes:
        data = self._data[offset : offset + count]
        if len(data) != count:
            raise self._damaged(offset)
        return data

    def _damaged(self, offset: int) -> DataError:
        return DataError(f"{self.path} must hold a record at byte {offset}, but does not: it is truncated or not of its index")
