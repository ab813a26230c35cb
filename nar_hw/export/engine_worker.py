"""Reads ONNX files with TensorRT and builds engines in a process of its own: a script that nar_hw.export.tensorrt runs.

It imports nothing of nar_hw, so it starts in a fraction of a second. One process per build: after a build that was refused,
TensorRT for RTX builds another engine from the same file; and what crashes here leaves the caller alive.

The request and the answer are JSON files: ``python -P engine_worker.py REQUEST ANSWER``.
"""

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

SERIOUS = re.compile(r"\bu?int8\b|quantiz|unsupported|not supported|\bignor", re.IGNORECASE)
"""Warnings that mean other numbers or another engine than asked for."""


class RefusedError(Exception):
    """TensorRT cannot do it; ``nodes`` says which nodes of the file are to blame, where it names some."""

    def __init__(self, text: str, nodes: list[dict[str, str]] | None = None) -> None:
        super().__init__(text)
        self.nodes = nodes or []


def logger(trt: Any) -> Any:
    """A logger that keeps errors, serious warnings, and the account of an engine's layers."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.layers = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(one_line(msg))
            elif severity == trt.ILogger.WARNING and SERIOUS.search(msg):
                self.warnings.append(one_line(msg))
            elif msg.startswith("Layers:"):
                self.layers = msg

        def told(self) -> str:
            return "; ".join(dict.fromkeys(self.errors)) or "it does not say why"

    return Log()


_PLACES = re.compile(
    r"^\w+::\w+: Error Code \d+: |\[[\w.]+::\w+::\d+\] Error Code \d+: |\[\w+\.\w+:\d+: \w+\] ?|,? In \w+ at /[^)]*\)*"
)
_PLACE_OF_REASON = re.compile(r"\(In \w+ at /\S+ (\([^()]*\))\)")


def one_line(text: str) -> str:
    """``text`` without its line ends, and without places in TensorRT's own source."""
    return _PLACES.sub("", _PLACE_OF_REASON.sub(r"\1", " ".join(text.split())))


def parse(trt: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Read files: name -> the nodes that the parser refuses, with their operators and its reasons."""
    builder(trt, logger(trt))  # where the library does not start, no file is to blame
    return {"refused": {name: _refused(trt, file) for name, file in request["files"].items()}}


def _refused(trt: Any, file: str) -> list[dict[str, str]]:
    log = logger(trt)
    try:
        _network(trt, builder(trt, log), log, file)
    except RefusedError as problem:
        return problem.nodes or [{"node": "", "operator": "", "reason": str(problem)}]
    return []


def builder(trt: Any, log: Any) -> Any:
    """A builder. Raises RefusedError where the library does not start on this machine."""
    try:
        return trt.Builder(log)
    except TypeError as problem:  # the bindings got a null pointer: the driver is older than TensorRT's CUDA, for one
        raise RefusedError(f"TensorRT does not start on this machine: {log.told()}") from problem


def _network(trt: Any, maker: Any, log: Any, file: str) -> Any:
    typed = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = maker.create_network(1 << int(typed) if trt.__version__.startswith("10.") else 0)  # others have no other networks
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(file):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        nodes = [
            {"node": error.node_name(), "operator": error.node_operator(), "reason": one_line(error.desc())} for error in errors
        ]
        told = [f"node {item['node'] or '(none)'} ({item['operator']}): {item['reason']}" for item in nodes]
        more = f" (and {len(told) - 3} more)" if len(told) > 3 else ""
        raise RefusedError(f"TensorRT {trt.__version__} cannot read {file}: {'; '.join(told[:3]) or log.told()}{more}", nodes)
    _check_warnings(trt, log, file)
    return network


def _check_warnings(trt: Any, log: Any, file: str) -> None:
    if log.warnings:
        raise RefusedError(f"TensorRT {trt.__version__} would not do with {file} what it says: {log.warnings[0]}")


def build(trt: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Build an engine: the plan, the account of its layers and the timing cache lie in files that ``request`` names."""
    log, file = logger(trt), request["onnx"]
    maker = builder(trt, log)
    network = _network(trt, maker, log, file)
    if (counts := (network.num_inputs, network.num_outputs)) != (1, request["outputs"]):
        raise RefusedError(f"{file} must have one input and {request['outputs']} outputs, but has {counts[0]} and {counts[1]}")
    config = _config(trt, maker, request)
    _add_profile(maker, config, network.get_input(0), request)
    cache = _timing_cache(config, request) if request["timing_cache"] else None
    plan = maker.build_serialized_network(network, config)
    if plan is None:
        raise RefusedError(f"TensorRT {trt.__version__} cannot build {file}: {log.told()}")
    _check_warnings(trt, log, file)
    Path(request["plan"]).write_bytes(plan)
    if cache is not None:
        Path(request["new_cache"]).write_bytes(cache.serialize())
    layers = layers_in_log(log.layers) if log.layers else layers_of_engine(trt, log, bytes(plan), request)
    Path(request["layers"]).write_text(layers, encoding="utf-8")
    return {}


def _config(trt: Any, maker: Any, request: dict[str, Any]) -> Any:
    config = maker.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_mib"] * 2**20)
    if request["optimization_level"] is not None:
        config.builder_optimization_level = request["optimization_level"]
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)
    if request["version_compatible"]:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request["refit"]:
        config.set_flag(trt.BuilderFlag.REFIT)
    if request["hardware_compatibility"] is not None:
        levels = {key.lower(): level for key, level in trt.HardwareCompatibilityLevel.__members__.items()}
        config.hardware_compatibility_level = levels[request["hardware_compatibility"]]
    if request["gpus"]:
        members = trt.ComputeCapability.__members__
        config.num_compute_capabilities = len(request["gpus"])
        for index, name in enumerate(request["gpus"]):
            if name.upper() not in members or not config.set_compute_capability(members[name.upper()], index):
                raise RefusedError(f"TensorRT {trt.__version__} cannot build for {name}: use another version, or leave it out")
    return config


