"""Runtimes: the conformance of all that work here, and what each does on its own."""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from nar_hw.errors import ExportError, ModelError, RuntimeUnavailableError, UnknownNameError, UserError
from nar_hw.export.onnx import export_onnx
from nar_hw.records import plain
from nar_hw.runtimes import RUNTIMES, RuntimeConfig, runtime_class, survey
from nar_hw.runtimes.base import Runtime
from nar_hw.runtimes.fake import FAULTS, FakeDevice, FakeRuntime
from nar_hw.runtimes.inputs import in_batches, preset_images
from nar_hw.runtimes.onnx_graph import OptimizedGraph, with_precision
from nar_hw.runtimes.torch_compile import _fresh
from nar_hw.testing.runtimes import SHAPE, RuntimeConformance
from tests.networks import TinyResNet

COMPILED = ("torch_compile", "aoti")
compiles = pytest.mark.skipif("NAR_HW_SLOW_TESTS" not in os.environ, reason="compiles for half a minute: set NAR_HW_SLOW_TESTS=1")


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    network = TinyResNet(width=32)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    return network.eval()


@pytest.fixture(scope="module")
def onnx_path(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    export_onnx(module, path, input_shape=SHAPE)
    return path


@pytest.fixture(params=[pytest.param(name, marks=compiles if name in COMPILED else ()) for name in RUNTIMES])
def runtime(request: pytest.FixtureRequest) -> type[Runtime]:
    return runtime_class(request.param)


def test_each_is_registered_under_its_name_in_its_own_file(runtime: type[Runtime]) -> None:
    assert runtime_class(runtime.name) is runtime
    assert RUNTIMES[runtime.name].startswith(f"nar_hw.runtimes.{runtime.name.replace('-', '_')}:")


class TestRuntimes(RuntimeConformance):
    @pytest.fixture
    def network(self, runtime: type[Runtime], module: nn.Module, onnx_path: Path) -> tuple[nn.Module, nn.Module | Path]:
        return module, onnx_path if runtime.consumes == "onnx" else module


# Config and registry


def test_config_round_trips_through_json() -> None:
    config = RuntimeConfig(runtime="torch_eager", precision="bf16", batch=8, threads=4, device="cuda:1")
    assert RuntimeConfig(**json.loads(json.dumps(plain(config)))) == config
    assert (config.device_type, config.device_index) == ("cuda", 1)
    assert (RuntimeConfig().device_type, RuntimeConfig().device_index) == ("cpu", 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"memory_format": "nhwc"}, "unknown memory format 'nhwc'"),
        ({"device": "tpu"}, "device must be cpu, cuda or cuda:<index>, but got 'tpu'"),
        ({"device": "cpu:0"}, "device must be"),
        ({"device": "cuda:x"}, "device must be"),
        ({"batch": 0}, "batch must be at least 1, but got 0"),
        ({"threads": -1}, "threads must be at least 1, but got -1"),
    ],
)
def test_config_refuses_unknown_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RuntimeConfig(**values)


def test_unknown_runtime_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown runtime 'onnxrutime': use one of onnxruntime"):
        runtime_class("onnxrutime")


def test_survey_tells_of_every_runtime_what_works_or_why_not() -> None:
    rows = {row["name"]: row for row in survey()}
    assert json.loads(json.dumps(rows)) == rows
    assert list(rows) == list(RUNTIMES)
    assert rows["torch_eager"]["works"]
    assert "fp32" in rows["torch_eager"]["precisions"]
    assert rows["onnxruntime"]["versions"]["onnxruntime"]
    for row in rows.values():
        assert row["works"] == (row["reason"] is None) == bool(row["devices"]) == bool(row["precisions"])
    if not torch.cuda.is_available():
        assert not rows["cuda_graph"]["works"]
        assert "needs a CUDA device" in rows["cuda_graph"]["reason"]
        assert "\n" not in rows["cuda_graph"]["reason"]
        assert rows["torch_eager"]["devices"] == ["cpu"]


def test_a_missing_c_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    for name in COMPILED:
        reason = runtime_class(name).unavailable(RuntimeConfig(runtime=name))
        assert reason is not None
        assert f"{name} needs the C++ compiler no-such-compiler" in reason


