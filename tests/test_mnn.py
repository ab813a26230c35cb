"""MNN: what it computes is what torch computes, at borders too; its layers have the names of ONNX's nodes; it prints nothing."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from nar_hw.device.hollow import filled, hollowed
from nar_hw.errors import ExportError, ModelError
from nar_hw.export.onnx import export_onnx, run_torch
from nar_hw.records import as_record
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.runtimes.exporting import DeviceLayers
from nar_hw.runtimes.onnx_graph import weights
from tests.networks import TinyResNet, borders

pytest.importorskip("MNN")

from nar_hw.device.mnn import MnnNetwork
from nar_hw.export.mnn import save_mnn

SHAPE = (3, 8, 8)
CONFIG = RuntimeConfig(runtime="mnn")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("mnn") / "m.onnx"
    export_onnx(TinyResNet(width=32).eval(), path, input_shape=SHAPE)
    return path


@pytest.fixture(scope="module")
def file(source: Path) -> Path:
    return save_mnn(source, source.with_suffix(".mnn"), (1, *SHAPE))


@pytest.mark.parametrize(("size", "batch"), [(8, 1), (7, 2)])
def test_windows_at_borders_are_torchs(tmp_path: Path, size: int, batch: int) -> None:
    network = borders()
    export_onnx(network, tmp_path / "m.onnx", input_shape=(3, size, size))
    images = np.random.default_rng(4).standard_normal((batch, 3, size, size), dtype=np.float32)
    loaded = MnnNetwork([str(save_mnn(tmp_path / "m.onnx", tmp_path / "m.mnn", images.shape))], images, 1)
    np.testing.assert_allclose(loaded.infer(images), run_torch(network, images), rtol=1e-5, atol=1e-5)


def test_layers_have_the_names_of_the_nodes_that_they_stand_for(source: Path, file: Path) -> None:
    """What MNN adds to them, a change of layout or the other form of a matrix product, is counted to these."""
    images = np.zeros((1, *SHAPE), np.float32)
    loaded = MnnNetwork([str(file)], images, 1, profile=True)
    loaded.run()
    layers = as_record(loaded.layers(), DeviceLayers, where="layers")
    (run,), producers = runtime_class("mnn").named_layers(layers, source)
    assert {"conv1/Conv", "layer1.conv1/Conv", "layer1.conv2/Conv", "layer2.skip.0/Conv", "fc/Gemm"} <= set(run)
    assert set(run) <= set(producers)
    assert producers["layer1.conv1/Conv"] == ["Relu"]
    assert sum(run.values()) == pytest.approx(sum(layers.ms[0]))


def test_kits_leave_its_weights_out(source: Path, file: Path) -> None:
    data = file.read_bytes()
    packed = hollowed(data, weights(source))
    assert len(packed) < 0.3 * len(data)
    assert len(filled(packed)) == len(data)


def test_it_prints_nothing(file: Path, tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\nfrom nar_hw.device.mnn import MnnNetwork\n"
        "MnnNetwork(sys.argv[1:], np.zeros((1, 3, 8, 8), np.float32), 1).run()\nprint('done')"
    )
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_files_that_do_not_fit_are_refused(file: Path, tmp_path: Path) -> None:
    mnn = runtime_class("mnn")
    with pytest.raises(
        ModelError, match=r"^MNN cannot run [^\n]*m.mnn: the file takes images of shape \(3, 8, 8\), but got \(3, 9, 9\)$"
    ):
        mnn(file, (3, 9, 9), CONFIG)
    for data in (b"", b"no network", file.read_bytes()[:2000]):
        (tmp_path / "bad.mnn").write_bytes(data)
        with pytest.raises(ModelError, match=r"^MNN cannot run [^\n]*bad.mnn: [^\n]+$"):
            mnn(tmp_path / "bad.mnn", SHAPE, CONFIG)
    with pytest.raises(ModelError, match=r"missing.mnn: [^\n]*No such file"):
        mnn(tmp_path / "missing.mnn", SHAPE, CONFIG)


def test_what_computes_something_else_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., np.ndarray] = MnnNetwork.infer
    monkeypatch.setattr(MnnNetwork, "infer", lambda network, images: original(network, images) * 1.001)
    with pytest.raises(ExportError, match=r"^MNN computes something else than [^\n]* but differ by 0.001: use another"):
        save_mnn(source, tmp_path / "m.mnn", (1, *SHAPE))
    assert list(tmp_path.iterdir()) == []


def test_what_it_cannot_have_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no network")
    with pytest.raises(ExportError, match=r"^MNN cannot convert [^\n]*m.onnx: [^\n]+$"):
        save_mnn(tmp_path / "m.onnx", tmp_path / "m.mnn", (1, *SHAPE))
    assert not (tmp_path / "m.mnn").exists()
