"""Made images that a small network can learn in seconds, for tests and dry runs: ``fake:CxHxWxclasses``."""

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nar_hw.data.base import Augmentation, ImageData, Pool, assemble
from nar_hw.errors import DataError

IMAGES_PER_CLASS = 100
MOST_CLASSES = 1000
MOST_VALUES = 2**29
"""Bytes of all images together."""


def load(name: str, detail: str, *, root: Path, seed: int, download: bool) -> ImageData:
    """One hundred images of each class, split 70/10/20: the class's own smooth texture, rolled to a random place, and noise.

    The seed decides textures, places, noise and splits.

    Raises:
        DataError: the name is not ``fake:CxHxWxclasses``.
    """
    match = re.fullmatch("x".join(4 * ["([0-9]{1,6})"]), detail)
    numbers = [int(number) for number in match.groups()] if match else [0]
    if 0 in numbers or not 2 <= numbers[-1] <= MOST_CLASSES or IMAGES_PER_CLASS * math.prod(numbers) > MOST_VALUES:
        raise DataError(
            f"a fake data set must be named fake:CxHxWxclasses with 2 to {MOST_CLASSES} classes of {IMAGES_PER_CLASS} images and "
            f"at most {MOST_VALUES:,} values in all of them, but got {name[:60]!r}: try fake:3x32x32x10"
        )
    channels, height, width, classes = numbers
    rng = np.random.RandomState(seed)
    images = [_class_images(rng, (channels, height, width)) for _ in range(classes)]
    return assemble(
        name,
        Pool(source="all", images=np.concatenate(images), labels=np.repeat(np.arange(classes), IMAGES_PER_CLASS)),
        classes=[f"class{label}" for label in range(classes)],
        augmentation=Augmentation(),
        seed=seed,
    )


def _class_images(rng: np.random.RandomState, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The images (IMAGES_PER_CLASS, C, H, W) of one class."""
    texture = _texture(rng, shape)
    places = np.stack([rng.randint(size, size=IMAGES_PER_CLASS) for size in shape[1:]], axis=1)
    rolled = np.stack([np.roll(texture, place, axis=(1, 2)) for place in places])
    return np.clip(128 + 40 * (rolled + rng.normal(0, 0.5, rolled.shape)), 0, 255).astype(np.uint8)


def _texture(rng: np.random.RandomState, shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Three waves of random direction, length and colour: (C, H, W), mean 0, deviation 1, seamless when rolled."""
    channels, height, width = shape
    rows, columns = np.arange(height)[:, None] / height, np.arange(width)[None] / width
    texture = np.zeros(shape)
    for _ in range(3):
        waves = rng.randint(1, 4, size=2) * rng.choice([-1, 1], size=2)
        phase = 2 * np.pi * (waves[0] * rows + waves[1] * columns + rng.rand(channels, 1, 1))
        texture += rng.normal(size=(channels, 1, 1)) * np.sin(phase)
    deviation = texture.std()
    return texture / deviation if deviation else texture
