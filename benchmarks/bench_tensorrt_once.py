"""One way to make the files of resnet18, timed in a process of its own for `bench_tensorrt.py speed`.

python benchmarks/bench_tensorrt_once.py bundle|hand|onnx|before
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision
from torch import nn


def by_hand(network: nn.Module, folder: Path, images: np.ndarray) -> None:
    """What one would write: the exporter, ONNX Runtime's converters, TensorRT's builder; nothing is compared with torch."""
    import tensorrt_rtx as trt
    from onnxruntime import quantization
    from onnxruntime.transformers.float16 import convert_float_to_float16

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(np.split(images, len(images) // 16))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"input": batch}

    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    names = {"input_names": ["input"], "output_names": ["output"], "dynamic_shapes": shapes, "opset_version": 18}
    torch.onnx.export(
        network, (torch.zeros(2, *images.shape[1:]),), folder / "fp32.onnx", external_data=False, verbose=False, **names
    )
    onnx.save(convert_float_to_float16(onnx.load(folder / "fp32.onnx"), keep_io_types=True), folder / "fp16.onnx")
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True}
    quantization.quantize_static(
        folder / "fp32.onnx",
        folder / "int8.onnx",
        Reader(),
        activation_type=quantization.QuantType.QInt8,
        per_channel=True,
        extra_options=symmetric,
    )
    log = trt.Logger(trt.Logger.ERROR)
    for precision in ("fp32", "fp16", "int8"):
        builder = trt.Builder(log)
        definition = builder.create_network(0)
        parser = trt.OnnxParser(definition, log)
        assert parser.parse_from_file(str(folder / f"{precision}.onnx"))
        config = builder.create_builder_config()
        config.num_compute_capabilities = 2
        for index, gpu in enumerate((trt.ComputeCapability.SM80, trt.ComputeCapability.SM89)):
            config.set_compute_capability(gpu, index)
        profile = builder.create_optimization_profile()
        profile.set_shape("input", *((size, *images.shape[1:]) for size in (1, 8, 64)))
        config.add_optimization_profile(profile)
        (folder / f"{precision}.engine").write_bytes(builder.build_serialized_network(definition, config))


def once(how: str) -> None:
    """One of the ways, in this process: prints its seconds, on the clock and of the processor, children included.

    Without the imports of torch and torchvision, which whoever has trained a network has paid for.
    """
    shape, rng = (3, 32, 32), np.random.default_rng(0)
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10).eval()
    images = rng.standard_normal((512, *shape), dtype=np.float32)
    valid, labels = images[:360], rng.integers(0, 10, 360)
    classes, precisions = tuple(map(str, range(10))), ("fp32", "fp16", "int8")
    with tempfile.TemporaryDirectory() as scratch:
        start, used = time.perf_counter(), processor()
        if how == "hand":
            by_hand(network, Path(scratch), images)
        elif how == "before":
            from nar_hw.export.bundle import export_bundle as before

            about = {"arch": (), "codes": (), "model": "resnet18", "mean": (0.5,) * 3, "std": (0.2,) * 3}
            given = {"images": valid, "labels": labels, "calibration_images": images, "max_accuracy_drop": 1.0}
            before(network, Path(scratch) / "b", input_shape=shape, classes=classes, precisions=precisions, **about, **given)
        else:
            from nar_hw.bundles.bundle import Arch, BundleImages, ExportConfig, Preprocessing, export_bundle

            engines = {"targets": ("onnx", "tensorrt-rtx"), "gpus": ("sm80", "sm89")} if how == "bundle" else {}
            export_bundle(
                network,
                Path(scratch) / "b",
                arch=Arch(name="resnet18", input_shape=shape),
                preprocessing=Preprocessing(mean=(0.5,) * 3, std=(0.2,) * 3, classes=classes),
                config=ExportConfig(precisions=precisions, max_accuracy_drop=1.0, **engines),
                images=BundleImages(valid, labels, images),
            )
        wall, cpu = time.perf_counter() - start, processor() - used
    print(json.dumps({"seconds": round(wall, 2), "cpu seconds": round(cpu, 2)}))


def processor() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


if __name__ == "__main__":
    once(sys.argv[1])
