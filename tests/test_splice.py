"""Spliced children against direct exports of the built children: same nodes, same names, same numbers."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torchvision
from hypothesis import given, settings, strategies as st
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from nar_hw.errors import ExportError, SpaceError
from nar_hw.export.graph import CHILD_WEIGHTS
from nar_hw.export.leaves import LAYERS, emit
from nar_hw.export.onnx import export_onnx, open_session, run_session, run_torch
from nar_hw.export.splice import ChildExporter
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import OpSpec
from tests.networks import TinyResNet

Node = tuple[str, str, tuple[tuple[str, str], ...]]


def unsettle(network: nn.Module) -> None:
    """Norms as training leaves them: an identity norm would hide a fold that goes wrong."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                nn.init.normal_(module.weight)  # negative scales too
                nn.init.normal_(module.bias)


def nodes(proto: onnx.ModelProto) -> list[Node]:
    def attributes(node: onnx.NodeProto) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((item.name, str(onnx.helper.get_attribute_value(item))) for item in node.attribute))

    return [(node.name, node.op_type, attributes(node)) for node in proto.graph.node]


def assert_computes(path: Path, network: nn.Module, shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    reference = run_torch(network, images)
    np.testing.assert_allclose(run_session(open_session(path), images), reference, atol=1e-4 * abs(reference).max())


def assert_same_as_direct(space: SearchSpace, exporter: ChildExporter, arch: tuple[int, ...], folder: Path) -> onnx.ModelProto:
    child = space.build(arch).eval()
    unsettle_slots(space, child)
    export_onnx(child, folder / "direct.onnx", input_shape=space.input_shape)
    direct, spliced = onnx.load(folder / "direct.onnx"), exporter.model(arch, child)
    assert nodes(spliced) == nodes(direct)
    onnx.checker.check_model(spliced, full_check=True)
    (folder / "spliced.onnx").write_bytes(spliced.SerializeToString())
    assert_computes(folder / "spliced.onnx", child, space.input_shape)
    return spliced


def unsettle_slots(space: SearchSpace, child: nn.Module) -> None:
    for slot in space.slots:
        for site in slot.sites:
            for path in (site.conv, site.norm):
                if path is not None:
                    unsettle(child.get_submodule(path))


@pytest.fixture(scope="module", params=["conv", "block"])
def small(request: pytest.FixtureRequest) -> tuple[SearchSpace, ChildExporter]:
    torch.manual_seed(0)
    network = TinyResNet()
    unsettle(network)
    space = SearchSpace.from_model(network, (3, 16, 16), manner=request.param, limit_params=False)
    return space, ChildExporter(space)


def test_children_equal_their_direct_export(small: tuple[SearchSpace, ChildExporter], tmp_path: Path) -> None:
    space, exporter = small
    for turn in (0, 2, 4) if space.manner == "conv" else (1,):  # manner conv: every operator twice
        arch = tuple(slot.candidates[(turn + position) % len(slot.candidates)] for position, slot in enumerate(space.slots))
        assert_same_as_direct(space, exporter, arch, tmp_path)


def test_the_incumbent_keeps_the_networks_weights(small: tuple[SearchSpace, ChildExporter], tmp_path: Path) -> None:
    space, exporter = small
    exporter.export(space.incumbent, tmp_path / "spliced.onnx")
    assert_computes(tmp_path / "spliced.onnx", space.model, space.input_shape)


def test_every_node_of_a_site_is_called_after_it(small: tuple[SearchSpace, ChildExporter]) -> None:
    space, exporter = small
    arch = tuple(slot.candidates[2 % len(slot.candidates)] for slot in space.slots)
    assert space.operators[arch[0]] == "max3x3"
    names = [node.name for node in exporter.model(arch).graph.node]
    assert len(set(names)) == len(names)
    for slot in space.slots:
        for site in slot.sites:
            first = names.index(f"{site.conv}.0/Conv")
            assert names[first + 1 : first + 3] == [f"{site.conv}.1/MaxPool", f"{site.norm}/BatchNormalization"]


def test_one_child_twice_is_the_same_file(small: tuple[SearchSpace, ChildExporter], tmp_path: Path) -> None:
    space, exporter = small
    arch = space.sample(random.Random(3))
    before = torch.random.get_rng_state()
    exporter.export(arch, tmp_path / "first.onnx")
    ChildExporter(space).export(arch, tmp_path / "second.onnx")
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_child_costs_milliseconds(small: tuple[SearchSpace, ChildExporter], tmp_path: Path) -> None:
    space, exporter = small
    rng = random.Random(0)
    archs = [space.sample(rng) for _ in range(20)]
    for arch in archs:
        exporter.export(arch, tmp_path / "child.onnx")
    start = time.perf_counter()
    for arch in archs:
        exporter.export(arch, tmp_path / "child.onnx")
    assert (time.perf_counter() - start) / len(archs) < 0.1  # a direct export takes longer than 0.5 s
    assert exporter.model(space.incumbent).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_depthwise_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.MobileNetV2(7, width_mult=0.25, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]])
    unsettle(network)
    space = SearchSpace.from_model(network, (3, 32, 32))
    operators = {space.operators[code] for slot in space.slots for code in slot.candidates}
    assert {"depthwise3x3", "plainmax3x3", "plainavg3x3"} <= operators
    exporter = ChildExporter(space)
    arch = tuple(space.operators.index(name) for name in ("plainmax3x3", "plainavg3x3", "depthwise3x3"))
    proto = assert_same_as_direct(space, exporter, arch, tmp_path)
    assert {"Conv", "MaxPool", "AveragePool", "BatchNormalization", "Clip"} <= {node.op_type for node in proto.graph.node}


