"""What can be found out about the machine that this runs on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

# Instruction sets that decide which kernels a runtime picks
FLAGS = (
    "sse4_1",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimdhp",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
    "sve2",
)
_CPU = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_ZONES = Path("/sys/class/thermal")


def cpu() -> tuple[str | None, list[str] | None]:
    """(model, instruction sets that matter) of this machine's CPU."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        return parse_cpuinfo(info.read_text(encoding="utf-8", errors="replace"))
    return platform.processor() or None, None


def parse_cpuinfo(text: str) -> tuple[str | None, list[str] | None]:
    """(model, instruction sets that matter) from the text of /proc/cpuinfo.

    Virtual machines name whole families of CPUs alike, so family, model and stepping follow the name.
    """
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip().lower(), value.strip())
    flags = (fields.get("flags") or fields.get("features") or "").split()
    isa = [flag for flag in FLAGS if flag in flags] if flags else None
    numbers = [fields[key] for key in ("cpu family", "model", "stepping") if key in fields]
    parts = [fields[key] for key in ("cpu implementer", "cpu part", "cpu variant") if key in fields]
    name = fields.get("model name") or fields.get("hardware")
    identity = " ".join(numbers and ["model", "-".join(numbers)]) or " ".join(parts and ["ARM", "-".join(parts)])
    if name is None:
        return identity or platform.processor() or None, isa
    return f"{name} ({identity})" if identity else name, isa


def cores() -> int | None:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def system() -> str:
    """Operating system, its version and the architecture."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def state() -> dict[str, Any]:
    """What may change while it runs: governor, frequency and highest frequency (MHz), temperature (C); None where unknown."""
    khz = {key: _number(_CPU / name) for key, name in (("mhz", "scaling_cur_freq"), ("highest_mhz", "cpuinfo_max_freq"))}
    zones = sorted(_ZONES.glob("thermal_zone*/temp")) if _ZONES.is_dir() else []
    temperatures = [value / 1000 for value in map(_number, zones) if value is not None]
    return {
        "governor": _text(_CPU / "scaling_governor"),
        **{key: None if value is None else value / 1000 for key, value in khz.items()},
        "celsius": max(temperatures, default=None),
    }


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None


def _number(path: Path) -> float | None:
    text = _text(path)
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
