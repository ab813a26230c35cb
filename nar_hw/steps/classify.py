"""What `nar-hw classify` does, from Python: the likeliest classes of an image by any network, trained child or bundle."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from nar_hw.bundles.manifest import MANIFEST, load_bundle
from nar_hw.data.folder import colour
from nar_hw.data.preprocessing import Preprocessing
from nar_hw.errors import DataError, RunError
from nar_hw.export.dense import convolutionize, multi_scale, overfeat_sides
from nar_hw.export.forms import Form
from nar_hw.export.onnx import open_session, run_session
from nar_hw.models.info import ModelInfo
from nar_hw.models.weights import load_weights
from nar_hw.records import replace
from nar_hw.space.outputs import check_outputs
from nar_hw.training.child import CHILD, Child

MODES = {1: "L", 3: "RGB"}
"""Channels -> Pillow's mode."""
Images = NDArray[np.float32]


class Guess(NamedTuple):
    """A class and how likely it is."""

    name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network with what it needs to know of its images and outputs."""

    infer: Callable[[Images], Images]
    """(1, C, H, W), normalised -> (1, classes), before the softmax."""
    input_shape: tuple[int, int, int]
    preprocessing: Preprocessing
    network: torch.nn.Module | None = None
    """None for a bundle."""
    at_sizes: Callable[[Images], Images] | None = None
    """A whole image (1, C, height, width), normalised -> probabilities (1, classes); see `at_six_sizes`."""

    @classmethod
    def of_weights(cls, info: ModelInfo, weights: Path, preprocessing: Preprocessing) -> Self:
        """A network by name with the weights in a file.

        Raises ModelError when they do not fit, DataError for other numbers of classes or channels, or a network without classes.
        """
        network = info.build()
        load_weights(network, weights, name=f"{info.name} with {info.num_classes} classes")
        return cls._of_network(network, info, preprocessing)

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """A bundle, by its model.onnx in ONNX Runtime, or a trained child. Raises RunError for a folder that is neither."""
        if (folder / MANIFEST).exists():
            bundle = load_bundle(folder).manifest
            session = open_session(folder / "model.onnx")
            about = bundle.preprocessing
            preprocessing = Preprocessing(mean=about.mean, std=about.std, classes=bundle.classes)
            return cls._checked(lambda images: run_session(session, images), bundle.input.shape, preprocessing, str(folder))
        if (folder / CHILD).exists():
            child = Child.load(folder)
            return cls._of_network(child.network(folder), child.model, child.preprocessing)
        raise RunError(f"{folder} must be a bundle or the folder of a trained network, but has neither {MANIFEST} nor {CHILD}")

    @classmethod
    def _of_network(cls, network: torch.nn.Module, info: ModelInfo, preprocessing: Preprocessing) -> Self:
        check_outputs(network, info.input_shape, info.num_classes, trained=False)
        if preprocessing.classes and len(preprocessing.classes) != info.num_classes:
            raise DataError(
                f"there must be a name for each class, but {info.name} has {info.num_classes} and "
                f"{len(preprocessing.classes)} are named"
            )
        network.eval()

        def infer(images: Images) -> Images:
            with torch.no_grad():
                outputs: Images = network(torch.from_numpy(images)).float().numpy()
            return outputs

        return cls._checked(infer, info.input_shape, preprocessing, info.name, network)

    @classmethod
    def _checked(
        cls,
        infer: Callable[[Images], Images],
        input_shape: tuple[int, int, int],
        preprocessing: Preprocessing,
        name: str,
        network: torch.nn.Module | None = None,
    ) -> Self:
        if not preprocessing.classes:
            raise DataError(f"{name} must have classes, but gives embeddings: nar-hw data faces-identify compares those")
        if input_shape[0] not in MODES:
            raise DataError(f"image files have 1 or 3 channels, but {name} takes {input_shape[0]}")
        if len(preprocessing.mean) != input_shape[0]:
            raise DataError(f"mean and std must have {input_shape[0]} numbers for {name}, but have {len(preprocessing.mean)}")
        return cls(infer=infer, input_shape=input_shape, preprocessing=preprocessing, network=network)

    def at_six_sizes(self, form: Form) -> Self:
        """This classifier by OverFeat's rule: all places of the whole image at six sizes, by the network's dense ``form``.

        See `nar_hw.export.dense.multi_scale`. Raises RunError for a bundle, DataError for a network of images that are not
        square, ModelError where it has no such form.
        """
        if self.network is None:
            raise RunError("a bundle says what its files say, but six sizes are asked of the network: name its trained folder")
        _, height, width = self.input_shape
        if height != width:
            raise DataError(f"six sizes are of networks for square images, but this one takes {height}x{width}")
        dense, sides = convolutionize(self.network, self.input_shape, form=form), overfeat_sides(height)

        def at_sizes(images: Images) -> Images:
            with torch.no_grad():
                found: Images = multi_scale(dense, torch.from_numpy(images), sides).numpy()
            return found

        return replace(self, at_sizes=at_sizes)

    def classify(self, path: Path, top: int = 1) -> list[Guess]:
        """The ``top`` likeliest classes of the image in a file, by falling probability. Raises DataError."""
        if not 1 <= top <= len(self.preprocessing.classes):
            raise DataError(f"1 <= top <= {len(self.preprocessing.classes)} (classes) must hold, but got top={top}")
        likely = self._probabilities(path)
        order = np.argsort(-likely, kind="stable")[:top]
        return [Guess(self.preprocessing.classes[index], float(likely[index])) for index in order]

    def _probabilities(self, path: Path) -> NDArray[np.float64]:
        """(classes,)."""
        image = colour(path).convert(MODES[self.input_shape[0]])
        scores = self.infer(self.prepared(image)) if self.at_sizes is None else self.at_sizes(self._normalised(image))
        found: NDArray[np.float64] = np.asarray(scores[0], np.float64)
        if not np.isfinite(found).all():
            raise DataError(f"the scores of {path} must be finite numbers, but are not")
        if self.at_sizes is None:
            found = np.exp(found - found.max())
            found /= found.sum()
        return found

    def prepared(self, image: Image.Image) -> Images:
        """(1, C, H, W): scaled until it covers the network's size, its centre cut out, normalised; as a bundle's README says."""
        _, height, width = self.input_shape
        return self._normalised(ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR))

    def _normalised(self, image: Image.Image) -> Images:
        """As it is: (1, C, height, width)."""
        whole = np.asarray(image, np.float32).reshape(image.height, image.width, self.input_shape[0])
        pixels = whole.transpose(2, 0, 1) / np.float32(255)
        mean, std = (
            np.asarray(values, np.float32)[:, None, None] for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return np.ascontiguousarray((pixels - mean) / std)[None]


def class_names(source: Path | None, count: int) -> tuple[str, ...]:
    """One name a line of a file; without one those of ImageNet for 1,000 classes, else numbers. Raises DataError."""
    if source is not None:
        try:
            names = tuple(line.strip() for line in source.read_text("utf-8").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as problem:
            raise DataError(f"the file of class names must be a text, but {source} cannot be read: {problem}") from None
        if not names:
            raise DataError(f"the file of class names must have one a line, but {source} has none")
        return names
    if count == 1000:
        from torchvision.models import AlexNet_Weights

        return tuple(AlexNet_Weights.DEFAULT.meta["categories"])
    return tuple(map(str, range(count)))


def numbers(text: str, *, name: str) -> tuple[float, ...]:
    """``0.5,0.5,0.5``. Raises DataError."""
    try:
        return tuple(float(item) for item in text.split(","))
    except ValueError:
        raise DataError(f"{name} must be numbers with commas, one for each channel, but is {text[:40]!r}") from None


def usual_normalisation(model: str, channels: int) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation that the network's published weights were trained with: its library's, else ImageNet's.

    Raises DataError for other than 3 channels, of which nobody knows them.
    """
    from nar_hw.models.by_name import usual_normalisation as known

    if channels != 3:
        raise DataError(f"nothing says how images of {channels} channels are normalised: give --mean and --std")
    return known(model)
