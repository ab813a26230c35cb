"""ONNX Runtime on the CPU or a CUDA device."""

import contextlib
import json
import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nar_hw.device.onnxruntime import kernel_runs, session_options
from nar_hw.device.visits import joined
from nar_hw.errors import ModelError, RuntimeUnavailableError
from nar_hw.files import Scratch
from nar_hw.runtimes.base import Images, Runtime, RuntimeConfig
from nar_hw.runtimes.exporting import Deployed, DeviceLayers, Triton
from nar_hw.runtimes.inputs import onnx_file
from nar_hw.runtimes.onnx_graph import OptimizedGraph, loaded, one_line, with_precision

if TYPE_CHECKING:
    from torch import nn

_CUDA_HELP = "install what it links to with pip install 'onnxruntime-gpu[cuda,cudnn]'"

_USAGE = """## Run it in Python with ONNX Runtime
`pip install onnxruntime pillow numpy`
```python
import json, sys, numpy as np, onnxruntime
from PIL import Image, ImageOps
manifest = json.load(open("manifest.json"))
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
upright = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("{mode}")
image = ImageOps.fit(upright, ({width}, {height}), Image.Resampling.BILINEAR)
pixels = np.asarray(image, np.float32).reshape({height}, {width}, {channels}).transpose(2, 0, 1) / 255
mean, std = (np.reshape(manifest["preprocessing"][name], (-1, 1, 1)).astype(np.float32) for name in ("mean", "std"))
scores = session.run(None, {{"input": ((pixels - mean) / std)[None]{repeat}}})[0][0]
{answer}
```
"""


