"""One number per image: what a study orders images by. A new metric is a function and a line in METRICS.

Shape legend: N images of the set, B of a batch, C channels, H height, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from nar_hw.data import ImageData
from nar_hw.data.loader import Normalisation
from nar_hw.errors import DataError, unknown_name
from nar_hw.proxy.canny import canny
from nar_hw.proxy.perceptual import distances
from nar_hw.proxy.subset import images_of
from nar_hw.tasks import evaluating

AT_ONCE = 16
"""Images whose gradients are in memory together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Some images of a set, as every metric sees them."""

    images: Tensor
    """(B, C, H, W) uint8 on the device."""
    labels: Tensor
    """(B,)."""
    mean_image: Tensor
    """(C, H, W) float32 in [0, 255]: of the whole set."""
    normalised: Normalisation
    network: Callable[[], nn.Module]
    """The network for loss and gradients, on the device; made when it is first asked for."""
    backbone: Callable[[], nn.Module]
    """The network for deep features; likewise."""

    @property
    def rgb(self) -> Tensor:
        """(B, 3, H, W) uint8; grey images have three equal channels. Raises DataError for other numbers of channels."""
        channels = self.images.shape[1]
        if channels not in (1, 3):
            raise DataError(f"colours, edges and deep features are of images with 1 or 3 channels, but these have {channels}")
        return self.images.expand(-1, 3, -1, -1)


def intensity(sample: Sample) -> Tensor:
    """Sum of all pixels."""
    return sample.images.flatten(1).sum(1, dtype=torch.int64)


def colour(sample: Sample) -> Tensor:
    """The mean colour in HSV, in 256 levels each: 65536 hue + 256 saturation + value, so by hue first and value last."""
    red, green, blue = sample.rgb.flatten(2).double().mean(2).unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    saturation = torch.where(value > 0, chroma / value, 0)
    sixths = torch.where(
        value == red,
        (green - blue) / chroma % 6,
        torch.where(value == green, (blue - red) / chroma + 2, (red - green) / chroma + 4),
    )
    hue = torch.where(chroma > 0, sixths / 6, 0)
    ordered: Tensor = 65536 * (255 * hue).round() + 256 * (255 * saturation).round() + value.round()
    return ordered


def edges(sample: Sample) -> Tensor:
    """Sum of a Canny map with the values 0 and 255 (see :mod:`nar_hw.proxy.canny`)."""
    red, green, blue = sample.rgb.int().unbind(1)
    grey = (9798 * red + 19235 * green + 3735 * blue + (1 << 14)) >> 15  # OpenCV's integer luma
    return 255 * canny(grey).flatten(1).sum(1)


def perceptual(sample: Sample) -> Tensor:
    """Distance of deep features to those of the mean image (see :mod:`nar_hw.proxy.perceptual`)."""
    return distances(sample.backbone(), sample.rgb.float(), sample.mean_image.expand(3, -1, -1))


def loss(sample: Sample) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(_logits(sample), sample.labels, reduction="none")


def el2n(sample: Sample) -> Tensor:
    """L2 norm of the error of the probabilities (Paul et al. 2021)."""
    probabilities = _logits(sample).softmax(1)
    norms: Tensor = (probabilities - F.one_hot(sample.labels, probabilities.shape[1])).norm(dim=1)
    return norms


def grand(sample: Sample) -> Tensor:
    """L2 norm of the gradient of the image's loss by all parameters, in eval mode (Paul et al. 2021)."""
    network = sample.network()
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def norm(image: Tensor, label: Tensor) -> Tensor:
        def single(parameters: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(functional_call(network, parameters, (image[None],)), label[None])

        return torch.stack([gradient.square().sum() for gradient in grad(single)(parameters).values()]).sum().sqrt()

    with evaluating(network):
        norms: Tensor = vmap(norm, chunk_size=AT_ONCE)(sample.normalised(sample.images), sample.labels)
    return norms


def _logits(sample: Sample) -> Tensor:
    network = sample.network()
    with evaluating(network):
        logits: Tensor = network(sample.normalised(sample.images))
    return logits


METRICS: dict[str, Callable[[Sample], Tensor]] = {
    "intensity": intensity,
    "colour": colour,
    "edges": edges,
    "perceptual": perceptual,
    "loss": loss,
    "el2n": el2n,
    "grand": grand,
}


def measure(
    name: str,
    data: ImageData,
    *,
    network: Callable[[], nn.Module],
    backbone: Callable[[], nn.Module],
    device: str | torch.device = "cpu",
    batch: int = 256,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """The metric of every training image: (N,).

    Raises:
        UnknownNameError: there is no such metric.
        DataError: the images are not in memory, or the metric of one is not finite.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    train, device = images_of(data), torch.device(device)
    mean_image = torch.from_numpy(train.images.mean(axis=0, dtype=np.float64)).float().to(device)
    normalised = Normalisation(data.mean, data.std, device)
    parts = []
    starts = range(0, len(train), batch)
    for start in starts if progress is None else progress.track(starts, description=f"metric: {name}"):
        part = slice(start, start + batch)
        sample = Sample(
            images=torch.from_numpy(train.images[part]).to(device),
            labels=torch.from_numpy(train.labels[part]).to(device),
            mean_image=mean_image,
            normalised=normalised,
            network=network,
            backbone=backbone,
        )
        parts.append(METRICS[name](sample).double().cpu().numpy())
    values: NDArray[np.float64] = np.concatenate(parts)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise DataError(
            f"a metric must be finite for every image, but {name} is {values[wrong[0]]} for image {wrong[0]} ({len(wrong):,} of "
            f"{len(values):,} are not finite): check its network's weights"
        )
    return values
