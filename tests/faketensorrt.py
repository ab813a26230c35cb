"""A stand-in for the tensorrt package, 10 or 11: its plans hold the ONNX file, and ONNX Runtime computes on the CPU.

Its members are those that nar_hw uses, with the names, parameters and types of the real ones (tests/golden/tensorrt_api.json),
and calls are as strict as the real bindings': no path where a text is wanted, no number where an enum is wanted.
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
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tensorrt_api.json").read_text())
VERSIONS = tuple(GOLDEN["versions"])

FAULTS = ("no builder", "parse", "inputs", "profile", "build", "deserialize", "context", "execute", "inspector", "report")


def fake_tensorrt(version: str) -> Any:
    """The package at ``version``; put a name of FAULTS into its ``_faults`` to let that step fail."""
    module = types.ModuleType("tensorrt")
    module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)  # torch asks whether it is there
    trt: Any = module
    trt.__version__ = version
    trt._faults = set()
    trt._major = int(version.partition(".")[0])
    for number, (name, members) in enumerate(GOLDEN["versions"][version]["enums"].items(), start=trt._major):
        setattr(trt, name, _enum(name, members, number))
    for name, kind in _classes(trt).items():
        setattr(trt, name, kind)
    return trt


def _enum(name: str, members: list[str], first: int) -> Any:
    """Numbered in another way in each version."""
    values = {member: first + index for index, member in enumerate(members)}
    return enum.Enum(name, values, type=_Number)


class _Number:
    """pybind11's enums are no numbers, but become some."""

    value: int

    def __int__(self) -> int:
        return self.value


def _strict(kind: type) -> type:
    """``kind`` with methods that check the types of their arguments, and without room for other attributes."""
    members = {name for facts in GOLDEN["versions"].values() for name in facts["classes"][kind.__name__]}

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


class IHostMemory(bytes):
    """Bytes by the buffer protocol."""


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
    class ITensor:
        def __init__(self, name: str, shape: tuple) -> None:
            self.name, self.shape = name, shape

    @_strict
    class INetworkDefinition:
        def __init__(self, flags: int) -> None:
            self._flags = flags
            self._model: onnx.ModelProto

        @property
        def num_inputs(self) -> int:
            return len(self._model.graph.input) + ("inputs" in trt._faults)

        @property
        def num_outputs(self) -> int:
            return len(self._model.graph.output)

        def get_input(self, index: int) -> Any:
            given = self._model.graph.input[index]
            shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in given.type.tensor_type.shape.dim)
            return ITensor(given.name, shape)

    @_strict
    class ParserError:
        def __init__(self, node: str, text: str) -> None:
            self._node, self._text = node, text

        def desc(self) -> str:
            return self._text

        def node_name(self) -> str:
            return self._node

    @_strict
    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
            assert logger._begun
            self._network = network
            self._errors: list[Any] = []

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> Any:
            return self._errors[index]

        def parse_from_file(self, model: str) -> bool:
            self._network._model = onnx.load(model)
            weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in self._network._model.graph.initializer}
            for node in self._network._model.graph.node:
                zero = weights.get(node.input[2]) if node.op_type in ("QuantizeLinear", "DequantizeLinear") else None
                if zero is not None and (zero.dtype != np.int8 or zero.any()):
                    self._errors.append(ParserError(node.name, "zero points must be 0 and of int8"))
            if "parse" in trt._faults:
                self._errors = [
                    ParserError(f"a.{number}/Foo" if number else "", f"no\n importer {number}") for number in range(5)
                ]
            return not self._errors

    @_strict
    class IOptimizationProfile:
        def __init__(self) -> None:
            self._shapes: dict[str, tuple] = {}

        def set_shape(self, input: str, min: tuple, opt: tuple, max: tuple) -> None:
            self._shapes[input] = (min, opt, max)

    @_strict
    class ITimingCache:
        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> Any:
            return IHostMemory(self._content)

    @_strict
    class IBuilderConfig:
        builder_optimization_level = 3

        def __init__(self) -> None:
            self._flags = {trt.BuilderFlag.TF32}
            self._pools: dict[Any, int] = {}
            self._profiles: list[Any] = []
            self._cache: Any = None
            self.profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
            self.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE

        def set_flag(self, flag: trt.BuilderFlag) -> None:
            self._flags.add(flag)

        def clear_flag(self, flag: trt.BuilderFlag) -> None:
            self._flags.discard(flag)

        def set_memory_pool_limit(self, pool: trt.MemoryPoolType, pool_size: int) -> None:
            self._pools[pool] = pool_size

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            self._profiles.append(profile)
            return -1 if "profile" in trt._faults else len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            known = serialized_timing_cache.partition(b" ")[0] in (b"", b"timings")
            return ITimingCache(serialized_timing_cache) if known else None

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            if cache._content and not cache._content.startswith(b"timings " + trt.__version__.encode()):
                return False
            self._cache = cache
            return True

    @_strict
    class Builder:
        def __init__(self, logger: ILogger) -> None:
            assert logger._begun
            self._logger = logger
            if "no builder" in trt._faults:
                logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int = 0) -> Any:
            return INetworkDefinition(flags)

        def create_builder_config(self) -> Any:
            return IBuilderConfig()

        def create_optimization_profile(self) -> Any:
            return IOptimizationProfile()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> Any:
            self._logger.log(ILogger.WARNING, "nobody need know")
            if "build" in trt._faults:
                self._logger.log(ILogger.ERROR, "no implementation\nfor a.conv/Conv")
                return None
            # A tactic that is not in the cache is chosen by a noisy clock
            tactic = config._cache._content.rpartition(b" ")[2].decode() or str(time.perf_counter_ns())
            config._cache._content = f"timings {trt.__version__} {tactic}".encode()
            profiles = [profile._shapes for profile in config._profiles]
            settings = {
                "network": network._flags,
                "flags": sorted(flag.name for flag in config._flags),
                "workspace": config._pools[trt.MemoryPoolType.WORKSPACE],
                "level": config.builder_optimization_level,
                "verbosity": config.profiling_verbosity.name,
                "hardware": config.hardware_compatibility_level.name,
                "profiles": profiles,
                "tactic": tactic,
            }
            return IHostMemory(json.dumps(settings).encode() + b"\n" + network._model.SerializeToString(deterministic=True))

    @_strict
    class EngineInspector:
        def __init__(self, layers: list) -> None:
            self._layers = layers

        def get_engine_information(self, format: trt.LayerInformationFormat) -> str:
            assert format is trt.LayerInformationFormat.JSON
            return "{" if "inspector" in trt._faults else json.dumps({"Layers": self._layers, "Bindings": ["input", "output"]})

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
            profiles = self._engine._settings["profiles"]
            return not profiles or profiles[0][name][0][0] <= shape[0] <= profiles[0][name][2][0]

        def get_tensor_shape(self, name: str) -> tuple:
            return (self._shape[0], self._engine._classes)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._addresses[name] = memory
            return memory != 0

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert self.profiler is None or (self.profiler._begun and not self.enqueue_emits_profile)
            if "execute" in trt._faults:
                return False
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
            self._settings = json.loads(settings)
            proto = onnx.load_from_string(model)
            self._layers = _layers(proto)
            self._names = (proto.graph.input[0].name, proto.graph.output[0].name)
            self._shape = tuple(dim.dim_value or -1 for dim in proto.graph.input[0].type.tensor_type.shape.dim)
            self._classes = proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 3
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            model = _without_bf16(proto).SerializeToString()
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

    @_strict
    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: ILogger) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            if "deserialize" in trt._faults:
                self._logger.log(ILogger.INTERNAL_ERROR, "magic tag does not match")
                return None
            engine = ICudaEngine(serialized_engine)
            assert self.engine_host_code_allowed == ("VERSION_COMPATIBLE" in engine._settings["flags"])
            return engine

    return {name: value for name, value in locals().items() if isinstance(value, type)} | {"IHostMemory": IHostMemory}


