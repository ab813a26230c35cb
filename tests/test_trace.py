import copy

import pytest
import torch
from torch import nn

from nar_hw.errors import ModelError
from nar_hw.space.trace import trace
from tests.networks import Branching, PreActivation, SharedConv, TinyResNet


def norms(model: nn.Module) -> dict[str, str | None]:
    return {conv.path: conv.norm for conv in trace(model, (3, 8, 8)).convs}


def test_shapes_norms_and_blocks_of_a_residual_network() -> None:
    traced = trace(TinyResNet(), (3, 8, 12))
    found = {conv.path: (conv.norm, conv.calls) for conv in traced.convs}
    assert found["layer1.conv1"] == ("layer1.bn1", (((8, 12), (8, 12)),))
    assert found["layer2.conv1"] == ("layer2.bn1", (((8, 12), (4, 6)),))
    assert found["layer2.skip.0"] == ("layer2.skip.1", (((8, 12), (4, 6)),))
    assert traced.residual == {"layer1", "layer2"}
    assert traced.stem() == {"conv1"}


def test_a_norm_before_the_convolution_is_not_its_own() -> None:
    assert norms(PreActivation()) == {"stem": None, "conv1": "bn2", "conv2": None}


def test_a_norm_is_owned_only_when_nothing_else_reads_or_feeds_it() -> None:
    assert norms(Branching()) == {"stem": None, "conv1": None, "conv2": None, "conv3": None}


def test_a_shared_convolution_has_one_entry_with_both_calls() -> None:
    shared = trace(SharedConv(), (3, 8, 8)).convs[1]
    assert (shared.path, shared.aliases, shared.calls) == ("shared", ("alias",), (((8, 8), (8, 8)), ((4, 4), (4, 4))))
    assert (shared.norm, shared.norm_aliases) == ("bn", ("bn_alias",))


def test_a_deep_stem_is_found_whole_and_a_plain_stack_is_not_a_stem() -> None:
    def convs(n: int) -> nn.Sequential:
        return nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(n)))

    deep = nn.Sequential(convs(3), convs(2))
    assert trace(deep, (3, 8, 8)).stem() == {"0.0", "0.1", "0.2"}
    assert trace(nn.Sequential(convs(8)), (3, 8, 8)).stem() == {"0.0"}
    assert trace(nn.Sequential(convs(2)), (3, 8, 8)).stem() == {"0.0"}


def test_the_model_is_left_as_it_was() -> None:
    model = TinyResNet().train()
    model.layer1.eval()
    before = copy.deepcopy(model.state_dict())
    flags = {name: module.training for name, module in model.named_modules()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    trace(model, (3, 8, 8))
    assert torch.equal(state, torch.get_rng_state())
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_rejected_input_shape_is_one_line() -> None:
    with pytest.raises(ModelError, match="must accept one image of shape 4x8x8") as caught:
        trace(TinyResNet(), (4, 8, 8))
    assert "\n" not in str(caught.value)
