"""Compiled files of a bundle, from its network or ONNX files: TensorRT engines, AOTInductor packages and OpenVINO IR."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nar_hw.errors import ExportError, RuntimeUnavailableError, unknown_name
from nar_hw.export.aoti import Float32Ends, compile_package, read_metadata
from nar_hw.export.gpus import CARDS, capabilities
from nar_hw.export.openvino import save_ir
from nar_hw.export.quantize import to_bf16
from nar_hw.export.tensorrt import LIBRARIES, build_engine, tensorrt_module
from nar_hw.runtimes import PRECISIONS, RuntimeConfig, runtime_class
from nar_hw.runtimes.torch_module import prepared, torch_state

TARGETS = {
    "onnx": ("fp32", "fp16", "int8"),
    "tensorrt": ("fp32", "fp16", "bf16", "int8"),
    "tensorrt-rtx": ("fp32", "fp16", "bf16", "int8"),
    "aoti": ("fp32", "fp16", "bf16"),
    "openvino": ("fp32", "bf16", "int8"),
}
"""Target -> the precisions that it can have. OpenVINO's bf16 is its fp32 file run with another hint."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What compiled files are made from."""

    network: nn.Module
    onnx: Mapping[str, Path]
    """By precision."""
    input_shape: tuple[int, int, int]
    batch: tuple[int, int]
    """Fewest and most images at once."""
    device: str
    """Where the files shall run."""
    gpus: Sequence[str]
    """For which GPUs engines of TensorRT for RTX are built: capabilities, cards or "all"."""
    metadata: Mapping[str, Any]


def plan(targets: Sequence[str], precisions: Sequence[str], device: str) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """The compiled files to make, as (target, precision), and "target precision" -> why not, for those that cannot be.

    Raises:
        UnknownNameError: an unknown target or precision.
        RuntimeUnavailableError: a target that does not work here.
        ExportError: a precision that none of the targets can have here.
    """
    for kind, asked, known in (("export target", targets, tuple(TARGETS)), ("precision", precisions, PRECISIONS)):
        for name in asked:
            if name not in known:
                raise unknown_name(kind, name, known)
    made: list[tuple[str, str]] = []
    left_out: dict[str, str] = {}
    for target in dict.fromkeys(targets):
        if target == "onnx":
            continue
        if reason := _unavailable(target, "fp32", device):
            raise RuntimeUnavailableError(reason)
        for precision in dict.fromkeys(precisions):
            reason = f"{target} has {', '.join(TARGETS[target])}"
            if precision in TARGETS[target]:
                reason = _unavailable(target, precision, device) or ""
            if reason:
                left_out[f"{target} {precision}"] = reason
            else:
                made.append((target, precision))
    possible = {*TARGETS["onnx"], *(precision for _, precision in made)}
    for precision in precisions:
        if precision not in possible:
            reasons = "; ".join(reason for name, reason in left_out.items() if name.endswith(f" {precision}"))
            raise ExportError(
                f"{precision} needs a target that has it, but onnx has {', '.join(TARGETS['onnx'])}"
                f"{f' and {reasons}' if reasons else ''}: use --to with aoti, openvino, tensorrt or tensorrt-rtx"
            )
    return made, left_out


def runs_elsewhere(target: str) -> bool:
    """Whether a target's files are made on machines that cannot run them."""
    return target in LIBRARIES and LIBRARIES[target].anywhere


