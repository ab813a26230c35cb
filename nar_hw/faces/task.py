"""Face recognition: embeddings trained against identities, scored by identification or verification."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nar_hw.data import SplitName
from nar_hw.data.loader import Batch
from nar_hw.data.preprocessing import Preprocessing
from nar_hw.distributed import ranks, share
from nar_hw.errors import DataError
from nar_hw.faces.batches import batches, embed
from nar_hw.faces.data import FaceData
from nar_hw.faces.heads import FaceHead
from nar_hw.faces.metrics import balanced_accuracy, scores, verification
from nar_hw.faces.pairs import by_identity
from nar_hw.tasks.base import Task, evaluating


class FacesTask(Task):
    """Faces to be embedded so that those of one person are near each other.

    The head, with one centre for each identity, belongs to a training and not to the network, whose output is the embedding.
    """

    head: FaceHead | None
    metric = "verification accuracy"

    def __init__(self, data: FaceData, device: str | torch.device = "cpu") -> None:
        self.data, self.name = data, data.name
        self.device = torch.device(device)
        self.head = None

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
    def preprocessing(self) -> Preprocessing:
        """Mean and standard deviation of the pixels; an embedding has no classes."""
        return Preprocessing(mean=self.data.mean, std=self.data.std, classes=tuple(self.data.classes))

    def size(self, split: SplitName) -> int:
        """How many images a split has."""
        return len(self.data.split(split))

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
        for (images, labels), mirrored in zip(batches(split, chunks, self.device), mirrors, strict=True):
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
        return batches(part, torch.split(order, batch), self.device)

    def evaluate(self, model: nn.Module, split: SplitName, *, batch: int = 1000) -> float:
        """Verification where the split has pairs, else how often the nearest centre of the head is the identity's."""
        part = self.data.split(split)
        if part.pairs is not None:
            embeddings, pairs = embed(model, part, self.device, batch=batch), part.pairs
            values = scores(embeddings[pairs.first], embeddings[pairs.second], self.data.config.distance)
            return verification(values, pairs.same, pairs.folds).accuracy
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        with evaluating(model):
            for images, labels in self.eval_batches(split, batch):
                right += self.correct(model(images), labels)
        return int(right) / len(part)

    @property
    def _head(self) -> FaceHead:
        if self.head is None:
            raise DataError(
                "identities must be learned before they can be told, but this task has no head: train a network first"
            )
        return self.head
