"""TensorRT 10 and 11, and TensorRT for RTX: engines from ONNX files, and their parser as a judge of ONNX files.

Networks are strongly typed in all of them: the precision of an engine is that of its ONNX file. What differs between them is
in `LIBRARIES`. TensorRT builds for the GPU of this machine; TensorRT for RTX builds on any machine, without a GPU, for the
compute capabilities that are asked for, and compiles the last step when the engine is loaded.

An engine is up to four files: model.engine, model.engine.json (`EngineInfo`), model.engine.layers.json (TensorRT's own account
of its layers) and, of TensorRT 10 and 11, the timing cache, from which a rebuild takes its kernels instead of timing them again.
"""

import functools
import hashlib
import importlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nar_hw.errors import ExportError, RuntimeUnavailableError, unknown_name
from nar_hw.export import engine_worker
from nar_hw.export.engine import SCHEMA, EngineInfo, LibraryName, info_file, misfit, numbers, read_engine
from nar_hw.export.engine_layers import datatypes
from nar_hw.export.engine_worker import one_line
from nar_hw.export.gpus import capabilities, number
from nar_hw.export.quantize import PRODUCER, precision_of, to_symmetric
from nar_hw.files import Scratch, atomic_path, json_text, sha256
from nar_hw.records import plain

Batch = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Library:
    """One package that builds and runs engines."""

    package: str
    title: str
    majors: tuple[int, ...]
    """The versions that are known to work."""
    anywhere: bool
    """Whether it builds without a GPU, for compute capabilities; else for the GPU of this machine."""
    settings: frozenset[str]
    """Which of the settings of `build_engine` it has."""

    @property
    def install(self) -> str:
        """How to get it."""
        return f"pip install 'nar-hw[{self.package.replace('_', '-')}]'"


LIBRARIES = {
    "tensorrt": Library(
        package="tensorrt",
        title="TensorRT",
        majors=(10, 11),
        anywhere=False,
        settings=frozenset({"optimization_level", "timing_cache", "version_compatible", "hardware_compatibility", "refit"}),
    ),
    "tensorrt-rtx": Library(
        package="tensorrt_rtx", title="TensorRT for RTX", majors=(1,), anywhere=True, settings=frozenset({"gpus"})
    ),
}
"""By the name of the export target and of the runtime."""