def settings_of(engine: Path) -> dict[str, Any]:
    """What a fake engine was built with."""
    settings: dict[str, Any] = json.loads(engine.read_bytes().partition(b"\n")[0])
    return settings


def _array(address: int, shape: tuple[int, ...]) -> Any:
    memory = (ctypes.c_float * math.prod(shape)).from_address(address)
    return np.ctypeslib.as_array(memory).reshape(shape)


def _layers(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """A change of layout, then one layer per node, with ReLUs and additions fused into the convolution before them.

    A matrix product is three layers, two of them of one name.
    """
    known = {tensor.name for tensor in model.graph.initializer}
    groups: list[list[onnx.NodeProto]] = []
    made_by: dict[str, int] = {}  # tensor -> group
    for node in model.graph.node:
        before = max((made_by[tensor] for tensor in node.input if tensor in made_by), default=-1)
        if node.op_type in ("Relu", "Add") and before >= 0 and groups[before][0].op_type == "Conv":
            groups[before].append(node)
        else:
            before = len(groups)
            groups.append([node])
        made_by.update(dict.fromkeys(node.output, before))
    first = model.graph.input[0].name
    layers = [_layer(f"Reformatting CopyNode for Input Tensor 0 to {groups[0][0].name}", "", [first], ["Reformatted 0"])]
    for nodes in groups:
        inside = {tensor for node in nodes for tensor in node.output}
        sources = [tensor for node in nodes for tensor in node.input if tensor not in known | inside]
        sources = ["Reformatted 0" if tensor == first else tensor for tensor in sources]
        metadata = "\x1f".join(f"[ONNX Layer: {node.name}]" for node in nodes)
        names = ["split", "split", "sum"] if nodes[0].op_type == "Gemm" else [" + ".join(node.name for node in nodes)]
        layers += [_layer(name, metadata, sources, sorted(inside)) for name in names]
    return layers


def _layer(name: str, metadata: str, inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    tensors = {"Inputs": [{"Name": tensor} for tensor in inputs], "Outputs": [{"Name": tensor} for tensor in outputs]}
    return {"Name": name, "LayerType": "kgen", **tensors, "Metadata": metadata}


def _without_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network computing in fp32 with weights that bf16 can hold: ONNX Runtime has no bf16 on CPUs."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in model.graph.node:
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.BFLOAT16:
            node.attribute[0].CopyFrom(helper.make_attribute("to", TensorProto.FLOAT))
    return model
