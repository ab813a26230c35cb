"""One's own images, read when they are needed: ``stream:PATH``, ``stream:PATH@SIZE`` or ``stream:PATH@CROP/SIZE``.

For folders that do not fit into memory, laid out as in :mod:`nar_hw.data.folder`. Networks see windows of CROP x CROP pixels
(by default 224): in training at random places, sizes and aspects, mirrored at random; else the centre, after the shorter side
was scaled to SIZE (8/7 of CROP). A single number is CROP.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from nar_hw.data.base import Augmentation, ImageData, Part, Unsplit, assemble, channel_covariance, channel_statistics
from nar_hw.data.folder import classes_of, colour, files_of, parsed, parts_of
from nar_hw.data.loader import Batch, ColourShifts, Normalisation
from nar_hw.distributed import share
from nar_hw.errors import DataError

CROP = 224
SAMPLE = 2000
"""Training images, evenly spaced, from which mean and deviation are estimated."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FileSplit(Part):
    """Images in files."""

    files: tuple[str, ...]
    crop: int
    size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, CROP, CROP)."""
        return 3, self.crop, self.crop

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel, estimated from SAMPLE images."""
        return channel_statistics(self._sample())

    def covariance(self) -> NDArray[np.float64]:
        """Of the channels (3, 3), estimated from the same images."""
        return channel_covariance(self._sample())

    def _sample(self) -> NDArray[np.uint8]:
        chosen = np.linspace(0, len(self) - 1, min(SAMPLE, len(self))).round().astype(int).tolist()
        reader = _Reader(self, Augmentation())
        images = np.empty((len(chosen), *self.shape), np.uint8)

        def read(place: int) -> None:
            images[place] = reader.read(chosen[place], None).numpy()

        with ThreadPoolExecutor() as executor:
            for _ in executor.map(read, range(len(chosen))):
                pass
        return images


@dataclass(frozen=True, kw_only=True, eq=False)
class FilePool(Unsplit):
    """Images in files that are still to be split."""

    files: tuple[str, ...]
    crop: int
    size: int

    def take(self, indices: NDArray[np.int64]) -> FileSplit:
        """The split that holds the images at ``indices``."""
        files = tuple(self.files[index] for index in indices.tolist())
        return FileSplit(
            files=files, labels=self.labels[indices], indices=indices, source=self.source, crop=self.crop, size=self.size
        )


def load(name: str, detail: str, *, root: Path, seed: int, download: bool) -> ImageData:
    """The images below PATH, split as :func:`nar_hw.data.folder.load` does.

    Raises DataError: no such folder, no images, or a class that is not in train; an image that cannot be read is found later.
    """
    path, crop, size = parsed(name, detail)
    crop, size = crop or size or CROP, size if crop and size else round((size or CROP) * 8 / 7)
    parts = parts_of(path)
    classes = classes_of(parts[0][1])

    def pool(source: str, folder: Path) -> FilePool:
        files = files_of(source, folder, classes)
        labels = np.array([label for _, label in files], np.int64)
        return FilePool(source=source, labels=labels, files=tuple(str(file) for file, _ in files), crop=crop, size=size)

    first, *held = (pool(*part) for part in parts)
    return assemble(
        name,
        first,
        test=held[0] if held else None,
        valid=held[1] if len(held) > 1 else None,
        classes=classes,
        augmentation=Augmentation(flip=True, least_area=0.08),
        seed=seed,
    )


Item = tuple[int, int | None]
"""Position of an image, and the seed of its changes (None: unchanged)."""


