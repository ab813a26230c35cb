"""Bundles: complete or absent, true to torch, runnable from their own README, and refused when anything in them is off."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import nar_hw
from nar_hw.bundles import judge
from nar_hw.bundles.judge import check_images
from nar_hw.bundles.manifest import Arch, Bundle, Latency, load_bundle
from nar_hw.bundles.verify import verify_bundle
from nar_hw.errors import DataError, ExportError, RunError, UnknownNameError, UserError
from nar_hw.export.onnx import open_session, run_session, run_torch
from nar_hw.export.quantize import to_symmetric
from nar_hw.files import sha256
from nar_hw.records import plain, read_record
from nar_hw.space.space import SearchSpace
from tests.bundles import CLASSES, MEAN, SHAPE, STD, exported
from tests.networks import TinyResNet

ARCH = (1, 2, 3, 0)


def some_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, *SHAPE)).astype(np.float32), rng.integers(0, len(CLASSES), count)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return SearchSpace.from_model(TinyResNet(), SHAPE).build(ARCH)


def export(network: nn.Module, out: Path, **options: Any) -> Path:
    return exported(network, out, operators=("dwsep3x3", "max3x3", "avg3x3", "conv3x3"), codes=ARCH, **options)


@pytest.fixture(scope="module")
def bundle(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, labels = some_images(60)
    return export(
        network,
        tmp_path_factory.mktemp("bundles") / "deep" / "bundle",
        precisions=("fp32", "fp16", "int8"),
        images=images,
        labels=labels,
        calibration_images=images,
        max_accuracy_drop=0.2,
        latency=Latency(
            predicted_ms=1.25,
            measured={"p50_ms": 1.3, "p90_ms": 1.5},
            fingerprint={"device": "a CPU", "runtime": "onnxruntime", "batch": 1},
            table_hash="abc",
        ),
    )


def test_a_bundle_says_what_it_is(bundle: Path, network: nn.Module) -> None:
    assert sorted(file.name for file in bundle.iterdir()) == [
        "README.md",
        "arch.json",
        "manifest.json",
        "model.fp16.onnx",
        "model.int8.onnx",
        "model.onnx",
        "weights.safetensors",
    ]
    assert [file.name for file in bundle.parent.iterdir()] == ["bundle"]
    found = load_bundle(bundle)
    manifest = found.manifest
    names = ("dwsep3x3", "max3x3", "avg3x3", "conv3x3")
    assert (manifest.input.shape, manifest.input.batch, manifest.classes) == (SHAPE, (1, 64), CLASSES)
    assert (manifest.model.name, manifest.model.operators, manifest.model.codes) == ("tiny", names, ARCH)
    assert manifest.model.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert (manifest.preprocessing.mean, manifest.preprocessing.std) == (MEAN, STD)
    latency = manifest.latency
    assert (latency.predicted_ms, latency.measured, latency.table_hash) == (1.25, {"p50_ms": 1.3, "p90_ms": 1.5}, "abc")
    assert latency.fingerprint["device"] == "a CPU"
    assert manifest.versions["nar_hw"] == nar_hw.__version__
    assert manifest.files == {file.name: sha256(file) for file in bundle.iterdir() if file.name != "manifest.json"}
    arch = read_record(bundle / "arch.json", Arch, what="arch", schema=2)
    assert plain(arch) == {"input_shape": SHAPE, **plain(manifest.model)}
    with pytest.raises(RunError, match="has fp32, fp16, int8, but bf16 is asked for"):
        found.onnx("bf16")


def test_each_precision_is_as_accurate_and_as_exact_as_it_says(bundle: Path, network: nn.Module) -> None:
    images, labels = some_images(60)
    reference = run_torch(network, images)
    found = load_bundle(bundle).manifest
    right = float(np.mean(reference.argmax(1) == labels))
    assert found.variants["fp32"].accuracy == pytest.approx(right)
    verified = verify_bundle(bundle, images=images, labels=labels)
    scale = max(abs(reference).max(), abs(run_torch(network, check_images(SHAPE))).max())
    for precision, share in (("fp32", 1e-5), ("fp16", 5e-3)):
        variant = found.variants[precision]
        assert variant.tolerance == pytest.approx(share * scale)
        assert variant.max_abs_error <= variant.tolerance
        assert verified[precision]["accuracy"] == variant.accuracy
    assert found.variants["int8"].tolerance is None
    assert 0 < found.variants["int8"].max_abs_error < 0.2 * scale
    assert found.variants["fp16"].max_abs_error > found.variants["fp32"].max_abs_error


def test_the_precisions_are_what_they_are_called(bundle: Path) -> None:
    files = {precision: onnx.load(load_bundle(bundle).onnx(precision)) for precision in ("fp32", "fp16", "int8")}
    for proto in files.values():
        ends = (*proto.graph.input, *proto.graph.output)
        assert {end.type.tensor_type.elem_type for end in ends} == {onnx.TensorProto.FLOAT}
        assert json.loads(next(entry.value for entry in proto.metadata_props if entry.key == "classes")) == list(CLASSES)
    weights = {name: {len(item.dims): item.data_type for item in proto.graph.initializer} for name, proto in files.items()}
    assert (weights["fp32"][4], weights["fp16"][4]) == (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    quantized = [node for node in files["int8"].graph.node if node.op_type == "QuantizeLinear"]
    arrays = {item.name: onnx.numpy_helper.to_array(item) for item in files["int8"].graph.initializer}
    assert quantized
    zeros = {node.input[0]: arrays[node.input[2]] for node in quantized}
    assert all((zero.dtype == np.int8) == name.endswith("weight") for name, zero in zeros.items())
    assert not any(zero.any() for zero in zeros.values() if zero.dtype == np.int8)
    convolution = next(node for node in quantized if node.input[0] == "layer2.conv2.weight")
    assert arrays[convolution.input[1]].shape == (16,)  # one scale per channel
    assert not any("bn" in node.input[0] and "weight" in node.input[0] for node in quantized)


def test_errors_are_allowed_as_large_as_they_were(bundle: Path) -> None:
    """Validation images may give far larger outputs than the check images: the share of the largest one is another then."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    copy = Path(shutil.copytree(bundle, bundle.with_name("larger")))
    for variant in manifest["variants"].values():
        variant["reference_scale"] *= 1000
    manifest["outputs"][0]["scale"] *= 1000
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert verify_bundle(copy).keys() == verify_bundle(bundle).keys()


