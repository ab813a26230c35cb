"""Files that are either complete or absent: everything nar_hw writes goes through here."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from nar_hw.errors import RunError, UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block succeeds and vanishes when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` atomically; NaN and infinity are refused."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """``value`` as indented JSON. Raises ValueError for NaN and infinity."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def read_json(path: Path, *, what: str = "JSON file", error: type[UserError] = RunError) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises ``error`` in one line when the file is absent, unreadable, not JSON or not an object.
    """
    try:
        value = msgspec.json.decode(Path(path).read_bytes())
    except FileNotFoundError:
        raise error(f"{what} {path} does not exist") from None
    except OSError as problem:
        raise error(f"{what} {path} cannot be read: {problem}") from None
    except (ValueError, RecursionError) as problem:
        raise error(f"{what} {path} is not valid JSON ({problem}): it is truncated or was edited by hand") from None
    if not isinstance(value, dict):
        raise error(f"{what} {path} must hold a JSON object, but holds a {type(value).__name__}")
    return value


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expanded(text: str | Path) -> Path:
    """The path with its ``~`` or ``~user`` replaced. Raises UserError when there is no such home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"a path may begin with ~ or the ~ of a user who exists, but got {str(text)!r}: write it out") from None
