import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, fx, nn

from nar_hw.errors import ModelError, SpaceError, UnknownNameError
from nar_hw.models import build_model
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import OpSpec
from tests.networks import PreActivation, SharedConv, TinyResNet

SPACE = SearchSpace.from_model(TinyResNet(), (3, 8, 8))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def shuffled(model: nn.Module) -> nn.Module:
    """Random statistics and affine values everywhere, as after training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
                module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


def test_slots_of_a_residual_network() -> None:
    assert [slot.name for slot in SPACE.slots] == ["layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2"]
    assert [slot.sites[0].norm for slot in SPACE.slots] == ["layer1.bn1", "layer1.bn2", "layer2.bn1", "layer2.bn2"]
    assert SPACE.incumbent == (0, 0, 0, 0)
    # the paper's rule: 5x5 convolutions have more parameters than the incumbent, separable 5x5 ones fewer
    assert all(slot.candidates == (0, 1, 2, 3, 5) for slot in SPACE.slots)
    assert SPACE.size == 5**4


def test_the_rule_on_parameters_can_be_lifted() -> None:
    space = SearchSpace.from_model(TinyResNet(), (3, 8, 8), limit_params=False)
    assert space.slots[0].candidates == (0, 1, 2, 3, 4, 5)


def test_block_manner_groups_by_skip() -> None:
    space = SearchSpace.from_model(TinyResNet(), (3, 8, 8), manner="block")
    assert [slot.name for slot in space.slots] == ["layer1", "layer2"]
    assert [[site.conv for site in slot.sites] for slot in space.slots] == [
        ["layer1.conv1", "layer1.conv2"],
        ["layer2.conv1", "layer2.conv2"],
    ]
    child = space.build((2, 0))
    assert isinstance(child.layer1.conv1, nn.Sequential)
    assert isinstance(child.layer1.conv2, nn.Sequential)
    assert isinstance(child.layer2.conv1, nn.Conv2d)


def test_a_users_grouping() -> None:
    space = SearchSpace.from_model(TinyResNet(), (3, 8, 8), manner="block", blocks=lambda path: path.rsplit(".")[-1])
    assert [(slot.name, len(slot.sites)) for slot in space.slots] == [("conv1", 2), ("conv2", 2)]


@pytest.mark.parametrize("manner", ["conv", "block"])
@pytest.mark.parametrize("model", [TinyResNet(), PreActivation(), SharedConv()], ids=lambda model: type(model).__name__)
def test_the_incumbent_child_is_the_network_bit_for_bit(model: nn.Module, manner: str) -> None:
    shuffled(model)
    space = SearchSpace.from_model(model, (3, 8, 8), manner=manner)  # type: ignore[arg-type]
    assert torch.equal(space.build(space.incumbent).eval()(IMAGES), model(IMAGES))


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_a_child_differs_in_the_chosen_slots_only(seed: int) -> None:
    arch = SPACE.sample(random.Random(seed))
    child, original = dict(SPACE.build(arch).named_modules()), dict(SPACE.model.named_modules())
    changed = {slot.sites[0].conv for slot, code in zip(SPACE.slots, arch, strict=True) if code != 0}
    for path, module in original.items():
        if path in changed:
            assert type(child[path]) is nn.Sequential
        else:
            assert type(child[path]) is type(module)
            assert list(module.children()) or repr(child[path]) == repr(module)
    added = {path for path in child if path not in original}
    assert all(any(path.startswith(f"{slot}.") for slot in changed) for path in added)


class AroundSlots(fx.Tracer):
    """Traces a network with the slots' convolutions and norms as opaque calls."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        sites = [site for slot in space.slots for site in slot.sites]
        self.opaque = {path for site in sites for path in (site.conv, site.norm)}

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return path in self.opaque or super().is_leaf_module(module, path)

    def edges(self, network: nn.Module) -> list[tuple[str, ...]]:
        return [(node.name, node.op, str(node.target), str(node.args), str(node.kwargs)) for node in self.trace(network).nodes]


@pytest.mark.parametrize("manner", ["conv", "block"])
@pytest.mark.parametrize("name", ["resnet18", "lresnet50e_ir", "densenet121", "mobilenet_v2", "resnext50_32x4d", "googlenet"])
def test_nodes_and_edges_outside_the_slots_stay(name: str, manner: str) -> None:
    shape = (3, 112, 112) if name == "lresnet50e_ir" else (3, 64, 64)
    model = build_model(name, input_shape=shape, num_classes=10).eval()
    space = SearchSpace.from_model(model, shape, manner=manner)  # type: ignore[arg-type]
    arch = tuple(next((code for code in slot.candidates if code != slot.incumbent), slot.incumbent) for slot in space.slots)
    child, tracer = space.build(arch), AroundSlots(space)
    before, after = tracer.edges(model), tracer.edges(child)
    assert before == after
    assert len(before) > 2 * len(space.slots)
    kept = {path: repr(module) for path, module in model.named_modules() if not list(module.children())}
    now = {path: repr(module) for path, module in child.named_modules() if not list(module.children())}
    changed = {path for path in kept if now.get(path) != kept[path]}
    assert changed <= tracer.opaque
    assert len(changed) >= sum(not slot.fixed for slot in space.slots)


