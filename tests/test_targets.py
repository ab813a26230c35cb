"""Compiled files of a bundle: made where they can be, true to torch, checked again elsewhere, run by their script."""

import importlib.util
import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nar_hw.bundles import targets
from nar_hw.bundles.manifest import load_bundle
from nar_hw.bundles.verify import verify_bundle
from nar_hw.errors import ExportError, ModelError, RunError, RuntimeUnavailableError, UnknownNameError
from nar_hw.export import aoti
from nar_hw.export.onnx import export_onnx, run_torch
from nar_hw.files import sha256
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.runtimes.exporting import Exported, Source
from nar_hw.runtimes.openvino import OpenVino
from tests.bundles import CLASSES, MEAN, SHAPE, STD, exported as export
from tests.conftest import Shell
from tests.networks import TinyResNet

compiled = pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
slow = pytest.mark.skipif("NAR_HW_SLOW_TESTS" not in os.environ, reason="compiles for long: set NAR_HW_SLOW_TESTS=1")


def images(count: int = 40) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *SHAPE)).astype(np.float32)


def labels(network: nn.Module) -> np.ndarray:
    """What torch answers, so that every accuracy is 1 where nothing is lost."""
    return run_torch(network, images()).argmax(1)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = TinyResNet()
    with torch.no_grad():
        network.fc.weight.mul_(20)
    return network.eval()


