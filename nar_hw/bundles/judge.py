"""Whether a file computes what the network computes in torch: the comparison that every file of a bundle has to pass.

Shape legend: images (N, C, H, W), outputs (N, D): D scores, one per class, or all D numbers of the network's outputs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nar_hw.bundles.manifest import Output
from nar_hw.errors import DataError, ExportError
from nar_hw.export.onnx import Images, compare, run_torch
from nar_hw.space.outputs import check_outputs

TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 5e-2}
"""Precision -> largest error, as a share of the largest absolute output; int8 is judged by accuracy, or by `LEAST_COSINE`."""
COMPILED_FP32 = 1e-4
"""The same for fp32 in a compiled file: compilers choose other convolution algorithms than torch."""
LEAST_COSINE = 0.98
"""Of int8 embeddings with torch's, on the average."""


class BundleImages(NamedTuple):
    """Images of the task (N, C, H, W), normalised, by which a bundle's files are judged and made."""

    validation: Images | None = None
    """Every file is compared with torch on them, and its accuracy is noted."""
    labels: NDArray[np.int64] | None = None
    """Their classes (N,)."""
    calibration: Images | None = None
    """Of the training; needed for int8."""


def check_images(input_shape: tuple[int, int, int], count: int = 2) -> Images:
    """The random images (count, C, H, W) whose outputs every bundle keeps, the same on every machine."""
    size = count * math.prod(input_shape)
    noise = np.random.RandomState(0).random_sample(size)  # its stream is frozen, unlike default_rng's
    return (4 * noise - 2).astype(np.float32).reshape(count, *input_shape)


def accuracy(outputs: Images, labels: NDArray[np.int64]) -> float:
    """The share of outputs (N, classes) whose largest entry is the label (N,)."""
    return float((outputs.argmax(axis=1) == labels).mean())


def cosine(outputs: Images, reference: Images) -> float:
    """The mean cosine similarity of embeddings (N, D)."""
    lengths = np.linalg.norm(outputs, axis=1) * np.linalg.norm(reference, axis=1)
    return float(np.mean((outputs * reference).sum(axis=1) / np.maximum(lengths, 1e-12)))


def split(outputs: Images, shapes: Sequence[tuple[int, ...]]) -> list[Images]:
    """The outputs (N, ``math.prod(shape)``) of which (N, D) are put together."""
    return np.split(outputs, np.cumsum([math.prod(shape) for shape in shapes])[:-1], axis=1)


def compared(outputs: Images, reference: Images, known: Sequence[Output], *, tolerance: float) -> dict[str, float]:
    """How far ``outputs`` are from ``reference``, as `compare` says of the output that is farthest by its own scale.

    Raises ExportError beyond ``tolerance`` x the scale of any.
    """
    if outputs.shape != reference.shape:
        raise ExportError(f"an exported network must give outputs of shape {reference.shape}, but gives {outputs.shape}")
    shapes = [output.shape for output in known]
    found = []
    for output, part, wanted in zip(known, split(outputs, shapes), split(reference, shapes), strict=True):
        try:
            found.append(compare(part, wanted, tolerance=tolerance, scale=output.scale))
        except ExportError as problem:
            raise problem if len(known) == 1 else ExportError(f"{output.name}: {problem}") from problem
    return max(found, key=lambda item: item["max_abs_error"] / max(item["reference_scale"], 1e-30))


