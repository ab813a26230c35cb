#!/usr/bin/env bash
# pnnx 20261020 makes zero padding of circular padding when it converts an ONNX file for ncnn, without a word.
#
# A good engineer would guess that a padding that ncnn does not have is refused, as other operations are ("layer X not exists or
# registered"). Pad with mode "wrap" in front of a convolution (what torch.onnx makes of Conv2d(padding_mode="circular")) becomes
# the convolution's own padding with zeros; the modes "reflect" and "edge" are kept right. Seen: the outputs differ by 13 of 17 along
# the borders and nowhere else; the .param has one Convolution with padding 1. Networks for panoramas, maps and textures have such
# layers. nar_hw compares every file for ncnn with ONNX Runtime and refuses this one.
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
from onnx import TensorProto, helper, numpy_helper

program = Path(ncnn.__file__).parents[1] / "pnnx" / "pnnx"
random = np.random.default_rng(0)
image = random.standard_normal((1, 4, 9, 7), dtype=np.float32)
kernel = random.standard_normal((4, 4, 3, 3), dtype=np.float32)


def differences(mode: str) -> np.ndarray:
    """(4, 9, 7): how far ncnn is from ONNX Runtime."""
    nodes = [
        helper.make_node("Pad", ["input", "pads"], ["padded"], mode=mode),
        helper.make_node("Conv", ["padded", "kernel"], ["output"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads"),
        numpy_helper.from_array(kernel, "kernel"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, image.shape) for name in ("input", "output")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), f"{mode}.onnx")
    expected = onnxruntime.InferenceSession(f"{mode}.onnx").run(None, {"input": image})[0][0]
    subprocess.run([program, f"{mode}.onnx", "fp16=0", "inputshape=[1,4,9,7]"], check=True, capture_output=True)
    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    assert net.load_param(f"{mode}.ncnn.param") == 0 and net.load_model(f"{mode}.ncnn.bin") == 0
    array = np.ascontiguousarray(image[0])
    with net.create_extractor() as extractor:
        extractor.input("in0", ncnn.Mat(array))
        outputs = np.array(extractor.extract("out0")[1])
    found = np.abs(outputs - expected)
    inside = found[:, 1:-1, 1:-1].max()
    print(f"pnnx 20261020, ncnn {ncnn.__version__}, Pad {mode}: {found.max():.2g} of {np.abs(expected).max():.2g}, inside {inside:.2g}")
    return found


assert differences("reflect").max() < 1e-4 and differences("edge").max() < 1e-4
wrap = differences("wrap")
print(Path("wrap.ncnn.param").read_text().splitlines()[-1])
assert wrap.max() > 0.1 and wrap[:, 1:-1, 1:-1].max() < 1e-4, "the behaviour has changed"
PYTHON
