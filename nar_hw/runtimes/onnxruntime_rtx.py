"""ONNX Runtime with its TensorRT for RTX plugin on an NVIDIA GPU (optional: pip install 'nar-hw[onnxruntime-rtx]')."""

import functools
import importlib
import importlib.util
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nar_hw.errors import ModelError, RuntimeUnavailableError
from nar_hw.export.tensorrt import prepared
from nar_hw.runtimes.config import RuntimeConfig
from nar_hw.runtimes.exporting import Deployed
from nar_hw.runtimes.onnx_graph import one_line
from nar_hw.runtimes.onnxruntime import OnnxRuntime

if TYPE_CHECKING:
    from torch import nn

PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
SETTINGS = {"session.disable_cpu_ep_fallback": "1"}
"""Of each session: what the plugin does not take is refused, and not left to the CPU."""
_PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx-cu13"
_INSTALL = "pip install 'nar-hw[onnxruntime-rtx]'"


class OnnxRuntimeRtx(OnnxRuntime):
    """A session whose nodes all run in the plugin, none on the CPU.

    Images and outputs lie in the memory of the CPU: their copies are part of its times.
    """

    name = "onnxruntime-rtx"
    devices = ("cuda",)
    layers = False
    triton = None
    kit = ""

    @classmethod
    def _missing(cls, config: RuntimeConfig) -> str | None:
        from nar_hw.runtimes.torch_module import no_cuda

        # Only asked whether it is there: to import it loads its libraries, which need a driver
        if importlib.util.find_spec(PLUGIN) is None:
            return f"{_PACKAGE} is not installed: {_INSTALL}"
        return no_cuda(config)

    @classmethod
    def versions(cls) -> dict[str, str]:
        """The versions of the plugin, ONNX Runtime and onnx. Raises RuntimeUnavailableError when they are not installed."""
        try:
            version = metadata.version(_PACKAGE)
        except metadata.PackageNotFoundError as problem:
            raise RuntimeUnavailableError(f"{_PACKAGE} is not installed: {_INSTALL}") from problem
        return {_PACKAGE: version, **super().versions()}

    @classmethod
    def usage(cls, bundle: Deployed) -> str:
        """Nothing: the section on ONNX Runtime says how."""
        return ""

    def _load(self, network: "nn.Module | Path") -> None:
        self._devices = plugin_devices()
        if self.config.device_index >= len(self._devices):
            count = len(self._devices)
            raise RuntimeUnavailableError(
                f"device {self.config.device} must be one of the {count} GPUs that TensorRT for RTX finds (Ampere or later)"
            )
        super()._load(network)

    def _opened(self, folder: Path) -> Any:
        import onnxruntime

        from nar_hw.device.onnxruntime import session_options

        options = session_options(self.config.threads)
        for key, value in SETTINGS.items():
            options.add_session_config_entry(key, value)
        options.add_provider_for_devices([self._devices[self.config.device_index]], {})
        file = prepared(Path(self._file), folder)
        try:
            return onnxruntime.InferenceSession(file, options)
        except Exception as problem:  # its exceptions have no common base but this
            raise ModelError(f"ONNX Runtime with TensorRT for RTX cannot load {self._file}: {one_line(problem)}") from problem

    def _bound(self) -> Any:
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._input, self.images)
        for output in self._session.get_outputs():
            binding.bind_output(output.name)
        return binding


@functools.cache
def plugin_devices() -> tuple[Any, ...]:
    """The GPUs (OrtEpDevice) that the plugin can use; registers it. Raises RuntimeUnavailableError when it does not load."""
    import onnxruntime

    try:
        plugin: Any = importlib.import_module(PLUGIN)
        onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
    except Exception as problem:  # its exceptions have no common base but this
        raise RuntimeUnavailableError(f"{_PACKAGE} cannot be loaded ({one_line(problem)}): {_INSTALL}") from problem
    return tuple(device for device in onnxruntime.get_ep_devices() if device.ep_name == plugin.get_ep_name())
