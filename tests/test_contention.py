"""What else a machine does: counters are injected, so that every expected value is a sum done by hand."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nar_hw import locks
from nar_hw.latency import contention as module
from nar_hw.latency.children import Measured, measure
from nar_hw.latency.contention import BUSY, Contention, Counters, Watch, counters, difference, together
from nar_hw.latency.journal import ChildTimes, Journal
from nar_hw.latency.meters import Gpu
from nar_hw.latency.profiler import profile
from nar_hw.latency.table import LatencyTable
from nar_hw.latency.validate import MEANWHILE, NOISY, between, validate, with_validation
from nar_hw.records import as_record, plain, replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.fake import FakeDevice, FakeRuntime
from nar_hw.space.space import SearchSpace
from tests.networks import TinyResNet
from tests.test_benchmark import FakeNvml

SHAPE = (3, 16, 16)
REAL, FAKE = RuntimeConfig(), RuntimeConfig(runtime="fake")


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return SearchSpace.from_model(TinyResNet(), SHAPE, operators=["conv3x3", "dwsep3x3", "max3x3"])


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 0.0, 0.0))


QUIET = Counters(at=0.0, own=0.0, busy=0.0, steal=0.0, waited=0.0, switches=0, throttled=0)


def after(**changes: Any) -> Counters:
    """Ten seconds of one busy core, all its own."""
    return QUIET._replace(at=10.0, **{"own": 10.0, "busy": 10.5, "switches": 100, **changes})


@pytest.mark.parametrize(
    ("last", "reasons"),
    [
        (after(), ()),
        (after(busy=11.9), ()),
        (after(busy=20.0), ("other programs kept 1.0 of 2 cores busy (load average 1.5)",)),
        (after(waited=2.6), ("it waited 26% of the time for a core and had 10 involuntary context switches a second",)),
        (after(switches=1270), ("it waited 0% of the time for a core and had 127 involuntary context switches a second",)),
        (after(switches=1270, waited=None), ("127 involuntary context switches a second",)),
        (after(steal=1.0), ("the host took 9% of the CPU time (steal)",)),
        (after(throttled=1), ("the processor was slowed down by heat",)),
        (
            QUIET._replace(at=10.0, busy=None, steal=None, waited=None, switches=None, throttled=None),
            ("the load average was 1.5",),
        ),
    ],
)
def test_what_is_too_much_is_named_with_its_number(last: Counters, reasons: tuple[str, ...]) -> None:
    found = difference(QUIET, last)
    if last.busy is None:
        assert (found.others, found.waiting, found.switches, found.steal) == (None, None, None, None)
        assert replace(found, load_average=1.1).reasons == ()
    assert [reason.startswith(expected) for reason, expected in zip(found.reasons, reasons, strict=True)] == [True] * len(reasons)
    assert (found.note is None) == (not reasons)
    assert replace(found, seconds=0.4).reasons == (), "too short to be judged"


def test_shares_are_of_the_time_that_passed() -> None:
    found = difference(QUIET, after(busy=16.0, waited=1.0, steal=4.0))
    assert (found.seconds, found.cores, found.load_average) == (10.0, 2, 1.5)
    assert (found.others, found.waiting, found.switches) == (0.6, 0.1, 10.0)
    assert found.steal == pytest.approx(4.0 / 20.0)


def test_several_measurements_count_by_their_time() -> None:
    first = Contention(
        seconds=1.0, cores=2, others=1.0, switches=100.0, load_average=1.0, slowed=("heat",), sm_clock_mhz=(900, 1000)
    )
    second = Contention(seconds=3.0, cores=2, others=0.0, waiting=0.5, load_average=2.0, sm_clock_mhz=(950, 1100))
    found = together([first, None, second])
    assert found == Contention(
        **{"seconds": 4.0, "cores": 2, "others": 0.25, "switches": 100.0, "waiting": 0.5, "steal": None, "load_average": 2.0},
        slowed=("heat",),
        sm_clock_mhz=(900, 1100),
    )
    assert together([None]) is None
    assert as_record(plain(found), Contention, where="x") == found


def busy_machine(monkeypatch: pytest.MonkeyPatch, others: float) -> None:
    """Each reading of the counters is three seconds after the one before, with so many cores of other programs."""
    turns = itertools.count()

    def read() -> Counters:
        at = 3.0 * next(turns)
        return QUIET._replace(at=at, own=at, busy=(1 + others) * at)

    monkeypatch.setattr(module, "counters", read)
    monkeypatch.setattr(module, "EVERY_S", -1e9)
    monkeypatch.setattr(FakeRuntime, "simulated", False)


@pytest.mark.parametrize(("others", "said"), [(0.0, 0), (1.0, 1)])
def test_it_is_said_once_while_it_measures(monkeypatch: pytest.MonkeyPatch, others: float, said: int) -> None:
    busy_machine(monkeypatch, others)
    lines: list[str] = []
    with Watch(FAKE, lines.append) as watch:
        for _ in range(5):
            watch.look()
        found = watch.found()
    assert found is not None
    assert found.others == pytest.approx(others)
    assert lines == ["the machine is busy: other programs kept 1.0 of 2 cores busy (load average 1.5)"] * said


def test_what_was_before_the_measurement_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children are loaded by all cores."""
    monkeypatch.setattr(FakeRuntime, "simulated", False)
    monkeypatch.setattr(module, "EVERY_S", -1.0)
    waited = itertools.chain([0.0, 50.0], itertools.repeat(50.0))
    turns = itertools.count()

    def read() -> Counters:
        at = 3.0 * next(turns)
        return QUIET._replace(at=at, own=at, busy=at, waited=next(waited))

    lines: list[str] = []
    with Watch(FAKE, lines.append, read=read) as watch:
        watch.begin()
        watch.look()
        found = watch.found()
    assert found is not None
    assert (found.waiting, lines) == (0.0, [])


