"""What is read beside a clock: memory of the process, and memory, energy and clocks of a GPU."""

import ctypes
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.base import Runtime

SLOWED = {
    "HwThermalSlowdown": "heat",
    "SwThermalSlowdown": "heat, by its driver",
    "HwPowerBrakeSlowdown": "its power supply",
    "SwPowerCap": "its power limit",
    "HwSlowdown": "heat or power",
}
"""NVML's reason -> in words."""


class HostMemory:
    """How far the process's resident memory rises above where it stood when this was made; None where it is not Linux."""

    def __init__(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        self._before = resident_mib()

    def peak_mib(self) -> float | None:
        """The highest rise since then, MiB; memory that the process had freed before and uses again does not count."""
        peak = _resident("VmHWM")
        return None if peak is None or self._before is None else max(0.0, peak - self._before)


def resident_mib() -> float | None:
    """The process's resident memory, MiB; None where it is not Linux."""
    return _resident("VmRSS")


def _resident(name: str) -> float | None:
    """A field of /proc/self/status in MiB."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{name}:\s*(\d+) kB$", status, re.M)
    return int(found[1]) / 1024 if found else None


@contextmanager
def memory_of(config: RuntimeConfig) -> Iterator[Callable[[], float | None]]:
    """What reads the memory in use, MiB: of a whole GPU through NVML, of this process for a CPU; None where it cannot be read."""
    if config.device_type == "cuda":
        with Gpu(config) as gpu:
            yield gpu.used_mib
    else:
        yield _settled_mib


def _settled_mib() -> float | None:
    """What the process has freed goes back first, lest it be used for the next network and not be seen."""
    with suppress(OSError, AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)
    return resident_mib()


RAPL = Path("/sys/class/powercap")


def cpu_energy_mj(runtime: Runtime, seconds: float = 1.0) -> float | None:
    """mJ of the whole CPU per run while ``runtime`` keeps it busy for ``seconds``, by RAPL; None where that cannot be read.

    Packages are counted, and not what is within them.
    """
    before = _package_energies()
    if before is None:
        return None
    runs = _busy(runtime, seconds)
    after = _package_energies()
    if after is None or after.keys() != before.keys():
        return None
    # A counter that has reached its end begins anew
    microjoules = sum((now - before[name][0]) % most for name, (now, most) in after.items())
    return microjoules / 1e3 / runs


def _package_energies() -> dict[str, tuple[int, int]] | None:
    """Package -> (microjoules, where its counter begins anew); None without packages, or without the right to read them."""
    folders = sorted(RAPL.glob("intel-rapl:[0-9]*"))
    try:
        found = {
            folder.name: (
                int((folder / "energy_uj").read_text(encoding="ascii")),
                int((folder / "max_energy_range_uj").read_text(encoding="ascii")) + 1,
            )
            for folder in folders
            if folder.name.count(":") == 1
        }
    except (OSError, ValueError):
        return None
    return found or None


def _busy(runtime: Runtime, seconds: float) -> int:
    """Keep a device busy; returns how many runs that were."""
    runs, start = 0, time.monotonic()
    while runs == 0 or time.monotonic() - start < seconds:
        runs += len(runtime.time_ms(10))
    return runs


class Gpu:
    """Readings of a config's CUDA device through NVML; None for what it does not tell. Use it as a context."""

    def __init__(self, config: RuntimeConfig) -> None:
        self.index = config.device_index
        self._handle: Any = None

    def __enter__(self) -> Self:
        import pynvml
        import torch

        self._nvml: Any = pynvml
        torch.cuda.synchronize(self.index)  # makes the context that whatever comes first would pay for
        try:
            pynvml.nvmlInit()
            # NVML counts all devices of the machine, CUDA those that are visible.
            own = torch.cuda.get_device_properties(self.index).uuid
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{own}")
        except pynvml.NVMLError:
            self._handle = None
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _read(self, question: str, *about: int) -> Any:
        if self._handle is None:
            return None
        try:
            return getattr(self._nvml, question)(self._handle, *about)
        except self._nvml.NVMLError:
            return None

    def used_mib(self) -> float | None:
        """Memory in use on the whole device, MiB; what torch holds in reserve is given back first."""
        import torch

        torch.cuda.synchronize(self.index)
        torch.cuda.empty_cache()
        memory = self._read("nvmlDeviceGetMemoryInfo")
        return None if memory is None else memory.used / 2**20

    def under_load(self, runtime: Runtime, seconds: float = 1.0) -> tuple[float | None, float | None]:
        """(mJ per run, SM clock in MHz) while ``runtime`` keeps the device busy for ``seconds``."""
        before = self._read("nvmlDeviceGetTotalEnergyConsumption")
        runs = _busy(runtime, seconds)
        after = self._read("nvmlDeviceGetTotalEnergyConsumption")
        return None if before is None or after is None else (after - before) / runs, self.sm_clock_mhz()

    def sm_clock_mhz(self) -> float | None:
        """The SM clock now, MHz."""
        clock = self._read("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM)
        return None if clock is None else float(clock)

    def slowed_by(self) -> list[str]:
        """Why the device runs slower than it can now, in words; empty where it does not, or does not tell."""
        bits = self._read("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        return [word for name, word in SLOWED.items() if bits & getattr(self._nvml, f"nvmlClocksThrottleReason{name}", 0)]
