import json
from pathlib import Path

import pytest

from nar_hw.errors import RunError, TableError
from nar_hw.files import atomic_path, read_json, sha256, write_bytes, write_json, write_text


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


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("x")
    write_text(tmp_path / "x", json.dumps({}))
    assert (tmp_path / "x").stat().st_mode == plain.stat().st_mode
