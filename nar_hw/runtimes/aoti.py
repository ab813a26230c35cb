"""AOTInductor: a network compiled ahead of time into a package that runs without Python."""

import tempfile
from pathlib import Path

import torch
from torch import nn

from nar_hw.errors import ModelError
from nar_hw.runtimes.base import RuntimeConfig
from nar_hw.runtimes.compiler import compiling, no_compiler
from nar_hw.runtimes.onnx_graph import one_line
from nar_hw.runtimes.torch_module import TorchRuntime, prepared, to_device, torch_state


class Aoti(TorchRuntime):
    """Compiled when loaded, for one batch size: tens of seconds."""

    name = "aoti"

    @classmethod
    def _missing(cls, config: RuntimeConfig) -> str | None:
        return super()._missing(config) or no_compiler(config)

    def _load(self, network: nn.Module | Path) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="nar_hw_")
        self._input = to_device(self.images, self.config)
        package = Path(self._scratch.name) / "network.pt2"
        with torch_state(self.config):  # Inductor writes the number of threads into the code that it generates
            self._compile(prepared(network, self.config), package)
            self._forward = torch._inductor.aoti_load_package(str(package), run_single_threaded=True)

    def _compile(self, module: nn.Module, package: Path) -> None:
        with compiling(), torch.inference_mode(mode=False), torch.no_grad():
            try:
                program = torch.export.export(module, (self._input,))
            except Exception as problem:  # whatever the network raises under the tracer
                raise ModelError(f"torch.export must be able to trace the network, but failed: {one_line(problem)}") from problem
            torch._inductor.aoti_compile_and_package(program, package_path=str(package))

    def close(self) -> None:
        """Unload the package and delete it."""
        super().close()
        if "_scratch" in self.__dict__:
            self._scratch.cleanup()
