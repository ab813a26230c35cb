"""Runtimes on the CPU whose networks are loaded and run as on a device (`nar_hw.device`)."""

import importlib.util
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from nar_hw.device.visits import Network
from nar_hw.errors import ExportError, ModelError, RuntimeUnavailableError, UserError
from nar_hw.files import Scratch
from nar_hw.records import as_record
from nar_hw.runtimes.base import Images, Runtime, RuntimeConfig
from nar_hw.runtimes.exporting import Deployed, DeviceLayers, Exported, Source
from nar_hw.runtimes.inputs import Weights, onnx_file
from nar_hw.runtimes.onnx_graph import image_shape, one_line, weights, with_precision

if TYPE_CHECKING:
    from torch import nn


class DeviceRuntime(Runtime):
    """One of a device's networks."""

    devices = ("cpu",)
    title: ClassVar[str]  # as its makers write it
    network: ClassVar[type[Network]]
    packages: ClassVar[tuple[str, ...]]  # which must be there
    install: ClassVar[str]  # that they are not, and what mends it
    readme: ClassVar[str]  # `usage` where there is a file for one image

    @classmethod
    def _missing(cls, config: RuntimeConfig) -> str | None:
        return None if all(map(importlib.util.find_spec, cls.packages)) else cls.install

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Its own. Raises RuntimeUnavailableError when it is not installed."""
        try:
            return {cls.name: cls.network.version()}
        except ImportError as problem:
            raise RuntimeUnavailableError(cls.install) from problem

    @classmethod
    def usage(cls, bundle: Deployed) -> str:
        """Where the bundle has its file for one image."""
        return cls.readme if any(item.batch == (1, 1) for item in bundle.exported) else ""

    def _load(self, network: "nn.Module | Path") -> None:
        self._onnx: Path | None = None
        self._scratch = Scratch()
        files = self._files(network, Path(self._scratch.name))
        try:
            self._network = self._opened([str(file) for file in files])
        except UserError:
            raise
        except (ValueError, RuntimeError, OSError) as problem:
            raise ModelError(f"{self.title} cannot run {files[0]}: {one_line(problem)}") from problem
        if not self.profile:
            self._scratch.cleanup()

    @abstractmethod
    def _files(self, network: "nn.Module | Path", folder: Path) -> Sequence[Path]:
        """What is loaded, main file first; files that are made lie in ``folder``. Notes the ONNX file that they are made of."""

    def _opened(self, files: Sequence[str]) -> Network:
        return self.network(files, self.images, self.config.threads, profile=self.profile)

    def _infer(self, images: Images) -> Images:
        return self._network.infer(images)

    def run(self) -> None:
        """One inference; returns when it is done."""
        self._network.run()

    @cached_property
    def _profile(self) -> tuple[list[dict[str, float]], dict[str, list[str]]]:
        layers = as_record(self._network.layers(), DeviceLayers, where=f"the profile of {self.name}")
        return self.named_layers(layers, self._onnx)

    def _layer_ms(self) -> list[dict[str, float]]:
        return self._profile[0]

    def producers(self) -> dict[str, list[str]]:
        """The graph that ran; ends the profile. Empty without ``profile=True``."""
        return self._profile[1] if self.profile else {}

    def close(self) -> None:
        """Release the network and delete its files."""
        if "_network" in self.__dict__:
            self._network.close()
        if "_scratch" in self.__dict__:
            self._scratch.cleanup()


class ConvertingRuntime(DeviceRuntime):
    """Everything is fp32, in files that are made of ONNX, each for one number of images."""

    consumes = "onnx"
    precisions = ("fp32",)
    exports = ("fp32",)
    ending: ClassVar[str]  # of the names of files that are made; its suffix is one of `files`
    one_by_one: ClassVar[bool] = False  # whether a file is for one image, whatever the batch

    @classmethod
    @abstractmethod
    def _converted(cls, onnx: Path, target: Path, images: tuple[int, int, int, int]) -> tuple[Path, ...]:
        """Write ``target`` for inputs of exactly this shape: all files, it first.

        Raises ExportError.
        """

    @classmethod
    def _weights(cls, onnx: Path, file: Path) -> list[Weights]:
        """Those that ``file``, made of ``onnx``, holds as they are."""
        return weights(onnx)

    @classmethod
    def device_files(cls, onnx: Path, config: RuntimeConfig, folder: Path) -> list[tuple[Path, list[Weights]]]:
        """For the config's number of images."""
        batch = 1 if cls.one_by_one else config.batch
        shape = image_shape(onnx, batch, cls.name)
        files = cls._converted(onnx, folder / f"child{cls.ending}", (batch, *shape))
        return [(file, cls._weights(onnx, file)) for file in files]

    @classmethod
    def export(cls, source: Source, config: RuntimeConfig) -> Exported:
        """For the fewest images of the bundle, which is one as a rule."""
        fewest = 1 if cls.one_by_one else source.batch[0]
        files = cls._converted(source.onnx["fp32"], source.path("fp32", cls.ending), (fewest, *source.input_shape))
        return Exported(tuple(file.name for file in files), (fewest, fewest), "cpu", {})

    def _files(self, network: "nn.Module | Path", folder: Path) -> Sequence[Path]:
        if isinstance(network, Path) and network.suffix in self.files:
            return self._own(network)
        batch = 1 if self.one_by_one else self.config.batch
        file = with_precision(onnx_file(network, self.input_shape, batch, folder), "fp32", folder)
        if (shape := image_shape(file, batch, self.name)) != self.input_shape:
            raise ModelError(f"{file} takes images of shape {shape}, but got {self.input_shape}")
        self._onnx = file
        try:
            return self._converted(file, folder / f"network{self.ending}", (batch, *shape))
        except ExportError as problem:
            raise ModelError(str(problem)) from problem

    @classmethod
    def _own(cls, file: Path) -> tuple[Path, ...]:
        """All files of a network whose first is ``file``."""
        return (file,)
