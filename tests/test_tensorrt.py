"""Engines loaded and run: on a stand-in whose members are the real ones', and on GPUs where there are some.

Building is tested with the real TensorRT for RTX, in test_tensorrt_build.py.
"""

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
import pytest
import torch
from PIL import Image
from torch import nn

import nar_hw.bundles.verify
import nar_hw.export.engine_worker
import nar_hw.export.tensorrt
import nar_hw.runtimes.tensorrt
import nar_hw.runtimes.tensorrt_rtx
from nar_hw.bundles.manifest import load_bundle
from nar_hw.bundles.triton import triton_model
from nar_hw.bundles.verify import verify_bundle
from nar_hw.errors import ModelError, UserError
from nar_hw.export.engine import EngineInfo, info_file, misfit, read_engine
from nar_hw.export.onnx import export_onnx
from nar_hw.export.quantize import to_bf16, to_fp16, to_int8
from nar_hw.export.tensorrt import LIBRARIES, build_engine
from nar_hw.latency.in_context import Join
from nar_hw.records import plain, replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.tensorrt import TensorRT
from nar_hw.runtimes.tensorrt_rtx import TensorRTRtx
from nar_hw.space.space import SearchSpace
from nar_hw.testing.runtimes import SHAPE, RuntimeConformance
from tests.bundles import exported
from tests.conftest import Shell
from tests.faketensorrt import COMPILED, FAULTS, GOLDEN, GPU, INFO, RTX, VERSIONS, FakeDriver, fake_engine, fake_tensorrt
from tests.networks import TinyResNet

CLASSES = ["ant", "bee", "cat", "dog", "eel"]
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CONFIG = RuntimeConfig(runtime="tensorrt", device="cuda", batch=2)


class HostStream:
    """A stream for tensors on the CPU, where work is done when it has been started."""

    def __init__(self, index: int) -> None:
        self.device, self.handle = torch.device("cpu"), 0

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
    monkeypatch.setitem(sys.modules, fake.__name__, fake)

    def build(source: Path, path: Path, *, library: str, batch: tuple[int, int, int], **settings: object) -> EngineInfo:
        assert LIBRARIES[library].package == fake.__name__
        fake._settings = settings
        return fake_engine(fake, source, path, batch)

    for module in (nar_hw.runtimes.tensorrt, nar_hw.runtimes.tensorrt_rtx, nar_hw.export.tensorrt):
        monkeypatch.setattr(module, "current_gpu", lambda: GPU)
        monkeypatch.setattr(module, "no_cuda", lambda config: None, raising=False)
    monkeypatch.setattr(nar_hw.runtimes.tensorrt, "build_engine", build)
    monkeypatch.setattr(nar_hw.bundles.verify, "parser_verdicts", lambda files: {})
    monkeypatch.setattr(nar_hw.runtimes.tensorrt, "CudaStream", HostStream)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    return fake


one_version = pytest.mark.parametrize("trt", VERSIONS[:1], indirect=True)
"""For what does not depend on the library."""


@pytest.fixture
def runtime(trt: Any) -> type[TensorRT]:
    return TensorRTRtx if trt.__version__ == RTX else TensorRT


@pytest.fixture
def config(runtime: type[TensorRT]) -> RuntimeConfig:
    return RuntimeConfig(runtime=runtime.name, device="cuda", batch=2)


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
    fake_engine(trt, files["fp32"], path)
    return path


def one_line(error: type[UserError], start: str, act: Callable[[], object]) -> str:
    """What ``act`` says when it is refused: one line that starts like this."""
    with pytest.raises(error) as caught:
        act()
    text = str(caught.value)
    assert text.startswith(start), text
    assert "\n" not in text
    return text


def bundled(module: nn.Module, out: Path, target: str, *precisions: str) -> Path:
    """A bundle with engines in these precisions."""
    images = np.random.default_rng(0).standard_normal((16, *SHAPE), dtype=np.float32)
    with torch.inference_mode():
        labels = module(torch.from_numpy(images)).numpy().argmax(1)
    return exported(
        module,
        out,
        shape=SHAPE,
        targets=("onnx", target),
        gpus=("sm89",) if target == "tensorrt-rtx" else (),
        precisions=precisions,
        batch=(1, 16),
        images=images,
        labels=labels,
        calibration_images=images,
        max_accuracy_drop=0.2,
    )