def test_a_runtime_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, command in (("onnxruntime", "pip install onnxruntime-gpu"), ("openvino", r"pip install 'nar-hw\[openvino\]'")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(RuntimeUnavailableError, match=rf"^{name} is not installed: {command}[^\n]*$"):
            runtime_class(name)(Path("x.onnx"), SHAPE, RuntimeConfig(runtime=name))
        with pytest.raises(RuntimeUnavailableError, match=name):
            runtime_class(name).versions()
    assert not next(row for row in survey() if row["name"] == "openvino")["works"]


def test_layer_times_need_profiling(module: nn.Module) -> None:
    with (
        runtime_class("torch_eager")(module, SHAPE, RuntimeConfig(runtime="torch_eager")) as loaded,
        pytest.raises(RuntimeUnavailableError, match="loaded without profile=True"),
    ):
        loaded.layer_ms()


def test_batches_are_filled_up_and_cut() -> None:
    seen: list[int] = []

    def infer(images: np.ndarray) -> np.ndarray:
        seen.append(len(images))
        return images.sum(axis=(2, 3))

    images = preset_images(7, (2, 3, 3))
    np.testing.assert_allclose(in_batches(infer, images, 3, (2, 3, 3)), images.sum(axis=(2, 3)))
    assert seen == [3, 3, 3]
    with pytest.raises(ModelError, match="B > 0"):
        in_batches(infer, images[:0], 3, (2, 3, 3))


# torch


def test_eager_times_each_module_under_its_path(module: nn.Module) -> None:
    config = RuntimeConfig(runtime="torch_eager", memory_format="channels_last")
    with runtime_class("torch_eager")(module, SHAPE, config, profile=True) as loaded:
        loaded.run()
        (times,) = loaded.layer_ms()
    leaves = {f"{path}/{type(part).__name__}" for path, part in module.named_modules() if not list(part.children())}
    assert set(times) == leaves


def test_eager_times_follow_the_work() -> None:
    class Sleeper(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def forward(self, x: Tensor) -> Tensor:
            time.sleep(self.seconds)
            return x

    network = nn.Sequential(Sleeper(0.02), Sleeper(0.0), nn.Flatten())
    with runtime_class("torch_eager")(network, SHAPE, RuntimeConfig(runtime="torch_eager"), profile=True) as loaded:
        for _ in range(3):
            loaded.run()
        times = loaded.layer_ms()[-1]
    assert times["0/Sleeper"] >= 20.0
    assert times["1/Sleeper"] < times["0/Sleeper"] / 2


def test_networks_must_return_tensors() -> None:
    class Text(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return x, "x"

    with (
        runtime_class("torch_eager")(Text(), SHAPE, RuntimeConfig(runtime="torch_eager")) as loaded,
        pytest.raises(ModelError, match="must return a tensor, or several in a tuple or dict, but returns a str in a tuple of 2"),
    ):
        loaded.predict(preset_images(1, SHAPE))


def test_compile_keeps_more_children_of_one_class_than_its_cache_holds() -> None:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(len(compiled))
        return graph.forward

    limit = 3
    with torch._dynamo.config.patch(recompile_limit=limit), torch.inference_mode():
        for kernel in range(1, 2 * limit + 4, 2):
            network = nn.Sequential(nn.Conv2d(1, 1, kernel), nn.Flatten())
            torch.compile(_fresh(network), backend=backend, dynamic=False)(torch.zeros(1, 1, 9, 9))
    assert len(compiled) == limit + 2


# ONNX Runtime


def test_onnxruntime_takes_a_module_too(module: nn.Module) -> None:
    with runtime_class("onnxruntime")(module, SHAPE, RuntimeConfig()) as loaded:
        images = preset_images(1, SHAPE)
        with torch.inference_mode():
            expected = module(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(loaded.predict(images), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.filterwarnings("ignore")  # a build without CUDA also warns
def test_onnxruntime_never_falls_back_to_the_cpu(onnx_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU to run on")
    config = RuntimeConfig(device="cuda")
    with pytest.raises(RuntimeUnavailableError, match=r"^onnxruntime [^\n]*$"):
        runtime_class("onnxruntime")(onnx_path, SHAPE, config)
    monkeypatch.setattr(runtime_class("onnxruntime"), "_missing", classmethod(lambda cls, config: None))
    with pytest.raises(RuntimeUnavailableError, match="must run on CUDAExecutionProvider, but fell back to CPUExecutionProvider"):
        runtime_class("onnxruntime")(onnx_path, SHAPE, config)


def test_onnxruntime_profiles_kernels_on_the_cpu_only() -> None:
    assert runtime_class("onnxruntime").layers_on(RuntimeConfig())
    assert not runtime_class("onnxruntime").layers_on(RuntimeConfig(device="cuda"))


def test_onnxruntime_profile_names_the_fused_nodes(onnx_path: Path) -> None:
    """What it fuses and reorders depends on the CPU; what is left must have the exported names or stand for nothing."""
    exported = {node.name for node in onnx.load(onnx_path).graph.node}
    with runtime_class("onnxruntime")(onnx_path, SHAPE, RuntimeConfig(), profile=True) as loaded:
        loaded.run()
        (times,) = loaded.layer_ms()
        readers = loaded.producers()
        assert loaded.layer_ms() == [times]
    assert {name for name in times if not name.startswith("Reorder")} <= exported
    assert set(times) == set(readers)

    def sources(name: str) -> Iterator[str]:
        for source in readers[name]:
            yield source
            yield from sources(source)

    assert "layer1.conv1/Conv" in set(sources("layer1.conv2/Conv"))
    assert "layer1.conv2/Conv" not in set(sources("layer1.conv1/Conv"))


def write_onnx(
    path: Path, nodes: list[onnx.NodeProto], *, batch: int | str = "batch", inputs: int = 1, rank: int = 2, weights: Any = ()
) -> Path:
    names = ["input", "more"][:inputs]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *SHAPE]) for name in names],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def test_onnx_files_must_fit(tmp_path: Path) -> None:
    flatten = [helper.make_node("Flatten", ["input"], ["output"])]
    load = runtime_class("onnxruntime")
    fixed = write_onnx(tmp_path / "fixed.onnx", flatten, batch=1)
    with pytest.raises(ModelError, match=r"^[^\n]*fixed.onnx is for batch 1 only, but batch 2 is asked for: [^\n]*$"):
        load(fixed, SHAPE, RuntimeConfig(batch=2))
    with pytest.raises(ModelError, match=r"takes images of shape \(3, 32, 32\), but got \(3, 16, 16\)"):
        load(fixed, (3, 16, 16), RuntimeConfig())
    add = [helper.make_node("Add", ["input", "more"], ["output"])]
    with pytest.raises(ModelError, match="must have one input, but has input, more"):
        load(write_onnx(tmp_path / "two.onnx", add, inputs=2, rank=4), SHAPE, RuntimeConfig())
    with load(fixed, SHAPE, RuntimeConfig()) as loaded:
        images = preset_images(3, SHAPE)
        np.testing.assert_array_equal(loaded.predict(images), images.reshape(3, -1))


def test_a_file_must_have_the_precision_that_is_asked_for(tmp_path: Path) -> None:
    zero = [("scale", np.float32(0.1)), ("zero", np.int8(0))]
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["output"]),
    ]
    int8 = write_onnx(tmp_path / "int8.onnx", nodes, rank=4, weights=zero)
    fp32 = write_onnx(tmp_path / "fp32.onnx", [helper.make_node("Flatten", ["input"], ["output"])])
    assert with_precision(int8, "int8", tmp_path) == int8
    assert with_precision(fp32, "fp32", tmp_path) == fp32
    with pytest.raises(ModelError, match=r"int8.onnx computes in int8, but fp32 is asked for"):
        runtime_class("onnxruntime")(int8, SHAPE, RuntimeConfig())
    with pytest.raises(ModelError, match=r"fp32.onnx computes in fp32, but int8 is asked for"):
        runtime_class("onnxruntime")(fp32, SHAPE, RuntimeConfig(precision="int8"))
    images = preset_images(1, SHAPE)
    expected = np.clip(np.rint(images / np.float32(0.1)), -128, 127) * np.float32(0.1)
    with runtime_class("onnxruntime")(int8, SHAPE, RuntimeConfig(precision="int8")) as loaded:
        np.testing.assert_allclose(loaded.predict(images), expected.reshape(1, -1), atol=1e-6)


def test_fp16_converts_an_fp32_file(onnx_path: Path, module: nn.Module, tmp_path: Path) -> None:
    converted = with_precision(onnx_path, "fp16", tmp_path)
    assert converted.parent == tmp_path
    assert with_precision(converted, "fp16", tmp_path) == converted
    kinds = {tensor.data_type for tensor in onnx.load(converted).graph.initializer if len(tensor.dims) == 4}
    assert kinds == {TensorProto.FLOAT16}
    images = preset_images(2, SHAPE)
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).numpy()
    session = onnxruntime.InferenceSession(converted, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"input": images})[0], expected, atol=5e-3 * np.abs(expected).max())