def test_signed_int8_is_for_ranges_as_large(bundle: Path, network: nn.Module, tmp_path: Path) -> None:
    source, target = load_bundle(bundle).onnx("int8"), tmp_path / "signed.onnx"
    to_symmetric(source, target)
    before, after = (
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer} for path in (source, target)
    )
    pairs = {tuple(node.input[1:]) for node in onnx.load(target).graph.node if node.op_type == "QuantizeLinear"}
    for scale, zero in pairs:
        assert after[zero].dtype == np.int8
        assert not after[zero].any()
        if before[zero].dtype == np.int8:
            assert (after[scale] == before[scale]).all()
            continue
        lowest, highest = (before[scale] * (end - float(before[zero])) for end in (0, 255))
        assert after[scale] * 127 == pytest.approx(max(-lowest, highest))
    images = check_images(SHAPE)
    reference = run_torch(network, images)
    error = np.abs(run_session(open_session(target), images) - reference).max()
    assert 0 < error < 0.2 * np.abs(reference).max()


def test_the_weights_fit_the_network(bundle: Path, network: nn.Module) -> None:
    loaded = load_file(bundle / "weights.safetensors")
    assert loaded.keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in network.state_dict().items())


def test_its_readme_runs(bundle: Path, network: nn.Module, tmp_path: Path) -> None:
    text = (bundle / "README.md").read_text()
    for said in ("measured: p50 1.3 ms, p90 1.5 ms", "predicted by its latency table: 1.25 ms", "a CPU", "60 validation images"):
        assert said in text
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    inputs = (pixels.transpose(2, 0, 1) / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    expected = CLASSES[int(run_torch(network, inputs[None].astype(np.float32)).argmax())]
    script, replaced = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(script.splitlines()) <= 11
    scripts = [script]
    if importlib.util.find_spec("openvino"):
        lines = [line for line in script.splitlines() if "session" not in line]
        scripts.append("\n".join([*lines[:-1], replaced, lines[-1]]))
    for source in scripts:
        done = subprocess.run([sys.executable, "-c", source, tmp_path / "image.png"], cwd=bundle, capture_output=True, text=True)
        assert (done.stdout.strip(), done.returncode) == (expected, 0), done.stderr


def test_a_fixed_batch_and_no_images(network: nn.Module, tmp_path: Path) -> None:
    found = load_bundle(export(network, tmp_path / "bundle", batch=(4, 4))).manifest
    assert found.input.batch == (4, 4)
    assert found.variants["fp32"].accuracy is None
    assert found.latency.predicted_ms is None
    text = (tmp_path / "bundle" / "README.md").read_text()
    assert ".repeat(4, 0)" in text
    assert "Shapes=" not in text
    assert "not measured" in text
    assert verify_bundle(tmp_path / "bundle")["fp32"]["max_abs_error"] <= (found.variants["fp32"].tolerance or 0)


def test_exporting_again_replaces_the_bundle_with_the_same_network(bundle: Path, network: nn.Module, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(bundle, out)
    (out / "left over").touch()
    images, labels = some_images(60)
    again: dict[str, Any] = {"precisions": ("fp32", "fp16", "int8"), "calibration_images": images, "max_accuracy_drop": 0.2}
    export(network, out, images=images, labels=labels, latency=Latency(table_hash="abc"), **again)
    assert (out / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
    assert not (out / "left over").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


def test_a_failed_export_leaves_what_was_there(
    bundle: Path, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = some_images(60)
    failures: list[tuple[dict[str, Any], str]] = [
        ({"precisions": ("int8",)}, "int8 needs images"),
        (
            {
                "precisions": ("int8",),
                "calibration_images": images,
                "images": images,
                "labels": labels,
                "max_accuracy_drop": -1.0,
            },
            "int8 may lose at most -100.0 points of accuracy",
        ),
    ]
    for options, message in failures:
        with pytest.raises(ExportError, match=message):
            export(network, tmp_path / "new", **options)
        assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(judge.TOLERANCES, "fp32", 0.0)
    out = tmp_path / "bundle"
    shutil.copytree(bundle, out)
    with pytest.raises(ExportError, match="fp32: an exported network must agree with torch within 0 "):
        export(network, out, precisions=("fp32", "fp16", "int8"), images=images, labels=labels, calibration_images=images)
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]
    assert load_bundle(out).manifest.files == load_bundle(bundle).manifest.files


def test_a_dense_file_is_there_where_it_is_asked_for_only(bundle: Path) -> None:
    assert load_bundle(bundle).manifest.dense is None


def test_nothing_but_a_bundle_is_replaced(network: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    with pytest.raises(ExportError, match="replaces only another bundle"):
        export(network, tmp_path / "thesis")
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="replaces only another bundle"):
        export(network, tmp_path / "file")
    with pytest.raises(RunError, match="must be a folder, but it or one that it is in is a file"):
        export(network, tmp_path / "file" / "bundle")
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file", "thesis", "thesis.tex"]


def test_no_file_of_a_bundle_is_lost(bundle: Path, network: nn.Module, tmp_path: Path) -> None:
    shutil.copytree(bundle, out := tmp_path / "bundle")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ExportError, match="a bundle with onnx fp16, onnx int8, which this export would not make again: ask for"):
        export(network, out)
    with pytest.raises(ExportError, match="holds a bundle of tiny, not other"):
        export(network, out, precisions=("fp32", "fp16"), name="other")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


IMAGES, LABELS = some_images(4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": ("onxx",)}, UnknownNameError, "unknown export target 'onxx': use one of onnx"),
        ({"precisions": ("fp64",)}, UnknownNameError, "unknown precision 'fp64'"),
        ({"calibration": "best", "precisions": ("int8",)}, UnknownNameError, "unknown calibration 'best'"),
        ({"classes": ("a", "b")}, DataError, "one output per class"),
        ({"images": IMAGES}, DataError, "must be given together"),
        ({"images": IMAGES[:, :1], "labels": LABELS}, DataError, "validation images must be float32"),
        ({"images": IMAGES.astype(np.float64), "labels": LABELS}, DataError, "are float64"),
        ({"images": IMAGES, "labels": LABELS[:3]}, DataError, "labels must be 4 numbers from 0 to 4"),
        ({"images": IMAGES, "labels": LABELS + 9}, DataError, "labels must be 4 numbers from 0 to 4"),
    ],
)
def test_wrong_arguments(
    network: nn.Module, tmp_path: Path, options: dict[str, Any], error: type[UserError], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        export(network, tmp_path / "bundle", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_damaged_files_are_refused(copy: Path) -> None:
    data = bytearray((copy / "model.onnx").read_bytes())
    data[100] ^= 1
    (copy / "model.onnx").write_bytes(data)
    with pytest.raises(RunError, match=r"model.onnx was changed after the export"):
        load_bundle(copy)
    (copy / "model.onnx").unlink()
    with pytest.raises(RunError, match=r"must hold model.onnx, but does not"):
        load_bundle(copy)
    (copy / "model.onnx").symlink_to(copy / "arch.json")
    with pytest.raises(RunError, match="must lie in the bundle itself"):
        load_bundle(copy)
    (copy / "manifest.json").write_text((copy / "manifest.json").read_text()[:-40])
    with pytest.raises(RunError, match="is not valid JSON"):
        load_bundle(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(RunError, match="does not exist"):
        load_bundle(copy)


FILES = {"files": ["model.onnx"], "batch": [1, 1], "device": "cpu", "requires": {}}
CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "schema": (lambda m: m.update(schema=1), "must have schema 3, but has 1"),
    "no classes": (lambda m: m.pop("classes"), "must have 'classes'"),
    "classes": (lambda m: m.update(classes="abc"), "classes must be array, but is 'abc'"),
    "boolean": (lambda m: m["model"].update(codes=[True, 1, 2, 3]), "model.codes[0] must be int, but is True"),
    "more codes": (lambda m: m["model"]["codes"].append(1), "operators and codes must go together, but there are 4 and 5"),
    "section": (lambda m: m.update(latency=[]), "latency must be object, but is []"),
    "latency": (lambda m: m["latency"].update(predicted_ms="fast"), "latency.predicted_ms must be float | null, but is 'fast'"),
    "huge": (lambda m: m["latency"].update(predicted_ms=10**400), f"latency.predicted_ms is 1{76 * '0'}...: Number out of range"),
    "shape": (lambda m: m["input"].update(shape=[3, 8, 10**9]), "shape must be [C, H, W]"),
    "batch": (lambda m: m["input"].update(batch=[4, 1]), "batch must be [fewest, most]"),
    "std": (lambda m: m["preprocessing"].update(std=[1, 0, 1]), "std positive"),
    "no fp32": (lambda m: m["variants"].pop("fp32"), "variants must have fp32"),
    "other file": (lambda m: m["variants"]["fp32"].update(file="else.onnx"), "must hold 'else.onnx' of onnx fp32, but has ["),
    "scale": (lambda m: m["variants"]["fp32"].update(reference_scale=0), "reference_scale must be positive"),
    "hash": (lambda m: m["files"].update({"README.md": 5}), "files.README.md must be str, but is 5"),
    "traversal": (lambda m: m["files"].update({"../secret": "0"}), "must lie in the bundle itself, but '../secret' does not"),
    "absolute": (lambda m: m["files"].update({"/etc/passwd": "0"}), "must lie in the bundle itself"),
    "outputs": (lambda m: m["check"].update(outputs=[[1.0]]), "check must hold 5 outputs for each image"),
    "batch of a file": (
        lambda m: m["compiled"].update(aoti={"fp32": {**m["variants"]["fp32"], **FILES, "batch": [2, 1]}}),
        "compiled.aoti.fp32: batch must be [fewest, most]",
    ),
    "files of a file": (
        lambda m: m["compiled"].update(aoti={"fp32": {**m["variants"]["fp32"], **FILES, "files": ["README.md"]}}),
        "compiled.aoti.fp32: files must name 'model.onnx', but are ['README.md']",
    ),
    "unknown": (lambda m: m.update(colour="red"), "has an unknown field 'colour'"),
    "escapes": (lambda m: m["variants"].update({"\n\x1b[2J": 1}), r"variants.\n\x1b[2J must be object, but is 1"),
    "no outputs": (lambda m: m["check"].update(outputs={}), "check.outputs must be array, but is {}"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_an_edited_manifest_is_refused(copy: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(copy, change)
    with pytest.raises(RunError, match=re.escape(message)) as caught:
        load_bundle(copy)
    assert "manifest.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def refusal(bundle: Path) -> str:
    """Why a bundle cannot be loaded; any other exception than the one for damaged bundles comes through."""
    try:
        assert isinstance(load_bundle(bundle), Bundle)
    except RunError as problem:
        return str(problem)
    return ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), replacement=JSON)
def test_any_value_in_the_manifest_is_either_fine_or_a_clear_error(
    bundle: Path, copy: Path, data: st.DataObject, replacement: Any
) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    inner: Any = manifest
    for _ in range(data.draw(st.integers(0, 3))):
        keys = sorted(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else []
        deeper = [key for key in keys if isinstance(inner[key], dict | list) and inner[key]]
        if not deeper:
            break
        inner = inner[data.draw(st.sampled_from(deeper))]
    inner[data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))] = replacement
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "\n" not in refusal(copy)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), flip=st.integers(0, 7), truncate=st.booleans())
def test_a_bit_flipped_or_truncated_manifest_is_either_fine_or_a_clear_error(
    bundle: Path, copy: Path, cut: float, flip: int, truncate: bool
) -> None:
    data = bytearray((bundle / "manifest.json").read_bytes())
    position = int(cut * (len(data) - 1))
    if truncate:
        del data[position:]
    else:
        data[position] ^= 1 << flip
    (copy / "manifest.json").write_bytes(data)
    assert "\n" not in refusal(copy)


def test_a_manifest_of_an_unknown_task_is_a_damaged_bundle(copy: Path) -> None:
    edit(copy, lambda manifest: manifest.update(task="classific`tion"))
    assert "unknown task 'classific`tion': use one of classification" in refusal(copy)


def test_verification_finds_a_network_whose_numbers_are_off(copy: Path) -> None:
    proto = onnx.load(copy / "model.onnx")
    weight = next(item for item in proto.graph.initializer if item.name == "fc.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(weight), "fc.weight"))
    onnx.save(proto, copy / "model.onnx")
    edit(copy, lambda manifest: manifest["files"].update({"model.onnx": sha256(copy / "model.onnx")}))
    load_bundle(copy)
    with pytest.raises(ExportError, match=r"model.onnx: an exported network must agree with torch"):
        verify_bundle(copy)


def test_verification_finds_a_network_of_another_shape(copy: Path) -> None:
    edit(copy, lambda manifest: manifest["input"].update(shape=[3, 9, 9]))
    with pytest.raises(ExportError, match=r"must take images of shape \(3, 9, 9\), but takes \(3, 8, 8\)"):
        verify_bundle(copy)
