import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nar_hw.data import load_data
from nar_hw.errors import RunError, SpaceError, TrainingError, UserError
from nar_hw.records import replace
from nar_hw.search.fitting import FitConfig, Fitting, fit, relative_error
from nar_hw.search.supernet import Supernet
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import OpSpec
from nar_hw.tasks import ClassificationTask
from tests.networks import Branching, PreActivation, SharedConv, TinyResNet

torch.set_num_threads(1)
TASK = ClassificationTask(load_data("fake:3x8x8x5"))
IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
CONFIG = FitConfig(epochs=2, batch=70)
EXACT = ("conv5x5", "depthwise5x5", "depthwise7x7", "grouped5x5")


def made(kind: type[nn.Module] = TinyResNet, **options: Any) -> Supernet:
    """A supernet of a network with statistics like a trained one's."""
    torch.manual_seed(0)
    network = kind()
    with torch.no_grad():
        for _ in range(20):
            network.train()(torch.randn(64, 3, 8, 8))
    return Supernet(SearchSpace.from_model(network.eval(), (3, 8, 8), **options))


def state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def depthwise() -> nn.Module:
    network = TinyResNet()
    network.layer1.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    network.layer2.conv2 = nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False)
    return network


def bottleneck(spec: OpSpec) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(spec.c_in, 2, 1, bias=False), nn.ReLU(inplace=True), nn.Conv2d(2, spec.c_out, 3, spec.stride, 1, bias=False)
    )


def in_place(spec: OpSpec) -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(spec.c_in, spec.c_out, 1, spec.stride, bias=False))


NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "conv": (TinyResNet, {"limit_params": False}),
    "block": (TinyResNet, {"manner": "block"}),
    "families": (depthwise, {}),
    "pre-activation": (PreActivation, {}),
    "shared": (SharedConv, {}),
    "branching": (Branching, {}),
    "user's own": (TinyResNet, {"operators": ["conv3x3", "max3x3", bottleneck]}),
}


@pytest.fixture(params=NETWORKS)
def supernet(request: pytest.FixtureRequest) -> Supernet:
    kind, options = NETWORKS[request.param]
    return made(kind, **options)


def test_candidates_come_nearer_and_nothing_else_changes(supernet: Supernet) -> None:
    space = supernet.space
    before, outputs = state(supernet), supernet.eval()(IMAGES)
    supernet.activate(space.sample(random.Random(0)))
    arch, training = supernet.arch, [module.training for module in supernet.modules()]
    result = fit(supernet, TASK, replace(CONFIG, epochs=4))
    assert supernet.arch == arch
    assert [module.training for module in supernet.modules()] == training
    supernet.activate(space.incumbent)
    assert torch.equal(supernet(IMAGES), outputs)

    changed = {key for key, value in supernet.state_dict().items() if not torch.equal(value, before[key])}
    rivals = set()
    for slot in space.slots:
        for site in slot.sites:
            for path in filter(None, (site.conv, *site.aliases, site.norm, *site.norm_aliases)):
                for code in set(slot.candidates) - {slot.incumbent}:
                    prefix = f"network.{path}.choices.{code}."
                    rivals |= {key for key in before if key.startswith(prefix)}
    # a larger kernel begins as the convolution itself and has nothing to learn
    larger = tuple(f"choices.{code}." for code, name in enumerate(space.operators) if name in EXACT)
    assert changed <= rivals
    assert all(any(part in key for part in larger) for key in rivals - changed if "num_batches" not in key)
    assert result.history[-1]["error"] < result.history[0]["error"]
    assert [sorted(errors) for errors in result.errors] == [list(slot.candidates) for slot in space.slots]
    for slot, errors in zip(space.slots, result.errors, strict=True):
        assert errors[slot.incumbent] == 0
        for code, error in errors.items():
            assert (error < 1e-9) == (code == slot.incumbent or space.operators[code] in EXACT)


