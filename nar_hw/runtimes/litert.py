"""LiteRT, which Android's apps run, on the CPU (optional: pip install 'nar-hw[litert]')."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from nar_hw.device.litert import LiteRtNetwork
from nar_hw.errors import ExportError, ModelError, RuntimeUnavailableError
from nar_hw.export.litert import INSTALL, save_litert, weights_of
from nar_hw.files import Scratch
from nar_hw.runtimes.base import Images, Runtime, RuntimeConfig
from nar_hw.runtimes.exporting import Deployed, Exported, Source
from nar_hw.runtimes.inputs import Weights, onnx_file
from nar_hw.runtimes.onnx_graph import image_shape, one_line, with_precision

if TYPE_CHECKING:
    from torch import nn

_USAGE = """## Run it in Python with LiteRT
`pip install ai-edge-litert`; replace the session and the call above by
```python
from ai_edge_litert.interpreter import Interpreter
network = Interpreter(model_path="model.tflite")
network.allocate_tensors()
normalised = np.ascontiguousarray(((pixels - mean) / std).transpose(1, 2, 0)[None])
network.set_tensor(network.get_input_details()[0]["index"], normalised)
network.invoke()
scores = network.get_tensor(network.get_output_details()[0]["index"])[0]
```
The file takes images as (1, height, width, channels), as a phone's camera gives them.
"""


class LiteRt(Runtime):
    """.tflite files, which are made of ONNX and are for one number of images, on XNNPACK's kernels.

    Everything is fp32. Its Python interface has no per-layer times.
    """

    name = "litert"
    consumes = "onnx"
    precisions = ("fp32",)
    devices = ("cpu",)
    files = (".tflite",)
    exports = ("fp32",)
    kit = "litert"
    several = True

    @classmethod
    def _missing(cls, config: RuntimeConfig) -> str | None:
        return None if all(map(importlib.util.find_spec, ("ai_edge_litert", "flatbuffers"))) else INSTALL

    @classmethod
    def versions(cls) -> dict[str, str]:
        """The version of LiteRT. Raises RuntimeUnavailableError when it is not installed."""
        try:
            return {"litert": LiteRtNetwork.version()}
        except ImportError as problem:
            raise RuntimeUnavailableError(INSTALL) from problem

    @classmethod
    def device_files(cls, onnx: Path, config: RuntimeConfig, folder: Path) -> list[tuple[Path, list[Weights]]]:
        """The .tflite for the config's number of images."""
        shape = image_shape(onnx, config.batch, cls.name)
        file = save_litert(onnx, folder / "child.tflite", (config.batch, *shape))
        return [(file, weights_of(file))]

    @classmethod
    def export(cls, source: Source, config: RuntimeConfig) -> Exported:
        """A .tflite for the fewest images of the bundle, which is one as a rule."""
        fewest = source.batch[0]
        file = save_litert(source.onnx["fp32"], source.path("fp32", ".tflite"), (fewest, *source.input_shape))
        return Exported((file.name,), (fewest, fewest), "cpu", {})

    @classmethod
    def described(cls, precision: str, exported: Exported) -> str:
        """With the layout of its images, which differs from ONNX's."""
        return f"LiteRT in fp32, for images as ({exported.batch[0]}, height, width, channels)"

    @classmethod
    def usage(cls, bundle: Deployed) -> str:
        """Where the bundle has its file for one image."""
        return _USAGE if any(item.batch == (1, 1) for item in bundle.exported) else ""

    def _load(self, network: "nn.Module | Path") -> None:
        with Scratch() as scratch:
            file = self._file(network, Path(scratch))
            try:
                self._network = LiteRtNetwork([str(file)], self.images, self.config.threads)
            except (ValueError, RuntimeError) as problem:
                raise ModelError(f"LiteRT cannot run {file}: {one_line(problem)}") from problem

    def _file(self, network: "nn.Module | Path", folder: Path) -> Path:
        if isinstance(network, Path) and network.suffix in self.files:
            return network
        file = with_precision(onnx_file(network, self.input_shape, self.config.batch, folder), "fp32", folder)
        if (shape := image_shape(file, self.config.batch, self.name)) != self.input_shape:
            raise ModelError(f"{file} takes images of shape {shape}, but got {self.input_shape}")
        try:
            return save_litert(file, folder / "network.tflite", (self.config.batch, *shape))
        except ExportError as problem:
            raise ModelError(str(problem)) from problem

    def _infer(self, images: Images) -> Images:
        return self._network.infer(images)

    def run(self) -> None:
        """One inference."""
        self._network.run()

    def close(self) -> None:
        """Release the interpreter."""
        if "_network" in self.__dict__:
            self._network.close()
