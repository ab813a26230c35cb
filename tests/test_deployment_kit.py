"""The script for people who were handed a bundle: right answers, no trace of nar_hw, one line for each mistake."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from nar_hw.data import load_data
from nar_hw.export.onnx import run_torch
from nar_hw.files import sha256
from tests.bundles import CLASSES, MEAN, STD, exported
from tests.conftest import Shell
from tests.networks import TinyResNet

SCRIPT = Path(__file__).parent.parent / "export" / "run.py"
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
    return exported(network, tmp_path_factory.mktemp("kit") / "bundle", batch=(1, 4), precisions=("fp32", "fp16"))


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


def test_a_folder_is_classified_as_torch_does(bundle: Path, photos: Path, network: nn.Module, run_kit: Shell) -> None:
    code, out, err = run_kit(bundle, photos, "--batch", 4, "--top", 2, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["runtime"], result["device"], result["precision"]) == ("ONNX Runtime", "cpu", "fp32")
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


def test_one_image_and_its_time(bundle: Path, photos: Path, run_kit: Shell) -> None:
    code, out, err = run_kit(bundle / "model.onnx", photos / "ant" / "0.png", "--time", "--runs", 20, "--threads", 2)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.startswith(f"{photos / 'ant' / '0.png'}: ")
    assert "batch 1 in fp32 in ONNX Runtime on cpu: median " in second
    assert "images/s over 20 runs" in second


def test_other_precisions_are_their_files(bundle: Path, photos: Path, run_kit: Shell) -> None:
    result = json.loads(run_kit(bundle / "model.fp16.onnx", photos, "--json")[1])
    exact = json.loads(run_kit(bundle, photos, "--json")[1])
    assert (result["precision"], exact["precision"]) == ("fp16", "fp32")
    both = [[item["classes"][0]["probability"] for item in each["images"]] for each in (result, exact)]
    np.testing.assert_allclose(*both, rtol=0.02)
    assert both[0] != both[1]


def test_embeddings_are_given_as_torch_gives_them(network: nn.Module, photos: Path, tmp_path: Path, run_kit: Shell) -> None:
    exported(network, tmp_path / "bundle", classes=(), batch=(1, 4))
    code, out, err = run_kit(tmp_path / "bundle", photos, "--batch", 4, "--time", "--runs", 1, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    expected = run_torch(network, normalised(photos))
    np.testing.assert_allclose([item["embedding"] for item in result["images"]], expected, rtol=1e-4, atol=1e-4)
    assert "accuracy" not in result
    assert result["time"]["batch"] == 4
    (line,) = run_kit(tmp_path / "bundle", photos / "ant" / "0.png")[1].splitlines()
    name, _, numbers = line.partition(": ")
    assert name == str(photos / "ant" / "0.png")
    np.testing.assert_allclose([float(number) for number in numbers.split()], expected[0], rtol=1e-4, atol=1e-4)


def test_the_kit_needs_nothing_of_the_project() -> None:
    assert list(SCRIPT.parent.glob("*.py")) == [SCRIPT]
    tree = ast.parse(SCRIPT.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    assert foreign == {"numpy", "PIL", "onnxruntime", "ai_edge_litert", "ncnn", "MNN", "executorch", "torch"}, (
        "and what an engine names: tensorrt or tensorrt_rtx"
    )
    at_once = {node.names[0].name for node in tree.body if isinstance(node, ast.Import)} - sys.stdlib_module_names
    assert at_once == {"numpy"}, "the rest when it is needed"


def test_help_shows_an_example_and_needs_no_runtime() -> None:
    code = "import runpy, sys; sys.argv = ['run.py', '--help']; sys.modules.update(torch=None, onnxruntime=None, tensorrt=None)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "python run.py bundle cat.jpg" in done.stdout


def test_whoever_reads_may_stop(bundle: Path, photos: Path) -> None:
    """As in ``run.py ... --json | head -c 1``: no traceback."""
    process = subprocess.Popen(
        [sys.executable, SCRIPT, bundle, photos, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as err:
        assert err.read() == ""
    assert process.wait() == 1


def test_mistakes_are_told_in_one_line(bundle: Path, photos: Path, tmp_path: Path, run_kit: Shell) -> None:
    def told(*arguments: object) -> str:
        code, _, err = run_kit(*arguments)
        assert code == 2
        return err

    assert "is not a bundle: it needs" in told(photos, photos)
    endings = ".onnx, .tflite, .param, .mnn, .pte, .pt2, .engine"
    assert f"must be a bundle or end in {endings}" in told(bundle / "manifest.json", photos)
    assert "does not exist" in told(bundle, tmp_path / "nowhere")
    assert "holds no images" in told(bundle, tmp_path)
    assert "--batch must be from 1 to 4 for" in told(bundle, photos, "--batch", 5)
    assert "--threads must be at least 1, but is 0" in told(bundle, photos, "--threads", 0)
    assert "model.int8.onnx is not one of this bundle's: model.onnx, model.fp16.onnx" in told(bundle / "model.int8.onnx", photos)
    assert "model.pt2 is not one of this bundle's: it has none of this kind" in told(bundle / "model.pt2", photos)
    assert "argument --batch: invalid int value: 'x' (--help shows" in told(bundle, photos, "--batch", "x")
    assert "the following arguments are required: images" in told(bundle)
    (tmp_path / "note.png").write_text("no image")
    assert "is not a readable image" in told(bundle, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("classes"), "is damaged (KeyError('classes'))"),
        (lambda m: m.update(variants=[]), "is damaged"),
        (lambda m: m["input"].update(shape="big"), "is damaged"),
        (lambda m: m["input"].update(batch=[2, 1]), "is damaged"),
        (lambda m: m["variants"]["fp32"].update(file="../model.onnx"), "is not one of this bundle's: ../model.onnx, "),
        (lambda m: m["files"].update({"model.onnx": "0"}), "is not the file that was made"),
        (
            lambda m: (m["input"].update(shape=[5, 8, 8]), m["preprocessing"].update(mean=[1] * 5, std=[1] * 5)),
            "takes 5 channels, which image files do not have",
        ),
        (lambda m: m["input"].update(shape=[3, 9, 9]), "model.onnx does not run"),
        (lambda m: m["preprocessing"].update(mean=[1.0] * 5), "takes 3 channels, but its mean and std are for 5 and 3"),
        (lambda m: m["preprocessing"].update(std=[0.0] * 3), "is damaged"),
        (lambda m: m.update(classes=[1, 2]), "classes are not texts"),
        (lambda m: m.update(classes=["a", "b"]), "gives 5 scores, but is said to have 2 classes"),
    ],
)
def test_damaged_bundles_are_told_in_one_line(
    bundle: Path, photos: Path, tmp_path: Path, run_kit: Shell, change: Any, message: str
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert message in run_kit(copy, photos)[2]


def test_files_that_are_not_whole(bundle: Path, photos: Path, tmp_path: Path, run_kit: Shell) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "model.onnx").write_bytes(b"no network")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = sha256(copy / "model.onnx")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "ONNX Runtime cannot load" in run_kit(copy, photos)[2]
    (copy / "model.onnx").unlink()
    assert "model.onnx cannot be read: No such file" in run_kit(copy, photos)[2]
    (copy / "manifest.json").write_text("{")
    assert "manifest.json is damaged" in run_kit(copy, photos)[2]
    (copy / "manifest.json").write_text("[]")
    assert "manifest.json is damaged (it is no JSON object)" in run_kit(copy, photos)[2]


def test_outputs_that_are_not_finite_are_no_answer(bundle: Path, photos: Path, tmp_path: Path, run_kit: Shell) -> None:
    file = Path(shutil.copytree(bundle, tmp_path / "bundle")) / "model.onnx"
    proto = onnx.load(file)
    for tensor in proto.graph.initializer:
        if tensor.name == "fc.bias":
            tensor.raw_data = np.full(len(CLASSES), np.nan, np.float32).tobytes()
    onnx.save(proto, file)
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = sha256(file)
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    assert "gives numbers that are not finite" in run_kit(tmp_path / "bundle", photos)[2]


def test_a_gpu_that_is_not_there_is_no_cpu_run(
    bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, run_kit: Shell
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "no CUDA support" in run_kit(bundle, photos, "--gpu", 0)[2]
    assert "--gpu must be at least 0, but is -1" in run_kit(bundle, photos, "--gpu", -1)[2]


def test_a_runtime_that_is_not_installed_is_asked_for(
    bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, run_kit: Shell
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run_kit(bundle, photos)[2].endswith("pip install onnxruntime\n")
