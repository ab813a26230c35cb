"""Made identities: a texture each, seen in pose-like views.

    python examples/faces/make_identities.py OUT [--identities 24] [--images 20] [--pixels 32] [--seed 0]

Writes OUT/NAME/NAME_0001.png and so on. An identity is a smooth pattern of colour of its own on one that all share; a view turns,
scales, shifts and squeezes it, changes the light of each colour, mirrors it now and then, and adds noise.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import affine_transform, gaussian_filter


def pattern(rng: np.random.RandomState, pixels: int) -> NDArray[np.float64]:
    """A smooth pattern (3, P, P) of mean 0 and deviation 1, seamless at its borders."""
    smooth = np.stack([gaussian_filter(rng.normal(size=(pixels, pixels)), pixels / 10, mode="wrap") for _ in range(3)])
    return (smooth - smooth.mean()) / smooth.std()


def view(rng: np.random.RandomState, face: NDArray[np.float64]) -> NDArray[np.uint8]:
    """One view (P, P, 3)."""
    pixels = face.shape[-1]
    angle, scale, squeeze = rng.normal(0, 0.1), rng.uniform(0.92, 1.08), rng.uniform(0.9, 1.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([scale, scale / squeeze])
    centre = np.full(2, (pixels - 1) / 2)
    offset = centre - turn @ (centre + rng.normal(0, pixels / 24, 2))
    seen = np.stack([affine_transform(channel, turn, offset, order=1, mode="grid-wrap") for channel in face])
    if rng.rand() < 0.5:
        seen = seen[..., ::-1]
    lit = rng.uniform(0.7, 1.3, (3, 1, 1)) * seen + rng.normal(0, 0.6, (3, 1, 1)) + rng.normal(0, 0.2, seen.shape)
    return np.clip(128 + 40 * lit, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def make(out: Path, *, identities: int, images: int, pixels: int, seed: int) -> None:
    """Write the images, one folder for each identity."""
    rng = np.random.RandomState(seed)
    shared = pattern(np.random.RandomState(0), pixels)
    for number in range(identities):
        name = f"id{seed}_{number:04d}"
        (out / name).mkdir(parents=True)
        face = shared + pattern(rng, pixels)
        for place in range(1, images + 1):
            Image.fromarray(view(rng, face)).save(out / name / f"{name}_{place:04d}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--identities", type=int, default=24)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    make(asked.out, identities=asked.identities, images=asked.images, pixels=asked.pixels, seed=asked.seed)
