"""Face recognition: embeddings trained against identities, scored by identification or verification."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nar_hw.data import SplitName
from nar_hw.data.face_pairs import Pairs, by_identity
from nar_hw.data.faces import FaceData, FaceSplit
from nar_hw.data.loader import Batch
from nar_hw.errors import DataError
from nar_hw.ranks import ranks, share
from nar_hw.tasks.base import Task, evaluating
from nar_hw.tasks.face_heads import FaceHead
from nar_hw.tasks.face_metrics import balanced_accuracy, scores, verification

AHEAD = 2
"""Batches read while others are computed."""


class FacesTask(Task):
    """Faces to be embedded so that those of one person are near each other.

    The head, with one centre for each identity, belongs to a training and not to the network, whose output is the embedding.
    """

    head: FaceHead | None

    def __init__(self, data: FaceData, device: str | torch.device = "cpu") -> None:
        self.data = data
        self.device = torch.device(device)
        self.head = None
        mean, std = (255 * torch.tensor(values, dtype=torch.float64) for values in (data.mean, data.std))
        self._scale, self._shift = ((value).float().view(-1, 1, 1).to(self.device) for value in (1 / std, -mean / std))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(3, S, S)."""
        return self.data.input_shape

    @property
    def num_classes(self) -> int:
        """The size of the embedding."""
        return self.data.config.embedding

    @property
    def record(self) -> dict[str, Any]:
        """Name, seed, options and splits of the data."""
        return self.data.record

    @property
    def train_size(self) -> int:
        """How many training images there are."""
        return len(self.data.train)

    def new_head(self) -> FaceHead:
        """Centres for the identities of the training images."""
        config = self.data.config
        self.head = FaceHead(
            self.data.identities,
            config.embedding,
            kind=config.head,
            margin=config.margin_used,
            scale=config.scale,
            warmup=int(config.margin_warmup * self.train_size / ranks()),
            sampled=config.sampled,
        ).to(self.device)
        return self.head

    def loss(self, output: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy of the head's logits for embeddings (B, D) and identities (B,)."""
        logits, column = self._head(output, target)
        return F.cross_entropy(logits, column, label_smoothing=label_smoothing)

    def correct(self, output: Tensor, target: Tensor) -> Tensor:
        """How many embeddings (B, D) are nearest to the centre of their identity (B,)."""
        return (self._head.nearest(output) == target).sum()

    def accuracy(self, output: Tensor, target: Tensor) -> Tensor:
        """Of a minibatch of validation images, the share identified or, if that is the score, of its pairs told right.

        Pairs of one person and of two count alike; their threshold is the best on the minibatch.
        """
        if self.data.config.score == "identification":
            return super().accuracy(output, target)
        first, second = torch.triu_indices(len(target), len(target), 1, device=target.device)
        same = (target[first] == target[second]).cpu().numpy()
        embeddings = output.float().cpu().numpy()
        values = scores(embeddings[first.cpu().numpy()], embeddings[second.cpu().numpy()], self.data.config.distance)
        return torch.tensor(balanced_accuracy(values, same), device=output.device)

    def train_batches(
        self, batch: int, generator: torch.Generator, *, augment: bool = True, drop_last: bool = True, shared: bool = False
    ) -> Iterator[Batch]:
        """One epoch of the training split, shuffled and, with ``augment``, mirrored at random."""
        split = self.data.train
        order = torch.randperm(len(split), generator=generator)
        flips = torch.rand(len(split), generator=generator) < 0.5 if augment else torch.zeros(len(split), dtype=torch.bool)
        whole = len(split) // batch * batch if drop_last else len(split)
        chunks, mirrors = (torch.split(drawn[:whole], batch) for drawn in (order, flips))
        if shared:
            chunks, mirrors = (tuple(share(chunk) for chunk in parts) for parts in (chunks, mirrors))
        for (images, labels), mirrored in zip(self._batches(split, chunks), mirrors, strict=True):
            yield torch.where(mirrored.to(self.device)[:, None, None, None], images.flip(-1), images), labels

    def eval_batches(self, split: SplitName, batch: int = 1000, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """A split in its order, or shuffled by ``generator``: if verification is the score, identity by identity."""
        part = self.data.split(split)
        order = torch.arange(len(part))
        if generator is not None and self.data.config.score == "verification":
            groups = by_identity(part.labels)
            order = torch.cat([torch.from_numpy(groups[i]) for i in torch.randperm(len(groups), generator=generator).tolist()])
        elif generator is not None:
            order = torch.randperm(len(part), generator=generator)
        yield from self._batches(part, torch.split(order, batch))

    def evaluate(self, model: nn.Module, split: SplitName, *, batch: int = 1000) -> float:
        """Verification where the split has pairs, else how often the nearest centre of the head is the identity's."""
        part = self.data.split(split)
        if part.pairs is not None:
            return verification(*self.compared(model, part, part.pairs, batch=batch), part.pairs.folds).accuracy
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        with evaluating(model):
            for images, labels in self.eval_batches(split, batch):
                right += self.correct(model(images), labels)
        return int(right) / len(part)

    def compared(
        self, model: nn.Module, split: FaceSplit, pairs: Pairs, *, batch: int = 1000
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The score of each pair (P,) and whether it is of one person (P,)."""
        embeddings = self.embeddings(model, split, batch=batch)
        return scores(embeddings[pairs.first], embeddings[pairs.second], self.data.config.distance), pairs.same

    def embeddings(self, model: nn.Module, split: FaceSplit, *, batch: int = 1000) -> NDArray[np.float32]:
        """(N, D): of each image the mean of its own embedding and its mirror image's."""
        found = []
        with evaluating(model):
            for images, _ in self._batches(split, torch.split(torch.arange(len(split)), batch)):
                found.append((model(images).float() + model(images.flip(-1)).float()) / 2)
        return torch.cat(found).cpu().numpy()

    @property
    def _head(self) -> FaceHead:
        if self.head is None:
            raise DataError(
                "identities must be learned before they can be told, but this task has no head: train a network first"
            )
        return self.head

    def _batches(self, split: FaceSplit, chunks: tuple[Tensor, ...]) -> Iterator[Batch]:
        """Normalised images and labels at the positions ``chunks``; those to come are read while one is used."""
        with ThreadPoolExecutor(1) as reader:
            ahead: deque[tuple[NDArray[np.int64], Future[NDArray[np.uint8]]]] = deque()
            for chunk in [*chunks, *[None] * AHEAD]:
                if chunk is not None:
                    ahead.append((chunk.numpy(), reader.submit(split.__getitem__, chunk.numpy())))
                if len(ahead) > AHEAD or (chunk is None and ahead):
                    positions, images = ahead.popleft()
                    pixels = torch.from_numpy(images.result()).to(self.device)
                    yield (
                        torch.mul(pixels, self._scale).add_(self._shift),
                        torch.from_numpy(split.labels[positions]).to(self.device),
                    )
