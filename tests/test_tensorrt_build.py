"""Engines built, and ONNX files read, by the real TensorRT for RTX, which needs no GPU for either."""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import nar_hw.export.tensorrt
import nar_hw.steps.check
from nar_hw.bundles.manifest import load_bundle
from nar_hw.bundles.verify import verify_bundle
from nar_hw.errors import ExportError, RunError, RuntimeUnavailableError, UnknownNameError, UserError
from nar_hw.export import engine_worker
from nar_hw.export.engine import info_file, read_engine
from nar_hw.export.engine_layers import node_names, producers
from nar_hw.export.gpus import CARDS, capabilities
from nar_hw.export.onnx import export_onnx, open_session, run_session
from nar_hw.export.quantize import precision_of, to_bf16, to_fp16, to_int8, to_symmetric
from nar_hw.export.tensorrt import LIBRARIES, Verdict, build_engine, load_engine, parser_verdicts, tensorrt_module
from nar_hw.files import sha256
from nar_hw.latency.in_context import Join
from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.tensorrt_rtx import TensorRTRtx
from nar_hw.space.space import SearchSpace
from nar_hw.steps.check import check_space
from tests.bundles import exported
from tests.faketensorrt import without_bf16
from tests.networks import TinyResNet

SHAPE = (3, 16, 16)
CLASSES = ["ant", "bee", "cat", "dog", "eel"]
NODES = ["conv1", "layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2", "layer2.skip.0"]


def need_tensorrt() -> None:
    try:
        tensorrt_module("tensorrt-rtx")
    except RuntimeUnavailableError as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="module", autouse=True)
def _real() -> None:
    need_tensorrt()


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return TinyResNet(width=32).eval()


