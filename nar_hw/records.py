"""Records: one frozen type per fact and per file, checked when it is read, printed as the options that make it again.

Types are checked by msgspec as a record is read; what types cannot say stands in the record's ``__post_init__``.
"""

import dataclasses
import difflib
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, cast, get_args, get_origin

import msgspec
from msgspec import structs

from nar_hw.errors import RunError, UnknownNameError, UserError, unknown_name
from nar_hw.files import read_json, write_json

Kind = TypeVar("Kind")
RecordKind = TypeVar("RecordKind", bound="Record")


def replace(item: Kind, /, **changes: Any) -> Kind:
    """A record or dataclass with other values for some fields, its rules checked again: copy.replace of Python 3.13."""
    changed = dataclasses.replace if dataclasses.is_dataclass(item) else structs.replace
    return cast(Kind, cast(Any, changed)(item, **changes))


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all records."""

    OPTIONS: ClassVar[Mapping[str, str]] = {}
    """Field -> option of the command line, where it is not the field's name; "" where a field has none."""

    def __post_init__(self) -> None:
        """Raises UserError for values that do not go together."""

    def options(self, *, but: Iterable[str] = ()) -> list[str]:
        """The words of a command line that say what differs from the defaults, without the fields in ``but``."""
        words = []
        for field in structs.fields(self):
            option = self.OPTIONS.get(field.name, field.name.replace("_", "-"))
            value, default = getattr(self, field.name), _default(field)
            if not option or field.name in but or value is None or value == default:
                continue
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                words += [f"--{option}", _word(value, "x" if option == "input" else ",")]
        return words


def _default(field: structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _word(value: Any, between: str) -> str:
    return between.join(map(str, value)) if isinstance(value, tuple) else str(value)


def command(*words: str) -> str:
    """A line for the shell that runs ``nar-hw`` with these words."""
    return shlex.join(["nar-hw", *words])


def plain(value: Any) -> Any:
    """A record, or a collection of records, as JSON values."""
    return msgspec.to_builtins(value)


def as_record(
    value: Any, kind: type[Kind], *, where: str, error: type[UserError] = RunError, fix: str = "it was cut or edited by hand"
) -> Kind:
    """``value``, JSON values, as a record of ``kind``.

    Raises ``error`` in one line that names the field, the rule and the value; the record's own error where a rule of its own is
    broken. ``where`` begins the line and ``fix`` ends it.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as problem:
        rule, _, path = str(problem).partition(" - at `$")
        steps = _steps(value, kind, path.rstrip("`"))
        field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
        if isinstance(problem.__cause__, UserError):
            raise type(problem.__cause__)(f"{where}: {field + ': ' if field else ''}{problem.__cause__}") from None
        found = _at(value, steps)
        if rule.startswith("Invalid enum value"):
            known = get_args(_type_at(kind, steps))
            raise UnknownNameError(f"{where}: {unknown_name(str(steps[-1]), str(found), known)}") from None
        raise error(f"{where}: {_broken(rule, field, found, _type_at(kind, steps))}: {fix}") from None


def _broken(rule: str, field: str, found: Any, kind: Any) -> str:
    """What is wrong with a field in words."""
    if name := re.search(r"missing required field `(.*)`", rule):
        return f"{field or 'it'} must have {name[1]!r}"
    if name := re.search(r"unknown field `(.*)`", rule):
        near = difflib.get_close_matches(name[1], [item.name for item in structs.fields(kind)], n=1)
        return f"{field or 'it'} has an unknown field {name[1]!r}{f' (is {near[0]!r} meant?)' if near else ''}"
    shown = repr(found)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    expected = re.search(r"Expected (.*?)(, got .*)?$", rule)
    return f"{field} must be {expected[1].replace('`', '')}, but is {shown}" if expected else f"{field} is {shown}: {rule}"


def _type_at(kind: Any, steps: list[str | int]) -> Any:
    """The type of the field at the end of ``steps``, without None."""
    for step in steps:
        if isinstance(kind, type) and issubclass(kind, Record):
            kind = next(item.type for item in structs.fields(kind) if item.name == step)
        else:
            args = [arg for arg in get_args(kind) if arg is not Ellipsis]
            kind = args[step] if isinstance(step, int) and step < len(args) else args[-1]
        while get_origin(kind) in (UnionType, Union, Annotated):
            kind = get_args(kind)[0]
    return kind


def _steps(value: Any, kind: Any, path: str) -> list[str | int]:
    """The way to the field at fault; where msgspec only says "of some key", the first key that is at fault alone."""
    steps: list[str | int] = []
    for name, index in re.findall(r"\.([^.\[]+)|\[([^\]]+)\]", path):
        if index == "...":
            steps.append(next((key for key in _at(value, steps) if _fails(value, kind, steps, key)), "..."))
        else:
            steps.append(name or int(index))
    return steps


def _at(value: Any, steps: list[str | int]) -> Any:
    for step in steps:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _fails(value: Any, kind: Any, steps: list[str | int], key: Any) -> bool:
    """Whether ``value`` is at fault at ``steps`` even if the object there has ``key`` alone."""

    def alone(part: Any, left: list[str | int]) -> Any:
        if not left:
            return {key: part[key]}
        copy: Any = dict(part) if isinstance(part, dict) else list(part)
        copy[left[0]] = alone(copy[left[0]], left[1:])
        return copy

    try:
        msgspec.convert(alone(value, steps), kind)
    except msgspec.ValidationError:
        return True
    return False


def read_record(
    path: Path,
    kind: type[Kind],
    *,
    what: str,
    schema: int,
    error: type[UserError] = RunError,
    fix: str = "it was cut or edited by hand",
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Kind:
    """The record in a file; ``upgrade`` turns the content of older ones, "schema" included, into today's. Raises ``error``."""
    value = read_json(path, what=what, error=error)
    found = value.pop("schema", None)
    if type(found) is not int or not 1 <= found <= schema:
        newer = type(found) is int and found > schema
        made = f", made by nar_hw {value['nar_hw']}" if newer and isinstance(value.get("nar_hw"), str) else ""
        raise error(f"{what} {path} must have schema {schema} or less, but has {found!r}{made}: {_version_fix(newer, fix)}")
    if upgrade is not None:
        value = upgrade({**value, "schema": found})
    return as_record(value, kind, where=f"{what} {path}", error=error, fix=fix)


def _version_fix(newer: bool, fix: str) -> str:
    return "install the latest nar-hw" if newer else fix


def write_record(path: Path, record: Record, *, schema: int) -> None:
    """Write ``record`` with its schema, atomically."""
    write_json(path, {"schema": schema, **plain(record)})