def test_a_child_is_standalone() -> None:
    child = SPACE.build((1, 2, 3, 5))
    assert all(not type(module).__module__.startswith("nar_hw") for module in child.modules())
    assert child(IMAGES).shape == (2, 5)


def test_the_space_does_not_share_weights_with_model_or_children() -> None:
    model = TinyResNet()
    space = SearchSpace.from_model(model, (3, 8, 8))
    child = space.build(space.incumbent)
    ids = [{parameter.data_ptr() for parameter in module.parameters()} for module in (model, space.model, child)]
    assert not ids[0] & ids[1]
    assert not ids[1] & ids[2]


def test_inherit_copies_all_that_fits_and_nothing_else() -> None:
    trained = shuffled(TinyResNet())
    child = SPACE.build((0, 1, 0, 0)).eval()
    fresh = SPACE.inherit(child, trained)
    assert all(key.startswith(("layer1.conv2.", "layer1.bn2.")) for key in fresh)
    assert torch.equal(child.layer1.conv1.weight, trained.layer1.conv1.weight)
    assert torch.equal(child.layer1.bn2.running_mean, torch.zeros(8))
    assert torch.equal(child.fc.weight, trained.fc.weight)
    whole = SPACE.build(SPACE.incumbent).eval()
    assert SPACE.inherit(whole, trained) == ()
    assert torch.equal(whole(IMAGES), trained(IMAGES))


def test_shared_convolutions_are_replaced_under_every_name() -> None:
    space = SearchSpace.from_model(SharedConv(), (3, 8, 8))
    assert len(space.slots) == 1
    child = space.build((1,))
    assert child.shared is child.alias
    assert child.bn is child.bn_alias
    assert [(spec.h, spec.w) for _, _, spec in space.specs((1,))] == [(8, 8), (4, 4)]
    child(IMAGES)


def test_the_walk_over_specs() -> None:
    assert [(position, spec) for position, _, spec in SPACE.specs((0, 1, 2, 3))] == [
        (0, OpSpec(operator="conv3x3", c_in=8, c_out=8, h=8, w=8)),
        (1, OpSpec(operator="dwsep3x3", c_in=8, c_out=8, h=8, w=8)),
        (2, OpSpec(operator="max3x3", c_in=8, c_out=16, h=8, w=8, stride=(2, 2))),
        (3, OpSpec(operator="avg3x3", c_in=16, c_out=16, h=4, w=4)),
    ]