def build_engine(
    onnx_path: Path | str,
    engine_path: Path | str,
    *,
    library: LibraryName = "tensorrt",
    gpus: Sequence[str] = (),
    batch: Batch = (1, 8, 64),
    workspace_mib: int = 1024,
    optimization_level: int | None = None,
    timing_cache: Path | str | None = None,
    version_compatible: bool = False,
    hardware_compatibility: str | None = None,
    refit: bool = False,
) -> EngineInfo:
    """Build an engine; fp32 is computed in fp32, not in TF32.

    Args:
        onnx_path: the network, in the precision that the engine shall have.
        engine_path: the engine; nothing is written unless everything is.
        library: one of `LIBRARIES`: "tensorrt" builds for the current CUDA device, "tensorrt-rtx" for ``gpus``.
        gpus: for "tensorrt-rtx": compute capabilities ("sm89") or cards ("RTX 4090"), or "all"; one engine for all of them.
        batch: (min, opt, max) images at once; the engine is tuned for opt.
        workspace_mib: scratch memory that one layer may use.
        optimization_level: 0 (fastest build) to 5 (fastest engine); None for the library's own.
        timing_cache: read if it exists, then updated; by default ``<engine_path>.cache``. With it a rebuild gives the same
            engine.
        version_compatible: run in later versions of the same major version too.
        hardware_compatibility: None for this model of GPU only, or "ampere_plus" or "same_compute_capability".
        refit: weights can be exchanged without a rebuild.

    Raises:
        RuntimeUnavailableError: the library is not there or does not load, or TensorRT finds no CUDA device.
        UnknownNameError: a library, GPU or hardware compatibility that does not exist.
        ExportError: TensorRT rejects the network, a setting or the timing cache, or the files cannot be written.
    """
    kind, source, target = library_named(library), Path(onnx_path), Path(engine_path)
    asked = {
        "gpus": gpus,
        "optimization_level": optimization_level,
        "timing_cache": timing_cache,
        "version_compatible": version_compatible,
        "hardware_compatibility": hardware_compatibility,
        "refit": refit,
    }
    _check_settings(kind, asked, batch, workspace_mib)
    precision, metadata = _described(source)
    targets = capabilities(gpus, precision) if kind.anywhere else ()
    trt = tensorrt_module(library)
    if hardware_compatibility is not None:
        known = {key.lower() for key in trt.HardwareCompatibilityLevel.__members__} - {"none"}
        if hardware_compatibility not in known:
            raise unknown_name("hardware compatibility", hardware_compatibility, known)
    gpu = None if kind.anywhere else current_gpu()
    cache_path = None
    if "timing_cache" in kind.settings:
        cache_path = target.with_name(f"{target.name}.cache") if timing_cache is None else Path(timing_cache)
    with Scratch() as scratch:
        folder = Path(scratch)
        made = {name: folder / name for name in ("plan", "layers", "new_cache")}
        request = {
            "task": "build",
            "onnx": str(prepared(source, folder)),
            "outputs": 1,
            **{name: str(path) for name, path in made.items()},
            "shapes": _shapes(source, batch),
            "gpus": targets,
            "workspace_mib": workspace_mib,
            "optimization_level": optimization_level,
            "timing_cache": None if cache_path is None else str(cache_path),
            "version_compatible": version_compatible,
            "hardware_compatibility": hardware_compatibility,
            "refit": refit,
        }
        answer = _asked(kind, request, folder)
        if "error" in answer:
            raise ExportError(answer["error"].replace(request["onnx"], str(source)))
        plan, layers = made["plan"].read_bytes(), made["layers"].read_bytes()
        timings = None if cache_path is None else made["new_cache"].read_bytes()
    info = EngineInfo(
        library=library,
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        onnx_sha256=sha256(source),
        timing_cache_sha256=None if timings is None else hashlib.sha256(timings).hexdigest(),
        tensorrt=trt.__version__,
        gpu=None if gpu is None else gpu[0],
        compute_capabilities=tuple(map(number, targets)) if gpu is None else (gpu[1],),
        precision=precision,
        datatypes=datatypes(json.loads(layers, strict=False)["Layers"]),
        batch=batch,
        workspace_mib=workspace_mib,
        optimization_level=optimization_level,
        version_compatible=version_compatible,
        hardware_compatibility=hardware_compatibility,
        refit=refit,
        metadata=metadata,
    )
    files = {
        info_file(target): json_text({"schema": SCHEMA, **plain(info)}).encode(),
        target: plan,
        target.with_name(f"{target.name}.layers.json"): layers,
    }
    if cache_path is not None and timings is not None:
        files[cache_path] = timings
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
        RuntimeUnavailableError: it was built for other GPUs or another version, or there is no TensorRT or CUDA device.
        ExportError: TensorRT cannot load it all the same.
    """
    data, info = read_engine(Path(path))
    trt = tensorrt_module(info.library)
    if reason := misfit(info, trt.__version__, *current_gpu()):
        raise RuntimeUnavailableError(f"engine {path} {reason}: build it again here")
    log = _log(trt)
    log.errors.clear()
    try:
        runtime = trt.Runtime(log)
    except TypeError as problem:  # the bindings got a null pointer: the driver is older than TensorRT's CUDA, for one
        raise RuntimeUnavailableError(f"TensorRT does not start on this machine: {log.told()}") from problem
    runtime.engine_host_code_allowed = info.version_compatible  # such an engine brings code of its own
    return required(trt, runtime.deserialize_cuda_engine(data), f"load engine {path}"), info


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a TensorRT parser says of an ONNX file."""

    parser: str
    """ "TensorRT for RTX 1.7.1.116"."""
    refused: tuple[Mapping[str, str], ...]
    """The nodes that it cannot read: "node" (its name), "operator" and "reason"."""

    def sentence(self) -> str:
        """One line for people."""
        if not self.refused:
            return f"accepted ({self.parser})"
        first, more = self.refused[0], len(self.refused) - 1
        where = f"node {first['node']} ({first['operator']})" if first["node"] else "the file"
        return f"refused ({self.parser}) at {where}: {first['reason']}{f' (and {more} more nodes)' if more else ''}"


