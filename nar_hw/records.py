"""Records: one frozen type per fact and per file, checked when it is read, printed as the options that make it again.

Types are checked by msgspec as a record is read; what types cannot say stands in the record's ``__post_init__``.
"""

import dataclasses
import difflib
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    """Field -> option of the command line, where it is not the field's name; "" for a field that is given by --set."""
    GROUPS: ClassVar[Mapping[str, str]] = {}
    """Group -> field that holds settings of its own: ``--set group.name=value`` sets one of them."""

    def __post_init__(self) -> None:
        """Raises UserError for values that do not go together."""

    def options(self, *, but: Iterable[str] = ()) -> list[str]:
        """The words of a command line that say what differs from the defaults, without the fields in ``but``.

        A shape has an x between its sizes, operators a comma; numbers are options of their own.
        """
        words = []
        for name, value in changes(self).items():
            option = self.OPTIONS.get(name, name.replace("_", "-"))
            if name in but:
                continue
            if not option:
                words += [word for item in _settings(self, name, value) for word in ("--set", item)]
            elif isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            elif option == "input":
                words += [f"--{option}", "x".join(map(str, value))]
            elif isinstance(value, tuple) and all(isinstance(item, str) for item in value):
                words += [f"--{option}", ",".join(value)]
            else:
                words += [
                    word for item in (value if isinstance(value, tuple) else (value,)) for word in (f"--{option}", str(item))
                ]
        return words


def settings(record: Record, base: Record | None = None, *, but: Iterable[str] = ()) -> list[str]:
    """The --set options that make ``record`` of ``base`` (by default of the defaults), without the fields in ``but``."""
    return [
        word
        for name, value in changes(record, base).items()
        if name not in but
        for item in _settings(record, name, value)
        for word in ("--set", item)
    ]


def changes(record: Record, base: Record | None = None) -> dict[str, Any]:
    """The fields that differ from those of ``base``, by default from the defaults."""

    def before(field: structs.FieldInfo) -> Any:
        if base is not None:
            return getattr(base, field.name)
        return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()

    return {field.name: value for field in structs.fields(record) if (value := getattr(record, field.name)) != before(field)}


def _settings(record: Record, name: str, value: Any) -> Iterator[str]:
    """``name=value``, or one ``group.name=value`` for each setting in a group."""
    group = next((group for group, field in record.GROUPS.items() if field == name), None)
    if group is None or value is None:
        yield _setting(name, value)
        return
    for inner, item in plain(value).items():
        yield _setting(f"{group}.{inner}", item)


def _setting(name: str, value: Any) -> str:
    if isinstance(value, str):
        return f"{name}={value}"
    return f"{name}={','.join(map(str, value))}" if isinstance(value, tuple) else f"{name}={msgspec.json.encode(value).decode()}"


def with_settings(
    record: RecordKind, settings: Iterable[str], *, option: str = "--set", error: type[UserError] = UserError
) -> RecordKind:
    """``record`` with what ``name=value`` and ``group.name=value`` texts of ``option`` say; lists have commas.

    Raises ``error`` and what the record raises.
    """
    types = {field.name: field.type for field in structs.fields(record)}
    names = [name for name in types if name not in record.GROUPS.values()]
    changed: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for item in settings:
        name, equals, text = item.partition("=")
        group, _, inner = name.partition(".")
        if equals and inner and group in record.GROUPS:
            field = record.GROUPS[group]
            groups.setdefault(field, dict(plain(getattr(record, field)) or {}))[inner] = _typed(text)
            continue
        if name not in names or not equals:
            problem = unknown_name("setting", name, [*names, *(f"{group}.NAME" for group in record.GROUPS)])
            raise error(f"{option} takes name=value, but got {item!r}: {problem}")
        value: Any = [part for part in text.split(",") if part] if get_origin(types[name]) is tuple else text
        try:
            changed[name] = msgspec.convert(value, types[name], strict=False)
        except msgspec.DecodeError as problem:
            raise error(f"{option} {name}: {_broken(str(problem), name, text, types[name])}") from None
    for group, field in record.GROUPS.items():
        if field in groups:
            kind = _type_at(type(record), [field])
            changed[field] = as_record(groups[field], kind, where=f"{option} {group}.NAME", error=error, fix="see --help")
    return replace(record, **changed)


def _typed(text: str) -> Any:
    """The number, truth value or list that a text is in JSON, or the text."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        try:
            return float(text)  # .5 is no JSON
        except ValueError:
            return text


def command(*words: str) -> str:
    """A line for the shell that runs ``nar-hw`` with these words."""
    return shlex.join(["nar-hw", *words])


def plain(value: Any) -> Any:
    """A record, or a collection of records, as JSON values; arrays as lists."""
    return msgspec.to_builtins(value, enc_hook=lambda item: str(item) if isinstance(item, str) else item.tolist())


def check_same(
    found: Any,
    asked: Any,
    *,
    where: str,
    fix: str = "use the same settings, or choose another folder",
    error: type[UserError] = RunError,
) -> None:
    """Whether what was begun can go on: ``found`` (on disk) and ``asked``, records or JSON values, must be equal.

    Raises ``error`` naming the first field that differs, with both values.
    """
    there, here = (dict(_leaves(plain(value))) for value in (found, asked))
    for name in [*here, *(name for name in there if name not in here)]:
        before, now = (repr(side[name]) if name in side else "absent" for side in (there, here))
        if before != now:
            raise error(f"{where} can be resumed with the same settings only, but {name} is {before} there and {now} now: {fix}")


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in nested objects that is no object; tuples as lists."""
    if isinstance(value, dict) and (value or not name):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, list(value) if isinstance(value, tuple) else value