class Mixed(nn.Module):
    """Depthwise, grouped, dilated, unpadded, rectangular and strided convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.dilated = nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.unpadded = nn.Conv2d(16, 16, 3)
        self.rectangular = nn.Conv2d(16, 16, (1, 7), padding=(0, 3))
        self.patches = nn.Conv2d(16, 16, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.depthwise(self.stem(x)))
        return self.patches(self.rectangular(self.unpadded(self.dilated(x))))


def test_candidates_suit_each_slots_family_and_shape() -> None:
    space = SearchSpace.from_model(Mixed(), (3, 16, 16))
    names = {slot.name: {space.operators[code] for code in slot.candidates} for slot in space.slots}
    assert names == {
        "depthwise": {"depthwise5x5", "depthwise3x3", "plainmax3x3", "plainavg3x3"},
        "grouped": {"grouped3x3", "groupedsep3x3", "groupedmax3x3", "groupedavg3x3"},
        "dilated": {"incumbent", "conv3x3", "dwsep3x3", "max3x3", "avg3x3", "dwsep5x5"},
        "unpadded": {"incumbent"},
        "rectangular": {"incumbent", "dwsep3x3", "max3x3", "avg3x3", "dwsep5x5"},
        "patches": {"incumbent", "dwsep3x3", "max3x3", "avg3x3", "dwsep5x5"},
    }
    assert [slot.fixed for slot in space.slots] == [False, False, False, True, False, False]
    for seed in range(5):
        child = space.build(space.sample(random.Random(seed)))
        assert child(torch.randn(2, 3, 16, 16)).shape == space.model(torch.randn(2, 3, 16, 16)).shape


def shift(spec: OpSpec) -> nn.Module:
    return nn.Sequential(nn.Conv2d(spec.c_in, spec.c_out, 1, spec.stride, bias=spec.bias), nn.ReLU())


def shrink(spec: OpSpec) -> nn.Module:
    return nn.Conv2d(spec.c_in, spec.c_out, 3)


def crash(spec: OpSpec) -> nn.Module:
    return nn.Conv2d(spec.c_in + 1, spec.c_out, 1)


def test_a_users_operator_follows_the_papers() -> None:
    space = SearchSpace.from_model(TinyResNet(), (3, 8, 8), operators=["conv3x3", "max3x3", shift])
    assert space.operators[6] == "shift"
    assert space.slots[0].candidates == (0, 2, 6)
    assert space.names((0, 6, 2, 6)) == ("conv3x3", "shift", "max3x3", "shift")
    assert isinstance(space.build((6, 0, 0, 0)).layer1.conv1[1], nn.ReLU)


def test_a_users_operator_from_a_file_makes_the_space_again(tmp_path: Path) -> None:
    file = tmp_path / "ops.py"
    file.write_text(
        "from torch import nn\n"
        "def relu1x1(spec):\n"
        "    return nn.Sequential(nn.Conv2d(spec.c_in, spec.c_out, 1, spec.stride), nn.ReLU())\n"
        "number = 3\n"
    )
    model = TinyResNet()
    space = SearchSpace.from_model(
        model, (3, 8, 8), operators=["max3x3", f"{file}:relu1x1"], slots="layer1.*", limit_params=False
    )
    assert space.names((6, 2)) == ("relu1x1", "max3x3")
    again = SearchSpace.from_model(model, (3, 8, 8), **space.asked)
    assert again.slots == space.slots
    with pytest.raises(SpaceError, match=r"operator '.*' must name a function, but 'number' is a int"):
        SearchSpace.from_model(model, (3, 8, 8), operators=[f"{file}:number"])
    with pytest.raises(SpaceError, match=r"must name a Python file, but nothing\.py does not exist"):
        SearchSpace.from_model(model, (3, 8, 8), operators=["nothing.py:f"])


def test_patterns_and_predicates_choose_slots() -> None:
    model = TinyResNet()
    assert [slot.name for slot in SearchSpace.from_model(model, (3, 8, 8), slots="layer2.*").slots] == [
        "layer2.conv1",
        "layer2.conv2",
        "layer2.skip.0",
    ]
    chosen = SearchSpace.from_model(model, (3, 8, 8), slots=lambda path, conv: conv.in_channels == 3)
    assert [slot.name for slot in chosen.slots] == ["conv1"]


def test_parse_and_names_are_inverse() -> None:
    arch = SPACE.sample(random.Random(0))
    assert SPACE.parse(",".join(map(str, arch))) == arch
    assert SPACE.parse(",".join(SPACE.names(arch))) == arch
    assert SPACE.parse(list(SPACE.names(arch))) == arch
    assert SPACE.parse("[0, conv3x3, 2, avg3x3]") == (0, 0, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"slots": "nothing.*"}, SpaceError, r"slots='nothing\.\*' must match a convolution"),
        ({"slots": lambda path, conv: False}, SpaceError, "predicate must accept"),
        ({"operators": ["conv3x3", "conv9x9"]}, UnknownNameError, "unknown operator 'conv9x9'"),
        ({"operators": [shift, shift]}, SpaceError, "'shift' is taken"),
        ({"operators": [lambda spec: nn.Identity()] * 2}, SpaceError, "'<lambda>' is taken"),
        ({"operators": [shrink]}, SpaceError, r"'shrink' must keep the shape of its slot: layer1.conv1 needs \(8, 8, 8\)"),
        ({"operators": [crash]}, SpaceError, "'crash' must run on the 8x8x8 input of layer1.conv1"),
        ({"manner": "cell"}, UnknownNameError, "unknown manner 'cell'"),
        ({"input_shape": (1, 8, 8)}, ModelError, "must accept one image of shape 1x8x8"),
    ],
)
def test_bad_input_is_one_line(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        SearchSpace.from_model(**{"model": TinyResNet(), "input_shape": (3, 8, 8), **arguments})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_network_without_spatial_convolutions_has_no_space() -> None:
    with pytest.raises(SpaceError, match="kernel larger than 1x1"):
        SearchSpace.from_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)), (3, 8, 8))


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ((0, 0, 0), "4 slots, but got 3 codes"),
        ((0, 0, 0, 4), r"slot 3 \(layer2.conv2\) admits the codes 0 \(conv3x3\), .* but got 4"),
        ((0, 0, 0, -1), "but got -1"),
    ],
)
def test_a_wrong_arch_is_one_line(arch: tuple[int, ...], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        SPACE.validate(arch)
    with pytest.raises(SpaceError, match=message):
        SPACE.parse(",".join(map(str, arch)))


def test_an_unknown_operator_in_an_arch_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown operator 'max4x4': use one of .*max3x3"):
        SPACE.parse("conv3x3,conv3x3,conv3x3,max4x4")
