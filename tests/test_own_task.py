"""Tasks of one's own: the example goes every way, scores are the means they say, and what is wrong is one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

from nar_hw.cli.app import app
from nar_hw.errors import DataError
from nar_hw.latency.profiler import profile
from nar_hw.records import replace
from nar_hw.runtimes.config import RuntimeConfig
from nar_hw.runtimes.fake import FakeDevice, FakeRuntime
from nar_hw.search.config import FITTED, FitConfig
from nar_hw.search.loop import search
from nar_hw.space.space import SearchSpace
from nar_hw.steps.task import load_task
from nar_hw.tasks import DatasetTask
from nar_hw.training.loop import train
from nar_hw.training.recipes import RECIPES

EXAMPLE = str(Path(__file__).parent.parent / "examples" / "own_task" / "ink.py")


def data(size: int, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 1, 6, 6, generator=generator)
    return TensorDataset(images, images.mean((1, 2, 3), keepdim=False)[:, None])


def nearness(output: Tensor, target: Tensor) -> Tensor:
    return (1 - (output - target).abs()).clamp(0, 1)[:, 0]


def regression(**options: Any) -> DatasetTask:
    given = {"loss": F.mse_loss, "score": nearness, "outputs": 1, "metric": "nearness"}
    return DatasetTask(data(40), data(10, 1), data(10, 2), **{**given, **options})


def net() -> nn.Sequential:
    torch.manual_seed(0)
    block = (nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(nn.Conv2d(1, 8, 1), *block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))


def test_a_score_is_the_mean_over_images() -> None:
    task, network = regression(), net().eval()
    images, targets = data(10, 2).tensors
    with torch.no_grad():
        expected = float(nearness(network(images), targets).mean())
    assert task.evaluate(network, "test", batch=3) == pytest.approx(expected, abs=1e-6)
    assert task.size("train") == task.train_size == 40
    seen = torch.cat([target for _, target in task.train_batches(7, torch.Generator().manual_seed(3), drop_last=False)])
    assert torch.equal(seen.flatten().sort().values, data(40).tensors[1].flatten().sort().values)


def test_a_regression_is_trained_searched_and_imitated() -> None:
    task, network = regression(), net()
    before = task.evaluate(network, "valid")
    train(network, task, replace(RECIPES["demo"], epochs=20, batch=8, label_smoothing=0.0, lr=0.05))
    teacher_score = task.evaluate(network, "valid")
    assert teacher_score > before
    space = SearchSpace.from_model(network, input_shape=(1, 6, 6), operators=("conv3x3", "dwsep3x3", "max3x3"))
    with FakeRuntime.on(FakeDevice(noise=0.0)):
        table = profile(space, config=RuntimeConfig(runtime="fake"), model_name="net", validate=0)
    config = replace(FITTED, fit=FitConfig(epochs=2, batch=8), epochs=1, updates=1, samples=2, batch=8, rescored=2, finalists=1)
    found = search(space, task, table, target_ms=table.predict(space.incumbent), config=config)
    assert 0 < found.pick.accuracy <= 1
    student = net()
    recipe = replace(RECIPES["finetune"], epochs=5, batch=8, distill=0.5)
    train(student, task, recipe, teacher=network)
    assert task.evaluate(student, "valid") > before


def test_the_example_is_trained_exported_and_planned(tmp_path: Path) -> None:
    def run(*arguments: object) -> dict[str, Any]:
        result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        content: dict[str, Any] = json.loads(result.stdout)
        return content

    network, task = ("--model", f"{EXAMPLE}:network"), ("--task", f"{EXAMPLE}:ink")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"epochs": 2, "batch": 64, "schedule": "one-cycle", "warmup": 0.2, "lr": 0.1}))
    child = run("train", "--arch", "incumbent", *network, *task, "--recipe", recipe, "--out", tmp_path / "child")
    assert child["data"] == f"{EXAMPLE}:ink"
    assert child["metric"] == "IoU"
    assert child["accuracy"]["test"] > 0.5
    again = run("eval", *network, *task, "--weights", tmp_path / "child" / "weights.safetensors")
    assert again["accuracy"] == child["accuracy"]
    bundle = run("export", tmp_path / "child", "--to", "onnx", "--out", tmp_path / "bundle")
    assert bundle["files"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": lambda output, target: (output - target) ** 2}, r"the loss of .* must be one number, but is a tensor of shape"),
        ({"score": lambda output, target: output.mean()}, r"must be \(10,\), one for each image, but is a tensor of shape \(\)"),
        ({"score": lambda output, target: 3 + output[:, 0]}, r"must lie in \[0, 1\]"),
        ({"score": lambda output, target: output @ output}, "must be computed, but it"),
        ({"classes": ("a", "b")}, "classes must name each of the 1 outputs, but 2 are given"),
    ],
)
def test_what_is_wrong_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as problem:
        train(net(), regression(**options), replace(RECIPES["demo"], epochs=1, batch=10, label_smoothing=0.0))
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 3", "must return a nar_hw.tasks.Task, such as DatasetTask, but returns a int"),
        ("raise RuntimeError('no disk')", "no disk"),
        ("return DatasetTask(*[TensorDataset(torch.zeros(0, 1, 2, 2), torch.zeros(0))] * 3, **given)", "has none"),
        (
            "return DatasetTask(*[TensorDataset(torch.zeros(4, 2, 2), torch.zeros(4))] * 3, **given)",
            r"must be float32 \(C, H, W\)",
        ),
    ],
)
def test_a_file_that_gives_no_task_is_one_line(body: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    imports = "import torch\nfrom torch.utils.data import TensorDataset\nfrom nar_hw.tasks import DatasetTask\n"
    file.write_text(f"{imports}given = dict(loss=None, score=None, outputs=1)\ndef task(device):\n    {body}\n")
    with pytest.raises(DataError, match=message):
        load_task(f"{file}:task")


def test_images_are_taken_as_they_are() -> None:
    images = next(iter(regression().eval_batches("test", 10)))[0]
    assert np.array_equal(images.numpy(), data(10, 2).tensors[0].numpy())
    assert regression().preprocessing.std == (1.0,)
