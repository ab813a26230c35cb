"""Bundles for tests: a network of 8x8 images in five classes, unless told otherwise."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nar_hw.bundles.bundle import Arch, BundleImages, ExportConfig, Preprocessing, export_bundle
from nar_hw.bundles.manifest import Latency

SHAPE = (3, 8, 8)
CLASSES = ("ant", "bee", "cat", "dog", "eel")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def exported(
    network: nn.Module,
    out: Path,
    *,
    name: str = "tiny",
    shape: tuple[int, int, int] = SHAPE,
    classes: Sequence[str] = CLASSES,
    operators: tuple[str, ...] = ("conv3x3",) * 4,
    codes: tuple[int, ...] = (0,) * 4,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
    images: Any = None,
    labels: Any = None,
    calibration_images: Any = None,
    latency: Latency = Latency(),
    **config: Any,
) -> Path:
    """A bundle; ``config``: fields of ExportConfig."""
    return export_bundle(
        network,
        out,
        arch=Arch(name=name, input_shape=shape, operators=operators, codes=codes),
        preprocessing=Preprocessing(mean=mean, std=std, classes=tuple(classes)),
        config=ExportConfig(**config),
        images=BundleImages(images, labels, calibration_images),
        latency=latency,
    )
