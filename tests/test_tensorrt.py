"""TensorRT 10 and 11: everything but the GPU, on a fake package whose members are the real ones'; real engines where they run."""

import ast
import inspect
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

import nar_hw.export.tensorrt
import nar_hw.runtimes.tensorrt
from nar_hw.bundles.manifest import load_bundle
from nar_hw.bundles.triton import triton_model
from nar_hw.bundles.verify import verify_bundle
from nar_hw.errors import ExportError, ModelError, RunError, RuntimeUnavailableError, UnknownNameError, UserError
from nar_hw.export.engine import EngineInfo, info_file, misfit, read_engine
from nar_hw.export.onnx import export_onnx
from nar_hw.export.quantize import precision_of, to_bf16, to_fp16, to_int8
from nar_hw.export.tensorrt import build_engine, load_engine
from nar_hw.files import sha256
from nar_hw.latency.in_context import Join
from nar_hw.records import plain, replace
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.runtimes.base import Runtime
from nar_hw.runtimes.tensorrt import TensorRT, node_names, producers
from nar_hw.space.space import SearchSpace
from nar_hw.testing.runtimes import SHAPE, RuntimeConformance
from tests.bundles import exported
from tests.conftest import Shell
from tests.faketensorrt import FAULTS, GOLDEN, VERSIONS, fake_tensorrt, settings_of
from tests.networks import TinyResNet

CLASSES = ["ant", "bee", "cat", "dog", "eel"]
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
GPU = ("Test GPU", "8.9")
CONFIG = RuntimeConfig(runtime="tensorrt", device="cuda", batch=2)


class HostStream:
    """A stream for tensors on the CPU, where work is done when it has been started."""

    def __init__(self, index: int) -> None:
        self.device, self.handle = torch.device("cpu"), 0

    def gpu(self) -> tuple[str, str]:
        return GPU

    @contextmanager
    def active(self) -> Iterator[None]:
        with torch.inference_mode():
            yield

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        return work

    def time_ms(self, work: Callable[[], None]) -> float:
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1e3

    def synchronize(self) -> None:
        pass


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Each version of the fake package, with the CPU in the place of the GPU."""
    fake = fake_tensorrt(request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(nar_hw.export.tensorrt, "current_gpu", lambda: GPU)
    monkeypatch.setattr(nar_hw.runtimes.tensorrt, "current_gpu", lambda: GPU)
    monkeypatch.setattr(nar_hw.runtimes.tensorrt, "no_cuda", lambda config: None)
    monkeypatch.setattr(nar_hw.runtimes.tensorrt, "CudaStream", HostStream)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    return fake


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    network = TinyResNet(width=32)
    with torch.no_grad():
        network.fc.weight.mul_(20)  # outputs that tell images apart
    return network.eval()


@pytest.fixture(scope="module")
def files(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The network in each precision."""
    folder = tmp_path_factory.mktemp("onnx")
    paths = {name: folder / f"{name}.onnx" for name in ("fp32", "fp16", "bf16", "int8", "fixed")}
    metadata = {"classes": CLASSES, "normalisation": {"mean": MEAN, "std": STD}}
    export_onnx(module, paths["fp32"], input_shape=SHAPE, metadata=metadata)
    export_onnx(module, paths["fixed"], input_shape=SHAPE, batch=4)
    to_fp16(paths["fp32"], paths["fp16"])
    to_bf16(paths["fp32"], paths["bf16"])
    to_int8(paths["fp32"], paths["int8"], np.random.default_rng(0).standard_normal((16, *SHAPE), dtype=np.float32))
    return paths


@pytest.fixture
def engine(trt: Any, files: dict[str, Path], tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    build_engine(files["fp32"], path, batch=(1, 2, 4))
    return path


def one_line(error: type[UserError], start: str, act: Callable[[], object]) -> str:
    """What ``act`` says when it is refused: one line that starts like this."""
    with pytest.raises(error) as caught:
        act()
    text = str(caught.value)
    assert text.startswith(start), text
    assert "\n" not in text
    return text


def bundled(module: nn.Module, out: Path, *precisions: str) -> Path:
    """A bundle with engines in these precisions."""
    images = np.random.default_rng(0).standard_normal((16, *SHAPE), dtype=np.float32)
    with torch.inference_mode():
        labels = module(torch.from_numpy(images)).numpy().argmax(1)
    return exported(
        module,
        out,
        shape=SHAPE,
        targets=("onnx", "tensorrt"),
        precisions=precisions,
        batch=(1, 16),
        images=images,
        labels=labels,
        calibration_images=images,
        max_accuracy_drop=0.2,
    )


# What the fake offers, and what nar_hw uses, is what both versions have


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fake_offers_nothing_that_the_package_does_not_have(version: str) -> None:
    fake, facts = fake_tensorrt(version), GOLDEN["versions"][version]
    kinds = {name: kind for name, kind in vars(fake).items() if inspect.isclass(kind)}
    assert set(kinds) == set(facts["classes"]) | set(facts["enums"])
    for name, members in facts["enums"].items():
        assert list(kinds[name].__members__) == members
    types = {"typing.SupportsInt": int, "typing.SupportsFloat": float, "str": str, "bool": bool, "Dims": tuple, "tuple": tuple}
    types |= {"typing_extensions.Buffer": bytes, "ILogger.Severity": Any, **kinds}
    for name, members in facts["classes"].items():
        own = vars(kinds[name])
        assert {key for key in own if not key.startswith("_")} <= set(members), name
        for member in (key for key in own if isinstance(members.get(key), list)):
            given = [(item.name, item.annotation) for item in inspect.signature(own[member]).parameters.values()][1:]
            overloads = [re.findall(r", (\w+): ([\w.]+)( =)?", signature) for signature in members[member]]
            fits = [
                given == [(key, types.get(kind)) for key, kind, _ in wanted[: len(given)]]
                and all(default for _, _, default in wanted[len(given) :])
                for wanted in overloads
            ]
            assert any(fits), f"{name}.{member}{given} is none of {members[member]}"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fake_is_as_strict_as_the_bindings(version: str) -> None:
    trt = fake_tensorrt(version)

    class Log(trt.ILogger):  # type: ignore[misc]
        pass

    builder = trt.Builder(Log())
    config = builder.create_builder_config()
    for wrong in (
        lambda: config.set_flag(3),
        lambda: config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size=1),
        lambda: trt.OnnxParser(builder.create_network(0), Log()).parse_from_file(Path("x.onnx")),
    ):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(AttributeError):
        config.max_workspace_size = 1
    with pytest.raises(AttributeError):
        config.set_quantization_flag(0)
    assert hasattr(trt.BuilderFlag, "FP16") == (version == VERSIONS[0])


