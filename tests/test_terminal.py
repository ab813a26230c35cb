"""What the terminal shows: tables that cut nothing at any width, help that fits, choices that are completed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from rich.console import Console

from nar_hw.cli.app import Plain
from nar_hw.cli.grid import Grid
from nar_hw.latency.profiler import METHODS
from tests.test_cli import Run, refused, run

__all__ = ["run"]  # a fixture

words = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=24)
cells = st.lists(words, max_size=4).map(" ".join)


def printed(grid: Grid, width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(grid)
    return captured.get()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(24, 120),
    st.integers(1, 8).flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1, max_size=4)),
)
def test_every_word_of_a_table_is_whole_at_any_width(width: int, rows: list[list[str]]) -> None:
    titles = [f"t{index}" for index in range(len(rows[0]))]
    text = printed(Grid(titles, rows), width)
    shown = text.split()
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert all(len(line) <= max(width, 30) for line in text.splitlines())
    for row in rows:
        for word in " ".join(row).split():
            assert word in shown or word in re.sub(r"\s", "", text)


def test_a_table_uses_the_room_there_is() -> None:
    row = ["layer1.0.conv1", "0.0123 ms", "one two three four five six seven"]
    grid = Grid(["slot", "time", "what"], [row])
    assert grid.widths(80) == [14, 9, 33]  # all of it
    assert grid.widths(50) == [14, 9, 50 - 6 - 14 - 9]  # a number stays with its unit, words are wrapped
    assert grid.widths(20) is None
    assert "slot: layer1.0.conv1" in printed(grid, 20)


def test_numbers_are_right_and_names_are_left() -> None:
    lines = printed(Grid(["name", "ms"], [["a", "1.5"], ["long", "12.25"]]), 80).splitlines()
    assert [line.rstrip() for line in lines[-2:]] == ["a       1.5", "long  12.25"]


def test_without_a_terminal_lines_are_as_long_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert Plain().width > 1000
    monkeypatch.setenv("COLUMNS", "70")
    assert Plain().width == 70


@pytest.mark.parametrize(
    "command", ["", "refine", "demo", "profile", "search", "train", "export", "bench", "table list", "proxy study"]
)
def test_help_fits_into_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    code, out, _ = run(f"{command} -h")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "..." not in re.sub(r"nar_hw (train|search)\s+\.\.\.|\[ARGS\]\.\.\.|,\.\.\.", "", out)
    assert out == run(f"{command} --help")[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --modle x", r"No such option: --modle .*--model.*: see nar-hw train --help"),
        ("space --model x", r"Missing option '--input'?.*: see nar-hw space --help"),
        ("profile --model x", r"a profile needs a network: add --model and --input"),
        ("report", r"(?i)missing argument 'folder.*': see nar-hw report --help"),
        ("serch", r"No such command 'serch'.*search.*: see nar-hw --help"),
        ("table shwo x", r"No such command 'shwo'.*show.*: see nar-hw table --help"),
        ("space --model x --input 1x8x8 --manner slot", r"--manner.*: see nar-hw space --help"),
        ("profile --model x --input 1x8x8 -o t --runtime ort", r"unknown runtime 'ort': use one of onnxruntime"),
        ("profile --model x --input 1x8x8 -o t --method guess", r"unknown profiling method 'guess': use one of "),
        ("search --target-ms 1 --out x --reward abs", r"unknown reward 'abs': use one of absolute"),
    ],
)
def test_a_line_that_is_no_command_is_one_line(run: Run, line: str, message: str) -> None:
    assert re.search(message, refused(run(line)))


def test_choices_are_those_of_the_library() -> None:
    from nar_hw.bundles.triton import backends
    from nar_hw.cli import bundles, profile, proxy
    from nar_hw.proxy import METHODS as WAYS, METRICS
    from nar_hw.search.config import PATHS

    assert set(profile.METHODS) == set(METHODS)
    assert set(proxy.METRICS) == set(METRICS)
    assert set(proxy.SELECTIONS) == set(WAYS)
    assert set(bundles.TRITON) == set(backends())
    assert set(PATHS) == {"strategy", "fair", "uniform"}


def test_the_shell_completes_commands_options_and_choices() -> None:
    def completed(line: str) -> str:
        program = "import sys; from nar_hw.cli import main; sys.argv = ['nar-hw']; main()"
        environment = {
            **os.environ,
            "_NAR_HW_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        }
        return subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, cwd=Path.cwd()
        ).stdout

    assert completed("nar-hw pro").split() == ["profile", "proxy"]
    assert completed("nar-hw profile --runtime open").split() == ["openvino"]
