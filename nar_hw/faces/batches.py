"""Faces as normalised batches, and their embeddings.

Shape legend: N images of a split, B of a batch, S pixels a side, D embedding size.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nar_hw.data.loader import Batch
from nar_hw.faces.data import MEAN, STD, FaceSplit
from nar_hw.tasks.base import evaluating

AHEAD = 2
"""Batches that are read while others are computed."""


def batches(split: FaceSplit, chunks: Sequence[Tensor], device: torch.device) -> Iterator[Batch]:
    """Images (B, 3, S, S), normalised, and labels (B,) at the positions of each of ``chunks``."""
    mean, std = (255 * torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (MEAN, STD))
    scale, shift = (factor.float().to(device) for factor in (1 / std, -mean / std))
    waiting = iter(chunk.numpy() for chunk in chunks)
    ahead: deque[tuple[NDArray[np.int64], Future[NDArray[np.uint8]]]] = deque()
    with ThreadPoolExecutor(1) as reader:

        def read_on() -> None:
            if (positions := next(waiting, None)) is not None:
                ahead.append((positions, reader.submit(split.__getitem__, positions)))

        for _ in range(AHEAD):
            read_on()
        while ahead:
            positions, images = ahead.popleft()
            read_on()
            pixels = torch.from_numpy(images.result()).to(device)
            yield torch.mul(pixels, scale).add_(shift), torch.from_numpy(split.labels[positions]).to(device)


def embed(model: nn.Module, split: FaceSplit, device: torch.device, *, batch: int = 1000) -> NDArray[np.float32]:
    """(N, D): of each image the mean of its own embedding and its mirror image's."""
    found = []
    with evaluating(model):
        for images, _ in batches(split, torch.split(torch.arange(len(split)), batch), device):
            found.append((model(images).float() + model(images.flip(-1)).float()) / 2)
    embeddings: NDArray[np.float32] = torch.cat(found).cpu().numpy()
    return embeddings
