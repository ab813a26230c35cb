"""TensorRT 10 and 11 on an NVIDIA GPU (optional: pip install 'nar-hw[tensorrt]')."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from nar_hw.errors import ExportError, ModelError, RuntimeUnavailableError
from nar_hw.export.engine import EngineInfo, LibraryName
from nar_hw.export.engine_layers import node_names, producers
from nar_hw.export.tensorrt import build_engine, current_gpu, layer_information, load_engine, required, tensorrt_module
from nar_hw.files import Scratch
from nar_hw.runtimes.base import Images, Runtime, RuntimeConfig
from nar_hw.runtimes.exporting import Deployed, Exported, Source, Triton
from nar_hw.runtimes.inputs import onnx_file
from nar_hw.runtimes.onnx_graph import with_precision
from nar_hw.runtimes.torch_module import no_cuda, to_numpy

if TYPE_CHECKING:
    from torch import nn

_USAGE = """## Build a TensorRT engine
```sh
trtexec --onnx=model.onnx --saveEngine=model.engine{shapes}
```
"""


class TensorRT(Runtime):
    """An engine for exactly one batch size, captured as one CUDA graph and timed with CUDA events.

    It is built from the network when it is loaded, with a timing cache in the user's cache folder; a file that ends in
    .engine is taken as it is. fp16 and bf16 convert an fp32 file, int8 takes one that is quantised.

    Per-layer times are those of TensorRT's profiler inside the same graph. A layer of several ONNX nodes has the name of
    the one that does the work: the first convolution or matrix product, else the first pool, else the first of all.
    """

    name = "tensorrt"
    library: ClassVar[LibraryName] = "tensorrt"
    """Its name in `nar_hw.export.tensorrt.LIBRARIES`."""
    consumes = "onnx"
    precisions = ("fp32", "bf16", "fp16", "int8")
    devices = ("cuda",)
    layers = True
    files = (".engine",)
    exports = ("fp32", "fp16", "bf16", "int8")
    triton: ClassVar[Triton | None] = Triton("tensorrt", "model.plan")

    @classmethod
    def _missing(cls, config: RuntimeConfig) -> str | None:
        try:
            tensorrt_module(cls.library)
        except RuntimeUnavailableError as problem:
            return str(problem)
        return no_cuda(config)

    @classmethod
    def versions(cls) -> dict[str, str]:
        """The versions of TensorRT and torch. Raises RuntimeUnavailableError when TensorRT is not installed."""
        return {cls.library: tensorrt_module(cls.library).__version__, "torch": torch.__version__}

    @classmethod
    def export(cls, source: Source, config: RuntimeConfig) -> Exported:
        """An engine for all of the batch sizes, tuned for an eighth of the largest, with what lies beside an engine."""
        engine = source.path(config.precision, ".engine")
        info = cls._built(source, config, engine)
        files = tuple(f"{engine.name}{end}" for end in ("", ".json", ".layers.json", ".cache"))
        requires = {"tensorrt": info.tensorrt, "gpu": str(info.gpu), "compute_capability": info.compute_capabilities[0]}
        return Exported(files, source.batch, "cuda", requires)

    @classmethod
    def _built(cls, source: Source, config: RuntimeConfig, engine: Path, **settings: Any) -> EngineInfo:
        with Scratch() as scratch:
            onnx = source.onnx.get(config.precision)
            onnx = onnx or with_precision(source.onnx["fp32"], config.precision, Path(scratch))
            return build_engine(onnx, engine, library=cls.library, batch=_sizes(*source.batch), **settings)

    @classmethod
    def described(cls, precision: str, exported: Exported) -> str:
        """With the GPU that it was built for."""
        return f"TensorRT engine in {precision}, {exported.requires['gpu']} with TensorRT {exported.requires['tensorrt']}"

    @classmethod
    def usage(cls, bundle: Deployed) -> str:
        """How to build an engine of the ONNX file elsewhere."""
        image, sizes = "x".join(map(str, bundle.input_shape)), _sizes(*bundle.batch)
        names = zip(("min", "opt", "max"), sizes, strict=True)
        shapes = "".join(f" \\\n  --{name}Shapes=input:{size}x{image}" for name, size in names)
        return _USAGE.format(shapes="" if sizes[0] == sizes[2] else shapes)

    def _load(self, network: "nn.Module | Path") -> None:
        self._trt = tensorrt_module(self.library)
        self._stream = CudaStream(self.config.device_index)
        with self._stream.active():
            with Scratch() as scratch:
                self._engine = self._opened(network, Path(scratch))
            self._context = self._required(self._made_context(), "make a context: out of GPU memory?")
            self._bind()
            self._runs: list[dict[str, float]] = []
            if self.profile:
                self._layers = _layers(self._trt, self._engine)
                self._profiler = _profiler(self._trt)
                self._context.enqueue_emits_profile = False
                self._context.profiler = self._profiler
            self._replay = self._stream.captured(self._enqueue)

    def _required(self, result: Any, task: str) -> Any:
        return required(self._trt, result, task)

    def _made_context(self) -> Any:
        return self._engine.create_execution_context()

    def _build_settings(self) -> dict[str, Any]:
        """Of `build_engine`, for this GPU."""
        return {"timing_cache": user_cache("tensorrt", self._trt.__version__)}

    def _opened(self, network: "nn.Module | Path", folder: Path) -> Any:
        """The engine, built where ``network`` is not one already."""
        config = self.config
        path = network if isinstance(network, Path) and network.suffix in self.files else folder / "network.engine"
        if path != network:
            file = with_precision(onnx_file(network, self.input_shape, config.batch, folder), config.precision, folder)
            build_engine(file, path, library=self.library, batch=(config.batch,) * 3, **self._build_settings())
        engine, info = load_engine(path)
        if info.library != self.library:
            raise ModelError(f"{path} is for {info.library}, but {self.library} is asked for: use runtime {info.library}")
        if info.precision != config.precision or not info.batch[0] <= config.batch <= info.batch[2]:
            raise ModelError(
                f"{path} is for {info.precision} and batch {info.batch[0]} to {info.batch[2]}, but {config.precision} and batch "
                f"{config.batch} are asked for: build it again"
            )
        return engine

    def _bind(self) -> None:
        """The input, which holds the preset images, and the output at addresses that never change."""
        trt, engine, context = self._trt, self._engine, self._context
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        source, result = sorted(names, key=lambda name: engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT)
        if (shape := tuple(engine.get_tensor_shape(source))[1:]) != self.input_shape:
            raise ModelError(f"the network takes images of shape {shape}, but got {self.input_shape}")
        if any(engine.get_tensor_dtype(name) != trt.DataType.FLOAT for name in names):
            raise ModelError("the network must take and give float32: export it again")
        self._required(context.set_input_shape(source, self.images.shape), f"run batch {self.config.batch}")
        self._preset = torch.from_numpy(self.images).to(self._stream.device)
        self._input = self._preset.clone()
        self._output = torch.empty(tuple(context.get_tensor_shape(result)), device=self._stream.device)
        for name, tensor in ((source, self._input), (result, self._output)):
            self._required(context.set_tensor_address(name, tensor.data_ptr()), f"take the address of {name}")

    def _enqueue(self) -> None:
        self._required(self._context.execute_async_v3(self._stream.handle), "run the network")

    def _report(self) -> None:
        """Keep the layers' times of the run that was started last."""
        if self.profile:
            self._stream.synchronize()
            self._required(self._context.report_to_profiler(), "report the times of its layers")
            self._runs.append(self._profiler.taken())

    def _infer(self, images: Images) -> Images:
        with self._stream.active():
            self._input.copy_(torch.from_numpy(images))
            self._replay()
            outputs = to_numpy(self._output.clone())
            self._input.copy_(self._preset)
            self._report()
        return outputs

    def run(self) -> None:
        """One inference; may return before the GPU is done."""
        with self._stream.active():
            self._replay()
            self._report()

    def synchronize(self) -> None:
        """Wait for the GPU."""
        self._stream.synchronize()

    def time_ms(self, repeats: int) -> list[float]:
        """The milliseconds of each of ``repeats`` replays in a row, on the GPU's own clock; the input lies in place."""
        times = []
        with self._stream.active():
            for _ in range(repeats):
                times.append(self._stream.time_ms(self._replay))
                self._report()
        return times

    def _layer_ms(self) -> list[dict[str, float]]:
        names = node_names(self._layers)
        return [_renamed(times, names) for times in self._runs]

    def producers(self) -> dict[str, list[str]]:
        """The engine's layers by the names of `layer_ms`. Empty without ``profile=True``."""
        return producers(self._layers) if self.profile else {}

    def close(self) -> None:
        """Free the graph, the context, the engine and their memory."""
        for name in ("_replay", "_context", "_profiler", "_engine", "_output", "_input", "_preset", "_stream"):
            self.__dict__.pop(name, None)


