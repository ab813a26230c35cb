"""Files that are either complete or absent: everything nar_hw writes goes through here."""

import functools
import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from nar_hw.errors import RunError, UserError

if sys.platform != "win32":
    import fcntl

MARK = ".nar_hw-"
"""In the name of what is not finished yet: behind the name that it shall have, before random letters."""
SCRATCH = "nar_hw-"
"""How names of folders for files that nobody keeps begin."""


def lock_now(handle: int, *, wait: bool = False) -> bool | None:
    """Lock an open file or folder until it is closed; False where it is locked, None where the system knows no locks.

    The system ends the lock of a process that dies, however it dies.
    """
    if sys.platform == "win32":  # nothing is locked there
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return None
    return True


def _made(make: Callable[[], str]) -> tuple[Path, Callable[[], object]]:
    """What ``make`` makes, locked so that others see that it is being written; and what unlocks it."""
    while True:
        path = Path(make())
        if sys.platform == "win32":  # nothing is locked there
            return path, lambda: None
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # removed already, by a process that found it without a lock
            continue
        lock_now(handle, wait=True)
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            return path, functools.partial(os.close, handle)
        os.close(handle)


def sweep(folder: Path, name: str | None = None) -> None:
    """Delete what processes that were killed left unfinished of ``name`` in ``folder``, by default of any name.

    What a living process writes is left alone. A folder that was to replace another, which had made room for it, takes its place.
    """
    for path in folder.glob(f".{'*' if name is None else glob.escape(name)}{MARK}*"):
        target = folder / path.name[1 : path.name.rindex(MARK)]
        if (path / "old").exists() and (path / "new").exists() and not target.exists() and _dead(path):
            (path / "new").rename(target)
        _remove_dead([path])


def _dead(path: Path) -> bool:
    """Whether no living process has ``path`` in work."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # gone, or another user's
        return False
    try:
        return lock_now(handle) is True
    finally:
        os.close(handle)


def _remove_dead(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_symlink() or not _dead(path):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block succeeds and vanishes when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def make() -> str:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}{MARK}", suffix=path.suffix)
        os.close(handle)
        return name

    temporary, unlock = _made(make)
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
        unlock()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``path``, whatever is there, when the block succeeds; else nothing is changed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder, unlock = _made(lambda: tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}{MARK}"))
    try:
        new = folder / "new"
        new.mkdir()
        yield new
        if path.exists():
            path.rename(folder / "old")
        new.rename(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        unlock()


class Scratch(tempfile.TemporaryDirectory[str]):
    """A folder in the system's for temporary files, for files that nobody keeps; those of dead processes are removed."""

    def __init__(self) -> None:
        _remove_dead_scratch()

        def make() -> str:
            tempfile.TemporaryDirectory.__init__(self, prefix=SCRATCH)
            return self.name

        _, unlock = _made(make)
        weakref.finalize(self, unlock)


@functools.cache  # once per process
def _remove_dead_scratch() -> None:
    _remove_dead(Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"))


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


def sha256(path: Path, *, what: str = "file") -> str:
    """The SHA-256 of a file's content, in hex. Raises RunError when it is absent or a folder."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{what} {path} does not exist") from None
    except IsADirectoryError:
        raise RunError(f"{what} {path} must be a file, but is a folder") from None


def expanded(text: str | Path) -> Path:
    """The path with its ``~`` or ``~user`` replaced. Raises UserError when there is no such home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"a path may begin with ~ or the ~ of a user who exists, but got {str(text)!r}: write it out") from None
