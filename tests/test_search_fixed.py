"""A search of weights that are there already: nothing is trained, and scores serve every target."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nar_hw.errors import RunError
from nar_hw.search.config import SearchConfig
from nar_hw.search.loop import search
from nar_hw.search.scoring import Scorer
from nar_hw.search.supernet import Supernet
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch
from tests.networks import TinyResNet
from tests.test_fitting import TASK, same, state
from tests.test_search import FASTEST, SLOWEST, cost
from tests.test_table import for_space

CONFIG = SearchConfig(warmup_epochs=0, epochs=2, batch=64, updates=2, samples=4, valid_batch=32, rescored=6, finalists=3)


def made() -> Supernet:
    torch.manual_seed(0)
    return Supernet(SearchSpace.from_model(TinyResNet(), (3, 8, 8)))


def searched(supernet: Supernet, *shares: float, **options: Any) -> Any:
    table = for_space(supernet.space, cost)
    targets = [FASTEST + share * (SLOWEST - FASTEST) for share in shares]
    target_ms = targets if len(targets) > 1 else targets[0]
    return search(supernet.space, TASK, table, target_ms=target_ms, config=CONFIG, supernet=supernet, **options)


def stop(log: Mapping[str, float]) -> None:
    """In the second epoch, when the checkpoint of the first is there."""
    if log["epoch"] == 2:
        raise KeyboardInterrupt


def test_no_weight_is_changed() -> None:
    supernet = made()
    before = {key: value for key, value in state(supernet).items() if "running" not in key and "batches" not in key}
    result = searched(supernet, 0.6)
    after = {key: value for key, value in state(supernet).items() if key in before}
    assert same(before, after)
    assert all("loss" not in log for log in result.history)
    assert result.met


def test_scores_serve_other_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """With several targets no arch is scored twice, and each has the score that a search for one target gives it."""
    seen: list[Arch] = []
    scores: dict[Arch, float] = {}
    on_images = Scorer._on_images

    def recorded(self: Scorer, archs: Sequence[Arch]) -> list[float]:
        seen.extend(archs)
        found = on_images(self, archs)
        scores.update(zip(archs, found, strict=True))
        return found

    monkeypatch.setattr(Scorer, "_on_images", recorded)
    searched(made(), 0.6, 0.5)
    assert len(seen) == len(set(seen)) > 8
    both = dict(scores)
    scores.clear()
    searched(made(), 0.5)
    same_archs = both.keys() & scores.keys()
    assert len(same_archs) > 1
    assert {arch: both[arch] for arch in same_archs} == {arch: scores[arch] for arch in same_archs}


def test_a_stopped_search_gives_the_same(tmp_path: Path) -> None:
    expected = searched(made(), 0.6)

    with pytest.raises(KeyboardInterrupt):
        searched(made(), 0.6, out=tmp_path, on_epoch=stop)
    logs: list[Any] = []
    resumed = searched(made(), 0.6, out=tmp_path, resume=True, on_epoch=logs.append)
    assert [log["epoch"] for log in logs] == [2]
    assert len({item.accuracy for item in expected.scored}) > 3  # else the next would hold of any images
    assert resumed.scored == expected.scored


def test_a_stopped_search_of_other_weights_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        searched(made(), 0.6, out=tmp_path, on_epoch=stop)
    other = made()
    with torch.no_grad():
        other.network.fc.weight.add_(1)
    with pytest.raises(RunError, match="with the same settings only, but weights is"):
        searched(other, 0.6, out=tmp_path, resume=True)
