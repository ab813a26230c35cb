import pytest
import torch
from torch import Tensor, nn

from nar_hw.search.approximate import approximate
from nar_hw.search.supernet import Supernet
from nar_hw.space.operators import FAMILIES, build_operator
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import OpSpec
from tests.networks import TinyResNet

GROUPS = {"dense": 1, "depthwise": 8, "grouped": 4}


def conv_and(operator: str, kernel: int = 3, stride: int = 1, bias: bool = False) -> tuple[nn.Conv2d, nn.Module]:
    family = next(family for family, names in FAMILIES.items() if operator in names)
    groups = GROUPS[family]
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, kernel, stride, kernel // 2, groups=groups, bias=bias)
    spec = OpSpec(operator=operator, c_in=8, c_out=8, h=8, w=8, stride=(stride, stride), groups=groups, bias=bias)
    return conv, build_operator(spec)


def effective(operator: nn.Module, size: int) -> Tensor:
    """The taps (O, I, size, size) of a linear operator of stride 1, read off its answer to single bright pixels."""
    images = torch.zeros(8, 8, size, size)
    for channel in range(8):
        images[channel, channel, size // 2, size // 2] = 1
    with torch.no_grad():
        zero = operator(torch.zeros_like(images))
        return (operator(images) - zero).flip(2, 3).transpose(0, 1)


WITH_WEIGHTS = [name for names in FAMILIES.values() for name in names if not name.startswith("plain")]


@pytest.mark.parametrize("name", WITH_WEIGHTS)
@pytest.mark.parametrize("bias", [False, True])
def test_every_operator_with_weights_becomes_like_the_convolution(name: str, bias: bool) -> None:
    conv, operator = conv_and(name, bias=bias)
    images = torch.randn(4, 8, 8, 8)
    with torch.no_grad():
        wanted = conv(images)

        def error() -> float:
            return float((operator(images) - wanted).square().mean() / wanted.square().mean())

        fresh = error()
        assert approximate(operator, conv)
        assert error() < fresh
        if name in ("conv3x3", "conv5x5", "depthwise3x3", "depthwise5x5", "depthwise7x7", "grouped3x3", "grouped5x5"):
            assert error() < 1e-10


@pytest.mark.parametrize("name", ["dwsep3x3", "dwsep5x5", "groupedsep3x3"])
def test_separable_operators_are_the_best_of_their_form(name: str) -> None:
    """The error per input channel is what the singular values beyond the first leave (Eckart and Young)."""
    conv, operator = conv_and(name)
    approximate(operator, conv)
    inside = conv.in_channels // conv.groups
    errors = (effective(operator, 7) - effective(conv, 7)).square().sum((0, 2, 3))
    for channel in range(8):
        group = channel // inside
        rows = slice(group * (8 // conv.groups), (group + 1) * (8 // conv.groups))
        singular = torch.linalg.svdvals(conv.weight.detach()[rows, channel % inside].flatten(1))
        torch.testing.assert_close(errors[channel], singular[1:].square().sum())


def test_the_average_pool_has_the_least_squares_weights() -> None:
    conv, operator = conv_and("avg3x3")
    approximate(operator, conv)
    taps = conv.weight.detach().flatten(2)  # (O, I, 9)
    box = torch.full((9, 1), 1 / 9)
    solution = torch.linalg.lstsq(box.expand(8, 9, 1), taps.transpose(1, 2)).solution  # (8, 1, I)
    torch.testing.assert_close(operator[0].weight.detach()[:, :, 0, 0], solution[:, 0])


@pytest.mark.parametrize("name", ["max3x3", "avg3x3"])
def test_pools_are_exact_on_constant_images(name: str) -> None:
    conv, operator = conv_and(name, bias=True)
    approximate(operator, conv)
    images = torch.randn(3, 8, 1, 1).expand(3, 8, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(operator(images)[:, :, 4, 4], conv(images)[:, :, 4, 4])


def test_a_larger_kernel_becomes_smaller_by_losing_its_border() -> None:
    conv, operator = conv_and("conv3x3", kernel=5)
    assert approximate(operator, conv)
    torch.testing.assert_close(operator.weight.detach(), conv.weight.detach()[:, :, 1:-1, 1:-1])


@pytest.mark.parametrize(
    ("operator", "conv"),
    [
        (nn.MaxPool2d(3, 1, 1), nn.Conv2d(8, 8, 3, padding=1)),
        (nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)), nn.Conv2d(8, 8, 3, padding=1)),
        (nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, (3, 1), padding=(1, 0))),
        (nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=2, dilation=2)),
        (nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 3, padding=1)),
        (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 1)), nn.Conv2d(8, 8, 3, padding=1)),
    ],
)
def test_unknown_forms_are_left_alone(operator: nn.Module, conv: nn.Conv2d) -> None:
    before = {key: value.clone() for key, value in operator.state_dict().items()}
    assert not approximate(operator, conv)
    assert all(torch.equal(before[key], value) for key, value in operator.state_dict().items())


def test_children_of_a_supernet_begin_near_the_network() -> None:
    """Children of a network with smooth kernels answer more like it than children built with fresh weights do."""
    torch.manual_seed(0)
    network = TinyResNet(width=16)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
            elif isinstance(module, nn.Conv2d):
                module.weight.mul_(0.3).add_(module.weight.mean((2, 3), keepdim=True), alpha=2)
    space = SearchSpace.from_model(network, (3, 8, 8))
    images = torch.randn(64, 3, 8, 8)
    supernet = Supernet(space)
    supernet.recalibrate([images])
    wanted = supernet.eval()(images)
    near, far = [], []
    for arch in [(1, 1, 1, 1), (3, 3, 3, 3), (2, 2, 2, 2), (1, 2, 3, 1)]:
        supernet.activate(arch)
        supernet.recalibrate([images])
        near.append(correlation(supernet(images), wanted))
        far.append(correlation(space.build(arch).train()(images), wanted))
    assert min(near) > 0.5 > max(far) + 0.1


def correlation(first: Tensor, second: Tensor) -> float:
    """Over images and outputs, without what is the same for all images."""
    centred = [(item - item.mean(0)).detach().flatten() for item in (first, second)]
    return float(torch.corrcoef(torch.stack(centred))[0, 1])
