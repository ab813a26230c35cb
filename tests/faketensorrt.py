"""A stand-in for what needs a GPU of TensorRT 10, 11 and TensorRT for RTX: loading engines and running them.

Its plans hold the ONNX file, and ONNX Runtime computes on the CPU. Its members have the names, parameters and types of the real
ones (tests/golden/tensorrt_api.json), and calls are as strict as the real bindings': no path where a text is wanted, no number
where an enum is wanted. What works without a GPU, reading files and building engines, is tested with TensorRT for RTX itself.
"""

import ctypes
import enum
import functools
import importlib.machinery
import inspect
import json
import math
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from nar_hw.export.engine import SCHEMA, EngineInfo, info_file
from nar_hw.export.quantize import precision_of
from nar_hw.files import sha256, write_json
from nar_hw.records import plain, replace

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tensorrt_api.json").read_text())
RTX = "1.7.1.116"
VERSIONS = tuple(GOLDEN["versions"])
GPU = ("Test GPU", "8.9")
FAULTS = ("deserialize", "context", "execute", "inspector", "report")
COMPILED = b"compiled kernels"
INFO = EngineInfo(
    library="tensorrt",
    engine_sha256="",
    onnx_sha256="",
    timing_cache_sha256=None,
    tensorrt="10.9.0",
    gpu="A",
    compute_capabilities=("8.6",),
    precision="fp32",
    datatypes={},
    batch=(1, 1, 1),
    workspace_mib=1024,
    optimization_level=None,
    version_compatible=False,
    hardware_compatibility=None,
    refit=False,
    metadata={},
)
"""Of an engine of nothing."""


def fake_tensorrt(version: str) -> Any:
    """The package at ``version``; put a name of FAULTS into its ``_faults`` to let that step fail."""
    name = "tensorrt_rtx" if version == RTX else "tensorrt"
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)  # torch asks whether it is there
    trt: Any = module
    trt.__version__ = version
    trt._faults = set()
    for number, (kind, members) in enumerate(GOLDEN["versions"][version]["enums"].items(), start=int(version.split(".")[0])):
        # Numbered in another way in each version
        setattr(trt, kind, enum.Enum(kind, {member: number + index for index, member in enumerate(members)}))
    for kind, value in _classes(trt).items():
        if kind in GOLDEN["versions"][version]["classes"]:
            setattr(trt, kind, value)
    return trt


