"""TensorRT 10 and 11: engines from ONNX files.

Networks are strongly typed in both versions: the precision of an engine is that of its ONNX file.

An engine is four files: model.engine, model.engine.json (`EngineInfo`), model.engine.layers.json (TensorRT's own account of
its layers) and the timing cache, from which a rebuild takes its kernels instead of timing them again.
"""

import functools
import hashlib
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nar_hw.errors import ExportError, RuntimeUnavailableError, unknown_name
from nar_hw.export.engine import SCHEMA, EngineInfo, info_file, misfit, numbers, read_engine
from nar_hw.export.quantize import PRODUCER, precision_of, to_symmetric
from nar_hw.files import atomic_path, json_text, sha256
from nar_hw.records import plain

_INSTALL = "pip install 'nar-hw[tensorrt]'"

Batch = tuple[int, int, int]


def build_engine(
    onnx_path: Path | str,
    engine_path: Path | str,
    *,
    batch: Batch = (1, 8, 64),
    workspace_mib: int = 1024,
    optimization_level: int = 3,
    timing_cache: Path | str | None = None,
    version_compatible: bool = False,
    hardware_compatibility: str | None = None,
    refit: bool = False,
) -> EngineInfo:
    """Build an engine for the current CUDA device; fp32 is computed in fp32, not in TF32.

    Args:
        onnx_path: the network, in the precision that the engine shall have.
        engine_path: the engine; nothing is written unless everything is.
        batch: (min, opt, max) images at once; the engine is tuned for opt.
        workspace_mib: scratch memory that one layer may use.
        optimization_level: 0 (fastest build) to 5 (fastest engine).
        timing_cache: read if it exists, then updated; by default ``<engine_path>.cache``. With it a rebuild gives the same
            engine.
        version_compatible: run in later versions of the same major version too.
        hardware_compatibility: None for this model of GPU only, or "ampere_plus" or "same_compute_capability".
        refit: weights can be exchanged without a rebuild.

    Raises:
        RuntimeUnavailableError: there is no TensorRT 10 or 11, or no CUDA device.
        UnknownNameError: a hardware compatibility that this TensorRT does not have.
        ExportError: TensorRT rejects the network, a setting or the timing cache, or the files cannot be written.
    """
    source, target = Path(onnx_path), Path(engine_path)
    cache_path = target.with_name(f"{target.name}.cache") if timing_cache is None else Path(timing_cache)
    settings: dict[str, Any] = {
        "workspace_mib": workspace_mib,
        "optimization_level": optimization_level,
        "version_compatible": version_compatible,
        "hardware_compatibility": hardware_compatibility,
        "refit": refit,
    }
    _check_settings(batch, workspace_mib, optimization_level)
    precision, metadata = _described(source)
    trt = tensorrt_module()
    gpu, capability = current_gpu()
    builder = _made(trt.Builder)
    network = _network(trt, builder, source)
    config = _config(trt, builder, **settings)
    _add_profile(builder, config, network.get_input(0), batch, source)
    cache = _timing_cache(config, cache_path)
    plan = bytes(required(builder.build_serialized_network(network, config), f"build {source}"))
    timings = bytes(required(cache.serialize(), f"keep the timings of {source}"))
    layers = layer_information(required(_deserialized(plan, version_compatible), f"read back what it built from {source}"))
    info = EngineInfo(
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        onnx_sha256=sha256(source),
        timing_cache_sha256=hashlib.sha256(timings).hexdigest(),
        tensorrt=trt.__version__,
        gpu=gpu,
        compute_capability=capability,
        precision=precision,
        batch=batch,
        metadata=metadata,
        **settings,
    )
    files = {
        info_file(target): json_text({"schema": SCHEMA, **plain(info)}).encode(),
        target: plan,
        target.with_name(f"{target.name}.layers.json"): layers.encode(),
        cache_path: timings,
    }
    try:
        with ExitStack() as stack:  # when it ends they appear in the opposite order, the info last
            for path, data in files.items():
                stack.enter_context(atomic_path(path)).write_bytes(data)
    except OSError as problem:
        raise ExportError(f"engine {target} cannot be written: {problem}") from problem
    return info