# What the stand-in offers, and what nar_hw uses, is what the packages have


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fake_offers_nothing_that_the_package_does_not_have(version: str) -> None:
    fake, facts = fake_tensorrt(version), GOLDEN["versions"][version]
    kinds = {name: kind for name, kind in vars(fake).items() if inspect.isclass(kind)}
    assert set(kinds) <= set(facts["classes"]) | set(facts["enums"])
    for name, members in facts["enums"].items():
        assert list(kinds[name].__members__) == members
    types = {"typing.SupportsInt": int, "typing.SupportsFloat": float, "str": str, "bool": bool, "Dims": tuple, "tuple": tuple}
    types |= {"typing_extensions.Buffer": bytes, "ILogger.Severity": Any, **kinds}
    for name, members in facts["classes"].items():
        own = vars(kinds[name]) if name in kinds else {}
        assert {key for key in own if not key.startswith("_")} <= set(members), name
        for member in (key for key in own if isinstance(members.get(key), list)):
            given = [(item.name, item.annotation) for item in inspect.signature(own[member]).parameters.values()][1:]
            overloads = [re.findall(r", (\w+): (?:nvinfer1::)?([\w.]+)( =)?", signature) for signature in members[member]]
            fits = [
                given == [(key, types.get(kind)) for key, kind, _ in wanted[: len(given)]]
                and all(default for _, _, default in wanted[len(given) :])
                for wanted in overloads
            ]
            assert any(fits), f"{name}.{member}{given} is none of {members[member]}"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fake_is_as_strict_as_the_bindings(version: str, files: dict[str, Path], tmp_path: Path) -> None:
    trt = fake_tensorrt(version)
    fake_engine(trt, files["fp32"], tmp_path / "model.engine")

    class Log(trt.ILogger):  # type: ignore[misc]
        pass

    runtime = trt.Runtime(Log())
    engine = runtime.deserialize_cuda_engine((tmp_path / "model.engine").read_bytes())
    for wrong in (
        lambda: runtime.deserialize_cuda_engine(tmp_path / "model.engine"),
        lambda: engine.get_tensor_shape(0),
        lambda: engine.create_engine_inspector().get_engine_information(0),
    ):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(AttributeError):
        runtime.max_workspace_size = 1


RTX_ONLY = {"ComputeCapability", "DynamicShapesKernelSpecializationStrategy"}


def test_nothing_is_used_that_a_version_lacks(kit: ModuleType) -> None:
    """By syntax, so that lines which no test reaches count too."""
    only = {member.rpartition(".")[2] for members in GOLDEN["only"].values() for member in members}
    assert {"FP16", "int8_calibrator", "EXPLICIT_BATCH", "build_route"} <= only
    modules = (nar_hw.export.tensorrt, nar_hw.export.engine_worker, nar_hw.runtimes.tensorrt, nar_hw.runtimes.tensorrt_rtx, kit)
    for file in (str(module.__file__) for module in modules):
        nodes = [node for node in ast.walk(ast.parse(Path(file).read_text())) if isinstance(node, ast.Attribute)]
        assert only.isdisjoint(node.attr for node in nodes), file
        chains = [tuple(ast.unparse(node).removeprefix("self._").removeprefix("self.").split(".")) for node in nodes]
        used = {chain[1:3] for chain in chains if chain[0] == "trt" and chain[1:2] not in ((), ("__version__",))}
        assert used or file == nar_hw.runtimes.tensorrt_rtx.__file__
        for version, facts in GOLDEN["versions"].items():
            known = facts["classes"] | facts["enums"]
            for name, *member in used:
                if version == RTX or name not in RTX_ONLY:
                    assert name in known, (file, version, name)
                    assert not member or member[0] in known[name] or member[0].startswith("__"), (file, version, name, member)


def test_the_notes_on_tensorrt_for_rtx_are_what_the_package_says() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    if trt.__version__ != RTX:
        pytest.skip(f"the notes are on {RTX}, this is {trt.__version__}")
    facts = GOLDEN["versions"][RTX]
    for name, members in facts["enums"].items():
        assert list(getattr(trt, name).__members__) == members
    for name, members in facts["classes"].items():
        for member, known in members.items():
            text = " ".join(str(getattr(getattr(trt, name), member).__doc__).split()).replace(
                "tensorrt_rtx_bindings.tensorrt_rtx.", ""
            )
            assert known in ("property", "attr") or all(signature in text for signature in known), (name, member)


# The runtime


class TestFakeTensorRT(RuntimeConformance):
    @pytest.fixture
    def config(self, config: RuntimeConfig) -> RuntimeConfig:
        return config

    @pytest.fixture
    def network(self, module: nn.Module, files: dict[str, Path]) -> tuple[nn.Module, nn.Module | Path]:
        return module, files["fp32"]


