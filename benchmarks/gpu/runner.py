"""A stage as pieces: a finished one is kept at once, none begins after the stage's time is up, and the next call goes on."""

import gc
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from nar_hw.errors import RunError
from nar_hw.files import read_json, write_json

AGAIN_S = 20.0
"""After which a piece that did not stop is told again."""
BEGUN, NOT_BEGUN, STOPPED = "was begun, and the program ended in it", "not begun", "stopped in it: its time was up"
FAILED, WAITS = "failed: ", "waits for "


class OutOfTime(BaseException):
    """Like KeyboardInterrupt, so that nothing takes it for an error of its own."""


class NotReadyError(Exception):
    """Another piece must be finished first; the text names it."""


@dataclass(frozen=True)
class Piece:
    key: str
    run: Callable[[], dict[str, Any]]
    """Its result as JSON values. May be interrupted anywhere and run again."""


class Record:
    """The JSON file of a stage: what is measured, and why the rest is not."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Raises RunError when the file was begun with other versions."""
        known = read_json(path) if path.exists() else {}
        if known and (theirs := known.get("versions")) != (ours := about.get("versions")):
            raise RunError(
                f"all of {path} must be measured with the same versions, but it has {theirs} and here are {ours}: move it"
            )
        self.path, self.about = path, dict(about)
        self.pieces: dict[str, dict[str, Any]] = known.get("pieces", {})
        self.missing: dict[str, str] = known.get("missing", {})

    def keep(self, key: str, result: Mapping[str, Any], seconds: float) -> None:
        """Write the result of a piece."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.pieces[key] = {"date": now, "seconds": round(seconds, 1), **result}
        self.missing.pop(key, None)
        self._save()

    def lack(self, reasons: Mapping[str, str]) -> None:
        """Write why pieces are missing."""
        self.missing.update(reasons)
        self._save()

    def _save(self) -> None:
        write_json(self.path, {**self.about, "pieces": self.pieces, "missing": self.missing})

    def left(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces that are not finished; those that failed or ended the program last, since they may do so again."""
        unfinished = [piece for piece in pieces if piece.key not in self.pieces]
        return sorted(unfinished, key=lambda piece: self.missing.get(piece.key, "").startswith((FAILED, BEGUN)))


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block when its time is up. A timer that was set before runs on."""

    def stop(*_: object) -> None:
        raise OutOfTime

    start, handler = time.monotonic(), signal.signal(signal.SIGALRM, stop)
    left, interval = signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 1e-3), interval)


def run_stage(record: Record, pieces: Sequence[Piece], *, seconds: float, say: Callable[[str], object]) -> bool:
    """Run what is not finished, for so many seconds; returns whether the device still works."""
    deadline, todo = time.monotonic() + seconds, record.left(pieces)
    record.lack({piece.key: record.missing.get(piece.key, NOT_BEGUN) for piece in todo})
    while todo:
        finished = False
        for piece in todo:
            if time.monotonic() >= deadline:
                return True
            start = time.monotonic()
            reason = _run(record, piece, deadline - start)
            finished |= reason is None
            say(f"{piece.key}: {reason or f'{time.monotonic() - start:.1f} s'}")
            if not works():
                say("the CUDA device no longer answers this process: call again")
                return False
        waiting = [piece for piece in record.left(todo) if record.missing[piece.key].startswith(WAITS)]
        todo = waiting if finished else []
    return True


def _run(record: Record, piece: Piece, seconds: float) -> str | None:
    """Why the piece is missing; None when it is finished, and kept."""
    start, before = time.monotonic(), record.missing[piece.key]
    record.lack({piece.key: BEGUN})
    try:
        with alarm(seconds):
            result = piece.run()
        record.keep(piece.key, result, time.monotonic() - start)
        return None
    except OutOfTime:
        reason = STOPPED
    except NotReadyError as problem:
        reason = f"{WAITS}{problem}"
    except Exception as problem:  # whatever it is, the other pieces are still worth their time
        reason = FAILED + " ".join(f"{type(problem).__name__}: {problem}".split())[:500]
    except BaseException:
        record.lack({piece.key: before})
        raise
    record.lack({piece.key: reason})
    return reason


def works() -> bool:
    """Frees what a piece has left on the device; an illegal access leaves a process without it."""
    gc.collect()
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True
