"""What a profile has measured so far, on disk while it runs, so that one that is stopped can go on.

JSON lines: first the conditions, then one line per batch of children. A line that a crash cut off is left out.
"""

import hashlib
import json
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from msgspec import structs

from nar_hw.errors import RunError
from nar_hw.files import write_text
from nar_hw.latency.contention import Contention
from nar_hw.records import Record, as_record, check_same, plain

Floats = npt.NDArray[np.float64]
K = TypeVar("K", bound=Hashable)

_AGAIN = "delete it and start anew without --resume"


class ChildTimes(Record, frozen=True, kw_only=True):
    """One child's times, at the speed that the machine had in the median over the whole measurement."""

    whole: Floats
    """(rounds,) ms end to end, the median of each visit."""
    layers: dict[str, Floats]
    """Node -> (runs,) ms of each profiled run; empty unless profiled."""
    producers: dict[str, list[str]]
    """Node -> the nodes that it reads from; empty where the runtime does not say."""
    p90: float | None = None
    """90th percentile of single runs over their median: what a user meets now and then."""
    mib: float | None = None
    """By how much the memory in use rose while it was loaded and run; None where that cannot be read."""


class Batch(Record, frozen=True, kw_only=True):
    """Children that were measured in the same rounds; `ChildTimes` at the speed of these rounds."""

    children: tuple[ChildTimes, ...]
    reference: Floats
    """(visits,) ms of the network itself, at the speed of the children."""
    rounds: int
    """Visits of each child that were kept."""
    disturbed: float
    """Share of runs in which something else had the core."""
    doubts: tuple[str, ...]
    """What is wrong with the times although they can be used."""
    contention: Contention | None = None
    """What else the machine did."""


class _Line(Batch, frozen=True, kw_only=True):
    """A batch in the file."""

    stage: str
    design: str
    """Hash of all that the stage measures."""
    members: tuple[int, ...]
    """Which of these the children are."""


class Journal:
    """Batches on disk."""

    def __init__(self, path: Path, conditions: Mapping[str, Any], *, resume: bool) -> None:
        """Open ``path``: anew, or with ``resume`` where it exists after what it holds.

        Raises RunError when it was begun under other ``conditions`` (JSON values), or is no journal.
        """
        self.path = path
        self._lines: list[_Line] = []
        first = dict(conditions)
        if resume and path.exists():
            begun, *lines = _read(path)
            check_same(begun, first, where=str(path), fix="use the same settings, or leave out --resume")
            self._lines = [as_record(line, _Line, where=str(path), fix=_AGAIN) for line in lines]
        write_text(path, "".join(json.dumps(line) + "\n" for line in (first, *map(plain, self._lines))))

    def add(self, stage: str, keys: Sequence[Hashable], members: Sequence[Hashable], batch: Batch) -> None:
        """Keep the batch of ``members``, in their order; ``keys`` are all that the stage measures."""
        places = tuple(keys.index(member) for member in members)
        line = _Line(stage=stage, design=_design(keys), members=places, **structs.asdict(batch))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(line)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def batches(self, stage: str, keys: Sequence[K]) -> list[tuple[list[K], Batch]]:
        """What was kept of a stage that measures the same ``keys``."""
        return [
            ([keys[position] for position in line.members], line)
            for line in self._lines
            if line.stage == stage and line.design == _design(keys)
        ]

    def close(self) -> None:
        """Delete it: the profile is complete."""
        self.path.unlink(missing_ok=True)


def _design(keys: Sequence[Hashable]) -> str:
    return hashlib.sha256(repr(keys).encode()).hexdigest()


def _read(path: Path) -> list[dict[str, Any]]:
    found = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines(keepends=True):
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            if line.endswith("\n") or not found:
                raise RunError(f"{path} is damaged: {_AGAIN}") from None
    if not found or not all(isinstance(line, dict) for line in found):
        raise RunError(f"{path} is damaged: {_AGAIN}")
    return found
