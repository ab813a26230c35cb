"""Counts. Expected values come from formulas, from fvcore without our handles, and from module hooks."""

import random
import time
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import nar_hw.space.flops
from nar_hw.errors import ModelError, SpaceError, UnknownNameError
from nar_hw.models import build_model
from nar_hw.models.resnet_cifar import CifarResNet
from nar_hw.space.flops import FORMULAS, Counts, SpaceCounts, count_module, count_spec
from nar_hw.space.operators import FAMILIES, INCUMBENT, OPERATORS, Operator, build_operator
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import OpSpec
from tests.networks import PreActivation, SharedConv, TinyResNet

Shape = tuple[int, int, int]


def fvcore_flops(module: nn.Module, input_shape: Shape) -> int:
    """What fvcore says without any handle of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(module.eval(), torch.zeros(1, *input_shape))
        return int(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())


def hooked_pool_ops(module: nn.Module, input_shape: Shape) -> int:
    """Outputs times window of every nn.MaxPool2d and nn.AvgPool2d call."""
    total = 0

    def count(pool: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output.numel() * int(pool.kernel_size) ** 2

    for item in module.modules():
        if isinstance(item, (nn.MaxPool2d, nn.AvgPool2d)):
            item.register_forward_hook(count)
    with torch.no_grad():
        module.eval()(torch.zeros(1, *input_shape))
    return total


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# count_module


def test_counts_add_up() -> None:
    total = Counts(params=1, flops=20, pool_ops=300) + Counts(params=4, flops=50, pool_ops=600)
    assert total == Counts(params=5, flops=70, pool_ops=900)
    assert sum([total, total], Counts()) == total + total


def test_a_network_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # 8 x 12 x 10 out
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),  # 8 x 6 x 5
        nn.AvgPool2d((2, 1)),  # 8 x 3 x 5
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    flops = 8 * 12 * 10 * 27 + 2 * 8 * 12 * 10 + 8 * 3 * 5 + 8 * 5
    pool_ops = 8 * 6 * 5 * 9 + 8 * 3 * 5 * 2 + 8 * 3 * 5
    assert count_module(network, (3, 12, 10)) == Counts(params=8 * 28 + 16 + 45, flops=flops, pool_ops=pool_ops)
    assert fvcore_flops(network, (3, 12, 10)) == flops


def test_counting_leaves_the_network_as_it_was() -> None:
    network = TinyResNet().train()
    network.bn1.eval()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    count_module(network, (3, 16, 16))
    assert network.training
    assert network.layer1.bn1.training
    assert not network.bn1.training
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    with pytest.raises(ModelError, match=r"shape 1x16x16, but counting it raised RuntimeError: .*channels"):
        count_module(network, (1, 16, 16))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


class Function(nn.Module):
    """A function as a network without parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


functional = nn.functional

