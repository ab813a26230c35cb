"""The scripts for people who were handed a bundle: right answers, no trace of nar_hw, one line for each mistake."""

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from nar_hw.data import load_data
from nar_hw.export.onnx import run_torch
from tests.bundles import CLASSES, MEAN, STD, exported
from tests.networks import TinyResNet

KIT = Path(__file__).parent.parent / "export"
SIDE = 8


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = TinyResNet()
    with torch.no_grad():
        network.fc.weight.mul_(20)  # outputs that tell the images apart
    return network.eval()


@pytest.fixture(scope="module")
def bundle(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(network, tmp_path_factory.mktemp("kit") / "bundle", batch=(1, 4))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of different sizes and kinds in folders named after classes."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    sizes = [(8, 8), (8, 8), (20, 31), (9, 8), (64, 16), (8, 8)]
    for index, size in enumerate(sizes):
        path = folder / CLASSES[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        grey = index == 5
        Image.fromarray(rng.integers(0, 256, size if grey else (*size, 3)).astype(np.uint8)).save(path)
    return folder


def normalised(path: Path) -> np.ndarray:
    """An image as training saw it: brought to size by the data loader, then normalised. (C, H, W)."""
    data = load_data(f"folder:{path}@{SIDE}")
    splits = (data.train, data.valid, data.test)
    order = np.argsort(np.concatenate([split.indices for split in splits]))
    pixels = np.concatenate([split.images for split in splits])[order] / 255
    return ((pixels - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))).astype(np.float32)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, KIT / "run_onnx.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_folder_is_classified_as_torch_does(bundle: Path, photos: Path, network: nn.Module) -> None:
    done = run(bundle, photos, "--batch", "4", "--top", "2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    scores = run_torch(network, normalised(photos))
    expected = torch.from_numpy(scores).softmax(1).topk(2)
    files = sorted(photos.rglob("*.png"))
    assert [item["file"] for item in result["images"]] == [str(file) for file in files]
    found = [[entry["name"] for entry in item["classes"]] for item in result["images"]]
    assert found == [[CLASSES[index] for index in row] for row in expected.indices.tolist()]
    probabilities = [[entry["probability"] for entry in item["classes"]] for item in result["images"]]
    np.testing.assert_allclose(probabilities, expected.values.numpy(), rtol=1e-4)
    assert len({names[0] for names in found}) > 1
    right = [names[0] == file.parent.name for names, file in zip(found, files, strict=True)]
    assert result["accuracy"] == pytest.approx(sum(right) / 6)
    assert "time" not in result


def test_one_image_and_its_time(bundle: Path, photos: Path) -> None:
    done = run(bundle, photos / "ant" / "0.png", "--time", "--runs", "20", "--threads", "2")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{photos / 'ant' / '0.png'}: ")
    assert "batch 1 in fp32 on CPUExecutionProvider: median " in second
    assert "images/s over 20 runs" in second


def test_the_kit_needs_nothing_of_the_project() -> None:
    allowed = {
        "run_onnx.py": {"numpy", "onnxruntime", "PIL"},
        "run_engine.py": {"numpy", "PIL", "tensorrt", "torch"},
        "run_pt2.py": {"numpy", "PIL", "torch"},
    }
    assert {script.name for script in KIT.glob("*.py")} == set(allowed)
    for script, packages in allowed.items():
        tree = ast.parse((KIT / script).read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {name.split(".")[0] for name in names} - sys.stdlib_module_names <= packages


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_onnx", KIT / "run_onnx.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refuse(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["run_onnx.py", *map(str, arguments)])
    assert script.main() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_mistakes_are_told_in_one_line(
    script: ModuleType,
    bundle: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def told(*arguments: object) -> str:
        return refuse(script, monkeypatch, capsys, *arguments)

    assert "is not a bundle: it has no manifest.json" in told(photos, photos)
    assert "does not exist" in told(bundle, tmp_path / "nowhere")
    assert "holds no images" in told(bundle, tmp_path)
    assert "--batch must be from 1 to 4 for this bundle, but is 5" in told(bundle, photos, "--batch", 5)
    assert "--threads must be at least 1, but is 0" in told(bundle, photos, "--threads", 0)
    assert "has fp32, but --precision is int8" in told(bundle, photos, "--precision", "int8")
    (tmp_path / "note.png").write_text("no image")
    assert "is not a readable image" in told(bundle, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("classes"), "is damaged (KeyError('classes'))"),
        (lambda m: m.update(variants=[]), "is damaged"),
        (lambda m: m["input"].update(shape="big"), "is damaged"),
        (lambda m: m["variants"]["fp32"].update(file="../model.onnx"), "'../model.onnx' is not a file of the bundle"),
        (lambda m: m["files"].update({"model.onnx": "0"}), "is not the file that was exported"),
        (lambda m: m["variants"]["fp32"].update(file="README.md"), "ONNX Runtime cannot load"),
        (
            lambda m: (m["input"].update(shape=[5, 8, 8]), m["preprocessing"].update(mean=[1] * 5, std=[1] * 5)),
            "takes 5 channels, which image files do not have",
        ),
        (lambda m: m["input"].update(shape=[3, 9, 9]), "the network does not run"),
        (lambda m: m["preprocessing"].update(mean=[1.0] * 5), "mean and std are not one number per channel"),
        (lambda m: m.update(classes=[1, 2]), "classes are not texts"),
    ],
)
def test_damaged_bundles_are_told_in_one_line(
    script: ModuleType,
    bundle: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Any,
    message: str,
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert message in refuse(script, monkeypatch, capsys, copy, photos)


def test_a_truncated_manifest_and_a_missing_network(
    script: ModuleType,
    bundle: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "model.onnx").unlink()
    assert "model.onnx cannot be read" in refuse(script, monkeypatch, capsys, copy, photos)
    (copy / "manifest.json").write_text("{")
    assert "manifest.json is damaged" in refuse(script, monkeypatch, capsys, copy, photos)


def test_a_gpu_that_is_not_there_is_no_cpu_run(
    script: ModuleType, bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "no CUDA support" in refuse(script, monkeypatch, capsys, bundle, photos, "--cuda")
