"""Bundles for LiteRT, ncnn, MNN and ExecuTorch: files, the README's way to run them, the script for people without nar_hw."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nar_hw.bench.kit import write_bench_kit
from nar_hw.bundles.manifest import load_bundle
from nar_hw.errors import RuntimeUnavailableError
from nar_hw.export.onnx import run_torch
from nar_hw.runtimes import RuntimeConfig, runtime_class
from tests.bundles import CLASSES, MEAN, STD, exported
from tests.conftest import Shell
from tests.networks import TinyResNet

FILES = {"litert": "model.tflite", "ncnn": "model.ncnn.param", "mnn": "model.mnn", "executorch": "model.pte"}
MODULES = {"litert": "ai_edge_litert.interpreter", "ncnn": "ncnn", "mnn": "MNN", "executorch": "executorch.runtime"}
PACKAGES = {"litert": "ai-edge-litert", "ncnn": "ncnn", "mnn": "MNN", "executorch": "torch executorch"}
HERE = [name for name in FILES if runtime_class(name).unavailable(RuntimeConfig(runtime=name)) is None]


@pytest.fixture(params=FILES)
def target(request: pytest.FixtureRequest) -> str:
    if request.param not in HERE:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = TinyResNet()
    with torch.no_grad():
        network.fc.weight.mul_(20)  # outputs that tell images apart
    return network.eval()


@pytest.fixture(scope="module")
def bundle(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    return exported(network, out, batch=(1, 4), targets=("onnx", *HERE))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(path)
    return path


def scores(network: nn.Module, photo: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(photo), np.float32).transpose(2, 0, 1) / 255
    inputs = (pixels - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    return run_torch(network, inputs[None].astype(np.float32))[0]


def test_its_files_were_compared_with_torch(bundle: Path, target: str) -> None:
    made = load_bundle(bundle).manifest.compiled[target]["fp32"]
    assert (made.file, made.batch, made.device) == (FILES[target], (1, 1), "cpu")
    assert made.max_abs_error is not None
    assert made.tolerance is not None
    assert made.max_abs_error <= made.tolerance


def test_the_script_runs_them(bundle: Path, network: nn.Module, photo: Path, run_kit: Shell, target: str) -> None:
    code, out, err = run_kit(bundle / FILES[target], photo, "--top", 5, "--time", "--runs", 3, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    expected = torch.from_numpy(scores(network, photo)).softmax(0)
    given = {item["name"]: item["probability"] for item in found["images"][0]["classes"]}
    np.testing.assert_allclose([given[name] for name in CLASSES], expected.numpy(), rtol=1e-4, atol=1e-6)
    assert found["time"]["median_ms"] > 0
    assert "runs on the CPU: leave out --gpu" in run_kit(bundle / FILES[target], photo, "--gpu", 0)[2]
    assert "--batch must be from 1 to 1" in run_kit(bundle / FILES[target], photo, "--batch", 2)[2]


def test_the_readme_says_how(bundle: Path, network: nn.Module, photo: Path, target: str) -> None:
    script, *others = re.findall(r"```python\n(.*?)```", (bundle / "README.md").read_text(), re.S)
    own = next(block for block in others if re.search(rf"^(import|from) {re.escape(MODULES[target])}\b", block, re.M))
    lines = [line for line in script.splitlines() if "session" not in line]
    source = "\n".join([*lines[:-1], own, lines[-1]])
    done = subprocess.run([sys.executable, "-c", source, photo], cwd=bundle, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert CLASSES[int(scores(network, photo).argmax())] in done.stdout.splitlines()  # MNN prints more


def test_files_that_were_changed_are_refused(bundle: Path, photo: Path, tmp_path: Path, run_kit: Shell, target: str) -> None:
    name = "model.ncnn.bin" if target == "ncnn" else FILES[target]
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert f"{name} is not the file that was made" in run_kit(copy / FILES[target], photo)[2]


def test_a_missing_runtime_is_asked_for(
    bundle: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, run_kit: Shell, target: str
) -> None:
    monkeypatch.setitem(sys.modules, MODULES[target], None)
    assert run_kit(bundle / FILES[target], photo)[2].endswith(f"pip install {PACKAGES[target]}\n")


def test_they_go_to_devices_as_they_are(bundle: Path, tmp_path: Path, target: str) -> None:
    if target == "executorch":  # its package needs torch, which devices do not have
        with pytest.raises(RuntimeUnavailableError, match=r"^kits can be made for [^\n]*, but got runtime executorch$"):
            write_bench_kit({"child": bundle}, tmp_path / "kit", RuntimeConfig(runtime=target), rounds=2)
        return
    plan = write_bench_kit({"child": bundle}, tmp_path / "kit", RuntimeConfig(runtime=target), rounds=2)
    for name in plan.children[0]:
        assert (tmp_path / "kit" / name).read_bytes() == (bundle / Path(name).name).read_bytes()
