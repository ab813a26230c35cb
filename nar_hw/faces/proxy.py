"""The NAR paper's proxy set (4.1.1): a few images each of some identities of a large set, on which a search is affordable."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from nar_hw.errors import DataError
from nar_hw.faces.data import labelled
from nar_hw.faces.images import Encoded
from nar_hw.faces.pairs import by_identity
from nar_hw.files import atomic_folder, write_json
from nar_hw.locks import one_writer

LISTING = "proxy.json"


@one_writer(whole=True)
def make_proxy(
    source: Path, out: Path, *, identities: int, images: int, valid: int, test_identities: int, seed: int = 0
) -> dict[str, Any]:
    """Copy ``images`` images of each of ``identities`` to ``out``/train and, ``valid`` of them, to ``out``/valid.

    ``test_identities`` others go to ``out``/test. ``out``/proxy.json lists what was taken and which identities are too small.

    Args:
        source: identities' folders, or train.rec and train.idx.
        out: a folder that does not exist yet.
        seed: decides what is taken.

    Returns:
        The content of proxy.json.

    Raises:
        DataError: there are too few identities with that many images, or ``out`` exists.
    """
    if not 1 <= valid < images:
        raise DataError(f"1 <= valid < images must hold for a proxy, but got (valid={valid}, images={images})")
    if identities < 2 or test_identities < 2:
        raise DataError(
            f"a proxy must have two or more identities to learn and to test, but got {identities} and {test_identities}"
        )
    if out.exists():
        raise DataError(f"a proxy is written to a new folder, but {out} exists: choose another")
    encoded, labels, names = labelled(source)
    members, counts = by_identity(labels), np.bincount(labels)
    enough, wanted = np.flatnonzero(counts >= images), identities + test_identities
    if len(enough) < wanted:
        raise DataError(
            f"a proxy needs {wanted:,} identities ({identities:,} and {test_identities:,} for testing) of {images} images, but "
            f"{len(enough):,} of {len(counts):,} have as many: ask for fewer identities or images"
        )
    rng = np.random.RandomState(seed)
    chosen = rng.permutation(enough)[:wanted]
    taken: dict[str, dict[str, list[str]]] = {"train": {}, "valid": {}, "test": {}}
    with atomic_folder(out) as folder:
        for place, identity in enumerate(chosen.tolist()):
            picked = rng.permutation(members[identity])[:images]
            parts = {"test": picked} if place >= identities else {"valid": picked[:valid], "train": picked[valid:]}
            for part, positions in parts.items():
                names_here = [_copied(encoded, int(item), folder / part / names[identity]) for item in np.sort(positions)]
                taken[part][names[identity]] = names_here
        listing = {
            "source": str(source),
            "seed": seed,
            "identities": identities,
            "images": images,
            "valid": valid,
            "test_identities": test_identities,
            "found": len(counts),
            "too_small": {names[item]: int(counts[item]) for item in np.flatnonzero(counts < images).tolist()},
            "taken": {part: dict(sorted(items.items())) for part, items in taken.items()},
        }
        write_json(folder / LISTING, listing)
    return listing


def _copied(encoded: Encoded, index: int, folder: Path) -> str:
    """The name of the image in the source, after it was copied to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    image = encoded[index]
    if isinstance(image, Path):
        shutil.copyfile(image, folder / image.name)
        return image.name
    name = f"{index:08d}.jpg"
    (folder / name).write_bytes(image)
    return name
