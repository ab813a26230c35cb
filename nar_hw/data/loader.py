"""A split on the device: no loader processes, whole batches cropped, flipped, cut out and normalised at once.

Shape legend: N images of the split, B of a batch, C channels, H height, W width, P crop padding.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nar_hw.data.base import Augmentation, Split
from nar_hw.distributed import share
from nar_hw.errors import DataError

Batch = tuple[Tensor, Tensor]


class Normalisation:
    """uint8 images (B, C, H, W) on a device -> float32 with mean 0 and deviation 1 per channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        deviation = 255 * torch.tensor(std, dtype=torch.float64)
        self._scale = (1 / deviation).float().view(-1, 1, 1).to(device)
        self._shift = (-255 * torch.tensor(mean, dtype=torch.float64) / deviation).float().view(-1, 1, 1).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """The normalised images."""
        return torch.mul(images, self._scale).add_(self._shift)  # the product of uint8 and float32 is float32


class ColourShifts:
    """Shifts of whole images along the principal components of the training pixels (Krizhevsky et al. 2012, section 4.1)."""

    def __init__(self, covariance: NDArray[np.float64], std: Sequence[float], deviation: float, device: torch.device) -> None:
        variances, components = torch.linalg.eigh(torch.from_numpy(covariance))  # (C,), a component in each column of (C, C)
        self._device = device
        self._steps = deviation * (components * variances).T / torch.tensor(std, dtype=torch.float64)  # (components, C)

    def drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """What is added to the normalised channels of ``count`` images: (count, C, 1, 1)."""
        factors = torch.randn(count, len(self._steps), generator=generator, dtype=torch.float64)
        shifts: Tensor = (factors @ self._steps).float().to(self._device)
        return shifts[:, :, None, None]


