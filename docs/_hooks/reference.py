"""Reference pages that are made from the program itself: commands, files, errors, findings."""

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import typer.main

ROOT = Path(__file__).parents[2]


def commands() -> Iterator[tuple[str, Any, Any]]:
    """(words, command, context) of every command, in the order of the help."""
    from nar_hw.cli.app import app

    top = typer.main.get_command(app)
    context = top.context_class(top, info_name="nar-hw")
    yield from _commands(top, context, ())


def _commands(group: Any, context: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any, Any]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        own = type(context)(command, info_name=name, parent=context)
        if hasattr(command, "list_commands"):
            yield from _commands(command, own, (*words, name))
        else:
            yield " ".join((*words, name)), command, own


def cli_page() -> str:
    """Every command with its options, in the groups of --help."""
    parts = [
        "# Commands\n",
        "Made from the program: `nar-hw COMMAND --help` says the same. Every command takes `--json`, which prints one JSON "
        "object on stdout, and `-h`. Errors are one line on stderr with exit code 2; `--debug` anywhere shows the traceback. "
        "Ctrl-C keeps what is finished. `nar-hw --install-completion` makes the shell complete commands and options.\n",
    ]
    for words, command, context in commands():
        help, _, example = inspect.cleandoc(command.help or "").partition("Example:")
        parts += [f"## nar-hw {words}\n", f"{' '.join(help.split())}\n"]
        if example:
            parts.append(f"```sh\n{example.strip()}\n```\n")
        panels: dict[str, list[str]] = {}
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if record is None or parameter.name == "help":
                continue
            title = getattr(parameter, "rich_help_panel", None) or (
                "Arguments" if parameter.param_type_name == "argument" else "Options"
            )
            panels.setdefault(title, []).append(f"| `{record[0]}` | {_cell(record[1])} |")
        for title, rows in panels.items():
            parts.append(f"| {title} | |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return re.sub(r"(?<!`)(<[^>]*>)(?!`)", r"`\1`", " ".join(text.split())).replace("|", "\\|")


def errors_page() -> str:
    """The tree of errors, from its module."""
    import nar_hw.errors

    return (
        "# Errors\n\nMade from `nar_hw.errors`. Every error that nar_hw raises on purpose is one line: rule, value and "
        "what to do. On the command line it stands on stderr, and the exit code is 2; in Python all are `NarError`.\n\n"
        f"```text\n{inspect.cleandoc(nar_hw.errors.__doc__ or '')}\n```\n"
    )


def files() -> dict[str, tuple[type, str]]:
    """File -> its record, and what it is."""
    from nar_hw.bench.rows import BenchFile
    from nar_hw.bundles.manifest import Manifest
    from nar_hw.latency.table import LatencyTable
    from nar_hw.search.config import SearchConfig
    from nar_hw.search.record import RunFile
    from nar_hw.training.child import Child
    from nar_hw.training.recipes import Recipe
    from nar_hw.training.result import History

    return {
        "table.json": (LatencyTable, "A latency table, made by `nar-hw profile`."),
        "run.json": (RunFile, "What a search found, made by `nar-hw search` and `refine`."),
        "child.json": (Child, "A trained network, made by `nar-hw train`, `eval --out` and `refine`."),
        "history.json": (History, "The epochs of a training, beside child.json."),
        "manifest.json": (Manifest, "What a bundle holds, made by `nar-hw export`."),
        "bench.json": (BenchFile, "Times of bundles, made by `nar-hw bench --output` and `refine`."),
        "recipe": (Recipe, "A file for `--recipe`: any of these fields; the others are the defaults."),
        "search settings": (SearchConfig, "What `nar-hw search --set name=value` sets, kept in run.json."),
    }


def files_page() -> str:
    """The fields of every file, from the records that check it."""
    parts = [
        "# File formats\n",
        "Made from the records that check these files as they are read. All are JSON; an unknown or missing field, a wrong type "
        "or a number that is not finite is refused with its name. `schema` is the version: older ones are read, newer refused.\n",
    ]
    seen: set[type] = set()
    for name, (record, what) in files().items():
        parts += [f"## {name}\n", f"{what}\n", *_records(record, seen)]
    return "\n".join(parts)


def _records(record: type, seen: set[type]) -> Iterator[str]:
    """The table of a record, then those of the records in its fields."""
    waiting = [record]
    while waiting:
        kind = waiting.pop(0)
        if kind in seen:
            continue
        seen.add(kind)
        if kind is not record:
            yield f"### {kind.__name__}\n"
        texts = _docstrings(kind)
        rows = []
        for field in msgspec.structs.fields(kind):
            inner = _inner(field.type)
            waiting += [item for item in inner if item not in seen]
            default = "" if field.required else f"`{_default(field)}`"
            rows.append(f"| `{field.encode_name}` | {_type(field.type)} | {default} | {_cell(texts.get(field.name, ''))} |")
        if doc := inspect.getdoc(kind):
            yield f"{doc.splitlines()[0]}\n"
        yield "| field | type | default | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _default(field: Any) -> str:
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return str(msgspec.json.encode(value, enc_hook=str), "utf-8") if not isinstance(value, msgspec.Struct) else "..."


def _inner(kind: Any) -> list[type]:
    """The records in a type."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [record for part in getattr(kind, "__args__", ()) for record in _inner(part)]


def _type(kind: Any) -> str:
    """A type as people who read JSON call it."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return (
            f"[{kind.__name__}](#{kind.__name__.lower()})"
            if kind.__name__ not in {record.__name__ for record, _ in files().values()}
            else f"`{kind.__name__}`"
        )
    names = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        type(None): "null",
        dict: "object",
        list: "list",
    }
    if kind in names:
        return names[kind]
    origin, args = getattr(kind, "__origin__", None), getattr(kind, "__args__", ())
    if str(origin) == "typing.Literal":
        return ", ".join(f"`{item}`" for item in args)
    if origin is not None and "Annotated" in str(type(kind)):
        return _type(origin)
    if type(kind).__name__ in ("UnionType", "Union", "_UnionGenericAlias"):
        return " or ".join(map(_type, args))
    if origin in (tuple, list, set, frozenset) or getattr(origin, "__name__", "") in ("Sequence", "Collection"):
        parts = [part for part in args if part is not Ellipsis]
        return "list of " + ", ".join(dict.fromkeys(map(_type, parts)))
    if getattr(origin, "__name__", "") in ("dict", "Mapping"):
        return f"object of {_type(args[1])}"
    return "list of number" if "ndarray" in str(kind) else "any"