def test_nothing_is_used_that_only_one_version_has(kit: ModuleType) -> None:
    """By syntax, so that lines which no test reaches count too."""
    only = {member.rpartition(".")[2] for members in GOLDEN["only"].values() for member in members}
    assert {"FP16", "int8_calibrator", "EXPLICIT_BATCH", "build_route"} <= only
    for file in (nar_hw.export.tensorrt.__file__, nar_hw.runtimes.tensorrt.__file__, kit.__file__):
        nodes = [node for node in ast.walk(ast.parse(Path(str(file)).read_text())) if isinstance(node, ast.Attribute)]
        assert only.isdisjoint(node.attr for node in nodes), file
        chains = [tuple(ast.unparse(node).split(".")) for node in nodes]
        used = {chain[1:3] for chain in chains if chain[0] in ("trt", "tensorrt") and chain[1] != "__version__"}
        assert used
        for version, facts in GOLDEN["versions"].items():
            known = facts["classes"] | facts["enums"]
            for name, *member in used:
                assert name in known, (file, version, name)
                assert not member or member[0] in known[name] or member[0].startswith("__"), (file, version, name, member)


# Building


def test_an_engine_is_built_as_asked(trt: Any, files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "a" / "model.engine"
    info = build_engine(
        str(files["fp32"]),
        path,
        batch=(1, 3, 5),
        workspace_mib=7,
        optimization_level=5,
        version_compatible=True,
        hardware_compatibility="ampere_plus",
        refit=True,
    )
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if trt.__version__ == VERSIONS[0] else 0
    settings = settings_of(path)
    assert settings.pop("tactic")
    assert settings == {
        "network": typed,
        "flags": ["REFIT", "VERSION_COMPATIBLE"],
        "workspace": 7 * 2**20,
        "level": 5,
        "verbosity": "DETAILED",
        "hardware": "AMPERE_PLUS",
        "profiles": [{"input": [[size, *SHAPE] for size in (1, 3, 5)]}],
    }
    assert read_engine(path)[1] == info
    assert (info.tensorrt, info.gpu, info.compute_capability, info.precision) == (trt.__version__, *GPU, "fp32")
    cache = path.with_name("model.engine.cache")
    assert [info.engine_sha256, info.onnx_sha256, info.timing_cache_sha256] == [
        sha256(path),
        sha256(files["fp32"]),
        sha256(cache),
    ]
    assert json.loads(info.metadata["classes"]) == CLASSES
    layers = json.loads(path.with_name("model.engine.layers.json").read_text())["Layers"]
    assert "conv1/Conv + Relu" in [layer["Name"] for layer in layers]
    names = ["model.engine", "model.engine.cache", "model.engine.json", "model.engine.layers.json"]
    assert sorted(file.name for file in path.parent.iterdir()) == names


def test_defaults_and_the_precision_of_the_file(trt: Any, files: dict[str, Path], tmp_path: Path) -> None:
    for precision in ("fp32", "fp16", "bf16", "int8"):
        info = build_engine(files[precision], tmp_path / f"{precision}.engine")
        assert info.precision == precision
    settings = settings_of(tmp_path / "fp16.engine")
    assert settings["flags"] == []
    assert settings["hardware"] == "NONE"
    assert [shape[0] for shape in settings["profiles"][0]["input"]] == [1, 8, 64]
    build_engine(files["fixed"], tmp_path / "fixed.engine", batch=(4, 4, 4))
    assert settings_of(tmp_path / "fixed.engine")["profiles"] == []


def test_the_timing_cache_makes_a_rebuild_the_same(trt: Any, files: dict[str, Path], tmp_path: Path) -> None:
    def built(**settings: Any) -> str:
        return build_engine(files["fp32"], tmp_path / "model.engine", **settings).engine_sha256

    first = built()
    assert built() == first
    (tmp_path / "model.engine.cache").unlink()
    assert built() != first
    assert built(timing_cache=tmp_path / "shared.cache") == built(timing_cache=str(tmp_path / "shared.cache"))


def on_batch(*batch: int) -> dict[str, Any]:
    return {"batch": batch}


@pytest.mark.parametrize(
    ("fault", "source", "settings", "error", "message"),
    [
        (
            "parse",
            "fp32",
            {},
            ExportError,
            "file: no importer 0; a.1/Foo: no importer 1; a.2/Foo: no importer 2 (and 2 more)",
        ),
        ("inputs", "fp32", {}, ExportError, "must have one input and one output, but has 2 and 1"),
        ("profile", "fp32", {}, ExportError, "for batch (1, 8, 64): it does not say why"),
        ("build", "fp32", {}, ExportError, "cannot build"),
        ("build", "fp32", {}, ExportError, "fp32.onnx: no implementation for a.conv/Conv"),
        ("deserialize", "fp32", {}, ExportError, "read back what it built"),
        (
            "no builder",
            "fp32",
            {},
            RuntimeUnavailableError,
            "on this machine: CUDA initialization failure with error: 35",
        ),
        ("", "fixed", {}, ExportError, "is for batch 4 only, but batch (1, 8, 64) is asked for: export it again for a range"),
        ("", "missing", {}, ExportError, "missing.onnx does not exist"),
        ("", "damaged", {}, ExportError, "damaged.onnx is not an ONNX file: "),
        ("", "wide", {}, ExportError, "only the number of images may vary, but its input is (-1, 3, 32, -1)"),
        ("", "fp32", on_batch(0, 1, 2), ExportError, "1 <= min <= opt <= max, but got (0, 1, 2)"),
        ("", "fp32", on_batch(1, 3, 2), ExportError, "1 <= min <= opt <= max, but got (1, 3, 2)"),
        ("", "fp32", {"workspace_mib": 0}, ExportError, "workspace_mib must be at least 1, but got 0"),
        ("", "fp32", {"optimization_level": 6}, ExportError, "optimization_level must be from 0 to 5, but got 6"),
        (
            "",
            "fp32",
            {"hardware_compatibility": "none"},
            UnknownNameError,
            "unknown hardware compatibility 'none': use one of",
        ),
        ("", "fp32", {"timing_cache": "damaged.onnx"}, ExportError, "damaged.onnx is damaged or of another TensorRT or GPU: del"),
        ("", "fp32", {"timing_cache": "old.cache"}, ExportError, "old.cache is damaged or of another TensorRT or GPU: delete it"),
        ("", "fp32", {"timing_cache": "."}, ExportError, "cannot be read: "),
    ],
)
def test_what_cannot_be_built_is_told_in_one_line_and_leaves_nothing(
    trt: Any,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    source: str,
    settings: dict[str, Any],
    error: type[UserError],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("damaged.onnx").write_bytes(b"not a protobuf\n")
    Path("old.cache").write_bytes(b"timings 8.6.1 123")
    shape: list[str | int] = ["batch", 3, 32, "width"]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "output")]
    graph = helper.make_graph([helper.make_node("Relu", ["input"], ["output"])], "g", tensors[:1], tensors[1:])
    onnx.save(helper.make_model(graph), "wide.onnx")
    before = sorted(Path().iterdir())
    trt._faults.add(fault)
    text = one_line(error, "", lambda: build_engine(files.get(source, Path(f"{source}.onnx")), "out/model.engine", **settings))
    assert message in text
    assert sorted(Path().iterdir()) == before


