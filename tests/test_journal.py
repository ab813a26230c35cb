"""Profiles that are stopped go on; profiles of a quiet machine stop early."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from nar_hw.device.visits import FEWEST_ROUNDS, settled
from nar_hw.errors import RunError
from nar_hw.latency import profiler
from nar_hw.latency.journal import Batch, ChildTimes, Journal
from nar_hw.latency.loader import ChildLoader
from nar_hw.latency.profiler import profile
from nar_hw.latency.table import LatencyTable
from nar_hw.records import plain
from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.base import Runtime
from nar_hw.runtimes.fake import FakeDevice, FakeRuntime
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch, OpSpec
from tests.networks import TinyResNet

FAKE = RuntimeConfig(runtime="fake")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return SearchSpace.from_model(TinyResNet(), (3, 16, 16), operators=["conv3x3", "dwsep3x3", "max3x3"])


class Loads:
    """Counts the children that are loaded, and stops like Ctrl-C at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.archs: list[Arch] = []
        self.stop_at = -1
        original = ChildLoader.__call__

        def load(loader: ChildLoader, arch: Arch, profile: bool = False) -> Runtime:
            self.archs.append(arch)
            if len(self.archs) == self.stop_at:
                raise KeyboardInterrupt
            return original(loader, arch, profile)

        monkeypatch.setattr(ChildLoader, "__call__", load)
        monkeypatch.setattr(profiler, "children_at_once", lambda space: 2)


def made(space: SearchSpace, path: Path, **options: Any) -> LatencyTable:
    with FakeRuntime.on(FakeDevice()):
        return profile(space, config=FAKE, model_name="own", validate=6, journal=path, **options)


@pytest.mark.parametrize("stop_at", [6, 13, 24])
def test_a_stopped_profile_goes_on(space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int) -> None:
    path = tmp_path / "table.part"
    loads = Loads(monkeypatch)
    whole = made(space, path)
    every = list(loads.archs)
    assert not path.exists()
    loads.archs, loads.stop_at = [], stop_at
    with pytest.raises(KeyboardInterrupt):
        made(space, path)
    kept = {position for line in path.read_text().splitlines()[1:] for position in json.loads(line)["members"]}
    assert kept
    loads.archs, loads.stop_at = [], -1
    resumed = made(space, path, resume=True)
    assert not path.exists()
    assert len(loads.archs) < len(every)
    assert resumed.validation is not None
    assert resumed.validation.mape < 3
    archs = np.array([space.incumbent, (1, 1, 1, 1), (2, 2, 2, 2), (0, 1, 2, 0)])
    assert resumed.predict(archs) == pytest.approx(whole.predict(archs), rel=0.02)


def test_without_resume_a_profile_starts_anew(space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.part"
    loads = Loads(monkeypatch)
    made(space, path)
    every, loads.archs, loads.stop_at = len(loads.archs), [], 9
    with pytest.raises(KeyboardInterrupt):
        made(space, path)
    loads.archs, loads.stop_at = [], -1
    made(space, path)
    assert len(loads.archs) == every


def test_another_profiles_journal_is_refused(space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.part"
    loads = Loads(monkeypatch)
    loads.stop_at = 9
    with pytest.raises(KeyboardInterrupt):
        made(space, path)
    before = path.read_text()
    with pytest.raises(RunError, match="seed is 0 there and 3 now: use the same settings, or leave out --resume"):
        made(space, path, resume=True, seed=3)
    assert path.read_text() == before


BATCH = Batch(
    children=(
        ChildTimes(
            whole=np.array([1.0, 1.1]),
            layers={"a/Conv": np.array([0.5])},
            producers={"a/Conv": ["b"]},
        ),
    ),
    reference=np.array([2.0, 2.1]),
    rounds=2,
    disturbed=0.1,
    doubts=("busy",),
)
SPECS = [OpSpec(operator="conv3x3", c_in=n, c_out=n, h=4, w=4) for n in (1, 2, 3)]


def test_what_is_added_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "x.part"
    Journal(path, {"seed": 1}, resume=False).add("operators", SPECS, [SPECS[2]], BATCH)
    journal = Journal(path, {"seed": 1}, resume=True)
    ((members, batch),) = journal.batches("operators", SPECS)
    assert members == [SPECS[2]]
    assert isinstance(batch.children[0].layers["a/Conv"], np.ndarray)
    assert {**plain(batch), **plain(BATCH)} == plain(batch)
    assert journal.batches("children", SPECS) == []
    assert journal.batches("operators", SPECS[:2]) == []


def test_a_line_that_a_crash_cut_off_is_left_out_and_other_damage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.part"
    journal = Journal(path, {}, resume=False)
    for spec in SPECS:
        journal.add("operators", SPECS, [spec], BATCH)
    text = path.read_text()
    path.write_text(text[:-20])
    assert len(Journal(path, {}, resume=True).batches("operators", SPECS)) == 2
    for damaged in (text.replace('"rounds"', "rounds", 1), "[" * 100_000, f"{{}}\n{'[' * 100_000}\n"):
        path.write_text(damaged)
        with pytest.raises(RunError, match=r"x\.part is damaged: delete it"):
            Journal(path, {}, resume=True)
    path.write_text(text.replace('"rounds"', '"\\ud800"', 1))
    with pytest.raises(RunError, match=r"x\.part must hold texts that can be written, but holds '\\ud800': delete it"):
        Journal(path, {}, resume=True)


def test_quiet_machines_need_fewer_rounds_than_noisy_ones(space: SearchSpace) -> None:
    rounds = []
    for noise in (0.001, 0.4):
        with FakeRuntime.on(FakeDevice(noise=noise)):
            table = profile(space, config=FAKE, model_name="own", validate=0, rounds=12)
        rounds.append(table.method.rounds)
    assert rounds == [FEWEST_ROUNDS, 12]


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_settled_is_the_standard_error_of_the_median(seed: int, scale: float) -> None:
    whole = scale * (1 + 0.02 * np.random.default_rng(seed).standard_normal((400, 5)))
    error = 1.2533 * 0.02 / 20
    assert settled(whole, 1.3 * error)
    assert not settled(whole, 0.7 * error)
    disturbed = whole.copy()
    disturbed[::20] *= 5
    assert settled(disturbed, 1.5 * error)


@pytest.mark.parametrize("rounds", range(4, 14))
def test_few_rounds_are_not_taken_for_exact_ones(rounds: int) -> None:
    whole = 1 + 0.02 * np.random.default_rng(rounds).standard_normal((rounds, 4001))
    error = 1.2533 * 0.02 / np.sqrt(rounds)
    assert settled(whole, 1.1 * error)
    assert not settled(whole, 0.8 * error), "a quarter too small without the factors"
