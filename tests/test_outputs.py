"""Networks with several outputs: trained, searched and exported as they come, each output judged by its own scale."""

import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from nar_hw.bundles.bundle import export_bundle
from nar_hw.bundles.config import ExportConfig
from nar_hw.bundles.judge import BundleImages, check_images, compared
from nar_hw.bundles.manifest import Arch, Output, load_bundle
from nar_hw.bundles.triton import triton_model
from nar_hw.bundles.verify import verify_bundle
from nar_hw.data.preprocessing import Preprocessing
from nar_hw.errors import ExportError, ModelError
from nar_hw.latency.profiler import profile
from nar_hw.records import replace
from nar_hw.runtimes.config import RuntimeConfig
from nar_hw.runtimes.fake import FakeDevice, FakeRuntime
from nar_hw.search.config import FITTED, FitConfig
from nar_hw.search.loop import search
from nar_hw.space.network import flat, named_outputs
from nar_hw.space.outputs import check_outputs
from nar_hw.space.space import SearchSpace
from nar_hw.tasks import DatasetTask
from nar_hw.training.loop import train
from nar_hw.training.recipes import RECIPES
from tests.conftest import Shell

SHAPE = (1, 6, 6)


class Heads(nn.Module):
    """A map of where it is bright, and how bright it is on the whole."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.map, self.level = nn.Conv2d(8, 1, 1), nn.Linear(8, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body(self.stem(images))
        return {"map": 10 * self.map(features), "level": self.level(features.mean((2, 3)))[:, 0]}


def data(size: int, seed: int) -> TensorDataset:
    images = torch.randn(size, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(images, torch.cat([(images > 0).float().flatten(1), images.mean((2, 3))], 1))


def loss(output: dict[str, Tensor], target: Tensor) -> Tensor:
    places = nn.functional.binary_cross_entropy_with_logits(output["map"].flatten(1), target[:, :-1])
    return places + nn.functional.mse_loss(output["level"], target[:, -1])


def score(output: dict[str, Tensor], target: Tensor) -> Tensor:
    return ((output["map"].flatten(1) > 0) == (target[:, :-1] > 0.5)).float().mean(1)


def task() -> DatasetTask:
    return DatasetTask(data(64, 0), data(16, 1), data(16, 2), loss=loss, score=score, outputs=37, metric="pixel accuracy")


@pytest.fixture(scope="module")
def trained() -> Heads:
    network = Heads()
    train(network, task(), replace(RECIPES["demo"], epochs=8, batch=16, label_smoothing=0.0, lr=0.01))
    return network


@pytest.fixture(scope="module")
def bundle(trained: Heads, tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = data(16, 1).tensors[0].numpy()
    return export_bundle(
        trained,
        tmp_path_factory.mktemp("heads") / "bundle",
        arch=Arch(name="heads", input_shape=SHAPE),
        preprocessing=Preprocessing(mean=(0.5,), std=(0.25,), classes=()),
        config=ExportConfig(targets=("onnx", "openvino"), precisions=("fp32", "fp16", "int8"), batch=(1, 4)),
        images=BundleImages(validation=images, calibration=images),
    )


def test_outputs_are_named_by_how_they_are_reached() -> None:
    one, two, three = torch.zeros(2, 3), torch.ones(2), torch.full((2, 1, 2, 2), 2.0)
    assert list(named_outputs(one)) == ["output"]
    assert list(named_outputs((one, None, two))) == ["output_0", "output_2"]
    assert list(named_outputs(OrderedDict(boxes=[one, two], score=three))) == ["boxes_0", "boxes_1", "score"]
    assert flat({"a": one, "b": (two, three)}).tolist() == [[0, 0, 0, 1, 2, 2, 2, 2]] * 2
    for wrong in (None, {}, {"a": 3}, [one, "text"], torch.tensor(1.0)):
        with pytest.raises(ModelError, match="must return a tensor"):
            named_outputs(wrong)


def test_a_network_is_trained_searched_and_imitated_as_it_comes(trained: Heads) -> None:
    own = task()
    assert own.evaluate(trained, "test") > own.evaluate(Heads(), "test") + 0.1
    images = data(16, 2).tensors[0]
    outputs, others = trained(images), Heads().eval()(images)
    squares = sum(float(((outputs[name] - others[name]) ** 2).sum().detach()) for name in outputs)
    assert float(own.imitation(outputs, others, 1.0).detach()) == pytest.approx(squares / (16 * 37), rel=1e-5)
    space = SearchSpace.from_model(trained, input_shape=SHAPE, operators=("conv3x3", "max3x3"))
    with FakeRuntime.on(FakeDevice(noise=0.0)):
        table = profile(space, config=RuntimeConfig(runtime="fake"), model_name="heads", validate=0)
    config = replace(FITTED, fit=FitConfig(epochs=2, batch=16), epochs=1, updates=1, samples=3, batch=16, rescored=3, finalists=1)
    target = sum(table.bounds()) / 2
    found = search(space, own, table, target_ms=target, config=config)
    assert found.pick.predicted_ms <= target
    assert 0.5 < found.pick.accuracy <= 1
    child = space.build(found.pick.arch)
    train(child, own, replace(RECIPES["finetune"], epochs=2, batch=16, lr=1e-3), teacher=trained)
    assert {name: tensor.shape for name, tensor in child(images).items()} == {"map": (16, 1, 6, 6), "level": (16,)}


def test_a_profile_measures_it(trained: Heads) -> None:
    space = SearchSpace.from_model(trained, input_shape=SHAPE, operators=("conv3x3", "max3x3"))
    assert profile(space, config=RuntimeConfig(), model_name="heads", rounds=2, validate=0).incumbent_ms > 0


def test_a_bundle_has_every_output(bundle: Path, trained: Heads) -> None:
    manifest = load_bundle(bundle).manifest
    assert [(output.name, output.shape) for output in manifest.outputs] == [("map", (1, 6, 6)), ("level", ())]
    assert manifest.task == "own"
    images = np.random.default_rng(0).standard_normal((3, *SHAPE), dtype=np.float32)
    with torch.no_grad():
        expected = trained(torch.from_numpy(images))
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
    found = dict(zip([item.name for item in session.get_outputs()], session.run(None, {"input": images}), strict=True))
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted.numpy(), rtol=0, atol=1e-5 * float(wanted.abs().max()))
    checked = verify_bundle(bundle)
    assert {"fp32", "fp16", "int8", "openvino fp32"} <= checked.keys()
    assert "`map` (1x6x6), `level` (one number)" in (bundle / "README.md").read_text()


def test_the_kit_gives_every_output(bundle: Path, run_kit: Shell, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (6, 6), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    code, out, _ = run_kit(bundle, tmp_path / "grey.png", "--json")
    (item,) = json.loads(out)["images"]
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
    places, level = session.run(None, {"input": ((pixels.astype(np.float32) / 255 - 0.5) / 0.25)[None, None]})
    assert code == 0
    np.testing.assert_allclose(item["outputs"]["map"], places[0], rtol=1e-5)
    np.testing.assert_allclose(item["outputs"]["level"], level[0], rtol=1e-5)
    code, out, _ = run_kit(bundle, tmp_path / "grey.png")
    assert code == 0
    assert f"map (1x6x6) from {places.min():.6g} to {places.max():.6g}" in out


def test_triton_is_told_of_every_output(bundle: Path, tmp_path: Path) -> None:
    config = (triton_model(bundle, tmp_path) / "config.pbtxt").read_text()
    assert re.findall(r'name: "(\w+)"\n    data_type: TYPE_FP32\n    dims: (.*)\n', config) == [
        ("input", "[1, 6, 6]"),
        ("map", "[1, 6, 6]"),
        ("level", "[]"),
    ]


def test_bundles_of_one_output_from_before_are_read(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    preprocessing = Preprocessing(mean=(0.0,), std=(1.0,), classes=("a", "b"))
    out = export_bundle(network, tmp_path / "b", arch=Arch(name="small", input_shape=SHAPE), preprocessing=preprocessing)
    content: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    (output,) = content.pop("outputs")
    output.pop("scale")
    (out / "manifest.json").write_text(json.dumps({**content, "output": output, "schema": 2}))
    assert load_bundle(out).manifest.outputs[0].shape == (2,)
    assert verify_bundle(out)["fp32"]["max_abs_error"] < 1e-5


def test_a_small_output_is_judged_by_its_own_scale() -> None:
    known = (Output(name="map", shape=(2,), scale=100.0), Output(name="level", shape=(), scale=0.01))
    reference = np.array([[100, -50, 0.01], [3, 4, 0.002]], np.float32)
    wrong = reference.copy()
    wrong[1, 2] += 0.005
    with pytest.raises(ExportError, match="level"):
        compared(wrong, reference, known, tolerance=1e-3)
    assert compared(wrong, reference, known, tolerance=1.0)["reference_scale"] == 0.01
    wrong[:, 2] = reference[:, 2]
    wrong[0, 0] += 0.05
    assert compared(wrong, reference, known, tolerance=1e-3)["max_abs_error"] == pytest.approx(0.05, rel=1e-3)


class Otherwise(Heads):
    def forward(self, images: Tensor) -> Any:
        found = super().forward(images)
        return found if self.training else {"map": found["map"], "other": found["level"]}


def test_what_cannot_be_used_is_one_line(trained: Heads, tmp_path: Path) -> None:
    check_outputs(trained, SHAPE, 37, trained=True, structured=True)
    for model, outputs, structured, message in (
        (trained, 37, False, r"one tensor of shape \(2, 37\)"),
        (trained, 36, True, "36 numbers for each of 2 images"),
        (Otherwise(), 37, True, "the same in both modes"),
    ):
        with pytest.raises(ModelError, match=message):
            check_outputs(model, SHAPE, outputs, trained=True, structured=structured)
    preprocessing = Preprocessing(mean=(0.0,), std=(1.0,), classes=())
    for target in ("ncnn", "tensorrt-rtx"):
        gpus = ("sm89",) if target == "tensorrt-rtx" else ()
        with pytest.raises(ExportError, match=f"{target} takes networks of one output, but this one gives map, level"):
            export_bundle(
                trained,
                tmp_path / target,
                arch=Arch(name="heads", input_shape=SHAPE),
                preprocessing=preprocessing,
                config=ExportConfig(targets=("onnx", target), gpus=gpus),
            )
        assert not (tmp_path / target).exists()
    assert check_images(SHAPE).shape == (2, *SHAPE)
