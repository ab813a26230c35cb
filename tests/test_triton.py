"""Triton models: the configuration says what the network takes and gives, in Triton's own format; repositories are kept whole."""

import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from nar_hw.bundles.triton import triton_model
from nar_hw.errors import ExportError, RunError, UnknownNameError, UserError
from tests.bundles import exported
from tests.networks import TinyResNet


def export(out: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    fixed = {"classes": ("ant", "b ee", "c\nat", 'd"og', "eel"), "name": "timm:tiny", "std": (0.2,) * 3}
    return exported(TinyResNet().eval(), out, **{**fixed, **options})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("triton") / "bundle", precisions=("fp32", "fp16"))


def fields(text: str) -> list[tuple[str, Any]]:
    """Every `name: value` of a protobuf text, in order; an independent reading of the format."""
    found = re.findall(r'(\w+): ("(?:[^"\\]|\\.)*"|\[[^\]]*\]|[\w.-]+)', text)
    assert text.count("{") == text.count("}")
    return [(name, json.loads(value) if value[0] in '"[' or value.isdigit() else value) for name, value in found]


def test_a_model_of_a_range_of_batches(bundle: Path, tmp_path: Path) -> None:
    out = triton_model(bundle, tmp_path / "models")
    assert out == tmp_path / "models" / "timm_tiny"
    assert sorted(str(file.relative_to(out)) for file in out.rglob("*")) == ["1", "1/model.onnx", "config.pbtxt", "labels.txt"]
    assert (out / "1/model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
    assert (out / "labels.txt").read_text() == 'ant\nb ee\nc at\nd"og\neel\n'
    text = (out / "config.pbtxt").read_text()
    assert fields(text)[:-2] == [
        ("name", "timm_tiny"),
        ("backend", "onnxruntime"),
        ("max_batch_size", 64),
        ("name", "input"),
        ("data_type", "TYPE_FP32"),
        ("dims", [3, 8, 8]),
        ("name", "output"),
        ("data_type", "TYPE_FP32"),
        ("dims", [5]),
        ("label_filename", "labels.txt"),
    ]
    assert json.loads(dict(fields(text))["string_value"]) == {"divide_by": 255, "mean": [0.4, 0.5, 0.6], "std": [0.2] * 3}
    assert "dynamic_batching { }" in text
    graph = onnx.load(out / "1/model.onnx").graph
    assert (graph.input[0].name, graph.output[0].name) == ("input", "output")


def test_other_precisions_and_fixed_batches(bundle: Path, tmp_path: Path) -> None:
    out = triton_model(bundle, tmp_path / "models", precision="fp16", name="half")
    assert (out / "1/model.onnx").read_bytes() == (bundle / "model.fp16.onnx").read_bytes()
    four = triton_model(export(tmp_path / "four", batch=(4, 4)), tmp_path / "models", name="four")
    text = (four / "config.pbtxt").read_text()
    assert ("max_batch_size", 0) in fields(text)
    assert [value for name, value in fields(text) if name == "dims"] == [[4, 3, 8, 8], [4, 5]]
    assert "dynamic_batching" not in text
    one = triton_model(export(tmp_path / "one", batch=(1, 1), classes=()), tmp_path / "models", name="one")
    assert ("max_batch_size", 1) in fields((one / "config.pbtxt").read_text())
    assert not (one / "labels.txt").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": "aoti"}, UnknownNameError, "unknown Triton target 'aoti'"),
        ({"target": "tensorrt"}, ExportError, "must have tensorrt in fp32, but has none"),
        ({"precision": "int8"}, RunError, "has fp32, fp16, but int8 is asked for"),
        ({"name": "../up"}, ExportError, "but is '../up'"),
        ({"name": ".hidden"}, ExportError, "but is '.hidden'"),
    ],
)
def test_what_cannot_be_served_leaves_nothing(
    bundle: Path, tmp_path: Path, options: dict[str, str], error: type[UserError], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        triton_model(bundle, tmp_path / "models", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_not_replaced_and_batches_start_at_one(bundle: Path, tmp_path: Path) -> None:
    triton_model(bundle, tmp_path / "models")
    with pytest.raises(ExportError, match="has a model timm_tiny already"):
        triton_model(bundle, tmp_path / "models")
    with pytest.raises(ExportError, match="takes 2 at least"):
        triton_model(export(tmp_path / "two", batch=(2, 8)), tmp_path / "models", name="two")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="must be a folder, but it or one that it is in is a file"):
        triton_model(bundle, tmp_path / "file")
