#!/usr/bin/env bash
# tensorrt-rtx-cu13 1.7.1.116: an int8 engine is larger than the fp32 one: each generated kernel lies in it as 140 kB of CUDA source.
#
# A good engineer would guess that an engine holds weights and compiled kernels, that int8 makes it a quarter as large, and that one
# as large as in fp32 has layers that stayed in fp32. None did: TensorRT for RTX compiles on the GPU of the user, so its engine
# holds the text of the kernels it generates, each with the same header. Where a rounding is not fused
# into the convolution before it, it is such a kernel. Seen, for 16 pointwise convolutions of growing width with ReLUs: fp32 1.0 MB
# with the text of 2 kernels; int8 2.4 MB with that of 17, of which zlib makes 0.24 MB (of fp32's 0.65 MB). The int8 engine of
# mobilenet_v2 has 10.6 MB, 8 of them source, of fp16's 4.9: compressed they are 3.2 and 4.1. Ship them compressed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check tensorrt-rtx-cu13==1.7.1.116 onnx==1.21.0 numpy==2.3.5
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import zlib

import numpy as np
import tensorrt_rtx as trt
from onnx import TensorProto, helper, numpy_helper

LAYERS = 16
log = trt.Logger(trt.Logger.ERROR)


def network(int8: bool) -> bytes:
    draw, weights, nodes, value, width = np.random.default_rng(0), [], [], "x", 32

    def constant(name: str, array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(array, name))
        return name

    def rounded(value: str, scale: float) -> str:
        if not int8:
            return value
        pair = [constant(f"{value} scale", np.float32(scale)), constant(f"{value} zero", np.int8(0))]
        nodes.append(helper.make_node("QuantizeLinear", [value, *pair], [f"{value} q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{value} q", *pair], [f"{value} dq"]))
        return f"{value} dq"

    for layer in range(LAYERS):
        weight = constant(f"w{layer}", (draw.standard_normal((width + 8, width, 1, 1)) / width).astype(np.float32))
        nodes.append(helper.make_node("Conv", [rounded(value, 0.05), rounded(weight, 0.01)], [f"c{layer}"]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        value, width = f"r{layer}", width + 8
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size, 16, 16]) for name, size in (("x", 32), (value, width))]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def engine(int8: bool) -> bytes:
    builder = trt.Builder(log)
    definition = builder.create_network(0)
    parser = trt.OnnxParser(definition, log)
    assert parser.parse(network(int8))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    return bytes(builder.build_serialized_network(definition, config))


made = {kind: engine(kind == "int8") for kind in ("fp32", "int8")}
kernels = {kind: data.count(b"__global__") for kind, data in made.items()}
for kind, data in made.items():
    small = len(zlib.compress(data))
    print(f"{kind}: {len(data) / 1e6:.2f} MB, {small / 1e6:.2f} MB compressed, source of {kernels[kind]} kernels, tensorrt-rtx {trt.__version__}")
larger = len(made["int8"]) > 2 * len(made["fp32"]) and kernels["int8"] > LAYERS > kernels["fp32"]
assert larger and len(zlib.compress(made["int8"])) < 0.2 * len(made["int8"]), "the behaviour has changed"
PYTHON
