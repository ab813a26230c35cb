"""ExecuTorch: what it computes is what torch computes, at borders too, and what it cannot have is told in one line."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

from nar_hw.errors import ExportError, ModelError, RuntimeUnavailableError
from nar_hw.export.executorch import ExecuTorchNetwork, save_executorch
from nar_hw.export.onnx import run_torch
from nar_hw.runtimes import RuntimeConfig, runtime_class
from tests.networks import borders

SHAPE = (3, 8, 8)
CONFIG = RuntimeConfig(runtime="executorch")

if reason := runtime_class("executorch").unavailable(CONFIG):
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((1, *SHAPE), dtype=np.float32)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return borders()


@pytest.fixture(scope="module")
def file(network: nn.Module, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_executorch(network, tmp_path_factory.mktemp("executorch") / "m.pte", images, 1)


def test_windows_at_borders_are_torchs(network: nn.Module, images: np.ndarray, file: Path) -> None:
    loaded = ExecuTorchNetwork([str(file)], images, 1)
    for seed in (4, 5):
        others = np.random.default_rng(seed).standard_normal(images.shape, dtype=np.float32)
        np.testing.assert_allclose(loaded.infer(others), run_torch(network, others), rtol=1e-5, atol=1e-5)
    loaded.close()


def test_files_tell_nothing_of_this_machine(file: Path) -> None:
    data = file.read_bytes()
    assert data[4:6] == b"ET"
    assert str(Path(__file__).parent).encode() not in data


def test_files_that_do_not_fit_are_refused(file: Path, tmp_path: Path) -> None:
    executorch = runtime_class("executorch")
    with pytest.raises(ModelError, match=r"m.pte: the file takes images of shape \(1, 3, 8, 8\), but got \(2, 3, 8, 8\)$"):
        executorch(file, SHAPE, RuntimeConfig(runtime="executorch", batch=2))
    for data in (b"", b"no network", file.read_bytes()[:2000]):
        (tmp_path / "bad.pte").write_bytes(data)
        with pytest.raises(ModelError, match=r"^ExecuTorch cannot run [^\n]*bad.pte: [^\n]+$"):
            executorch(tmp_path / "bad.pte", SHAPE, CONFIG)
    with pytest.raises(ModelError, match=r"missing.pte: [^\n]*No such file"):
        executorch(tmp_path / "missing.pte", SHAPE, CONFIG)


def test_loaded_networks_keep_their_threads(file: Path) -> None:
    executorch = runtime_class("executorch")
    with (
        executorch(file, SHAPE, CONFIG),
        pytest.raises(RuntimeUnavailableError, match="but 2 are asked for while a network with 1"),
    ):
        executorch(file, SHAPE, RuntimeConfig(runtime="executorch", threads=2))
    for threads in (2, 1):
        with executorch(file, SHAPE, RuntimeConfig(runtime="executorch", threads=threads)) as loaded:
            assert min(loaded.time_ms(3)) > 0


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


def test_networks_that_cannot_be_traced_are_refused(images: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^torch.export must be able to trace the network, but failed: [^\n]+$"):
        save_executorch(Branching(), tmp_path / "m.pte", images, 1)
    assert list(tmp_path.iterdir()) == []


def test_what_computes_something_else_is_named(images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., np.ndarray] = ExecuTorchNetwork.infer
    monkeypatch.setattr(ExecuTorchNetwork, "infer", lambda loaded, images: original(loaded, images) * 1.001)
    with pytest.raises(ExportError, match=r"^ExecuTorch computes something else than the network: [^\n]* differ by 0.001: use"):
        save_executorch(nn.Conv2d(3, 4, 1).eval(), tmp_path / "m.pte", images, 1)
    assert list(tmp_path.iterdir()) == []


def test_without_executorch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(RuntimeUnavailableError, match=r"pip install 'nar-hw\[executorch\]'"):
        runtime_class("executorch")(nn.Identity(), SHAPE, CONFIG)