def _add_profile(maker: Any, config: Any, images: Any, request: dict[str, Any]) -> None:
    """Let the dimensions that are free vary: the number of images as asked, height and width as ``request`` says."""
    given = tuple(images.shape)
    if -1 not in given:
        return
    profile = maker.create_optimization_profile()
    profile.set_shape(images.name, *map(tuple, request["shapes"]))
    if config.add_optimization_profile(profile) < 0:
        raise RefusedError(f"TensorRT cannot build {request['onnx']} for images {request['shapes']}: {given}")


def _timing_cache(config: Any, request: dict[str, Any]) -> Any:
    """The cache in its file, or an empty one, in use by ``config``; keep it as long as that."""
    path = Path(request["timing_cache"])
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise RefusedError(f"timing cache {path} is damaged or of another TensorRT or GPU: delete it, or give another one")
    return cache


def layers_of_engine(trt: Any, log: Any, plan: bytes, request: dict[str, Any]) -> str:
    """The account of a layers that an engine gives of itself on its GPU."""
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = request["version_compatible"]  # such an engine brings code of its own
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise RefusedError(f"TensorRT {trt.__version__} cannot read back what it built from {request['onnx']}: {log.told()}")
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


_LAYER = re.compile(
    r"^Name: (.*?), LayerType: (\S+?), Inputs: (\[.*?\]), Constants: (\[.*?\]), Outputs: (\[.*?\]), TacticName: (.*?), "
    r"StreamId: .*?Metadata: (.*)$"
)
_TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[([-\d,]*)\], .*?Datatype: (\w+), Format: ")


def layers_in_log(text: str) -> str:
    """The account that a builder logs, in the words of the inspector of an engine: JSON text."""
    layers = []
    for line in text.splitlines():
        if found := _LAYER.match(line):
            name, kind, inputs, constants, outputs, tactic, metadata = found.groups()
            tensors = {"Inputs": _tensors(inputs), "Outputs": _tensors(outputs), "Constants": _tensors(constants)}
            layers.append({"Name": name, "LayerType": kind, **tensors, "TacticName": tactic, "Metadata": metadata})
    return json.dumps({"Layers": layers}, indent=1) + "\n"


def _tensors(text: str) -> list[dict[str, Any]]:
    return [
        {"Name": name, "Dimensions": [int(size) for size in sizes.split(",") if size], "Datatype": kind}
        for name, sizes, kind in _TENSOR.findall(text)
    ]


def main() -> None:
    """Do what the request says."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    trt = importlib.import_module(request["package"])
    try:
        answer = {"parse": parse, "build": build}[request["task"]](trt, request)
    except RefusedError as problem:
        answer = {"error": str(problem), "nodes": problem.nodes}
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
