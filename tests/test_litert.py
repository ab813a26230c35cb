"""LiteRT: what it computes is what torch computes, at borders too, and what it cannot have is refused by name."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor, nn

from nar_hw.device.hollow import filled, hollowed
from nar_hw.errors import ExportError, ModelError, RuntimeUnavailableError
from nar_hw.export.onnx import export_onnx, run_torch
from nar_hw.runtimes import RuntimeConfig, runtime_class
from tests.networks import Side

pytest.importorskip("ai_edge_litert")

from nar_hw.device.litert import LiteRtNetwork
from nar_hw.export.litert import save_litert, weights_of
from nar_hw.export.litert_operators import OPERATORS


def converted(
    network: nn.Module, folder: Path, shape: tuple[int, int, int], batch: int = 1
) -> tuple[Path, np.ndarray, np.ndarray]:
    """(file, LiteRT's outputs, torch's) for random images."""
    torch.manual_seed(0)
    network.eval()
    images = np.random.default_rng(3).standard_normal((batch, *shape), dtype=np.float32)
    export_onnx(network, folder / "m.onnx", input_shape=shape)
    file = save_litert(folder / "m.onnx", folder / "m.tflite", (batch, *shape))
    loaded = LiteRtNetwork([str(file)], images, 1)
    return file, loaded.infer(images), run_torch(network, images)


def operators(file: Path) -> list[str]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = Interpreter(str(file), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    return [item["op_name"] for item in plain._get_ops_details()]


@pytest.mark.parametrize("size", [8, 7])
def test_windows_at_borders_are_torchs(tmp_path: Path, size: int) -> None:
    branches: list[nn.Module] = []
    for stride in (1, 2):
        branches += [
            nn.AvgPool2d(3, stride, 1, count_include_pad=False),
            nn.AvgPool2d(3, stride, 1),
            nn.MaxPool2d(3, stride, 1),
            nn.Conv2d(8, 8, 3, stride, 1, groups=8),
            nn.Conv2d(8, 16, 3, stride, 2, dilation=2, groups=8),
            nn.Conv2d(8, 8, 5, stride, 2, groups=4),
            nn.Conv2d(8, 4, (1, 5), stride, (0, 2), bias=False),
        ]
    branches += [nn.MaxPool2d(2, 2, ceil_mode=True), nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)]
    file, outputs, expected = converted(Side(*branches), tmp_path, (3, size, size), batch=2)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    made = operators(file)
    assert made.count("AVERAGE_POOL_2D") == 5
    # An even map is padded in front and not behind, which LiteRT's own padding never does
    assert made.count("PADV2") == (1 if size == 8 else 0)


class Mixed(nn.Module):
    """Activations, attention over channels, shuffles, halves: what backbones have besides convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Hardsigmoid())
        self.norm = nn.BatchNorm2d(8)
        self.slope = nn.PReLU(8)
        self.head = nn.Sequential(nn.Linear(8 * 9, 12), nn.ReLU6(), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.slope(x * self.squeeze(x))
        a, b = x.chunk(2, 1)
        x = torch.cat([F.silu(a), F.elu(b).tanh()], 1)
        x = x.view(-1, 2, 4, 6, 6).transpose(1, 2).reshape(-1, 8, 6, 6)  # shuffle
        x = F.relu(self.norm(F.max_pool2d(x, 2)))
        x = torch.maximum(x, F.leaky_relu(x - 0.5)).clamp(-0.25, 0.75)
        return self.head(F.pad(x, (1, 0, 0, 1), value=0.5)[:, :, 1:, :-1].flatten(1)).softmax(1)


def test_what_backbones_have_is_converted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Mixed()
    nn.init.uniform_(network.norm.running_mean)
    file, outputs, expected = converted(network, tmp_path, (3, 12, 12))
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    made = operators(file)
    assert {"HARD_SWISH", "PRELU", "SPLIT_V", "LOGISTIC", "ELU", "STRIDED_SLICE", "SOFTMAX", "MEAN"} <= set(made)
    assert not {"RELU", "RELU6"} & set(made)  # done in passing


class Block(nn.Module):
    """As in ConvNeXt: channels last, a norm of layers, Gelu, scaled and added."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.LayerNorm(3)
        self.up, self.down, self.scale = nn.Linear(3, 8), nn.Linear(8, 3), nn.Parameter(torch.rand(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.gelu(self.up(self.norm(self.mix(x).permute(0, 2, 3, 1)))))
        return x + self.scale * y.permute(0, 3, 1, 2)


def test_a_block_of_convnext_is_converted(tmp_path: Path) -> None:
    file, outputs, expected = converted(nn.Sequential(Block(), Block()), tmp_path, (3, 6, 6))
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    made = operators(file)
    assert made.count("GELU") == 2
    # Linear layers and norms read what convolutions give as it is
    assert made.count("TRANSPOSE") <= 2


def graph(folder: Path, *nodes: onnx.NodeProto, constants: dict[str, np.ndarray] | None = None) -> Path:
    """An ONNX file of such nodes from "input" (1, 4, 6, 6) to "output"."""
    value = helper.make_tensor_value_info
    proto = helper.make_graph(
        nodes,
        "g",
        [value("input", TensorProto.FLOAT, (1, 4, 6, 6))],
        [value("output", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    onnx.save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "g.onnx")
    return folder / "g.onnx"


node: Callable[..., onnx.NodeProto] = helper.make_node


@pytest.mark.parametrize(
    ("kind", "about", "said"),
    [
        ("Erf", {}, r"has one \(Erf\), which nar_hw does not convert to LiteRT"),
        ("MaxPool", {"kernel_shape": [3, 3], "dilations": [2, 2]}, "with dilation"),
        ("AveragePool", {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER"}, "with auto_pad"),
        ("AveragePool", {"kernel_shape": [3, 3], "ceil_mode": 1, "count_include_pad": 1}, "both ceil_mode and count_include_pad"),
        ("Softmax", {"axis": 2}, "over axis 2"),
        ("HardSigmoid", {"alpha": 0.2}, "with another slope than torch's"),
        ("Elu", {"alpha": 0.5}, "with alpha other than 1"),
    ],
)
def test_what_litert_cannot_have_is_named(tmp_path: Path, kind: str, about: dict[str, object], said: str) -> None:
    file = graph(tmp_path, node(kind, ["input"], ["output"], name="one", **about))
    with pytest.raises(ExportError, match=said) as problem:
        save_litert(file, tmp_path / "m.tflite", (1, 4, 6, 6))
    assert "\n" not in str(problem.value)
    assert str(problem.value).endswith(": use another runtime") or kind == "AveragePool"
    assert not (tmp_path / "m.tflite").exists()


def test_weights_that_are_computed_are_refused(tmp_path: Path) -> None:
    file = graph(tmp_path, node("Conv", ["input", "input"], ["output"], name="one"))
    with pytest.raises(ExportError, match="with weights that are computed"):
        save_litert(file, tmp_path / "m.tflite", (1, 4, 6, 6))


def test_what_computes_something_else_is_named_and_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, "Abs", OPERATORS["Relu"])
    file = graph(tmp_path, node("Abs", ["input"], ["output"], name="one"))
    with pytest.raises(ExportError, match=r"^LiteRT computes something else than [^\n]* differ by 0\.\d+: use another runtime$"):
        save_litert(file, tmp_path / "m.tflite", (1, 4, 6, 6))
    assert not (tmp_path / "m.tflite").exists()


def test_two_readers_keep_what_an_activation_reads(tmp_path: Path) -> None:
    nodes = [
        node("Add", ["input", "input"], ["sum"], name="add"),
        node("Relu", ["sum"], ["positive"], name="relu"),
        node("Identity", ["positive"], ["same"], name="same"),
        node("Sub", ["same", "sum"], ["output"], name="sub"),
    ]
    file = save_litert(graph(tmp_path, *nodes), tmp_path / "m.tflite", (1, 4, 6, 6))
    images = np.random.default_rng(0).standard_normal((1, 4, 6, 6), dtype=np.float32)
    outputs = LiteRtNetwork([str(file)], images, 1).infer(images)
    np.testing.assert_allclose(outputs.reshape(images.shape), np.maximum(-2 * images, 0), atol=1e-6)


def test_weights_lie_where_the_format_wants_them_and_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Side(nn.Conv2d(16, 96, 3), width=16)
    file, _, _ = converted(network, tmp_path, (3, 6, 6))
    data = file.read_bytes()
    assert data[4:8] == b"TFL3"
    assert struct.unpack("<I", data[:4])[0] < len(data)
    kernel = network.branches[0].weight.detach().numpy().transpose(0, 2, 3, 1)  # type: ignore[union-attr,operator]
    place = data.find(np.ascontiguousarray(kernel).tobytes())
    assert place > 0
    assert place % 16 == 0
    packed = hollowed(data, weights_of(file))
    assert len(packed) < 0.2 * len(data)
    (tmp_path / "again.tflite").write_bytes(filled(packed))
    images = np.ones((1, 3, 6, 6), np.float32)
    assert np.isfinite(LiteRtNetwork([str(tmp_path / "again.tflite")], images, 1).infer(images)).all()


def test_files_are_for_one_number_of_images(tmp_path: Path) -> None:
    config = RuntimeConfig(runtime="litert", batch=2)
    network = Side(nn.AdaptiveAvgPool2d(1))
    file, _, _ = converted(network, tmp_path, (3, 6, 6))
    with pytest.raises(ModelError, match=r"takes images of shape \(1, 6, 6, 3\) \(B, H, W, C\), but got \(2, 6, 6, 3\)"):
        runtime_class("litert")(file, (3, 6, 6), config)
    export_onnx(network, tmp_path / "one.onnx", input_shape=(3, 6, 6), batch=1)
    with pytest.raises(ModelError, match=r"^litert takes 2 images at a time, but [^\n]*one.onnx is for batch 1 only"):
        runtime_class("litert")(tmp_path / "one.onnx", (3, 6, 6), config)
    (tmp_path / "bad.tflite").write_bytes(b"no network")
    with pytest.raises(ModelError, match=r"^LiteRT cannot run [^\n]*bad.tflite: [^\n]+$"):
        runtime_class("litert")(tmp_path / "bad.tflite", (3, 6, 6), RuntimeConfig(runtime="litert"))


def test_without_litert_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeUnavailableError, match=r"pip install 'nar-hw\[litert\]'"):
        runtime_class("litert")(nn.Identity(), (3, 6, 6), RuntimeConfig(runtime="litert"))
