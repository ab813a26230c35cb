"""Inference runtimes by name. Adding one, with its files for bundles, is one file and one line in RUNTIMES.

`Runtime.exports` and `export` make it a target of `nar-hw export`, `described` and `usage` are its words in a bundle's README,
and `triton` lets a Triton Inference Server run it; the conformance tests take it from RUNTIMES too.
"""

import importlib
from typing import Any

from nar_hw.errors import UserError, unknown_name
from nar_hw.runtimes.base import Runtime
from nar_hw.runtimes.config import MEMORY_FORMATS, PRECISIONS, RuntimeConfig

__all__ = ["MEMORY_FORMATS", "PRECISIONS", "RUNTIMES", "Runtime", "RuntimeConfig", "runtime_class", "survey"]

RUNTIMES: dict[str, str] = {
    "onnxruntime": "nar_hw.runtimes.onnxruntime:OnnxRuntime",
    "tensorrt": "nar_hw.runtimes.tensorrt:TensorRT",
    "tensorrt-rtx": "nar_hw.runtimes.tensorrt_rtx:TensorRTRtx",
    "onnxruntime-rtx": "nar_hw.runtimes.onnxruntime_rtx:OnnxRuntimeRtx",
    "openvino": "nar_hw.runtimes.openvino:OpenVino",
    "litert": "nar_hw.runtimes.litert:LiteRt",
    "ncnn": "nar_hw.runtimes.ncnn:Ncnn",
    "mnn": "nar_hw.runtimes.mnn:Mnn",
    "executorch": "nar_hw.runtimes.executorch:ExecuTorch",
    "torch_eager": "nar_hw.runtimes.torch_eager:TorchEager",
    "torch_compile": "nar_hw.runtimes.torch_compile:TorchCompile",
    "cuda_graph": "nar_hw.runtimes.cuda_graph:CudaGraph",
    "aoti": "nar_hw.runtimes.aoti:Aoti",
    "fake": "nar_hw.runtimes.fake:FakeRuntime",
}


def runtime_class(name: str) -> type[Runtime]:
    """The class of runtime ``name``. Raises UnknownNameError."""
    if name not in RUNTIMES:
        raise unknown_name("runtime", name, RUNTIMES)
    module, _, attribute = RUNTIMES[name].partition(":")
    found: type[Runtime] = getattr(importlib.import_module(module), attribute)
    assert issubclass(found, Runtime), f"{RUNTIMES[name]} is not a Runtime"
    return found


def survey() -> list[dict[str, Any]]:
    """What each runtime can do on this machine, as plain JSON values.

    Keys: name, works, reason (why not and what to do; None when it works), devices and precisions (those that work),
    versions, layers (whether it has per-layer times).
    """
    return [_surveyed(runtime_class(name)) for name in RUNTIMES]


def _surveyed(runtime: type[Runtime]) -> dict[str, Any]:
    reasons = {
        (device, precision): runtime.unavailable(RuntimeConfig(runtime=runtime.name, device=device, precision=precision))
        for device in runtime.devices
        for precision in runtime.precisions
    }
    working = [pair for pair, reason in reasons.items() if reason is None]
    try:
        versions = runtime.versions()
    except UserError:
        versions = {}
    return {
        "name": runtime.name,
        "works": bool(working),
        "reason": None if working else next(iter(reasons.values())),
        "devices": list(dict.fromkeys(device for device, _ in working)),
        "precisions": list(dict.fromkeys(precision for _, precision in working)),
        "versions": versions,
        "layers": runtime.layers,
    }
