"""Every error nar_hw raises on purpose. Each message is one line: the rule, the value, the fix.

NarError
└── UserError (also a ValueError): the input can be mended by the user; the CLI prints it and exits with 2
    ├── UnknownNameError         a model, data set, operator, runtime, ... that does not exist
    ├── ModelError               a network that cannot be built, loaded or run on the given input shape
    ├── SpaceError               a search space or an arch that is not valid
    ├── TargetError              a latency target outside the reachable range
    ├── TableError               a latency table that cannot be read
    │   ├── TableMismatchError   a table of another device, runtime, precision, batch or model
    │   └── MissingEntryError    a table without an entry that is needed
    ├── DataError                images or labels that cannot be used
    ├── RunError                 a run, child or bundle folder that is incomplete or damaged
    ├── RuntimeUnavailableError  an inference runtime that does not work here
    ├── MeasurementError         timings that cannot be trusted
    ├── ExportError              a file that differs from the network it was made from
    └── TrainingError            a training that diverged
"""

import difflib
import unicodedata
from collections.abc import Iterable


def printable(text: str) -> str:
    """``text`` with what cannot be printed (line ends, terminal commands) written out as escapes."""
    return "".join(char if char.isprintable() or unicodedata.category(char) == "Zs" else repr(char)[1:-1] for char in text)


class NarError(Exception):
    """Base of all errors raised on purpose.

    What cannot be printed is escaped, for a damaged file may hold line ends and terminal commands.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class UserError(NarError, ValueError):
    """The input can be mended by the user."""


class UnknownNameError(UserError):
    """A name that is not in its registry."""


class ModelError(UserError):
    """A network that cannot be built, loaded or run."""


class SpaceError(UserError):
    """A search space or an arch that is not valid."""


class TargetError(UserError):
    """A target outside the reachable range."""


class TableError(UserError):
    """A latency table that cannot be read."""


class TableMismatchError(TableError):
    """A latency table measured under other conditions than the ones asked for."""


class MissingEntryError(TableError):
    """A latency table without an entry that is needed."""


class DataError(UserError):
    """Images or labels that cannot be used."""


class RunError(UserError):
    """A run, child or bundle folder that is incomplete or damaged."""


class RuntimeUnavailableError(UserError):
    """An inference runtime that does not work here."""


class MeasurementError(UserError):
    """Timings that cannot be trusted."""


class ExportError(UserError):
    """An exported file that differs from its network."""


class TrainingError(UserError):
    """A training that diverged."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for ``name`` missing from a registry, naming the nearest valid names (or all of a short list)."""
    names = sorted(known)
    short_for = [item for item in names if len(name) > 1 and _abbreviates(name, item)]
    near = (short_for + [item for item in difflib.get_close_matches(name, names, n=4, cutoff=0.5) if item not in short_for])[:4]
    near = near or names[:12]
    more = "" if len(near) == len(names) else f" ({len(names)} in all)"
    return UnknownNameError(f"unknown {kind} {name!r}: use one of {', '.join(near)}{more}")


def _abbreviates(short: str, name: str) -> bool:
    """Whether ``short`` begins like ``name`` and its letters follow in order, like ort in onnxruntime."""
    letters = iter(name)
    return name[:1] == short[:1] and all(letter in letters for letter in short)