REORDER = "ReorderOutput (a.bn/BatchNormalization)"


def test_names_of_the_optimized_graph(tmp_path: Path) -> None:
    """The names that ONNX Runtime 1.31 gives on a CPU with blocked layouts, on a graph written down by hand."""
    node = helper.make_node
    exported = [
        node("Conv", ["input", "w"], ["a.conv1/Conv:0"], "a.conv1/Conv"),
        node("Relu", ["a.conv1/Conv:0"], ["a.relu/Relu:0"], "a.relu/Relu"),
        node("MaxPool", ["a.relu/Relu:0"], ["a.pool/MaxPool:0"], "a.pool/MaxPool", kernel_shape=[3, 3]),
        node("BatchNormalization", ["a.pool/MaxPool:0", *"bbbb"], ["a.bn/BatchNormalization:0"], "a.bn/BatchNormalization"),
        node("HardSwish", ["a.bn/BatchNormalization:0"], ["a.act/HardSwish:0"], "a.act/HardSwish"),
        node("Flatten", ["a.act/HardSwish:0"], ["output"], "Flatten"),
    ]
    weights = [("w", np.zeros((8, 3, 3, 3), np.float32)), ("b", np.ones(8, np.float32))]
    write_onnx(tmp_path / "exported.onnx", exported, weights=weights)
    blocked = {"domain": "com.microsoft.nchwc"}
    optimized = [
        node("Conv", ["input", "r"], ["t0"], "a.relu/Relu:0_nchwc", **blocked),
        node("MaxPool", ["t0"], ["t1"], "a.pool/MaxPool:0_nchwc", **blocked),
        node("Conv", ["t1", "s"], ["t2"], "a.bn/BatchNormalization:0_bn_nchwc", **blocked),
        node("ReorderOutput", ["t2"], ["a.bn/BatchNormalization:0"], "ReorderOutput", **blocked),
        node("HardSigmoid", ["a.bn/BatchNormalization:0"], ["inner"], ""),
        node("Mul", ["a.bn/BatchNormalization:0", "inner"], ["a.act/HardSwish:0"], ""),
        node("Flatten", ["a.act/HardSwish:0"], ["output"], "Flatten"),
    ]
    onnx.save(helper.make_model(helper.make_graph(optimized, "g", [], [])), tmp_path / "optimized.onnx")
    profiled = [*(item.name for item in optimized[:4]), "HardSigmoid_7", "Mul_8", "Flatten"]
    graph = OptimizedGraph(tmp_path / "exported.onnx", onnx.load(tmp_path / "optimized.onnx").graph.node, profiled)
    names = ["a.conv1/Conv", "a.pool/MaxPool", "a.bn/BatchNormalization", REORDER, "HardSigmoid_7", "a.act/HardSwish"]
    assert graph.renamed({name: float(ms) for ms, name in enumerate(profiled)}) == {
        name: float(ms) for ms, name in enumerate([*names, "Flatten"])
    }
    assert graph.producers() == {
        "a.conv1/Conv": [],
        "a.pool/MaxPool": ["a.conv1/Conv"],
        "a.bn/BatchNormalization": ["a.pool/MaxPool"],
        REORDER: ["a.bn/BatchNormalization"],
        "HardSigmoid_7": [REORDER],
        "a.act/HardSwish": [REORDER, "HardSigmoid_7"],
        "Flatten": ["a.act/HardSwish"],
    }


