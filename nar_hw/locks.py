"""One writer at a time: of every folder and file that commands write, and of the machine while it is measured.

A lock is a small file that says who has it since when. The system gives it up when that process ends, however it ends, so that
nothing has to be cleared away by hand. Where the file system knows no locks (some networks' do not), nothing is kept away.
"""

import functools
import inspect
import os
import shlex
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from nar_hw.errors import RunError
from nar_hw.files import lock_now, sweep

P = ParamSpec("P")
T = TypeVar("T")

LOCK = ".nar_hw.lock"
"""In a folder that is being filled."""
_held: dict[tuple[int, Path], int] = {}
"""(process, lock) -> its open file: a process that was forked from the one that has it has it not."""


@contextmanager
def writing(out: Path, *, whole: bool = False, wait: Callable[[str], object] | None = None) -> Iterator[None]:
    """Keep ``out``, a folder that is filled (and made), to this process; ``whole``: a file, or a folder that is replaced at once.

    ``wait`` is told who writes it before that is waited for; by default nothing is waited for.

    What killed processes left unfinished there is deleted first. May be nested. Of several processes of torchrun, the first has
    the lock.

    Raises RunError in one line that says who writes it, or that ``out`` is no folder.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    if whole and not Path(out).name:
        raise RunError(f"what is written must have a name, but got {str(out)!r}: choose another")
    out = Path(out).resolve()
    folder = out.parent if whole else out
    lock = folder / (f".{out.name}.lock" if whole else LOCK)

    def busy(who: str) -> None:
        if wait is None:
            raise RunError(f"{out} is being written by {who}: wait for it, or choose another")
        wait(f"waiting for {who}, which writes {out}")

    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunError(f"{folder} must be a folder, but it or one that it is in is a file: choose another") from None
    try:
        with _locked(lock, busy):
            sweep(folder, out.name if whole else None)
            yield
    finally:
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


def one_writer(*, whole: bool = False) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """For functions that write their argument ``out``: `writing` while they run; nothing where it is None."""

    def decorated(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def kept(*args: P.args, **kwargs: P.kwargs) -> T:
            out: Any = signature.bind(*args, **kwargs).arguments.get("out")
            if out is None:
                return function(*args, **kwargs)
            with writing(Path(out), whole=whole):
                return function(*args, **kwargs)

        return kept

    return decorated


@contextmanager
def measuring(say: Callable[[str], object]) -> Iterator[None]:
    """Keep this machine to this process while it is measured; while another process measures, ``say`` that and wait.

    May be nested. Processes see each other that have the same folder for temporary files.
    """
    with _locked(lease(), lambda who: say(f"waiting for the measurement of {who}, which would disturb this one")):
        yield


def lease() -> Path:
    """The lock of this machine."""
    return Path(tempfile.gettempdir()) / "nar_hw.lock"


def lease_lost() -> str | None:
    """How this process lost the lease that it took, in words; None where it has it still, or took none.

    The system keeps a lock, not its file: where that is deleted, by whoever clears folders for temporary files, or another is put
    in its place, the next process finds nothing that it should wait for.
    """
    lock = lease()
    handle = _held.get((os.getpid(), lock))
    if handle is None or _is_at(lock, handle):
        return None
    try:
        return f"was taken over by {lock.read_text(encoding='utf-8', errors='replace') or 'another process'}"
    except OSError:
        return "was removed"


def _is_at(lock: Path, handle: int) -> bool:
    """Whether the open file is the one at ``lock``."""
    try:
        return os.path.samestat(os.fstat(handle), lock.stat())
    except OSError:
        return False


@contextmanager
def _locked(lock: Path, busy: Callable[[str], object]) -> Iterator[None]:
    """``lock`` locked while the block runs; ``busy`` is told who has it before it is waited for."""
    key = (os.getpid(), lock)
    if key in _held:
        yield
        return
    handle = _open(lock, busy)
    _held[key] = handle
    try:
        yield
    finally:
        del _held[key]
        with suppress(OSError):  # another user's, or in a folder that has been deleted
            if _is_at(lock, handle):  # else it is the lock of who took it over
                lock.unlink()
        os.close(handle)


def _open(lock: Path, busy: Callable[[str], object]) -> int:
    """The lock's file, open and locked, with this process named in it."""
    while True:
        handle = _opened(lock)
        try:
            if lock_now(handle) is False:
                busy(os.read(handle, 1000).decode(errors="replace") or "another process")
                lock_now(handle, wait=True)
            if _is_at(lock, handle):  # else it was given up and deleted meanwhile
                os.ftruncate(handle, 0)
                with suppress(OSError):  # a full disk, which what is to be written will tell
                    os.pwrite(handle, _me().encode(errors="backslashreplace"), 0)
                kept, handle = handle, -1
                return kept
        finally:
            if handle >= 0:
                os.close(handle)


def _opened(lock: Path) -> int:
    """Whoever made it: the folder of temporary files is all users', who may not make what is there, nor follow links."""
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(lock, flags)
    except FileNotFoundError:
        handle = os.open(lock, flags | os.O_CREAT, 0o666)
        if lock == lease():
            os.fchmod(handle, 0o666)
        return handle


def _me() -> str:
    """This process in words."""
    words = [Path(sys.argv[0]).name.replace("__main__.py", "nar-hw"), *sys.argv[1:]]
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"process {os.getpid()} on {socket.gethostname()} since {since} ({shlex.join(words)[:300]})"
