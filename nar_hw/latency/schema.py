"""The latency table's file: JSON <-> fields, validated by hand so that every fault is named in one line.

latency_tables/README.md describes the file for its readers.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nar_hw._version import __version__
from nar_hw.errors import TableError
from nar_hw.space.operators import INCUMBENT
from nar_hw.space.spec import Choices, OpSpec

SCHEMA = 2

AGAIN = "measure it again with nar-hw profile"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one operator spec costs inside this network."""

    spec: OpSpec
    ms: float
    """Milliseconds of one call."""
    p10: float
    """Tenth percentile over contexts and rounds, ms."""
    p90: float
    """Ninetieth percentile, ms."""
    n: int
    """How many measurements ``ms`` stands on."""
    rel: float | None
    """Half-width of the 95 % confidence interval of ``ms``, relative to it; None for a single context."""


@dataclass(frozen=True, kw_only=True)
class TableSlot:
    """One slot as the table knows it."""

    name: str
    incumbent: str
    """The operator that leaves the network as it is."""
    candidates: dict[str, tuple[int, ...]]
    """Operator -> index of the entry of each of its calls (of all sites of the slot) in one forward pass."""


FIELDS = (
    "schema",
    "nar_hw",
    "model",
    "input_shape",
    "num_classes",
    "manner",
    "choices",
    "operators",
    "fingerprint",
    "method",
    "fixed_ms",
    "incumbent_ms",
    "slots",
    "entries",
    "validation",
    "notes",
)