def test_int8_and_modules(runtime: type[TensorRT], config: RuntimeConfig, module: nn.Module, files: dict[str, Path]) -> None:
    images = np.random.default_rng(3).standard_normal((3, *SHAPE), dtype=np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).numpy()
    with runtime(module, SHAPE, config) as loaded:
        np.testing.assert_allclose(loaded.predict(images), expected, atol=1e-5 * np.abs(expected).max())
    with runtime(files["int8"], SHAPE, replace(config, precision="int8")) as loaded:
        assert np.abs(loaded.predict(images) - expected).max() < 0.1 * np.abs(expected).max()
    one_line(ModelError, f"{files['int8']} computes in int8, but fp32", lambda: runtime(files["int8"], SHAPE, config))


def test_the_input_that_is_timed_is_always_the_preset(
    runtime: type[TensorRT], config: RuntimeConfig, files: dict[str, Path]
) -> None:
    with runtime(files["fp32"], SHAPE, config) as loaded:
        expected = loaded.predict(loaded.images)
        assert not np.allclose(loaded.predict(-loaded.images), expected)
        loaded.run()
        np.testing.assert_array_equal(loaded._output.numpy(), expected)


def test_the_engine_is_for_the_batch_and_the_cache_for_the_user(
    trt: Any, runtime: type[TensorRT], config: RuntimeConfig, files: dict[str, Path], tmp_path: Path
) -> None:
    cache = tmp_path / "user-cache" / "nar_hw" / f"{runtime.name}-{trt.__version__}-test-gpu-8.9.cache"
    with runtime(files["fp32"], SHAPE, config) as loaded:
        assert loaded._engine._batch == [2, 2, 2]
    assert trt._settings == ({"gpus": ("8.9",)} if runtime is TensorRTRtx else {"timing_cache": cache})


def test_what_was_compiled_is_kept_for_the_next_load(files: dict[str, Path], trt: Any, tmp_path: Path) -> None:
    if trt.__version__ != RTX:
        pytest.skip("TensorRT 10 and 11 compile nothing when they load")
    config = RuntimeConfig(runtime="tensorrt-rtx", device="cuda", batch=2)
    seen = []
    for content in (None, None, b"of another driver"):
        if content:
            (cache,) = (tmp_path / "user-cache" / "nar_hw").iterdir()
            assert cache.read_bytes() == COMPILED
            cache.write_bytes(content)
        with TensorRTRtx(files["fp32"], SHAPE, config) as loaded:
            seen.append(loaded.cached)
            assert loaded.load_ms > 0
    assert seen == [False, True, False]


def test_an_engine_file_is_taken_as_it_is(
    runtime: type[TensorRT], config: RuntimeConfig, engine: Path, module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nar_hw.runtimes.tensorrt, "build_engine", None)
    images = np.random.default_rng(3).standard_normal((3, *SHAPE), dtype=np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).numpy()
    with runtime(engine, SHAPE, config) as loaded:
        np.testing.assert_allclose(loaded.predict(images), expected, atol=1e-5 * np.abs(expected).max())
    for change in ({"batch": 5}, {"precision": "fp16"}):
        other = replace(config, **change)
        one_line(ModelError, f"{engine} is for fp32 and batch 1 to 4, but ", lambda other=other: runtime(engine, SHAPE, other))
    one_line(ModelError, "the network takes images of shape (3, 32, 32), but", lambda: runtime(engine, (3, 16, 16), config))
    foreign = TensorRT if runtime is TensorRTRtx else TensorRTRtx
    monkeypatch.setattr(foreign, "_missing", lambda config: None)
    monkeypatch.setattr(nar_hw.runtimes.tensorrt, "tensorrt_module", lambda library: None)
    one_line(
        ModelError,
        f"{engine} is for {runtime.name}, but {foreign.name} is asked for: use runtime {runtime.name}",
        lambda: foreign(engine, SHAPE, replace(config, runtime=foreign.name)),
    )


