"""A search in two processes (gloo on the CPU) finds what one process finds.

Equality can only be asked of networks without batch norms, whose statistics are of each process's share of the batch (a group
norm sees one image), and without dropout. Gradients are then means over the same images, up to the order of a sum; accuracies
count answers.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nar_hw.data import Augmentation, load_data
from nar_hw.distributed import average_gradients, rank
from nar_hw.errors import TrainingError
from nar_hw.records import replace
from nar_hw.search import loop
from nar_hw.search.config import SearchConfig
from nar_hw.space.space import SearchSpace
from nar_hw.tasks import ClassificationTask
from nar_hw.training.checkpoints import load_state
from tests.processes import command, run
from tests.test_table import for_space


class Plain(nn.Module):
    """Four convolutions without batch norms."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c_in, 8, 3, padding=1) for c_in in (3, 8, 8, 8))
        self.norm = nn.GroupNorm(1, 8)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.relu(self.norm(conv(x)))
        return self.fc(x.mean((2, 3)))


def plain(num_classes: int) -> nn.Module:
    """For --model."""
    return Plain(num_classes)


# Made when the module is imported, once for all processes: they are forked from one that has imported it.
torch.set_num_threads(1)
torch.manual_seed(0)
SPACE = SearchSpace.from_model(Plain(), (3, 8, 8))
TABLE = for_space(SPACE, lambda spec: 0.1 + spec.c_in * len(spec.operator) / 100)
TARGET = 0.4 * TABLE.bounds()[0] + 0.6 * TABLE.bounds()[1]
DATA = load_data("fake:3x8x8x5")
CONFIG = SearchConfig(
    warmup_epochs=4, epochs=3, batch=64, lr=0.1, t_0=7, updates=3, samples=5, valid_batch=32, rescored=6, finalists=3
)


def work(out: Path, config: SearchConfig = CONFIG) -> None:
    task = ClassificationTask(DATA, augmentation=Augmentation(flip=True))
    calls = []

    def measure(archs: list[tuple[int, ...]]) -> list[float]:
        calls.append(len(archs))
        return [float(TABLE.predict(arch)) * (1 + 0.01 * rank()) for arch in archs]

    loop.search(SPACE, task, TABLE, target_ms=TARGET, config=config, out=out, measure=measure, resume=True)
    assert (len(calls) > 0) is (rank() == 0)


def gradients(out: Path) -> None:
    """Means over the processes, of what ran only."""
    layers = nn.ModuleList(nn.Linear(2, 1) for _ in range(2))
    (layers[0](torch.full((1, 2), 1.0 + 2 * rank()))).sum().backward()
    average_gradients(layers)
    assert torch.equal(layers[0].weight.grad, torch.full((1, 2), 2.0))  # of 1 and 3
    assert layers[1].weight.grad is None


def one_epoch(out: Path) -> None:
    """The search, stopped after its first epoch."""
    save = loop.SearchFolder.save

    def stop(self: Any, state: Any) -> None:
        save(self, state)
        raise KeyboardInterrupt

    loop.SearchFolder.save = stop
    with pytest.raises(KeyboardInterrupt):
        work(out)


def odd(out: Path) -> None:
    with pytest.raises(TrainingError, match="batch must be a multiple of the 2 processes, but got 63"):
        work(out, SearchConfig(batch=63))


def outcome(out: Path) -> dict[str, Any]:
    record = json.loads((out / "run.json").read_text())
    record["history"] = [
        {key: value for key, value in log.items() if not key.endswith("_s") and key != "loss"} for log in record["history"]
    ]
    del record["table"]
    return record


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search in one process."""
    out = tmp_path_factory.mktemp("alone") / "x"
    assert run(1, work, out) == [0]
    return out


def weights(out: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(out / "supernet.safetensors")


def test_two_processes_find_what_one_finds(alone: Path, tmp_path: Path) -> None:
    assert run(2, work, tmp_path / "x") == [0, 0]
    assert outcome(tmp_path / "x") == outcome(alone)
    one, two = weights(alone), weights(tmp_path / "x")
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(one[name], two[name]) for name in one)  # they did not train on all images each


def test_two_processes_resume_together(alone: Path, tmp_path: Path) -> None:
    assert run(2, one_epoch, tmp_path / "x") == [0, 0]
    assert len(load_state(tmp_path / "x/state.pt")["run"]["history"]) == 1
    assert run(2, work, tmp_path / "x") == [0, 0]
    assert outcome(tmp_path / "x") == outcome(alone)


@pytest.mark.parametrize("target", [gradients, odd])
def test_in_two_processes(target: Callable[..., None], tmp_path: Path) -> None:
    assert run(2, target, tmp_path / "x") == [0, 0]
    assert not (tmp_path / "x").exists()


def test_the_command_in_two_processes_prints_once(tmp_path: Path) -> None:
    """As `torchrun --nproc-per-node 2 -m nar_hw search`; the table's device is another one."""
    model = f"{__file__}:plain"
    fingerprint = {**TABLE.fingerprint, "memory_format": "contiguous"}
    replace(TABLE, network=replace(TABLE.network, name=model), fingerprint=fingerprint).save(tmp_path / "t.json")
    line = f"search --model {model} --data fake:3x8x8x5 --table {tmp_path}/t.json --target-ms {TARGET} --out {tmp_path}/x"
    line += " --epochs 1 --warmup-epochs 0 --batch 64 --allow-mismatch --tensorboard --json"
    assert run(2, command, *line.split()) == [0, 0]
    (told,) = (tmp_path / "stdout.0").read_text().splitlines()
    assert json.loads(told)["met"]
    assert (tmp_path / "stdout.1").read_text() == ""
    assert len(list((tmp_path / "x/tensorboard").iterdir())) == 1