def as_record(
    value: Any,
    kind: type[Kind],
    *,
    where: str | Callable[[Sequence[str | int]], str],
    error: type[UserError] = RunError,
    fix: str = "it was cut or edited by hand",
) -> Kind:
    """``value``, JSON values, as a record of ``kind``.

    Raises ``error`` in one line that names the field, the rule and the value; the record's own error where a rule of its own is
    broken. ``where`` begins the line, or what it makes of the keys and indices that lead to the fault; ``fix`` ends it.
    """

    def begin(steps: Sequence[str | int]) -> str:
        return where if isinstance(where, str) else where(steps)

    try:
        return msgspec.convert(value, kind, dec_hook=_array)
    except UnicodeEncodeError as problem:  # half a character, which other readers of JSON let pass
        raise error(f"{begin(())} must hold texts that can be written, but holds {shown(problem.object)}: {fix}") from None
    except msgspec.ValidationError as problem:
        rule, _, path = str(problem).partition(" - at `$")
        steps = _steps(value, kind, path.rstrip("`"), str(problem))
        field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
        if isinstance(problem.__cause__, UserError):
            raise type(problem.__cause__)(f"{begin(steps)}: {field + ': ' if field else ''}{problem.__cause__}") from None
        found = _at(value, steps)
        if rule.startswith("Invalid enum value"):
            known = list(map(str, get_args(_type_at(kind, steps))))
            unknown_error = UnknownNameError if issubclass(UnknownNameError, error) else error
            raise unknown_error(f"{begin(steps)}: {unknown_name(str(steps[-1]), str(found), known)}") from None
        unknown = re.search(r"unknown field `(.*)`", rule)
        begun = begin([*steps, unknown[1]] if unknown else steps)
        raise error(f"{begun}: {_broken(rule, field, found, _type_at(kind, steps))}: {fix}") from None


def _array(kind: Any, value: Any) -> Any:
    """A list of numbers as the NumPy array that a field wants."""
    import numpy as np

    return np.array(msgspec.convert(value, list[float]))


def _broken(rule: str, field: str, found: Any, kind: Any) -> str:
    """What is wrong with a field in words."""
    if name := re.search(r"missing required field `(.*)`", rule):
        return f"{field or 'it'} must have {name[1]!r}"
    if name := re.search(r"unknown field `(.*)`", rule):
        near = difflib.get_close_matches(name[1], [item.name for item in structs.fields(kind)], n=1)
        return f"{field or 'it'} has an unknown field {shown(name[1])}{f' (is {near[0]!r} meant?)' if near else ''}"
    expected = re.search(r"Expected (.*?)(, got .*)?$", rule)
    return (
        f"{field} must be {expected[1].replace('`', '').replace('int | float', 'a number')}, but is {shown(found)}"
        if expected
        else f"{field} is {shown(found)}: {rule}"
    )


def is_whole(text: str) -> bool:
    """Whether ``text`` is a whole number that may be made of it: of a few of the digits 0 to 9, not of other scripts' digits."""
    return re.fullmatch("[0-9]{1,9}", text) is not None


def shown(value: Any) -> str:
    """``value`` for the line of an error, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


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


def _steps(value: Any, kind: Any, path: str, problem: str) -> list[str | int]:
    """The way to the field at fault; where msgspec only says "of some key", the first key that is at fault alone."""
    steps: list[str | int] = []
    for name, index in re.findall(r"\.([^.\[]+)|\[([^\]]+)\]", path):
        if index == "...":
            steps.append(next((key for key in _at(value, steps) if _fails(value, kind, steps, key, problem)), "..."))
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


def _fails(value: Any, kind: Any, steps: list[str | int], key: Any, problem: str) -> bool:
    """Whether ``value`` has the same ``problem`` if the object at ``steps`` has ``key`` alone."""

    def alone(part: Any, left: list[str | int]) -> Any:
        if not left:
            return {key: part[key]}
        copy: Any = dict(part) if isinstance(part, dict) else list(part)
        copy[left[0]] = alone(copy[left[0]], left[1:])
        return copy

    try:
        msgspec.convert(alone(value, steps), kind, dec_hook=_array)
    except msgspec.ValidationError as found:
        return str(found) == problem
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
        raise error(f"{what} {path} must have schema {schema} or less, but has {shown(found)}{made}: {_version_fix(newer, fix)}")
    if upgrade is not None:
        value = upgrade({**value, "schema": found})
    return as_record(value, kind, where=f"{what} {path}", error=error, fix=fix)


def _version_fix(newer: bool, fix: str) -> str:
    return "install the latest nar-hw" if newer else fix


def write_record(path: Path, record: Record, *, schema: int) -> None:
    """Write ``record`` with its schema, atomically."""
    write_json(path, {"schema": schema, **plain(record)})
