"""CIFAR-10, CIFAR-100 and Fashion-MNIST, read (and on request downloaded) by torchvision."""

from pathlib import Path
from typing import Any

import numpy as np

from nar_hw.data.base import Augmentation, ImageData, Pool, assemble
from nar_hw.errors import DataError

READERS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion-mnist": "FashionMNIST"}


def load(name: str, detail: str, *, root: Path, seed: int, download: bool) -> ImageData:
    """The named set: official test images, the training images split 90/10 into train and valid.

    Raises:
        DataError: the files are absent or damaged, or the download failed.
    """
    import torchvision

    # torchvision's CIFAR readers unpickle the official batches, after checking their MD5: the only pickles nar_hw reads.
    reader = getattr(torchvision.datasets, READERS[name])
    try:
        train, test = (reader(root, train=train, download=download) for train in (True, False))
    except (RuntimeError, OSError) as problem:
        if download:
            raise DataError(f"{name} could not be downloaded to {root}: {_line(problem)}") from problem
        raise DataError(
            f"{name} must lie in {root}, but is not there or is damaged: "
            "name its folder with --data-root or NAR_HW_DATA, or fetch it: nar-hw train --download, load_data(..., download=True)"
        ) from problem
    pool = _pool("train", train)
    return assemble(
        name,
        pool,
        test=_pool("test", test),
        classes=train.classes,
        augmentation=Augmentation(crop_padding=pool.images.shape[-1] // 8, flip=True),
        seed=seed,
    )


def _pool(source: str, dataset: Any) -> Pool:
    images = np.asarray(dataset.data)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)  # (N, H, W[, C]) -> (N, C, H, W)
    return Pool(source=source, images=np.ascontiguousarray(images), labels=np.asarray(dataset.targets, np.int64))


def _line(problem: Exception) -> str:
    return " ".join(str(problem).split())
