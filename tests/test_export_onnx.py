"""ONNX files: what is in them, that they compute what torch computes, and what happens when they do not."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings, strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from nar_hw.errors import ExportError
from nar_hw.export.calibration import Calibration
from nar_hw.export.graph import fold_norms
from nar_hw.export.leaves import emit
from nar_hw.export.onnx import compare, export_onnx, open_session, run_session, run_torch, verify_onnx, write_model
from nar_hw.export.quantize import precision_of, to_bf16, to_fp16, to_int8, to_symmetric
from nar_hw.space.space import SearchSpace
from tests.networks import TinyResNet

SHAPE = (3, 8, 8)


def unsettle(network: nn.Module) -> nn.Module:
    """Norms as training leaves them, with negative scales: a norm that changes nothing would hide a wrong fold."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return network


def images(count: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)


@pytest.fixture(scope="module")
def child() -> nn.Module:
    """One of each operator: dwsep3x3, max3x3, avg3x3, conv3x3."""
    torch.manual_seed(0)
    space = SearchSpace.from_model(TinyResNet(), SHAPE)
    return unsettle(space.build((1, 2, 3, 0)))


@pytest.fixture(scope="module")
def exported(child: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "child.onnx"
    export_onnx(child, path, input_shape=SHAPE, metadata={"classes": ["a", "b"], "note": "über"})
    return path


def test_every_node_is_called_after_its_module(exported: Path) -> None:
    assert [node.name for node in onnx.load(exported).graph.node] == [
        "conv1/Conv",
        "Relu",
        "layer1.conv1.0/Conv",
        "layer1.conv1.1/Conv",
        "layer1.relu/Relu",
        "layer1.conv2.0/Conv",
        "layer1.conv2.1/MaxPool",
        "layer1.bn2/BatchNormalization",  # a maximum does not commute with a negative scale
        "layer1/Add",
        "layer1.relu/Relu_1",
        "layer2.conv1.0/Conv",
        "layer2.conv1.1/AveragePool",  # its norm is in the convolution
        "layer2.relu/Relu",
        "layer2.conv2/Conv",
        "layer2.skip.0/Conv",
        "layer2/Add",
        "layer2.relu/Relu_1",
        "ReduceMean",
        "fc/Gemm",
    ]


def test_it_computes_what_torch_computes_for_any_batch(exported: Path, child: nn.Module) -> None:
    for count in (1, 5, 64, 100):
        found = verify_onnx(exported, child, images(count))
        assert found["max_abs_error"] <= found["tolerance"] == pytest.approx(1e-5 * found["reference_scale"])


def test_it_holds_its_properties_and_nothing_of_this_machine(exported: Path, child: nn.Module) -> None:
    proto = onnx.load(exported)
    assert {entry.key: entry.value for entry in proto.metadata_props} == {"classes": '["a", "b"]', "note": "über"}
    assert (proto.producer_name, proto.opset_import[0].version) == ("nar_hw", 18)
    data = exported.read_bytes()
    for trace in (b"site-packages", b"test_export_onnx", b"networks.py", b"torch", b"forward"):
        assert trace not in data
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)
    assert [tensor.name for tensor in proto.graph.initializer if tensor.name.startswith("layer2.conv2")] == [
        "layer2.conv2.weight",
        "layer2.conv2.bias",
    ]


