#!/usr/bin/env bash
# onnxruntime 1.31.1: convert_float_to_float16 gives an invalid graph where two operations that stay in fp32 read one value.
#
# The converter keeps operations without fp16 kernels (CumSum, Resize, ...) in fp32, with casts around them. A good engineer would
# guess that a value read by two of them is cast once, or twice under two names. It adds the same cast twice, under one name with
# one output, and says nothing: the graph is no longer in single static assignment form, and ONNX Runtime itself refuses
# the file (seen: "two nodes with same node name"). EdgeNeXt has such a place, where positions are counted along both sides.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.21.0 numpy==2.3.5 sympy
"$work/env/bin/python" - <<'PYTHON'
from collections import Counter

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

nodes = [
    helper.make_node("Relu", ["x"], ["map"], name="relu"),
    helper.make_node("CumSum", ["map", "rows"], ["down"], name="down"),
    helper.make_node("CumSum", ["map", "columns"], ["right"], name="right"),
    helper.make_node("Add", ["down", "right"], ["y"], name="sum"),
]
axes = [numpy_helper.from_array(np.array(axis, np.int64), name) for axis, name in ((2, "rows"), (3, "columns"))]
shape = [1, 3, 8, 8]
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], axes)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
onnx.checker.check_model(model, full_check=True)
made = convert_float_to_float16(model, keep_io_types=True)
counts = Counter(name for node in made.graph.node for name in node.output)
repeated = [name for name, count in counts.items() if count > 1]
print(f"onnxruntime {onnxruntime.__version__}: outputs written twice: {repeated}")
try:
    onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    refused = ""
except Exception as problem:
    refused = str(problem).splitlines()[0]
print("ONNX Runtime says:", refused)
assert len(repeated) == 1 and "map_cast_to_fp32" in refused, "the behaviour has changed"
PYTHON
