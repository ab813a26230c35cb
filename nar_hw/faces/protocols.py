"""A face network against the field's test sets: verification of pairs, identification on a gallery."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from nar_hw.faces.batches import embed
from nar_hw.faces.data import FaceSplit
from nar_hw.faces.images import FaceImages, Files, identity_folders
from nar_hw.faces.metrics import FARS, Flags, Floats, Verification, rank_1, scores, tar_at_far, verification
from nar_hw.faces.pairs import load_pairs


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What a verification set says of a network."""

    verification: Verification
    tar: dict[float, float | None]
    """FAR -> TAR; None where there are too few pairs of two persons to tell."""
    scores: Floats
    """(P,)"""
    same: Flags
    """(P,)"""


def verify(
    network: nn.Module,
    pairs: Path,
    *,
    images: Path | None = None,
    size: int,
    distance: Literal["cosine", "l2"] = "cosine",
    device: str = "cpu",
) -> Verified:
    """Verification on a set of pairs (see `nar_hw.faces.pairs.load_pairs`), its images brought to ``size`` pixels a side.

    Raises DataError.
    """
    encoded, compared = load_pairs(pairs, images)
    numbers = np.arange(len(encoded))
    split = FaceSplit(images=FaceImages(encoded, size=size), indices=numbers, labels=numbers, pairs=compared)
    embeddings = embed(network.to(device), split, torch.device(device))
    values = scores(embeddings[compared.first], embeddings[compared.second], distance)
    return Verified(
        verification=verification(values, compared.same, compared.folds),
        tar=tar_at_far(values, compared.same, FARS),
        scores=values,
        same=compared.same,
    )


def identify(network: nn.Module, gallery: Path, probes: Path, *, size: int, device: str = "cpu") -> tuple[float, int, int]:
    """Rank-1 identification in [0, 1] of the faces in ``probes`` among those in ``gallery``, and how many each has.

    Both are folders of identities' folders; an identity has the same name in both. Raises DataError.
    """
    found = [identity_folders(folder, at_least=1) for folder in (gallery, probes)]
    number = {name: index for index, name in enumerate(sorted({*found[0], *found[1]}))}
    embeddings, labels = [], []
    for identities in found:
        files = [file for paths in identities.values() for file in paths]
        whose = np.array([number[name] for name, paths in identities.items() for _ in paths], np.int64)
        split = FaceSplit(images=FaceImages(Files(files), size=size), indices=np.arange(len(files)), labels=whose)
        embeddings.append(embed(network.to(device), split, torch.device(device)))
        labels.append(whose)
    return rank_1(embeddings[0], labels[0], embeddings[1], labels[1]), len(labels[0]), len(labels[1])
