"""What every operator must do."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from nar_hw.space.spec import OpSpec

Builder = Callable[[OpSpec], nn.Module]


class OperatorConformance:
    """Subclass and provide the fixture ``build``: the function from an `OpSpec` to a module that makes the operator."""

    @pytest.fixture
    def groups(self) -> int:
        """Of the convolution that it replaces; 8 channels go in. Override it for operators of grouped convolutions."""
        return 1

    def spec(self, groups: int, *, stride: int = 1, bias: bool = False) -> OpSpec:
        """Of 8 channels of 9 x 12."""
        return OpSpec(operator="under-test", c_in=8, c_out=8, h=9, w=12, stride=(stride, stride), groups=groups, bias=bias)

    @pytest.mark.parametrize("stride", [1, 2])
    def test_keeps_the_shape_of_a_padded_convolution(self, build: Builder, groups: int, stride: int) -> None:
        spec = self.spec(groups, stride=stride)
        out = build(spec)(torch.randn(2, 8, 9, 12))
        expected = torch.nn.Conv2d(8, 8, 3, stride, 1)(torch.randn(2, 8, 9, 12))
        assert out.shape == expected.shape

    def test_gradients_reach_input_and_every_parameter(self, build: Builder, groups: int) -> None:
        operator = build(self.spec(groups))
        images = torch.randn(2, 8, 9, 12, requires_grad=True)
        operator(images).square().sum().backward()
        assert images.grad is not None
        assert images.grad.abs().sum() > 0
        assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in operator.parameters())

    def test_each_build_is_a_fresh_module(self, build: Builder, groups: int) -> None:
        first, second = build(self.spec(groups)), build(self.spec(groups))
        assert first is not second
        before = copy.deepcopy(first.state_dict())
        with torch.no_grad():
            for parameter in second.parameters():
                parameter.fill_(3)
        assert all(torch.equal(before[key], value) for key, value in first.state_dict().items())

    def test_each_channel_is_reached_by_its_own_group_only(self, build: Builder, groups: int) -> None:
        spec = self.spec(groups)
        operator = build(spec).eval()
        images = torch.randn(1, 8, 9, 12)
        changed = images.clone()
        changed[:, 0] += 5
        moved = (operator(images) - operator(changed)).abs().sum(dim=(0, 2, 3)) > 1e-6
        per_group = spec.c_out // spec.groups
        assert moved[:per_group].all()
        assert not moved[per_group:].any()

    def test_bias_is_kept_where_there_are_weights(self, build: Builder, groups: int) -> None:
        with_bias, without = (build(self.spec(groups, bias=bias)) for bias in (True, False))
        count = sum(p.numel() for p in with_bias.parameters()) - sum(p.numel() for p in without.parameters())
        assert count == (8 if list(without.parameters()) else 0)