@pytest.fixture(scope="module")
def files(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The network in each precision."""
    folder = tmp_path_factory.mktemp("onnx")
    paths = {name: folder / f"{name}.onnx" for name in ("fp32", "fp16", "bf16", "int8")}
    export_onnx(module, paths["fp32"], input_shape=SHAPE, metadata={"classes": CLASSES})
    to_fp16(paths["fp32"], paths["fp16"])
    to_bf16(paths["fp32"], paths["bf16"])
    to_int8(paths["fp32"], paths["int8"], np.random.default_rng(0).standard_normal((16, *SHAPE), dtype=np.float32))
    return paths


def rtx(source: Path, target: Path, *gpus: str, **settings: Any) -> Any:
    return build_engine(source, target, library="tensorrt-rtx", gpus=gpus or ("sm89",), **settings)


def one_line(error: type[UserError], message: str, act: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        act()
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    return text


# Building


@pytest.mark.parametrize(("precision", "kind"), [("fp32", "Float"), ("fp16", "Half"), ("bf16", "BFloat16"), ("int8", "Int8")])
def test_an_engine_computes_in_the_precision_of_its_file(
    files: dict[str, Path], tmp_path: Path, precision: str, kind: str
) -> None:
    path = tmp_path / "a" / "model.engine"
    info = rtx(files[precision], path, "RTX 4090", "A100", batch=(1, 2, 4))
    assert read_engine(path)[1] == info
    assert (info.library, info.gpu, info.compute_capabilities) == ("tensorrt-rtx", None, ("8.0", "8.9"))
    assert (info.precision, info.batch, info.timing_cache_sha256) == (precision, (1, 2, 4), None)
    assert [info.engine_sha256, info.onnx_sha256] == [sha256(path), sha256(files[precision])]
    assert info.datatypes == {kind: 7}, "six convolutions and the linear layer"
    assert json.loads(info.metadata["classes"]) == CLASSES
    layers = json.loads(path.with_name("model.engine.layers.json").read_text())["Layers"]
    assert {f"{name}/Conv" for name in NODES} | {"fc/Gemm"} <= set(node_names(layers).values())
    if precision == "fp32":
        join_to_slots(layers)
    names = ["model.engine", "model.engine.json", "model.engine.layers.json"]
    assert sorted(file.name for file in path.parent.iterdir()) == names


def join_to_slots(layers: list[dict[str, Any]]) -> None:
    """Each convolution, with what is fused into it, is found at its slot, and reads what it does in the network."""
    space = SearchSpace.from_model(TinyResNet(width=32), SHAPE)
    join, readers = Join(space, []), producers(layers)
    assert {join.site(node) for node in readers} - {None} == {site.conv for slot in space.slots for site in slot.sites}
    assert "layer1/Add" not in readers
    assert readers["layer1.conv2/Conv"] == ["layer1.conv1/Conv", "conv1/Conv"], "the sum is in it"
    assert readers["layer2.conv1/Conv"] == ["layer1.conv2/Conv"]
    assert readers["fc/Gemm"] == ["ReduceMean"]


def test_the_batch_range_is_that_of_the_engine(files: dict[str, Path], tmp_path: Path) -> None:
    """By the library's own account, which shows the profile."""
    request = {
        **{"package": "tensorrt_rtx", "task": "build", "onnx": str(files["fp32"]), "outputs": 1},
        **{name: str(tmp_path / name) for name in ("plan", "layers", "new_cache")},
        **{"shapes": [[size, *SHAPE] for size in (1, 3, 5)], "gpus": ["sm89"], "workspace_mib": 64},
        # What TensorRT for RTX ignores, but takes as TensorRT 10 and 11 do
        **{"timing_cache": str(tmp_path / "cache"), "optimization_level": 5, "hardware_compatibility": None},
        **{"version_compatible": False, "refit": False},
    }
    code = (
        "import json, sys, tensorrt_rtx as trt\n"
        "from nar_hw.export import engine_worker as worker\n"
        "made = worker.logger\n"
        "def logger(trt):\n"
        "    log = made(trt)\n"
        "    def told(severity, msg, keep=log.log):\n"
        "        keep(severity, msg)\n"
        "        if 'MinShape' in msg: print(msg)\n"
        "    log.log = told\n"
        "    return log\n"
        "worker.logger = logger\n"
        "worker.build(trt, json.loads(sys.argv[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(request)], capture_output=True, text=True, check=False)
    seen = re.findall(r"(Min|Opt|Max)Shape: \[(\d+),3,16,16\]", done.stdout)
    assert seen == [("Min", "1"), ("Opt", "3"), ("Max", "5")], done.stderr[-500:]
    assert {file.name for file in tmp_path.iterdir()} == {"plan", "layers", "new_cache"}
    # Only a warning tells that the level is not that of the engine
    answer = nar_hw.export.tensorrt._asked(
        LIBRARIES["tensorrt-rtx"], {**request, "hardware_compatibility": "ampere_plus"}, tmp_path
    )
    assert re.search("would not do with .* what it says: .*unsupported", answer["error"]), answer


def pool_model(path: Path, **attributes: Any) -> Path:
    return saved(path, [helper.make_node("MaxPool", ["input"], ["output"], "pool/MaxPool", **attributes)])


def saved(path: Path, nodes: list[Any], weights: Any = (), shape: Any = ("batch", 3, 7, 7), opset: int = 18) -> Path:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "output")]
    tensors[1].type.tensor_type.ClearField("shape")
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:], list(weights))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