@pytest.mark.parametrize("trt", [VERSIONS[0], RTX], indirect=True)
def test_engines_are_files_of_a_bundle_and_checked_with_it(
    trt: Any, runtime: type[TensorRT], module: nn.Module, tmp_path: Path
) -> None:
    name = runtime.name
    out = bundled(module, tmp_path / "bundle", name, "fp32", "fp16", "bf16", "int8")
    bundle = load_bundle(out)
    found = bundle.manifest.compiled[name]
    suffix, ends = (".engine", ("", ".json", ".layers.json", ".cache"))
    if runtime is TensorRTRtx:
        suffix, ends = ".rtx.engine", ends[:3]
    assert {precision: item.files for precision, item in found.items()} == {
        precision: tuple(f"model{middle}{suffix}{end}" for end in ends)
        for precision, middle in {"fp32": "", "fp16": ".fp16", "bf16": ".bf16", "int8": ".int8"}.items()
    }
    assert set(bundle.manifest.variants) == {"fp32", "fp16", "int8"}  # ONNX Runtime could not check bf16
    assert found["bf16"].batch == (1, 16)
    where = {"compute_capabilities": GPU[1]} if runtime is TensorRTRtx else {"gpu": GPU[0], "compute_capability": GPU[1]}
    assert found["fp32"].requires == {name: trt.__version__, **where}
    assert found["fp32"].max_abs_error is not None
    assert read_engine(out / f"model{suffix}")[1].batch == (1, 2, 16)
    assert bundle.file(name, "fp16", 8) == out / f"model.fp16{suffix}"
    assert bundle.file(name, "fp16", 17) == out / "model.fp16.onnx"
    assert set(verify_bundle(out)) == {*bundle.manifest.variants, *(f"{name} {precision}" for precision in found)}
    assert f"{runtime.described('fp16', found['fp16'].exported)}, " in (out / "README.md").read_text()
    if runtime is TensorRT:
        served = triton_model(out, tmp_path / "models", target="tensorrt", precision="fp16")
        assert (served / "1/model.plan").read_bytes() == (out / "model.fp16.engine").read_bytes()
        assert 'backend: "tensorrt"\nmax_batch_size: 16\n' in (served / "config.pbtxt").read_text()
    trt.__version__ = f"{trt.__version__}.9"
    skipped = verify_bundle(out)[f"{name} fp32"]["skipped"]
    assert f"was built by {name}" in skipped


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_is_one_line_and_leaves_no_files(
    trt: Any,
    runtime: type[TensorRT],
    config: RuntimeConfig,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    trt._faults.add(fault)

    def act() -> None:
        with runtime(files["fp32"], SHAPE, config, profile=True) as loaded:
            loaded.time_ms(1)

    assert "TensorRT" in one_line(UserError, "", act)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_profiles_join_to_the_slots_of_a_space(
    runtime: type[TensorRT], config: RuntimeConfig, module: nn.Module, files: dict[str, Path]
) -> None:
    space = SearchSpace.from_model(module, input_shape=SHAPE)
    join = Join(space, [])
    with runtime(files["fp32"], SHAPE, config, profile=True) as loaded:
        loaded.run()
        (times,), readers = loaded.layer_ms(), loaded.producers()
    assert {join.site(node) for node in times} - {None} == {site.conv for slot in space.slots for site in slot.sites}
    assert times["fc/Gemm"] == pytest.approx(3 * times["ReduceMean"]), "the fake gives every layer the same time"
    assert set(readers["fc/Gemm"]) == {"ReduceMean"}


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
def host(trt: Any, kit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """The script runs on the CPU instead of a GPU."""
    driver = FakeDriver()
    driver.launch = lambda: trt._last.execute_async_v3(0)
    monkeypatch.setattr(kit.ctypes, "CDLL", lambda name: driver)
    return driver


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


@one_version
def test_the_script_leaves_out_the_first_runs(host: FakeDriver, run_kit: Shell, engine: Path, photos: Path) -> None:
    marks = itertools.count()
    host.times = lambda: float(sum(range((next(marks) + 1) // 2)))  # the n-th run, from 0 on, takes n ms
    time = json.loads(run_kit(engine, photos, "--time", "--runs", 3, "--batch", 2, "--json")[1])["time"]
    assert (time["median_ms"], time["p90_ms"]) == pytest.approx((11, 11.8)), "of 0 to 12 the last three"
    assert time["images_per_second"] == pytest.approx(2 / 0.011)


@one_version
def test_the_script_needs_a_gpu(
    host: FakeDriver, engine: Path, photos: Path, run_kit: Shell, kit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there are 1 GPUs, but GPU 99 (the first is 0) is asked for" in run_kit(engine, photos, "--gpu", 99)[2]
    host.gpus = 0
    assert "the GPU's driver fails in cuDeviceGetCount with error 100" in run_kit(engine, photos)[2]

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(kit.ctypes, "CDLL", missing)
    assert "engines need an NVIDIA GPU, but its driver does not load (libcuda.so.1: cannot open" in run_kit(engine, photos)[2]


@pytest.mark.usefixtures("host")
def test_the_script_tells_how_long_loading_took(trt: Any, engine: Path, photos: Path, run_kit: Shell) -> None:
    first, second = (run_kit(engine, photos, "--time")[1].splitlines()[-1] for _ in range(2))
    if trt.__version__ == RTX:
        assert first.endswith("kernels were compiled, the next time takes less")
        assert second.endswith("with kernels that were kept")
    else:
        assert "images/s" in first


@pytest.mark.usefixtures("host")
def test_the_script_tells_mistakes_in_one_line(
    trt: Any,
    kit: ModuleType,
    run_kit: Shell,
    engine: Path,
    photos: Path,
    tmp_path: Path,
    files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
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
    monkeypatch.setattr(kit.Cuda, "gpu", lambda self: ("Other GPU", "9.0"))
    assert "compute capability 8.9" in (text := told(engine, photos))
    assert ", but this is Other GPU (9.0): build it again" in text
    fake_engine(trt, files["fixed"], tmp_path / "nameless.engine", batch=(4, 4, 4))
    assert "has no classes and normalisation" in told(tmp_path / "nameless.engine", photos)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info.update(schema=3), "schema 3, not 1 or 2"),
        (lambda info: info.update(library="tensorflow"), "library is 'tensorflow'"),
        (lambda info: info.pop("gpu"), "KeyError('gpu')"),
        (lambda info: info.pop("engine_sha256"), "is not the file that was made"),
        (lambda info: info.update(metadata=[]), "is damaged"),
        (lambda info: info["metadata"].update(classes="[1"), "is damaged"),
        (lambda info: info.update(batch=[1]), "is damaged"),
        (lambda info: info.update(tensorrt="new"), "tensorrt is 'new'"),
        (lambda info: info.update(engine_sha256="0"), "is not the file that was made"),
        (lambda info: info.update(gpu="A\nB", hardware_compatibility="x"), r"was built for A\nB (compute capability"),
        (lambda info: info.update(hardware_compatibility=[]), "hardware_compatibility is []"),
        (lambda info: info["metadata"].update(classes='["a"]'), "gives 5 scores, but is said to have 1 classes"),
        (lambda info: info["metadata"].update(normalisation='{"mean": [1], "std": [1]}'), "mean and std are for 1 and 1"),
    ],
)
@pytest.mark.usefixtures("host")
@one_version
def test_the_script_refuses_damaged_engines(
    run_kit: Shell, engine: Path, photos: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    info = json.loads(info_file(engine).read_text())
    change(info)
    info_file(engine).write_text(json.dumps(info))
    code, out, err = run_kit(engine, photos)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@one_version
def test_the_script_refuses_what_is_not_whole(engine: Path, photos: Path, run_kit: Shell) -> None:
    info_file(engine).write_text("{")
    assert "is damaged" in run_kit(engine, photos)[2]
    info_file(engine).unlink()
    assert "model.engine has no description beside it: it needs" in run_kit(engine, photos)[2]


def test_the_script_asks_for_what_it_needs(
    trt: Any, engine: Path, photos: Path, run_kit: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, trt.__name__, None)
    library, package = ("tensorrt-rtx", "tensorrt-rtx-cu13") if trt.__version__ == RTX else ("tensorrt", "tensorrt")
    err = run_kit(engine, photos)[2]
    assert err.startswith(f"error: this engine is run with {library}, which cannot be imported")
    assert err.endswith(f"pip install {package}\n")


@one_version
def test_the_script_runs_embeddings(
    trt: Any, host: FakeDriver, module: nn.Module, photos: Path, tmp_path: Path, run_kit: Shell
) -> None:
    normalisation = {"mean": MEAN, "std": STD}
    export_onnx(module, tmp_path / "m.onnx", input_shape=SHAPE, metadata={"classes": [], "normalisation": normalisation})
    fake_engine(trt, tmp_path / "m.onnx", tmp_path / "m.engine")
    file = sorted(photos.rglob("*.png"))[0]
    (found,) = json.loads(run_kit(tmp_path / "m.engine", file, "--json")[1])["images"]
    pixels = np.asarray(Image.open(file), np.float32).transpose(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = module(
            torch.from_numpy(((pixels - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))).astype(np.float32))
        )
    np.testing.assert_allclose(found["embedding"], expected[0].numpy(), rtol=1e-3, atol=1e-3)


def test_the_script_judges_engines_as_the_package_does(kit: ModuleType) -> None:
    ahead = {"library": "tensorrt-rtx", "gpu": None, "compute_capabilities": ("8.6", "8.9")}
    for changes in ({}, {"version_compatible": True}, {"hardware_compatibility": "ampere_plus"}, ahead):
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
