"""One writer at a time, leftovers of killed processes, and the machine's lock while it is measured."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from nar_hw import locks
from nar_hw.errors import RunError
from nar_hw.files import MARK, SCRATCH, Scratch, _remove_dead_scratch, atomic_folder, atomic_path, sweep, write_text
from nar_hw.locks import LOCK, measuring, one_writer, writing

FORK = multiprocessing.get_context("fork")


class Other:
    """Another process that is inside ``enter`` until it is told to leave, or killed."""

    def __init__(self, enter: Callable[[], Any]) -> None:
        self.pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=self._run, args=(enter, theirs), daemon=True)
        self.process.start()
        theirs.close()
        assert self.pipe.recv() == "inside"

    @staticmethod
    def _run(enter: Callable[[], Any], pipe: Connection) -> None:
        with enter():
            pipe.send("inside")
            pipe.recv()

    def leave(self) -> None:
        self.pipe.send("leave")
        self.process.join()

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


@pytest.mark.parametrize("whole", [False, True])
def test_the_second_process_is_told_who_writes(tmp_path: Path, whole: bool) -> None:
    out = tmp_path / "runs" / "x"
    other = Other(lambda: writing(out, whole=whole))
    with pytest.raises(RunError, match=f"{out} is being written by process {other.process.pid} on .* since 20.* UTC") as caught:
        writing(out, whole=whole).__enter__()
    assert "\n" not in str(caught.value)
    other.leave()
    with writing(out, whole=whole):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("whole", [False, True])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path, whole: bool) -> None:
    out = tmp_path / "x"
    Other(lambda: writing(out, whole=whole)).kill()
    lock = tmp_path / ".x.lock" if whole else out / LOCK
    assert lock.exists()
    with writing(out, whole=whole):
        assert f"process {os.getpid()} " in lock.read_text()
        with writing(out, whole=whole):  # nested
            pass
        assert lock.exists()
    assert not lock.exists()


def test_a_command_that_is_no_text_is_told_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/x/__main__.py", "train", "--out", "\udcff"])
    with writing(tmp_path):
        assert (tmp_path / LOCK).read_text().endswith(r"UTC (nar-hw train --out '\udcff')")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_kept_when_the_work_fails(tmp_path: Path) -> None:
    @one_writer()
    def work(out: Path | None) -> None:
        if out is not None:
            write_text(out / "a", "a")
        raise KeyboardInterrupt

    for out in (None, tmp_path / "x"):
        with pytest.raises(KeyboardInterrupt):
            work(out)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a"]
    with pytest.raises(RunError, match="must be a folder, but it or one that it is in is a file"):
        work(tmp_path / "x" / "a")


def test_only_the_first_process_of_torchrun_has_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with writing(tmp_path):
        monkeypatch.setenv("RANK", "1")
        pid = os.fork()
        if pid == 0:
            with writing(tmp_path):
                os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "x"
    for unfinished in (lambda: atomic_path(out), lambda: atomic_folder(out), lambda: atomic_path(tmp_path / "y")):
        Other(unfinished).kill()
    living = Other(lambda: atomic_path(out))
    for name in (".x.json", ".x.bak", "x.nar_hw-1"):  # a user's
        (tmp_path / name).write_text("mine")
    before = {path.name for path in tmp_path.iterdir()}
    assert sum(MARK in name and name.startswith(".") for name in before) == 4
    with writing(out, whole=True):
        left = {path.name for path in tmp_path.iterdir()} - {".x.lock"}
    assert len(before - left) == 2
    living.leave()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".x.json", ".x.bak", "x.nar_hw-1", "x"}


def test_a_folder_whose_place_was_made_free_is_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two renames: the old folder is out of the way, the new one, which is whole, not in its place."""
    out = tmp_path / "x"
    with atomic_folder(out) as new:
        write_text(new / "a", "old")

    def replace() -> None:
        rename = Path.rename

        def killed(self: Path, target: Path) -> Path:
            if target == out:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, target)

        Path.rename = killed  # type: ignore[assignment, method-assign]
        with atomic_folder(out) as new:
            write_text(new / "a", "new")

    process = FORK.Process(target=replace)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists()
    with writing(out, whole=True):
        assert (out / "a").read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


def test_scratch_folders_of_dead_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def scratch() -> set[Path]:
        """What others keep there is not looked at."""
        return set(tmp_path.glob(f"{SCRATCH}*"))

    _remove_dead_scratch.cache_clear()  # the others are forked from this process
    Other(Scratch).kill()
    (dead,) = scratch()
    (tmp_path / "nar_hw").mkdir()
    living = Other(Scratch)  # which removes the dead one's
    (one,) = scratch()
    assert one != dead
    _remove_dead_scratch.cache_clear()
    with Scratch() as mine:
        assert scratch() == {one, Path(mine)}
    living.leave()
    assert scratch() == set()
    assert (tmp_path / "nar_hw").is_dir()


def test_two_measurements_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "lease", lambda: tmp_path / "lease")
    other = Other(lambda: measuring(print))
    said: list[str] = []
    threading.Timer(0.2, other.pipe.send, ["leave"]).start()
    start = time.monotonic()
    with measuring(said.append):
        assert time.monotonic() - start > 0.15
        with measuring(said.append):  # nested
            pass
    (text,) = said
    assert text.startswith(f"waiting for the measurement of process {other.process.pid} on ")
    other.process.join()
    assert list(tmp_path.iterdir()) == []
