"""Memory beside time: the line that is fitted, what is read, and the limit in a search."""

import gc
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from nar_hw.cli.app import app
from nar_hw.errors import TableError, UserError
from nar_hw.garbage import collector_paused
from nar_hw.latency.cache import parameters
from nar_hw.latency.children import Measured
from nar_hw.latency.journal import ChildTimes
from nar_hw.latency.loader import ChildLoader
from nar_hw.latency.memory import fitted
from nar_hw.latency.profiler import profile
from nar_hw.latency.record import Memory
from nar_hw.latency.table import LatencyTable
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.search.budget import Budget
from nar_hw.search.config import SearchConfig
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch
from tests.networks import TinyResNet
from tests.test_table import for_space

torch.manual_seed(0)
SPACE = SearchSpace.from_model(TinyResNet(), (3, 8, 8), operators=("conv3x3", "dwsep3x3", "max3x3"))
EVERY = list(itertools.product(*(slot.candidates for slot in SPACE.slots)))
SOME = [SPACE.incumbent, *EVERY[1::7]]


def params(arch: Arch) -> int:
    return sum(parameter.numel() for parameter in SPACE.build(arch).parameters())


def measured(mib: list[float | None]) -> Measured[Arch]:
    times = {
        arch: ChildTimes(whole=np.ones(4), layers={}, producers={}, mib=value) for arch, value in zip(SOME, mib, strict=False)
    }
    return Measured(children=times, reference=np.ones(4), clock="wall", rounds=4, doubts=())


def test_children_lie_on_a_line_in_their_parameters() -> None:
    found = fitted(SPACE, measured([3 + 8e-3 * params(arch) for arch in SOME]))
    assert found is not None
    assert (found.fixed_mib, found.mib_per_million) == pytest.approx((3, 8000), rel=1e-3)
    assert found.incumbent_mib == pytest.approx(3 + 8e-3 * params(SPACE.incumbent), rel=1e-3)
    assert found.mape == pytest.approx(0, abs=1e-3)
    assert found.mib(params(SOME[3])) == pytest.approx(3 + 8e-3 * params(SOME[3]), rel=1e-3)


def test_the_error_is_of_children_that_are_left_out() -> None:
    sizes, rng = np.array([params(arch) for arch in SOME], dtype=float), np.random.default_rng(0)
    mib = 3 + 8e-3 * sizes * rng.normal(1, 0.05, len(SOME))
    errors = []
    for left in range(len(SOME)):
        others = np.delete(np.arange(len(SOME)), left)
        line = np.polyfit(sizes[others], mib[others], 1)
        errors.append(abs(np.polyval(line, sizes[left]) / mib[left] - 1))
    found = fitted(SPACE, measured(mib.tolist()))
    assert found is not None
    assert found.mape == pytest.approx(100 * np.mean(errors), rel=1e-3)


def test_no_child_takes_less_than_its_weights() -> None:
    found = fitted(SPACE, measured([max(0.0, 8e-3 * params(arch) - 5) for arch in SOME]))
    assert found is not None
    assert found.fixed_mib == 0
    assert found.mib_per_million > 0


@pytest.mark.parametrize("mib", [[None] * len(SOME), [5.0, 4.0], [1.0] * len(SOME), [0.0] * len(SOME)])
def test_what_says_nothing_of_memory_is_left_out(mib: list[float | None]) -> None:
    """Unknown, too few, the same for all, and nothing seen."""
    assert fitted(SPACE, measured(mib)) is None


def made() -> LatencyTable:
    known = for_space(SPACE, lambda spec: 0.1 + spec.c_in / 100)
    return replace(known, memory=Memory(fixed_mib=2.0, mib_per_million=9000.0, incumbent_mib=50.0, children=20, mape=1.5))


