"""A training in two processes (gloo on the CPU) against one process at the same batch.

Of a network without norms over the batch and without dropout the result is the same, up to the order of a sum. Batch norms see
each process's share: their result differs, but it is the same network in both processes, and it resumes to the same bits.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs
from safetensors.torch import load_file
from torch import Tensor, nn

from nar_hw.data import Augmentation, load_data
from nar_hw.distributed import rank
from nar_hw.errors import TrainingError
from nar_hw.records import replace
from nar_hw.tasks import ClassificationTask
from nar_hw.training.loop import train
from nar_hw.training.phases import two_phase
from nar_hw.training.recipes import Recipe
from tests.processes import command, run

torch.set_num_threads(1)
DATA = load_data("fake:3x8x8x4")  # 280, 40 and 80 images
RECIPE = Recipe(
    epochs=3, batch=40, t_0=3, lr=0.05, nesterov=True, label_smoothing=0.1, clip_norm=1.0, ema_decay=0.5, accumulate=3
)


def plain() -> nn.Sequential:
    """A group norm sees one image."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def normed() -> nn.Sequential:
    network = plain()
    network[1] = nn.BatchNorm2d(8)
    network.insert(7, nn.Dropout(0.1))
    return network


def task() -> ClassificationTask:
    return ClassificationTask(DATA, augmentation=Augmentation(crop_padding=1, flip=True))


def build(norms: bool) -> nn.Module:
    return normed() if norms else plain()


def work(out: Path, recipe: Recipe = RECIPE, norms: bool = False) -> None:
    """Every process leaves what it has become."""
    model = build(norms)
    if rank() == 1:  # what it starts from must not matter
        nn.init.ones_(model[0].weight)  # type: ignore[index]
    result = train(model, task(), recipe, out=out, seed=1, resume=True)
    torch.save((model.state_dict(), [structs.asdict(log) for log in result.history]), out.parent / f"{out.name}.{rank()}")


def fine_tuned(out: Path) -> None:
    two_phase(plain(), task(), replace(RECIPE, epochs=4), new=["3"], out=out, seed=1)


def stopped(out: Path, norms: bool) -> None:
    def stop(log: Any) -> None:
        raise KeyboardInterrupt

    context = pytest.raises(KeyboardInterrupt) if rank() == 0 else pytest.raises(RuntimeError)
    with context:
        train(build(norms), task(), RECIPE, out=out, seed=1, on_epoch=stop)


def odd(out: Path) -> None:
    with pytest.raises(TrainingError, match="batch must be a multiple of the 2 processes, but got 41"):
        train(plain(), task(), replace(RECIPE, batch=41), out=out)


class Poisoned(nn.Sequential):
    """Gives NaN to the second process only, from the fourth batch on."""

    def __init__(self) -> None:
        super().__init__(*plain())
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        output: Tensor = super().forward(images)
        return output * float("nan") if rank() == 1 and self.calls > 9 else output


def poisoned(out: Path) -> None:
    """Both stop, at the same step."""
    with pytest.raises(TrainingError, match=r"the loss is nan at step 3 "):
        train(Poisoned(), task(), RECIPE, out=out)


def left(path: Path, number: int) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    state, history = torch.load(path.parent / f"{path.name}.{number}")
    return state, [{key: value for key, value in log.items() if key != "images_per_s"} for log in history]


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    assert run(1, work, tmp_path / "one") == [0]
    assert run(2, work, tmp_path / "two") == [0, 0]
    one, history = left(tmp_path / "one", 0)
    for number in (0, 1):
        two, also = left(tmp_path / "two", number)
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
        for first, second in zip(history, also, strict=True):
            assert second == pytest.approx(first, rel=1e-4)
    assert any(not torch.equal(one[name], two[name]) for name in one)  # they did not train on all images each
    torch.testing.assert_close(load_file(tmp_path / "two/last.safetensors"), two)


def test_two_phases_in_two_processes(tmp_path: Path) -> None:
    assert run(1, fine_tuned, tmp_path / "one") == [0]
    assert run(2, fine_tuned, tmp_path / "two") == [0, 0]
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)


def test_batch_norms_see_their_share_and_the_processes_agree(tmp_path: Path) -> None:
    assert run(2, work, tmp_path / "two", RECIPE, True) == [0, 0]
    (first, history), (second, also) = (left(tmp_path / "two", number) for number in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert history == also
    train(alone := normed(), task(), RECIPE, seed=1)
    torch.testing.assert_close(first["1.running_mean"], alone.state_dict()["1.running_mean"], rtol=0.2, atol=0.05)


@pytest.mark.parametrize("norms", [False, True])
def test_two_processes_resume_together_to_the_same_bits(tmp_path: Path, norms: bool) -> None:
    assert run(2, work, tmp_path / "straight", RECIPE, norms) == [0, 0]
    assert run(2, stopped, tmp_path / "two", norms) == [0, 0]
    assert len(json.loads((tmp_path / "two/history.json").read_text())["epochs"]) == 1
    assert run(2, work, tmp_path / "two", RECIPE, norms) == [0, 0]
    for number in (0, 1):
        (expected, history), (found, also) = (left(tmp_path / name, number) for name in ("straight", "two"))
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        assert history == also


@pytest.mark.parametrize("target", [odd, poisoned])
def test_in_two_processes(target: Any, tmp_path: Path) -> None:
    assert run(2, target, tmp_path / "x") == [0, 0]
    assert not (tmp_path / "x").exists()


def test_the_command_in_two_processes_prints_once(tmp_path: Path) -> None:
    """As `torchrun --nproc-per-node 2 -m nar_hw train`."""
    model = f"{Path(__file__).parent / 'networks.py'}:tiny"
    line = f"train --arch incumbent --model {model} --data fake:3x8x8x4 --out {tmp_path}/x --recipe demo --epochs 2"
    assert run(2, command, *f"{line} --tensorboard --json".split()) == [0, 0]
    (told,) = (tmp_path / "stdout.0").read_text().splitlines()
    assert json.loads(told)["accuracy"] == json.loads((tmp_path / "x/child.json").read_text())["accuracy"]
    assert (tmp_path / "stdout.1").read_text() == ""
    assert len(list((tmp_path / "x/tensorboard").iterdir())) == 1