def test_a_build_that_cannot_be_written_leaves_nothing(
    trt: Any, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file")
    assert "cannot be written" in one_line(
        ExportError, "engine", lambda: build_engine(files["fp32"], tmp_path / "taken" / "model.engine")
    )
    path = tmp_path / "model.engine"
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert "No space left" in one_line(ExportError, f"engine {path} cannot be written", lambda: build_engine(files["fp32"], path))
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_an_engine_survives_a_rebuild_that_fails(trt: Any, files: dict[str, Path], engine: Path) -> None:
    before = {file.name: file.read_bytes() for file in engine.parent.iterdir() if file.is_file()}
    for fault, message in (("build", "no implementation for a.conv/Conv"), ("profile", "it does not say why")):
        trt._faults = {fault}
        text = one_line(ExportError, f"TensorRT {trt.__version__} cannot build ", lambda: build_engine(files["fp16"], engine))
        assert text.endswith(f": {message}"), "what an earlier build has said is not repeated"
    assert {file.name: file.read_bytes() for file in engine.parent.iterdir() if file.is_file()} == before


def test_a_machine_without_tensorrt_or_cuda_is_told(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(start: str) -> None:
        one_line(RuntimeUnavailableError, start, lambda: build_engine(files["fp32"], tmp_path / "model.engine"))
        assert list(tmp_path.iterdir()) == []
        reason = TensorRT.unavailable(CONFIG)
        assert reason is not None
        assert "\n" not in reason
        assert reason.startswith(start) or "needs a CUDA device" in reason

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    refused("tensorrt is not installed: pip install 'nar-hw[tensorrt]'")
    for version in ("8.6.1", "12.0.0"):
        old = fake_tensorrt(VERSIONS[0])
        old.__version__ = version
        monkeypatch.setitem(sys.modules, "tensorrt", old)
        refused(f"tensorrt must be version 10 or 11, but is {version}: pip install")
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(VERSIONS[0]))
    refused("TensorRT needs a CUDA device, but torch ")
    monkeypatch.delitem(sys.modules, "tensorrt")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open\\nshared object file')")
    monkeypatch.syspath_prepend(tmp_path / "package")
    one_line(RuntimeUnavailableError, "tensorrt cannot be loaded (libnvinfer.so.10: cannot open shared", TensorRT.versions)


# Loading


def test_what_was_built_is_loaded(trt: Any, engine: Path) -> None:
    loaded, info = load_engine(str(engine))
    assert isinstance(loaded, trt.ICudaEngine)
    assert info.engine_sha256 == sha256(engine)


def never_deserialized(trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt.Runtime, "deserialize_cuda_engine", lambda *_: pytest.fail("TensorRT was given an unknown engine"))


@pytest.mark.parametrize("place", [0, -1, 1000])
def test_a_damaged_engine_never_reaches_tensorrt(trt: Any, engine: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    never_deserialized(trt, monkeypatch)
    data = bytearray(engine.read_bytes())
    data[place] ^= 1
    engine.write_bytes(data)
    text = one_line(RunError, f"engine {engine} must have the SHA-256", lambda: load_engine(engine))
    assert text.endswith("build it again")
    one_line(RunError, f"engine {engine} must have", lambda: TensorRT(engine, SHAPE, CONFIG))
    engine.unlink()
    one_line(RunError, f"engine {engine} cannot be read", lambda: load_engine(engine))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("engine_sha256", "0" * 64, "must have the SHA-256 '000000000000'..."),
        ("engine_sha256", None, "is damaged ('engine_sha256')"),
        ("schema", 2, "must have schema 1, but has 2"),
        ("batch", [1, 2], "is damaged ('batch')"),
        ("batch", [1, 2, "4"], "is damaged ('batch')"),
        ("version_compatible", 1, "is damaged ('version_compatible')"),
        ("hardware_compatibility", 7, "is damaged ('hardware_compatibility')"),
        ("metadata", {"classes": []}, "is damaged ('metadata')"),
        ("tensorrt", "new", "is damaged ('tensorrt')"),
        ("surprise\n", 1, "is damaged ('surprise\\n')"),
    ],
)
def test_a_damaged_info_is_refused(
    trt: Any, engine: Path, monkeypatch: pytest.MonkeyPatch, field: str, value: Any, message: str
) -> None:
    never_deserialized(trt, monkeypatch)
    file = info_file(engine)
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    assert message in one_line(RunError, "", lambda: load_engine(engine))


