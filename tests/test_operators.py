import json
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from nar_hw.errors import RunError, UnknownNameError
from nar_hw.records import as_record, changes
from nar_hw.space.operators import FAMILIES, OPERATORS, PAPER_OPERATORS, build_operator, describe, family
from nar_hw.space.spec import OpSpec
from nar_hw.testing import OperatorConformance


class TestOperators(OperatorConformance):
    @pytest.fixture(params=OPERATORS)
    def name(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def build(self, name: str) -> Callable[[OpSpec], nn.Module]:
        return OPERATORS[name].build

    @pytest.fixture
    def groups(self, name: str) -> int:
        return {"dense": 1, "depthwise": 8, "grouped": 4}[next(kind for kind, names in FAMILIES.items() if name in names)]


def parameters(name: str, c_in: int, c_out: int) -> int:
    spec = OpSpec(operator=name, c_in=c_in, c_out=c_out, h=8, w=8)
    return sum(parameter.numel() for parameter in build_operator(spec).parameters())


@given(st.integers(1, 48), st.integers(1, 48))
def test_parameters_follow_the_papers_definitions(c_in: int, c_out: int) -> None:
    assert parameters("conv3x3", c_in, c_out) == 9 * c_in * c_out
    assert parameters("conv5x5", c_in, c_out) == 25 * c_in * c_out
    assert parameters("dwsep3x3", c_in, c_out) == 9 * c_in + c_in * c_out
    assert parameters("dwsep5x5", c_in, c_out) == 25 * c_in + c_in * c_out
    assert parameters("max3x3", c_in, c_out) == parameters("avg3x3", c_in, c_out) == c_in * c_out


def test_codes_are_the_papers() -> None:
    assert PAPER_OPERATORS == ("conv3x3", "dwsep3x3", "max3x3", "avg3x3", "conv5x5", "dwsep5x5")
    assert tuple(OPERATORS)[:6] == PAPER_OPERATORS


def test_every_operator_belongs_to_one_family() -> None:
    names = [name for names in FAMILIES.values() for name in names]
    assert sorted(names) == sorted(OPERATORS)


def test_average_pool_ignores_padding() -> None:
    pool = build_operator(OpSpec(operator="plainavg3x3", c_in=8, c_out=8, h=9, w=12, groups=8))
    assert torch.allclose(pool(torch.ones(1, 8, 5, 5)), torch.ones(1, 8, 5, 5))


@pytest.mark.parametrize(
    ("c_in", "c_out", "groups", "expected"),
    [(8, 16, 1, "dense"), (8, 8, 8, "depthwise"), (8, 16, 8, "grouped"), (8, 8, 2, "grouped"), (1, 1, 1, "dense")],
)
def test_family(c_in: int, c_out: int, groups: int, expected: str) -> None:
    assert family(c_in, c_out, groups) == expected


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 8, 7, 2, 3),
        nn.Conv2d(4, 8, (1, 7), padding=(0, 3)),
        nn.Conv2d(4, 8, 3, padding=2, dilation=2),
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(4, 8, 3, padding="same"),
    ],
    ids=["7x7", "1x7", "dilated", "unpadded", "same"],
)
def test_an_unusual_convolution_is_described_completely(conv: nn.Conv2d) -> None:
    spec = describe(conv, (9, 9))
    assert spec.operator == "incumbent"
    rebuilt = build_operator(spec)
    rebuilt.load_state_dict(conv.state_dict())
    images = torch.randn(2, 4, 9, 9)
    assert torch.equal(rebuilt(images), conv(images))
    assert as_record(json.loads(json.dumps(changes(spec))), OpSpec, where="spec") == spec


def test_a_subclass_of_conv2d_is_not_taken_for_conv3x3() -> None:
    class Scaled(nn.Conv2d):
        pass

    spec = describe(Scaled(4, 4, 3, padding=1), (8, 8))
    assert (spec.operator, spec.module) == ("incumbent", "Scaled/zeros")
    with pytest.raises(UnknownNameError, match="incumbent"):
        build_operator(spec)


sizes = st.integers(1, 4096)
specs = st.builds(
    OpSpec,
    operator=st.sampled_from(list(OPERATORS)),
    c_in=sizes,
    c_out=sizes,
    h=sizes,
    w=sizes,
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    groups=sizes,
    bias=st.booleans(),
)


@given(specs)
def test_specs_round_trip(spec: OpSpec) -> None:
    assert as_record(json.loads(json.dumps(changes(spec))), OpSpec, where="spec") == spec


@pytest.mark.parametrize(
    "value",
    [{"operator": "conv3x3"}, {"operator": 3, "c_in": 1, "c_out": 1, "h": 1, "w": 1}]
    + [{"operator": "conv3x3", "c_in": bad, "c_out": 1, "h": 1, "w": 1} for bad in (0, -1, 1.5, True, "1", None)]
    + [{"operator": "conv3x3", "c_in": 1, "c_out": 1, "h": 1, "w": 1, "stride": [1, 2, 3]}],
)
def test_a_damaged_spec_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(RunError, match=r"^spec: "):
        as_record(value, OpSpec, where="spec")


def test_unknown_operator_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown operator 'conv3x4': use one of .*conv3x3"):
        build_operator(OpSpec(operator="conv3x4", c_in=1, c_out=1, h=1, w=1))