class _Reader(Dataset[Tensor | DataError]):
    """Reads and transforms single images, in a worker or here."""

    def __init__(self, split: FileSplit, augmentation: Augmentation, *, ten_views: bool = False) -> None:
        if augmentation.crop_padding or augmentation.cutout:
            raise DataError(
                "images in files are cropped by least_area and mirrored, but crop_padding or cutout is set: use folder:PATH"
            )
        self._files = split.files
        views = [v2.CenterCrop(split.size), v2.TenCrop(split.crop), torch.stack] if ten_views else [v2.CenterCrop(split.crop)]
        self._whole = v2.Compose([v2.Resize(split.size), *views])
        crop = v2.RandomResizedCrop(split.crop, scale=(augmentation.least_area, 1))
        self._changed = v2.Compose(
            [crop if augmentation.least_area < 1 else self._whole, v2.RandomHorizontalFlip(0.5 if augmentation.flip else 0)]
        )

    def read(self, position: int, seed: int | None) -> Tensor:
        """The image at ``position`` as uint8 (3, CROP, CROP), or ten views of it (10, 3, CROP, CROP)."""
        image = v2.functional.pil_to_tensor(colour(Path(self._files[position])))
        if seed is None:
            return self._whole(image)  # type: ignore[no-any-return]  # torchvision is untyped
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._changed(image)  # type: ignore[no-any-return]

    def __getitem__(self, item: Item) -> Tensor | DataError:
        # An error is told as it is, not wrapped in the traceback of a worker.
        try:
            return self.read(*item)
        except DataError as problem:
            return problem


def _stacked(items: list[Tensor | DataError]) -> Tensor | DataError:
    problem = next((item for item in items if isinstance(item, DataError)), None)
    return problem or torch.stack([item for item in items if isinstance(item, Tensor)])


class StreamedImages:
    """The images of a split in files, read by ``workers`` processes (0: by this one) and normalised on ``device``.

    Every image has a seed of its own for its changes, so that batches do not depend on the number of workers.
    """

    def __init__(
        self,
        split: FileSplit,
        device: torch.device,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        workers: int,
        augmentation: Augmentation | None = None,
    ) -> None:
        augmentation = augmentation or Augmentation()
        self._split, self._reader = split, _Reader(split, augmentation)
        self._labels = torch.from_numpy(split.labels)
        self._device, self._workers = device, workers
        self._normalised = Normalisation(mean, std, device)
        self._shifts = None
        if augmentation.pca_colour:
            self._shifts = ColourShifts(split.covariance(), std, augmentation.pca_colour, device)

    def __len__(self) -> int:
        return len(self._labels)

    def in_order(self, batch: int) -> Iterator[Batch]:
        """All images in their order, none changed; the last batch may be smaller."""
        yield from self._batches(self._unchanged(batch), self._reader)

    def ten_views(self, batch: int) -> Iterator[Batch]:
        """As :meth:`nar_hw.data.loader.DeviceImages.ten_views`, of the central SIZE x SIZE pixels."""
        if self._split.crop == self._split.size:
            raise DataError("ten views are of windows smaller than the images, but these are as large: use stream:PATH@CROP/SIZE")
        yield from self._batches(self._unchanged(batch), _Reader(self._split, Augmentation(), ten_views=True))

    def shuffled(
        self, batch: int, generator: torch.Generator, *, augment: bool, drop_last: bool, shared: bool = False
    ) -> Iterator[Batch]:
        """As :meth:`nar_hw.data.loader.DeviceImages.shuffled`; of a shared batch only this process's share is read."""
        count = len(self)
        order = torch.randperm(count, generator=generator)
        seeds = torch.randint(2**62, (count,), generator=generator)
        drawn = self._shifts.drawn(count, generator) if augment and self._shifts is not None else None
        batches, shifts = [], []
        for part in _parts(range(count - count % batch if drop_last else count), batch):
            mine = torch.tensor(share(part) if shared else part)
            chosen = order[mine].tolist()
            batches.append(list(zip(chosen, seeds[mine].tolist() if augment else [None] * len(chosen), strict=True)))
            shifts.append(0.0 if drawn is None else drawn[mine])
        for shift, (images, labels) in zip(shifts, self._batches(batches, self._reader), strict=True):
            yield images.add_(shift), labels

    def _unchanged(self, batch: int) -> list[list[Item]]:
        return [[(index, None) for index in part] for part in _parts(range(len(self)), batch)]

    def _batches(self, batches: list[list[Item]], reader: _Reader) -> Iterator[Batch]:
        loader = DataLoader(
            reader,
            batch_sampler=batches,
            num_workers=self._workers,
            collate_fn=_stacked,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),
        )
        for batch, images in zip(batches, loader, strict=True):
            if isinstance(images, DataError):
                raise images
            labels = self._labels[[position for position, _ in batch]]
            yield self._normalised(images.to(self._device, non_blocking=True)), labels.to(self._device)


def _parts(items: range, size: int) -> list[range]:
    return [items[start : start + size] for start in range(0, len(items), size)]
