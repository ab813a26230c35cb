"""What face embeddings are trained against: one centre for each identity, and a margin that pushes identities apart.

Shape legend: B images of a batch, D embedding size, K identities, S identities that a step compares with.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 16384
"""Identities compared at once where no gradient is needed."""


class FaceHead(nn.Module):
    """The centres of the identities, and the logits by which a training tells them apart.

    arcface: s cos(angle + m) for the identity itself (Deng et al. 2019); cosface: s (cos(angle) - m) (Wang et al. 2018);
    s cos(angle) for all others; softmax: a linear layer. The margin rises in a line from 0 over the first ``warmup`` images.
    With ``sampled`` < 1 each step compares with this share of the identities only, drawn anew, those of the batch always among
    them (PartialFC, An et al. 2021): only their centres have a gradient, and logits and normalised centres take this share of the
    memory; the centres, their gradient and the optimiser's momentum do not (174 MB each for 85,000 identities of 512 numbers).
    Everything is computed in fp32, whatever autocast says.
    """

    seen: Tensor

    def __init__(
        self,
        identities: int,
        embedding: int,
        *,
        kind: Literal["arcface", "cosface", "softmax"] = "arcface",
        margin: float = 0.5,
        scale: float = 64.0,
        warmup: int = 0,
        sampled: float = 1.0,
    ) -> None:
        super().__init__()
        self.kind, self.margin, self.scale, self.warmup, self.sampled = kind, margin, scale, warmup, sampled
        self.weight = nn.Parameter(torch.empty(identities, embedding).normal_(std=0.01))
        """(K, D)."""
        self.bias = nn.Parameter(torch.zeros(identities)) if kind == "softmax" else None
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        """Images trained with so far."""

    def forward(self, embedding: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, S) of embeddings (B, D) with the margin, and the column of each target (B,) in them."""
        margin = self.margin * (self.seen / self.warmup).clamp(max=1.0) if self.warmup else torch.tensor(self.margin)
        self.seen += len(target)
        chosen, column = self._sample(target)
        with torch.autocast(embedding.device.type, enabled=False):
            embedding = embedding.float()
            weight = self.weight if chosen is None else self.weight[chosen]
            if self.kind == "softmax":
                return F.linear(embedding, weight, self.bias), column
            cosine = F.linear(F.normalize(embedding), F.normalize(weight))  # (B, S)
            own = cosine.gather(1, column[:, None])  # (B, 1)
            pushed = own - margin if self.kind == "cosface" else _wider(own, margin.to(own.device))
            return self.scale * cosine.scatter(1, column[:, None], pushed), column

    @torch.no_grad()
    def nearest(self, embedding: Tensor) -> Tensor:
        """The identity (B,) whose centre is nearest to each embedding (B, D), among all and without a margin."""
        with torch.autocast(embedding.device.type, enabled=False):
            embedding = embedding.float() if self.kind == "softmax" else F.normalize(embedding.float())
            best = torch.full((len(embedding),), -math.inf, device=embedding.device)
            found = torch.zeros(len(embedding), dtype=torch.int64, device=embedding.device)
            for start in range(0, len(self.weight), CHUNK):
                weight = self.weight[start : start + CHUNK]
                if self.bias is None:
                    logits = F.linear(embedding, F.normalize(weight))
                else:
                    logits = F.linear(embedding, weight, self.bias[start : start + CHUNK])
                value, place = logits.max(1)
                found = torch.where(value > best, place + start, found)
                best = torch.maximum(value, best)
            return found

    def _sample(self, target: Tensor) -> tuple[Tensor | None, Tensor]:
        """The identities (S,) to compare with, ascending (None: all), and where each target (B,) is among them."""
        if self.sampled == 1:
            return None, target
        order = torch.rand(len(self.weight), device=target.device)
        order[target] = 2.0
        count = max(int(self.sampled * len(self.weight)), len(target))
        chosen = order.topk(min(count, len(self.weight))).indices.sort().values
        return chosen, torch.searchsorted(chosen, target)


def _wider(cosine: Tensor, margin: Tensor) -> Tensor:
    """cos(angle + margin) of cosines (B, 1); beyond an angle of pi - margin, where it would rise again, it goes on falling."""
    sine = (1 - cosine.square()).clamp(min=1e-12).sqrt()  # no infinite slope at an angle of 0
    widened = cosine * margin.cos() - sine * margin.sin()
    return torch.where(cosine > -margin.cos(), widened, cosine - margin.sin() * margin)
