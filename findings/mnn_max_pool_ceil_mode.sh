#!/usr/bin/env bash
# MNN 3.6.1: MaxPool2d(2, 2, padding=1, ceil_mode=True) on an odd map has one row and column more than in torch and ONNX Runtime.
#
# A good engineer would guess that a pool with ceil_mode gives what torch gives: a window that would begin in the padding behind the
# map is left out, which ONNX says too since opset 22 and ONNX Runtime does for all. MNN keeps it: 5x5 instead of 4x4 for a
# map of 7x7, the first 4x4 of them right. The file is converted and run without a word, and what follows the pool is of another
# size. Pools whose last window begins on the map, as MaxPool2d(3, 2, 1, ceil_mode=True), are right. nar_hw compares every file for
# MNN with ONNX Runtime and refuses this one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check MNN==3.6.1 onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
cd "$work"
ORT_DISABLE_TELEMETRY=1 env/bin/python - <<'PYTHON'
import subprocess
import sys

import MNN
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper


def pooled(kernel: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What ONNX Runtime and MNN make of a random image with stride 2, padding 1 and ceil_mode."""
    options = {"kernel_shape": [kernel] * 2, "strides": [2, 2], "pads": [1] * 4, "ceil_mode": 1}
    image = np.random.default_rng(0).standard_normal((1, 1, size, size), dtype=np.float32)
    ends = [
        helper.make_tensor_value_info("input", TensorProto.FLOAT, image.shape),
        helper.make_tensor_value_info("output", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph([helper.make_node("MaxPool", ["input"], ["output"], **options)], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), "m.onnx")
    expected = onnxruntime.InferenceSession("m.onnx").run(None, {"input": image})[0]
    convert = [sys.executable, "-c", "import sys, _tools; _tools.mnnconvert(sys.argv)"]
    options = ["-f", "ONNX", "--modelFile", "m.onnx", "--MNNModel", "m.mnn", "--bizCode", "x"]
    subprocess.run([*convert, *options], check=True, capture_output=True)
    network = MNN.Interpreter("m.mnn")
    session = network.createSession({"backend": "CPU", "numThread": 1, "precision": "high"})
    layout = MNN.Halide_Type_Float, MNN.Tensor_DimensionType_Caffe
    network.getSessionInput(session).copyFrom(MNN.Tensor(image.shape, layout[0], image, layout[1]))
    network.runSession(session)
    output = network.getSessionOutput(session)
    held = MNN.Tensor(output.getShape(), layout[0], np.zeros(output.getShape(), np.float32), layout[1])
    output.copyToHostTensor(held)
    return expected, np.array(held.getNumpyData()).reshape(output.getShape())


for kernel, size in ((2, 7), (3, 8), (3, 7)):
    expected, outputs = pooled(kernel, size)
    print(f"MNN {MNN.version()}, MaxPool2d({kernel}, 2, 1, ceil_mode=True) of {size}x{size}: {outputs.shape}, in ONNX Runtime {expected.shape}")
    if kernel == 2:
        assert (expected.shape, outputs.shape) == ((1, 1, 4, 4), (1, 1, 5, 5)), "the behaviour has changed"
        assert np.array_equal(outputs[..., :4, :4], expected)
    else:
        assert np.array_equal(outputs, expected)
PYTHON
