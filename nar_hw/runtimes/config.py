"""Under which conditions a network runs: the part of a measurement that the user chooses."""

import os
import re

from nar_hw.errors import UserError, unknown_name
from nar_hw.records import Record

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
MEMORY_FORMATS = ("contiguous", "channels_last")

THREADS_PER_CORE = 4
"""More threads than this only wait for each other."""


def most_threads() -> int:
    """How many threads an inference may be asked to use on this machine."""
    return THREADS_PER_CORE * (os.cpu_count() or 1)


class RuntimeConfig(Record, frozen=True, kw_only=True):
    """One way to run a network. Raises UserError for a value that no runtime knows."""

    runtime: str = "onnxruntime"
    """Name in nar_hw.runtimes.RUNTIMES."""
    precision: str = "fp32"
    """One of PRECISIONS; inputs and outputs are fp32 always."""
    batch: int = 1
    """Images per inference."""
    threads: int = 1
    """CPU threads of one inference."""
    device: str = "cpu"
    """"cpu", "cuda" or "cuda:<index>"."""
    memory_format: str = "contiguous"
    """One of MEMORY_FORMATS: how the activations lie in memory."""

    def __post_init__(self) -> None:
        """Raises UnknownNameError and UserError."""
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if self.memory_format not in MEMORY_FORMATS:
            raise unknown_name("memory format", self.memory_format, MEMORY_FORMATS)
        if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", self.device):
            raise UserError(f"device must be cpu, cuda or cuda:<index>, but got {self.device!r}")
        for field in ("batch", "threads"):
            if (value := getattr(self, field)) < 1:
                raise UserError(f"{field} must be at least 1, but got {value}")

    @property
    def device_type(self) -> str:
        """ "cpu" or "cuda"."""
        return self.device.split(":")[0]

    @property
    def device_index(self) -> int:
        """Which of the CUDA devices."""
        return int(self.device.partition(":")[2] or 0)
