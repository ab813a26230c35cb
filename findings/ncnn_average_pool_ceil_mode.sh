#!/usr/bin/env bash
# ncnn 1.0.20261020: AvgPool2d(2, ceil_mode=True) on an odd map halves the last row and column, unlike torch and ONNX Runtime.
#
# A good engineer would guess that a window which reaches beyond the map counts the pixels that are there: torch, ONNX Runtime and
# ONNX do so, with count_include_pad too, for there is no padding to be counted. ncnn divides by the whole window, so that the edge
# comes out at 1/2 and the corner at 1/4 of what it should be. Right is the same pool with padding 1 (a window of 3), and every pool
# with count_include_pad=False. torch's default is True: nn.AvgPool2d(2, ceil_mode=True) in a shortcut is wrong on odd maps only.
# nar_hw compares every file for ncnn with ONNX Runtime and refuses this one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check ncnn==1.0.20261020 onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
"$work/env/bin/pip" install --quiet --disable-pip-version-check --no-deps pnnx==20261020  # its program needs no torch for ONNX files
cd "$work"
ORT_DISABLE_TELEMETRY=1 env/bin/python - <<'PYTHON'
import subprocess
from pathlib import Path

import ncnn
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

program = Path(ncnn.__file__).parents[1] / "pnnx" / "pnnx"


def pooled(height: int, width: int, include: int) -> tuple[np.ndarray, np.ndarray]:
    """What ONNX Runtime and ncnn make of an image of ones."""
    options = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": include}
    image = np.ones((1, 1, height, width), np.float32)
    ends = [
        helper.make_tensor_value_info("input", TensorProto.FLOAT, image.shape),
        helper.make_tensor_value_info("output", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph([helper.make_node("AveragePool", ["input"], ["output"], **options)], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), "m.onnx")
    expected = onnxruntime.InferenceSession("m.onnx").run(None, {"input": image})[0][0, 0]
    subprocess.run([program, "m.onnx", "fp16=0", f"inputshape=[1,1,{height},{width}]"], check=True, capture_output=True)
    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    assert net.load_param("m.ncnn.param") == 0 and net.load_model("m.ncnn.bin") == 0
    array = np.ascontiguousarray(image[0])
    with net.create_extractor() as extractor:
        extractor.input("in0", ncnn.Mat(array))
        return expected, np.array(extractor.extract("out0")[1]).reshape(expected.shape)


for size, include in (((9, 7), 1), ((9, 7), 0), ((8, 6), 1)):
    expected, outputs = pooled(*size, include)
    print(f"ncnn {ncnn.__version__}, ones of {size}, count_include_pad {include}: last row {outputs[-1].tolist()}")
    assert (expected == 1).all()
    if (size, include) == ((9, 7), 1):
        assert np.allclose(outputs[-1, :-1], 0.5) and np.isclose(outputs[-1, -1], 0.25), "the behaviour has changed"
        assert np.allclose(outputs[:-1, :-1], 1)
    else:
        assert np.allclose(outputs, 1)
PYTHON