@pytest.fixture(scope="module")
def package(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(
        network, tmp_path_factory.mktemp("aoti") / "bundle", targets=("onnx", "aoti"), images=images(), labels=labels(network)
    )


@pytest.fixture(scope="module")
def ir(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(
        network,
        tmp_path_factory.mktemp("ir") / "bundle",
        targets=("openvino",),
        precisions=("fp32", "fp16", "bf16", "int8")
        if runtime_class("openvino").unavailable(RuntimeConfig(runtime="openvino", precision="bf16")) is None
        else ("fp32", "fp16", "int8"),
        images=images(),
        labels=labels(network),
        calibration_images=images(),
        calibration="percentile",
        max_accuracy_drop=0.2,
    )


@compiled
def test_a_package_computes_what_torch_computes_and_tells_of_itself(package: Path, network: nn.Module) -> None:
    found = load_bundle(package).manifest.compiled["aoti"]["fp32"]
    assert (found.file, found.files, found.batch, found.device) == ("model.pt2", ("model.pt2",), (1, 1), "cpu")
    assert (found.accuracy, found.accuracy_delta) == (1.0, 0.0)
    assert found.tolerance is not None
    assert found.max_abs_error <= found.tolerance == pytest.approx(1e-4 * found.reference_scale)
    assert found.requires["torch"] == torch.__version__
    metadata = aoti.read_metadata(package / "model.pt2")
    assert (metadata["precision"], json.loads(metadata["input_shape"])) == ("fp32", [1, *SHAPE])
    assert json.loads(metadata["classes"]) == list(CLASSES)
    loaded = aoti.load_package(package / "model.pt2")
    some = images(1)
    np.testing.assert_allclose(loaded(torch.from_numpy(some)).numpy(), run_torch(network, some), rtol=1e-4, atol=1e-4)


@compiled
def test_a_package_holds_nothing_of_this_machine(package: Path) -> None:
    with zipfile.ZipFile(package / "model.pt2") as archive:
        # only the names of the sources are left: torch 2.11 looks for them
        assert not [item for item in archive.infolist() if item.filename.endswith((".cpp", ".h")) and item.file_size]
        for name in archive.namelist():
            data = archive.read(name)
            for trace in (str(Path.cwd()), str(Path(torch.__file__).parent), "torchinductor_", "test_targets"):
                assert trace.encode() not in data, name


@compiled
def test_a_package_runs_for_its_batch_and_precision_only(package: Path) -> None:
    file = package / "model.pt2"
    for options, message in (
        ({"batch": 2}, r"is for input_shape \[1, 3, 8, 8\], but \[2, 3, 8, 8\] is asked for"),
        ({"precision": "bf16"}, "is for precision fp32, but bf16 is asked for"),
    ):
        with pytest.raises(ModelError, match=message):
            runtime_class("aoti")(file, SHAPE, RuntimeConfig(runtime="aoti", **options))
    with pytest.raises(RunError, match=r"has no aoti file in fp32 for batch 8: export it with --to onnx,aoti"):
        load_bundle(package).file("aoti", "fp32", 8)
    assert load_bundle(package).file("aoti", "fp32", 1) == file
    assert load_bundle(package).file("onnxruntime", "fp32", 8) == package / "model.onnx"


@compiled
def test_a_package_of_another_machine_is_left_unchecked_and_said_so(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(verify_bundle(package)) == {"fp32", "aoti fp32"}
    monkeypatch.setattr(aoti, "_cpu_flags", lambda: {"sse2"})
    found = verify_bundle(package)["aoti fp32"]
    assert re.search(r"model.pt2 was made for a CPU with .*, but this one has no .*: export it again here", found["skipped"])
    assert "max_abs_error" not in found


def test_where_a_package_runs() -> None:
    import platform

    here = {"AOTI_MACHINE": platform.machine(), "AOTI_CPU_ISA": "", "AOTI_DEVICE_KEY": "cpu"}
    assert aoti.misfit(here) is None
    assert aoti.misfit({**here, "AOTI_MACHINE": "s390x"}) == f"was made for s390x, but this is {platform.machine()}"
    assert "an unknown machine" in str(aoti.misfit({}))
    if not torch.cuda.is_available():
        assert aoti.misfit({**here, "AOTI_DEVICE_KEY": "cuda"}) == "was made for a CUDA device, but torch finds none"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ({}, "not a whole AOTInductor package"),
        ({"a/x.wrapper_metadata.json": "["}, "not a whole AOTInductor package"),
        ({"a/x.wrapper_metadata.json": "[]"}, "must say in texts"),
        ({"a/x.wrapper_metadata.json": '{"precision": 1}'}, "must say in texts"),
        (b"PK\x05\x06", "not a whole AOTInductor package"),
    ],
)
def test_what_is_no_package_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "model.pt2"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in content.items():
                archive.writestr(name, text)
    with pytest.raises(RunError, match=message):
        aoti.load_package(path)


@compiled
def test_the_script_classifies_as_torch_does(package: Path, network: nn.Module, tmp_path: Path, run_kit: Shell) -> None:
    rng = np.random.default_rng(1)
    files = {f"{name}/{name}.png": rng.integers(0, 256, (*SHAPE[1:], 3)).astype(np.uint8) for name in CLASSES[:2]}
    for name, pixels in files.items():
        (tmp_path / name).parent.mkdir()
        Image.fromarray(pixels).save(tmp_path / name)
    code, out, err = run_kit(package / "model.pt2", tmp_path, "--json", "--time", "--runs", 3, "--top", 2)
    assert (code, err) == (0, "")
    answer = json.loads(out)
    stacked = np.stack(list(files.values())).transpose(0, 3, 1, 2) / 255
    inputs = (stacked - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    expected = torch.softmax(torch.from_numpy(run_torch(network, inputs.astype(np.float32))), 1).numpy()
    for item, row in zip(answer["images"], expected, strict=True):
        assert item["classes"][0]["name"] == CLASSES[row.argmax()]
        assert item["classes"][0]["probability"] == pytest.approx(row.max(), abs=1e-4)
        assert len(item["classes"]) == 2
    right = [CLASSES[row.argmax()] == name for row, name in zip(expected, CLASSES, strict=False)]
    assert answer["accuracy"] == sum(right) / 2
    assert (answer["time"]["batch"], answer["time"]["runs"], answer["device"]) == (1, 3, "cpu")
    assert answer["time"]["median_ms"] > 0


def edit(bundle: Path, **entry: Any) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["compiled"]["aoti"]["fp32"].update(entry)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@compiled
def test_the_script_tells_mistakes_in_one_line(package: Path, tmp_path: Path, run_kit: Shell) -> None:
    image = tmp_path / "a.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image)
    copy = Path(shutil.copytree(package, tmp_path / "copy"))

    def told(file: Path, *arguments: Any) -> str:
        code, _, err = run_kit(file, image, *arguments)
        assert code == 2
        return err

    assert "model.bf16.pt2 is not one of this bundle's: model.pt2" in told(package / "model.bf16.pt2")
    assert "--batch must be from 1 to 1" in told(package / "model.pt2", "--batch", 2)
    assert "was made for the CPU, but --gpu is given" in told(package / "model.pt2", "--gpu", 0)
    good = load_entry(package)["requires"]
    for changes, message in (
        ({"device": "cuda"}, "was made for an NVIDIA GPU, but torch finds"),
        ({"requires": {**good, "AOTI_MACHINE": "s390x"}}, "model.pt2 was made for s390x"),
        ({"requires": {**good, "AOTI_CPU_ISA": "SIMD_OF_NONE"}}, "was made for a CPU with SIMD_OF_NONE, which this one has not"),
        ({"requires": {**good, "AOTI_MACHINE": 1}}, "AOTI_MACHINE is no text"),
        ({"file": "../model.pt2"}, "is not one of this bundle's: ../model.pt2"),
    ):
        edit(copy, **{**load_entry(package), **changes})
        assert message in told(copy / "model.pt2", *(("--gpu", 99) if "device" in changes else ()))
    edit(copy, **load_entry(package))
    (copy / "model.pt2").write_bytes((package / "model.pt2").read_bytes()[:-9])
    assert "is not the file that was made" in told(copy / "model.pt2")


def load_entry(bundle: Path) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())["compiled"]["aoti"]["fp32"]
    return entry


@compiled
@slow
def test_packages_in_bf16_and_their_bytes(network: nn.Module, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(network, tmp_path / name, targets=("aoti",), precisions=("bf16",), images=images(), labels=labels(network))
    found = load_bundle(tmp_path / "a").manifest.compiled["aoti"]
    assert list(found) == ["bf16"]
    assert found["bf16"].max_abs_error > 1e-4 * found["bf16"].reference_scale  # it does compute in bf16
    assert sha256(tmp_path / "a" / "model.bf16.pt2") == sha256(tmp_path / "b" / "model.bf16.pt2")
    assert verify_bundle(tmp_path / "a")["aoti bf16"]["file"] == "model.bf16.pt2"


@openvino
def test_openvino_files_are_true_to_torch(ir: Path, network: nn.Module) -> None:
    bundle = load_bundle(ir).manifest
    found = bundle.compiled["openvino"]
    assert found["fp32"].files == ("model.xml", "model.bin")
    assert found["int8"].files == ("model.int8.xml", "model.int8.bin")
    assert found["fp32"].tolerance == pytest.approx(1e-4 * found["fp32"].reference_scale)
    for variant in (*found.values(), *bundle.variants.values()):
        assert variant.accuracy_delta == pytest.approx((variant.accuracy or 0) - 1)
    if "bf16" in found:
        assert found["bf16"].files == found["fp32"].files
        assert found["bf16"].max_abs_error > 10 * found["fp32"].max_abs_error
    manifest = json.loads((ir / "manifest.json").read_text())
    assert manifest["left_out"] == {"openvino fp16": "openvino has fp32, bf16, int8"}
    assert manifest["variants"]["int8"]["calibration"] == {"method": "percentile", "images": 40}
    verified = verify_bundle(ir, images=images(), labels=labels(network))
    assert verified["openvino int8"]["accuracy"] == found["int8"].accuracy
    assert set(verified) == {*bundle.variants, *(f"openvino {precision}" for precision in found)}


@openvino
def test_openvino_files_keep_the_names_of_the_nodes_and_are_the_same_each_time(
    ir: Path, network: nn.Module, tmp_path: Path
) -> None:
    from nar_hw.export.openvino import save_ir

    save_ir(ir / "model.onnx", tmp_path / "again.xml")
    assert (tmp_path / "again.xml").read_bytes() == (ir / "model.xml").read_bytes()
    assert (tmp_path / "again.bin").read_bytes() == (ir / "model.bin").read_bytes()
    text = (ir / "model.xml").read_text()
    assert 'name="layer1.conv1/Conv"' in text
    assert str(ir) not in text
    (tmp_path / "bad.onnx").write_bytes((ir / "model.onnx").read_bytes()[:-50])
    with pytest.raises(ExportError, match="OpenVINO cannot convert"):
        save_ir(tmp_path / "bad.onnx", tmp_path / "bad.xml")


@openvino
def test_verification_finds_a_compiled_file_whose_numbers_are_off(ir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(ir, tmp_path / "copy"))
    weights = np.frombuffer((copy / "model.bin").read_bytes(), np.float32)
    (copy / "model.bin").write_bytes((weights * np.where(abs(weights) < 1, 1.05, 1)).astype(np.float32).tobytes())
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["model.bin"] = sha256(copy / "model.bin")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=r"model.xml: an exported network must agree with torch"):
        verify_bundle(copy)


def test_a_target_that_does_not_work_here_is_one_line_and_leaves_nothing(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, target in (("tensorrt", "tensorrt"), ("openvino", "openvino")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(
            RuntimeUnavailableError, match=f"{package} is not installed: pip install 'nar-hw\\[{target}\\]'"
        ) as told:
            export(network, tmp_path / "bundle", targets=("onnx", target))
        assert "\n" not in str(told.value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeUnavailableError, match="aoti needs the C\\+\\+ compiler"):
        export(network, tmp_path / "bundle", targets=("aoti",))
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_no_target_has_is_refused() -> None:
    with pytest.raises(
        ExportError,
        match=r"bf16 needs a target that has it, but onnx has .*: use --to with one of tensorrt, tensorrt-rtx, openvino, aoti$",
    ):
        targets.plan(("onnx",), ("fp32", "bf16"), "cpu")
    with pytest.raises(UnknownNameError, match="unknown export target 'ort'"):
        targets.plan(("ort",), ("fp32",), "cpu")
    assert targets.plan(("onnx",), ("fp32", "int8"), "cpu") == ([], {})


def test_a_compiled_file_that_is_off_is_not_left_behind(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(source: Source, config: RuntimeConfig) -> Exported:
        torch.manual_seed(1)
        export_onnx(TinyResNet().eval(), source.folder / "other.onnx", input_shape=SHAPE)
        return original(replace(source, onnx={"fp32": source.folder / "other.onnx"}), config)

    pytest.importorskip("openvino")
    original = OpenVino.export
    monkeypatch.setattr(OpenVino, "export", wrong)
    with pytest.raises(ExportError, match="openvino fp32: an exported network must agree with torch"):
        export(network, tmp_path / "bundle", targets=("openvino",))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_gives_embeddings(network: nn.Module, tmp_path: Path) -> None:
    out = export(
        network, tmp_path / "bundle", classes=(), precisions=("fp32", "int8"), calibration_images=images(), images=images()
    )
    bundle = load_bundle(out).manifest
    assert (bundle.classes, [output.shape for output in bundle.outputs]) == ((), [(5,)])
    assert bundle.variants["fp32"].cosine == pytest.approx(1)
    assert 0.98 < (bundle.variants["int8"].cosine or 0) < 1
    assert bundle.variants["int8"].accuracy is None
    assert json.loads((out / "manifest.json").read_text())["task"] == "embedding"
    readme = (out / "README.md").read_text()
    assert "makes 5 numbers (an embedding) of each image of 3x8x8" in readme
    assert "print(scores)" in readme
    assert verify_bundle(out).keys() == {"fp32", "int8"}