def test_made_up_times_are_not_disturbed() -> None:
    lines: list[str] = []
    with Watch(FAKE, lines.append) as watch:
        watch.look()
        assert watch.found() is None
    assert lines == []


@pytest.mark.parametrize("others", [0.0, 1.0])
def test_a_table_made_beside_other_programs_says_so(space: SearchSpace, monkeypatch: pytest.MonkeyPatch, others: float) -> None:
    busy_machine(monkeypatch, others)
    with FakeRuntime.on(FakeDevice()):
        table = profile(space, config=FAKE, model_name="own", rounds=2, validate=3)
    assert table.contention is not None
    assert table.validation is not None
    assert table.validation.contention is not None
    assert table.contention.others == pytest.approx(others)
    marks = [note for note in table.notes if BUSY in note]
    assert [note.startswith(MEANWHILE) for note in marks] == ([False, True] if others else [])
    assert all("other programs kept 1.0 of 2 cores busy" in note for note in marks)
    calm = replace(table.validation, contention=Contention(seconds=10.0, cores=2, others=0.0))
    again = with_validation(table, calm)
    assert [note for note in again.notes if BUSY in note] == marks[:1], "a quiet validation does not make the profile quiet"
    assert again.hash == replace(table, contention=None).hash


OTHER = "process 99 on there since 2026-01-01 00:00:00 UTC (nar-hw profile)"


def removed(lock: Path) -> None:
    lock.unlink()


def taken_over(lock: Path) -> None:
    other = lock.with_name("other")
    other.write_text(OTHER)
    other.replace(lock)


@pytest.mark.parametrize(
    ("what", "how"), [(removed, "was removed"), (taken_over, f"was taken over by {OTHER}")], ids=["removed", "taken over"]
)
def test_a_table_made_while_its_lease_was_broken_says_so(
    space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: Callable[[Path], None], how: str
) -> None:
    """A quiet machine, whose lock somebody else deletes or replaces as the last children of the profile are loaded."""
    busy_machine(monkeypatch, 0.0)
    lock = tmp_path / "lease"
    monkeypatch.setattr(locks, "lease", lambda: lock)
    loaded, own = itertools.count(1), FakeRuntime._load

    def load(self: FakeRuntime, network: Any) -> None:
        if next(loaded) == 6:
            assert locks.lease_lost() is None
            what(lock)
        own(self, network)

    monkeypatch.setattr(FakeRuntime, "_load", load)
    with FakeRuntime.on(FakeDevice()):
        table = profile(space, config=FAKE, model_name="own", rounds=2, validate=0)
    assert lock.exists() == (what is taken_over), "the lock of another process stays"
    assert table.contention is not None
    assert table.contention.lease == how
    (note,) = [note for note in table.notes if note.startswith(BUSY)]
    assert note == (
        f"busy machine: this machine's lease {how}, so that others may have measured meanwhile: measure again when it is quiet"
    )
    table.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json").contention == table.contention
    assert replace(table.contention, seconds=0.1).note == note, "however short it was"
    calm = replace(table.contention, lease=None)
    assert calm.note is None
    joint = together([calm, table.contention, calm])
    assert joint is not None
    assert joint.lease == how
    assert locks.lease_lost() is None, "of none that is held"


