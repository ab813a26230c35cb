"""int8 and fp8 for TensorRT: our quantizer's placement of roundings against nvidia-modelopt's, without a GPU.

    python benchmarks/bench_tensorrt_int8.py [--modelopt PYTHON]

``--modelopt``: the interpreter of an environment with nvidia-modelopt and its ONNX requirements, whose pins clash with ours.
A small residual network is trained on scikit-learn's digits and quantized with 256 training images: "everywhere" (roundings on
all tensors, as for ONNX Runtime), "products" (`to_symmetric`: only where a convolution or matrix product reads) and modelopt's
in int8 and fp8 (E4M3; max calibration, fp32 beside). Accuracy is that of the files in ONNX Runtime on the test images (fp8
without its graph optimizations, which do not know it); engines are built for sm89. The same for networks with random weights
at 64 pixels, without accuracies.
Result: results/tensorrt_int8.json. In int8 the two are alike in accuracy, error and size (ours leaves no product in floating
point, modelopt's one), so ours stays. fp8 has three to five times the error of int8 on resnets and engines as large; of
mobilenet_v2 the engine is a quarter smaller, since depthwise convolutions stay in floating point. Engines in int8 that are as
large as in fp32 hold the source of more kernels (findings/tensorrt_rtx_engines_hold_kernel_source.sh).
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from bench_tensorrt import FLEET, built, versions
from sklearn.datasets import load_digits
from torch import nn

from nar_hw.export import quantize
from nar_hw.export.onnx import export_onnx, run_session
from nar_hw.files import write_json
from nar_hw.models import build_model

RESULT = Path(__file__).parent / "results" / "tensorrt_int8.json"
MODELOPT = """
import sys, numpy as np
from modelopt.onnx.quantization import quantize
source, images, *modes = sys.argv[1:]
images = np.load(images)
for mode in modes:
    quantize(source, quantize_mode=mode, calibration_data={"input": images}, calibration_method="max",
             calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=source.replace("fp32", "modelopt " + mode),
             log_level="ERROR", calibration_shapes="input:" + "x".join(map(str, images.shape)))
"""


def trained() -> tuple[nn.Module, np.ndarray, np.ndarray, np.ndarray]:
    """(network, training images, test images, their classes)."""
    digits = load_digits()
    images = ((digits.images / 16 - 0.3) / 0.37).astype(np.float32)[:, None]
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1200], order[1200:]
    torch.manual_seed(0)
    network = build_model("resnet_digits", input_shape=(1, 8, 8), num_classes=10)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9, nesterov=True, weight_decay=5e-4)
    epochs = 6
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, epochs * 20)
    for _ in range(epochs):
        for part in np.array_split(np.random.permutation(train), 20):
            loss = nn.functional.cross_entropy(network(torch.from_numpy(images[part])), torch.from_numpy(digits.target[part]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval(), images[train[:256]], images[test], digits.target[test]


def everywhere(source: Path, target: Path) -> None:
    """`to_symmetric` without its choice of places."""
    keep = quantize._keep_pairs_of_products
    quantize._keep_pairs_of_products = lambda graph: None  # type: ignore[assignment]
    try:
        quantize.to_symmetric(source, target)
    finally:
        quantize._keep_pairs_of_products = keep


def outputs_of(file: Path, images: np.ndarray) -> np.ndarray:
    """What a file gives in ONNX Runtime, whose optimizations make files in fp8 invalid."""
    options = onnxruntime.SessionOptions()
    if "fp8" in file.stem:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return run_session(session, images)


def compared(
    network: nn.Module, calibration: np.ndarray, images: np.ndarray, labels: np.ndarray | None, modelopt: Path | None
) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = folder / "fp32.onnx"
        export_onnx(network, source, input_shape=images.shape[1:])
        quantize.to_int8(source, folder / "unsigned.onnx", calibration)
        everywhere(folder / "unsigned.onnx", folder / "everywhere.onnx")
        quantize.to_symmetric(folder / "unsigned.onnx", folder / "products.onnx")
        if modelopt is not None:
            np.save(folder / "images.npy", calibration)
            command = [modelopt, "-c", MODELOPT, source, folder / "images.npy", "int8", "fp8"]
            subprocess.run(list(map(str, command)), check=True, capture_output=True)
        reference = outputs_of(source, images)
        for file in sorted(folder.glob("*.onnx")):
            outputs = outputs_of(file, images)
            graph = onnx.load(file).graph
            weights = {tensor.name for tensor in graph.initializer}
            pairs = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in weights]
            rows[file.stem] = {
                **({} if labels is None else {"accuracy": round(float((outputs.argmax(1) == labels).mean()), 4)}),
                "largest error": round(float(np.abs(outputs - reference).max() / np.abs(reference).max()), 4),
                "mean error": round(float(np.abs(outputs - reference).mean() / np.abs(reference).max()), 5),
                "roundings of activations": len(pairs),
                **({} if file.stem == "unsigned" else {"engine": built(file, ("sm89",))}),
            }
            print(file.stem, rows[file.stem], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modelopt", type=Path)
    modelopt = parser.parse_args().modelopt
    network, calibration, images, labels = trained()
    rows = compared(network, calibration, images, labels, modelopt)
    untrained = {}
    for name in FLEET:
        torch.manual_seed(0)
        network = build_model(name, input_shape=(3, 64, 64), num_classes=10).eval()
        images = np.random.default_rng(0).standard_normal((80, 3, 64, 64), dtype=np.float32)
        untrained[name] = compared(network, images[:64], images[64:], None, modelopt)
    machine = {"cores": os.cpu_count(), "note": "busy with other work"}
    value = {"command": "python benchmarks/bench_tensorrt_int8.py --modelopt PYTHON", "machine": machine, "versions": versions()}
    about = {"modelopt": "0.47.0" if modelopt else None, "test images": len(labels)}
    write_json(RESULT, {**value, **about, "rows": rows, "random weights": untrained})


if __name__ == "__main__":
    main()