def test_an_info_that_is_missing_or_cut_off_is_refused(trt: Any, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never_deserialized(trt, monkeypatch)
    info_file(engine).write_text('{"schema": 1')
    one_line(RunError, f"engine info {info_file(engine)} is not valid JSON", lambda: load_engine(engine))
    info_file(engine).write_text('{"schema": 1}')
    one_line(RunError, f"{info_file(engine)} is damaged ('engine_sha256', ", lambda: load_engine(engine))
    info_file(engine).unlink()
    one_line(RunError, f"engine info {info_file(engine)} does not exist", lambda: load_engine(engine))


def test_a_foreign_engine_never_reaches_tensorrt(trt: Any, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never_deserialized(trt, monkeypatch)
    monkeypatch.setattr(nar_hw.export.tensorrt, "current_gpu", lambda: ("Other GPU", "8.9"))
    text = one_line(RuntimeUnavailableError, f"engine {engine} was built for Test GPU (compute", lambda: load_engine(engine))
    assert text.endswith("8.9), but this is Other GPU (8.9): build it again here")
    monkeypatch.setattr(nar_hw.export.tensorrt, "current_gpu", lambda: GPU)
    monkeypatch.setattr(trt, "__version__", f"{trt.__version__}.1")
    text = one_line(RuntimeUnavailableError, f"engine {engine} was built by TensorRT", lambda: load_engine(engine))
    assert text.endswith(".1: build it again here")


def test_an_engine_that_tensorrt_rejects_is_told(trt: Any, engine: Path) -> None:
    trt._faults.add("deserialize")
    text = one_line(ExportError, f"TensorRT {trt.__version__} cannot load engine {engine}: ", lambda: load_engine(engine))
    assert text.endswith("magic tag does not match")


INFO = EngineInfo(
    engine_sha256="",
    onnx_sha256="",
    timing_cache_sha256="",
    tensorrt="10.9.0",
    gpu="A",
    compute_capability="8.6",
    precision="fp32",
    batch=(1, 1, 1),
    workspace_mib=1,
    optimization_level=3,
    version_compatible=False,
    hardware_compatibility=None,
    refit=False,
    metadata={},
)


@pytest.mark.parametrize(
    ("changes", "version", "gpu", "fits"),
    [
        ({}, "10.9.0", ("A", "8.6"), True),
        ({}, "10.10.0", ("A", "8.6"), False),
        ({}, "10.9.0", ("A", "8.9"), False),
        ({}, "10.9.0", ("B", "8.6"), False),
        ({"version_compatible": True}, "10.10.0", ("A", "8.6"), True),
        ({"version_compatible": True}, "10.8.0", ("A", "8.6"), False),
        ({"version_compatible": True}, "11.0.0", ("A", "8.6"), False),
        ({"hardware_compatibility": "same_compute_capability"}, "10.9.0", ("B", "8.6"), True),
        ({"hardware_compatibility": "same_compute_capability"}, "10.9.0", ("B", "8.9"), False),
        ({"hardware_compatibility": "ampere_plus"}, "10.9.0", ("B", "12.0"), True),
        ({"hardware_compatibility": "ampere_plus"}, "10.9.0", ("B", "7.5"), False),
        ({"hardware_compatibility": "unheard of"}, "10.9.0", ("A", "8.6"), False),
    ],
)
def test_where_an_engine_runs(changes: dict[str, Any], version: str, gpu: tuple[str, str], fits: bool) -> None:
    info = replace(INFO, **changes)
    assert (misfit(info, version, *gpu) is None) == fits


# The runtime


class TestFakeTensorRT(RuntimeConformance):
    @pytest.fixture
    def runtime(self, trt: Any) -> type[Runtime]:
        return runtime_class("tensorrt")

    @pytest.fixture
    def network(self, module: nn.Module, files: dict[str, Path]) -> tuple[nn.Module, nn.Module | Path]:
        return module, files["fp32"]


def test_int8_and_modules(trt: Any, module: nn.Module, files: dict[str, Path]) -> None:
    images = np.random.default_rng(3).standard_normal((3, *SHAPE), dtype=np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).numpy()
    with TensorRT(module, SHAPE, CONFIG) as loaded:
        np.testing.assert_allclose(loaded.predict(images), expected, atol=1e-5 * np.abs(expected).max())
    with TensorRT(files["int8"], SHAPE, replace(CONFIG, precision="int8")) as loaded:
        assert np.abs(loaded.predict(images) - expected).max() < 0.1 * np.abs(expected).max()
    one_line(ModelError, f"{files['int8']} computes in int8, but fp32", lambda: TensorRT(files["int8"], SHAPE, CONFIG))


def test_the_input_that_is_timed_is_always_the_preset(trt: Any, files: dict[str, Path]) -> None:
    with TensorRT(files["fp32"], SHAPE, CONFIG) as loaded:
        expected = loaded.predict(loaded.images)
        assert not np.allclose(loaded.predict(-loaded.images), expected)
        loaded.run()
        np.testing.assert_array_equal(loaded._output.numpy(), expected)  # type: ignore[attr-defined]


def test_the_engine_is_for_the_batch_and_the_cache_for_the_user(trt: Any, files: dict[str, Path], tmp_path: Path) -> None:
    with TensorRT(files["fp32"], SHAPE, CONFIG) as first:
        settings = first._engine._settings  # type: ignore[attr-defined]
        assert [shape[0] for shape in settings["profiles"][0]["input"]] == [2, 2, 2]
    with TensorRT(files["fp32"], SHAPE, CONFIG, profile=True) as again:
        assert again._engine._settings == settings  # type: ignore[attr-defined]
    cache = tmp_path / "user-cache" / "nar_hw" / f"tensorrt-{trt.__version__}-test-gpu-8.9.cache"
    assert [*cache.parent.iterdir()] == [cache]


def test_an_engine_file_is_taken_as_it_is(trt: Any, engine: Path, module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "Builder", None)
    images = np.random.default_rng(3).standard_normal((3, *SHAPE), dtype=np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).numpy()
    with TensorRT(engine, SHAPE, CONFIG) as loaded:
        np.testing.assert_allclose(loaded.predict(images), expected, atol=1e-5 * np.abs(expected).max())
    for change in ({"batch": 5}, {"precision": "fp16"}):
        config = replace(CONFIG, **change)
        one_line(
            ModelError, f"{engine} is for fp32 and batch 1 to 4, but ", lambda config=config: TensorRT(engine, SHAPE, config)
        )
    one_line(ModelError, "the network takes images of shape (3, 32, 32), but", lambda: TensorRT(engine, (3, 16, 16), CONFIG))


def test_engines_are_files_of_a_bundle_and_checked_with_it(trt: Any, module: nn.Module, tmp_path: Path) -> None:
    out = bundled(module, tmp_path / "bundle", "fp32", "fp16", "bf16", "int8")
    bundle = load_bundle(out)
    found = bundle.manifest.compiled["tensorrt"]
    ends = ("", ".json", ".layers.json", ".cache")
    assert {name: item.files for name, item in found.items()} == {
        name: tuple(f"model{middle}.engine{end}" for end in ends)
        for name, middle in {"fp32": "", "fp16": ".fp16", "bf16": ".bf16", "int8": ".int8"}.items()
    }
    assert set(bundle.manifest.variants) == {"fp32", "fp16", "int8"}  # ONNX Runtime could not check bf16
    assert found["bf16"].batch == (1, 16)
    assert found["fp32"].requires == {"tensorrt": trt.__version__, "gpu": GPU[0], "compute_capability": GPU[1]}
    assert settings_of(out / "model.engine")["profiles"][0]["input"][1][0] == 2
    assert bundle.file("tensorrt", "fp16", 8) == out / "model.fp16.engine"
    assert bundle.file("tensorrt", "fp16", 17) == out / "model.fp16.onnx"
    assert set(verify_bundle(out)) == {*bundle.manifest.variants, *(f"tensorrt {name}" for name in found)}
    assert "Test GPU with TensorRT" in (out / "README.md").read_text()
    served = triton_model(out, tmp_path / "models", target="tensorrt", precision="fp16")
    assert (served / "1/model.plan").read_bytes() == (out / "model.fp16.engine").read_bytes()
    assert 'backend: "tensorrt"\nmax_batch_size: 16\n' in (served / "config.pbtxt").read_text()
    trt.__version__ = f"{trt.__version__}.9"
    skipped = verify_bundle(out)["tensorrt fp32"]["skipped"]
    assert "was built by TensorRT" in skipped
    trt._faults.add("build")
    one_line(ExportError, "TensorRT", lambda: bundled(module, tmp_path / "new", "fp32"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"inputs"}))
def test_a_failure_is_one_line_and_leaves_no_files(
    trt: Any, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    trt._faults.add(fault)

    def act() -> None:
        with TensorRT(files["fp32"], SHAPE, CONFIG, profile=True) as loaded:
            loaded.time_ms(1)

    assert "TensorRT" in one_line(UserError, "", act)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_what_tensorrt_cannot_do_is_told(trt: Any) -> None:
    assert TensorRT.unavailable(CONFIG) is None
    assert TensorRT.unavailable(RuntimeConfig(runtime="tensorrt")) == "tensorrt needs device cuda, but got cpu"
    assert TensorRT.versions() == {"tensorrt": trt.__version__, "torch": torch.__version__}


def test_profiles_join_to_the_slots_of_a_space(trt: Any, module: nn.Module, files: dict[str, Path]) -> None:
    space = SearchSpace.from_model(module, input_shape=SHAPE)
    join = Join(space, [])
    with TensorRT(files["fp32"], SHAPE, CONFIG, profile=True) as loaded:
        loaded.run()
        (times,), readers = loaded.layer_ms(), loaded.producers()
    assert "layer1.conv2/Conv" in times
    assert "layer1/Add" not in times
    assert {join.site(node) for node in times} - {None} == {site.conv for slot in space.slots for site in slot.sites}
    assert times["fc/Gemm"] == pytest.approx(3 * times["ReduceMean"]), "the fake gives every layer the same time"
    change = "Reformatting CopyNode for Input Tensor 0 to conv1/Conv"
    assert join.site(change) is None
    assert readers["conv1/Conv"] == [change]
    assert readers["layer2.conv1/Conv"] == ["layer1.conv2/Conv"]


def layer(name: str, nodes: list[str], inputs: list[str] = [], outputs: list[str] = []) -> dict[str, Any]:  # noqa: B006
    tensors = {"Inputs": [{"Name": item} for item in inputs], "Outputs": [{"Name": item} for item in outputs]}
    return {"Name": name, "Metadata": "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes), **tensors}


@pytest.mark.parametrize(
    ("nodes", "name"),
    [
        (["layer1.conv1/Conv", "layer1.relu/Relu"], "layer1.conv1/Conv"),
        (["layer1.relu/Relu", "layer2.conv1/Conv_1", "layer2.pool/MaxPool"], "layer2.conv1/Conv_1"),
        (["layer1.relu/Relu", "layer1.pool/AveragePool"], "layer1.pool/AveragePool"),
        (["conv1.weight_QuantizeLinear", "conv1/Conv:0_QuantizeLinear", "conv2/Conv", "layer1/Add"], "conv2/Conv"),
        (["input_QuantizeLinear", "layer1/Add"], "layer1/Add"),
        (["input_QuantizeLinear"], "input_QuantizeLinear"),
        (["fc/Gemm", "Softmax"], "fc/Gemm"),
        ([], "own name"),
    ],
)
def test_a_fused_layer_has_the_name_of_the_node_that_does_the_work(nodes: list[str], name: str) -> None:
    assert node_names([layer("own name", nodes)]) == {"own name": name}


def test_layers_of_one_node_are_one_in_the_graph() -> None:
    layers = [
        layer("in", [], ["input"], ["a"]),
        layer("myl_1", ["x/Conv"], ["a"], ["b"]),
        layer("myl_2", ["x/Conv", "x/Relu"], ["b"], ["c"]),
        layer("out", [], ["c", "w"], ["d"]),
    ]
    assert producers(layers) == {"in": [], "x/Conv": ["in"], "out": ["x/Conv"]}


# bf16 files


def test_bf16_rounds_weights_as_torch_does(module: nn.Module, files: dict[str, Path]) -> None:
    proto = onnx.load(files["bf16"])
    onnx.checker.check_model(proto, full_check=True)
    assert precision_of(proto) == "bf16"
    (weight,) = (tensor for tensor in proto.graph.initializer if tensor.name == "fc.weight")
    expected = module.fc.weight.detach().bfloat16().float().numpy()  # type: ignore[union-attr, operator]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight).astype(np.float32), expected)
    assert [value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)] == [TensorProto.FLOAT] * 2
    assert {node.name for node in onnx.load(files["fp32"]).graph.node} < {node.name for node in proto.graph.node}


def test_bf16_casts_follow_and_sizes_stay(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["input"], ["whole"], "down", to=TensorProto.INT32),
        helper.make_node("Cast", ["whole"], ["again"], "up", to=TensorProto.FLOAT),
        helper.make_node("Resize", ["again", "", "scales"], ["large"], "large"),
        helper.make_node("Mul", ["large", "factor"], ["output"], "times"),
    ]
    weights = [helper.make_tensor("scales", TensorProto.FLOAT, [4], [1.0, 1.0, 2.0, 2.0])]
    weights += [helper.make_tensor("factor", TensorProto.FLOAT, [1], [0.1])]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, None, None]) for name in ("input", "output")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", tensors[:1], tensors[1:], weights), opset_imports=[helper.make_opsetid("", 18)]
    )
    onnx.save(model, tmp_path / "fp32.onnx")
    to_bf16(tmp_path / "fp32.onnx", tmp_path / "bf16.onnx")
    graph = onnx.load(tmp_path / "bf16.onnx").graph
    assert {tensor.name: tensor.data_type for tensor in graph.initializer} == {
        "scales": TensorProto.FLOAT,
        "factor": TensorProto.BFLOAT16,
    }
    casts = {node.name: node.attribute[0].i for node in graph.node if node.op_type == "Cast"}
    kinds = {"Cast_input": TensorProto.BFLOAT16, "Cast_output": TensorProto.FLOAT}
    assert casts == {**kinds, "down": TensorProto.INT32, "up": TensorProto.BFLOAT16}


