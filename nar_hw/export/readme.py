"""The README of a bundle: what it is and how to run it, for someone who has never heard of nar_hw."""

from collections.abc import Mapping
from typing import Any

_TEXT = """# {name}: an image classifier in one folder

It tells {count} classes apart ({some}) in images of {channels}x{height}x{width} (channels, height, width).
{operators_sentence}

| file | what it is |
|---|---|
{files}
| weights.safetensors | the trained weights, for PyTorch |
| arch.json | the operators of the network, slot by slot |
| manifest.json | everything about this bundle for programs: hashes, preprocessing, classes, accuracy, latency, versions |

{latency_sentence}

Preprocessing: convert to {mode}, scale the image until it covers {width}x{height} (bilinear, antialiased) and cut out its centre,
divide by 255, subtract the mean {mean} and divide by the standard deviation {std} of each channel. Images per run: {batch}.

## Run it in Python with ONNX Runtime
`pip install onnxruntime pillow numpy`
```python
import json, sys
import numpy as np, onnxruntime
from PIL import Image, ImageOps
manifest = json.load(open("manifest.json"))
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
image = ImageOps.fit(Image.open(sys.argv[1]).convert("{mode}"), ({width}, {height}), Image.Resampling.BILINEAR)
pixels = np.asarray(image, np.float32).reshape({height}, {width}, {channels}).transpose(2, 0, 1) / 255
mean, std = (np.reshape(manifest["preprocessing"][name], (-1, 1, 1)).astype(np.float32) for name in ("mean", "std"))
scores = session.run(None, {{"input": ((pixels - mean) / std)[None]{repeat}}})[0][0]
print(manifest["classes"][scores.argmax()])
```

## Run it in Python with OpenVINO
`pip install openvino`; replace the session and the call above by
```python
import openvino
network = openvino.compile_model("model.onnx", "CPU")
scores = network(((pixels - mean) / std)[None]{repeat})[0][0]
```

## Build a TensorRT engine
```sh
trtexec --onnx=model.onnx --saveEngine=model.engine{shapes}
```
"""


def readme(manifest: Mapping[str, Any]) -> str:
    """The text for a bundle's manifest (without its hashes)."""
    channels, height, width = manifest["input"]["shape"]
    fewest, most = manifest["input"]["batch"]
    classes, latency, model = manifest["classes"], manifest["latency"], manifest["model"]
    return _TEXT.format(
        name=model["name"],
        count=len(classes),
        some=", ".join(classes[:5]) + (", ..." if len(classes) > 5 else ""),
        channels=channels,
        height=height,
        width=width,
        repeat=f".repeat({fewest}, 0)" if fewest > 1 else "",
        shapes=_shapes(fewest, most, f"{channels}x{height}x{width}"),
        batch=f"{fewest}" if fewest == most else f"{fewest} to {most}",
        operators_sentence=f"It is {model['name']} with these operators in its {len(model['operators'])} slots: "
        f"{', '.join(model['operators'])}; {model['parameters']:,} parameters.",
        files="\n".join(_file_row(precision, variant, manifest) for precision, variant in manifest["variants"].items()),
        latency_sentence=_latency(latency),
        mode={1: "L", 3: "RGB"}.get(channels, f"{channels} channels"),
        mean=_numbers(manifest["preprocessing"]["mean"]),
        std=_numbers(manifest["preprocessing"]["std"]),
    )


def _file_row(precision: str, variant: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    reached = variant["accuracy"]
    judged = "" if reached is None else f", {100 * reached:.2f} % right on {manifest['validation']['images']} validation images"
    return f"| {variant['file']} | the network in {precision}{judged} |"


def _shapes(fewest: int, most: int, image: str) -> str:
    """The options of trtexec for a range of batch sizes; none for a fixed one."""
    sizes = {"min": fewest, "opt": max(fewest, most // 8), "max": most}
    options = (f" \\\n  --{name}Shapes=input:{size}x{image}" for name, size in sizes.items())
    return "" if fewest == most else "".join(options)


def _latency(latency: Mapping[str, Any]) -> str:
    device = latency["fingerprint"]
    where = f" on {device['device']} with {device.get('runtime')}, batch {device.get('batch')}" if device.get("device") else ""
    parts = []
    if latency["measured"]:
        parts.append(
            "measured: " + ", ".join(f"{name.removesuffix('_ms')} {ms:.3g} ms" for name, ms in latency["measured"].items())
        )
    if latency["predicted_ms"] is not None:
        parts.append(f"predicted by its latency table: {latency['predicted_ms']:.3g} ms")
    return f"Latency{where}: {'; '.join(parts)}." if parts else "Its latency was not measured when it was made."


def _numbers(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"