class Odd(nn.Module):
    """Sites with a bias, without a norm, of other classes than nn.Conv2d, called twice, with a norm that does not track."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.biased = nn.Conv2d(8, 8, 3, 1, 1)
        self.bare = nn.Conv2d(8, 8, 3, 2, 1, bias=False)
        self.twice = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.alias = self.twice
        self.shared_norm = nn.BatchNorm2d(8)
        self.two_norms = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.circular = nn.Conv2d(8, 8, 3, 1, 1, padding_mode="circular")
        self.standardized = Standardized(8, 8, 3, 1, 1)
        self.batch_statistics = nn.BatchNorm2d(8, track_running_stats=False)
        self.plain_norm = nn.BatchNorm2d(8, affine=False)
        self.last = nn.Conv2d(8, 4, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.biased(self.stem(x)))
        x = torch.relu(self.bare(x))
        x = torch.relu(self.shared_norm(self.twice(x)))
        x = torch.relu(self.shared_norm(self.alias(x)))
        x = torch.relu(self.norms[0](self.two_norms(x)))
        x = torch.relu(self.norms[1](self.two_norms(x)))
        x = self.batch_statistics(self.circular(x))
        x = self.plain_norm(self.standardized(x))
        return self.last(torch.relu(x)).flatten(2).mean(2)


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


def gated(spec: OpSpec) -> nn.Module:
    return Gated(spec.c_in, spec.c_out, spec.stride)


class Gated(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.value = nn.Conv2d(c_in, c_out, 1, stride)
        self.gate = nn.Conv2d(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * torch.sigmoid(self.gate(x))


def hooked() -> nn.Module:
    layer = nn.Conv2d(4, 4, 1)
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


def pass_through(spec: OpSpec) -> nn.Module:
    return (
        nn.Identity() if spec.stride == (1, 1) and spec.c_in == spec.c_out else nn.Conv2d(spec.c_in, spec.c_out, 1, spec.stride)
    )


def test_odd_sites_and_operators_of_ones_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Odd()
    unsettle(network)
    operators = ["conv3x3", "max3x3", gated, pass_through]
    space = SearchSpace.from_model(
        network, (3, 12, 12), operators=operators, limit_params=False, slots=lambda path, _: path != "stem"
    )
    sites = [slot.sites[0] for slot in space.slots]
    assert [site.conv for site in sites] == ["biased", "bare", "twice", "two_norms", "circular", "standardized", "last"]
    assert [len(site.calls) for site in sites] == [1, 1, 2, 2, 1, 1, 1]
    exporter = ChildExporter(space)
    own = [space.operators.index(name) for name in ("max3x3", "gated", "pass_through")]
    for turn in (2, 3):
        kinds = [(turn + position) % 4 for position in range(len(sites))]
        arch = tuple(slot.incumbent if kind == 3 else own[kind] for kind, slot in zip(kinds, space.slots, strict=True))
        assert_same_as_direct(space, exporter, arch, tmp_path)


class Cropping(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., 1:, 1:]


def test_a_convolution_that_sizes_its_output_on_its_own_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), Cropping(4, 4, 3, padding=1))
    space = SearchSpace.from_model(network, (3, 8, 8))
    with pytest.raises(ExportError, match="2 must change the image size as a strided convolution does"):
        ChildExporter(space)


class Padding(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (2, 2, 2, 2)))


def test_a_convolution_that_pads_an_image_smaller_than_its_kernel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), Padding(4, 4, 5), nn.Flatten(), nn.Linear(64, 5))
    space = SearchSpace.from_model(network, (3, 4, 4), limit_params=False)
    assert [site.conv for slot in space.slots for site in slot.sites] == ["2"]
    exporter = ChildExporter(space)
    exporter.export(space.incumbent, tmp_path / "child.onnx")
    assert_computes(tmp_path / "child.onnx", network.eval(), (3, 4, 4))


def test_an_arch_of_another_space_is_refused(small: tuple[SearchSpace, ChildExporter], tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="one code per slot"):
        small[1].export((0,), tmp_path / "child.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, divisor_override=4),
        nn.BatchNorm2d(4, affine=False),
        nn.Tanh(),
        torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1)),
        hooked(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_need_the_exporter_are_left_to_it(layer: nn.Module) -> None:
    images = torch.zeros(2, 4, 6, 6)
    assert emit(nn.Sequential(nn.Conv2d(4, 4, 1), layer).eval(), images) is None
    assert emit(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()).eval(), images) is not None


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(["conv", "valid", "max", "average", "norm", "relu"]),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    seed=st.integers(0, 2**16),
)
def test_plain_layers_are_written_as_torch_computes_them(kind: str, kernel: int, stride: int, dilation: int, seed: int) -> None:
    torch.manual_seed(seed)
    layers: dict[str, Callable[[], nn.Module]] = {
        "conv": lambda: nn.Conv2d(4, 6, (kernel, 1), stride, (kernel // 2, 1), (dilation, 1), groups=2),
        "valid": lambda: nn.Conv2d(4, 6, kernel, stride, "valid", bias=False),
        "max": lambda: nn.MaxPool2d(kernel, stride, kernel // 2, dilation),
        "average": lambda: nn.AvgPool2d((kernel, 3), stride, (kernel // 2, 1), count_include_pad=kernel % 2 == 0),
        "norm": lambda: nn.BatchNorm2d(4),
        "relu": nn.ReLU,
    }
    layer = layers[kind]()
    assert type(layer) in LAYERS
    unsettle(layer)
    x = torch.randn(2, 4, 11, 9)
    with torch.no_grad():
        expected = layer.eval()(x).numpy()
    graph = emit(layer, x)
    assert graph is not None
    graph.opset_imports[""] = 18
    graph.inputs[0].type = graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    proto = ir.to_proto(ir.Model(graph, ir_version=10))
    (outputs,) = ReferenceEvaluator(proto).run(None, {"input": x.numpy()})
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_children_whose_weights_lie_beside_them_compute_the_same(runtime: str, tmp_path: Path) -> None:
    config = RuntimeConfig(runtime=runtime)
    if reason := runtime_class(runtime).unavailable(config):
        pytest.skip(reason)
    shape = (3, 16, 16)
    space = SearchSpace.from_model(TinyResNet(), shape, operators=["conv3x3", "dwsep3x3", "max3x3"])
    whole, beside = ChildExporter(space, batch=1), ChildExporter(space, batch=1, weights_in=tmp_path)
    images = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    held = 0
    for number, arch in enumerate([space.incumbent, (1, 2, 0, 1), (1, 2, 0, 1), (2, 0, 1, 0)]):
        files = {"whole": tmp_path / f"whole{number}.onnx", "beside": tmp_path / f"beside{number}.onnx"}
        whole.export(arch, files["whole"])
        beside.export(arch, files["beside"])
        outputs = {}
        for name, file in files.items():
            with runtime_class(runtime)(file, shape, config) as network:
                outputs[name] = network.predict(images)
        np.testing.assert_array_equal(outputs["beside"], outputs["whole"])
        assert files["beside"].stat().st_size < files["whole"].stat().st_size
        if number == 2:  # the same child again puts nothing aside
            assert (tmp_path / CHILD_WEIGHTS).stat().st_size == held
        held = (tmp_path / CHILD_WEIGHTS).stat().st_size
