import copy
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from nar_hw.errors import ModelError, SpaceError
from nar_hw.search.supernet import FairPaths, Supernet
from nar_hw.space.space import SearchSpace
from tests.networks import Branching, PreActivation, SharedConv, TinyResNet


def spaces() -> dict[str, SearchSpace]:
    return {
        "conv": SearchSpace.from_model(TinyResNet(), (3, 8, 8), limit_params=False),
        "block": SearchSpace.from_model(TinyResNet(), (3, 8, 8), manner="block"),
        "unequal": unequal(),
        "pre-activation": SearchSpace.from_model(PreActivation(), (3, 8, 8)),
        "shared": SearchSpace.from_model(SharedConv(), (3, 8, 8)),
        "branching": SearchSpace.from_model(Branching(), (3, 8, 8)),
    }


def unequal() -> SearchSpace:
    """Dense slots (5 candidates) and a depthwise one (3) in one network."""
    network = TinyResNet()
    network.layer1.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    return SearchSpace.from_model(network, (3, 8, 8))


torch.set_num_threads(1)  # of small networks, threads only wait for each other
torch.manual_seed(0)
SPACES = spaces()
IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return SPACES[request.param]


def supernet_of(space: SearchSpace) -> Supernet:
    torch.manual_seed(3)
    return Supernet(space)


def train_step(supernet: Supernet, optimizer: torch.optim.Optimizer) -> None:
    supernet.train()
    optimizer.zero_grad(set_to_none=True)
    supernet(IMAGES).square().mean().backward()
    optimizer.step()


def trained(space: SearchSpace, steps: int = 4) -> Supernet:
    supernet = supernet_of(space)
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    rng = random.Random(0)
    for _ in range(steps):
        supernet.activate(space.sample(rng))
        train_step(supernet, optimizer)
    return supernet


def state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_begins_as_the_network_itself(space: SearchSpace) -> None:
    supernet = supernet_of(space).eval()
    assert torch.equal(supernet(IMAGES), copy.deepcopy(space.model).eval()(IMAGES))
    assert supernet.arch == space.incumbent


def test_the_network_is_not_changed() -> None:
    model = TinyResNet()
    before = state(model)
    trained(SearchSpace.from_model(model, (3, 8, 8)))
    assert same(before, state(model))


@pytest.mark.parametrize("training", [False, True])
def test_a_child_gives_what_its_path_gives(space: SearchSpace, training: bool) -> None:
    supernet = trained(space)
    rng = random.Random(5)
    for _ in range(4):
        arch = space.sample(rng)
        supernet.activate(arch)
        supernet.recalibrate([IMAGES])
        child = supernet.train(training).child(arch)
        assert child.training is training
        assert torch.equal(child(IMAGES), supernet(IMAGES))


def test_a_child_has_weights_of_its_own() -> None:
    supernet = trained(SPACES["conv"])
    child = supernet.child(supernet.arch)
    before = state(supernet)
    with torch.no_grad():
        for tensor in (*child.parameters(), *child.buffers()):
            tensor.add_(1)
    assert same(before, state(supernet))


def test_a_child_is_as_large_as_a_child_built_alone(space: SearchSpace) -> None:
    arch = space.sample(random.Random(2))
    child, alone = supernet_of(space).child(arch), space.build(arch)
    assert [(key, value.shape) for key, value in child.state_dict().items()] == [
        (key, value.shape) for key, value in alone.state_dict().items()
    ]


def test_what_is_activated_is_what_runs(space: SearchSpace) -> None:
    """Each candidate of each slot in turn: exactly its module is called, once per call of the site."""
    supernet = supernet_of(space).eval()
    calls: list[nn.Module] = []
    for switches in supernet._switches:
        for switch in switches:
            for module in switch.choices.values():
                module.register_forward_hook(lambda module, inputs, output: calls.append(module))
    for position, slot in enumerate(space.slots):
        for code in slot.candidates:
            arch = (*space.incumbent[:position], code, *space.incumbent[position + 1 :])
            supernet.activate(arch)
            calls.clear()
            supernet(IMAGES)
            expected = [
                switch.choices[str(active)]
                for active, switches in zip(arch, supernet._switches, strict=True)
                for switch in switches
            ]
            assert {id(module) for module in calls} == {id(module) for module in expected}