def _sizes(fewest: int, most: int) -> tuple[int, int, int]:
    """(min, opt, max) images for an engine that takes ``fewest`` to ``most``."""
    return fewest, max(fewest, most // 8), most


class CudaStream:
    """A stream of its own on one GPU: TensorRT asks not to use the default one, and only others can be captured."""

    def __init__(self, index: int) -> None:
        self.device = torch.device("cuda", index)
        cuda: Any = torch.cuda  # partly untyped
        self._stream = cuda.Stream(self.device)
        self.handle: int = self._stream.cuda_stream

    @contextmanager
    def active(self) -> Iterator[None]:
        """The GPU and the stream on which torch and TensorRT work inside the block."""
        with torch.inference_mode(), torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            yield

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """What replays ``work`` as one CUDA graph. It is run once before: TensorRT still allocates then."""
        work()
        self.synchronize()
        cuda: Any = torch.cuda
        graph = cuda.CUDAGraph()
        try:
            with cuda.graph(graph, stream=self._stream):
                work()
        except RuntimeError as problem:
            raise ExportError(f"the network cannot be captured as a CUDA graph: {str(problem).splitlines()[0]}") from problem
        replay: Callable[[], None] = graph.replay
        return replay

    def time_ms(self, work: Callable[[], None]) -> float:
        """The milliseconds of ``work`` on the GPU's clock."""
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def synchronize(self) -> None:
        """Wait until everything on the stream is done."""
        self._stream.synchronize()


def user_cache(*names: str) -> Path:
    """Where the user keeps what belongs to ``names`` (library, version) on this GPU between loads; there may be no such place."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        root = Path(os.devnull)
    slug = re.sub(r"[^a-z0-9.]+", "-", "-".join((*names, *current_gpu())).lower())
    return root / "nar_hw" / f"{slug}.cache"


def _profiler(trt: Any) -> Any:
    class LayerTimes(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self._ms: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self._ms[layer_name] = self._ms.get(layer_name, 0.0) + ms

        def taken(self) -> dict[str, float]:
            taken, self._ms = self._ms, {}
            return taken

    return LayerTimes()


def _layers(trt: Any, engine: Any) -> list[dict[str, Any]]:
    """The layers of an engine as TensorRT tells of them: Name, Metadata, Inputs, Outputs and more."""
    text = layer_information(trt, engine)
    try:
        layers: list[dict[str, Any]] = json.loads(text, strict=False)["Layers"]
        node_names(layers), producers(layers)
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ExportError(f"TensorRT must describe its layers in detail, but this cannot be read: {problem!r}") from problem
    return layers


def _renamed(times: dict[str, float], names: dict[str, str]) -> dict[str, float]:
    """Layers' times under their nodes' names; several layers of one node are added."""
    renamed: dict[str, float] = {}
    for layer, ms in times.items():
        name = names.get(layer, layer)
        renamed[name] = renamed.get(name, 0.0) + ms
    return renamed