def check_gpus(gpus: Sequence[str], targets: Sequence[str], made: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What "all" leaves out, as `plan` tells it.

    Raises UnknownNameError for a GPU that does not exist, ExportError where GPUs are named for no target, or none for one.
    """
    if bool(gpus) != ("tensorrt-rtx" in targets):
        raise ExportError(
            f"target tensorrt-rtx is built for GPUs that are named, but got the targets {', '.join(targets)} and the GPUs "
            f"{', '.join(gpus) or 'none'}: use --to tensorrt-rtx with --gpus sm89, or with --gpus all"
        )
    missing = {
        f"{target} {precision} {gpu}": f"{gpu} has fp16 only in TensorRT for RTX"
        for target, precision in made
        if target == "tensorrt-rtx" and "all" in gpus
        for gpu in sorted(CARDS.keys() - set(capabilities(gpus, precision)))
    }
    if gpus:
        capabilities(gpus, "fp32")
    return missing


def _unavailable(target: str, precision: str, device: str) -> str | None:
    """Why a target's files cannot be made here: where its runtime works, or anywhere."""
    if not runs_elsewhere(target):
        return runtime_class(target).unavailable(config_for(target, precision, device))
    try:
        tensorrt_module(target)
    except RuntimeUnavailableError as problem:
        return str(problem)
    return None


def config_for(target: str, precision: str, device: str, batch: int = 1) -> RuntimeConfig:
    """How a target's file is run; engines need a CUDA device whatever ``device`` is, OpenVINO the CPU."""
    places = {**dict.fromkeys(LIBRARIES, device if device.startswith("cuda") else "cuda"), "openvino": "cpu"}
    return RuntimeConfig(
        runtime=target, precision=precision, batch=batch, device=places.get(target, device), threads=torch.get_num_threads()
    )


def build(target: str, precision: str, source: Source, folder: Path) -> dict[str, Any]:
    """Write the files of one target in one precision into ``folder``; what the manifest says of them: file, files, batch, ...

    Raises ExportError and RuntimeUnavailableError, in one line.
    """
    stem = "model" if precision == "fp32" else f"model.{precision}"
    if target in LIBRARIES:
        return _engine(target, precision, source, folder, stem)
    return {"aoti": _package, "openvino": _ir}[target](precision, source, folder, stem)


def _engine(target: str, precision: str, source: Source, folder: Path, stem: str) -> dict[str, Any]:
    fewest, most = source.batch
    anywhere = LIBRARIES[target].anywhere
    with tempfile.TemporaryDirectory(prefix="nar_hw_") as scratch:
        onnx = source.onnx.get(precision, Path(scratch) / "bf16.onnx")
        if precision == "bf16":
            to_bf16(source.onnx["fp32"], onnx)
        engine = folder / f"{stem}{'.rtx' if anywhere else ''}.engine"
        batch = (fewest, max(fewest, most // 8), most)
        info = build_engine(onnx, engine, library=target, gpus=source.gpus if anywhere else (), batch=batch)
    files = [engine.name, *(f"{engine.name}{end}" for end in (".json", ".layers.json", *([] if anywhere else [".cache"])))]
    requires = {target: info.tensorrt}
    if info.gpu is not None:
        requires["gpu"] = info.gpu
    requires["compute_capability"] = ", ".join(info.compute_capabilities)
    computes = ", ".join(f"{count} {kind}" for kind, count in info.datatypes.items())
    return {
        "file": engine.name,
        "files": files,
        "batch": [fewest, most],
        "device": "cuda",
        "requires": requires,
        **({"computes": computes} if computes else {}),
    }


def _package(precision: str, source: Source, folder: Path, stem: str) -> dict[str, Any]:
    config = config_for("aoti", precision, source.device, source.batch[0])
    shape = (config.batch, *source.input_shape)
    network = prepared(source.network, config)
    ends = network if precision == "fp32" else Float32Ends(network, next(network.parameters()).dtype)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in source.metadata.items()}
    package = folder / f"{stem}.pt2"
    with torch_state(config):
        metadata = {**texts, "precision": precision, "input_shape": json.dumps(shape)}
        compile_package(ends, torch.zeros(shape, device=config.device), package, metadata)
    requires = {key: value for key, value in read_metadata(package).items() if key.startswith("AOTI_")}
    requires["torch"] = torch.__version__
    return {
        "file": package.name,
        "files": [package.name],
        "batch": [config.batch] * 2,
        "device": config.device_type,
        "requires": requires,
    }


def _ir(precision: str, source: Source, folder: Path, stem: str) -> dict[str, Any]:
    stem, onnx = (stem, source.onnx["int8"]) if precision == "int8" else ("model", source.onnx["fp32"])
    files = [file.name for file in save_ir(onnx, folder / f"{stem}.xml")]
    return {"file": files[0], "files": files, "batch": list(source.batch), "device": "cpu", "requires": {}}
