"""ncnn on the CPU (optional: pip install 'nar-hw[ncnn]')."""

from pathlib import Path

from nar_hw.device.ncnn import NcnnNetwork
from nar_hw.export.ncnn import INSTALL, save_ncnn
from nar_hw.runtimes.device import ConvertingRuntime
from nar_hw.runtimes.exporting import Exported

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


class Ncnn(ConvertingRuntime):
    """ncnn's own files, which pnnx makes. Images run one after another: ncnn has no batch.

    Everything is fp32: by itself ncnn keeps weights in fp16, 1e-3 off. It has no per-layer times in Python.
    """

    name = "ncnn"
    title = "ncnn"
    network = NcnnNetwork
    packages = ("ncnn", "pnnx")
    install = INSTALL
    readme = _USAGE
    files = (".param",)
    ending = ".ncnn.param"
    kit = "ncnn"
    one_by_one = True

    @classmethod
    def described(cls, precision: str, exported: Exported) -> str:
        """With what keeps it in fp32."""
        return "ncnn in fp32 (with use_fp16_storage = False, else its weights are fp16)"

    @classmethod
    def _converted(cls, onnx: Path, target: Path, images: tuple[int, int, int, int]) -> tuple[Path, ...]:
        return save_ncnn(onnx, target, images[1:])

    @classmethod
    def _own(cls, file: Path) -> tuple[Path, ...]:
        return file, file.with_suffix(".bin")
