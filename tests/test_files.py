import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from nar_hw.errors import RunError, TableError
from nar_hw.files import atomic_folder, atomic_path, read_json, sha256, write_bytes, write_json, write_text
from nar_hw.models.weights import save_weights
from nar_hw.training.checkpoints import save_state


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None], "b": {"ü": "<x>"}}
    write_json(tmp_path / "deep" / "x.json", value)
    assert read_json(tmp_path / "deep" / "x.json") == value


def test_a_failed_write_keeps_the_old_file_and_leaves_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_a_number_is_never_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"ms": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b'{"a": 1', b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b"[1]", b""])
def test_damaged_json_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(TableError) as caught:
        read_json(path, what="latency table", error=TableError)
    assert str(caught.value).startswith(f"latency table {path} ")
    assert "\n" not in str(caught.value)


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        read_json(tmp_path / "none.json")


def test_sha256_of_known_bytes(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def on_a_full_disk(work: Callable[[], object]) -> str:
    """The error of ``work`` in a process that can write no more than 1000 bytes to a file, as if the disk ended there."""
    pipe, theirs = os.pipe()
    if (pid := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        try:
            work()
        except OSError as problem:
            os.write(theirs, f"OSError {problem}".encode())
        finally:
            os._exit(0)
    os.close(theirs)
    os.waitpid(pid, 0)
    with os.fdopen(pipe) as said:
        return said.read()


def whole_folder(path: Path, content: bytes) -> None:
    with atomic_folder(path) as new:
        write_bytes(new / "a", content)


def test_a_full_disk_is_one_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    """An OSError, which the command line tells in one line, of whatever writes: torch and safetensors raise others."""
    network = nn.Conv2d(8, 8, 8)
    writers: dict[str, Callable[[Path], object]] = {
        "bytes": lambda path: write_bytes(path, bytes(2000)),
        "json": lambda path: write_json(path, {"a": "x" * 2000}),
        "weights": lambda path: save_weights(path, network),
        "state": lambda path: save_state(path, {"model": network.state_dict()}),
        "folder": lambda path: whole_folder(path, bytes(2000)),
    }
    for name, write in writers.items():
        path = tmp_path / name
        if name == "folder":
            whole_folder(path, b"old")
        else:
            path.write_text("old")
        assert on_a_full_disk(lambda: write(path)).startswith("OSError [Errno 27] File too large")  # noqa: B023  # runs at once
        assert (path / "a" if name == "folder" else path).read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == set(writers)


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("x")
    write_text(tmp_path / "x", json.dumps({}))
    assert (tmp_path / "x").stat().st_mode == plain.stat().st_mode
