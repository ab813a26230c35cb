"""int8 for TensorRT: our quantizer's placement of roundings against nvidia-modelopt's, on a trained network, without a GPU.

    python benchmarks/bench_tensorrt_int8.py [--modelopt PYTHON]

``--modelopt``: the interpreter of an environment with nvidia-modelopt and its ONNX requirements, whose pins clash with ours.
A small residual network is trained on scikit-learn's digits and quantized with 256 training images: "everywhere" (roundings on
all tensors, as for ONNX Runtime), "products" (`to_symmetric`: only where a convolution or matrix product reads) and modelopt's
(max calibration, fp32 beside). Accuracy is that of the files in ONNX Runtime on the test images; engines are built for sm89.
Result: results/tensorrt_int8.json.
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from bench_tensorrt import built, versions
from onnx import numpy_helper
from sklearn.datasets import load_digits
from torch import nn

from nar_hw.export import quantize
from nar_hw.export.onnx import export_onnx, open_session, run_session
from nar_hw.files import write_json
from nar_hw.models import build_model

RESULT = Path(__file__).parent / "results" / "tensorrt_int8.json"
MODELOPT = """
import sys, numpy as np
from modelopt.onnx.quantization import quantize
source, images, target = sys.argv[1:]
quantize(source, quantize_mode="int8", calibration_data={"input": np.load(images)}, calibration_method="max",
         calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=target, log_level="ERROR",
         calibration_shapes="input:256x1x8x8")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modelopt", type=Path)
    modelopt = parser.parse_args().modelopt
    network, calibration, images, labels = trained()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        export_onnx(network, folder / "fp32.onnx", input_shape=(1, 8, 8))
        quantize.to_int8(folder / "fp32.onnx", folder / "unsigned.onnx", calibration)
        everywhere(folder / "unsigned.onnx", folder / "everywhere.onnx")
        quantize.to_symmetric(folder / "unsigned.onnx", folder / "products.onnx")
        if modelopt is not None:
            np.save(folder / "images.npy", calibration)
            arguments = [folder / "fp32.onnx", folder / "images.npy", folder / "modelopt.onnx"]
            subprocess.run([modelopt, "-c", MODELOPT, *map(str, arguments)], check=True, capture_output=True)
        reference = run_session(open_session(folder / "fp32.onnx"), images)
        for file in sorted(folder.glob("*.onnx")):
            outputs = run_session(open_session(file), images)
            graph = onnx.load(file).graph
            weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
            pairs = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in weights]
            rows[file.stem] = {
                "accuracy": round(float((outputs.argmax(1) == labels).mean()), 4),
                "largest error": round(float(np.abs(outputs - reference).max() / np.abs(reference).max()), 4),
                "mean error": round(float(np.abs(outputs - reference).mean() / np.abs(reference).max()), 5),
                "roundings of activations": len(pairs),
                **({} if file.stem == "unsigned" else {"engine": built(file, ("sm89",))}),
            }
            print(file.stem, rows[file.stem], flush=True)
    machine = {"cores": os.cpu_count(), "note": "busy with other work"}
    value = {"command": "python benchmarks/bench_tensorrt_int8.py --modelopt PYTHON", "machine": machine, "versions": versions()}
    write_json(RESULT, {**value, "modelopt": "0.47.0" if modelopt else None, "test images": len(images), "rows": rows})


if __name__ == "__main__":
    main()