# The fake device

FAKE = RuntimeConfig(runtime="fake")


def nodes_of(network: nn.Module, device: FakeDevice) -> dict[str, float]:
    """Node name -> exact ms."""
    with FakeRuntime.on(device), FakeRuntime(network, SHAPE, FAKE, profile=True) as loaded:
        loaded.run()
        return loaded.layer_ms()[0]


def test_fake_costs_follow_their_formula() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 5, 1, 2, groups=8), nn.MaxPool2d(3, 1, 1))
    device = FakeDevice(noise=0.0, interaction=0.1, fixed_ms=0.5)
    written = 8 * 16 * 16
    dense = 0.004 + written * 3 * 9 / 4e7 + (3 * 32 * 32 + written) / 2e6
    depthwise = 0.004 + 8 * written * 25 / 4e7 + 2 * written / 2e6
    pool = 0.004 + 4 * written * 9 / 4e7 + 2 * written / 2e6
    expected = {
        "0/Conv2d": dense,
        "ReorderInput_1": 0.1 * (dense + depthwise),
        "1/Conv2d": depthwise,
        "ReorderInput_3": 0.1 * (depthwise + pool),
        "2/MaxPool2d": pool,
    }
    assert nodes_of(network, device) == pytest.approx(expected)
    assert FakeRuntime.truth(network, SHAPE, device=device) == pytest.approx(0.5 + sum(expected.values()))
    with FakeRuntime.on(device), FakeRuntime(network, SHAPE, FAKE) as loaded:
        assert loaded.time_ms(3) == pytest.approx([0.5 + sum(expected.values())] * 3)
        chain = {after: [before] for before, after in itertools.pairwise(expected)}
        assert loaded.producers() == {"0/Conv2d": [], **chain}


