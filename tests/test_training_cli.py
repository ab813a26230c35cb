"""`nar-hw train` through its real entry point: teachers, ensembles, recipes from files, images in files, TensorBoard."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

from nar_hw.cli import main
from nar_hw.data import fake, load_data
from nar_hw.errors import DataError
from nar_hw.steps import task
from nar_hw.training.child import Child
from tests.test_cli import Run, run

__all__ = ["run"]  # a fixture

NET = f"{Path(__file__).parent / 'networks.py'}:tiny"
DATA = "fake:3x8x8x7"
TRAIN = f"train --model {NET} --data {DATA} --recipe demo"


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "baseline"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["nar-hw", *shlex.split(f"{TRAIN} --arch incumbent --epochs 6 --ensemble 2 --tensorboard --out {out}")]
        )
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
    return out


def ok(result: tuple[int, str, str]) -> Any:
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("option", ["", "--download"])
def test_the_data_are_loaded_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    loads = []
    load = fake.load

    def counted(name: str, *arguments: Any, **options: Any) -> Any:
        loads.append((name, options["download"]))
        return load(name, *arguments, **options)

    monkeypatch.setattr(fake, "load", counted)
    code, _, err = run(f"{TRAIN} --arch incumbent --epochs 1 --out {tmp_path / 'child'} {option}")
    assert code == 0, err
    assert loads == [(DATA, option == "--download")]


@pytest.mark.parametrize(("rank", "expected"), [(0, [True, "wait"]), (1, ["wait", False])])
def test_the_first_process_downloads_and_the_others_wait(
    monkeypatch: pytest.MonkeyPatch, rank: int, expected: list[bool | str]
) -> None:
    events: list[bool | str] = []
    load = fake.load

    def noted(name: str, *arguments: Any, **options: Any) -> Any:
        events.append(options["download"])
        return load(name, *arguments, **options)

    monkeypatch.setattr(fake, "load", noted)
    monkeypatch.setattr(task, "rank", lambda: rank)
    monkeypatch.setattr(task, "barrier", lambda: events.append("wait"))
    task.load_task(DATA, download=True)
    assert events == expected
    with pytest.raises(DataError, match="--download fetches cifar10, cifar100 and fashion-mnist, but 'faces:x' is yours"):
        task.load_task("faces:x", download=True)


def test_accuracies_are_kept_and_printed(run: Run, baseline: Path) -> None:
    child = Child.load(baseline)
    assert set(child.accuracy) == set(child.top5) == {"valid", "test"}
    assert all(child.accuracy[split] <= child.top5[split] <= 1 for split in child.accuracy)
    assert child.ensemble is not None
    assert child.ensemble["epochs"] == [4, 6]
    assert child.ensemble["members"][-1] == pytest.approx(child.accuracy["test"])
    code, out, err = run(f"{TRAIN} --arch incumbent --epochs 6 --ensemble 2 --resume --out {baseline}")
    assert code == 0, err
    text = f"test {100 * child.accuracy['test']:.2f} % (top-5 {100 * child.top5['test']:.2f} %)"
    assert text in out
    mean, top5, vote = (child.ensemble[key] for key in ("mean", "mean_top5", "vote"))
    told = f"test {100 * mean:.2f} % (top-5 {100 * top5:.2f} %) by mean, {100 * vote:.2f} % by majority vote"
    assert f"ensemble of epochs 4, 6: {told}" in out


def test_the_splits_are_recorded(baseline: Path) -> None:
    assert Child.load(baseline).record["splits"] == load_data(DATA).splits


def test_tensorboard_has_every_epoch(baseline: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(baseline / "tensorboard"))
    events.Reload()
    history = json.loads((baseline / "history.json").read_text())["epochs"]
    for name in ("loss", "train_accuracy", "valid_accuracy", "lr", "images_per_s"):
        items = events.Scalars(name)
        assert [item.step for item in items] == [1, 2, 3, 4, 5, 6]
        assert [item.value for item in items] == pytest.approx([log[name] for log in history])


def test_a_teacher_with_and_without_inheritance(run: Run, baseline: Path, tmp_path: Path) -> None:
    child = f"{TRAIN} --arch 0,2,0,0 --epochs 2 --baseline {baseline} --json"
    inherited = ok(run(f"{child} --init inherited --distill 0.5 --out {tmp_path}/a"))
    scratch = ok(run(f"{child} --distill 0.5 --out {tmp_path}/b"))
    plain = ok(run(f"{child} --init inherited --out {tmp_path}/c"))
    assert [item["init"] for item in (inherited, scratch, plain)] == ["inherited", "scratch", "inherited"]
    assert [item["recipe"]["distill"] for item in (inherited, scratch, plain)] == [0.5, 0.5, 0.0]
    losses = [
        [log["loss"] for log in json.loads((tmp_path / name / "history.json").read_text())["epochs"]] for name in ("a", "b", "c")
    ]
    assert len({tuple(item) for item in losses}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--distill 0.5", "which --distill needs too, but got --init scratch, --distill 0.5 and --baseline None"),
        ("--baseline x", "but got --init scratch, --distill 0 and --baseline x"),
        ("--ensemble 9 --epochs 3", r"0 <= snapshots <= epochs must hold, but got (snapshots=9, epochs=3)"),
        ("--recipe absent.json", "recipe absent.json does not exist"),
        ("--device tpu", "the device must be cpu or cuda, but got tpu"),
        ("--distill 2 --baseline x", "--distill must be a number from 0, at most 1, but got"),
    ],
)
def test_refusals(run: Run, options: str, message: str, tmp_path: Path) -> None:
    code, out, err = run(f"{TRAIN} --arch incumbent {options} --out {tmp_path}/x")
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(run: Run, tmp_path: Path) -> None:
    code, out, err = run(f"{TRAIN} --arch incumbent --device cuda --out {tmp_path}/x")
    assert (code, out) == (2, "")
    assert "the device cuda must be there, but torch" in " ".join(err.split())


def test_data_are_fetched_where_one_is_online(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(root: Path, *, train: bool, download: bool) -> None:
        raise URLError("no route to host") if download else RuntimeError("not found")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    line = f"train --arch incumbent --model {NET} --data cifar10 --data-root {tmp_path} --out {tmp_path}/x"
    for option, message in (
        ("--download", f"could not be downloaded to {tmp_path}: <urlopen error no route"),
        ("", "--download"),
    ):
        code, out, err = run(f"{line} {option}")
        assert (code, out) == (2, "")
        assert message in " ".join(err.split())


def test_images_in_files_and_a_recipe_in_a_file(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(10):
            Image.fromarray(rng.integers(0, 256, (12, 15, 3), dtype=np.uint8)).save(tmp_path / f"images/{name}/{index}.png")
    (tmp_path / "recipe.json").write_text(json.dumps({"epochs": 1, "batch": 7, "schedule": "one-cycle"}))
    line = f"train --arch incumbent --model {NET} --data stream:{tmp_path}/images@8 --recipe {tmp_path}/recipe.json --workers 0"
    found = ok(run(f"{line} --out {tmp_path}/x --json"))
    assert found["recipe"]["batch"] == 7
    assert found["model"]["input_shape"] == [3, 8, 8]
    assert found["top5"] == {}


def test_weights_of_a_file_are_inherited_where_they_fit(run: Run, tmp_path: Path) -> None:
    """As torchvision's for 1,000 classes: another head."""
    from tests.networks import tiny

    torch.manual_seed(1)
    torch.save(tiny(num_classes=9).state_dict(), tmp_path / "nine.pth")
    line = f"{TRAIN} --arch incumbent --epochs 2 --init inherited --baseline {tmp_path}"
    code, _, err = run(f"{line}/nine.pth --out {tmp_path}/x")
    assert code == 0, err
    assert f"inherited from {tmp_path}/nine.pth: all but fc".replace(" ", "") in "".join(err.split())  # long paths are wrapped
    first, there = load_file(tmp_path / "x/first/last.safetensors"), torch.load(tmp_path / "nine.pth")
    assert torch.equal(first["layer1.conv1.weight"], there["layer1.conv1.weight"])  # frozen in the first phase
    code, _, err = run(f"{line}/nine.pth --distill 0.5 --out {tmp_path}/y")
    assert code == 2
    assert "must hold all weights of a teacher, but 'fc.weight' does not fit" in " ".join(err.split())
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    code, _, err = run(f"{line}/other.pth --out {tmp_path}/z")
    assert code == 2
    assert "must fit some module of the network by name and shape, but none does" in " ".join(err.split())
