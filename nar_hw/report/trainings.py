"""Trainings side by side as one HTML page: accuracies, curves, first-layer filters, examples and mistakes.

These are the figures 1 and 5 to 8 of Zhai, Going Deeper on the Tiny ImageNet Challenge. Images are (C, H, W) in [0, 1].
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nar_hw.report import words
from nar_hw.report.charts import Chart, Point, Series, chart
from nar_hw.report.page import template
from nar_hw.tasks.base import common_metric
from nar_hw.training.child import Child
from nar_hw.training.result import EpochLog

MOST = 8
"""Trainings that have a colour of their own."""
EPOCHS = 4
"""At which filters are shown."""
COLUMNS = 8

Image = NDArray[np.float32]


class Mistake(NamedTuple):
    """An image that a network takes for something else."""

    image: Image
    label: str
    prediction: str
    chance: float
    """The probability that it gives its prediction."""


class Examples(NamedTuple):
    """Training images of some classes of a data set."""

    data: str
    classes: Mapping[str, Sequence[Image]]


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training, as far as its folder and its data say."""

    folder: Path
    child: Child
    curve: tuple[EpochLog, ...]
    filters: Mapping[int, NDArray[np.float32]]
    """Epoch -> weights (N, C, k, k) of the first convolution."""
    mistakes: tuple[Mistake, ...] = ()
    """The surest first."""
    wrong: int | None = None
    """How many test images are taken for something else; None where they could not be read."""
    left_out: str = ""
    """Why."""

    @property
    def name(self) -> str:
        """Its folder."""
        return str(self.folder)


def render_trainings(trainings: Sequence[Training], examples: Sequence[Examples]) -> str:
    """The page as text."""
    rows = [
        {
            "number": number,
            "name": item.name,
            "network": item.child.model.name,
            "params": f"{item.child.params:,}",
            "flops": words.ABSENT if item.child.flops is None else f"{item.child.flops:,}",
            "epochs": len(item.curve) or words.ABSENT,
            "loss": f"{item.curve[-1].loss:.3f}" if item.curve else words.ABSENT,
            "train": words.percent(item.curve[-1].train_accuracy) if item.curve else words.ABSENT,
            **{split: words.percent(item.child.accuracy.get(split)) for split in ("valid", "test")},
            "top5": words.percent(item.child.top5.get("test")),
        }
        for number, item in enumerate(trainings)
    ]
    pictures = [
        {
            "name": item.name,
            "filters": [(epoch, _png(filters_picture(weights))) for epoch, weights in shown_epochs(item.filters)],
            "mistakes": [
                (_png(_upright(one.image)), one.label, one.prediction, words.percent(one.chance)) for one in item.mistakes
            ],
            "wrong": item.wrong,
            "left_out": item.left_out,
        }
        for item in trainings
    ]
    grids = [
        {
            "data": item.data,
            "classes": [(name, [_png(_upright(image)) for image in images]) for name, images in item.classes.items()],
        }
        for item in examples
    ]
    metric = common_metric(item.child.metric for item in trainings)
    charts = [
        one
        for key, title, label, factor in (
            ("loss", "Training loss", "loss", 1.0),
            ("valid_accuracy", f"Validation {metric}", f"{metric} (%)", 100.0),
            ("train_accuracy", f"Training {metric}, while it is learned", f"{metric} (%)", 100.0),
        )
        if (one := overlaid(trainings, key, title, label, factor)) is not None
    ]
    text = template("trainings.html").render(
        rows=rows, charts=charts, pictures=pictures, grids=grids, colours=MOST, metric=metric
    )
    return text.encode("utf-8", "replace").decode("utf-8")


def overlaid(trainings: Sequence[Training], key: str, title: str, label: str, factor: float) -> Chart | None:
    """One curve of each training that has a history, or None."""
    series = [
        Series(
            label=item.name,
            points=tuple(
                Point(log.epoch, factor * getattr(log, key), f"{item.name}, epoch {log.epoch}: {factor * getattr(log, key):.4g}")
                for log in item.curve
            ),
            kind=f"run{number}",
            shape="dot" if len(item.curve) < 100 else None,
            line=True,
        )
        for number, item in enumerate(trainings)
        if item.curve
    ]
    if not series:
        return None
    ends = ", ".join(f"{item.label} ends at {item.points[-1].y:.4g}" for item in series)
    name = f"trainings-{key.replace('_', '-')}"
    return chart(name, title, f"{title} by epoch: {ends}.", series, x_label="epoch", y_label=label, whole_x=True)


def shown_epochs(filters: Mapping[int, NDArray[np.float32]]) -> list[tuple[int, NDArray[np.float32]]]:
    """At most EPOCHS of those kept: the first, the last, and some between them, as evenly as it goes."""
    items = list(filters.items())
    chosen = np.linspace(0, len(items) - 1, min(EPOCHS, len(items))).round().astype(int).tolist()
    return [items[place] for place in chosen]


def filters_picture(weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Filters (N, C, k, k) side by side, each stretched to its own greatest weight around grey: (H, W, 3).

    Of other than three channels, their mean.
    """
    if weights.shape[1] != 3:
        weights = weights.mean(1, keepdims=True).repeat(3, 1)
    scale = np.abs(weights).max((1, 2, 3), keepdims=True)
    pixels = 0.5 + 0.5 * weights / np.maximum(scale, 1e-12)  # (N, 3, k, k) in [0, 1]
    rows, side = -(-len(pixels) // COLUMNS), pixels.shape[-1] + 1
    canvas = np.ones((rows * side - 1, COLUMNS * side - 1, 3), np.float32)
    for place, image in enumerate(pixels):
        top, left = side * (place // COLUMNS), side * (place % COLUMNS)
        canvas[top : top + side - 1, left : left + side - 1] = image.transpose(1, 2, 0)
    return _bytes(canvas)


def _upright(image: Image) -> NDArray[np.uint8]:
    """(C, H, W) in [0, 1] -> (H, W, 3), one channel as grey."""
    return _bytes(image.repeat(3 // len(image), 0).transpose(1, 2, 0))


def _bytes(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    whole: NDArray[np.uint8] = np.rint(255 * pixels.clip(0, 1)).astype(np.uint8)
    return whole


def _png(pixels: NDArray[np.uint8]) -> str:
    """(H, W, 3) as the base64 text of a PNG."""
    from PIL import Image as Pillow

    content = io.BytesIO()
    Pillow.fromarray(pixels).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()