def test_fake_is_additive_up_to_its_interaction(module: nn.Module) -> None:
    other = TinyResNet(width=32)
    other.layer1.conv2 = nn.Sequential(nn.Conv2d(32, 32, 1), nn.MaxPool2d(3, 1, 1))  # type: ignore[assignment]
    for interaction in (0.0, 0.05):
        device = FakeDevice(noise=0.0, interaction=interaction)
        base, swapped = nodes_of(module, device), nodes_of(other, device)
        shared = {name for name in base if "conv2" not in name or "layer2" in name} & set(swapped)
        assert {name for name in base if not name.startswith("Reorder")} - shared == {"layer1.conv2/Conv2d"}
        assert all(base[name] == pytest.approx(swapped[name]) for name in shared if not name.startswith("Reorder"))
        assert any(name.startswith("Reorder") for name in swapped) == (interaction > 0)


def test_fake_times_scatter_as_told_and_repeat_exactly(module: nn.Module) -> None:
    device = FakeDevice(noise=0.02, seed=3)
    with FakeRuntime.on(device), FakeRuntime(module, SHAPE, FAKE) as loaded:
        first = loaded.time_ms(2000)
        with FakeRuntime(module, SHAPE, FAKE) as again:
            assert again.time_ms(5) != first[:5]
    with FakeRuntime.on(device), FakeRuntime(module, SHAPE, FAKE) as loaded:
        assert loaded.time_ms(2000) == first
    truth = FakeRuntime.truth(module, SHAPE, device=device)
    assert np.median(first) == pytest.approx(truth, rel=0.003)
    assert np.std(np.log(first)) == pytest.approx(0.02, rel=0.1)


def test_fake_machine_drifts_for_all_alike(module: nn.Module) -> None:
    device = FakeDevice(noise=0.0, drift=0.3, period_ms=200.0)
    with FakeRuntime.on(device), FakeRuntime(module, SHAPE, FAKE) as one, FakeRuntime(module, SHAPE, FAKE) as two:
        pairs = np.array([(one.time_ms(1)[0], two.time_ms(1)[0]) for _ in range(1000)])
    truth = FakeRuntime.truth(module, SHAPE, device=device)
    assert pairs.min() == pytest.approx(0.7 * truth, rel=0.01)
    assert pairs.max() == pytest.approx(1.3 * truth, rel=0.01)
    assert np.abs(pairs[:, 0] / pairs[:, 1] - 1).max() < 0.05


