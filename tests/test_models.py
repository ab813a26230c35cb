"""Networks by name. Expected sizes are published numbers or sums over the layers the papers list."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from nar_hw import models
from nar_hw.errors import ModelError, UnknownNameError
from nar_hw.models import build_model, known_models, usual_input, usual_outputs
from nar_hw.models.dpn import DualPathBlock
from nar_hw.models.efficientnet import Scaling, compound_scaling
from nar_hw.models.highway import HighwayConv
from nar_hw.models.lresnet_ir import IRBlock
from nar_hw.models.resnet_cifar import CifarResNet
from nar_hw.models.weights import load_weights

DIGITS = (1, 8, 8)


def on_meta(name: str, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Shapes without numbers: building and running a large network takes milliseconds."""
    with torch.device("meta"):
        return build_model(name, input_shape=input_shape, num_classes=num_classes)


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def depth(network: nn.Module) -> int:
    """Convolutions and linear layers on the longest path, as papers count: skips do not count."""
    return sum(
        isinstance(module, (nn.Conv2d, nn.Linear)) and "downsample" not in path for path, module in network.named_modules()
    )


def output_shapes(network: nn.Module, input_shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """(C, H, W) behind each of the four stages."""
    seen: list[tuple[int, ...]] = []
    for number in range(1, 5):
        stage = network.get_submodule(f"layer{number}")
        stage.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    network(torch.empty(1, *input_shape, device="meta"))
    return seen


@pytest.mark.parametrize("name", sorted(models.OWN.keys() - {"overfeat"}))
def test_own_networks_take_small_images(name: str) -> None:
    network = on_meta(name, (1, 20, 33), 7)
    assert network.training
    assert network(torch.empty(2, 1, 20, 33, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet20_cifar", "lresnet34e_ir", "resnet20_tiny", "lenet5", "nin", "dpn92", "bn_inception", "highway19"],
)
def test_each_family_takes_large_images(name: str) -> None:
    assert on_meta(name, (4, 80, 66), 7)(torch.empty(2, 4, 80, 66, device="meta")).shape == (2, 7)


def test_known_models() -> None:
    names = known_models()
    assert names == sorted(set(names))
    assert {*models.OWN, "vgg16", "efficientnet_b0", "resnext50_32x4d", "googlenet"} <= set(names)
    assert not {"fasterrcnn_resnet50_fpn", "deeplabv3_resnet50", "r3d_18", "raft_small"} & set(names)


# resnet_cifar.py

PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_resnets_are_torchvisions(name: str) -> None:
    large, small = on_meta(name, (3, 224, 224), 1000), on_meta(name, (3, 32, 32), 1000)
    with torch.device("meta"):
        original = torchvision.models.get_model(name, weights=None)
    assert size(large) == PUBLISHED[name]
    assert str(large) == str(original)
    assert list(small.state_dict()) == list(large.state_dict()) == list(original.state_dict())
    # the stem is all that differs: 3x3 instead of 7x7 weights
    assert size(large) - size(small) == 64 * 3 * (49 - 9)


@pytest.mark.parametrize(
    ("input_shape", "small"),
    [((3, 64, 64), True), ((3, 65, 32), False), ((3, 32, 65), False), ((1, 64, 20), True), ((4, 96, 96), False)],
)
def test_the_stem_follows_the_longer_side(input_shape: tuple[int, int, int], small: bool) -> None:
    network = on_meta("resnet18", input_shape, 10)
    stem = network.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)
    assert (stem.in_channels, stem.kernel_size, stem.stride) == (
        input_shape[0],
        *(((3, 3), (1, 1)) if small else ((7, 7), (2, 2))),
    )
    first = output_shapes(network, input_shape)[0]
    assert first[1:] == (tuple(input_shape[1:]) if small else tuple(-(-side // 4) for side in input_shape[1:]))


def test_new_stems_are_initialised_like_the_others() -> None:
    torch.manual_seed(0)
    for input_shape, fan_out in (((1, 32, 32), 64 * 9), ((1, 80, 80), 64 * 49)):
        stem = build_model("resnet18", input_shape=input_shape, num_classes=2).get_submodule("conv1").weight
        assert stem.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


@pytest.mark.parametrize(("name", "millions"), [("20", 0.27), ("32", 0.46), ("44", 0.66), ("56", 0.85)])
def test_cifar_resnets_have_the_sizes_of_the_paper(name: str, millions: float) -> None:
    """He et al. 2015, table 6; there the skips have no parameters."""
    network = on_meta(f"resnet{name}_cifar", (3, 32, 32), 10)
    skips = sum(value.numel() for key, value in network.named_parameters() if "downsample" in key)
    assert round((size(network) - skips) / 1e6, 2) == millions
    assert depth(network) == int(name)


def basic_block(c_in: int, c_out: int) -> int:
    """Parameters of two 3x3 convolutions with their norms, and of the skip's where the shape changes."""
    return 9 * c_in * c_out + 9 * c_out**2 + 4 * c_out + (c_in * c_out + 2 * c_out) * (c_in != c_out)


def test_digits_network() -> None:
    network = build_model("resnet_digits", input_shape=DIGITS, num_classes=10)
    stages = ((64, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256))
    assert size(network) == 9 * 64 + 128 + sum(basic_block(*pair) for pair in stages) + 257 * 10
    assert {"conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer3.0.downsample.0.weight", "fc.weight"} <= set(
        network.state_dict()
    )
    loss = nn.functional.cross_entropy(network(torch.randn(4, *DIGITS)), torch.tensor([1, 2, 3, 4]))
    loss.backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in network.parameters())


def test_stages_halve_the_resolution() -> None:
    with torch.device("meta"):
        network = CifarResNet(input_shape=(3, 32, 32), num_classes=10, widths=(8, 16, 24, 32), blocks=(1, 2, 1, 1))
    assert output_shapes(network, (3, 32, 32)) == [(8, 32, 32), (16, 16, 16), (24, 8, 8), (32, 4, 4)]


# lresnet_ir.py


@pytest.mark.parametrize(("name", "blocks"), [("lresnet34e_ir", 16), ("lresnet50e_ir", 24), ("lresnet100e_ir", 49)])
def test_face_networks_have_their_blocks(name: str, blocks: int) -> None:
    network = on_meta(name, (3, 112, 112), 512)
    found = [module for module in network.modules() if isinstance(module, IRBlock)]
    assert len(found) == blocks
    # the name counts all their convolutions, the stem and the linear layer
    assert depth(network) == int("".join(filter(str.isdigit, name)))
    assert [module.conv2.stride[0] for module in found].count(2) == 4
    assert all(module.conv1.stride == (1, 1) for module in found)
    assert [type(module).__name__ for module in network.children()][-4:] == ["BatchNorm2d", "Dropout", "Linear", "BatchNorm1d"]


def test_the_face_networks_linear_layer_fits_the_input() -> None:
    for sides, expected in (((112, 112), 7 * 7), ((112, 96), 7 * 6), ((113, 16), 8 * 1), ((8, 8), 1)):
        assert on_meta("lresnet34e_ir", (3, *sides), 128).get_submodule("fc").in_features == 512 * expected


@pytest.mark.parametrize(("c_in", "c_out", "stride"), [(8, 8, 1), (8, 8, 2), (8, 12, 2)])
def test_ir_block_computes_its_definition(c_in: int, c_out: int, stride: int) -> None:
    torch.manual_seed(0)
    block = IRBlock(c_in, c_out, stride).eval()
    with torch.no_grad():
        for norm in (module for module in block.modules() if isinstance(module, nn.BatchNorm2d)):
            for value in (norm.weight, norm.bias, norm.running_mean):
                value.copy_(torch.randn_like(value))
        block.prelu.weight.uniform_(0, 1)
    features = torch.randn(2, c_in, 10, 10)

    def normalised(values: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return (values - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]

    hidden = normalised(nn.functional.conv2d(normalised(features, block.bn1), block.conv1.weight, padding=1), block.bn2)
    hidden = torch.where(hidden > 0, hidden, hidden * block.prelu.weight[:, None, None])
    hidden = normalised(nn.functional.conv2d(hidden, block.conv2.weight, padding=1, stride=stride), block.bn3)
    skip = features
    if stride == 2:
        convolution, norm = block.downsample
        skip = normalised(nn.functional.conv2d(features, convolution.weight, stride=2), norm)
    torch.testing.assert_close(block(features), hidden + skip)


# resnet_tiny.py


@pytest.mark.parametrize("layers", [20, 38, 50, 101, 152])
def test_tiny_imagenet_networks(layers: int) -> None:
    full, less = on_meta(f"resnet{layers}_tiny", (3, 64, 64), 200), on_meta(f"resnet{layers}_tiny_less", (3, 64, 64), 200)
    assert depth(full) == depth(less) == layers
    widths, narrow = ([module.out_channels for module in net.modules() if isinstance(module, nn.Conv2d)] for net in (full, less))
    assert narrow == [width // 4 for width in widths]
    assert min(narrow) == 16
    strided = {path for path, module in full.named_modules() if isinstance(module, nn.Conv2d) and module.stride == (2, 2)}
    stages = range(2, 4 if layers < 50 else 5)
    assert strided == {"conv1", *(f"layer{n}.0.{path}" for n in stages for path in ("conv1", "downsample.0"))}


def test_tiny_resnet50_is_as_large_as_resnet50() -> None:
    """The stride's place costs no parameter."""
    assert size(on_meta("resnet50_tiny", (3, 64, 64), 1000)) == PUBLISHED["resnet50"]


# classic.py, dpn.py


def test_lenet5() -> None:
    network = on_meta("lenet5", (1, 28, 28), 10)
    layers = (6 * (25 + 1), 16 * (6 * 25 + 1), 120 * (256 + 1), 84 * (120 + 1), 10 * (84 + 1))
    assert [
        sum(value.numel() for value in module.parameters())
        for module in network.modules()
        if not list(module.children()) and list(module.parameters())
    ] == list(layers)
    assert on_meta("lenet5", (3, 32, 20), 10).get_submodule("classifier.0").in_features == 16 * 5 * 2
    with pytest.raises(ModelError, match=r"lenet5 needs images of at least 16x16 pixels, but got 15x40: use resnet_digits"):
        build_model("lenet5", input_shape=(1, 15, 40), num_classes=10)


def test_nin() -> None:
    convolutions = (
        (3, 192, 5),
        (192, 160, 1),
        (160, 96, 1),
        (96, 192, 5),
        (192, 192, 1),
        (192, 192, 1),
        (192, 192, 3),
        (192, 192, 1),
        (192, 10, 1),
    )
    network = on_meta("nin", (3, 32, 32), 10)
    assert size(network) == sum(c_out * (c_in * kernel**2 + 1) for c_in, c_out, kernel in convolutions)
    assert not any(isinstance(module, nn.Linear) for module in network.modules())


def test_dpn92() -> None:
    """92 layers; the published widths, growths and block counts (Chen et al. 2017, table 1)."""
    network, channels = on_meta("dpn92", (3, 32, 32), 10), 64
    weights = 27 * 64 + 128
    for width, residual, growth, blocks in ((96, 256, 16, 3), (192, 512, 32, 4), (384, 1024, 24, 20), (768, 2048, 128, 3)):
        c_out = residual + growth
        weights += channels * c_out + 2 * c_out  # the projection
        for block in range(blocks):
            c_in = channels if block == 0 else residual + (block + 1) * growth
            weights += c_in * width + 9 * width * width // 32 + width * c_out + 4 * width + 2 * c_out
        channels = residual + (blocks + 1) * growth
    assert size(network) == weights + 10 * (channels + 1)
    assert depth(network) == 92
    for input_shape, sides in (((3, 32, 32), (32, 16, 8, 4)), ((3, 224, 224), (56, 28, 14, 7))):
        seen = output_shapes(on_meta("dpn92", input_shape, 10), input_shape)
        assert seen == list(zip((320, 672, 1528, 2560), sides, sides, strict=True))


def test_dual_path_block_adds_and_appends() -> None:
    torch.manual_seed(0)
    block = DualPathBlock(64 + 32, 32, 64, 16, 1, project=False).eval()
    nn.init.zeros_(block.bn3.bias)
    nn.init.zeros_(block.bn3.weight)  # the new features are zero, so that only the old ones pass
    features = torch.rand(2, 96, 6, 6)
    output = block(features)
    assert output.shape == (2, 112, 6, 6)
    torch.testing.assert_close(output[:, :96], features)
    assert not output[:, 96:].any()
    with torch.no_grad():
        block.bn3.bias.fill_(1.0)
    output = block(features)
    torch.testing.assert_close(output[:, :64], features[:, :64] + 1)  # added
    torch.testing.assert_close(output[:, 64:96], features[:, 64:])  # kept
    torch.testing.assert_close(output[:, 96:], torch.ones(2, 16, 6, 6))  # appended


# by name


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("squeezenet1_1", 1),
        ("mobilenet_v3_small", 4),
        ("vgg11", 1),
        ("vgg11", 3),
        ("mnasnet0_5", 2),
        ("shufflenet_v2_x0_5", 1),
    ],
)
def test_torchvision_networks_take_any_channels(name: str, channels: int) -> None:
    network = on_meta(name, (channels, 64, 64), 5)
    assert network(torch.empty(2, channels, 64, 64, device="meta")).shape == (2, 5)
    with torch.device("meta"):
        original = torchvision.models.get_model(name, weights=None, num_classes=5)
    differing = [key for key, value in original.state_dict().items() if network.state_dict()[key].shape != value.shape]
    assert len(differing) == (channels != 3)
    assert list(network.state_dict()) == list(original.state_dict())


@pytest.mark.parametrize(("name", "side"), [("googlenet", 64), ("inception_v3", 96)])
def test_auxiliary_heads_are_left_out(name: str, side: int, tmp_path: Path) -> None:
    network = on_meta(name, (3, side, side), 5)
    assert isinstance(network(torch.empty(2, 3, side, side, device="meta")), Tensor)  # in training mode
    with torch.device("meta"):
        original = torchvision.models.get_model(name, weights=None, num_classes=5, init_weights=False)
    assert {key for key in original.state_dict() if key not in network.state_dict()}, (
        "torchvision has no auxiliary heads any more"
    )
    state = {key: torch.zeros(value.shape) for key, value in original.state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    load_weights(network.to_empty(device="cpu"), tmp_path / "weights.safetensors")
    assert not any(value.any() for value in network.state_dict().values())


def test_timm() -> None:
    pytest.importorskip("timm")
    network = build_model("timm:resnet10t", input_shape=(1, 32, 32), num_classes=6)
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 6)
    with pytest.raises(UnknownNameError, match=r"unknown model 'timm:resnt18': use one of .*timm:resnet18,"):
        build_model("timm:resnt18", input_shape=(3, 32, 32), num_classes=6)


def test_timm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"needs timm, which is not installed: pip install 'nar-hw\[timm\]'"):
        build_model("timm:resnet18", input_shape=(3, 32, 32), num_classes=6)


@pytest.mark.parametrize(
    ("name", "near"), [("resnet_digit", "resnet_digits"), ("lresnet50", "lresnet50e_ir"), ("fasterrcnn_resnet50_fpn", "resnet50")]
)
def test_unknown_names_are_answered_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"unknown model '{name}': use one of .*\b{near}\b"):
        build_model(name, input_shape=(3, 32, 32), num_classes=2)


@pytest.mark.parametrize("input_shape", [(3, 32), (3, 0, 32), (3, 32, -1), (1, 3, 32, 32)])
def test_bad_input_shapes(input_shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"input_shape must be three positive sizes \(C, H, W\), but got"):
        build_model("resnet18", input_shape=input_shape, num_classes=2)


def test_bad_num_classes() -> None:
    with pytest.raises(ModelError, match="num_classes must be at least 1, but got 0"):
        build_model("resnet18", input_shape=(3, 32, 32), num_classes=0)


# a user's file

USER_FILE = """
from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from parts import head


@dataclass
class Widths:
    hidden: int = 4


def both(*, input_shape, num_classes):
    stem = nn.Conv2d(input_shape[0], Widths().hidden, 3)
    return nn.Sequential(stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head(4, num_classes))


def classes(num_classes, hidden=3):
    return head(hidden, num_classes)


def everything(**options):
    return both(**options)


def nothing():
    return head(2, 9)


def wants_more(depth, num_classes):
    return head(depth, num_classes)


def raises():
    raise RuntimeError("no\\nluck")


def text():
    return "network"


class Own(nn.Linear):
    def __init__(self, num_classes):
        super().__init__(5, num_classes)


made = head(1, 1)
number = 3
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    (tmp_path / "parts.py").write_text("from torch import nn\n\nhead = nn.Linear\n")
    (tmp_path / "mine.py").write_text(USER_FILE)
    return tmp_path / "mine.py"


@pytest.mark.parametrize(
    ("function", "shape"), [("both", (6, 4)), ("everything", (6, 4)), ("classes", (6, 3)), ("nothing", (9, 2)), ("Own", (6, 5))]
)
def test_a_users_function(user_file: Path, function: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "parts", raising=False)
    before = list(sys.path)
    network = build_model(f"{user_file}:{function}", input_shape=(2, 8, 8), num_classes=6)
    assert sys.path == before
    assert list(network.parameters())[-2].shape == shape


def test_a_relative_path(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user_file.parent)
    monkeypatch.delitem(sys.modules, "parts", raising=False)
    assert isinstance(build_model("mine.py:nothing", input_shape=(2, 8, 8), num_classes=6), nn.Linear)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("absent", r"must name a function, but its file has no 'absent'"),
        ("number", r"must name a function, but 'number' is a int"),
        ("made", r"must name a function that returns a network, but 'made' is a network"),
        ("wants_more", r"must build, but wants_more\(\) raised TypeError: .*'depth'"),
        ("raises", r"must build, but raises\(\) raised RuntimeError: no luck \(.*mine.py, line \d+\)$"),
        ("text", r"must return an nn.Module, but text\(\) returned a str"),
        ("", r"is named path/to/file.py:function, but got .*: add the function"),
    ],
)
def test_bad_functions(user_file: Path, function: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "parts", raising=False)
    with pytest.raises(ModelError, match=message) as caught:
        build_model(f"{user_file}:{function}", input_shape=(2, 8, 8), num_classes=6)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"must name a Python file, but .*mine.py does not exist"),
        ("def f(:\n", r"must import, but .*mine.py raised SyntaxError"),
        ("import a_package_that_is_missing\n", r"must import, but .*mine.py raised ModuleNotFoundError: No module named"),
    ],
)
def test_bad_files(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    before = set(sys.modules)
    with pytest.raises(ModelError, match=message):
        build_model(f"{path}:f", input_shape=(3, 8, 8), num_classes=2)
    assert not [name for name in set(sys.modules) - before if "mine" in name]


def test_a_file_without_function(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"your own model is named path/to/file.py:function, but got 'mine.py': add the function"
    ):
        build_model("mine.py", input_shape=(3, 8, 8), num_classes=2)


# weights


def lenet(weights: Path | None = None, num_classes: int = 10) -> nn.Module:
    return build_model("lenet5", input_shape=(1, 28, 28), num_classes=num_classes, pretrained_weights=weights)


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize("kind", ["weights.safetensors", "weights.pt", "checkpoint.pth"])
def test_weights_are_loaded(kind: str, tmp_path: Path) -> None:
    trained, path = lenet(), tmp_path / kind
    if kind == "weights.safetensors":
        save_file(trained.state_dict(), path)
    else:
        state = trained.state_dict()
        torch.save(state if kind == "weights.pt" else {"epoch": 3, "state_dict": state}, path)
    assert not same(trained, lenet())
    assert same(trained, lenet(path))


def test_torchvision_weights_fit_our_resnet(tmp_path: Path) -> None:
    original = torchvision.models.resnet18(weights=None, num_classes=3)
    torch.save(original.state_dict(), tmp_path / "weights.pt")
    network = build_model("resnet18", input_shape=(3, 96, 96), num_classes=3, pretrained_weights=tmp_path / "weights.pt")
    images = torch.randn(1, 3, 96, 96)
    assert torch.equal(network.eval()(images), original.eval()(images))


def test_weights_shared_by_modules_are_stored_once(tmp_path: Path) -> None:
    def network() -> nn.Module:
        layer = nn.Linear(3, 3)
        return nn.Sequential(layer, nn.ReLU(), layer)

    trained, fresh = network(), network()
    save_model(trained, str(tmp_path / "weights.safetensors"))
    load_weights(fresh, tmp_path / "weights.safetensors")
    assert same(trained, fresh)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(lenet().state_dict(), path)
    with pytest.raises(
        ModelError,
        match=r"must fit lenet5: 8 of 10 do, but classifier.4.weight is 10x84 in the file and 7x84 in the network \(and 1 more\)",
    ):
        lenet(path, num_classes=7)
    state = lenet().state_dict()
    del state["features.0.bias"]
    torch.save(state, path)
    with pytest.raises(ModelError, match=r"must fit lenet5: 9 of 10 do, but features.0.bias is missing from the file$"):
        lenet(path)
    torch.save({**lenet().state_dict(), "more": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"must fit lenet5: 10 of 10 do, but more of the file is not in the network$"):
        lenet(path)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("__import__('pathlib').Path('executed').touch()",)


def test_weights_files_are_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.bias": Malicious()}, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=r"must hold tensors only, but is damaged or holds other objects"):
        lenet(tmp_path / "weights.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_damaged_weights(suffix: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    (torch.save if suffix == "pt" else save_file)(lenet().state_dict(), path)
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"weights"}[damage])
    with pytest.raises(ModelError, match=r"weights file .* damaged") as caught:
        lenet(path)
    assert "\n" not in str(caught.value)


def test_weights_files_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"weights file .*absent.pt does not exist"):
        lenet(tmp_path / "absent.pt")
    for content in ([torch.zeros(1)], {"epoch": 3}, torch.zeros(2)):
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(ModelError, match=r"must hold a state dict \(names and tensors\), .*: save model.state_dict\(\)"):
            lenet(tmp_path / "weights.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(ModelError, match="must hold tensors only"):
        lenet(tmp_path / "plain.pt")


# bn_inception.py, highway.py, efficientnet.py, usual sizes


def test_bn_inception() -> None:
    """Ioffe and Szegedy 2015, figure 5: the outputs of its modules, and their weights by the table's columns."""
    network = on_meta("bn_inception", (3, 224, 224), 1000)
    seen: list[tuple[int, ...]] = []
    for module in network.get_submodule("inception").children():
        module.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    network(torch.empty(1, 3, 224, 224, device="meta"))
    sides = [28, 28, 14, 14, 14, 14, 14, 7, 7, 7]
    assert seen == list(zip((256, 320, 576, 576, 576, 576, 576, 1024, 1024, 1024), sides, sides, strict=True))
    # per module: input, #1x1, #3x3 reduce, #3x3, double #3x3 reduce, double #3x3, pool projection
    table = (
        (192, 64, 64, 64, 64, 96, 32),
        (256, 64, 64, 96, 64, 96, 64),
        (320, 0, 128, 160, 64, 96, 0),
        (576, 224, 64, 96, 96, 128, 128),
        (576, 192, 96, 128, 96, 128, 128),
        (576, 160, 128, 160, 128, 160, 96),
        (576, 96, 128, 192, 160, 192, 96),
        (576, 0, 128, 192, 192, 256, 0),
        (1024, 352, 192, 320, 160, 224, 128),
        (1024, 352, 192, 320, 192, 224, 128),
    )
    weights = 49 * 3 * 64 + 2 * 64 + 64 * 64 + 2 * 64 + 9 * 64 * 192 + 2 * 192
    for c_in, single, reduce, triple, twice, double, pool in table:
        weights += c_in * (single + reduce + twice + pool) + 9 * (reduce * triple + twice * double + double * double)
        weights += 2 * (single + reduce + triple + twice + 2 * double + pool)
    assert size(network) == weights + 1025 * 1000


def test_highway() -> None:
    """FitNet-4's 17 convolutions and two linear layers; a gate beside each where the width stays."""
    network = on_meta("highway19", (3, 32, 32), 10)
    gated = {32: 2, 48: 1, 80: 5, 128: 5}
    plain = ((3, 32), (32, 48), (48, 80), (80, 128))
    expected = sum(2 * count * (9 * width**2 + width) for width, count in gated.items())
    expected += sum(9 * c_in * c_out + c_out for c_in, c_out in plain)
    assert size(network) == expected + 129 * 500 + 501 * 10
    assert depth(network) - sum(gated.values()) == 19


def test_a_highway_layer_mixes_what_it_makes_with_what_it_is_given() -> None:
    torch.manual_seed(0)
    layer = HighwayConv(3)
    images = torch.randn(2, 3, 5, 5)
    made, gate = layer.conv(images).relu(), torch.sigmoid(layer.gate(images))
    torch.testing.assert_close(layer(images), gate * made + (1 - gate) * images)
    torch.nn.init.constant_(layer.gate.bias, -100.0)
    torch.testing.assert_close(layer(images), images)
    network = build_model("highway19", input_shape=(1, 8, 8), num_classes=2)
    gates = [module for module in network.modules() if isinstance(module, HighwayConv)]
    assert all((module.gate.bias == -2.0).all() for module in gates)


def test_compound_scaling_makes_the_published_networks() -> None:
    """Tan and Le 2019: B1 to B3 are phi = 0.5, 1 and 2, depth and width rounded to tenths; FLOPs about double with phi."""
    published = {0.5: (1.1, 1.0, 240), 1.0: (1.2, 1.1, 260), 2.0: (1.4, 1.2, 300)}
    for phi, (depth_factor, width_factor, pixels) in published.items():
        found = compound_scaling(phi)
        assert round(found.depth, 1) == depth_factor
        assert round(found.width, 1) == width_factor
        assert found.pixels(224) == pytest.approx(pixels, rel=0.02)
    assert compound_scaling(1).flops == pytest.approx(1.2 * 1.1**2 * 1.15**2)
    assert compound_scaling(3).flops == pytest.approx(compound_scaling(1).flops ** 3)
    assert compound_scaling(0) == (1, 1, 1)
    with pytest.raises(ModelError, match="alpha, beta, gamma >= 1 must hold"):
        compound_scaling(1, gamma=0.9)


@pytest.mark.parametrize(("name", "phi"), [("efficientnet_b2", 1.0), ("efficientnet_b3", 2.0)])
def test_scaled_layers_and_channels_are_torchvisions(name: str, phi: float) -> None:
    """Of B0's first stage of two blocks with 24 channels."""
    with torch.device("meta"):
        stage = torchvision.models.get_model(name, weights=None).features[2]
    scaling = Scaling(*(round(value, 1) for value in compound_scaling(phi)[:2]), 1.0)
    assert scaling.layers(2) == len(stage)
    assert scaling.channels(24) == stage[0].out_channels


@pytest.mark.parametrize(
    ("name", "shape", "outputs"),
    [
        ("lresnet50e_ir", (3, 112, 112), 512),
        ("resnet18", (3, 224, 224), 1000),
        ("resnet20_cifar", (3, 32, 32), 10),
        ("resnet20_tiny_less", (3, 64, 64), 10),
        ("lenet5", (1, 28, 28), 10),
        ("inception_v3", (3, 299, 299), 1000),
        ("alexnet", (3, 224, 224), 1000),
    ],
)
def test_usual_sizes(name: str, shape: tuple[int, int, int], outputs: int) -> None:
    assert usual_input(name) == shape
    assert usual_outputs(name, shape) == outputs


def test_nobody_knows_the_usual_size_of_a_users_network() -> None:
    with pytest.raises(ModelError, match=r"nothing says which images 'net\.py:build' takes: give their shape"):
        usual_input("net.py:build")
    with pytest.raises(UnknownNameError, match="unknown model 'resnet19'"):
        usual_input("resnet19")
