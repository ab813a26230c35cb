"""Dense networks: at every place what the classifier says of the window there, and the classifier itself at its own size."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from nar_hw.bundles.manifest import load_bundle
from nar_hw.bundles.verify import verify_bundle
from nar_hw.errors import ModelError
from nar_hw.export.dense import convolutionize, export_dense, multi_scale, overfeat_sides, run_dense
from nar_hw.export.onnx import open_session, run_torch
from nar_hw.models import build_model
from nar_hw.models.overfeat import OverFeat
from tests.bundles import exported
from tests.networks import TinyResNet

EXAMPLE = Path(__file__).parent.parent / "examples" / "dense" / "heat_map.py"


class Head(nn.Module):
    """Unpadded convolutions, so that windows know nothing of what is around them, and a head."""

    def __init__(self, *head: nn.Module, stride: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3, stride), nn.ReLU(), nn.Conv2d(4, 6, 3))
        self.head = nn.Sequential(*head)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def linear(inputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 3)]


HEADS: dict[str, Any] = {  # for a map of 6x8x5
    "flatten": lambda: [nn.Flatten(), *linear(240)],
    "global average": lambda: [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *linear(6)],
    "global maximum": lambda: [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, 3, bias=False)],
    "uneven windows": lambda: [nn.AdaptiveAvgPool2d((3, 4)), nn.Flatten(), nn.Dropout(), *linear(72)],
    "windows larger than the map": lambda: [nn.AdaptiveAvgPool2d((9, 7)), nn.Flatten(), *linear(378)],
    "even windows": lambda: [nn.AdaptiveAvgPool2d((4, 5)), nn.ReLU(), nn.Flatten(), *linear(120)],
    "1x1 convolutions behind the pool": lambda: [
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(6, 9, 1),
        nn.Hardswish(),
        nn.Flatten(),
        *linear(9),
    ],
    "scores of a 1x1 convolution": lambda: [nn.Conv2d(6, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
}


@settings(deadline=None, max_examples=30)
@given(kind=st.sampled_from(sorted(HEADS)), more=st.tuples(st.integers(0, 6), st.integers(0, 6)), seed=st.integers(0, 999))
def test_every_place_says_what_the_classifier_says_of_its_window(kind: str, more: tuple[int, int], seed: int) -> None:
    torch.manual_seed(seed)
    network = Head(*HEADS[kind]()).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight)
            module.running_mean = torch.randn(7)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    dense = convolutionize(network, (2, 12, 9))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    step = (2, 1) if kind == "even windows" else (1, 1)  # a window of 8 / 4 places moves by 2
    rows, columns = 12 + more[0] * step[0], 9 + more[1] * step[1]
    images = torch.randn(2, 2, rows, columns)
    with torch.no_grad():
        scores, answer = dense(images)
        assert scores.shape == (2, 3, more[0] + 1, more[1] + 1)
        for row in range(more[0] + 1):
            for column in range(more[1] + 1):
                window = images[:, :, row * step[0] : row * step[0] + 12, column * step[1] : column * step[1] + 9]
                torch.testing.assert_close(scores[:, :, row, column], network(window), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answer, scores.flatten(2).mean(2))


class ByHand(nn.Module):
    """Heads as people write them: functions and views."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(2, 6, 3)
        self.fc = nn.Linear(6 if "mean" in kind or "pool" in kind else 6 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        if self.kind == "mean":
            x = x.mean((2, 3))
        elif self.kind == "mean, negative":
            x = x.mean([-1, -2])
        elif self.kind == "mean, kept":
            x = x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)
        elif self.kind == "pool":
            x = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
        elif self.kind == "view":
            x = x.view(x.size(0), -1)
        elif self.kind == "reshape":
            x = x.reshape(x.shape[0], 96)
        return nn.functional.linear(nn.functional.dropout(x, training=self.training), self.fc.weight, self.fc.bias)


@pytest.mark.parametrize("kind", ["mean", "mean, negative", "mean, kept", "pool", "view", "reshape"])
def test_heads_written_with_functions(kind: str) -> None:
    torch.manual_seed(0)
    network = ByHand(kind).eval()
    images = torch.randn(1, 2, 7, 8)
    with torch.no_grad():
        scores, _ = convolutionize(network, (2, 6, 6))(images)
        assert scores.shape == (1, 3, 2, 3)
        torch.testing.assert_close(scores[:, :, 1, 2], network(images[:, :, 1:, 2:]))


