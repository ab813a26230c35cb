"""Graphs written without torch's exporter: the exporter's own, or none."""

import contextlib
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nar_hw.export import onnx as exporting
from nar_hw.export.leaves import emit
from nar_hw.export.onnx import export_onnx, open_session, run_session, run_torch
from tests.networks import TinyResNet

SHAPE = (3, 12, 12)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.narrow, self.wide = nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.inner, self.outer = nn.SiLU(), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.wide(self.inner(self.narrow(self.pool(x))))) * x


class Plain(nn.Module):
    """All that is described, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True), nn.Dropout(0.1)
        )
        self.twice, self.gate, self.relu = nn.Conv2d(8, 8, 3, padding=1, groups=8), Gate(), nn.ReLU(inplace=True)
        self.pools = nn.ModuleList([nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2)])
        self.heads = nn.ModuleList([nn.Linear(16, 5), nn.Linear(16 * 9, 5)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        assert isinstance(x, Tensor)
        assert x.dim() == 4
        y = self.relu(self.twice(x))
        y += x
        y = torch.add(F.relu(self.twice(y)), self.gate(y))
        y = torch.cat([self.pools[0](y), self.pools[1](y)], 1)
        return self.heads[0](torch.flatten(F.adaptive_avg_pool2d(y, (1, 1)), 1)) + self.heads[1](y.flatten(1))


def unsettle(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def graph(path: Path) -> list[tuple[Any, ...]]:
    """All of a file but for the names of its constants."""
    proto = onnx.load(path)
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    trained = (".weight", ".bias")

    def read(name: str) -> tuple[str, Any]:
        return (name if name not in known or name.endswith(trained) else "", known[name].tolist() if name in known else None)

    rows: list[tuple[Any, ...]] = [(proto.ir_version, str(proto.opset_import), str(proto.graph.input), str(proto.graph.output))]
    for node in proto.graph.node:
        given = sorted((item.name, str(onnx.helper.get_attribute_value(item))) for item in node.attribute)
        rows.append((node.name, node.op_type, given, [read(name) for name in node.input], list(node.output)))
    return rows


@pytest.mark.parametrize("kind", [Plain, TinyResNet])
def test_the_file_is_the_exporters(kind: Callable[[], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = unsettle(kind())
    assert emit(network, torch.zeros(2, *SHAPE)) is not None
    export_onnx(network, tmp_path / "own.onnx", input_shape=SHAPE)
    monkeypatch.setattr(exporting, "emit", lambda *_: None)
    export_onnx(network, tmp_path / "exporters.onnx", input_shape=SHAPE)
    assert graph(tmp_path / "own.onnx") == graph(tmp_path / "exporters.onnx")


def test_it_computes_what_the_network_does(tmp_path: Path) -> None:
    network = unsettle(Plain())
    images = np.random.default_rng(0).standard_normal((5, *SHAPE), dtype=np.float32)
    for batch in (1, (1, 8)):
        export_onnx(network, tmp_path / "own.onnx", input_shape=SHAPE, batch=batch)
        found = run_session(open_session(tmp_path / "own.onnx"), images)
        np.testing.assert_allclose(found, run_torch(network, images), atol=1e-5)


class Does(nn.Module):
    """A convolution, and then what ``then`` does with its output."""

    def __init__(self, then: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.relu, self.then = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True), then

    def forward(self, x: Tensor) -> Any:
        return self.then(self, self.conv(x))


def changes_a_view(network: Any, x: Tensor) -> Tensor:
    network.relu(x.flatten(1))
    return x.flatten(1)


def adds_quietly(network: Any, x: Tensor) -> Tensor:
    with contextlib.suppress(Exception):
        x = x.tanh()
    return network.relu(x)


def casts(network: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return network.conv(x).float()


def changes_behind(network: Any, x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():  # as an operator of one's own in C++ would
        x.mul_(2)
    return network.relu(x)


def changes_its_weights(network: Any, x: Tensor) -> Tensor:
    network.conv.weight.mul_(2)
    return network.conv(x)


@pytest.mark.parametrize(
    "then",
    [
        pytest.param(lambda network, x: x.tanh(), id="another function"),
        pytest.param(lambda network, x: x + 1, id="a number"),
        pytest.param(lambda network, x: x + network.conv.bias.reshape(1, 3, 1, 1), id="a weight of its own"),
        pytest.param(lambda network, x: x.flatten(1) + x.flatten(2), id="other ranks"),
        pytest.param(lambda network, x: x.flatten(), id="all images in one"),
        pytest.param(lambda network, x: x.mean((0, 2, 3), keepdim=True), id="the mean of all images"),
        pytest.param(lambda network, x: x.mean(), id="the mean of all"),
        pytest.param(lambda network, x: torch.cat([x, x]), id="more images"),
        pytest.param(lambda network, x: x.view(x.shape[0], -1), id="a shape"),
        pytest.param(lambda network, x: network.relu(x) if x.max() > 0 else x, id="a decision"),
        pytest.param(lambda network, x: torch.add(x, x, alpha=2), id="another factor"),
        pytest.param(lambda network, x: (x, network.relu(x)), id="two outputs"),
        pytest.param(lambda network, x: operator.itemgetter(0)([torch.ones(2, 3)]), id="a constant"),
        changes_a_view,
        adds_quietly,
        casts,
        changes_its_weights,
    ],
)
def test_what_is_not_described_is_left_to_the_exporter(then: Callable[[Any, Tensor], Any]) -> None:
    images = torch.zeros(2, *SHAPE)
    assert emit(Does(lambda network, x: network.relu(x)).eval(), images) is not None
    assert emit(Does(then).eval(), images) is None


def test_layers_with_more_than_their_own_computation_are_left_to_the_exporter() -> None:
    images = torch.zeros(2, *SHAPE)

    def left(change: Callable[[Any], object]) -> bool:
        network = Does(lambda network, x: network.relu(network.conv(x))).eval()
        change(network)
        return emit(network, images) is None

    assert not left(lambda network: None)
    assert left(lambda network: network.relu.register_forward_hook(lambda *_: None))
    assert left(lambda network: setattr(network.conv, "_conv_forward", lambda *_: images))
    assert left(lambda network: setattr(network, "alias", network.conv))
    assert left(lambda network: setattr(network, "tied", network.conv.weight))
    assert left(lambda network: network.double())
    assert left(lambda network: network.relu.train())


def test_a_change_that_torch_does_not_tell_of_is_noticed() -> None:
    assert emit(Does(changes_behind).eval(), torch.zeros(2, *SHAPE)) is None


def test_tensors_that_do_not_tell_of_their_changes_are_left_to_the_exporter() -> None:
    with torch.inference_mode():
        assert emit(unsettle(Plain()), torch.zeros(2, *SHAPE)) is None


def test_the_network_is_left_as_it_was() -> None:
    network = unsettle(Plain())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.random.get_rng_state()
    emit(network, torch.zeros(2, *SHAPE))
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
