"""What all runtimes have in common that run a torch module: its preparation, torch's global settings, running and timing."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nar_hw.runtimes.base import Images, Runtime, RuntimeConfig
from nar_hw.space.network import flat, for_inference, inference_copy

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def prepared(network: nn.Module | Path, config: RuntimeConfig, *, own: bool = False) -> nn.Module:
    """An evaluated copy of ``network``, or where it is one's ``own`` itself, on the config's device, in its precision and memory
    format.
    """
    assert isinstance(network, nn.Module)
    module = (for_inference(network) if own else inference_copy(network)).requires_grad_(False)
    module.to(config.device, DTYPES[config.precision])
    module.to(memory_format=LAYOUTS[config.memory_format])
    return module


def to_device(images: Images, config: RuntimeConfig) -> Tensor:
    """Images (B, C, H, W) as the tensor that a `prepared` module takes."""
    tensor = torch.tensor(images).to(config.device, DTYPES[config.precision])
    return tensor.contiguous(memory_format=LAYOUTS[config.memory_format])


def to_numpy(output: object) -> Images:
    """(B, D) float32: all that a module returned. Raises ModelError for anything but tensors."""
    array: Images = flat(output).detach().float().cpu().numpy()
    return array


@contextmanager
def torch_state(config: RuntimeConfig) -> Iterator[None]:
    """Inference mode with the config's threads or CUDA device; what was set before comes back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with torch.inference_mode(), _cuda_state(config) if config.device_type == "cuda" else nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _cuda_state(config: RuntimeConfig) -> Iterator[None]:
    """The config's device as the current one, cuDNN's fastest kernels, and fp32 that is not TF32."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, cudnn.benchmark = False, True
    try:
        with torch.cuda.device(config.device_index):
            yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before


def no_cuda(config: RuntimeConfig) -> str | None:
    """Why the config's CUDA device cannot be used, and what to do; None when it can, or when none is asked for."""
    if config.device_type != "cuda":
        return None
    if not torch.cuda.is_available():
        built = "finds no GPU: check nvidia-smi" if torch.version.cuda else "is a CPU build: install a CUDA build of torch"
        return f"{config.runtime} on {config.device} needs a CUDA device, but torch {torch.__version__} {built}"
    if config.device_index >= (count := torch.cuda.device_count()):
        return f"device {config.device} must be one of cuda:0 to cuda:{count - 1}"
    return None


class TorchRuntime(Runtime):
    """A runtime that calls a function on tensors: `_load` sets ``_forward`` and may change ``_input``.

    The input of `run` and `time_ms` lies on the device in the precision asked for: its conversion is not in the time.
    """

    consumes = "module"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp16")
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    memory_formats = ("contiguous", "channels_last")

    _forward: Callable[[Tensor], Any]
    _input: Tensor

    @classmethod
    def _missing(cls, config: RuntimeConfig) -> str | None:
        if config.precision == "fp16" and config.device_type == "cpu":
            return f"{cls.name} computes fp16 on cuda only: use bf16 or fp32 on the CPU"
        return no_cuda(config)

    @classmethod
    def versions(cls) -> dict[str, str]:
        """The version of torch."""
        return {"torch": torch.__version__}

    def _infer(self, images: Images) -> Images:
        with torch_state(self.config):
            return to_numpy(self._forward(to_device(images, self.config)))

    def run(self) -> None:
        """One forward pass; may return before the GPU is done."""
        with torch_state(self.config):
            self._forward(self._input)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.config.device_type == "cuda":
            torch.cuda.synchronize(self.config.device)

    def time_ms(self, repeats: int) -> list[float]:
        """The milliseconds of each of ``repeats`` inferences in a row, by the host's clock."""
        times = []
        with torch_state(self.config):
            for _ in range(repeats):
                start = time.perf_counter()
                self._forward(self._input)
                self.synchronize()
                times.append((time.perf_counter() - start) * 1e3)
        return times

    def close(self) -> None:
        """Let go of the network and its input."""
        for name in ("_forward", "_input"):
            self.__dict__.pop(name, None)