def fake_engine(trt: Any, source: Path, path: Path, batch: tuple[int, int, int] = (1, 2, 4)) -> EngineInfo:
    """Write an engine that `fake_tensorrt` runs, as `build_engine` would on the test's GPU."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model = onnx.load(source)
    path.write_bytes(json.dumps({"batch": batch}).encode() + b"\n" + model.SerializeToString(deterministic=True))
    rtx = trt.__version__ == RTX
    info = replace(
        INFO,
        library="tensorrt-rtx" if rtx else "tensorrt",
        engine_sha256=sha256(path),
        onnx_sha256=sha256(source),
        tensorrt=trt.__version__,
        gpu=None if rtx else GPU[0],
        compute_capabilities=(GPU[1],),
        precision=precision_of(model),
        batch=batch,
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )
    write_json(info_file(path), {"schema": SCHEMA, **plain(info)})
    for end in (".layers.json", *([] if rtx else [".cache"])):
        path.with_name(f"{path.name}{end}").write_text("{}")
    return info


def _strict(kind: type) -> type:
    """``kind`` with methods that check the types of their arguments, and without room for other attributes."""
    members = {name for facts in GOLDEN["versions"].values() for name in facts["classes"].get(kind.__name__, ())}

    def assign(self: Any, name: str, value: Any) -> None:
        if type(self) is kind and not name.startswith("_") and name not in members:
            raise AttributeError(f"{kind.__name__} has no attribute {name}")
        object.__setattr__(self, name, value)

    kind.__setattr__ = assign  # type: ignore[method-assign, assignment]
    for name, method in list(vars(kind).items()):
        if inspect.isfunction(method) and (name == "__init__" or not name.startswith("_")):
            setattr(kind, name, _checked(method))
    return kind


def _checked(method: Any) -> Any:
    signature = inspect.signature(method)

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            wanted = signature.parameters[name].annotation
            if wanted is not inspect.Parameter.empty and wanted is not Any and not isinstance(value, wanted):
                raise TypeError(f"{method.__qualname__}: {name} must be {wanted}, but is {type(value)}")
        return method(*args, **kwargs)

    return call


def _classes(trt: Any) -> dict[str, type]:
    @_strict
    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING = "error", "internal error", "warning"

        def __init__(self) -> None:
            self._begun = True

        def log(self, severity: Any, msg: str) -> None:
            raise NotImplementedError

    @_strict
    class IProfiler:
        def __init__(self) -> None:
            self._begun = True

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            raise NotImplementedError

    @_strict
    class EngineInspector:
        def __init__(self, layers: list) -> None:
            self._layers = layers

        def get_engine_information(self, format: trt.LayerInformationFormat) -> str:
            assert format is trt.LayerInformationFormat.JSON
            return "{" if "inspector" in trt._faults else json.dumps({"Layers": self._layers, "Bindings": ["input", "output"]})

    @_strict
    class IRuntimeCache:
        def __init__(self) -> None:
            self._content = b""

        def deserialize(self, blob: bytes) -> bool:
            self._content = blob if blob == COMPILED else b""
            return bool(self._content)

        def serialize(self) -> Any:
            return COMPILED

    @_strict
    class IRuntimeConfig:
        dynamic_shapes_kernel_specialization_strategy: Any = None

        def create_runtime_cache(self) -> Any:
            return IRuntimeCache()

        def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
            assert self.dynamic_shapes_kernel_specialization_strategy is trt.DynamicShapesKernelSpecializationStrategy.EAGER
            return True

    @_strict
    class IExecutionContext:
        enqueue_emits_profile = True
        profiler: Any = None

        def __init__(self, engine: Any) -> None:
            self._engine = engine
            self._shape: tuple = ()
            self._addresses: dict[str, int] = {}
            self._ms: float | None = None

        def set_input_shape(self, name: str, shape: tuple) -> bool:
            self._shape = shape
            fewest, _, most = self._engine._batch
            return fewest <= shape[0] <= most

        def get_tensor_shape(self, name: str) -> tuple:
            return (self._shape[0], self._engine._classes)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._addresses[name] = memory
            return memory != 0

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert self.profiler is None or (self.profiler._begun and not self.enqueue_emits_profile)
            if "execute" in trt._faults:
                return False
            trt._last = self
            source, result = self._engine._names
            start = time.perf_counter()
            scores = self._engine._session.run(None, {source: _array(self._addresses[source], self._shape)})[0]
            _array(self._addresses[result], scores.shape)[:] = scores
            self._ms = (time.perf_counter() - start) * 1e3
            return True

        def report_to_profiler(self) -> bool:
            if self._ms is None or "report" in trt._faults:
                return False
            layers = self._engine._layers
            for layer in layers:
                self.profiler.report_layer_time(layer["Name"], self._ms / len(layers))
            self._ms = None
            return True

    @_strict
    class ICudaEngine:
        def __init__(self, plan: bytes) -> None:
            settings, _, model = plan.partition(b"\n")
            self._batch = json.loads(settings)["batch"]
            proto = onnx.load_from_string(model)
            self._layers = _layers(proto)
            self._names = (proto.graph.input[0].name, proto.graph.output[0].name)
            self._shape = tuple(dim.dim_value or -1 for dim in proto.graph.input[0].type.tensor_type.shape.dim)
            self._classes = proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 3
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            model = without_bf16(proto).SerializeToString()
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

        @property
        def num_io_tensors(self) -> int:
            return 2

        def get_tensor_name(self, index: int) -> str:
            return self._names[1 - index]  # in any order

        def get_tensor_mode(self, name: str) -> Any:
            return trt.TensorIOMode.INPUT if name == self._names[0] else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return trt.DataType.FLOAT

        def get_tensor_shape(self, name: str) -> tuple:
            return self._shape if name == self._names[0] else (-1, self._classes)

        def create_execution_context(self) -> Any:
            return None if "context" in trt._faults else IExecutionContext(self)

        def create_engine_inspector(self) -> Any:
            return EngineInspector(self._layers)

    if trt.__version__ == RTX:

        def create_runtime_config(self: Any) -> Any:
            return IRuntimeConfig()

        def create_execution_context(self: Any, runtime_config: IRuntimeConfig) -> Any:
            return None if "context" in trt._faults else IExecutionContext(self)

        for method in (create_runtime_config, create_execution_context):
            setattr(ICudaEngine, method.__name__, _checked(method))

    @_strict
    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: ILogger) -> None:
            assert logger._begun
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            if "deserialize" in trt._faults:
                self._logger.log(ILogger.INTERNAL_ERROR, "magic tag does not match")
                return None
            return ICudaEngine(serialized_engine)

    return {name: value for name, value in locals().items() if isinstance(value, type)}


class FakeDriver:
    """A stand-in for libcuda: its memory is the host's, its streams are done at once, a graph is what was run last."""

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
        self.times: Callable[[], float] = lambda: time.perf_counter() * 1e3
        self.launch: Callable[[], object] = lambda: None
        """What a captured graph does."""
        self._memory: list[Any] = []
        self._marks: dict[int, float] = {}

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *_: 0  # calls that need nothing done here

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.gpus
        return 0 if self.gpus else 100

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:  # noqa: N802
        name.value = GPU[0].encode()[: length - 1]
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = int({75: GPU[1].split(".")[0], 76: GPU[1].split(".")[1]}[attribute])
        return 0

    def cuStreamCreate(self, stream: Any, flags: int) -> int:  # noqa: N802
        stream._obj.value = 7
        return 0

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:  # noqa: N802
        self._memory.append((ctypes.c_char * size.value)())
        address._obj.value = ctypes.addressof(self._memory[-1])
        return 0

    def cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> int:  # noqa: N802
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    def cuMemcpyDtoHAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> int:  # noqa: N802
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    def cuGraphLaunch(self, graph: Any, stream: Any) -> int:  # noqa: N802
        self.launch()
        return 0

    def cuEventCreate(self, event: Any, flags: int) -> int:  # noqa: N802
        event._obj.value = len(self._marks) + 1
        self._marks[event._obj.value] = 0.0
        return 0

    def cuEventRecord(self, event: Any, stream: Any) -> int:  # noqa: N802
        self._marks[event.value] = self.times()
        return 0

    def cuEventElapsedTime(self, ms: Any, start: Any, end: Any) -> int:  # noqa: N802
        ms._obj.value = self._marks[end.value] - self._marks[start.value]
        return 0


def _array(address: int, shape: tuple[int, ...]) -> Any:
    memory = (ctypes.c_float * math.prod(shape)).from_address(address)
    return np.ctypeslib.as_array(memory).reshape(shape)


def _layers(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """One layer per node; but a matrix product is three, two of them of one name."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        {
            "Name": name,
            "Metadata": f"[ONNX Layer: {node.name}]",
            "Inputs": [{"Name": tensor} for tensor in node.input if tensor not in weights],
            "Outputs": [{"Name": tensor} for tensor in node.output],
        }
        for node in model.graph.node
        for name in (["split", "split", "sum"] if node.op_type == "Gemm" else [f"layer of {node.name}"])
    ]


def without_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network computing in fp32 with weights that bf16 can hold: ONNX Runtime has no bf16 on CPUs."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in model.graph.node:
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.BFLOAT16:
            node.attribute[0].CopyFrom(helper.make_attribute("to", TensorProto.FLOAT))
    return model
