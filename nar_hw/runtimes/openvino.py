"""OpenVINO on the CPU (optional: pip install 'nar-hw[openvino]')."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nar_hw.device.openvino import OpenVinoNetwork
from nar_hw.export.openvino import INSTALL, save_ir
from nar_hw.runtimes.base import RuntimeConfig
from nar_hw.runtimes.device import DeviceRuntime
from nar_hw.runtimes.exporting import Deployed, Exported, Source
from nar_hw.runtimes.inputs import onnx_file
from nar_hw.runtimes.onnx_graph import with_precision

if TYPE_CHECKING:
    from torch import nn

_USAGE = """## Run it in Python with OpenVINO
`pip install openvino`; replace the session and the call above by
```python
import openvino
network = openvino.compile_model("model.onnx", "CPU")
scores = network(((pixels - mean) / std)[None]{repeat})[0][0]
```
"""


class OpenVino(DeviceRuntime):
    """One stream, one request. The precision is set always: by itself OpenVINO takes bf16 where the CPU has it.

    fp32 and bf16 take an fp32 file, int8 one that is quantised: ONNX, or OpenVINO's own .xml, which is taken as it is.

    Per-layer times come from its performance counters, which hold nothing but the mean of all inferences so far, in whole
    microseconds: every inference is given the mean of the later ones (half of them or more). A fused node has the name of
    its first ONNX node; one that OpenVINO made itself (a BatchNorm that cannot be folded is "Multiply_<n>") keeps its own.
    """

    name = "openvino"
    title = "OpenVINO"
    network = OpenVinoNetwork
    packages = ("openvino",)
    install = INSTALL
    readme = _USAGE
    consumes = "onnx"
    precisions = ("fp32", "bf16", "int8")
    layers = True
    loads_beside = True
    several = True
    files = (".xml",)
    exports = ("fp32", "bf16", "int8")
    kit = "openvino"

    @classmethod
    def _missing(cls, config: RuntimeConfig) -> str | None:
        if (missing := super()._missing(config)) or config.precision != "bf16":
            return missing
        import openvino

        able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" not in able:
            return f"openvino computes in bf16 only on CPUs that have it, and this one has {', '.join(able)}: use fp32"
        return None

    @classmethod
    def shares_weights(cls, config: RuntimeConfig) -> bool:
        """But for int8, which is made of a whole file."""
        return config.precision != "int8"

    @classmethod
    def export(cls, source: Source, config: RuntimeConfig) -> Exported:
        """OpenVINO IR; bf16 is the fp32 file, run with another hint."""
        held = "int8" if config.precision == "int8" else "fp32"
        files = save_ir(source.onnx[held], source.path(held, ".xml"))
        return Exported(tuple(file.name for file in files), source.batch, "cpu", {})

    @classmethod
    def described(cls, precision: str, exported: Exported) -> str:
        """With the hint that bf16 needs."""
        hint = ' (computing so with INFERENCE_PRECISION_HINT="bf16")' if precision == "bf16" else ""
        return f"OpenVINO IR in {precision}{hint}"

    @classmethod
    def usage(cls, bundle: Deployed) -> str:
        """Of the ONNX file, which it reads as well."""
        return cls.readme.format(repeat=bundle.repeat)

    def _files(self, network: "nn.Module | Path", folder: Path) -> Sequence[Path]:
        if isinstance(network, Path) and network.suffix in self.files:
            return (network,)
        file = onnx_file(network, self.input_shape, self.config.batch, folder)
        return (with_precision(file, "int8" if self.config.precision == "int8" else "fp32", folder),)

    def _opened(self, files: Sequence[str]) -> OpenVinoNetwork:
        precision = "bf16" if self.config.precision == "bf16" else "f32"
        return OpenVinoNetwork(files, self.images, self.config.threads, profile=self.profile, precision=precision)
