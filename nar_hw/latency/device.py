"""The fingerprint of a measurement: on what it was made, and whether another one was made on the same."""

import datetime
import platform
import re
from collections.abc import Mapping
from typing import Any

from nar_hw.device import machine
from nar_hw.errors import RuntimeUnavailableError
from nar_hw.runtimes import RuntimeConfig, runtime_class

MATTERS = ("device", "isa", "runtime", "runtime_version", "precision", "batch", "threads", "memory_format")
"""Fields of a fingerprint in which two measurements must agree to be compared; of the version, major and minor."""


def fingerprint(config: RuntimeConfig) -> dict[str, Any]:
    """Everything about this machine that a latency depends on, as JSON values; None for what cannot be found out.

    Keys: device (name of the CPU or GPU), kind ("cpu", "cuda" or "fake"), cpu, isa (those of its instruction sets that
    runtimes choose kernels by), cores, compute_capability, driver, cuda, cudnn, runtime, runtime_version, precision,
    batch, threads, memory_format, os, python, torch, versions (of all that the runtime stands on), date (UTC).

    Raises UnknownNameError for an unknown runtime and RuntimeUnavailableError for one that is not installed.
    """
    return _fingerprint(config, runtime_class(config.runtime).versions())


def here(config: RuntimeConfig) -> dict[str, Any]:
    """`fingerprint`, but where the runtime is not installed with None as its version: the machine can be compared all the same.

    Raises UnknownNameError for an unknown runtime.
    """
    try:
        return fingerprint(config)
    except RuntimeUnavailableError:
        return _fingerprint(config, {})


def _fingerprint(config: RuntimeConfig, versions: Mapping[str, str]) -> dict[str, Any]:
    import torch

    cpu, isa = machine.cpu()
    gpu = _gpu(config) if config.device_type == "cuda" else {}
    kind = "fake" if config.runtime == "fake" else config.device_type
    return {
        "device": {"fake": "fake device", "cpu": cpu, "cuda": gpu.get("name")}[kind],
        "kind": kind,
        "cpu": cpu,
        "isa": isa,
        "cores": machine.cores(),
        "compute_capability": gpu.get("compute_capability"),
        "driver": gpu.get("driver"),
        "cuda": torch.version.cuda if kind == "cuda" else None,
        "cudnn": gpu.get("cudnn"),
        "runtime": config.runtime,
        "runtime_version": next(iter(versions.values()), None),
        "precision": config.precision,
        "batch": config.batch,
        "threads": config.threads,
        "memory_format": config.memory_format,
        "os": machine.system(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "versions": dict(versions),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The fields of MATTERS in which two fingerprints differ; an unknown value equals nothing but another unknown one.

    The CPU's instruction sets do not count for a measurement on a GPU.
    """
    fields = (field for field in MATTERS if field != "isa" or first.get("kind") == second.get("kind") == "cpu")
    return [field for field in fields if _comparable(field, first.get(field)) != _comparable(field, second.get(field))]


def device_slug(fingerprint: Mapping[str, Any]) -> str:
    """The device's name for use in file names: lower case letters, digits and single hyphens."""
    name = re.sub(r"\((r|tm|c)\)|\b(cpu|processor|nvidia|geforce)\b|@.*", " ", (fingerprint.get("device") or "").lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-") or "unknown-device"


def _comparable(field: str, value: Any) -> Any:
    if field == "runtime_version" and isinstance(value, str):
        return ".".join(value.split("+")[0].split(".")[:2])
    return value


def _gpu(config: RuntimeConfig) -> dict[str, Any]:
    """Name, compute capability, driver and cuDNN of the config's GPU; empty when there is none."""
    import torch

    if not torch.cuda.is_available() or config.device_index >= torch.cuda.device_count():
        return {}
    properties = torch.cuda.get_device_properties(config.device_index)
    cudnn: Any = torch.backends.cudnn  # untyped in torch
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "cudnn": None if cudnn.version() is None else str(cudnn.version()),
    }


def _driver() -> str | None:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()