def test_fake_profiling_costs_what_it_is_told(module: nn.Module) -> None:
    device = FakeDevice(noise=0.0, profiling_ms=0.01)
    with FakeRuntime.on(device), FakeRuntime(module, SHAPE, FAKE, profile=True) as loaded:
        (ms,) = loaded.time_ms(1)
        (layers,) = loaded.layer_ms()
        nodes = sum(1 + (name == "layer1.relu/ReLU" or name == "layer2.relu/ReLU") for name in layers)  # run twice each
    assert ms == pytest.approx(FakeRuntime.truth(module, SHAPE, device=device) + 0.01 * nodes)
    assert sum(layers.values()) == pytest.approx(ms - device.fixed_ms)


def test_fake_batch_scales_the_work(module: nn.Module) -> None:
    device = FakeDevice(launch_ms=0.0, fixed_ms=0.0)
    one, eight = (FakeRuntime.truth(module, SHAPE, batch=batch, device=device) for batch in (1, 8))
    assert eight == pytest.approx(8 * one)


def test_fake_faults(module: nn.Module) -> None:
    def times(fault: str) -> np.ndarray:
        with FakeRuntime.on(FakeDevice(noise=0.0, fault=fault)), FakeRuntime(module, SHAPE, FAKE) as loaded:
            return np.array(loaded.time_ms(40)) / FakeRuntime.truth(module, SHAPE)

    assert np.isnan(times("nan")).all()
    assert (times("zero") == 0).all()
    assert times("negative") == pytest.approx(-1)
    assert np.diff(times("drifting")) == pytest.approx(0.1)
    assert {round(float(value), 6) for value in times("bimodal")} == {1.0, 1.8}
    assert set(FAULTS) == {"", "nan", "zero", "negative", "drifting", "bimodal"}
    with pytest.raises(UnknownNameError, match="unknown fault 'slow'"):
        FakeDevice(fault="slow")


@pytest.mark.parametrize(("channels", "nodes"), [(32, 2), (20, 4)])
def test_changes_of_layout_belong_to_the_pool_that_needs_them(channels: int, nodes: int) -> None:
    """20 channels are no whole blocks: ONNX Runtime leaves its layout before the pool and comes back behind it.

    The operator is a 1x1 convolution and the pool.
    """
    from nar_hw.latency.in_context import Join
    from nar_hw.latency.journal import ChildTimes
    from nar_hw.space.space import SearchSpace

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            convs = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
            self.layers = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), *(nn.Sequential(conv) for conv in convs))
            self.fc = nn.Linear(channels, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.layers(x).mean((2, 3)))

    space = SearchSpace.from_model(Chain(), (3, 16, 16), limit_params=False)
    archs = [space.incumbent, space.parse("conv3x3,max3x3,conv3x3")]
    seen = []
    for arch in archs:
        with runtime_class("onnxruntime")(space.build(arch).eval(), (3, 16, 16), RuntimeConfig(), profile=True) as loaded:
            loaded.time_ms(2)
            runs, producers = loaded.layer_ms(), loaded.producers()
        layers = {name: np.array([run[name] for run in runs]) for name in runs[0]}
        seen.append(ChildTimes(whole=np.ones(2), layers=layers, producers=producers))
    counts = {site: len(found) for site, found in Join(space, seen).nodes(seen[1]).items()}
    assert counts == {"layers.2.0": 1, "layers.3.0": nodes, "layers.4.0": 1}, list(seen[1].layers)


def test_a_runtime_that_computes_something_else_is_named(
    onnx_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ncnn")
    from nar_hw.device.ncnn import NcnnNetwork
    from nar_hw.export.ncnn import save_ncnn

    original = NcnnNetwork.infer
    monkeypatch.setattr(NcnnNetwork, "infer", lambda network, images: original(network, images) * 1.001)
    with pytest.raises(ExportError, match=r"^ncnn computes something else than [^\n]* but differ by 0.001: use another"):
        save_ncnn(onnx_path, tmp_path / "model.ncnn.param", SHAPE)
    assert list(tmp_path.iterdir()) == []


def test_ncnn_takes_one_image_at_a_time(module: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    export_onnx(module, tmp_path / "two.onnx", input_shape=SHAPE, batch=2)
    with pytest.raises(ModelError, match=r"^ncnn takes one image at a time, but [^\n]*two.onnx is for batch 2 only"):
        runtime_class("ncnn")(tmp_path / "two.onnx", SHAPE, RuntimeConfig(runtime="ncnn"))