def parser_verdicts(files: Mapping[str, Path]) -> dict[str, Verdict]:
    """What the parser of the first library that starts here says of ONNX files, by name; empty where none is installed or starts.

    Of an int8 file of `to_int8` it is given the signed copy that engines are built from. A file at which it dies is refused too.

    Raises ExportError for what is no ONNX file.
    """
    for name, kind in LIBRARIES.items():
        try:
            version = tensorrt_module(name).__version__
        except RuntimeUnavailableError:
            continue
        with Scratch() as scratch:
            folder, given, refused = Path(scratch), {}, {}
            for index, (key, file) in enumerate(files.items()):
                (folder / str(index)).mkdir()
                try:
                    given[key] = str(prepared(file, folder / str(index)))
                except UnreadableError as problem:
                    refused[key] = [problem.node]
            found = _parsed(kind, given, folder)
        if found is not None:
            return {key: Verdict(parser=f"{kind.title} {version}", refused=tuple((refused | found)[key])) for key in files}
    return {}


def _parsed(kind: Library, files: Mapping[str, str], folder: Path) -> dict[str, list[dict[str, str]]] | None:
    """The nodes of each file that the parser refuses; None where the library does not start, as TensorRT without a GPU."""
    try:
        return _asked(kind, {"task": "parse", "files": files}, folder).get("refused")
    except ExportError as problem:  # the parser died; by one file at a time it shows at which
        if len(files) == 1:
            return {name: [{"node": "", "operator": "", "reason": str(problem)}] for name in files}
    alone = [_parsed(kind, {name: file}, folder) for name, file in files.items()]
    return {name: nodes for found in alone if found is not None for name, nodes in found.items()}


def library_named(name: str) -> Library:
    """A library. Raises UnknownNameError."""
    if name not in LIBRARIES:
        raise unknown_name("TensorRT library", name, LIBRARIES)
    return LIBRARIES[name]


def tensorrt_module(library: str = "tensorrt") -> Any:
    """The package. Raises RuntimeUnavailableError when it is missing, broken, or of a version that is not known."""
    kind = library_named(library)
    try:
        module: Any = importlib.import_module(kind.package)
    except ModuleNotFoundError as problem:
        raise RuntimeUnavailableError(f"{kind.package} is not installed: {kind.install}") from problem
    except (ImportError, OSError, RuntimeError) as problem:  # it loads its libraries when it is imported
        raise RuntimeUnavailableError(f"{kind.package} cannot be loaded ({one_line(str(problem))}): {kind.install}") from problem
    if numbers(module.__version__)[0] not in kind.majors:
        known = " or ".join(map(str, kind.majors))
        raise RuntimeUnavailableError(f"{kind.package} must be version {known}, but is {module.__version__}: {kind.install}")
    return module


