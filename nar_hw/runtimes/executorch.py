"""ExecuTorch with XNNPACK's kernels, which runs PyTorch's networks in apps (optional: pip install 'nar-hw[executorch]')."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from nar_hw.errors import ExportError, ModelError
from nar_hw.export.executorch import INSTALL, ExecuTorchNetwork, save_executorch
from nar_hw.runtimes.base import RuntimeConfig
from nar_hw.runtimes.device import DeviceRuntime
from nar_hw.runtimes.exporting import Exported, Source
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


class ExecuTorch(DeviceRuntime):
    """.pte files, which torch.export makes for one number of images. A bundle's is taken as it is.

    Everything is fp32. Its Python package needs torch: it estimates what an app on a device does, and goes into no kit.
    """

    name = "executorch"
    title = "ExecuTorch"
    network = ExecuTorchNetwork
    packages = ("executorch",)
    install = INSTALL
    readme = _USAGE
    consumes = "module"
    precisions = ("fp32",)
    files = (".pte",)
    exports = ("fp32",)

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

    def _files(self, network: nn.Module | Path, folder: Path) -> Sequence[Path]:
        if isinstance(network, Path):
            return (network,)
        try:
            return (
                save_executorch(
                    prepared(network, self.config, own=self.own), folder / "network.pte", self.images, self.config.threads
                ),
            )
        except ExportError as problem:
            raise ModelError(str(problem)) from problem