def test_what_cannot_be_built_is_told_in_one_line_and_leaves_nothing(files: dict[str, Path], tmp_path: Path) -> None:
    unknown = saved(tmp_path / "unknown.onnx", [helper.make_node("Det", ["input"], ["output"], "x/Det")])
    free = saved(tmp_path / "free.onnx", [helper.make_node("Relu", ["input"], ["output"], "r")], shape=("batch", 3, 32, "width"))
    fixed = saved(tmp_path / "fixed.onnx", [helper.make_node("Relu", ["input"], ["output"], "r")], shape=(4, 3, 8, 8))
    (tmp_path / "damaged.onnx").write_bytes(b"not a protobuf\n")
    target = tmp_path / "out" / "model.engine"
    cases: list[tuple[type[UserError], str, Callable[[], object]]] = [
        (ExportError, "cannot read", lambda: rtx(unknown, target)),
        (ExportError, "node x/Det (Det): ", lambda: rtx(unknown, target)),
        (ExportError, "'fc/Gemm' for Turing (SM75): FP32 GEMM is not supported", lambda: rtx(files["fp32"], target, "sm75")),
        (ExportError, "may vary, but its input is (-1, 3, 32, -1)", lambda: rtx(free, target)),
        (ExportError, "is for batch 4 only, but batch (1, 8, 64) is asked for", lambda: rtx(fixed, target)),
        (ExportError, "missing.onnx does not exist", lambda: rtx(tmp_path / "missing.onnx", target)),
        (ExportError, "damaged.onnx is not an ONNX file: ", lambda: rtx(tmp_path / "damaged.onnx", target)),
        (ExportError, "min <= opt <= max, but got (1, 3, 2)", lambda: rtx(files["fp32"], target, batch=(1, 3, 2))),
        (ExportError, "workspace_mib must be at least 1, but got 0", lambda: rtx(files["fp32"], target, workspace_mib=0)),
        (ExportError, "TensorRT for RTX has no setting refit", lambda: rtx(files["fp32"], target, refit=True)),
        (ExportError, "has no setting gpus", lambda: build_engine(files["fp32"], target, gpus=("sm89",))),
        (ExportError, "must be from 0 to 5, but got 6", lambda: build_engine(files["fp32"], target, optimization_level=6)),
        (ExportError, "is told none", lambda: build_engine(files["fp32"], target, library="tensorrt-rtx")),
        (UnknownNameError, "library 'tensorflow': use one of tensorrt", lambda: build_engine("x", "y", library="tensorflow")),
        (UnknownNameError, "H100 is a GPU of sm90, but TensorRT for RTX has sm75", lambda: rtx(files["fp32"], target, "H100")),
        (UnknownNameError, "unknown GPU 'RTX 4095': use one of RTX 4090 (sm89)", lambda: rtx(files["fp32"], target, "RTX 4095")),
    ]
    before = sorted(tmp_path.iterdir())
    for error, message, act in cases:
        one_line(error, message, act)
        assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "taken").write_text("a file")
    one_line(ExportError, "cannot be written", lambda: rtx(files["fp32"], tmp_path / "taken" / "model.engine"))


