"""What every operator must do; a new one is one more parameter of the fixture."""

import copy

import pytest
import torch

from nar_hw.space.operators import FAMILIES, OPERATORS, build_operator
from nar_hw.space.spec import OpSpec

GROUPS = {"dense": 1, "depthwise": 8, "grouped": 4}


def spec_for(name: str, stride: int = 1, c_out: int = 8, bias: bool = False) -> OpSpec:
    kind = next((kind for kind, names in FAMILIES.items() if name in names), "dense")
    return OpSpec(operator=name, c_in=8, c_out=c_out, h=9, w=12, stride=(stride, stride), groups=GROUPS[kind], bias=bias)


class OperatorConformance:
    """Subclass and provide the fixture ``name``."""

    @pytest.mark.parametrize("stride", [1, 2])
    def test_keeps_the_shape_of_a_padded_convolution(self, name: str, stride: int) -> None:
        spec = spec_for(name, stride)
        out = build_operator(spec)(torch.randn(2, 8, 9, 12))
        expected = torch.nn.Conv2d(8, 8, 3, stride, 1)(torch.randn(2, 8, 9, 12))
        assert out.shape == expected.shape

    def test_gradients_reach_input_and_every_parameter(self, name: str) -> None:
        operator = build_operator(spec_for(name))
        images = torch.randn(2, 8, 9, 12, requires_grad=True)
        operator(images).square().sum().backward()
        assert images.grad is not None
        assert images.grad.abs().sum() > 0
        assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in operator.parameters())

    def test_each_build_is_a_fresh_module(self, name: str) -> None:
        first, second = build_operator(spec_for(name)), build_operator(spec_for(name))
        assert first is not second
        before = copy.deepcopy(first.state_dict())
        with torch.no_grad():
            for parameter in second.parameters():
                parameter.fill_(3)
        assert all(torch.equal(before[key], value) for key, value in first.state_dict().items())

    def test_each_channel_is_reached_by_its_own_group_only(self, name: str) -> None:
        spec = spec_for(name)
        operator = build_operator(spec).eval()
        images = torch.randn(1, 8, 9, 12)
        changed = images.clone()
        changed[:, 0] += 5
        moved = (operator(images) - operator(changed)).abs().sum(dim=(0, 2, 3)) > 1e-6
        per_group = spec.c_out // spec.groups
        assert moved[:per_group].all()
        assert not moved[per_group:].any()

    def test_bias_is_kept_where_there_are_weights(self, name: str) -> None:
        with_bias, without = (build_operator(spec_for(name, bias=bias)) for bias in (True, False))
        count = sum(p.numel() for p in with_bias.parameters()) - sum(p.numel() for p in without.parameters())
        assert count == (8 if list(without.parameters()) else 0)

    def test_is_registered_under_its_name(self, name: str) -> None:
        assert name in OPERATORS