def test_what_can_be_the_convolution_becomes_it() -> None:
    """A convolution whose taps are the same everywhere but for a factor per input channel is a separable one."""
    torch.manual_seed(1)
    network = TinyResNet()
    conv = network.layer1.conv1
    with torch.no_grad():
        conv.weight.copy_(torch.randn(8, 8, 1, 1) * torch.randn(1, 8, 3, 3))
    for _ in range(20):
        network.train()(torch.randn(64, 3, 8, 8))
    space = SearchSpace.from_model(network, (3, 8, 8), slots="layer1.conv1", operators=["conv3x3", "dwsep3x3"])
    supernet = Supernet(space)
    code = supernet.space.operators.index("dwsep3x3")
    operator = supernet.network.get_submodule("layer1.conv1").choices[str(code)]
    for module in operator:
        module.reset_parameters()
    result = fit(supernet, TASK, FitConfig(epochs=100, batch=175, lr=0.03))
    assert result.history[0]["error"] > 0.3
    assert result.errors[0][code] < 0.005


def test_the_error_of_a_linear_candidate_is_that_of_least_squares() -> None:
    """1x1 then average: linear in its weights, so that the best that can be reached is known."""
    supernet = made(slots="layer2.conv2", operators=["conv3x3", "avg3x3"])
    network = supernet.space.model.eval()
    images = torch.cat([images for images, _ in TASK.eval_batches("train")])
    seen: list[Tensor] = []
    network.layer2.conv2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network.layer2.bn2.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    with torch.no_grad():
        network(images)
    features = nn.AvgPool2d(3, 1, 1, count_include_pad=False)(seen[0]).movedim(1, -1).flatten(0, 2).double().numpy()
    target = seen[1].movedim(1, -1).flatten(0, 2).double().numpy()
    left = (
        target
        - np.column_stack([features, np.ones(len(features))])
        @ (np.linalg.lstsq(np.column_stack([features, np.ones(len(features))]), target, rcond=None)[0])
    )
    best = (left.var(axis=0) / target.var(axis=0)).mean()
    result = fit(supernet, TASK, FitConfig(epochs=40, batch=70, lr=0.03))
    code = supernet.space.operators.index("avg3x3")
    assert result.errors[0][code] == pytest.approx(best, rel=0.03)


def test_what_has_no_weights_is_only_measured() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    space = SearchSpace.from_model(network, (3, 8, 8), slots="1", operators=["depthwise3x3", "plainavg3x3"])
    result = fit(Supernet(space), TASK, FitConfig(epochs=1, batch=350))
    images = torch.cat([images for images, _ in TASK.eval_batches("train")])
    with torch.no_grad():
        features = network[0](images)
        output, target = nn.AvgPool2d(3, 1, 1, count_include_pad=False)(features), network[1](features)
    expected = ((output - target) ** 2).mean((0, 2, 3)) / target.var((0, 2, 3), unbiased=False)
    assert result.errors[0][space.operators.index("plainavg3x3")] == pytest.approx(float(expected.mean()), rel=1e-5)


def error_of(output: Tensor, target: Tensor) -> float:
    return float(relative_error(output, target)[0])


def test_relative_error_by_hand() -> None:
    target = torch.tensor([[[[1.0, 3.0]], [[0.0, 20.0]]]])  # variances 1 and 100
    assert error_of(target, target) == 0
    assert error_of(target.mean((0, 2, 3), keepdim=True).expand_as(target), target) == pytest.approx(1)
    assert error_of(target + torch.tensor([1.0, 0.0]).view(2, 1, 1), target) == pytest.approx((1 / 1 + 0) / 2)
    dead = torch.tensor([[[[1.0, 3.0]], [[5.0, 5.0]]]])  # variances 1 and 0: the second counts with 0.01 * 0.5
    assert error_of(dead + torch.tensor([0.0, 0.1]).view(2, 1, 1), dead) == pytest.approx((0 + 0.01 / 0.005) / 2, rel=1e-4)
    constant = torch.full((2, 3, 4, 4), 7.0)
    assert np.isfinite(error_of(constant + 1, constant))


