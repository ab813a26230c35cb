"""The 1,797 handwritten digits that come with scikit-learn: 1x8x8, 10 classes, no download."""

from pathlib import Path

import numpy as np

from nar_hw.data.base import Augmentation, ImageData, Pool, assemble


def load(name: str, detail: str, *, root: Path, seed: int, download: bool) -> ImageData:
    """The digits, split 70/10/20."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    levels = digits.images.astype(np.int64)[:, None]  # (N, 1, 8, 8), 0..16
    # Integer arithmetic: floating-point rounding of 255/16 could differ between machines.
    images = ((levels * 255 + 8) // 16).astype(np.uint8)
    return assemble(
        name,
        Pool(source="all", images=images, labels=digits.target.astype(np.int64)),
        classes=[str(digit) for digit in range(10)],
        augmentation=Augmentation(crop_padding=1),
        seed=seed,
    )
