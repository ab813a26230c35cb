"""Image files: which of a folder's files are images, and their pixels as a viewer shows them.

Only the formats that photographs are kept in are opened, known by their content: other readers of Pillow start programs.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nar_hw.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
MOST_PIXELS = 2**26
"""Of one image, known before it is decoded."""
LITTER = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})
"""Folders that systems make beside images, with copies of them."""
SHOWN = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "La", "CMYK", "YCbCr", "16-bit grey")
"""How pixels may be kept; of others, such as floats, nobody knows which value is white."""


def is_litter(path: Path) -> bool:
    """Whether a file or folder is hidden or a system's."""
    return path.name.startswith(".") or path.name in LITTER


def folders_in(folder: Path) -> list[Path]:
    """The folders in ``folder`` that are not hidden, sorted."""
    return sorted(item for item in folder.iterdir() if item.is_dir() and not is_litter(item))


def images_in(folder: Path) -> list[Path]:
    """The image files below ``folder`` at any depth, in an order that is the same on every system; what is hidden is left out."""
    return sorted(_images_in(folder), key=lambda path: path.parts)


def _images_in(folder: Path) -> Iterator[Path]:
    for item in folder.iterdir():
        if is_litter(item):
            continue
        if item.is_dir():
            if not item.is_symlink():  # which may lead round in a circle
                yield from _images_in(item)
        elif item.suffix.lower() in SUFFIXES and item.is_file():
            yield item


def read_image(source: Path | bytes) -> Image.Image:
    """The image in a file, or in the bytes of one, in RGB as a viewer shows it: upright, transparent places white, 16 bits as 8.

    Of an animation, the first frame. Raises DataError, which does not name the source, when it is damaged, of another format,
    too large, or of pixels that no viewer knows how to show.
    """
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(f"has {image.width}x{image.height} pixels, more than {MOST_PIXELS:,}")
            return _shown(ImageOps.exif_transpose(image), image.format)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"has more than {MOST_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise DataError(f"is none of {', '.join(FORMATS)}") from None
    except Exception as problem:  # Pillow raises many kinds for damaged files
        raise DataError(f"is damaged: {type(problem).__name__}: {' '.join(str(problem).split())[:120]}") from problem


def _shown(image: Image.Image, kind: str | None) -> Image.Image:
    # 16-bit grey, which Pillow's own conversion clips at 255; of PNG also as 32 bits, of which 16 are used.
    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PNG"):
        return Image.fromarray(np.rint(np.asarray(image, np.float64) / 257).astype(np.uint8)).convert("RGB")
    if image.mode not in SHOWN:
        raise DataError(f"has pixels of Pillow's mode {image.mode!r}, not {', '.join(SHOWN)}: save it with 8 bits per channel")
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour).convert("RGB")
    return image.convert("RGB")


def refused(rule: str, fix: str, problems: list[tuple[str, str]], total: int) -> DataError:
    """The error that tells how many of ``total`` images break ``rule``, the first three by (name, what is wrong)."""
    some = "; ".join([f"{name} {what}" for name, what in problems[:3]] + (["..."] if len(problems) > 3 else []))
    return DataError(f"{rule}, but {len(problems):,} of {total:,} are not (first {some}): {fix}")