def load_engine(path: Path | str) -> tuple[Any, EngineInfo]:
    """The ICudaEngine in ``path``, for the current CUDA device. TensorRT sees no byte whose hash is not the noted one.

    Raises:
        RunError: the engine or its info is missing or was changed.
        RuntimeUnavailableError: it was built for another GPU or version, or there is no TensorRT or CUDA device.
        ExportError: TensorRT cannot load it all the same.
    """
    data, info = read_engine(Path(path))
    trt = tensorrt_module()
    if reason := misfit(info, trt.__version__, *current_gpu()):
        raise RuntimeUnavailableError(f"engine {path} {reason}: build it again here")
    return required(_deserialized(data, info.version_compatible), f"load engine {path}"), info


def tensorrt_module() -> Any:
    """The tensorrt package. Raises RuntimeUnavailableError when it is missing, broken, or neither 10 nor 11."""
    try:
        import tensorrt
    except ModuleNotFoundError as problem:
        raise RuntimeUnavailableError(f"tensorrt is not installed: {_INSTALL}") from problem
    except (ImportError, OSError, RuntimeError) as problem:  # it loads its libraries when it is imported
        raise RuntimeUnavailableError(f"tensorrt cannot be loaded ({_one_line(str(problem))}): {_INSTALL}") from problem
    if numbers(tensorrt.__version__)[0] not in (10, 11):
        raise RuntimeUnavailableError(f"tensorrt must be version 10 or 11, but is {tensorrt.__version__}: {_INSTALL}")
    return tensorrt


def current_gpu() -> tuple[str, str]:
    """(name, compute capability) of the current CUDA device. Raises RuntimeUnavailableError when there is none."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeUnavailableError(f"TensorRT needs a CUDA device, but torch {torch.__version__} finds none: check nvidia-smi")
    found: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    return str(found.name), f"{found.major}.{found.minor}"


def layer_information(engine: Any) -> str:
    """TensorRT's account of an engine's layers, as JSON text."""
    trt = tensorrt_module()
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def required(result: Any, task: str) -> Any:
    """``result``, unless it is one of those by which TensorRT says that it failed: then ExportError with its reason."""
    if result is None or result is False:
        trt = tensorrt_module()
        raise ExportError(f"TensorRT {trt.__version__} cannot {task}: {_log(trt).told()}")
    return result


@functools.cache  # a process has one logger: TensorRT keeps the first that it is given
def _log(trt: Any) -> Any:
    """A logger that keeps errors and drops the rest."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(_one_line(msg))

        def told(self) -> str:
            return "; ".join(dict.fromkeys(self.errors)) or "it does not say why"

    return Log()


def _made(kind: Callable[[Any], Any]) -> Any:
    """A Builder or Runtime, and no error left over from the one before."""
    log = _log(tensorrt_module())
    log.errors.clear()
    try:
        return kind(log)
    except TypeError as problem:  # the bindings got a null pointer: the driver is older than TensorRT's CUDA, for one
        raise RuntimeUnavailableError(f"TensorRT does not start on this machine: {log.told()}") from problem


def _deserialized(plan: bytes, version_compatible: bool) -> Any:
    """The engine; None when TensorRT rejects it."""
    runtime = _made(tensorrt_module().Runtime)
    runtime.engine_host_code_allowed = version_compatible  # such an engine brings code of its own
    return runtime.deserialize_cuda_engine(plan)