def test_each_operator_computes_something_else() -> None:
    """No branch may be another's: every code gives other outputs."""
    space = SPACES["conv"]
    supernet = trained(space, 30).eval()
    outputs = []
    for code in space.slots[0].candidates:
        supernet.activate((code, *space.incumbent[1:]))
        outputs.append(supernet(IMAGES))
    for index, output in enumerate(outputs):
        assert all(not torch.allclose(output, other) for other in outputs[:index])


def test_every_candidate_has_a_norm_of_its_own() -> None:
    space = SPACES["conv"]
    supernet = supernet_of(space)
    count = sum(len(slot.candidates) for slot in space.slots)
    others = 2  # stem and the skip of layer2
    norms = [module for module in supernet.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == count + others
    supernet.train().activate((2, *space.incumbent[1:]))
    before = state(supernet)
    supernet(IMAGES)
    moved = {
        key.split(".running")[0]
        for key, value in state(supernet).items()
        if "running" in key and not torch.equal(value, before[key])
    }
    assert "network.layer1.bn1.choices.2" in moved
    assert not {f"network.layer1.bn1.choices.{code}" for code in (0, 1, 3, 4, 5)} & moved


def test_inactive_operators_have_no_gradients_and_do_not_move(space: SearchSpace) -> None:
    """Momentum from an earlier step and weight decay must not move what does not run."""
    supernet = supernet_of(space)
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
    first = tuple(slot.candidates[0] for slot in space.slots)
    second = tuple(slot.candidates[-1] for slot in space.slots)
    supernet.activate(first)
    train_step(supernet, optimizer)  # gives the first path momentum
    before = state(supernet)
    supernet.activate(second)
    train_step(supernet, optimizer)
    active = {id(tensor) for module in supernet.path() for tensor in (*module.parameters(False), *module.buffers(False))}
    parameters = dict(supernet.named_parameters())
    assert len(active) < len(parameters) + len(dict(supernet.named_buffers()))
    for name, parameter in parameters.items():
        assert (parameter.grad is not None) is (id(parameter) in active), name
    for name, tensor in (*parameters.items(), *supernet.named_buffers()):
        assert torch.equal(before[name], tensor) is (id(tensor) not in active), name


def test_path_is_the_child() -> None:
    space = SPACES["block"]
    supernet = supernet_of(space)
    arch = space.sample(random.Random(1))
    supernet.activate(arch)
    kinds = Counter(type(module) for module in supernet.path())
    assert kinds == Counter(type(module) for module in space.build(arch).modules())


def test_recalibration_averages_the_statistics_of_its_batches() -> None:
    supernet = trained(SPACES["conv"]).eval()
    batches = [IMAGES[:4], 3 * IMAGES[4:10] + 1, IMAGES[10:]]
    features = [supernet.network.conv1(batch) for batch in batches]
    supernet.recalibrate(batches)
    norm = supernet.network.bn1
    means = torch.stack([batch.mean((0, 2, 3)) for batch in features])
    variances = torch.stack([batch.var((0, 2, 3), unbiased=True) for batch in features])
    torch.testing.assert_close(norm.running_mean, means.mean(0))
    torch.testing.assert_close(norm.running_var, variances.mean(0))


def test_recalibration_equals_cumulative_averages_of_a_child(space: SearchSpace) -> None:
    supernet = trained(space)
    arch = space.sample(random.Random(9))
    child = supernet.child(arch).train()
    for module in child.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for part in IMAGES.split(4):
            child(part)
    supernet.activate(arch)
    supernet.recalibrate(IMAGES.split(4))
    supernet.eval()
    torch.testing.assert_close(supernet(IMAGES), child.eval()(IMAGES))


def test_recalibration_depends_on_nothing_before_and_changes_statistics_of_the_path_only() -> None:
    supernet = trained(SPACES["conv"])
    supernet.activate((1, 2, 3, 0))
    supernet.network.layer1.eval()  # modes may differ between parts
    modes = [module.training for module in supernet.modules()]
    momenta = [module.momentum for module in supernet.modules() if isinstance(module, nn.BatchNorm2d)]
    before = state(supernet)
    supernet.recalibrate([100 * IMAGES])
    supernet.recalibrate([IMAGES, IMAGES[:3]])
    first = state(supernet)
    supernet.recalibrate([IMAGES, IMAGES[:3]])
    assert same(first, state(supernet))
    assert modes == [module.training for module in supernet.modules()]
    assert momenta == [module.momentum for module in supernet.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(parameter.grad is None or parameter.requires_grad for parameter in supernet.parameters())
    active = {id(buffer) for module in supernet.path() for buffer in module.buffers(False)}
    named = dict(supernet.named_buffers())
    for name, value in first.items():
        assert torch.equal(before[name], value) is not (name in named and id(named[name]) in active), name


def test_recalibration_leaves_dropout_alone_and_recovers_from_a_failure() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.BatchNorm2d(4)
    )
    supernet = Supernet(SearchSpace.from_model(network, (3, 8, 8))).train()
    supernet.recalibrate([IMAGES])
    statistics = state(supernet)
    supernet.recalibrate([IMAGES])
    assert same(statistics, state(supernet))  # dropout would have drawn other zeros
    modes = [module.training for module in supernet.modules()]
    with pytest.raises(ModelError, match=r"its forward pass raised RuntimeError: .*to have 3 channels"):
        supernet.recalibrate([IMAGES[:, :2]])
    assert modes == [module.training for module in supernet.modules()]
    assert all(module.momentum == 0.1 for module in supernet.modules() if isinstance(module, nn.BatchNorm2d))


def test_frozen_norms_without_statistics_are_left_alone() -> None:
    network = TinyResNet()
    network.bn1 = nn.BatchNorm2d(8, track_running_stats=False)
    supernet = Supernet(SearchSpace.from_model(network, (3, 8, 8)))
    supernet.recalibrate([IMAGES])
    assert supernet.network.bn1.running_mean is None


@pytest.mark.parametrize("arch", [(0, 0, 0), (0, 0, 0, 9)])
def test_an_arch_of_another_space_is_refused(arch: tuple[int, ...]) -> None:
    supernet = supernet_of(SPACES["conv"])
    with pytest.raises(SpaceError):
        supernet.activate(arch)
    with pytest.raises(SpaceError):
        supernet.child(arch)
    assert supernet.arch == SPACES["conv"].incumbent


def test_a_block_switches_as_a_whole() -> None:
    space = SPACES["block"]
    supernet = supernet_of(space)
    supernet.activate((2, 0))
    block = supernet.network.layer1
    assert [switch.active for switch in (block.conv1, block.bn1, block.conv2, block.bn2)] == ["2"] * 4
    assert supernet.network.layer2.conv1.active == "0"


@settings(max_examples=30, deadline=None)
@given(draws=st.integers(1, 60), seed=st.integers(0, 1000))
def test_no_operator_gets_ahead_at_any_time(draws: int, seed: int) -> None:
    space = SPACES["unequal"]
    paths, rng = FairPaths(space), random.Random(seed)
    archs = [paths.draw(rng) for _ in range(draws)]
    for position, slot in enumerate(space.slots):
        counts = Counter(arch[position] for arch in archs)
        least = draws // len(slot.candidates)
        assert all(counts[code] in (least, least + 1) for code in slot.candidates)


def test_fair_paths_go_on_from_their_state() -> None:
    paths, rng = FairPaths(SPACES["unequal"]), random.Random(0)
    for _ in range(7):
        paths.draw(rng)
    other = FairPaths(SPACES["unequal"])
    other.load_state_dict(paths.state_dict())
    other_rng = random.Random()
    other_rng.setstate(rng.getstate())
    assert [paths.draw(rng) for _ in range(30)] == [other.draw(other_rng) for _ in range(30)]
