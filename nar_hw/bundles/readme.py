"""The README of a bundle: what it is and how to run it, for someone who has never heard of nar_hw."""

from collections.abc import Mapping
from typing import Any

from nar_hw.export.gpus import CARDS, number

_TEXT = """# {name}: {what} in one folder

It {does} {channels}x{height}x{width} (channels, height, width).
{operators_sentence}

| file | what it is |
|---|---|
{files}
| weights.safetensors | the trained weights, for PyTorch |
| arch.json | the operators of the network, slot by slot |
| manifest.json | everything about this bundle for programs: hashes, preprocessing, classes, accuracy, latency, versions |
{gpus}
{latency_sentence}

Preprocessing: convert to {mode}, scale the image until it covers {width}x{height} (bilinear, antialiased) and cut out its centre,
divide by 255, subtract the mean {mean} and divide by the standard deviation {std} of each channel. Images per run: {batch}.

`export/run.py` of nar_hw, which made this folder, runs its files on images and needs no nar_hw itself: `python run.py . photos`.

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
{answer}
```

## Run it in Python with OpenVINO
`pip install openvino`; replace the session and the call above by
```python
import openvino
network = openvino.compile_model("model.onnx", "CPU")
scores = network(((pixels - mean) / std)[None]{repeat})[0][0]
```
{compiled}
## Build a TensorRT engine
{parser}```sh
trtexec --onnx=model.onnx --saveEngine=model.engine{shapes}
```
"""

_AOTI = """
## Run it in Python with PyTorch, compiled
`pip install torch`; {file} holds machine code for {device}: load it there only, and only if
you trust who made it. Replace the session and the call above by
```python
import torch
network = torch._inductor.aoti_load_package("{file}", run_single_threaded=True)
scores = network(torch.from_numpy((pixels - mean) / std)[None]{repeat})[0].numpy()
```
"""


def readme(manifest: Mapping[str, Any]) -> str:
    """The text for a bundle's manifest (without its hashes)."""
    channels, height, width = manifest["input"]["shape"]
    fewest, most = manifest["input"]["batch"]
    classes, latency, model = manifest["classes"], manifest["latency"], manifest["model"]
    return _TEXT.format(
        name=model["name"],
        what="an image classifier" if classes else "an image embedding",
        does=f"tells {len(classes)} classes apart ({_some(classes)}) in images of"
        if classes
        else f"makes {manifest['output']['shape'][0]} numbers (an embedding) of each image of",
        answer='print(manifest["classes"][scores.argmax()])' if classes else "print(scores)",
        compiled=_compiled(manifest, f".repeat({fewest}, 1, 1, 1)" if fewest > 1 else ""),
        channels=channels,
        height=height,
        width=width,
        repeat=f".repeat({fewest}, 0)" if fewest > 1 else "",
        parser="".join(f"TensorRT parser on {name}: {said}\n\n" for name, said in manifest["tensorrt_parser"].items()),
        shapes=_shapes(fewest, most, f"{channels}x{height}x{width}"),
        batch=f"{fewest}" if fewest == most else f"{fewest} to {most}",
        operators_sentence=_operators(model),
        files="\n".join(_file_rows(manifest)),
        gpus=_gpus(manifest),
        latency_sentence=_latency(latency),
        mode={1: "L", 3: "RGB"}.get(channels, f"{channels} channels"),
        mean=_numbers(manifest["preprocessing"]["mean"]),
        std=_numbers(manifest["preprocessing"]["std"]),
    )


def _operators(model: Mapping[str, Any]) -> str:
    slots = f" with these operators in its {len(model['operators'])} slots: {', '.join(model['operators'])}"
    return f"It is {model['name']}{slots if model['operators'] else ''}; {model['parameters']:,} parameters."


def _some(classes: list[str]) -> str:
    return ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")


def _file_rows(manifest: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {item['file']} | the network in {precision}{_judged(item, manifest)} |"
        for precision, item in manifest["variants"].items()
    ]
    if (dense := manifest["dense"]) is not None:
        smallest, stride = ("x".join(map(str, dense[name])) for name in ("smallest", "stride"))
        rows.append(
            f"| {dense['file']} | the network for images of any size from {smallest} on: output `map` has an answer every "
            f"{stride} pixels, `output` is their mean |"
        )
    for target, items in manifest["compiled"].items():
        for precision, item in items.items():
            batch = f", batch {item['batch'][0]}" if target == "aoti" else ""
            made_for = "" if target == "openvino" else f"{batch}, {_machine(item)}"
            names, hint = ", ".join(item["files"]), ""
            if (target, precision) == ("openvino", "bf16"):
                hint = ' (computing so with INFERENCE_PRECISION_HINT="bf16")'
            rows.append(f"| {names} | {_TARGETS[target]} in {precision}{hint}{made_for}{_judged(item, manifest)} |")
    return rows


_TARGETS = {
    "aoti": "compiled for PyTorch (AOTInductor)",
    "openvino": "OpenVINO IR",
    "tensorrt": "TensorRT engine",
    "tensorrt-rtx": "TensorRT for RTX engine",
}


def _gpus(manifest: Mapping[str, Any]) -> str:
    """Which GPUs the engines of TensorRT for RTX are for; nothing where there are none."""
    engines = manifest["compiled"].get("tensorrt-rtx", {}).values()
    needed = {number for item in engines for number in item["requires"]["compute_capability"].split(", ")}
    rows = "".join(f"| {number(key)} | {cards} |\n" for key, cards in CARDS.items() if number(key) in needed)
    return f"\n| compute capability | GPUs |\n|---|---|\n{rows}" if rows else ""


def _machine(item: Mapping[str, Any]) -> str:
    requires = item["requires"]
    if "tensorrt-rtx" in requires:
        computes = f", computing {item['computes']}" if "computes" in item else ""
        untried = ", not run where it was made" if item["max_abs_error"] is None else ""
        where = f"GPUs of compute capability {requires['compute_capability']}"
        return f"{where} with TensorRT for RTX {requires['tensorrt-rtx']}{computes}{untried}"
    if "gpu" in requires:
        return f"{requires['gpu']} with TensorRT {requires['tensorrt']}"
    where = "an NVIDIA GPU" if item["device"] == "cuda" else f"a CPU with {requires.get('AOTI_CPU_ISA') or 'any features'}"
    return f"{where} ({requires.get('AOTI_MACHINE', '')})"


def _judged(item: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    if item["accuracy"] is None:
        return ""
    return f", {100 * item['accuracy']:.2f} % right on {manifest['validation']['images']} validation images"


def _compiled(manifest: Mapping[str, Any], repeat: str) -> str:
    """How to run the AOTInductor package of the first precision; nothing where there is none, or where it needs a GPU."""
    packages = [item for item in manifest["compiled"].get("aoti", {}).values() if item["device"] == "cpu"]
    return _AOTI.format(file=packages[0]["file"], device=_machine(packages[0]), repeat=repeat) if packages else ""


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
