"""AOTInductor: a network compiled ahead of time into a package that runs without Python."""

import json
import tempfile
from pathlib import Path

import torch
from torch import nn

from nar_hw.errors import ModelError
from nar_hw.export.aoti import compile_package, load_package, read_metadata
from nar_hw.runtimes.base import Images, RuntimeConfig
from nar_hw.runtimes.compiler import no_compiler
from nar_hw.runtimes.torch_module import LAYOUTS, TorchRuntime, prepared, to_device, to_numpy, torch_state


class Aoti(TorchRuntime):
    """Compiled when loaded, for one batch size: tens of seconds. A bundle's .pt2 file is taken as it is."""

    name = "aoti"
    files = (".pt2",)

    @classmethod
    def _missing(cls, config: RuntimeConfig) -> str | None:
        return super()._missing(config) or no_compiler(config)

    def _load(self, network: nn.Module | Path) -> None:
        self._input = to_device(self.images, self.config)
        if isinstance(network, Path):
            self._input = self._input.float()
            self._check(network)
            with torch_state(self.config):
                self._forward = load_package(network)
            return
        self._scratch = tempfile.TemporaryDirectory(prefix="nar_hw_")
        package = Path(self._scratch.name) / "network.pt2"
        with torch_state(self.config):
            compile_package(prepared(network, self.config), self._input, package)
            self._forward = load_package(package)

    def _check(self, package: Path) -> None:
        """The range of batches and shapes that a package was made for is not enforced by torch."""
        found = read_metadata(package)
        config = self.config
        wanted = {
            "precision": config.precision,
            "input_shape": json.dumps([config.batch, *self.input_shape]),
            "AOTI_DEVICE_KEY": config.device_type,
        }
        for key, value in wanted.items():
            if found.get(key) != value:
                raise ModelError(f"{package} is for {key} {found.get(key)}, but {value} is asked for: export it again")

    def _infer(self, images: Images) -> Images:
        with torch_state(self.config):
            tensor = torch.from_numpy(images).to(self._input)
            return to_numpy(self._forward(tensor.contiguous(memory_format=LAYOUTS[self.config.memory_format])))

    def close(self) -> None:
        """Unload the package and delete it."""
        super().close()
        if "_scratch" in self.__dict__:
            self._scratch.cleanup()
