#!/usr/bin/env bash
# onnxruntime 1.31.1 on x86: a 3x3 average pool takes several times as long in int8 as in fp32.
#
# A good engineer would guess that a quantized network is at least as fast in every layer as the fp32 one, pools included: they read
# a quarter of the bytes. Here the pool lies between two 3x3 convolutions, all in the QDQ form that ONNX Runtime's documentation
# recommends. The runtime fuses it into QLinearAveragePool, which has no vectorised kernel for windows. Seen, by the runtime's own
# profile (64 channels, 16x16, one thread): fp32 0.007 to 0.009 ms, int8 0.106 to 0.110 ms, while the two convolutions together went
# from 0.22 to 0.07 ms. A ResNet-20 for 32x32 images with average pools in every second layer took 0.40 ms in fp32 and 0.84 ms in
# int8 (max pools: 0.39 and 0.37 ms); leaving the pools out of the quantizer's list changes nothing, since the runtime fuses them by
# what surrounds them.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ "$(uname -m)" != x86_64 ]; then
  echo "skipped: not x86"
  exit 0
fi
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.21.0 numpy==2.3.5
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import json
import statistics

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

CHANNELS, SIZE = 64, 16
draw = np.random.default_rng(0)
window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]}
nodes = [
    helper.make_node("Conv", ["x", "first"], ["a"], "first", **window),
    helper.make_node("AveragePool", ["a"], ["b"], "pool", **window),
    helper.make_node("Conv", ["b", "last"], ["y"], "last", **window),
]
tensors = [
    numpy_helper.from_array(draw.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) * 0.05, name)
    for name in ("first", "last")
]
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, CHANNELS, SIZE, SIZE]) for name in ("x", "y")]
model = helper.make_model(helper.make_graph(nodes, "pools", ends[:1], ends[1:], tensors), opset_imports=[helper.make_opsetid("", 20)])
model.ir_version = 10
onnx.save(model, "fp32.onnx")
images = draw.standard_normal((1, CHANNELS, SIZE, SIZE)).astype(np.float32)


class Images(CalibrationDataReader):
    left = 4

    def get_next(self) -> dict[str, np.ndarray] | None:
        self.left -= 1
        return {"x": images} if self.left >= 0 else None


quantize_static("fp32.onnx", "int8.onnx", Images(), quant_format=QuantFormat.QDQ, per_channel=True)


def costs(path: str) -> dict[str, float]:
    """Kind of node -> median ms of its kernel, the two convolutions together."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for _ in range(200):
        session.run(None, {"x": images})
    runs: dict[str, dict[str, list[float]]] = {}
    with open(session.end_profiling()) as file:
        for event in json.load(file):
            if event["name"].endswith("_kernel_time"):
                runs.setdefault(event["args"]["op_name"], {}).setdefault(event["name"], []).append(event["dur"] / 1e3)
    return {kind: sum(statistics.median(times) for times in named.values()) for kind, named in runs.items()}


fp32, int8 = costs("fp32.onnx"), costs("int8.onnx")
print(
    f"onnxruntime {onnxruntime.__version__}, {CHANNELS} channels, {SIZE}x{SIZE}, one thread: average pool "
    f"{fp32['AveragePool']:.3f} ms in fp32, {int8['QLinearAveragePool']:.3f} ms in int8; "
    f"two convolutions {fp32['Conv']:.3f} and {int8['QLinearConv']:.3f} ms"
)
assert int8["QLinearAveragePool"] > 3 * fp32["AveragePool"], "the behaviour has changed"
PYTHON
