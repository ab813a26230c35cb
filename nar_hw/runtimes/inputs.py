"""What goes into a runtime: images in batches of its size, and the network as the kind of file that it reads.

Shape legend: images (B, C, H, W) float32, outputs (B, D) float32, all that a network gives for an image.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nar_hw.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

Images = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float32]
Shape = tuple[int, int, int]


def preset_images(batch: int, input_shape: Shape) -> Images:
    """The random images (batch, C, H, W) on which every runtime is timed."""
    return np.random.default_rng(0).standard_normal((batch, *input_shape), dtype=np.float32)


def in_batches(infer: Callable[[Images], Images], images: Images, batch: int, input_shape: Shape) -> Images:
    """The outputs of ``infer``, which takes exactly ``batch`` images at a time, for any number of images.

    The last batch is filled up with zeros whose outputs are dropped. Raises ModelError for images of another shape.
    """
    if images.ndim != 4 or images.shape[1:] != input_shape or len(images) == 0:
        wanted = ", ".join(map(str, input_shape))
        raise ModelError(f"images must have the shape (B, {wanted}) with B > 0, but got {images.shape}")
    images = np.ascontiguousarray(images, dtype=np.float32)
    if len(images) == batch:
        return infer(images)
    outputs = []
    for start in range(0, len(images), batch):
        chunk = images[start : start + batch]
        if missing := batch - len(chunk):
            chunk = np.concatenate([chunk, np.zeros((missing, *input_shape), dtype=np.float32)])
        outputs.append(infer(chunk)[: batch - missing])
    return np.concatenate(outputs)


def onnx_file(network: "nn.Module | Path", input_shape: Shape, batch: int, folder: Path) -> Path:
    """``network`` as an ONNX file: itself, or a module exported into ``folder``. Raises ModelError when it does not exist."""
    if isinstance(network, Path):
        if not network.is_file():
            raise ModelError(f"ONNX file {network} does not exist")
        return network
    from nar_hw.export.onnx import export_onnx  # pulls in onnx, which a file does not need

    path = folder / "network.onnx"
    export_onnx(network, path, input_shape=input_shape, batch=batch)
    return path
