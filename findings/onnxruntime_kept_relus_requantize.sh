#!/usr/bin/env bash
# onnxruntime 1.31.1: with QDQKeepRemovableActivations every sum before a ReLU is rounded twice and costs two kernels more.
#
# The quantizer takes a ReLU out where the rounding behind it clips at zero anyway. Runtimes that do not clip so (TensorRT wants zero
# points of 0) need the ReLU, and this option of quantize_static keeps it. A good engineer would guess that ONNX Runtime, which
# drops such ReLUs itself when it loads a file, then runs both files alike. But the quantizer now also writes a pair of
# QuantizeLinear and DequantizeLinear between the sum and its ReLU. The ReLU is dropped, the pair stays: QLinearAdd in the range of
# the sum, back to floats, and to int8 again in the range of the ReLU. Seen, in the graph that ONNX Runtime runs of a residual block:
# by default 0 of the DequantizeLinear feed a QuantizeLinear, with the option 1. Without the pairs before ReLUs, a ResNet-20 for
# 32x32 images took 0.89 of its time in int8, a ResNet-18 at 128 pixels 0.96.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.21.0 numpy==2.3.5
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
from collections import Counter

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

draw = np.random.default_rng(0)
window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
nodes = [
    helper.make_node("Conv", ["x", "one"], ["a"], "one", **window),
    helper.make_node("Relu", ["a"], ["b"], "relu1"),
    helper.make_node("Conv", ["b", "two"], ["c"], "two", **window),
    helper.make_node("Add", ["b", "c"], ["d"], "sum"),
    helper.make_node("Relu", ["d"], ["e"], "relu2"),
    helper.make_node("Conv", ["e", "three"], ["y"], "three", **window),
]
tensors = [numpy_helper.from_array(draw.standard_normal((16, 16, 3, 3)).astype(np.float32) * 0.1, name) for name in ("one", "two", "three")]
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16, 16, 16]) for name in ("x", "y")]
model = helper.make_model(helper.make_graph(nodes, "block", ends[:1], ends[1:], tensors), opset_imports=[helper.make_opsetid("", 20)])
model.ir_version = 10
onnx.save(model, "fp32.onnx")


class Images(CalibrationDataReader):
    left = 4

    def get_next(self) -> dict[str, np.ndarray] | None:
        self.left -= 1
        return {"x": draw.standard_normal((1, 16, 16, 16)).astype(np.float32)} if self.left >= 0 else None


def there_and_back(kept: bool) -> int:
    """DequantizeLinear that feed a QuantizeLinear, in the graph that is run."""
    quantize_static(
        "fp32.onnx",
        "int8.onnx",
        Images(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"QDQKeepRemovableActivations": kept},
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = "run.onnx"
    onnxruntime.InferenceSession("int8.onnx", options, providers=["CPUExecutionProvider"])
    graph = onnx.load("run.onnx").graph
    print(f"kept {kept}:", dict(Counter(node.op_type for node in graph.node)))
    read = {name: node.op_type for node in graph.node for name in node.input}
    return sum(read.get(node.output[0]) == "QuantizeLinear" for node in graph.node if node.op_type == "DequantizeLinear")


by_default, kept = there_and_back(False), there_and_back(True)
print(f"onnxruntime {onnxruntime.__version__}: to floats and back {by_default} times by default, {kept} with QDQKeepRemovableActivations")
assert by_default == 0 and kept > 0, "the behaviour has changed"
PYTHON
