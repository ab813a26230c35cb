"""MNN on the CPU (optional: pip install 'nar-hw[mnn]')."""

from pathlib import Path

from nar_hw.device.mnn import MnnNetwork
from nar_hw.export.mnn import INSTALL, save_mnn
from nar_hw.runtimes.device import ConvertingRuntime
from nar_hw.runtimes.exporting import DeviceLayers, Exported
from nar_hw.runtimes.onnx_graph import loaded

_USAGE = """## Run it in Python with MNN
`pip install MNN`; replace the session and the call above by
```python
import MNN
network = MNN.Interpreter("model.mnn")
session = network.createSession({"backend": "CPU", "numThread": 1, "precision": "high"})
normalised = np.ascontiguousarray((pixels - mean) / std)[None]
layout = MNN.Halide_Type_Float, MNN.Tensor_DimensionType_Caffe
network.getSessionInput(session).copyFrom(MNN.Tensor(normalised.shape, layout[0], normalised, layout[1]))
network.runSession(session)
output = network.getSessionOutput(session)
held = MNN.Tensor(output.getShape(), layout[0], np.zeros(output.getShape(), np.float32), layout[1])
output.copyToHostTensor(held)
scores = np.array(held.getNumpyData())[0]
```
"""


class Mnn(ConvertingRuntime):
    """.mnn files, which MNN's own converter makes. Their layers are those of the ONNX file, and so are their names."""

    name = "mnn"
    title = "MNN"
    network = MnnNetwork
    packages = ("MNN",)
    install = INSTALL
    readme = _USAGE
    layers = True
    files = (".mnn",)
    ending = ".mnn"
    kit = "mnn"

    @classmethod
    def described(cls, precision: str, exported: Exported) -> str:
        """With what keeps it in fp32."""
        return 'MNN in fp32 (with precision "high", else it computes in fp16 where the CPU can)'

    @classmethod
    def named_layers(cls, layers: DeviceLayers, onnx: Path | None) -> tuple[list[dict[str, float]], dict[str, list[str]]]:
        """By the nodes that make the tensors; without ``onnx`` by these."""
        nodes = loaded(onnx).graph.node if onnx is not None else ()
        makers = {output: node.name for node in nodes for output in node.output}
        return layers.named(makers), {node.name: [makers[tensor] for tensor in node.input if tensor in makers] for node in nodes}

    @classmethod
    def _converted(cls, onnx: Path, target: Path, images: tuple[int, int, int, int]) -> tuple[Path, ...]:
        return (save_mnn(onnx, target, images),)