def test_a_limit_of_memory_holds_beside_the_latency() -> None:
    known = made()
    assert known.memory is not None
    times = known.predict(np.array(EVERY))
    mib = np.array([known.memory.mib(params(arch)) for arch in EVERY])
    target, most = float(np.quantile(times, 0.6)), float(np.quantile(mib, 0.4))
    budget = Budget.of(SPACE, [known], [target], SearchConfig(max_memory=most))
    expected = (times <= target * (1 + 1e-9)) & (mib <= most * (1 + 1e-9))
    assert 0 < expected.sum() < (times <= target).sum()
    assert budget.feasible.meets(EVERY).tolist() == expected.tolist()
    scores = np.random.default_rng(0).normal(size=(len(SPACE.slots), len(SPACE.operators)))
    value = np.array([sum(scores[p, code] for p, code in enumerate(arch)) for arch in EVERY])
    assert budget.best(scores) == EVERY[int(np.argmax(np.where(expected, value, -np.inf)))]
    assert budget.costs[1].name == "MiB on a CPU (fake)"


def test_a_limit_of_memory_without_memory_is_refused() -> None:
    with pytest.raises(TableError, match="needs a table that knows memory, but this one does not: profile again"):
        Budget.of(SPACE, [replace(made(), memory=None)], [10.0], SearchConfig(max_memory=5.0))
    with pytest.raises(UserError, match="max_memory is of a latency table that knows memory, but there is none"):
        Budget.of(SPACE, [], [], SearchConfig(max_memory=5.0))
    with pytest.raises(UserError, match="max_memory > 0 must hold in a search"):
        SearchConfig(max_memory=0.0)


class Wide(nn.Module):
    """8 MiB of weights in one convolution that is a slot, 1 MiB in one that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 482, 3, padding=1)
        self.second = nn.Conv2d(482, 482, 3, padding=1)
        self.head = nn.Linear(482, 544)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(torch.relu(self.first(images))).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch_eager"])
def test_the_weights_of_a_child_are_seen_when_it_is_loaded(runtime: str) -> None:
    pytest.importorskip("onnxruntime")
    space = SearchSpace.from_model(Wide(), (3, 8, 8), operators=("conv3x3", "max3x3"))
    fixed, slots = parameters(space)
    assert fixed + sum(slot["conv3x3"] for slot in slots) == sum(parameter.numel() for parameter in space.model.parameters())
    with ChildLoader(space, RuntimeConfig(runtime=runtime), memory=True) as load:
        with load(space.incumbent):
            pass  # what a runtime takes once
        seen = {}
        for name, arch in (("network", space.incumbent), ("light", space.parse(["max3x3"]))):
            with load(arch) as child:
                assert child.mib is not None
                seen[name] = child.mib
    assert 7 < seen["network"] - seen["light"] < 30
    with ChildLoader(space, RuntimeConfig(runtime=runtime)) as load, load(space.incumbent) as child:
        assert child.mib is None


def test_what_was_there_before_is_not_given_back_while_a_child_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage of 16 MiB, which the first allocation of the load would collect."""
    space = SearchSpace.from_model(Wide(), (3, 8, 8), operators=("conv3x3", "max3x3"))
    left = [torch.ones(2**22)]
    thresholds = gc.get_threshold()
    with ChildLoader(space, RuntimeConfig(runtime="torch_eager"), memory=True) as load:
        load(space.incumbent).close()
        settled = load._used
        assert settled is not None

        def used() -> float | None:
            if not left:
                return settled()
            with collector_paused():  # it is there when the memory is read
                garbage: list[Any] = [left.pop()]
                garbage.append(garbage)
                del garbage
                return settled()

        monkeypatch.setattr(load, "_used", used)
        gc.set_threshold(1)
        try:
            with load(space.incumbent) as child:
                assert child.mib is None or child.mib > 7
        finally:
            gc.set_threshold(*thresholds)
    assert gc.isenabled()


def test_a_table_tells_the_memory_that_it_knows(tmp_path: Path) -> None:
    table = profile(SPACE, config=RuntimeConfig(runtime="torch_eager"), model_name="own", rounds=2, validate=0)
    found = replace(table, memory=made().memory)
    found.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == found
    assert found.content()["schema"] == 5
    shown = CliRunner().invoke(app, ["table", "show", str(tmp_path / "table.json")])
    assert "loaded and run, the network itself takes 50 MiB" in " ".join(shown.output.split())
