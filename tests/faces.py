"""Made identities and the files of the field, for tests."""

import importlib.util
import io
import struct
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

EXAMPLE = Path(__file__).parent.parent / "examples" / "faces"
MAGIC = struct.pack("<I", 0xCED7230A)


def example(name: str) -> ModuleType:
    """A script of examples/faces as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_identities(folder: Path, counts: Sequence[int], *, pixels: int = 16, suffix: str = ".png") -> Path:
    """Identities a, b, c, ... with so many random images each."""
    rng = np.random.RandomState(0)
    for number, count in enumerate(counts):
        name = chr(ord("a") + number % 26) * (1 + number // 26)
        (folder / name).mkdir(parents=True)
        for place in range(1, count + 1):
            Image.fromarray(rng.randint(256, size=(pixels, pixels, 3)).astype(np.uint8)).save(
                folder / name / f"{name}_{place:04d}{suffix}"
            )
    return folder


def encoded(value: int, pixels: int = 112) -> bytes:
    """A grey PNG."""
    file = io.BytesIO()
    Image.fromarray(np.full((pixels, pixels, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def record(data: bytes) -> bytes:
    """The RecordIO of ``data``: cut wherever the magic number lies in it at a multiple of four bytes."""
    cuts = [place for place in range(0, len(data) - 3, 4) if data[place : place + 4] == MAGIC]
    pieces = [data[start:stop] for start, stop in zip([0, *(cut + 4 for cut in cuts)], [*cuts, len(data)], strict=True)]
    kinds = [0] if len(pieces) == 1 else [1, *[2] * (len(pieces) - 2), 3]
    out = b""
    for kind, piece in zip(kinds, pieces, strict=True):
        out += MAGIC + struct.pack("<I", kind << 29 | len(piece)) + piece + b"\0" * (-len(piece) % 4)
    return out


def write_records(folder: Path, images: Sequence[tuple[bytes, float]], *, listed_labels: bool = False) -> Path:
    """train.rec and train.idx of (encoded image, label), as InsightFace lays them out; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    identities = sorted({label for _, label in images})
    first, last = len(images) + 1, len(images) + 1 + len(identities)
    bodies = [struct.pack("<IfQQ", 2, 0, 0, 0) + struct.pack("<2f", first, last)]
    for number, (image, label) in enumerate(images, 1):
        header = struct.pack("<IfQQ", 1, 0, number, 0) + struct.pack("<f", label)
        bodies.append((header if listed_labels else struct.pack("<IfQQ", 0, label, number, 0)) + image)
    bodies += [struct.pack("<IfQQ", 2, 0, number, 0) + struct.pack("<2f", 1, 2) for number in range(first, last)]
    content, lines = b"", []
    for key, body in enumerate(bodies):
        lines.append(f"{key}\t{len(content)}\n")
        content += record(body)
    (folder / "train.rec").write_bytes(content)
    (folder / "train.idx").write_text("".join(lines))
    return folder
