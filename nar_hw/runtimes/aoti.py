"""AOTInductor: a network compiled ahead of time into a package that runs without Python."""

import json
from pathlib import Path

import torch
from torch import nn

from nar_hw.errors import ModelError
from nar_hw.export.aoti import Float32Ends, compile_package, load_package, read_metadata
from nar_hw.files import Scratch
from nar_hw.runtimes.base import Images, RuntimeConfig
from nar_hw.runtimes.compiler import no_compiler
from nar_hw.runtimes.exporting import Deployed, Exported, Source
from nar_hw.runtimes.torch_module import DTYPES, LAYOUTS, TorchRuntime, prepared, to_device, to_numpy, torch_state

_USAGE = """## Run it in Python with PyTorch, compiled
`pip install torch`; {file} holds machine code for {machine}: load it there only, and only if
you trust who made it. Replace the session and the call above by
```python
import torch
network = torch._inductor.aoti_load_package("{file}", run_single_threaded=True)
scores = network(torch.from_numpy((pixels - mean) / std)[None]{repeat})[0].numpy()
```
"""


class Aoti(TorchRuntime):
    """Compiled when loaded, for one batch size: tens of seconds. A bundle's .pt2 file is taken as it is."""

    name = "aoti"
    files = (".pt2",)
    exports = ("fp32", "fp16", "bf16")

    @classmethod
    def _missing(cls, config: RuntimeConfig) -> str | None:
        return super()._missing(config) or no_compiler(config)

    @classmethod
    def export(cls, source: Source, config: RuntimeConfig) -> Exported:
        """A package for the fewest images at once, which takes and gives float32."""
        shape = (config.batch, *source.input_shape)
        network = prepared(source.network, config)
        ends = network if config.precision == "fp32" else Float32Ends(network, DTYPES[config.precision])
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in source.metadata.items()}
        package = source.path(config.precision, ".pt2")
        with torch_state(config):
            metadata = {**texts, "precision": config.precision, "input_shape": json.dumps(shape)}
            compile_package(ends, torch.zeros(shape, device=config.device), package, metadata)
        machine = {key: value for key, value in read_metadata(package).items() if key.startswith("AOTI_")}
        return Exported((package.name,), (config.batch,) * 2, config.device_type, {**machine, "torch": torch.__version__})

    @classmethod
    def described(cls, precision: str, exported: Exported) -> str:
        """With the machine that it was compiled for."""
        return f"compiled for PyTorch (AOTInductor) in {precision}, batch {exported.batch[0]}, {_machine(exported)}"

    @classmethod
    def usage(cls, bundle: Deployed) -> str:
        """Of the first package for a CPU."""
        for package in bundle.exported:
            if package.device == "cpu":
                repeat = f".repeat({package.batch[0]}, 1, 1, 1)" if package.batch[0] > 1 else ""
                return _USAGE.format(file=package.files[0], machine=_machine(package), repeat=repeat)
        return ""

    def _load(self, network: nn.Module | Path) -> None:
        self._input = to_device(self.images, self.config)
        if isinstance(network, Path):
            self._input = self._input.float()
            self._check(network)
            with torch_state(self.config):
                self._forward = load_package(network)
            return
        self._scratch = Scratch()
        package = Path(self._scratch.name) / "network.pt2"
        with torch_state(self.config):
            compile_package(prepared(network, self.config, own=self.own), self._input, package)
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


def _machine(package: Exported) -> str:
    requires = package.requires
    where = "an NVIDIA GPU" if package.device == "cuda" else f"a CPU with {requires.get('AOTI_CPU_ISA') or 'any features'}"
    return f"{where} ({requires.get('AOTI_MACHINE', '')})"
