"""ncnn on the CPU (optional: pip install 'nar-hw[ncnn]')."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nar_hw.device.ncnn import NcnnNetwork
from nar_hw.errors import ExportError, ModelError, RuntimeUnavailableError
from nar_hw.export.ncnn import INSTALL, save_ncnn
from nar_hw.files import Scratch
from nar_hw.runtimes.base import Images, Runtime, RuntimeConfig
from nar_hw.runtimes.exporting import Deployed, Exported, Source
from nar_hw.runtimes.inputs import Weights, onnx_file
from nar_hw.runtimes.onnx_graph import image_shape, weights, with_precision

if TYPE_CHECKING:
    from torch import nn

_USAGE = """## Run it in Python with ncnn
`pip install ncnn`; replace the session and the call above by
```python
import ncnn
net = ncnn.Net()
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
net.load_param("model.ncnn.param")
net.load_model("model.ncnn.bin")
normalised = np.ascontiguousarray((pixels - mean) / std)
with net.create_extractor() as extractor:
    extractor.input("in0", ncnn.Mat(normalised))
    scores = np.array(extractor.extract("out0")[1])
```
"""


class Ncnn(Runtime):
    """ncnn's own files, which pnnx makes of ONNX. Images run one after another: ncnn has no batch.

    Everything is fp32: by itself ncnn keeps weights in fp16, 1e-3 off. It has no per-layer times in Python.
    """

    name = "ncnn"
    consumes = "onnx"
    precisions = ("fp32",)
    devices = ("cpu",)
    files = (".param",)
    exports = ("fp32",)
    kit = "ncnn"

    @classmethod
    def _missing(cls, config: RuntimeConfig) -> str | None:
        return None if all(map(importlib.util.find_spec, ("ncnn", "pnnx"))) else INSTALL

    @classmethod
    def versions(cls) -> dict[str, str]:
        """The version of ncnn. Raises RuntimeUnavailableError when it is not installed."""
        try:
            return {"ncnn": NcnnNetwork.version()}
        except ImportError as problem:
            raise RuntimeUnavailableError(INSTALL) from problem

    @classmethod
    def device_files(cls, onnx: Path, config: RuntimeConfig, folder: Path) -> list[tuple[Path, list[Weights]]]:
        """The .param, and the .bin, in which the weights lie as in the ONNX file."""
        param, binary = save_ncnn(onnx, folder / "child.ncnn.param", image_shape(onnx, 1, cls.name))
        return [(param, []), (binary, weights(onnx))]

    @classmethod
    def export(cls, source: Source, config: RuntimeConfig) -> Exported:
        """A .param and its .bin, for one image at a time."""
        files = save_ncnn(source.onnx["fp32"], source.path("fp32", ".ncnn.param"), source.input_shape)
        return Exported(tuple(file.name for file in files), (1, 1), "cpu", {})

    @classmethod
    def described(cls, precision: str, exported: Exported) -> str:
        """With what keeps it in fp32."""
        return "ncnn in fp32 (with use_fp16_storage = False, else its weights are fp16)"

    @classmethod
    def usage(cls, bundle: Deployed) -> str:
        """Where the bundle has its files."""
        return _USAGE if bundle.exported else ""

    def _load(self, network: "nn.Module | Path") -> None:
        with Scratch() as scratch:
            files = self._files(network, Path(scratch))
            try:
                self._network = NcnnNetwork([str(file) for file in files], self.images, self.config.threads)
            except ValueError as problem:
                raise ModelError(str(problem)) from problem

    def _files(self, network: "nn.Module | Path", folder: Path) -> tuple[Path, Path]:
        if isinstance(network, Path) and network.suffix in self.files:
            return network, network.with_suffix(".bin")
        file = with_precision(onnx_file(network, self.input_shape, 1, folder), "fp32", folder)
        if (shape := image_shape(file, 1, self.name)) != self.input_shape:
            raise ModelError(f"{file} takes images of shape {shape}, but got {self.input_shape}")
        try:
            return save_ncnn(file, folder / "network.ncnn.param", self.input_shape)
        except ExportError as problem:
            raise ModelError(str(problem)) from problem

    def _infer(self, images: Images) -> Images:
        return np.asarray(self._network.infer(images), dtype=np.float32)

    def run(self) -> None:
        """One inference of each image of the batch."""
        self._network.run()

    def close(self) -> None:
        """Release the network."""
        if "_network" in self.__dict__:
            self._network.close()