def current_gpu() -> tuple[str, str]:
    """(name, compute capability) of the current CUDA device. Raises RuntimeUnavailableError when there is none."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeUnavailableError(f"TensorRT needs a CUDA device, but torch {torch.__version__} finds none: check nvidia-smi")
    found: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    return str(found.name), f"{found.major}.{found.minor}"


def layer_information(trt: Any, engine: Any) -> str:
    """TensorRT's account of an engine's layers, as JSON text."""
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def required(trt: Any, result: Any, task: str) -> Any:
    """``result``, unless it is one of those by which TensorRT says that it failed: then ExportError with its reason."""
    if result is None or result is False:
        raise ExportError(f"TensorRT {trt.__version__} cannot {task}: {_log(trt).told()}")
    return result


@functools.cache  # a process has one logger: TensorRT keeps the first that it is given
def _log(trt: Any) -> Any:
    return engine_worker.logger(trt)


def _asked(kind: Library, request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a process of its own answers. Raises ExportError when it dies."""
    question, answer = folder / "request.json", folder / "answer.json"
    answer.unlink(missing_ok=True)
    question.write_text(json.dumps({"package": kind.package, **request}), encoding="utf-8")
    command = [sys.executable, "-P", str(engine_worker.__file__), str(question), str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if not answer.exists():
        last = one_line((done.stderr.strip() or "no message").splitlines()[-1])
        raise ExportError(f"{kind.title} ended with code {done.returncode} and no answer: {last}")
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found


class UnreadableError(ExportError):
    """A file that TensorRT would read as something else than it says."""

    def __init__(self, message: str, node: Mapping[str, str]) -> None:
        super().__init__(message)
        self.node = node


def prepared(source: Path, folder: Path) -> Path:
    """``source``, or of an int8 file that was made here a copy in ``folder`` with zero points 0.

    Raises UnreadableError for a file that TensorRT would take without a word and compute something else.
    """
    model = _loaded(source)
    if precision_of(model) == "int8" and model.producer_name == PRODUCER:
        to_symmetric(source, folder / source.name)
        return folder / source.name
    for node in model.graph.node:
        if reason := _misread(node, model):
            told = {"node": node.name, "operator": node.op_type, "reason": reason}
            raise UnreadableError(f"{source}: node {node.name} ({node.op_type}): {reason}", told)
    return source


def _misread(node: Any, model: Any) -> str | None:
    """Why TensorRT would compute something else than a node says; None when it would not."""
    import onnx

    given = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "QuantizeLinear":
        zeros = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        unsigned = onnx.TensorProto.UINT8
        kind = (
            zeros.get(node.input[2]) if len(node.input) > 2 else given["output_dtype"].i if "output_dtype" in given else unsigned
        )
        if kind == unsigned:
            return "gives uint8, which TensorRT reads as int8, so large values saturate: quantize to int8 with zero points 0"
    if node.op_type == "MaxPool" and "ceil_mode" in given and given["ceil_mode"].i:
        window, rank = list(given["kernel_shape"].ints), len(given["kernel_shape"].ints)
        strides, pads = (list(given[name].ints) if name in given else [] for name in ("strides", "pads"))
        ends = zip(window, strides or [1] * rank, pads[rank:] or [0] * rank, strict=True)
        if any(pad + stride > size for size, stride, pad in ends):
            return "has ceil_mode with a last window that may start in the padding, which TensorRT keeps: pad explicitly"
    return None


def _shapes(source: Path, batch: Batch) -> list[list[int]]:
    """The input's shapes for the three batch sizes. Raises ExportError where the file does not go with them."""
    given, *shape = [dim.dim_value or -1 for dim in _loaded(source).graph.input[0].type.tensor_type.shape.dim]
    if -1 in shape:
        raise ExportError(f"{source}: only the number of images may vary, but its input is {(given, *shape)}: export it again")
    if given != -1 and set(batch) != {given}:
        raise ExportError(f"{source} is for batch {given} only, but batch {batch} is asked for: export it again for a range")
    return [[size, *shape] for size in batch]


def _check_settings(kind: Library, asked: Mapping[str, Any], batch: Batch, workspace_mib: int) -> None:
    if foreign := [name for name, value in asked.items() if value and name not in kind.settings]:
        fix = "name the GPUs with gpus" if kind.anywhere else "it builds for the GPU of this machine"
        raise ExportError(f"{kind.title} has no setting {foreign[0]}: leave it out, {fix}")
    if kind.anywhere and not asked["gpus"]:
        raise ExportError(f"{kind.title} builds for the GPUs that it is told, but is told none: give gpus, or 'all'")
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise ExportError(f"batch must hold 1 <= min <= opt <= max, but got {batch}")
    if workspace_mib < 1:
        raise ExportError(f"workspace_mib must be at least 1, but got {workspace_mib}")
    level = asked["optimization_level"]
    if level is not None and not 0 <= level <= 5:
        raise ExportError(f"optimization_level must be from 0 to 5, but got {level}")


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
        raise ExportError(f"{source} is not an ONNX file: {one_line(str(problem))}") from problem