class Judge:
    """Compares files with torch: on `check_images` and, where there are some, on the validation images."""

    def __init__(self, network: nn.Module, input_shape: tuple[int, int, int], classes: int, given: BundleImages) -> None:
        """``classes``: how many; 0 for a network that gives embeddings."""
        _check_given(input_shape, classes, given)
        checks = check_images(input_shape)
        self._images = [checks] if given.validation is None else [checks, given.validation]
        self._labels, self._classes = given.labels, classes
        self._reference = run_torch(network, *self._images)
        shapes = check_outputs(network, input_shape, self._reference.shape[1], trained=False, structured=True)
        if classes and shapes != {"output": (classes,)}:
            raise DataError(f"a classifier must give one tensor of one output per class, ({classes},), but gives {shapes}")
        self.check_outputs = tuple(map(tuple, self._reference[: len(checks)].astype(float).tolist()))
        parts = zip(shapes.items(), split(self._reference, list(shapes.values())), strict=True)
        self.outputs = tuple(Output(name=name, shape=shape, scale=float(np.abs(part).max())) for (name, shape), part in parts)
        self.embeds = not classes and [len(shape) for shape in shapes.values()] == [1]
        self.accuracy = self._accuracy(self._reference)

    def _accuracy(self, outputs: Images) -> float | None:
        return None if self._labels is None else accuracy(outputs[-len(self._labels) :], self._labels)

    def not_run(self, tolerance: float | None) -> dict[str, Any]:
        """The same for a file that cannot be run here: unknown, but for what it is to be judged by."""
        scale = max(output.scale or 0.0 for output in self.outputs)
        unknown = dict.fromkeys(("accuracy", "accuracy_delta", "cosine", "max_abs_error"))
        return {**unknown, "reference_scale": scale, "tolerance": None if tolerance is None else tolerance * scale}

    def __call__(
        self, run: Callable[[Images], Images], precision: str, *, tolerance: float | None, max_drop: float = math.inf
    ) -> dict[str, Any]:
        """The numbers of a file for the manifest. Raises ExportError when it is not good enough.

        Args:
            run: what the file computes.
            precision: for messages.
            tolerance: largest error, as a share of the largest absolute value of an output; None when only the task judges.
            max_drop: by how much it may be less accurate than torch.
        """
        outputs = np.concatenate([run(images) for images in self._images])
        try:
            found = compared(outputs, self._reference, self.outputs, tolerance=math.inf if tolerance is None else tolerance)
        except ExportError as problem:
            raise ExportError(f"{precision}: {problem}") from problem
        reached = self._accuracy(outputs)
        delta = None if reached is None or self.accuracy is None else reached - self.accuracy
        if delta is not None and self.accuracy is not None and delta < -max_drop:
            raise ExportError(
                f"{precision} may lose at most {100 * max_drop:.1f} points of accuracy, but falls from "
                f"{100 * self.accuracy:.1f} % to {100 * (self.accuracy + delta):.1f} %: use other calibration images or another "
                "calibration"
            )
        alike = None
        if not self._classes:
            shapes = [output.shape for output in self.outputs]
            alike = min(map(cosine, split(outputs, shapes), split(self._reference, shapes)))
        if alike is not None and tolerance is None and alike < LEAST_COSINE:
            raise ExportError(
                f"{precision}: embeddings must have a cosine similarity of at least {LEAST_COSINE} with torch's on the average, "
                f"but have {alike:.3f}: use other calibration images or another calibration"
            )
        judged = {**found, "tolerance": None if tolerance is None else found["tolerance"]}
        return {"accuracy": reached, "accuracy_delta": delta, "cosine": alike, **judged}


def _check_given(input_shape: tuple[int, int, int], classes: int, given: BundleImages) -> None:
    images, labels = given.validation, given.labels
    if classes and (images is None) != (labels is None):
        raise DataError("validation images and labels must be given together")
    if not classes and labels is not None:
        raise DataError(f"a network without classes takes no labels, but got {len(labels)}: leave them out")
    if images is None:
        return
    if images.ndim != 4 or images.shape[1:] != input_shape or images.dtype != np.float32 or len(images) == 0:
        raise DataError(f"validation images must be float32 (N, {input_shape}), N > 0, but are {images.dtype} {images.shape}")
    if labels is not None and (labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= classes):
        raise DataError(f"labels must be {len(images)} numbers from 0 to {classes - 1}, but have shape {labels.shape}")