def test_the_gradient_of_the_relative_error_is_that_of_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(5, 3, 4, 6, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 4.0, 1e-3]).view(3, 1, 1)
    output = torch.randn(5, 3, 4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    variance = target.var((0, 2, 3), unbiased=False)
    plain = ((output - target).square().mean((0, 2, 3)) / variance.clamp(min=0.01 * float(variance.mean()))).mean()
    (expected,) = torch.autograd.grad(plain, output)
    error, gradient = relative_error(output.detach(), target)
    torch.testing.assert_close(error, plain.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("deal", [True, False])
def test_images_are_dealt_out(deal: bool) -> None:
    supernet = made(slots="layer1.conv1")
    fitting = Fitting(supernet, TASK, FitConfig(epochs=1, batch=70, deal=deal))
    sizes: dict[str, int] = {}
    switch = supernet.network.get_submodule("layer1.conv1")
    for code, operator in switch.choices.items():
        operator.register_forward_hook(lambda module, inputs, output, code=code: sizes.__setitem__(code, len(output)))
    fitting.advance()
    teacher = str(supernet.space.slots[0].incumbent)
    assert sizes.pop(teacher) == 70
    shares = list(sizes.values())
    assert sum(shares) == (70 if deal else 70 * len(shares))
    assert max(shares) - min(shares) <= 1


def test_the_same_seed_gives_the_same_bits() -> None:
    first, second, other = made(), made(), made()
    fit(first, TASK, CONFIG)
    torch.randn(7)
    fit(second, TASK, CONFIG)
    assert same(state(first), state(second))
    fit(other, TASK, replace(CONFIG, seed=1))
    assert not same(state(first), state(other))


def test_a_stopped_fitting_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=3)
    whole = made()
    expected = fit(whole, TASK, config)

    def stop(log: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(made(), TASK, config, out=tmp_path, on_epoch=stop)
    resumed = made()
    logs: list[Any] = []
    result = fit(resumed, TASK, config, out=tmp_path, resume=True, on_epoch=logs.append)
    assert [log["epoch"] for log in logs] == [2, 3]
    assert same(state(whole), state(resumed))
    assert result.errors == expected.errors
    again = made()
    assert fit(again, TASK, config, out=tmp_path, resume=True, on_epoch=logs.append).errors == expected.errors
    assert same(state(whole), state(again))
    assert len(logs) == 2


def test_only_the_same_fitting_is_resumed(tmp_path: Path) -> None:
    fit(made(), TASK, CONFIG, out=tmp_path)
    with pytest.raises(RunError, match="holds a fitting already"):
        fit(made(), TASK, CONFIG, out=tmp_path)
    with pytest.raises(RunError, match="another config"):
        fit(made(), TASK, replace(CONFIG, lr=0.02), out=tmp_path, resume=True)
    with pytest.raises(RunError, match="another slots"):
        fit(made(manner="block"), TASK, CONFIG, out=tmp_path, resume=True)
    other = made()
    with torch.no_grad():
        other.network.fc.weight.add_(1)
    with pytest.raises(RunError, match=r"same trained weights, but network\.fc\.weight differs"):
        fit(other, TASK, CONFIG, out=tmp_path, resume=True)


def test_an_operator_that_changes_its_input_is_refused() -> None:
    with pytest.raises(SpaceError, match="'in_place' must not change its input"):
        fit(made(operators=["conv3x3", in_place]), TASK, CONFIG)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(TrainingError, match="batch <= training images"):
        fit(made(), TASK, FitConfig(batch=1000))
    with pytest.raises(TrainingError, match="two images for each of 4 candidates, but has 7"):
        fit(made(), TASK, FitConfig(batch=7))
    for wrong in ({"epochs": 0}, {"batch": 0}, {"lr": 0.0}, {"precision": "fp8"}):
        with pytest.raises(UserError, match="must hold for fitting"):
            FitConfig(**wrong)  # type: ignore[arg-type]
    broken = made()
    with torch.no_grad():
        broken.network.conv1.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"error of \w+ at layer1.conv1 must be finite"):
        fit(broken, TASK, CONFIG)


def test_bf16_and_channels_last_fit_as_well() -> None:
    plain, fast = fit(made(), TASK, CONFIG), fit(made(), TASK, replace(CONFIG, precision="bf16", channels_last=True))
    assert fast.history[-1]["error"] == pytest.approx(plain.history[-1]["error"], rel=0.05)
