"""Options that take numbers: each with its limits, which --help shows and which are checked before anything else happens."""

import math
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

import typer

from nar_hw.errors import NarError, unknown_name
from nar_hw.runtimes.config import most_threads

MOST_SEED = 2**32 - 1
MOST_THREADS = most_threads()
MOST_BATCH = 2**20
MOST_CLASSES = 10**7
MOST_EPOCHS = 100_000
MOST_CHILDREN = 10_000
MOST_ROUNDS = 10_000
MOST_IMAGES = 10**9


class OptionError(NarError):
    """A value outside its option's limits. (No ValueError: typer would make usage text of several lines of it.)"""


def whole(option: str, help: str, least: int, most: int, *, panel: str | None = None) -> Any:
    """An option that takes a whole number from ``least`` to ``most``."""
    return typer.Option(option, help=help, metavar=f"{least}..{most}", parser=_parser(option, least, most), rich_help_panel=panel)


def wholes(option: str, help: str, least: int, most: int, *, panel: str | None = None) -> Any:
    """An option that takes whole numbers separated by commas, as a list."""
    one = _parser(option, least, most)
    return typer.Option(
        option,
        help=help,
        metavar=f"{least}..{most},...",
        parser=lambda text: [one(item) for item in str(text).split(",")],
        rich_help_panel=panel,
    )


def span(option: str, help: str, least: int, most: int, *, panel: str | None = None) -> Any:
    """An option that takes one whole number or a range like 1-64, as a pair."""

    def parse(text: object) -> tuple[int, int]:
        first, dash, last = str(text).partition("-")
        try:
            low = _parser(option, least, most)(first)
            return low, _parser(option, low, most)(last) if dash else low
        except OptionError:
            raise OptionError(
                f"{option} must be one number or a range like 1-64, from {least} to {most}, but got {_short(text)}"
            ) from None

    return typer.Option(option, help=help, metavar=f"{least}..{most} or FEWEST-MOST", parser=parse, rich_help_panel=panel)


def number(
    option: str,
    help: str,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float = 1e12,
    panel: str | None = None,
) -> Any:
    """An option that takes a number to ``most``, from ``least`` or greater than ``above``."""
    bottom = f"above {above:g}" if least is None else f"from {least:g}"

    def parse(text: object) -> float:
        try:
            value = float(str(text)) if re.fullmatch(r"[-+.0-9eE]{1,40}", str(text)) else math.nan
        except ValueError:
            value = math.nan
        low_enough = value <= most
        if not low_enough or not (value >= least if least is not None else above is None or value > above):
            raise OptionError(f"{option} must be a number {bottom}, at most {most:g}, but got {_short(text)}")
        return value

    return typer.Option(option, help=help, metavar=f"{bottom.upper()} TO {most:g}", parser=parse, rich_help_panel=panel)


def choice(
    option: str,
    help: str,
    kind: str,
    names: Iterable[str],
    *,
    panel: str | None = None,
    hidden: Collection[str] = (),
) -> Any:
    """An option that takes one of ``names``, which the shell completes; of a wrong one the nearest are named.

    ``hidden`` names are taken and not shown.
    """
    known = tuple(names)
    shown = [name for name in known if name not in hidden]

    def parse(text: object) -> str:
        if str(text) not in known:
            raise OptionError(str(unknown_name(kind, str(text), known)))
        return str(text)

    short = "|".join(shown) if len("|".join(shown)) <= 40 else ""
    return typer.Option(
        option,
        help=help if short else f"{help} One of {', '.join(shown)}.",
        metavar=short or "NAME",
        parser=parse,
        autocompletion=lambda incomplete: [name for name in shown if name.startswith(incomplete)],
        rich_help_panel=panel,
    )


def _parser(option: str, least: int, most: int) -> Callable[[object], int]:
    def parse(text: object) -> int:
        # Not int() alone: that takes digits of all scripts, and refuses thousands of them with an error of its own.
        value = int(str(text)) if re.fullmatch(r"[-+]?[0-9]{1,30}", str(text)) else None
        if value is None or not least <= value <= most:
            raise OptionError(f"{option} must be a whole number from {least} to {most}, but got {_short(text)}")
        return value

    return parse


def _short(value: object) -> str:
    text = str(value)
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}... ({len(text):,} characters)"