def test_the_journal_keeps_what_else_the_machine_did(space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy_machine(monkeypatch, 1.0)
    archs = [space.incumbent]

    def made(resume: bool) -> Measured[Any]:
        with FakeRuntime.on(FakeDevice()):
            journal = Journal(tmp_path / "journal", {}, resume=resume)
            return measure(
                lambda arch, profile: FakeRuntime(space.build(arch), SHAPE, FAKE),
                archs,
                lambda: FakeRuntime(space.model, SHAPE, FAKE),
                at_once=1,
                rounds=2,
                journal=journal,
            )

    first = made(resume=False)
    monkeypatch.setattr(module, "counters", lambda: QUIET)
    assert made(resume=True).contention == first.contention
    assert first.contention is not None
    assert first.contention.others == pytest.approx(1.0)


def test_this_machine_counts_forwards() -> None:
    first = counters()
    sum(range(300_000))
    last = counters()
    assert all(before <= now for before, now in zip(first, last, strict=True) if before is not None and now is not None)
    assert last.own > 0
    assert last.at > first.at


# ---------------------------------------------------------------------------------------------------------------- sessions


def measured(ms: dict[tuple[int, ...], float], reference: float) -> Measured[Any]:
    array = torch.ones(4).double().numpy()
    children = {arch: ChildTimes(whole=array * value, layers={}, producers={}) for arch, value in ms.items()}
    return Measured(children=children, reference=array * reference, clock="wall", rounds=4, doubts=())


def test_the_noise_between_sessions_is_that_beside_the_network_itself() -> None:
    first = measured({(0,): 1.0, (1,): 2.0, (2,): 3.0}, 2.0)
    second = measured({(0,): 2.0, (1,): 4.4}, 4.0)  # half as fast as a whole, and one child 10 % slower
    found = between(first, second, apart_s=60.04)
    assert (found.children, found.rounds, found.apart_s) == (2, 4, 60.0)
    assert found.mape == pytest.approx(5.0)
    assert found.max_error == pytest.approx(10.0)


def test_children_are_loaded_again_at_the_end(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    own = FakeRuntime._load

    def counted(self: FakeRuntime, network: Any) -> None:
        loaded.append(1)
        own(self, network)

    monkeypatch.setattr(FakeRuntime, "_load", counted)
    with FakeRuntime.on(FakeDevice(noise=0.0)):
        table = profile(space, config=FAKE, model_name="own", rounds=2, validate=0)
        before = len(loaded)
        found = validate(table, space, children=5, rounds=2)
    assert len(loaded) - before == 1 + 5 + 1 + 5, "the network itself and its children, twice"
    assert found.reloaded is not None
    assert found.reloaded.children == 5
    assert found.reloaded.mape == pytest.approx(0.0, abs=1e-6)
    loud = replace(found, reloaded=replace(found.reloaded, mape=NOISY + 0.1))
    assert any("children loaded again took 3.1 % more or less" in note for note in with_validation(table, loud).notes)
    assert with_validation(table, found).notes == table.notes


def test_older_tables_have_neither(tmp_path: Path) -> None:
    from nar_hw.latency.table import shipped_tables

    table = LatencyTable.load(shipped_tables()[0])
    assert table.contention is None
    assert table.validation is None or (table.validation.contention, table.validation.reloaded) == (None, None)


# ---------------------------------------------------------------------------------------------------------------- GPU


class HotNvml(FakeNvml):
    """A GPU that has become hot and slow."""

    nvmlClocksThrottleReasonHwThermalSlowdown = 0x40  # noqa: N815
    nvmlClocksThrottleReasonSwPowerCap = 0x4  # noqa: N815
    clocks: Callable[[], int]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:  # noqa: N802
        return int(self._tell("reasons", 0x44))

    def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:  # noqa: N802
        return int(self._tell("clock", self.clocks()))


@pytest.mark.parametrize(
    ("silent", "expected"),
    [
        (
            (),
            (
                "the processor was slowed down by heat",
                "the processor was slowed down by its power limit",
                "the GPU's clock went from 1200 to 1980 MHz",
            ),
        ),
        (("reasons",), ("the GPU's clock went from 1200 to 1980 MHz",)),
        (("init",), ()),
    ],
)
def test_a_gpu_that_slows_down_is_named(
    monkeypatch: pytest.MonkeyPatch, silent: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda index: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: type("P", (), {"uuid": "1234"}))
    nvml = HotNvml(silent)
    speeds = itertools.chain([1980, 1200], itertools.repeat(1500))
    nvml.clocks = lambda: next(speeds)
    monkeypatch.setitem(__import__("sys").modules, "pynvml", nvml)
    monkeypatch.setattr(module, "EVERY_S", -1.0)
    turns = itertools.count()
    said: list[str] = []

    def read() -> Counters:
        at = 3.0 * next(turns)
        return QUIET._replace(at=at, own=at, busy=at)

    with Watch(RuntimeConfig(runtime="torch_eager", device="cuda"), said.append, read=read) as watch:
        watch.look()
        watch.look()
        found = watch.found()
    assert found is not None
    assert found.reasons == expected
    assert len(said) == bool(expected)
    assert nvml.open == 0
    assert Gpu(RuntimeConfig(device="cuda"))._handle is None
