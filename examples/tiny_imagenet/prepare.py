"""Bring Tiny-ImageNet as it is published into folders of classes.

    python examples/tiny_imagenet/prepare.py tiny-imagenet-200 .data/tiny

Published: train/WNID/images/*.JPEG, and val/images/*.JPEG whose classes are in val/val_annotations.txt (file, WNID and box,
separated by tabs). Made: train/WNID/*.JPEG, val/WNID/*.JPEG and words.txt of these classes. The files are hard links where the
file system can, else copies. The published test images have no labels and are left out.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path


def prepare(source: Path, out: Path) -> dict[str, int]:
    """Number of images of each part. Raises ValueError when ``source`` is not laid out as published."""
    annotations = source / "val" / "val_annotations.txt"
    if not annotations.is_file() or not (source / "train").is_dir():
        raise ValueError(
            f"{source} must hold train/ and val/val_annotations.txt: unpack tiny-imagenet-200.zip and name its folder"
        )
    classes = sorted(folder.name for folder in (source / "train").iterdir() if folder.is_dir())
    files = [
        (image, out / "train" / name / image.name) for name in classes for image in _images(source / "train" / name / "images")
    ]
    for line in annotations.read_text().splitlines():
        image, name, *_ = line.split("\t")
        if name not in classes:
            raise ValueError(f"every class of {annotations} must be in train/, but {name} of {image} is not")
        files.append((source / "val" / "images" / image, out / "val" / name / image))
    for image, target in files:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            _link(image, target)
    words = dict(line.split("\t", 1) for line in (source / "words.txt").read_text().splitlines())
    (out / "words.txt").write_text("".join(f"{name}\t{words[name]}\n" for name in classes))
    return {part: sum(target.is_relative_to(out / part) for _, target in files) for part in ("train", "val")}


def _images(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.JPEG"))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copyfile(source, target)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="tiny-imagenet-200, unpacked")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    try:
        counts = prepare(arguments.source, arguments.out)
    except ValueError as problem:
        sys.exit(str(problem))
    print(f"{arguments.out}: {counts['train']} training and {counts['val']} validation images")


if __name__ == "__main__":
    main()