NAMES = [
    ("lenet5", (1, 28, 28)),
    ("resnet_digits", (1, 8, 8)),
    ("mobilenet_v3_small", (3, 32, 32)),
    ("squeezenet1_1", (3, 64, 64)),
]
LARGE = [("alexnet", (3, 224, 224)), ("vgg11", (3, 64, 64)), ("convnext_tiny", (3, 64, 64)), ("efficientnet_b0", (3, 64, 64))]
slow = pytest.mark.skipif("NAR_HW_SLOW_TESTS" not in os.environ, reason="large networks: set NAR_HW_SLOW_TESTS=1")


@pytest.mark.parametrize(("name", "shape"), [*NAMES, *(pytest.param(*item, marks=slow) for item in LARGE)])
def test_networks_agree_at_the_training_size_and_answer_more_on_larger_images(name: str, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    network = build_model(name, input_shape=shape, num_classes=10).eval()
    dense = convolutionize(network, shape)
    images = torch.randn(2, *shape)
    with torch.no_grad():
        scores, answer = dense(images)
        wider, _ = dense(torch.randn(1, shape[0], 2 * shape[1], 3 * shape[2]))
        expected = network(images)
    assert scores.shape == (2, 10, 1, 1)
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert wider.shape[2] >= 2
    assert wider.shape[3] > wider.shape[2]


SHAPE = (2, 20, 14)  # 20 -> 9 -> 7 and 14 -> 6 -> 4, not the 8x5 of HEADS


@pytest.fixture(scope="module")
def strided() -> nn.Module:
    torch.manual_seed(0)
    return Head(nn.Flatten(), *linear(6 * 7 * 4), stride=2).eval()


def test_the_file_is_the_network_for_any_size_and_the_same_each_time(strided: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "dense.onnx"
    found = export_dense(strided, path, input_shape=SHAPE, batch=(1, 8), metadata={"note": "x"})
    assert found == {"smallest": (20, 14), "stride": (2, 2)}
    images = np.random.default_rng(0).standard_normal((3, 2, 25, 30)).astype(np.float32)
    with torch.no_grad():
        expected = convolutionize(strided, SHAPE)(torch.from_numpy(images))
    outputs = open_session(path).run(["map", "output"], {"input": images})
    for output, reference in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, reference.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run_dense(path, images), expected[1].numpy(), rtol=1e-4, atol=1e-5)
    graph = onnx.load(path).graph
    assert not [node for node in graph.node if node.op_type in ("Gemm", "MatMul", "BatchNormalization")]
    assert [dim.dim_param or dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        2,
        "height",
        "width",
    ]
    export_dense(strided, tmp_path / "again.onnx", input_shape=SHAPE, batch=(1, 8), metadata={"note": "x"})
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_a_bundle_holds_it_and_checks_it(strided: nn.Module, tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((12, *SHAPE)).astype(np.float32)
    labels = run_torch(strided, images).argmax(1)
    about: dict[str, Any] = {"shape": SHAPE, "classes": "abc", "mean": (0.5,) * 2, "std": (0.2,) * 2}
    about |= {"operators": (), "codes": ()}
    out = exported(strided, tmp_path / "bundle", dense="strided", images=images, labels=labels, batch=(4, 4), **about)
    found = load_bundle(out).manifest.dense
    assert found is not None
    assert (found.file, found.smallest, found.stride, found.accuracy) == ("model.dense.onnx", (20, 14), (2, 2), 1.0)
    assert verify_bundle(out, images=images, labels=labels)["dense"]["accuracy"] == 1.0
    assert "`map` has an answer every 2x2 pixels" in (out / "README.md").read_text()


class Ends(nn.Module):
    """A network that ends in something else than a head."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.fc, self.norm = nn.Conv2d(2, 4, 3), nn.Linear(4, 3), nn.BatchNorm1d(64)
        self.pool, self.wide = nn.AdaptiveAvgPool2d(1), nn.Linear(64, 3)
        self.uneven, self.nine = nn.AdaptiveAvgPool2d(3), nn.Linear(36, 3)
        self.most = nn.AdaptiveMaxPool2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.kind == "control flow":
            return self.fc(x.mean((2, 3))) if x.sum() > 0 else x.sum((2, 3))
        if self.kind == "multiplied":
            return 2 * self.fc(x.mean((2, 3)))
        if self.kind == "pooled before":
            return self.fc(torch.flatten(torch.exp(self.pool(x)), 1))
        if self.kind == "normalised places":
            return self.wide(self.norm(x.flatten(1)))
        if self.kind == "half":
            return self.fc(x.mean(3).flatten(2).mean(2))
        if self.kind == "behind an uneven pool":
            return self.nine(torch.relu(self.uneven(x)).flatten(1))
        if self.kind == "uneven maximum":
            return self.nine(self.most(x).flatten(1))
        return self.wide(x.flatten(1))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("control flow", "must be traceable by torch.fx"),
        ("multiplied", "needs a head of pools and linear layers at its end"),
        ("pooled before", "its pooling is not in its head"),
        ("normalised places", "normalises single places of a map"),
        ("half", "may average over all places only"),
        ("behind an uneven pool", "stands between an adaptive pool and its linear layer"),
        ("uneven maximum", "windows of different sizes cannot become dense"),
        ("another size", "must run on images of shape"),
    ],
)
def test_what_cannot_become_dense_is_told_in_one_line(kind: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=message) as told:
        convolutionize(Ends(kind), (2, 7, 7) if kind == "another size" else (2, 6, 6))
    assert "\n" not in str(told.value)
    assert capfd.readouterr() == ("", "")


def test_a_residual_network_keeps_its_body(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = TinyResNet().eval()
    dense = convolutionize(network, (3, 8, 8))
    kept = [name for name, module in dense.network.named_modules() if isinstance(module, nn.Conv2d)]
    assert kept == [*(name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)), "fc_dense"]


def test_the_example_finds_its_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("heat_map", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(sys, "argv", ["heat_map.py", "--out", str(tmp_path / "run"), "--epochs", "6"])
    example.main()
    assert "right on single windows" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/bundle/manifest.json").read_text())["dense"]["accuracy"] > 0.8
    scores = example.class_map(tmp_path / "run/bundle", example.compose())
    assert scores.shape == (11, 29, 53)
    assert sum(scores[:, row, column].argmax() == digit for digit, (row, column) in example.PLACES.items()) >= 3
    with Image.open(tmp_path / "run/heat_map.png") as picture:
        assert picture.width > picture.height


@pytest.mark.parametrize(("windows", "refused"), [(1, False), (2, True), (6, True)])
def test_inner_adaptive_pools_are_refused_unless_they_are_global(windows: int, refused: bool) -> None:
    """Six windows of one place each at the training size; on larger images they are others."""

    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.pool = nn.AdaptiveAvgPool2d(windows)
            self.conv = nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            weights = nn.functional.interpolate(self.conv(self.pool(x)), scale_factor=6 // windows)
            return self.fc((x * weights).mean((2, 3)) if windows > 1 else (x * self.conv(self.pool(x))).mean((2, 3)))

    network = Squeezed().eval()
    if not refused:
        assert convolutionize(network, (3, 6, 6))(torch.zeros(1, 3, 12, 12))[0].shape[2:] == (7, 7)
        return
    with pytest.raises(ModelError, match=rf"^pool pools adaptively to \({windows}, {windows}\) inside the network[^\n]*$"):
        convolutionize(network, (3, 6, 6))


class TestOverfeat:
    """The last pool at every offset (Sermanet et al. 2014, section 3.3)."""

    @pytest.mark.parametrize("kind", ["maximum, then a padded convolution", "mean, then a global mean"])
    def test_each_offset_is_the_rest_of_the_network_on_the_shifted_map(self, kind: str, tmp_path: Path) -> None:
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3))
        if kind.startswith("maximum"):
            tail = [nn.MaxPool2d(3, 2), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(60, 3)]
        else:
            tail = [
                nn.AvgPool2d((2, 3), (2, 3), count_include_pad=False),
                nn.BatchNorm2d(6),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
            ]
            tail.append(nn.Linear(6, 3))
        steps = tail[0].stride if isinstance(tail[0].stride, tuple) else (2, 2)
        shape = (2, 13, 11) if kind.startswith("maximum") else (2, 12, 13)
        network = nn.Sequential(body, *tail).eval()
        fine = convolutionize(network, shape, form="overfeat")
        with torch.no_grad():
            inner = body(torch.zeros(1, *shape)).shape[1:]
            rest = convolutionize(nn.Sequential(*tail).eval(), tuple(inner))
            images = torch.randn(2, 2, 25, 24)
            found, mean = fine(images)
            maps = body(images)
            for row in range(steps[0]):
                for column in range(steps[1]):
                    expected, _ = rest(maps[:, :, row:, column:])
                    part = found[:, :, row :: steps[0], column :: steps[1]]
                    torch.testing.assert_close(part, expected[:, :, : part.shape[2], : part.shape[3]], rtol=1e-4, atol=1e-5)
                    assert part.shape[2] >= 3
            torch.testing.assert_close(mean, found.mean((2, 3)))
        if kind.startswith("maximum"):
            made = export_dense(network, tmp_path / "x.onnx", input_shape=shape, batch=(1, 4), form="overfeat")
            assert made == {"smallest": shape[1:], "stride": (1, 1)}
            assert np.allclose(run_dense(tmp_path / "x.onnx", images.numpy()), mean, atol=1e-5)

    def test_alexnet_says_fifteen_by_fifteen_things_of_448_pixels(self) -> None:
        torch.manual_seed(0)
        network = build_model("alexnet", input_shape=(3, 224, 224), num_classes=10).eval()
        images = torch.randn(1, 3, 448, 448)
        with torch.inference_mode():
            coarse, _ = convolutionize(network, (3, 224, 224))(images)
            fine, _ = convolutionize(network, (3, 224, 224), form="overfeat")(images)
        assert (coarse.shape, fine.shape) == ((1, 10, 8, 8), (1, 10, 15, 15))
        assert (fine[:, :, ::2, ::2] - coarse).abs().max() < 1e-5
        assert (fine[:, :, 1::2, 1::2] - coarse[:, :, :7, :7]).abs().max() > 1e-4

    def test_what_cannot_be_taken_at_every_offset(self) -> None:
        for tail, message in (
            ([nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, 2)], "whose last steps are those of a pool, but this one's are those of"),
            ([nn.MaxPool2d(2, ceil_mode=True)], "needs a last pool whose windows end with the map"),
            ([nn.MaxPool2d(2), nn.Softmax(1)], "follows the last pool"),
        ):
            network = nn.Sequential(nn.Conv2d(2, 6, 3), *tail, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()
            side = 18 if "Softmax" in str(tail) else 17
            assert convolutionize(network, (2, side, side)) is not None
            with pytest.raises(ModelError, match=message):
                convolutionize(network, (2, side, side), form="overfeat")

    def test_six_sizes_are_averaged(self) -> None:
        assert overfeat_sides(221) == (245, 281, 317, 389, 425, 461)
        torch.manual_seed(0)
        dense = convolutionize(Head(nn.Flatten(), nn.Linear(96, 3)).eval(), (2, 8, 8))
        images = torch.rand(2, 2, 40, 40)
        expected = np.zeros((2, 3))
        for side in overfeat_sides(12):
            with torch.no_grad():
                scores = dense(resize(images, [side, side], antialias=True))[0].double().numpy()
            odds = np.exp(scores - scores.max(1, keepdims=True))
            expected += (odds / odds.sum(1, keepdims=True)).reshape(2, 3, -1).max(2) / 6
        with torch.no_grad():
            assert np.allclose(multi_scale(dense, images, overfeat_sides(12)), expected, atol=1e-6)

    def test_its_network(self) -> None:
        with torch.device("meta"):
            network = OverFeat(input_shape=(3, 231, 231), num_classes=1000)
        assert sum(parameter.numel() for parameter in network.parameters()) == 145_920_872  # "145 million", table 3
        small = OverFeat(input_shape=(1, 71, 71), num_classes=2).eval()
        assert small(torch.zeros(1, 1, 71, 71)).shape == (1, 2)
        with pytest.raises(ModelError, match="overfeat needs images of at least 71x71 pixels, but got 71x70"):
            OverFeat(input_shape=(1, 71, 70), num_classes=2)