class DeviceImages:
    """The images of one split as uint8 on ``device``, delivered as normalised float32 batches (B, C, H, W) with labels (B,)."""

    def __init__(
        self,
        split: Split,
        device: torch.device,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None = None,
        crop: int | None = None,
        mean_image: NDArray[np.float32] | None = None,
    ) -> None:
        """Moves the split to ``device``; with ``augmentation``, padded once for all later crops. Raises DataError.

        With ``crop``, windows of that side are delivered: the centre, or a random one where images are augmented. Of a window the
        same window of ``mean_image`` is subtracted, before it is mirrored (as Caffe does).
        """
        self.augmentation = augmentation or Augmentation()
        if self.augmentation.least_area < 1:
            raise DataError("images in memory are cropped by crop_padding or @CROP/SIZE, but least_area < 1: use stream:PATH")
        self.labels = torch.from_numpy(split.labels).to(device)
        images = torch.from_numpy(split.images).to(device)
        self._height, self._width = images.shape[2:] if crop is None else (crop, crop)
        padding = self.augmentation.crop_padding
        # A view of every crop: indexing it copies each image's window in one kernel.  # (N, C, rows, columns, H, W)
        self._windows = F.pad(images, [padding] * 4).unfold(2, self._height, 1).unfold(3, self._width, 1)
        self._means = None  # what else is subtracted from normalised pixels, at each window: (C, rows, columns, H, W)
        if mean_image is not None:
            centre, deviation = (np.array(values)[:, None, None] for values in (mean, std))
            above = torch.from_numpy((mean_image - centre) / deviation).float().to(device)
            self._means = F.pad(above, [padding] * 4).unfold(1, self._height, 1).unfold(2, self._width, 1)
        self._places = torch.tensor(self._windows.shape[2:4])
        self._normalised = Normalisation(mean, std, device)
        self._shifts = None
        if self.augmentation.pca_colour:
            self._shifts = ColourShifts(split.covariance(), std, self.augmentation.pca_colour, device)

    def __len__(self) -> int:
        return len(self.labels)

    def in_order(self, batch: int) -> Iterator[Batch]:
        """All images in their order, none changed; the last batch may be smaller."""
        row, column = ((self._places - 1) // 2).tolist()
        for start in range(0, len(self), batch):
            images = self._normalised(self._windows[start : start + batch, :, row, column])
            if self._means is not None:
                images.sub_(self._means[:, row, column])
            yield images, self.labels[start : start + batch]

    def ten_views(self, batch: int) -> Iterator[Batch]:
        """All images in their order, of each the four corners and the centre, then the same mirrored: (B, 10, C, H, W).

        Raises DataError when the images are no larger than the windows.
        """
        last_row, last_column = (self._places - 1).tolist()
        if not last_row or not last_column:
            raise DataError("ten views are of windows smaller than the images, but these are as large: use folder:PATH@CROP/SIZE")
        places = [(0, 0), (0, last_column), (last_row, 0), (last_row, last_column), (last_row // 2, last_column // 2)]
        for start in range(0, len(self), batch):
            some = self._windows[start : start + batch]
            views = self._normalised(torch.stack([some[:, :, row, column] for row, column in places], 1))  # (B, 5, C, H, W)
            if self._means is not None:
                views.sub_(torch.stack([self._means[:, row, column] for row, column in places]))
            yield torch.cat([views, views.flip(-1)], 1), self.labels[start : start + batch]

    def shuffled(
        self,
        batch: int,
        generator: torch.Generator,
        *,
        augment: bool,
        drop_last: bool,
        shared: bool = False,
        order: Tensor | None = None,
    ) -> Iterator[Batch]:
        """All images in random order, each changed at random if ``augment``; of each batch this process's share if ``shared``.

        With ``order``, those at its positions and in its order. Every random number of the epoch is drawn at its start from
        ``generator`` (a CPU generator), so the same generator gives the same batches on every device.
        """
        device, how = self.labels.device, self.augmentation
        order = torch.randperm(len(self), generator=generator) if order is None else order
        count = len(order)
        crops = ((self._places - 1) // 2)[:, None].expand(2, count)
        if augment and self._places.max() > 1:
            crops = torch.stack([torch.randint(places, (count,), generator=generator) for places in self._places.tolist()])
        flips = torch.rand(count, generator=generator) < 0.5 if augment and how.flip else None
        holes = self._holes(count, generator) if augment and how.cutout else None
        shifts = self._shifts.drawn(count, generator) if augment and self._shifts is not None else None
        order, crops = order.to(device), crops.to(device)
        flips = None if flips is None else flips.to(device)
        holes = None if holes is None else holes.to(device)
        mine = share(range(batch)) if shared else range(batch)
        for start in range(0, count - batch + 1 if drop_last else count, batch):
            part = slice(start + mine.start, start + batch, mine.step)
            chosen = order[part]
            images = self._windows[chosen, :, crops[0, part], crops[1, part]]  # (B, C, H, W)
            if flips is not None:
                images = torch.where(flips[part, None, None, None], images.flip(-1), images)
            images = self._normalised(images)
            if self._means is not None:
                means = self._means[:, crops[0, part], crops[1, part]].transpose(0, 1)  # (B, C, H, W)
                images.sub_(means if flips is None else torch.where(flips[part, None, None, None], means.flip(-1), means))
            if shifts is not None:
                images.add_(shifts[part])
            if holes is not None:
                images = images.masked_fill_(self._hole_mask(holes[:, part]), 0.0)
            yield images, self.labels[chosen]

    def _holes(self, count: int, generator: torch.Generator) -> Tensor:
        """First row and first column of each image's hole, (2, N); its centre lies anywhere in the image."""
        centres = [torch.randint(size, (count,), generator=generator) for size in (self._height, self._width)]
        return torch.stack(centres) - self.augmentation.cutout // 2

    def _hole_mask(self, holes: Tensor) -> Tensor:
        """Where the holes (2, B) are: (B, 1, H, W)."""
        side, device = self.augmentation.cutout, holes.device
        rows = torch.arange(self._height, device=device)[None, :, None] - holes[0, :, None, None]  # (B, H, 1)
        columns = torch.arange(self._width, device=device)[None, None, :] - holes[1, :, None, None]  # (B, 1, W)
        return ((rows >= 0) & (rows < side) & (columns >= 0) & (columns < side))[:, None]