def _network(trt: Any, builder: Any, source: Path) -> Any:
    typed = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(typed) if numbers(trt.__version__)[0] == 10 else 0)  # 11 has no other networks
    parser = trt.OnnxParser(network, _log(trt))
    with tempfile.TemporaryDirectory(prefix="nar_hw_") as folder:
        parsed = parser.parse_from_file(str(_symmetric(source, Path(folder))))
    if not parsed:
        problems = [parser.get_error(index) for index in range(parser.num_errors)]
        told = [f"{problem.node_name() or 'the file'}: {_one_line(problem.desc())}" for problem in problems]
        more = f" (and {len(told) - 3} more)" if len(told) > 3 else ""
        raise ExportError(f"TensorRT {trt.__version__} cannot read {source}: {'; '.join(told[:3]) or 'no reason given'}{more}")
    if (inputs := network.num_inputs, outputs := network.num_outputs) != (1, 1):
        raise ExportError(f"{source} must have one input and one output, but has {inputs} and {outputs}")
    return network


def _symmetric(source: Path, folder: Path) -> Path:
    """``source``, or of an int8 file that was made here a copy in ``folder`` with zero points 0."""
    model = _loaded(source)
    if precision_of(model) != "int8" or model.producer_name != PRODUCER:
        return source
    to_symmetric(source, folder / source.name)
    return folder / source.name


def _config(
    trt: Any,
    builder: Any,
    *,
    workspace_mib: int,
    optimization_level: int,
    version_compatible: bool,
    hardware_compatibility: str | None,
    refit: bool,
) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib * 2**20)
    config.builder_optimization_level = optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)
    if version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if hardware_compatibility is not None:
        known = {key.lower(): level for key, level in trt.HardwareCompatibilityLevel.__members__.items() if key != "NONE"}
        if hardware_compatibility not in known:
            raise unknown_name("hardware compatibility", hardware_compatibility, known)
        config.hardware_compatibility_level = known[hardware_compatibility]
    return config


def _add_profile(builder: Any, config: Any, images: Any, batch: Batch, source: Path) -> None:
    given, *shape = images.shape
    if -1 in shape:
        raise ExportError(f"{source}: only the number of images may vary, but its input is {(given, *shape)}: export it again")
    if given != -1:
        if set(batch) != {given}:
            raise ExportError(f"{source} is for batch {given} only, but batch {batch} is asked for: export it again for a range")
        return
    profile = builder.create_optimization_profile()
    smallest, usual, largest = ((size, *shape) for size in batch)
    profile.set_shape(images.name, smallest, usual, largest)
    required(config.add_optimization_profile(profile) >= 0, f"build {source} for batch {batch}")


def _timing_cache(config: Any, path: Path) -> Any:
    """The cache in ``path``, or an empty one, in use by ``config``; keep it as long as that."""
    try:
        cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    except OSError as problem:
        raise ExportError(f"timing cache {path} cannot be read: {problem}") from problem
    if cache is None or not config.set_timing_cache(cache, False):
        raise ExportError(f"timing cache {path} is damaged or of another TensorRT or GPU: delete it, or give another one")
    return cache


def _check_settings(batch: Batch, workspace_mib: int, optimization_level: int) -> None:
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise ExportError(f"batch must hold 1 <= min <= opt <= max, but got {batch}")
    if workspace_mib < 1:
        raise ExportError(f"workspace_mib must be at least 1, but got {workspace_mib}")
    if not 0 <= optimization_level <= 5:
        raise ExportError(f"optimization_level must be from 0 to 5, but got {optimization_level}")


def _described(source: Path) -> tuple[str, dict[str, str]]:
    """The precision of an ONNX file, and what it says of itself."""
    model = _loaded(source)
    return precision_of(model), {entry.key: entry.value for entry in model.metadata_props}


def _loaded(source: Path) -> Any:
    import onnx

    if not source.is_file():
        raise ExportError(f"ONNX file {source} does not exist")
    try:
        return onnx.load(source, load_external_data=False)
    except Exception as problem:  # protobuf's DecodeError among others; onnx documents none
        raise ExportError(f"{source} is not an ONNX file: {_one_line(str(problem))}") from problem


def _one_line(text: str) -> str:
    return " ".join(text.split())