class OnnxRuntime(Runtime):
    """One inference session, its input and output in buffers that are allocated once.

    Precision is a matter of the file: fp32 and int8 files must be what they are said to be; fp16 converts an fp32 file.
    Per-layer times are whole microseconds, as ONNX Runtime's profile holds them: average many runs of small nodes.
    """

    name = "onnxruntime"
    consumes = "onnx"
    precisions = ("fp32", "fp16", "int8")
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    layers = True
    loads_beside = True
    several = True
    triton: ClassVar[Triton | None] = Triton("onnxruntime", "model.onnx")
    kit = "onnxruntime"

    @classmethod
    def layers_on(cls, config: RuntimeConfig) -> bool:
        """On the CPU only: on CUDA its profile holds the launches, not the kernels."""
        return config.device_type == "cpu"

    @classmethod
    def shares_weights(cls, config: RuntimeConfig) -> bool:
        """In fp32: other precisions are made of a whole file."""
        return config.precision == "fp32"

    @classmethod
    def _missing(cls, config: RuntimeConfig) -> str | None:
        try:
            import onnxruntime
        except ImportError:
            return "onnxruntime is not installed: pip install onnxruntime-gpu (onnxruntime where that does not exist)"
        if config.precision == "fp16" and config.device_type == "cpu":
            return "onnxruntime computes fp16 on cuda only: use fp32 or int8 on the CPU"
        if config.device_type == "cuda":
            from nar_hw.runtimes.torch_module import no_cuda

            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                return f"onnxruntime {onnxruntime.__version__} has no CUDA support: pip install onnxruntime-gpu"
            return no_cuda(config)
        return None

    @classmethod
    def versions(cls) -> dict[str, str]:
        """The versions of ONNX Runtime and onnx. Raises RuntimeUnavailableError when they are not installed."""
        try:
            import onnx
            import onnxruntime
        except ImportError as problem:
            raise RuntimeUnavailableError(f"onnxruntime cannot be imported: {problem}") from problem
        return {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}

    @classmethod
    def usage(cls, bundle: Deployed) -> str:
        """A whole script, in which the other runtimes' sections replace some lines."""
        channels, height, width = bundle.input_shape
        answer = 'print(manifest["classes"][scores.argmax()])' if bundle.classifies else "print(scores)"
        sizes = {"channels": channels, "height": height, "width": width}
        return _USAGE.format(mode=bundle.mode, repeat=bundle.repeat, answer=answer, **sizes)

    @classmethod
    def named_layers(cls, layers: DeviceLayers, onnx: Path | None) -> tuple[list[dict[str, float]], dict[str, list[str]]]:
        """By the graph that ran on the device."""
        from onnx import NodeProto

        assert onnx is not None, "it runs nothing else"
        graph = OptimizedGraph(onnx, [NodeProto(**node) for node in layers.nodes], layers.names)
        runs, _ = super().named_layers(layers, onnx)
        return [graph.renamed(run) for run in runs], graph.producers()

    def _load(self, network: "nn.Module | Path") -> None:
        self._scratch = Scratch()
        folder = Path(self._scratch.name)
        self._file = with_precision(
            onnx_file(network, self.input_shape, self.config.batch, folder), self.config.precision, folder
        )
        self._optimized = folder / "optimized.onnx"
        self._session = self._opened(folder)
        self._input = self._checked_input()
        self._binding = self._bound()

    def _opened(self, folder: Path) -> Any:
        import onnxruntime

        files = {"profile": str(folder / "profile"), "optimized": str(self._optimized)} if self.profile else {}
        options = session_options(self.config.threads, **files)
        # TF32 would be 10-bit mantissas under the name of fp32
        cuda = ("CUDAExecutionProvider", {"device_id": self.config.device_index, "use_tf32": 0})
        if self.config.device_type == "cuda":
            with contextlib.redirect_stdout(sys.stderr):  # it prints what it misses
                onnxruntime.preload_dlls()  # torch does not bring all that the provider links to
        providers = [cuda, "CPUExecutionProvider"] if self.config.device_type == "cuda" else ["CPUExecutionProvider"]
        try:
            session = onnxruntime.InferenceSession(self._file, options, providers=providers)
        except Exception as problem:  # its exceptions have no common base but this
            raise ModelError(f"ONNX Runtime cannot load {self._file}: {one_line(problem)}") from problem
        wanted = providers[0][0] if isinstance(providers[0], tuple) else providers[0]
        if (got := session.get_providers()[0]) != wanted:
            raise RuntimeUnavailableError(f"onnxruntime must run on {wanted}, but fell back to {got}: {_CUDA_HELP}")
        return session

    def _checked_input(self) -> str:
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise ModelError(f"{self._file} must have one input, but has {', '.join(item.name for item in inputs)}")
        batch, *shape = inputs[0].shape
        if any(isinstance(size, int) and size != own for size, own in zip(shape, self.input_shape, strict=False)):
            raise ModelError(f"{self._file} takes images of shape {tuple(shape)}, but got {self.input_shape}")
        if isinstance(batch, int) and batch != self.config.batch:
            raise ModelError(
                f"{self._file} is for batch {batch} only, but batch {self.config.batch} is asked for: export it again"
            )
        return str(inputs[0].name)

    def _bound(self) -> Any:
        """Input and output fixed once, so that a run copies nothing and costs little more than the bare call."""
        import onnxruntime

        device, index = self.config.device_type, self.config.device_index
        binding = self._session.io_binding()
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy(self.images, device, index)
        binding.bind_ortvalue_input(self._input, self._value)
        for output in self._session.get_outputs():
            binding.bind_output(output.name, device, index)
        return binding

    def _infer(self, images: Images) -> Images:
        return joined(self._session.run(None, {self._input: images}))

    def run(self) -> None:
        """One inference; returns when it is done."""
        self._session.run_with_iobinding(self._binding)

    @cached_property
    def _profile(self) -> tuple[list[dict[str, float]], OptimizedGraph]:
        """The times of each inference, and the graph that ran. ONNX Runtime writes a profile when it ends, once."""
        file = Path(self._session.end_profiling())
        runs = kernel_runs(json.loads(file.read_text(encoding="utf-8")))
        graph = OptimizedGraph(self._file, loaded(self._optimized).graph.node, runs[0] if runs else ())
        return [graph.renamed(times) for times in runs], graph

    def _layer_ms(self) -> list[dict[str, float]]:
        return self._profile[0]

    def producers(self) -> dict[str, list[str]]:
        """The optimized graph with the names of `layer_ms`; ends the profile. Empty without ``profile=True``."""
        return self._profile[1].producers() if self.profile else {}

    def close(self) -> None:
        """End the session and delete its files."""
        for name in ("_binding", "_value", "_session"):
            self.__dict__.pop(name, None)
        if "_scratch" in self.__dict__:
            self._scratch.cleanup()