def to_text(content: Mapping[str, Any]) -> str:
    """``content`` as JSON with one slot, entry, validation pair or other item a line."""
    lines = [f" {json.dumps(key)}: {_block(value, 1)}" for key, value in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _block(value: Any, depth: int) -> str:
    pad = " " * (depth + 1)
    if isinstance(value, dict) and value and depth < 3 and not _is_row(value):
        items = [f"{pad}{json.dumps(key)}: {_block(item, depth + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + " " * depth + "}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(pad + _line(item) for item in value) + "\n" + " " * depth + "]"
    return _line(value)


def _is_row(value: dict[str, Any]) -> bool:
    return len(_line(value)) < 100


def _line(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def entry_to_json(entry: Entry) -> dict[str, Any]:
    """One line of the file's "entries"."""
    return {
        "spec": entry.spec.to_json(),
        "ms": entry.ms,
        "p10": entry.p10,
        "p90": entry.p90,
        "n": entry.n,
        "rel": entry.rel,
    }


class Reader:
    """Checks a file's content field by field; each fault is a TableError that names the field."""

    def __init__(self, where: str) -> None:
        self.where = where

    def fail(self, field: str, rule: str, value: Any) -> TableError:
        """The error for a field that breaks a rule."""
        return self._error(f"{field} must be {rule}, but got {_shown(value)}: {AGAIN}")

    def _error(self, what: str) -> TableError:
        return TableError(f"latency table {self.where}: {what}")

    def content(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a LatencyTable from the file's JSON object."""
        self._schema(content)
        if content["schema"] == 1:
            content = self._from_schema_1(content)
        self._keys("the table", content, FIELDS)
        operators = self._texts("operators", content["operators"])
        if len(set(operators)) < len(operators) or not operators:
            raise self.fail("operators", "a list of distinct names", list(operators))
        rows = self._list("entries", content["entries"])
        entries = tuple(self._entry(f"entries[{index}]", row) for index, row in enumerate(rows))
        rows = self._list("slots", content["slots"])
        slots = tuple(self._slot(f"slots[{index}]", row, operators, len(entries)) for index, row in enumerate(rows))
        if not slots or len({slot.name for slot in slots}) < len(slots):
            raise self.fail("slots", "a list of slots with distinct names", [slot.name for slot in slots])
        shape = self._list("input_shape", content["input_shape"])
        if len(shape) != 3 or not all(type(size) is int and size > 0 for size in shape):
            raise self.fail("input_shape", "three positive integers (C, H, W)", shape)
        if type(content["num_classes"]) is not int or content["num_classes"] < 1:
            raise self.fail("num_classes", "a positive whole number", content["num_classes"])
        if content["manner"] not in ("conv", "block"):
            raise self.fail("manner", '"conv" or "block"', content["manner"])
        return {
            "nar_hw": self._text("nar_hw", content["nar_hw"]),
            "model": self._text("model", content["model"]),
            "input_shape": tuple(shape),
            "num_classes": content["num_classes"],
            "manner": content["manner"],
            "choices": self._choices(content["choices"]),
            "operators": operators,
            "fingerprint": self._object("fingerprint", content["fingerprint"]),
            "method": self._method(content["method"]),
            "fixed_ms": self._number("fixed_ms", content["fixed_ms"]),
            "incumbent_ms": self._positive("incumbent_ms", content["incumbent_ms"]),
            "slots": slots,
            "entries": entries,
            "validation": None if content["validation"] is None else self._validation(content["validation"]),
            "notes": self._texts("notes", content["notes"]),
        }

    def _schema(self, content: Mapping[str, Any]) -> None:
        schema = content.get("schema")
        if type(schema) is not int or schema < 1:
            raise self.fail("schema", "a positive integer", schema)
        if schema > SCHEMA:
            writer = content.get("nar_hw")
            needed = f"nar-hw>={writer}" if isinstance(writer, str) else "the latest nar-hw"
            raise self._error(f"schema {schema} is newer than {SCHEMA}, the newest nar-hw {__version__} reads: install {needed}")

    def _from_schema_1(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Schema 1 did not say what had been asked: all its candidates were, of all convolutions, under the paper's rule."""
        used = {name for slot in content.get("slots") or [] if isinstance(slot, dict) for name in slot.get("candidates") or ()}
        operators = [name for name in content.get("operators") or [] if name in used and name != INCUMBENT]
        return {**content, "choices": {"operators": operators, "slots": None, "limit_params": True}}

    def _choices(self, value: Any) -> Choices:
        choices = self._object("choices", value)
        self._keys("choices", choices, ("operators", "slots", "limit_params"))
        if type(choices["limit_params"]) is not bool:
            raise self.fail("choices.limit_params", "true or false", choices["limit_params"])
        return Choices(
            operators=None if choices["operators"] is None else self._texts("choices.operators", choices["operators"]),
            slots=None if choices["slots"] is None else self._text("choices.slots", choices["slots"]),
            limit_params=choices["limit_params"],
        )

    def _keys(self, field: str, value: Mapping[str, Any], known: tuple[str, ...]) -> None:
        missing, unknown = [key for key in known if key not in value], [key for key in value if key not in known]
        if missing or unknown:
            what = f"lacks {', '.join(missing)}" if missing else f"has unknown fields {', '.join(unknown)}"
            raise self._error(f"{field} {what}, so it is truncated or was edited by hand: {AGAIN}")

    def _object(self, field: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fail(field, "an object", value)
        return value

    def _list(self, field: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self.fail(field, "a list", value)
        return value

    def _text(self, field: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self.fail(field, "a string", value)
        return value

    def _texts(self, field: str, value: Any) -> tuple[str, ...]:
        return tuple(self._text(f"{field}[{index}]", item) for index, item in enumerate(self._list(field, value)))

    def _number(self, field: str, value: Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.fail(field, "a finite number", value)
        return float(value)

    def _positive(self, field: str, value: Any) -> float:
        if self._number(field, value) <= 0:
            raise self.fail(field, "a positive number of milliseconds", value)
        return float(value)

    def _count(self, field: str, value: Any) -> int:
        if type(value) is not int or value < 0:
            raise self.fail(field, "a whole number, 0 or more", value)
        return value

    def _entry(self, field: str, value: Any) -> Entry:
        row = self._object(field, value)
        self._keys(field, row, ("spec", "ms", "p10", "p90", "n", "rel"))
        spec = self._object(f"{field}.spec", row["spec"])
        try:
            key = OpSpec.from_json(spec)
        except (TypeError, ValueError) as problem:
            raise self.fail(f"{field}.spec", f"an operator spec ({problem})", spec) from None
        rel = None if row["rel"] is None else self._number(f"{field}.rel", row["rel"])
        if rel is not None and rel < 0:
            raise self.fail(f"{field}.rel", "0 or more, or null", rel)
        times = {name: self._positive(f"{field}.{name}", row[name]) for name in ("ms", "p10", "p90")}
        return Entry(spec=key, **times, n=self._count(f"{field}.n", row["n"]), rel=rel)

    def _slot(self, field: str, value: Any, operators: tuple[str, ...], entries: int) -> TableSlot:
        row = self._object(field, value)
        self._keys(field, row, ("name", "incumbent", "candidates"))
        candidates = {}
        for operator, calls in self._object(f"{field}.candidates", row["candidates"]).items():
            if operator not in operators:
                raise self.fail(f"{field}.candidates", f"made of names from operators ({', '.join(operators)})", operator)
            here = f"{field}.candidates.{operator}"
            indices = tuple(self._count(here, index) for index in self._list(here, calls))
            if not indices or max(indices) >= entries:
                raise self.fail(here, f"indices of the {entries} entries", list(indices))
            candidates[operator] = indices
        if self._text(f"{field}.incumbent", row["incumbent"]) not in candidates:
            raise self.fail(f"{field}.incumbent", f"one of its candidates ({', '.join(candidates)})", row["incumbent"])
        return TableSlot(name=self._text(f"{field}.name", row["name"]), incumbent=row["incumbent"], candidates=candidates)

    def _method(self, value: Any) -> dict[str, Any]:
        method = self._object("method", value)
        for key, check in METHOD.items():
            if key not in method:
                raise self._error(f"method lacks {key}, so it is truncated or was edited by hand: {AGAIN}")
            check(self, f"method.{key}", method[key])
        return method

    def _validation(self, value: Any) -> dict[str, Any]:
        validation = self._object("validation", value)
        self._keys("validation", validation, (*VALIDATION, "pairs"))
        for key in VALIDATION:
            self._number(f"validation.{key}", validation[key])
        for index, pair in enumerate(self._list("validation.pairs", validation["pairs"])):
            field = f"validation.pairs[{index}]"
            row = self._object(field, pair)
            self._keys(field, row, ("arch", "predicted_ms", "measured_ms"))
            self._texts(f"{field}.arch", row["arch"])
            self._positive(f"{field}.predicted_ms", row["predicted_ms"])
            self._positive(f"{field}.measured_ms", row["measured_ms"])
        return validation


METHOD: dict[str, Callable[[Reader, str, Any], Any]] = {
    "name": Reader._text,
    "children": Reader._count,
    "rounds": Reader._count,
    "seconds": Reader._number,
    "seed": Reader._number,
}
"""What every profiling method says of itself; each adds what it needs."""

VALIDATION = (
    "children",
    "rounds",
    "seed",
    "seconds",
    "floor_mape",
    "floor_spearman",
    "mape",
    "max_error",
    "within_5",
    "within_10",
    "spearman",
    "kendall",
    "speed",
)
"""The numbers of a validation: errors in percent, shares (within_5, within_10) and correlations between 0 and 1."""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
