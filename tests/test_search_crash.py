"""A search whose process is killed goes on from its last whole epoch and ends with the same bits."""

import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nar_hw.data import Augmentation, load_data
from nar_hw.search import loop
from nar_hw.search.config import SearchConfig
from nar_hw.space.space import SearchSpace
from nar_hw.tasks import ClassificationTask
from nar_hw.training.checkpoints import load_state, save_state
from tests.networks import TinyResNet
from tests.test_table import for_space

CONFIG = SearchConfig(
    warmup_epochs=1, epochs=3, batch=64, lr=0.05, t_0=2, updates=2, samples=4, valid_batch=32, rescored=6, finalists=3
)
FILES = {"run.json", "supernet.safetensors", "table.json"}


class Dropping(TinyResNet):
    """With dropout, which draws from torch's global generator."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.1, self.training)


# Made when the module is imported, once for all processes: they are forked from one that has imported it.
torch.set_num_threads(1)
torch.manual_seed(0)
SPACE = SearchSpace.from_model(Dropping(), (3, 8, 8))
TABLE = for_space(SPACE, lambda spec: 0.1 + spec.c_in * len(spec.operator) / 100)
TARGET = 0.4 * TABLE.bounds()[0] + 0.6 * TABLE.bounds()[1]
DATA = load_data("fake:3x8x8x5")


def work(out: Path, watch: Callable[..., None] | None = None) -> None:
    """One search in ``out``, resumed where there is one; what the strategy knows at the end is kept beside it.

    ``watch`` is called at each call and return of any function.
    """
    task = ClassificationTask(DATA, augmentation=Augmentation(flip=True))
    conclude = loop.conclude

    def kept(run: loop.SearchRun, *args: Any) -> Any:
        save_state(out.with_suffix(".strategy"), run.players[0].strategy.state_dict())
        return conclude(run, *args)

    loop.conclude = kept
    sys.setprofile(watch)
    loop.search(SPACE, task, TABLE, target_ms=TARGET, config=CONFIG, out=out, resume=True)
    sys.setprofile(None)


def until_call(out: Path, moment: int) -> None:
    """The search, killed at its ``moment``-th call or return."""
    count = itertools.count(1)
    work(out, lambda *_: die() if next(count) == moment else None)


def until_file(out: Path, moment: int) -> None:
    """The search, killed when its ``moment``-th file is written and not yet in its place."""
    count, fsync = itertools.count(1), os.fsync
    os.fsync = lambda handle: die() if next(count) == moment else fsync(handle)
    work(out)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def calls(out: Path) -> None:
    """The search, with the number of its calls in a file."""
    count = itertools.count(1)
    work(out, lambda *_: next(count))
    out.with_suffix(".calls").write_text(str(next(count)))


def process(*call: Any) -> int | None:
    """The exit code of ``call`` in a process of its own; of a killed one, minus the signal."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    target, *args = call
    started = context.Process(target=target, args=args)
    started.start()
    started.join()
    return started.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "x"
    assert process(calls, out) == 0
    return out


def outcome(out: Path) -> tuple[Any, bytes, bytes]:
    """The result without the seconds that it took and the folder that it is in, the shared weights, the strategy."""
    record = json.loads((out / "run.json").read_text())
    record["history"] = [{key: value for key, value in log.items() if not key.endswith("_s")} for log in record["history"]]
    del record["table"]
    return record, (out / "supernet.safetensors").read_bytes(), plain(load_state(out.with_suffix(".strategy")))


def plain(value: Any) -> Any:
    """Tensors as bytes, so that equal is equal to the last bit."""
    match value:
        case Tensor():
            return value.numpy().tobytes()
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
    return value


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_random_moments(whole: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    total = int(whole.with_suffix(".calls").read_text())
    out = tmp_path / "x"
    deaths = [process(until_call, out, rng.randrange(1, total)) for _ in range(3)]
    assert deaths[0] == -signal.SIGKILL
    assert process(work, out) == 0
    assert outcome(out) == outcome(whole)
    assert {path.name for path in out.iterdir()} == FILES


def test_killed_while_files_are_written(whole: Path, tmp_path: Path) -> None:
    """At the first file, then at the second of what is left, and so on: checkpoints, the weights, the result itself."""
    out = tmp_path / "x"
    codes = [process(until_file, out, moment) for moment in (1, 2, 3, 4)]
    assert codes == [-signal.SIGKILL] * 4
    assert not (out / "run.json").exists()
    assert process(work, out) == 0
    assert outcome(out) == outcome(whole)
    assert {path.name for path in out.iterdir()} == FILES


def test_a_checkpoint_that_outlived_its_search_is_removed(whole: Path) -> None:
    (whole / "state.pt").write_bytes(b"killed before it was deleted")
    before = outcome(whole)
    assert process(work, whole) == 0
    assert outcome(whole) == before
    assert {path.name for path in whole.iterdir()} == FILES
