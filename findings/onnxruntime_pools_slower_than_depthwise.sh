#!/usr/bin/env bash
# onnxruntime 1.31.1 on x86: a 3x3 pool takes longer than the 3x3 depthwise convolution it would replace.
#
# A good engineer would guess that a pool, which has no weights and multiplies nothing, is the cheaper of the two: counts of FLOPs
# give it 0. Here it lies between two 1x1 convolutions as in MobileNets, with a ReLU behind it, on one thread, with channels in
# whole blocks of 16, so that no layout changes. ONNX Runtime fuses the ReLU into the convolution and not into the pool, and the
# pool alone is no faster either. Measured is the whole chain less the chain without operator and ReLU. Seen (96 channels, 64x64):
# depthwise 0.100 to 0.131 ms, max pool 0.147 to 0.180 ms, average pool 0.154 to 0.190 ms. So in EfficientNet-Lite0 a search that
# counts FLOPs replaces depthwise layers by pools and slows the network down: by its latency table all pools are dearer.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ "$(uname -m)" != x86_64 ]; then
  echo "skipped: not x86"
  exit 0
fi
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.21.0 numpy==2.3.5
"$work/env/bin/python" - <<'PYTHON'
import statistics
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIZE = 96, 64
draw = np.random.default_rng(0)


def weights(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(draw.standard_normal(shape).astype(np.float32) * 0.1, name)


def chain(operator: str | None) -> onnxruntime.InferenceSession:
    """1x1 convolution, ReLU, the operator, ReLU, 1x1 convolution."""
    window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]}
    nodes = [helper.make_node("Conv", ["x", "first"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    tensors = [weights("first", CHANNELS, 32, 1, 1), weights("last", 32, CHANNELS, 1, 1)]
    if operator == "depthwise":
        tensors.append(weights("kernel", CHANNELS, 1, 3, 3))
        nodes.append(helper.make_node("Conv", ["b", "kernel"], ["c"], group=CHANNELS, **window))
    elif operator:
        nodes.append(helper.make_node(operator, ["b"], ["c"], **window))
    if operator:
        nodes.append(helper.make_node("Relu", ["c"], ["d"]))
    nodes.append(helper.make_node("Conv", ["d" if operator else "b", "last"], ["y"]))
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32, SIZE, SIZE])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32, SIZE, SIZE])
    model = helper.make_model(helper.make_graph(nodes, "chain", [image], [output], tensors), opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


sessions = {operator: chain(operator) for operator in (None, "depthwise", "MaxPool", "AveragePool")}
images = draw.standard_normal((1, 32, SIZE, SIZE)).astype(np.float32)
times: dict[str | None, list[float]] = {operator: [] for operator in sessions}
for _ in range(150):  # in turn
    for operator, session in sessions.items():
        start = time.perf_counter()
        session.run(None, {"x": images})
        times[operator].append(1e3 * (time.perf_counter() - start))
without = statistics.median(times[None])
cost = {operator: statistics.median(took) - without for operator, took in times.items() if operator}
print(f"onnxruntime {onnxruntime.__version__}, {CHANNELS} channels, {SIZE}x{SIZE}, one thread: " + ", ".join(f"{name} {ms:.3f} ms" for name, ms in cost.items()))
assert cost["MaxPool"] > 1.15 * cost["depthwise"] and cost["AveragePool"] > 1.15 * cost["depthwise"], "the behaviour has changed"
PYTHON