def _docstrings(kind: type) -> dict[str, str]:
    """Field -> the text below it in the source."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not issubclass(base, msgspec.Struct) or base.__module__.startswith("msgspec"):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = str(text.value.value)
    return found


def findings_page() -> str:
    """What each of findings/*.sh found, from the comment at its top."""
    parts = [
        "# Findings\n",
        "What runtimes and libraries did that we would not have guessed. Each is a script in the folder `findings` that "
        "installs the public packages, shows the behaviour without nar_hw, and fails once it has changed.\n",
    ]
    scripts = sorted((ROOT / "findings").glob("*.sh"))
    for path in scripts:
        lines = _comment(path.read_text().splitlines()[1:])
        parts += [
            f"## {path.stem.replace('_', ' ').replace('-', ' ').capitalize()}\n",
            f"{' '.join(lines)}\n",
            f"`findings/{path.name}`\n",
        ]
    return "\n".join(parts) if scripts else "\n".join([*parts, "None so far.\n"])


def _comment(lines: list[str]) -> list[str]:
    """The comment that begins a script."""
    return [line.lstrip("# ").rstrip() for line in itertools.takewhile(lambda line: line.startswith("#") or not line, lines)]


PAGES = {
    "reference/cli.md": cli_page,
    "reference/files.md": files_page,
    "reference/errors.md": errors_page,
    "concepts/findings.md": findings_page,
}
"""Page -> what makes it."""
