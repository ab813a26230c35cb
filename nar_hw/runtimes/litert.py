"""LiteRT, which Android's apps run, on the CPU (optional: pip install 'nar-hw[litert]')."""

from pathlib import Path

from nar_hw.device.litert import LiteRtNetwork
from nar_hw.export.litert import INSTALL, save_litert, weights_of
from nar_hw.runtimes.device import ConvertingRuntime
from nar_hw.runtimes.exporting import Exported
from nar_hw.runtimes.inputs import Weights

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


class LiteRt(ConvertingRuntime):
    """.tflite files, on XNNPACK's kernels. Its Python interface has no per-layer times."""

    name = "litert"
    title = "LiteRT"
    network = LiteRtNetwork
    packages = ("ai_edge_litert", "flatbuffers")
    install = INSTALL
    readme = _USAGE
    files = (".tflite",)
    ending = ".tflite"
    kit = "litert"
    several = True

    @classmethod
    def described(cls, precision: str, exported: Exported) -> str:
        """With the layout of its images, which differs from ONNX's."""
        return f"LiteRT in fp32, for images as ({exported.batch[0]}, height, width, channels)"

    @classmethod
    def _converted(cls, onnx: Path, target: Path, images: tuple[int, int, int, int]) -> tuple[Path, ...]:
        return (save_litert(onnx, target, images),)

    @classmethod
    def _weights(cls, onnx: Path, file: Path) -> list[Weights]:
        return weights_of(file)
