"""torch.compile: operations fused into generated kernels, for one input shape."""

import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from nar_hw.runtimes.base import RuntimeConfig
from nar_hw.runtimes.compiler import compiling, no_compiler
from nar_hw.runtimes.torch_module import TorchRuntime, prepared, to_device


class TorchCompile(TorchRuntime):
    """Compiled when loaded: seconds to minutes. On CUDA with mode max-autotune, which also captures a CUDA graph."""

    name = "torch_compile"

    @classmethod
    def _missing(cls, config: RuntimeConfig) -> str | None:
        return super()._missing(config) or no_compiler(config)

    def _load(self, network: nn.Module | Path) -> None:
        module = prepared(network, self.config, own=self.own)
        mode = "max-autotune" if self.config.device_type == "cuda" else "default"
        self._forward = torch.compile(_fresh(module), dynamic=False, mode=mode)
        self._input = to_device(self.images, self.config)
        with compiling():
            self.run()
            self.synchronize()


def _fresh(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """``module`` behind a function with a code object of its own.

    torch.compile keeps what it compiled with the code object, for at most 8 variants, and then runs eagerly without a
    word: modules of one class share theirs, so the ninth child of a search space would not be compiled at all.
    """

    def forward(images: Tensor) -> Tensor:
        output: Tensor = module(images)
        return output

    code = forward.__code__.replace()
    return types.FunctionType(code, forward.__globals__, forward.__name__, None, forward.__closure__)
