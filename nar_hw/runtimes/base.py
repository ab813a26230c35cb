"""What every inference runtime offers: one loaded network that can be run, timed and, where possible, seen layer by layer."""

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from nar_hw.device.visits import time_runs
from nar_hw.errors import ModelError, RuntimeUnavailableError
from nar_hw.runtimes.config import THREADS_PER_CORE, RuntimeConfig, most_threads
from nar_hw.runtimes.exporting import Deployed, DeviceLayers, Exported, Source, Triton
from nar_hw.runtimes.inputs import Images, Shape, Weights, in_batches, preset_images

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Images", "Runtime", "RuntimeConfig", "Shape"]


class Runtime(ABC):
    """A network loaded as ``config`` says: close it, or use it as a context. The module it was made from stays as it was, unless
    it is the runtime's ``own``: then it need not be copied.

    Raises RuntimeUnavailableError where it does not work, ModelError for a network that does not fit.
    """

    name: ClassVar[str]
    consumes: ClassVar[str]  # "module" or "onnx"; runtimes for "onnx" files take modules too and export them
    precisions: ClassVar[tuple[str, ...]]
    devices: ClassVar[tuple[str, ...]]
    memory_formats: ClassVar[tuple[str, ...]] = ("contiguous",)
    layers: ClassVar[bool] = False  # whether it has per-layer times anywhere
    files: ClassVar[tuple[str, ...]] = ()  # suffixes of the files that are made for it alone and taken as they are
    exports: ClassVar[tuple[str, ...]] = ()  # precisions in which `export` makes such files for a bundle
    simulated: ClassVar[bool] = False  # whether its times are made up, whatever else the machine does
    exports_anywhere: ClassVar[bool] = False  # whether `export` works on machines that cannot run the files
    loads_beside: ClassVar[bool] = False  # whether several threads may load networks at the same time, and gain by it
    several: ClassVar[bool] = False  # whether it runs files of networks with several outputs
    triton: ClassVar[Triton | None] = None  # how a Triton Inference Server runs what it runs
    kit: ClassVar[str] = ""  # module of nar_hw.device that runs its files where nar_hw is not installed

    mib: float | None = None
    """By how much the memory in use rose while it was loaded and run, where a `ChildLoader` was asked to see that."""

    def __init__(
        self,
        network: "nn.Module | Path",
        input_shape: Shape,
        config: RuntimeConfig,
        *,
        profile: bool = False,
        own: bool = False,
    ) -> None:
        if reason := self.unavailable(config):
            raise RuntimeUnavailableError(reason)
        if profile and not self.layers_on(config):
            raise RuntimeUnavailableError(
                f"{self.name} has no per-layer times on {config.device}: use method regression or isolated"
            )
        if isinstance(network, Path) and self.consumes == "module" and network.suffix not in self.files:
            raise ModelError(f"{self.name} runs a torch module, but got the file {network}: use onnxruntime or openvino")
        from nar_hw.space.network import require_memory  # pulls in torch, which configs and --help do not need

        require_memory(None if isinstance(network, Path) else network, input_shape, config.batch)
        self.config, self.input_shape, self.profile, self.own = config, input_shape, profile, own
        self.images: Images = preset_images(config.batch, input_shape)
        try:
            self._load(network)
        except BaseException:
            self.close()
            raise

    @classmethod
    def unavailable(cls, config: RuntimeConfig) -> str | None:
        """Why ``config`` does not work here and what to do, in one line; None when it works."""
        asked = {"device": config.device_type, "precision": config.precision, "memory_format": config.memory_format}
        for field, known in zip(asked, (cls.devices, cls.precisions, cls.memory_formats), strict=True):
            if asked[field] not in known:
                return f"{cls.name} needs {field} {' or '.join(known)}, but got {asked[field]}"
        if config.threads > most_threads():  # a table of another machine may say so: only to run is refused
            return f"threads must be at most {most_threads()} here ({THREADS_PER_CORE} a core), but got {config.threads}"
        return cls._missing(config)

    @classmethod
    def shares_weights(cls, config: RuntimeConfig) -> bool:
        """Whether it reads ONNX files whose weights lie in a file beside them, as those of children that are only measured."""
        return False

    @classmethod
    def layers_on(cls, config: RuntimeConfig) -> bool:
        """Whether it has per-layer times for ``config``: a runtime may have them on one device only."""
        return cls.layers

    @classmethod
    @abstractmethod
    def _missing(cls, config: RuntimeConfig) -> str | None:
        """What this machine lacks for ``config``."""

    @classmethod
    @abstractmethod
    def versions(cls) -> dict[str, str]:
        """The version of the runtime itself, then of what it stands on."""

    @classmethod
    def unexportable(cls, config: RuntimeConfig) -> str | None:
        """Why `export` does not work here for ``config``, in one line; None when it works."""
        return cls.unavailable(config)

    @classmethod
    def export(cls, source: Source, config: RuntimeConfig) -> Exported:
        """Write its files for a bundle, for ``config``'s precision, device and batch. Raises ExportError and ModelError."""
        raise AssertionError(f"{cls.name} says that it exports, but does not")

    @classmethod
    def left_out(cls, precision: str, gpus: tuple[str, ...]) -> dict[str, str]:
        """For which of ``gpus`` `export` makes nothing in a precision, and why."""
        return {}

    @classmethod
    def described(cls, precision: str, exported: Exported) -> str:
        """What its files are, in a few words for a bundle's README."""
        return f"for {cls.name} in {precision}"

    @classmethod
    def usage(cls, bundle: Deployed) -> str:
        """The section of a bundle's README on how to run it here; empty where there is nothing to say."""
        return ""

    @classmethod
    def device_files(cls, onnx: Path, config: RuntimeConfig, folder: Path) -> "list[tuple[Path, list[Weights]]]":
        """The files that a device loads for the network in ``onnx``, main one first, and the weights that each holds as they are.

        Files that are made lie in ``folder``. Raises ModelError for a network that the runtime cannot have.
        """
        from nar_hw.runtimes.onnx_graph import weights  # pulls in onnx

        return [(onnx, weights(onnx))]

    @classmethod
    def named_layers(cls, layers: DeviceLayers, onnx: Path | None) -> tuple[list[dict[str, float]], dict[str, list[str]]]:
        """What a profile says of the network that was made of ``onnx``, None where nobody knows: `layer_ms` and `producers`."""
        return layers.named({}), {name: list(read) for name, read in layers.producers.items()}

    @abstractmethod
    def _load(self, network: "nn.Module | Path") -> None:
        """Make ready to run; `close` is called when this fails."""

    @abstractmethod
    def _infer(self, images: Images) -> Images:
        """The outputs (batch, classes) for exactly one batch of images."""

    @abstractmethod
    def run(self) -> None:
        """One inference on the preset random images; may return before the device is done."""

    def synchronize(self) -> None:
        """Wait for the device."""
        return

    @abstractmethod
    def close(self) -> None:
        """Release everything; may be called twice."""

    def predict(self, images: Images) -> Images:
        """(B, D) float32: all outputs for images (B, C, H, W), any B. Raises ModelError for another shape."""
        return in_batches(self._infer, images, self.config.batch, self.input_shape)

    def time_ms(self, repeats: int) -> list[float]:
        """The milliseconds of each of ``repeats`` inferences in a row."""
        return time_runs(self, repeats, time.perf_counter)

    def layer_ms(self) -> list[dict[str, float]]:
        """The milliseconds of each node, for every inference since loading with ``profile=True``. It ends the profile.

        Names are `<module path>/<operation>`; nodes that the runtime inserted keep their own name.
        """
        if not self.profile:
            raise RuntimeUnavailableError(f"{self.name} was loaded without profile=True: it kept no per-layer times")
        return self._layer_ms()

    def _layer_ms(self) -> list[dict[str, float]]:
        raise AssertionError(f"{self.name} says that it has per-layer times, but gives none")

    def producers(self) -> dict[str, list[str]]:
        """The nodes that each node of `layer_ms` reads from; empty where the runtime does not tell. It ends the profile."""
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