def test_exporting_twice_gives_the_same_bytes_and_leaves_the_network_and_the_console_alone(
    exported: Path, child: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    child.train()
    child.get_submodule("bn1").eval()
    modes = [module.training for module in child.modules()]
    before = {name: tensor.clone() for name, tensor in child.state_dict().items()}
    random_state = torch.random.get_rng_state()
    export_onnx(child, tmp_path / "again.onnx", input_shape=SHAPE, metadata={"classes": ["a", "b"], "note": "über"})
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()
    assert [module.training for module in child.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in child.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert [file.name for file in tmp_path.iterdir()] == ["again.onnx"]
    assert capfd.readouterr() == ("", "")
    child.eval()


class Layers(nn.Module):
    """A convolution called twice with one norm, a norm behind a linear layer that is the network's output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)
        self.last = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.norm(self.twice(x)))
        x = torch.relu(self.norm(self.twice(x)))
        return self.last(self.fc(x.mean((2, 3))))


def test_shared_layers_and_a_norm_at_the_end_are_folded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = unsettle(Layers())
    path = tmp_path / "layers.onnx"
    export_onnx(network, path, input_shape=SHAPE, batch=4)
    graph = onnx.load(path).graph
    assert [node.name for node in graph.node if node.op_type in ("Conv", "Gemm", "BatchNormalization")] == [
        "stem/Conv",
        "twice/Conv",
        "twice/Conv_1",
        "fc/Gemm",
    ]
    shapes = sorted(tuple(tensor.dims) for tensor in graph.initializer if len(tensor.dims) == 4)
    assert shapes == [(4, 3, 3, 3), (4, 4, 3, 3)]  # the shared weights are there once
    assert [value.type.tensor_type.shape.dim[0].dim_value for value in (graph.input[0], graph.output[0])] == [4, 4]
    assert (graph.input[0].name, graph.output[0].name) == ("input", "output")
    verify_onnx(path, network, images(6))  # a fixed batch of 4 is filled up


POOLS = st.sampled_from(["none", "average", "padded average", "average without padding", "maximum"])


@settings(deadline=None, max_examples=40)
@given(
    pool=POOLS,
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 3)]),
    stride=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**16),
)
def test_folding_never_changes_the_outputs(
    pool: str, groups: int, bias: bool, kernel: tuple[int, int], stride: int, seed: int
) -> None:
    torch.manual_seed(seed)
    padding = (kernel[0] // 2, kernel[1] // 2)
    pools = {
        "none": nn.Identity(),
        "average": nn.AvgPool2d(3, stride, 1, count_include_pad=False),
        "padded average": nn.AvgPool2d(3, stride, 1),
        "average without padding": nn.AvgPool2d(2, stride),
        "maximum": nn.MaxPool2d(3, stride, 1),
    }
    operator = nn.Sequential(nn.Conv2d(4, 8, kernel, 1, padding, groups=groups, bias=bias), pools[pool], nn.BatchNorm2d(8)).eval()
    unsettle(operator)
    x = torch.randn(2, 4, 7, 6)
    with torch.no_grad():
        expected = operator(x).numpy()
    graph = emit(operator, x)
    assert graph is not None
    fold_norms(graph)
    kept = [node.op_type for node in graph]
    assert ("BatchNormalization" in kept) == (pool in ("padded average", "maximum"))
    graph.inputs[0].type = graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.opset_imports[""] = 18
    session = ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=10)))
    (outputs,) = session.run(None, {"input": x.numpy()})
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (Branching(), {}, r"cannot be exported to ONNX: .*data-dependent"),
        (nn.Conv2d(3, 4, 1), {"batch": (0, 4)}, r"1 <= fewest <= most, but got \(0, 4\)"),
        (nn.Conv2d(3, 4, 1), {"batch": (5, 4)}, r"1 <= fewest <= most, but got \(5, 4\)"),
        (nn.Conv2d(3, 4, 1), {"outputs": ("a", "b")}, "must give 2 tensors to be exported, but gives 1"),
        (nn.Conv2d(5, 4, 1), {}, "cannot be exported to ONNX: "),
        (nn.Linear(40_000, 20_000, device="meta"), {}, "at most 2 GiB, but the network's weights take 3.0 GiB"),
    ],
    ids=["branching", "batch 0", "batch range", "outputs", "channels", "2 GiB"],
)
def test_what_cannot_be_exported_is_told_in_one_line(
    network: nn.Module, options: dict[str, Any], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        export_onnx(network, tmp_path / "network.onnx", input_shape=SHAPE, **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_an_invalid_graph_is_not_written(exported: Path, tmp_path: Path) -> None:
    proto = onnx.load(exported)
    proto.graph.node[1].input[0] = "nowhere"
    with pytest.raises(ExportError, match="not valid ONNX"):
        write_model(proto, tmp_path / "bad.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_network_does_not_pass(exported: Path, child: nn.Module) -> None:
    torch.manual_seed(1)
    other = SearchSpace.from_model(TinyResNet(), SHAPE).build((1, 2, 3, 0))
    with pytest.raises(ExportError, match=r"must agree with torch within .* but differs by"):
        verify_onnx(exported, other, images(2))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([[1.0, np.nan]], "differs by nan"),
        ([[1.0, 2.0 + 3e-5]], "differs by 3e-05"),
        ([[1.0, 2.0, 3.0]], r"shape \(1, 2\), but gives \(1, 3\)"),
    ],
)
def test_outputs_that_differ_are_refused(outputs: list[list[float]], message: str) -> None:
    reference = np.array([[1.0, 2.0]])
    with pytest.raises(ExportError, match=message):
        compare(np.array(outputs), reference, tolerance=1e-5)
    assert compare(np.array([[1.0, 2.0 + 1e-5]]), reference, tolerance=1e-5)["reference_scale"] == 2.0


def test_a_file_that_onnx_runtime_rejects_is_an_export_error(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not onnx")
    with pytest.raises(ExportError, match="ONNX Runtime must be able to load"):
        open_session(tmp_path / "bad.onnx")


def test_sessions_run_in_batches(exported: Path, child: nn.Module) -> None:
    many = images(7)
    np.testing.assert_allclose(run_session(open_session(exported), many, batch=3), run_torch(child, many, batch=2), atol=1e-4)


class Pooled(nn.Module):
    """A pool with ceil_mode behind a convolution."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.stem(x)).flatten(1)


CEIL_POOLS = {
    "maximum": nn.MaxPool2d(2, 2, 1, ceil_mode=True),
    "mean of pixels": nn.AvgPool2d(2, 3, 1, ceil_mode=True, count_include_pad=False),
    "mean with padding": nn.AvgPool2d(3, 3, 1, ceil_mode=True),
}


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("kind", CEIL_POOLS)
def test_pools_whose_last_window_starts_in_the_padding_are_padded_explicitly(kind: str, size: int, tmp_path: Path) -> None:
    network, path = Pooled(CEIL_POOLS[kind]).eval(), tmp_path / "pool.onnx"
    export_onnx(network, path, input_shape=(3, size, size))
    verify_onnx(path, network, images(3, (3, size, size)))
    model = onnx.load(path)
    (pool,) = (node for node in model.graph.node if node.op_type in ("MaxPool", "AveragePool"))
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in pool.attribute}
    assert given["ceil_mode"] == 0
    inferred = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim[1].dim_value
    with torch.inference_mode():
        assert inferred == network(torch.zeros(1, 3, size, size)).shape[1]


def test_pools_that_no_padding_suits_for_all_sizes_are_refused(tmp_path: Path) -> None:
    class Any2d(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = nn.functional.max_pool2d(x, 2, 2, 1, ceil_mode=True)
            return y, y.mean((2, 3))

    with pytest.raises(ExportError, match="has ceil_mode and windows that depend on the image size: use floor, or one size"):
        export_onnx(Any2d(), tmp_path / "x.onnx", input_shape=SHAPE, outputs=("map", "output"), larger=True)


def test_equations_are_written_as_tensorrt_reads_them(tmp_path: Path) -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.flatten(2)
            return torch.einsum("B C N, B D N -> B C D", y, y).flatten(1)

    export_onnx(Attention(), tmp_path / "x.onnx", input_shape=SHAPE)
    verify_onnx(tmp_path / "x.onnx", Attention(), images(3))
    (node,) = (node for node in onnx.load(tmp_path / "x.onnx").graph.node if node.op_type == "Einsum")
    assert onnx.helper.get_attribute_value(node.attribute[0]) == b"abc,adc->abd"


class Normed(nn.Module):
    """A layer norm over channels, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.norm = nn.LayerNorm(16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x).permute(0, 2, 3, 1))
        return self.fc(torch.nn.functional.gelu(x).mean((1, 2)))


def test_other_precisions_are_valid_onnx_too_and_are_made_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = Normed().eval()
    export_onnx(network, tmp_path / "fp32.onnx", input_shape=SHAPE)
    for name, convert in {"fp16": to_fp16, "bf16": to_bf16, "int8": partial(to_int8, images=images(8))}.items():
        convert(tmp_path / "fp32.onnx", tmp_path / f"{name}.onnx")
        onnx.checker.check_model(str(tmp_path / f"{name}.onnx"), full_check=True)
    to_symmetric(tmp_path / "int8.onnx", tmp_path / "signed.onnx")
    onnx.checker.check_model(str(tmp_path / "signed.onnx"), full_check=True)
    assert capfd.readouterr() == ("", "")
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    (norm,) = (node for node in nodes if node.op_type == "LayerNormalization")
    assert not any(name.endswith("_DequantizeLinear_Output") for name in norm.input[1:]), "a norm computes in fp32"


class Placed(nn.Module):
    """One map summed along both sides, as positions are embedded in EdgeNeXt: ONNX Runtime has no such sum in fp16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return (x.cumsum(2) + x.cumsum(3)).mean((2, 3))


def test_what_two_operations_read_in_fp32_is_cast_once(tmp_path: Path) -> None:
    network = Placed().eval()
    export_onnx(network, tmp_path / "fp32.onnx", input_shape=SHAPE)
    to_fp16(tmp_path / "fp32.onnx", tmp_path / "fp16.onnx")
    onnx.checker.check_model(str(tmp_path / "fp16.onnx"), full_check=True)
    inputs = images(1)
    expected = network(torch.from_numpy(inputs)).detach().numpy()
    assert np.allclose(run_session(open_session(tmp_path / "fp16.onnx"), inputs), expected, rtol=0.01, atol=0.01)


def test_bf16_rounds_weights_as_torch_does(exported: Path, child: nn.Module, tmp_path: Path) -> None:
    to_bf16(exported, tmp_path / "bf16.onnx")
    proto = onnx.load(tmp_path / "bf16.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert precision_of(proto) == "bf16"
    (weight,) = (tensor for tensor in proto.graph.initializer if tensor.name == "fc.weight")
    expected = child.fc.weight.detach().bfloat16().float().numpy()  # type: ignore[union-attr, operator]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight).astype(np.float32), expected)
    assert [value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)] == [TensorProto.FLOAT] * 2
    assert {node.name for node in onnx.load(exported).graph.node} < {node.name for node in proto.graph.node}


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


class Standardised(nn.Conv2d):
    """A convolution that computes its weights, as in normaliser-free networks."""

    def forward(self, x: Tensor) -> Tensor:
        weight = nn.functional.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, eps=1e-5)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


class Spread(nn.Module):
    """Adds one number to every place, through a tensor larger than all weights together."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.full((1, 1, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.number.expand(1, 64, 96, 96)


def test_what_weights_alone_give_is_computed_once(tmp_path: Path) -> None:
    """Above the size from which the exporter's optimizer leaves it; but no file grows by more than its largest weight."""
    torch.manual_seed(0)
    shape = (3, 96, 96)
    network = nn.Sequential(Standardised(3, 64, 3, padding=1), Standardised(64, 64, 3, padding=1), Spread(), nn.Flatten(2)).eval()
    export_onnx(network, tmp_path / "fp32.onnx", input_shape=shape)
    graph = onnx.load(tmp_path / "fp32.onnx").graph
    counts = Counter(node.op_type for node in graph.node)
    assert counts["Conv"] == 2
    assert set(counts) <= {"Conv", "Add", "Expand", "Reshape", "Concat", "Shape", "Gather", "Slice"}, counts
    assert (tmp_path / "fp32.onnx").stat().st_size < 4 * (64 * 64 * 9 + 3 * 64 * 9) + 100_000
    verify_onnx(tmp_path / "fp32.onnx", network, images(2, shape))
    to_int8(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", images(2, shape))
    scales = {tensor.name: tensor.dims for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    assert sum(list(dims) == [64] for name, dims in scales.items() if name.endswith("scale")) == 2, "weights of two convolutions"


@pytest.mark.parametrize("batch", [(1, 64), 3])
def test_int8_weights_fill_the_range_of_each_channel(tmp_path: Path, batch: int | tuple[int, int]) -> None:
    """A channel without weights has the scale 1. Ranges are those of all images, also where they do not fill a fixed batch."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1, groups=2), nn.Flatten(), nn.Linear(216, 5)).eval()
    with torch.no_grad():
        network[0].weight[1] = 0
    export_onnx(network, tmp_path / "fp32.onnx", input_shape=SHAPE, batch=batch)
    calibration = images(65)
    calibration[-1] *= 9
    to_int8(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", calibration)
    graph = onnx.load(tmp_path / "int8.onnx").graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for index in ("0", "2", "4"):
        weight = network[int(index)].weight.detach().numpy()
        expected = np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127
        np.testing.assert_allclose(constants[f"{index}.weight_scale"], np.where(expected == 0, 1, expected), rtol=1e-6)
        np.testing.assert_array_equal(constants[f"{index}.weight_zero_point"], np.zeros(len(weight), np.int8))
    assert constants["input_scale"] == pytest.approx((calibration.max() - calibration.min()) / 255, rel=1e-6)


def test_int8_is_not_rounded_between_a_sum_and_its_relu(exported: Path, tmp_path: Path) -> None:
    """So ONNX Runtime adds in int8 and is done: no value leaves int8 inside the network but for the mean of the pixels."""
    to_int8(exported, tmp_path / "int8.onnx", images(8))
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    makers = {name: node.op_type for node in nodes for name in node.output}
    relus = [makers[node.input[0]] for node in nodes if node.op_type == "Relu"]
    assert "Add" in relus
    assert "DequantizeLinear" not in relus
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    onnxruntime.InferenceSession(tmp_path / "int8.onnx", options, providers=["CPUExecutionProvider"])
    run = onnx.load(tmp_path / "run.onnx").graph
    kinds = Counter(node.op_type for node in run.node)
    assert kinds["QLinearAdd"] == relus.count("Add")
    fed = {name: node.op_type for node in run.node for name in node.input}
    back = [fed.get(node.output[0], "result") for node in run.node if node.op_type == "DequantizeLinear"]
    assert "QuantizeLinear" not in back


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_the_ranges_of_int8_are_those_of_all_calibration_images(
    exported: Path, child: nn.Module, tmp_path: Path, method: Calibration
) -> None:
    """By what the layers read in torch; two batches, the largest numbers in the second. Percentiles lie within."""
    calibration = images(96)
    calibration[64:] *= 2
    to_int8(exported, tmp_path / "int8.onnx", calibration, method=method)
    graph = onnx.load(tmp_path / "int8.onnx").graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    read: dict[str, tuple[float, float]] = {}
    products = {name: layer for name, layer in child.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, given, name=name: read.update({name: (min(0.0, float(given[0].min())), float(given[0].max()))})
        )
        for name, layer in products.items()
    ]
    run_torch(child, calibration)
    for hook in hooks:
        hook.remove()
    found = {}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            scale, zero = (constants[name] for name in makers[node.input[0]].input[1:])
            found[node.name.rpartition("/")[0]] = (float((0 - float(zero)) * scale), float((255 - float(zero)) * scale))
    assert found.keys() == products.keys()
    for name, (lowest, highest) in found.items():
        step = (highest - lowest) / 255
        if method == "minmax":
            assert (lowest, highest) == (pytest.approx(read[name][0], abs=step), pytest.approx(read[name][1], abs=step))
        else:
            assert highest <= max(abs(read[name][0]), read[name][1]) + step