def test_an_engine_survives_a_rebuild_that_fails(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    rtx(files["fp16"], path, "sm75")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    one_line(ExportError, "HW-specific datatypes: b16", lambda: rtx(files["bf16"], path, "sm75"))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_engines_that_do_not_go_here_are_refused_with_the_reason(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before TensorRT sees a byte of them, but for those that only it can tell."""
    path, trt = tmp_path / "model.engine", tensorrt_module("tensorrt-rtx")
    rtx(files["fp32"], path, "sm86", "sm89", batch=(1, 2, 4))
    with monkeypatch.context() as patched:
        patched.setattr(trt, "Runtime", lambda log: pytest.fail("TensorRT was given an engine that does not go here"))
        patched.setattr(nar_hw.export.tensorrt, "current_gpu", lambda: ("RTX 5090", "12.0"))
        where = "was built for compute capability 8.6, 8.9, but this is RTX 5090 (12.0): build it again here"
        one_line(RuntimeUnavailableError, f"engine {path} {where}", lambda: load_engine(str(path)))
        patched.setattr(nar_hw.export.tensorrt, "current_gpu", lambda: ("RTX 4090", "8.9"))
        patched.setattr(trt, "__version__", "1.99.0")
        versions = f"was built by tensorrt-rtx {read_engine(path)[1].tensorrt}, but this is 1.99.0: build it again here"
        one_line(RuntimeUnavailableError, f"engine {path} {versions}", lambda: load_engine(path))
        damaged = tmp_path / "damaged.engine"
        damaged.write_bytes(path.read_bytes()[:-1])
        info_file(damaged).write_bytes(info_file(path).read_bytes())
        one_line(RunError, f"engine {damaged} must have the SHA-256", lambda: load_engine(damaged))
    if not torch.cuda.is_available():
        one_line(RuntimeUnavailableError, "TensorRT needs a CUDA device", lambda: load_engine(path))
        monkeypatch.setattr(nar_hw.export.tensorrt, "current_gpu", lambda: ("RTX 4090", "8.9"))
        text = one_line(ExportError, f"TensorRT {version()} cannot load engine {path}: ", lambda: load_engine(path))
        assert "CUDA driver version is insufficient" in text
        assert "/_src/" not in text


def info_version(path: Path) -> str:
    return read_engine(path)[1].tensorrt


def test_a_library_that_does_not_load_or_dies_is_told(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(message: str) -> None:
        one_line(UserError, message, lambda: rtx(files["fp32"], tmp_path / "model.engine"))
        assert list(tmp_path.glob("model*")) == []

    monkeypatch.setattr(engine_worker, "__file__", str(tmp_path / "dies.py"))
    (tmp_path / "dies.py").write_text("import sys; print('first\\nlast words', file=sys.stderr); sys.exit(7)")
    refused("TensorRT for RTX ended with code 7 and no answer: last words")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    refused("tensorrt_rtx is not installed: pip install 'nar-hw[tensorrt-rtx]'")
    assert parser_verdicts({"a": files["fp32"]}) == {}
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    package = tmp_path / "package" / "tensorrt_rtx.py"
    package.parent.mkdir()
    monkeypatch.syspath_prepend(package.parent)
    package.write_text("raise OSError('libtensorrt_rtx.so.1: cannot open\\nshared object file')")
    refused("tensorrt_rtx cannot be loaded (libtensorrt_rtx.so.1: cannot open shared object file): pip install")
    package.write_text("__version__ = '2.0.0'")
    sys.modules.pop("tensorrt_rtx", None)
    refused("tensorrt_rtx must be version 1, but is 2.0.0: pip install")
    sys.modules.pop("tensorrt_rtx", None)
    reason = TensorRTRtx.unavailable(RuntimeConfig(runtime="tensorrt-rtx", device="cuda"))
    assert reason is not None
    assert "must be version 1, but is 2.0.0" in reason
    sys.modules.pop("tensorrt_rtx", None)


def test_without_a_gpu_the_runtime_says_that_it_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reason = TensorRTRtx.unavailable(RuntimeConfig(runtime="tensorrt-rtx", device="cuda"))
    assert reason is not None
    assert reason.startswith("tensorrt-rtx builds engines here, but runs none: ")
    assert TensorRTRtx.unavailable(RuntimeConfig(runtime="tensorrt-rtx")) == "tensorrt-rtx needs device cuda, but got cpu"
    assert TensorRTRtx.versions() == {"tensorrt-rtx": version(), "torch": torch.__version__}


# The parser as a judge


def test_the_parser_reads_what_is_exported(files: dict[str, Path]) -> None:
    found = parser_verdicts(files)
    assert list(found) == ["fp32", "fp16", "bf16", "int8"]
    assert {verdict.sentence() for verdict in found.values()} == {f"accepted (TensorRT for RTX {version()})"}


def version() -> str:
    return str(tensorrt_module("tensorrt-rtx").__version__)


def test_the_parser_names_each_node_that_it_refuses(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Det", ["input"], ["a"], "x/Det"),
        helper.make_node("Relu", ["a"], ["b"], "r/Relu"),
        helper.make_node("BitShift", ["b"], ["output"], "y/BitShift", direction="LEFT"),
    ]
    (verdict,) = parser_verdicts({"a": saved(tmp_path / "a.onnx", nodes)}).values()
    assert [(item["node"], item["operator"]) for item in verdict.refused] == [("x/Det", "Det"), ("y/BitShift", "BitShift")]
    assert verdict.sentence().startswith(f"refused (TensorRT for RTX {version()}) at node x/Det (Det): ")
    assert verdict.sentence().endswith(" (and 1 more nodes)")


def test_a_file_at_which_the_parser_dies_is_refused_alone(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os, pathlib, sys\n"
        f"sys.path.insert(0, {str(Path(str(engine_worker.__file__)).parent)!r})\n"
        "import engine_worker\n"
        "if 'fp16.onnx' in pathlib.Path(sys.argv[1]).read_text(): os._exit(7)\n"
        "engine_worker.main()\n"
    )
    monkeypatch.setattr(engine_worker, "__file__", str(worker))
    found = {name: verdict.sentence() for name, verdict in parser_verdicts({key: files[key] for key in ("fp32", "fp16")}).items()}
    assert found["fp32"] == f"accepted (TensorRT for RTX {version()})"
    assert found["fp16"] == (
        f"refused (TensorRT for RTX {version()}) at the file: TensorRT for RTX ended with code 7 and no answer: no message"
    )


def test_a_library_that_does_not_start_here_judges_nothing(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TensorRT 10 and 11 do without a GPU: the next one is asked."""
    (tmp_path / "nogpu.py").write_text(
        "__version__ = '10.1.0'\n"
        "class ILogger:\n    ERROR, INTERNAL_ERROR, WARNING = range(3)\n"
        "def Builder(log):\n    raise TypeError('factory function returned nullptr')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    lame = dataclasses.replace(LIBRARIES["tensorrt"], package="nogpu")
    monkeypatch.setitem(LIBRARIES, "tensorrt", lame)
    (verdict,) = parser_verdicts({"a": files["fp32"]}).values()
    assert verdict.sentence() == f"accepted (TensorRT for RTX {version()})"
    monkeypatch.delitem(LIBRARIES, "tensorrt-rtx")
    assert parser_verdicts({"a": files["fp32"]}) == {}


def test_files_that_tensorrt_would_misread_are_refused(tmp_path: Path) -> None:
    """TensorRT reads uint8 as int8, and keeps windows of pools that start in the padding, both without an error."""
    scale = numpy_helper.from_array(np.float32(0.1), "scale")
    zeros = {kind: numpy_helper.from_array(np.zeros((), kind), "zero") for kind in ("uint8", "int8")}

    def quantized(name: str, *inputs: str, weights: list[Any]) -> Path:
        nodes = [
            helper.make_node("QuantizeLinear", ["input", *inputs], ["q"], "q/QuantizeLinear"),
            helper.make_node("DequantizeLinear", ["q", *inputs], ["output"], "dq"),
        ]
        return saved(tmp_path / name, nodes, weights)

    pools = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    found = parser_verdicts(
        {
            "unsigned": quantized("a.onnx", "scale", "zero", weights=[scale, zeros["uint8"]]),
            "no zero": quantized("b.onnx", "scale", weights=[scale]),
            "signed": quantized("c.onnx", "scale", "zero", weights=[scale, zeros["int8"]]),
            "ceil": pool_model(tmp_path / "d.onnx", **pools, ceil_mode=1),
            "floor": pool_model(tmp_path / "e.onnx", **pools),
            "harmless ceil": pool_model(tmp_path / "f.onnx", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        }
    )
    refused = {name: verdict.refused[0]["reason"] for name, verdict in found.items() if verdict.refused}
    assert set(refused) == {"unsigned", "no zero", "ceil"}
    assert "reads as int8" in refused["unsigned"]
    assert "may start in the padding" in refused["ceil"]
    one_line(ExportError, "q/QuantizeLinear (QuantizeLinear): gives uint8", lambda: rtx(tmp_path / "a.onnx", tmp_path / "m"))


def test_warnings_that_matter_are_errors() -> None:
    serious = [
        "TensorRT supports QuantizeLinear/DequantizeLinear with UINT8 zero_point only on DLA. Defaulting to INT8",
        "Hardware compatibility is unsupported on this platform",
        "The setting will be ignored",
    ]
    harmless = ["(foreignNode) Converting conv weight scales to fp32.", "CUDA lazy loading is not enabled"]
    assert all(engine_worker.SERIOUS.search(text) for text in serious)
    assert not any(engine_worker.SERIOUS.search(text) for text in harmless)


def test_reasons_are_without_places_in_foreign_source() -> None:
    told = (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check_turing_op_compatibility] Cannot compile "
        "operation 'fc/Gemm' for Turing\n (SM75): FP32 GEMM is not supported. In compileGraph at /_src/codeGenerator.cpp:2012)"
    )
    assert (
        engine_worker.one_line(told)
        == "Myelin (Cannot compile operation 'fc/Gemm' for Turing (SM75): FP32 GEMM is not supported."
    )
    told = (
        "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at "
        "/_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: CUDA driver version is insufficient for CUDA runtime version))"
    )
    expected = "Cuda Runtime (cudaError 35: CUDA driver version is insufficient for CUDA runtime version)"
    assert engine_worker.one_line(told) == expected


def test_hard_activations_are_read_in_bf16_too(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Conv2d(8, 5, 3), nn.Hardsigmoid(), nn.Flatten()).eval()
    export_onnx(network, tmp_path / "fp32.onnx", input_shape=SHAPE)
    to_bf16(tmp_path / "fp32.onnx", tmp_path / "bf16.onnx")
    assert parser_verdicts({"bf16": tmp_path / "bf16.onnx"})["bf16"].refused == ()
    graph = onnx.load(tmp_path / "bf16.onnx").graph
    assert {"1/HardSwish", "3/HardSigmoid"} <= {node.name for node in graph.node}, "the nodes that profiles are joined by"
    images = 3 * np.random.default_rng(0).standard_normal((2, *SHAPE), dtype=np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    onnx.save(without_bf16(onnx.load(tmp_path / "bf16.onnx")), tmp_path / "rounded.onnx")
    outputs = run_session(open_session(tmp_path / "rounded.onnx"), images)
    assert np.abs(outputs - expected).max() < 0.01 * np.abs(expected).max()


# int8


def test_int8_files_for_tensorrt_round_only_what_products_read(files: dict[str, Path], module: nn.Module, tmp_path: Path) -> None:
    to_symmetric(files["int8"], tmp_path / "signed.onnx")
    graph = onnx.load(tmp_path / "signed.onnx").graph
    onnx.checker.check_model(str(tmp_path / "signed.onnx"), full_check=True)
    readers = {name: node.op_type for node in graph.node for name in node.input if node.op_type in ("Conv", "Gemm")}
    pairs = [node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"]
    assert set(pairs) == set(readers) & set(pairs)
    assert len(pairs) == 7 + 6, "weights of seven; inputs of seven, two of which (a block's first and its skip) share theirs"
    zeros = [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name.endswith("zero_point")]
    assert {(array.dtype.name, bool(array.any())) for array in zeros} == {("int8", False)}
    images = np.random.default_rng(1).standard_normal((8, *SHAPE), dtype=np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).numpy()
    error = np.abs(run_session(open_session(tmp_path / "signed.onnx"), images) - expected).max()
    assert error < 0.05 * np.abs(expected).max()


def test_fp8_files_are_built_for_the_gpus_that_compute_in_it(tmp_path: Path) -> None:
    """Files as nvidia-modelopt's quantizer writes them: E4M3 by zero points, or by the type that a node names."""
    scale = numpy_helper.from_array(np.float32(0.1), "scale")
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((32, 32, 3, 3)).astype(np.float32), "weight")
    nodes = [
        helper.make_node(kind, [source, "scale", "zero"], [f"{name}_{kind}"], f"{name}/{kind}")
        for name in ("input", "weight")
        for kind, source in (("QuantizeLinear", name), ("DequantizeLinear", f"{name}_QuantizeLinear"))
    ]
    pairs = ["input_DequantizeLinear", "weight_DequantizeLinear"]
    nodes.append(helper.make_node("Conv", pairs, ["output"], "c/Conv", pads=[1] * 4))
    shape = ("batch", 32, 16, 16)
    file = saved(tmp_path / "fp8.onnx", nodes, [scale, zero, weight], shape=shape, opset=19)
    info = rtx(file, tmp_path / "model.engine", "all", batch=(1, 2, 4))
    assert (info.precision, info.datatypes, info.compute_capabilities) == ("fp8", {"FP8": 1}, ("8.9", "12.0", "12.1"))
    message = "HW-specific datatypes: fp8_e4m3"
    one_line(ExportError, message, lambda: rtx(file, tmp_path / "other.engine", "A100", batch=(1, 2, 4)))
    assert not (tmp_path / "other.engine").exists()
    named = helper.make_node("QuantizeLinear", ["input", "scale"], ["output"], output_dtype=TensorProto.FLOAT8E4M3FN)
    assert precision_of(onnx.load(saved(tmp_path / "named.onnx", [named], [scale], opset=21))) == "fp8"


# GPUs by name


@pytest.mark.parametrize(
    ("names", "precision", "found"),
    [
        (("sm89", "sm80"), "fp32", ("sm80", "sm89")),
        (("8.9",), "fp32", ("sm89",)),
        (("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx 3080 ti", "GTX 1660 SUPER"), "fp32", ("sm75", "sm86", "sm89")),
        (("RTX 6000 Ada Generation", "RTX A6000", "Quadro RTX 6000"), "fp16", ("sm75", "sm86", "sm89")),
        (("RTX PRO 6000 Blackwell", "gb10", "L40S", "T4"), "fp16", ("sm75", "sm89", "sm120", "sm121")),
        (("all",), "fp16", tuple(CARDS)),
        (("all",), "int8", tuple(CARDS)[1:]),
        (("all",), "fp8", ("sm89", "sm120", "sm121")),
        (("all", "sm75"), "fp32", tuple(CARDS)),
    ],
)
def test_gpus_are_named_as_people_do(names: tuple[str, ...], precision: str, found: tuple[str, ...]) -> None:
    assert capabilities(names, precision) == found


def test_the_capabilities_are_the_librarys() -> None:
    members = tensorrt_module("tensorrt-rtx").ComputeCapability.__members__
    assert [name.lower() for name in members if name.startswith("SM")] == list(CARDS)


# Bundles


def test_a_bundle_for_many_gpus(module: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def bundled(*precisions: str, gpus: tuple[str, ...], targets: tuple[str, ...] = ("onnx", "tensorrt-rtx")) -> Path:
        return exported(
            module, tmp_path / "bundle", shape=SHAPE, targets=targets, precisions=precisions, gpus=gpus, batch=(1, 16)
        )

    out = bundled("fp32", "fp16", gpus=("all",))
    bundle = load_bundle(out)
    engine = bundle.manifest.compiled["tensorrt-rtx"]["fp32"]
    assert engine.files == ("model.rtx.engine", "model.rtx.engine.json", "model.rtx.engine.layers.json")
    assert (engine.max_abs_error, engine.accuracy, engine.device, engine.batch) == (None, None, "cuda", (1, 16))
    assert engine.requires == {
        "tensorrt-rtx": version(),
        "compute_capabilities": "8.0, 8.6, 8.9, 12.0, 12.1",
        "products": "7 in Float",
    }
    assert bundle.manifest.compiled["tensorrt-rtx"]["fp16"].requires["compute_capabilities"].startswith("7.5, 8.0")
    assert bundle.manifest.tensorrt_parser == dict.fromkeys(("fp32", "fp16"), f"accepted (TensorRT for RTX {version()})")
    assert bundle.file("tensorrt-rtx", "fp32", 16) == out / "model.rtx.engine"
    assert bundle.manifest.left_out == {"tensorrt-rtx fp32 sm75": "TensorRT for RTX has fp16 only there"}
    text = (out / "README.md").read_text()
    assert f"TensorRT parser on fp16: accepted (TensorRT for RTX {version()})" in text
    assert "| 8.9 | RTX 4050, RTX 4060, RTX 4070, RTX 4080, RTX 4090," in text
    assert "fp32, GPUs of compute capability 8.0, 8.6, 8.9, 12.0, 12.1 with TensorRT for RTX" in text
    assert "7 in Float, not run where it was made |" in text
    checked = verify_bundle(out)
    assert checked["fp32"]["tensorrt_parser"] == f"accepted (TensorRT for RTX {version()})"
    assert checked["tensorrt-rtx fp32"]["skipped"].startswith("tensorrt-rtx builds engines here, but runs none")
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    one_line(UnknownNameError, "unknown GPU 'sm88': use one of", lambda: bundled("fp32", gpus=("sm88",)))
    one_line(UserError, "use --to tensorrt-rtx with --gpus sm89", lambda: bundled("fp32", gpus=()))
    one_line(UserError, "use --to tensorrt-rtx with --gpus", lambda: bundled("fp32", gpus=("sm89",), targets=("onnx",)))
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


# Spaces


def test_a_space_is_checked_before_any_search(monkeypatch: pytest.MonkeyPatch) -> None:
    space = SearchSpace.from_model(TinyResNet(), SHAPE)
    found = check_space(space, "tensorrt")
    most = max(len(slot.candidates) for slot in space.slots)
    assert found == {"parser": f"TensorRT for RTX {version()}", "children": most, "refused": []}

    def refusing(files: dict[str, Path]) -> dict[str, Verdict]:
        """As a parser without pools, and without the network's own sum, would say."""
        nodes = {name: [node.name for node in onnx.load(file).graph.node] for name, file in files.items()}
        return {
            name: Verdict(
                parser="P 1",
                refused=tuple(
                    {"node": node, "operator": "X", "reason": "none"} for node in found if "Pool" in node or node == "ReduceMean"
                ),
            )
            for name, found in nodes.items()
        }

    monkeypatch.setattr(nar_hw.steps.check, "parser_verdicts", refusing)
    refused = {(item["slot"], item["operator"]) for item in check_space(space, "tensorrt")["refused"]}
    pools = {
        (slot.name, space.operators[code])
        for slot in space.slots
        for code in slot.candidates
        if space.operators[code] in ("max3x3", "avg3x3")
    }
    assert len(pools) >= 6
    assert refused == {*pools, (None, None)}
    monkeypatch.setattr(nar_hw.steps.check, "parser_verdicts", lambda files: {})
    one_line(RuntimeUnavailableError, "pip install 'nar-hw[tensorrt-rtx]'", lambda: check_space(space, "tensorrt"))
    one_line(UnknownNameError, "unknown check 'openvino': use one of tensorrt", lambda: check_space(space, "openvino"))
