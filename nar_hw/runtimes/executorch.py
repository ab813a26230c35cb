"""ExecuTorch with XNNPACK's kernels, which runs PyTorch's networks in apps (optional: pip install 'nar-hw[executorch]')."""

from pathlib import Path

from torch import nn

from nar_hw.errors import ExportError, ModelError, RuntimeUnavailableError
from nar_hw.export.executorch import ExecuTorchNetwork, executorch_version, save_executorch
from nar_hw.files import Scratch
from nar_hw.runtimes.base import Images, Runtime, RuntimeConfig
from nar_hw.runtimes.exporting import Deployed, Exported, Source
from nar_hw.runtimes.inputs import preset_images
from nar_hw.runtimes.torch_module import prepared

_USAGE = """## Run it in Python with ExecuTorch
`pip install torch executorch`; replace the session and the call above by
```python
import torch
from executorch.runtime import Runtime
program = Runtime.get().load_program("model.pte")
normalised = torch.from_numpy(np.ascontiguousarray((pixels - mean) / std))[None]
scores = program.load_method("forward").execute((normalised,))[0][0].numpy()
```
"""


class ExecuTorch(Runtime):
    """.pte files, which torch.export makes for one number of images. A bundle's is taken as it is.

    Everything is fp32. Its Python package needs torch: it estimates what an app on a device does, and goes into no kit.
    """

    name = "executorch"
    consumes = "module"
    precisions = ("fp32",)
    devices = ("cpu",)
    files = (".pte",)
    exports = ("fp32",)

    @classmethod
    def _missing(cls, config: RuntimeConfig) -> str | None:
        try:
            executorch_version()
        except RuntimeUnavailableError as problem:
            return str(problem)
        return None

    @classmethod
    def versions(cls) -> dict[str, str]:
        """The version of ExecuTorch. Raises RuntimeUnavailableError when it is not installed."""
        return {"executorch": executorch_version()}

    @classmethod
    def export(cls, source: Source, config: RuntimeConfig) -> Exported:
        """A .pte for the fewest images of the bundle, which is one as a rule."""
        fewest = source.batch[0]
        images = preset_images(fewest, source.input_shape)
        file = save_executorch(prepared(source.network, config), source.path("fp32", ".pte"), images, config.threads)
        return Exported((file.name,), (fewest, fewest), "cpu", {})

    @classmethod
    def described(cls, precision: str, exported: Exported) -> str:
        """With its kernels."""
        return f"ExecuTorch in fp32 with XNNPACK's kernels, batch {exported.batch[0]}"

    @classmethod
    def usage(cls, bundle: Deployed) -> str:
        """Where the bundle has its file for one image."""
        return _USAGE if any(item.batch == (1, 1) for item in bundle.exported) else ""

    def _load(self, network: nn.Module | Path) -> None:
        with Scratch() as scratch:
            file = network if isinstance(network, Path) else self._file(network, Path(scratch))
            try:
                data = file.read_bytes()
            except OSError as problem:
                raise ModelError(f"{file} cannot be read: {problem}") from problem
        self._network = ExecuTorchNetwork(data, str(file), self.images, self.config.threads)

    def _file(self, network: nn.Module, folder: Path) -> Path:
        try:
            return save_executorch(prepared(network, self.config), folder / "network.pte", self.images, self.config.threads)
        except ExportError as problem:
            raise ModelError(str(problem)) from problem

    def _infer(self, images: Images) -> Images:
        return self._network.infer(images)

    def run(self) -> None:
        """One inference."""
        self._network.run()

    def close(self) -> None:
        """Release the network."""
        if "_network" in self.__dict__:
            self._network.close()