# The script of the deployment kit


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images in folders named after classes."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(5):
        path = folder / CLASSES[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        colour = rng.integers(0, 256, 3)
        Image.fromarray(np.clip(colour + rng.integers(-40, 40, (32, 32, 3)), 0, 255).astype(np.uint8)).save(path)
    return folder


@pytest.fixture
def host(kit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script runs on the CPU instead of a GPU."""
    monkeypatch.setattr(kit, "CudaStream", lambda torch, index: HostStream(index))


@pytest.mark.usefixtures("host")
def test_the_script_classifies_as_torch_does(run_kit: Shell, engine: Path, photos: Path, module: nn.Module) -> None:
    code, out, err = run_kit(engine, photos, "--batch", 2, "--top", 2, "--time", "--runs", 3, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    paths = sorted(photos.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path), np.float32).transpose(2, 0, 1) / 255 for path in paths])
    images = ((pixels - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))).astype(np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).softmax(1).topk(2)
    found = [[entry["name"] for entry in item["classes"]] for item in result["images"]]
    assert found == [[CLASSES[index] for index in row] for row in expected.indices.tolist()]
    assert len({tuple(names) for names in found}) > 1
    probabilities = [[entry["probability"] for entry in item["classes"]] for item in result["images"]]
    np.testing.assert_allclose(probabilities, expected.values.numpy(), rtol=1e-3)
    right = [names[0] == path.parent.name for names, path in zip(found, paths, strict=True)]
    assert result["accuracy"] == pytest.approx(sum(right) / 5)
    assert result["time"]["batch"] == 2
    assert result["time"]["median_ms"] > 0
    code, out, err = run_kit(engine, paths[0], "--time")
    assert (code, err) == (0, "")
    assert "batch 1 in fp32 in TensorRT on Test GPU: median " in out.splitlines()[1]


@pytest.mark.usefixtures("host")
def test_the_script_leaves_out_the_first_runs(
    run_kit: Shell, engine: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(HostStream, "time_ms", lambda self, work: float(next(clock)))
    time = json.loads(run_kit(engine, photos, "--time", "--runs", 3, "--batch", 2, "--json")[1])["time"]
    assert (time["median_ms"], time["p90_ms"]) == pytest.approx((11, 11.8)), "of 0 to 12 the last three"
    assert time["images_per_second"] == pytest.approx(2 / 0.011)


@pytest.mark.usefixtures("trt")
def test_the_script_needs_a_gpu(engine: Path, photos: Path, run_kit: Shell) -> None:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    assert f"torch finds {found} GPUs, but GPU 99 (the first is 0) is asked for" in run_kit(engine, photos, "--gpu", 99)[2]


@pytest.mark.usefixtures("host")
def test_the_script_tells_mistakes_in_one_line(
    trt: Any, run_kit: Shell, engine: Path, photos: Path, tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*arguments: object) -> str:
        code, _, err = run_kit(*arguments)
        assert code == 2
        return err

    assert "--batch must be from 1 to 4 for" in told(engine, photos, "--batch", 5)
    assert "--gpu must be at least 0, but is -1" in told(engine, photos, "--gpu", -1)
    for fault, message in (
        ("deserialize", "cannot load the engine: magic tag does not match"),
        ("context", "cannot make a context (out of GPU memory?): it does not say why"),
        ("execute", "cannot run the network"),
    ):
        trt._faults.add(fault)
        assert message in told(engine, photos)
        trt._faults.clear()
    monkeypatch.setattr(HostStream, "gpu", lambda self: ("Other GPU", "8.9"))
    assert "was built for Test GPU (compute capability 8.9), but this is Other GPU (8.9): build it again" in told(engine, photos)
    monkeypatch.setattr(HostStream, "gpu", lambda self: GPU)
    build_engine(files["fixed"], tmp_path / "nameless.engine", batch=(4, 4, 4))
    assert "has no classes and normalisation" in told(tmp_path / "nameless.engine", photos)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info.update(schema=2), "schema 2, not 1"),
        (lambda info: info.pop("gpu"), "KeyError('gpu')"),
        (lambda info: info.pop("engine_sha256"), "is not the file that was made"),
        (lambda info: info.update(metadata=[]), "is damaged"),
        (lambda info: info["metadata"].update(classes="[1"), "is damaged"),
        (lambda info: info.update(batch=[1]), "is damaged"),
        (lambda info: info.update(tensorrt="new"), "tensorrt is 'new'"),
        (lambda info: info.update(engine_sha256="0"), "is not the file that was made"),
        (lambda info: info.update(gpu="A\nB"), r"was built for A\nB (compute capability"),
        (lambda info: info.update(hardware_compatibility=[]), "hardware_compatibility is []"),
        (lambda info: info["metadata"].update(classes='["a"]'), "gives 5 scores, but is said to have 1 classes"),
        (lambda info: info["metadata"].update(normalisation='{"mean": [1], "std": [1]}'), "mean and std are for 1 and 1"),
    ],
)
@pytest.mark.usefixtures("host")
def test_the_script_refuses_damaged_engines(
    run_kit: Shell, engine: Path, photos: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    info = json.loads(info_file(engine).read_text())
    change(info)
    info_file(engine).write_text(json.dumps(info))
    code, out, err = run_kit(engine, photos)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_the_script_refuses_what_is_not_whole(engine: Path, photos: Path, run_kit: Shell) -> None:
    info_file(engine).write_text("{")
    assert "is damaged" in run_kit(engine, photos)[2]
    info_file(engine).unlink()
    assert "model.engine has no description beside it: it needs" in run_kit(engine, photos)[2]


def test_the_script_asks_for_what_it_needs(engine: Path, photos: Path, run_kit: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    err = run_kit(engine, photos)[2]
    assert err.startswith("error: engines are run with tensorrt and torch, which cannot be imported")
    assert err.endswith("pip install tensorrt torch\n")


def test_the_script_runs_embeddings(
    trt: Any, host: None, module: nn.Module, photos: Path, tmp_path: Path, run_kit: Shell
) -> None:
    normalisation = {"mean": MEAN, "std": STD}
    export_onnx(module, tmp_path / "m.onnx", input_shape=SHAPE, metadata={"classes": [], "normalisation": normalisation})
    build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", batch=(1, 2, 4))
    file = sorted(photos.rglob("*.png"))[0]
    (found,) = json.loads(run_kit(tmp_path / "m.engine", file, "--json")[1])["images"]
    pixels = np.asarray(Image.open(file), np.float32).transpose(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = module(
            torch.from_numpy(((pixels - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))).astype(np.float32))
        )
    np.testing.assert_allclose(found["embedding"], expected[0].numpy(), rtol=1e-3, atol=1e-3)


def test_the_script_judges_engines_as_the_package_does(kit: ModuleType) -> None:
    for changes in ({}, {"version_compatible": True}, {"hardware_compatibility": "ampere_plus"}):
        info = replace(INFO, **changes)  # type: ignore[arg-type]
        for version in ("10.8.0", "10.9.0", "10.10.0", "11.0.0"):
            for gpu in (("A", "8.6"), ("B", "8.6"), ("B", "12.0"), ("B", "7.5")):
                assert kit.engine_misfit(plain(info), version, *gpu) == misfit(info, version, *gpu)


# Where there is a GPU


@pytest.mark.gpu
def test_a_captured_stream_replays_and_times() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    stream = nar_hw.runtimes.tensorrt.CudaStream(0)
    with stream.active():
        counter = torch.zeros(1, device=stream.device)
        replay = stream.captured(lambda: counter.add_(1) and None)
        before = int(counter)
        times = [stream.time_ms(replay) for _ in range(3)]
        assert int(counter) == before + 3
    assert all(ms > 0 for ms in times)


@pytest.fixture
def real() -> None:
    if reason := TensorRT.unavailable(CONFIG):
        pytest.skip(reason)


@pytest.mark.tensorrt
@pytest.mark.usefixtures("real")
def test_real_engines_are_rebuilt_the_same_and_run(files: dict[str, Path], module: nn.Module, tmp_path: Path) -> None:
    images = np.random.default_rng(3).standard_normal((3, *SHAPE), dtype=np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).numpy()
    for precision, tolerance in (("fp32", 1e-4), ("fp16", 5e-3), ("int8", 0.1)):
        path = tmp_path / f"{precision}.engine"
        build_engine(files[precision], path, batch=(1, 2, 4))
        layers = path.with_name(f"{path.name}.layers.json").read_bytes()
        build_engine(files[precision], path, batch=(1, 2, 4))
        assert path.with_name(f"{path.name}.layers.json").read_bytes() == layers
        with TensorRT(path, SHAPE, replace(CONFIG, precision=precision)) as loaded:
            assert np.abs(loaded.predict(images) - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.tensorrt
@pytest.mark.usefixtures("real")
def test_real_profiles_join_to_the_slots_of_a_space(files: dict[str, Path], module: nn.Module) -> None:
    space = SearchSpace.from_model(module, input_shape=SHAPE)
    join = Join(space, [])
    with TensorRT(files["fp32"], SHAPE, CONFIG, profile=True) as loaded:
        loaded.time_ms(5)
        runs = loaded.layer_ms()
    sites = {site.conv for slot in space.slots for site in slot.sites}
    assert len(runs) == 5
    assert all({join.site(node) for node in times} - {None} == sites for times in runs)


@pytest.mark.tensorrt
@pytest.mark.usefixtures("real")
def test_a_real_engine_runs_in_the_script(files: dict[str, Path], photos: Path, tmp_path: Path, run_kit: Shell) -> None:
    build_engine(files["fp16"], tmp_path / "model.engine")
    code, out, err = run_kit(tmp_path / "model.engine", photos, "--time", "--json")
    assert (code, err) == (0, "")
    assert len(json.loads(out)["images"]) == 5
