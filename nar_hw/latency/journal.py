"""What a profile has measured so far, on disk while it runs, so that one that is stopped can go on.

JSON lines: first the conditions, then one line per batch of children. A line that a crash cut off is left out.
"""

import hashlib
import json
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from nar_hw.errors import RunError
from nar_hw.files import write_text

Floats = npt.NDArray[np.float64]
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class ChildTimes:
    """One child's times, at the speed that the machine had in the median over the whole measurement."""

    whole: Floats
    """(rounds,) ms end to end, the median of each visit."""
    layers: dict[str, Floats]
    """Node -> (runs,) ms of each profiled run; empty unless profiled."""
    producers: dict[str, list[str]]
    """Node -> the nodes that it reads from; empty where the runtime does not tell."""


@dataclass(frozen=True, kw_only=True)
class Batch:
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


class Journal:
    """Batches on disk."""

    def __init__(self, path: Path, conditions: Mapping[str, Any], *, resume: bool) -> None:
        """Open ``path``: anew, or with ``resume`` where it exists after what it holds.

        Raises RunError when it was begun under other ``conditions`` (JSON values), or is no journal.
        """
        self.path = path
        first = json.loads(json.dumps(dict(conditions)))
        self._lines: list[dict[str, Any]] = []
        if resume and path.exists():
            begun, *self._lines = _lines(path)
            if differing := [key for key in first if begun.get(key) != first[key]]:
                names = ", ".join(differing)
                raise RunError(f"{path} was begun under other conditions ({names}): give those, or leave out --resume")
        write_text(path, "".join(json.dumps(line) + "\n" for line in (first, *self._lines)))

    def add(self, stage: str, keys: Sequence[Hashable], members: Sequence[Hashable], batch: Batch) -> None:
        """Keep the batch of ``members``, in their order; ``keys`` are all that the stage measures."""
        children = [
            {
                "whole": child.whole.tolist(),
                "layers": {name: runs.tolist() for name, runs in child.layers.items()},
                "producers": child.producers,
            }
            for child in batch.children
        ]
        line = {
            "stage": stage,
            "design": _design(keys),
            "members": [keys.index(member) for member in members],
            "children": children,
            "reference": batch.reference.tolist(),
            "rounds": batch.rounds,
            "disturbed": batch.disturbed,
            "doubts": list(batch.doubts),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def batches(self, stage: str, keys: Sequence[K]) -> list[tuple[list[K], Batch]]:
        """What was kept of a stage that measures the same ``keys``."""
        return [
            ([keys[position] for position in line["members"]], _batch(line))
            for line in self._lines
            if line["stage"] == stage and line["design"] == _design(keys)
        ]

    def close(self) -> None:
        """Delete it: the profile is complete."""
        self.path.unlink(missing_ok=True)


def _design(keys: Sequence[Hashable]) -> str:
    return hashlib.sha256(repr(keys).encode()).hexdigest()


def _batch(line: Mapping[str, Any]) -> Batch:
    children = tuple(
        ChildTimes(
            whole=np.array(child["whole"]),
            layers={name: np.array(runs) for name, runs in child["layers"].items()},
            producers=child["producers"],
        )
        for child in line["children"]
    )
    return Batch(
        children=children,
        reference=np.array(line["reference"]),
        rounds=line["rounds"],
        disturbed=line["disturbed"],
        doubts=tuple(line["doubts"]),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines(keepends=True):
        try:
            found.append(json.loads(line))
        except ValueError:
            if line.endswith("\n") or not found:
                raise RunError(f"{path} is damaged: delete it and start anew without --resume") from None
    if not found or not all(isinstance(line, dict) for line in found):
        raise RunError(f"{path} is damaged: delete it and start anew without --resume")
    return found
