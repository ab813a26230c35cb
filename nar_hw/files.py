"""Files that are either complete or absent: everything nar_hw writes goes through here."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

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
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, *, what: str = "JSON file", error: type[UserError] = RunError) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises ``error`` in one line when the file is absent, unreadable, not JSON or not an object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise error(f"{what} {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{what} {path} cannot be read: {problem}") from None
    except (ValueError, RecursionError) as problem:
        raise error(f"{what} {path} is not valid JSON ({problem}): it is truncated or was edited by hand") from None
    if not isinstance(value, dict):
        raise error(f"{what} {path} must hold a JSON object, but holds a {type(value).__name__}")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def misfits(kind: Any, values: Mapping[str, Any]) -> list[str]:
    """The names in a JSON object that a dataclass lacks or gives another type, and its names without default that are absent."""
    known = {item.name: item for item in fields(kind)}
    absent = [
        name for name, item in known.items() if name not in values and item.default is MISSING and item.default_factory is MISSING
    ]
    return absent + [name for name, value in values.items() if name not in known or not _fits(value, known[name].type)]


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is one of a type. A Literal takes any text: who knows its names tells the near ones."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_fits(value, arg) for arg in args)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(_fits(item, args[1]) for item in value.values())
    if origin in (list, Sequence) or (origin is tuple and args[-1] is ...):
        return isinstance(value, list) and all(_fits(item, args[0]) for item in value)
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(args) and all(map(_fits, value, args))
    if kind is float:
        return type(value) in (int, float) and abs(value) < 1e300
    return kind is Any or type(value) is (str if origin is Literal else kind)


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