POOLS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "square": (lambda x: functional.max_pool2d(x, 3, 2, 1), 4 * 4 * 3 * 9),
    "rectangular": (lambda x: functional.avg_pool2d(x, (2, 3), 1), 4 * 6 * 4 * 6),
    "dilated": (lambda x: functional.max_pool2d(x, 2, 1, 0, 2), 4 * 5 * 4 * 4),
    "ceil": (lambda x: functional.avg_pool2d(x, 4, 4, ceil_mode=True), 4 * 2 * 2 * 16),
    "with indices": (lambda x: functional.max_pool2d(x, 2, return_indices=True)[0], 4 * 3 * 3 * 4),
    "over the whole image": (lambda x: functional.avg_pool2d(x, x.shape[2:]), 4 * 42),
    "over the whole width": (lambda x: functional.max_pool2d(x, (1, x.size(3))), 4 * 7 * 6),
    "over computed sizes": (lambda x: functional.avg_pool2d(x, (x.shape[2] // 2 - 1, x.shape[3] * 1 + 0)), 4 * 3 * 2 * 6),
    "adaptive": (lambda x: functional.adaptive_max_pool2d(x, (3, 2)), 4 * (3 + 3 + 3) * (3 + 3)),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools(name: str) -> None:
    function, pool_ops = POOLS[name]
    assert count_module(Function(function), (4, 7, 6)) == Counts(pool_ops=pool_ops)


def test_a_pool_of_unknown_window_is_refused() -> None:
    halves = Function(lambda x: functional.avg_pool2d(x, (-(-x.shape[2] // 2), 1)))
    with pytest.raises(ModelError, match=r"counting it raised ValueError: the window of a pool is computed by .*, so"):
        count_module(halves, (4, 8, 8))


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 60), outputs=st.integers(1, 60))
def test_adaptive_windows(size: int, outputs: int) -> None:
    """An average over a window of n is 1/n everywhere, so the gradient of all outputs shows each window."""
    values = torch.zeros(1, 1, size, 1, requires_grad=True)
    reads = 0
    pooled = functional.adaptive_avg_pool2d(values, (outputs, 1)).flatten()
    for output in pooled:
        (gradient,) = torch.autograd.grad(output, values, retain_graph=True)
        reads += int((gradient > 0).sum())
    assert nar_hw.space.flops._adaptive_reads(size, outputs) == reads


def test_convolutions_with_padding_by_name_count() -> None:
    """fvcore overlooks them."""
    by_name, by_size = nn.Conv2d(4, 6, (3, 5), padding="same", groups=2), nn.Conv2d(4, 6, (3, 5), padding=(1, 2), groups=2)
    assert count_module(by_name, (4, 9, 7)) == count_module(by_size, (4, 9, 7))
    assert fvcore_flops(by_size, (4, 9, 7)) == count_module(by_name, (4, 9, 7)).flops == 6 * 2 * 15 * 63


# count_spec


def specs(operator: str) -> st.SearchStrategy[OpSpec]:
    """Specs that ``operator`` can be built for: dense, depthwise or grouped as its family asks."""
    sizes = {
        "operator": st.just(operator),
        "h": st.integers(1, 13),
        "w": st.integers(1, 13),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "bias": st.booleans(),
    }
    channels = st.integers(1, 9)
    if operator in FAMILIES["dense"]:
        return st.builds(OpSpec, c_in=channels, c_out=channels, **sizes)
    if operator in FAMILIES["depthwise"]:
        return channels.flatmap(lambda c: st.builds(OpSpec, c_in=st.just(c), c_out=st.just(c), groups=st.just(c), **sizes))
    return st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)).flatmap(
        lambda f: st.builds(OpSpec, c_in=st.just(f[0] * f[1]), c_out=st.just(f[0] * f[2]), groups=st.just(f[0]), **sizes)
    )


def assert_formula_is_exact(spec: OpSpec) -> None:
    module, input_shape = build_operator(spec), (spec.c_in, spec.h, spec.w)
    expected = Counts(params=size(module), flops=fvcore_flops(module, input_shape), pool_ops=hooked_pool_ops(module, input_shape))
    assert count_spec(spec) == expected


def test_every_operator_has_a_formula() -> None:
    assert set(FORMULAS) == {*OPERATORS, INCUMBENT}


@pytest.mark.parametrize("operator", OPERATORS)
def test_formulas_agree_with_fvcore(operator: str) -> None:
    @settings(max_examples=15, deadline=None)
    @given(spec=specs(operator))
    def check(spec: OpSpec) -> None:
        assert_formula_is_exact(spec)

    check()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_incumbents_agree_with_fvcore(data: st.DataObject) -> None:
    pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    groups, kernel, dilation = data.draw(st.integers(1, 3)), data.draw(pair(1, 5)), data.draw(pair(1, 3))
    spec = OpSpec(
        operator=INCUMBENT,
        c_in=groups * data.draw(st.integers(1, 3)),
        c_out=groups * data.draw(st.integers(1, 3)),
        h=data.draw(st.integers(13, 20)),
        w=data.draw(st.integers(13, 20)),
        groups=groups,
        bias=data.draw(st.booleans()),
        stride=data.draw(pair(1, 3)),
        kernel=kernel,
        padding=data.draw(st.one_of(pair(0, 3), st.just("valid"))),
        dilation=dilation,
    )
    if spec.padding == "valid":  # fvcore alone overlooks these, so compare with the same convolution
        module = nn.Conv2d(spec.c_in, spec.c_out, kernel, spec.stride, 0, dilation, groups=groups, bias=spec.bias)
        flops = fvcore_flops(module, (spec.c_in, spec.h, spec.w))
        assert count_spec(spec) == count_module(build_operator(spec), (spec.c_in, spec.h, spec.w))
        assert count_spec(spec) == Counts(params=size(module), flops=flops)
    else:
        assert_formula_is_exact(spec)


def test_an_operator_without_formula_is_built_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        OPERATORS, "pointwise", Operator(lambda spec: nn.Conv2d(spec.c_in, spec.c_out, 1, spec.stride, bias=False))
    )
    spec = OpSpec(operator="pointwise", c_in=3, c_out=5, h=7, w=9, stride=(2, 2))
    assert count_spec(spec) == Counts(params=15, flops=15 * 4 * 5)
    with pytest.raises(UnknownNameError, match="unknown operator 'pointwis'"):
        count_spec(OpSpec(operator="pointwis", c_in=3, c_out=5, h=7, w=9))


# SpaceCounts


def narrow_conv(spec: OpSpec) -> nn.Module:
    """A user's operator: one channel in between."""
    return nn.Sequential(
        nn.Conv2d(spec.c_in, 1, 1), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, spec.stride), nn.Conv2d(1, spec.c_out, 1)
    )


def odd_conv(spec: OpSpec) -> nn.Module:
    """A user's operator with a norm, which fvcore counts."""
    return nn.Sequential(nn.Conv2d(spec.c_in, spec.c_out, 3, spec.stride, 1), nn.BatchNorm2d(spec.c_out), nn.ReLU())


class TiedConvs(nn.Module):
    """Three convolutions and a head of two weights: the first is used twice in slots, the second in and outside of one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.conv2, self.conv3, self.outside = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.conv2.weight = self.conv1.weight
        self.outside.weight = self.conv3.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.outside(self.conv3(self.conv2(self.conv1(self.stem(images)))))


class Standardised(nn.Conv2d):
    """A convolution of a class of its own, whose spec tells neither its parameters nor its FLOPs."""

    def __init__(self, channels: int, *, scaled: bool) -> None:
        super().__init__(channels, channels, 3, padding=1, bias=False)
        self.gain = nn.Parameter(torch.ones(channels)) if scaled else None

    def forward(self, images: Tensor) -> Tensor:
        weight = nn.functional.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, self.gain, training=True)
        return nn.functional.conv2d(images, weight.reshape(self.weight.shape), padding=1)


class Unusual(nn.Module):
    """Slots of every family, of a class of its own, with bias, stride, dilation and rectangular kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Conv2d(8, 8, 5, padding=2, groups=8),
            nn.Conv2d(8, 16, 3, 2, 1, groups=4, bias=False),
            nn.BatchNorm2d(16),
            Standardised(16, scaled=True),
            Standardised(16, scaled=False),
            nn.Conv2d(16, 16, 3, padding="same", dilation=2),
            nn.Conv2d(16, 12, (1, 5), (1, 2), padding=(0, 2)),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 12, 3, padding=1, padding_mode="reflect"),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean((2, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "residual": (TinyResNet, (3, 12, 9)),
    "pre-activation": (PreActivation, (3, 8, 8)),
    "shared": (SharedConv, (3, 8, 8)),
    "tied": (TiedConvs, (3, 8, 8)),
    "unusual": (Unusual, (3, 21, 40)),
    "cifar": (lambda: CifarResNet(input_shape=(1, 8, 8), num_classes=4, widths=(4, 8), blocks=(2, 1)), (1, 8, 8)),
}


@pytest.mark.parametrize("manner", ["conv", "block"])
@pytest.mark.parametrize("name", NETWORKS)
def test_space_counts_equal_fvcores_on_every_child(name: str, manner: str) -> None:
    build, input_shape = NETWORKS[name]
    space = SearchSpace.from_model(build(), input_shape, manner=manner, limit_params=False)
    counts, rng = SpaceCounts(space), random.Random(0)
    assert any(not slot.fixed for slot in space.slots)
    archs = [space.incumbent, *(space.sample(rng) for _ in range(8))]
    children = [count_module(space.build(arch), input_shape) for arch in archs]
    assert [counts.count(arch) for arch in archs] == children
    assert counts.params(archs).tolist() == [size(space.build(arch)) for arch in archs]
    assert counts.flops(np.array(archs)).tolist() == [child.flops for child in children]
    assert counts.pool_ops(np.array(archs, np.uint8)).tolist() == [child.pool_ops for child in children]
    assert len({child.flops for child in children}) > 1


def test_space_counts_equal_plain_fvcore() -> None:
    space = SearchSpace.from_model(TinyResNet(), (3, 12, 9))
    counts, rng = SpaceCounts(space), random.Random(1)
    for arch in (space.incumbent, *(space.sample(rng) for _ in range(5))):
        assert counts.count(arch).flops == fvcore_flops(space.build(arch), (3, 12, 9))
        assert counts.count(arch).pool_ops == hooked_pool_ops(space.build(arch), (3, 12, 9))


def test_a_users_operators_are_counted_once_per_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    network = CifarResNet(input_shape=(3, 8, 8), num_classes=4, widths=(4, 8), blocks=(3, 3))
    operators = ["conv3x3", "max3x3", narrow_conv, odd_conv]
    space = SearchSpace.from_model(network, (3, 8, 8), operators=operators, limit_params=False)
    runs: list[nn.Module] = []
    monkeypatch.setattr(
        nar_hw.space.flops, "count_module", lambda module, shape: runs.append(module) or count_module(module, shape)
    )
    counts, rng = SpaceCounts(space), random.Random(2)
    # 4->4 at 8x8, 4->8 at stride 2, 8->8 at 4x4, of two operators each; and the network
    assert len(runs) == 3 * 2 + 1
    own = [space.operators.index(operator.__name__) for operator in (narrow_conv, odd_conv)]
    for arch in ([own[0]] * 12, [own[1]] * 12, *(space.sample(rng) for _ in range(3))):
        assert counts.count(arch) == count_module(space.build(arch), (3, 8, 8))


def test_the_slots_and_the_rest_make_the_whole() -> None:
    space = SearchSpace.from_model(TinyResNet(), (3, 12, 12), manner="block")
    counts = SpaceCounts(space)
    arch = space.parse("max3x3,conv3x3")
    first, second = counts.per_slot(arch)
    # layer1: twice (1x1 convolution of 8 channels, max pool); layer2: 8 -> 16 with stride 2, then 16 -> 16
    assert first == Counts(params=2 * 64, flops=2 * 64 * 144, pool_ops=2 * 8 * 144 * 9)
    assert second == Counts(params=9 * (8 * 16 + 16 * 16), flops=9 * (8 * 16 + 16 * 16) * 36)
    assert first == counts.candidate(0, 2)
    assert counts.fixed + first + second == counts.count(arch)
    assert counts.fixed == counts.count(space.incumbent) + Counts(
        params=-sum(item.params for item in counts.per_slot(space.incumbent)),
        flops=-sum(item.flops for item in counts.per_slot(space.incumbent)),
    )


def test_archs_that_are_not_valid() -> None:
    counts = SpaceCounts(SearchSpace.from_model(TinyResNet(), (3, 8, 8)))
    with pytest.raises(SpaceError, match=r"archs must be integer codes of shape \(N, 4\), but got int64 of shape \(4,\)"):
        counts.flops([0, 0, 0, 0])
    with pytest.raises(SpaceError, match=r"archs must be integer codes of shape \(N, 4\), but got int64 of shape \(2, 3\)"):
        counts.flops([[0, 0, 0], [0, 0, 0]])
    with pytest.raises(SpaceError, match=r"archs must be integer codes of shape \(N, 4\), but got float64"):
        counts.params(np.zeros((1, 4)))
    for code in (4, -1, 99):  # conv5x5 has too many parameters, the others do not exist
        with pytest.raises(SpaceError, match=rf"slot 2 \(layer2.conv1\) admits the codes 0 \(conv3x3\), .*, but got {code}$"):
            counts.pool_ops([[0, 0, 0, 0], [0, 0, code, 0]])
    with pytest.raises(SpaceError, match="4 slots, but got 3 codes"):
        counts.count((0, 0, 0))
    with pytest.raises(SpaceError, match="slot 0"):
        counts.per_slot((4, 0, 0, 0))
    assert counts.flops(np.zeros((0, 4), np.int64)).shape == (0,)


def test_a_hundred_thousand_archs_a_second() -> None:
    network = build_model("lresnet50e_ir", input_shape=(3, 112, 112), num_classes=512)
    space = SearchSpace.from_model(network, (3, 112, 112))
    started = time.process_time()
    counts = SpaceCounts(space)
    assert time.process_time() - started < 10
    rng = np.random.default_rng(0)
    archs = np.stack([rng.choice(slot.candidates, 50_000) for slot in space.slots], axis=1)
    seconds = []
    for _ in range(3):
        started = time.process_time()
        params, flops, pool_ops = counts.params(archs), counts.flops(archs), counts.pool_ops(archs)
        seconds.append(time.process_time() - started)
    assert params.shape == flops.shape == pool_ops.shape == (50_000,)
    assert len(archs) / min(seconds) > 100_000
