"""README and docs/: commands parse, Python runs, links lead somewhere, and no figure says what its result file does not."""

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs" / "_hooks"))  # where mkdocs finds them, too
figures = importlib.import_module("figures")
reference = importlib.import_module("reference")

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MADE = {*reference.PAGES, *(f"benchmarks/results/{path.name}" for path in figures.RESULTS.iterdir())}
"""Pages and files that are made when docs/ is built."""


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[str]:
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.search(r"(?:^|\s)(?:nar-hw|-m nar_hw) (.*)", line.partition(" #")[0]):
                yield found[1].replace("$seed", "0").replace("TARGET", "1").strip()


def parse(words: list[str]) -> None:
    """What the command line does with ``words``, short of running the command. Raises SystemExit as it does."""
    import nar_hw.cli  # noqa: F401
    from nar_hw.cli.app import app

    command: Any = get_command(app)
    context = command.context_class(command, info_name="nar-hw")
    while hasattr(command, "resolve_command"):
        _, command, words = command.resolve_command(context, words)
        context = command.context_class(command, parent=context) if hasattr(command, "resolve_command") else context
    command.make_context(command.name, words, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_is_one(page: Path) -> None:
    for line in commands(page):
        parse(shlex.split(line))


def test_what_is_no_command_is_found() -> None:
    for line in ("train --modle x", "space --model resnet18", "search --reward best --target-ms 1 --out x", "sell"):
        with pytest.raises(Exception, match=r"No such|Missing|unknown reward"):
            parse(shlex.split(line))


def test_the_examples_of_the_help_are_commands() -> None:
    found = [re.search(r"Example: nar-hw (.*)", command.help or "") for _, command, _ in reference.commands()]
    assert all(found)
    for example in found:
        assert example is not None
        parse(shlex.split(example[1]))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=named)
def test_python_runs_as_it_stands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "python"):
        exec(compile(block, named(page), "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_figure_is_typed_by_hand(page: Path) -> None:
    text = page.read_text()
    assert figures.unsupported(text) == []
    if page.name != "README.md":
        assert "{{" not in figures.filled(text)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("0.03<!-- strategies.json#/strategies/surrogate/2/regret/mean | .2f -->", []),
        ("99.6 %<!-- strategies.json#/strategies/surrogate/2/share/mean | .1% --> of it", []),
        (
            "0.04<!-- strategies.json#/strategies/surrogate/2/regret/mean | .2f -->",
            ["0.04, but strategies.json#/strategies/surrogate/2/regret/mean | .2f is 0.03"],
        ),
        ("It is 12 % faster.", ["12 names no result file"]),
        ("It takes 0.4 of the time, see `0.4`.", ["0.4 names no result file"]),
        ("a 95 % interval, version `1.2`, [link](x-1.5.md)", []),
    ],
)
def test_a_figure_that_nobody_measured_is_found(text: str, wrong: list[str]) -> None:
    assert figures.unsupported(text) == wrong


@pytest.mark.parametrize("place", ["#/nothing", "absent.json#/x", "#/strategies/*/0/regret/mean", "#/problem"])
def test_a_place_without_a_figure_is_refused(place: str) -> None:
    with pytest.raises(ValueError, match=r"no |values|must be"):
        figures.figure(place.replace("#", "strategies.json#") if place[0] == "#" else place)


def test_figures_are_what_the_files_hold() -> None:
    assert figures.figure("strategies.json#/problem/slots") == "24"
    ratios = [run["ratio"] for run in figures._result("training.json")["speed"]]
    assert figures.figure("training.json#/speed/*/ratio | max .3f") == f"{max(ratios):.3f}"
    assert figures.figure("tensorrt.json#/summary/accepted | .0%") == "100 %"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file = target.partition("#")[0]
        if not file or re.match(r"https?:", file):
            continue
        place = (page.parent / file).resolve()
        made = place.is_relative_to(ROOT / "docs") and place.relative_to(ROOT / "docs").as_posix() in MADE
        assert made or place.exists(), f"{named(page)} links to {target}"


def test_the_navigation_has_every_page() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    there = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES[1:]} | set(reference.PAGES)
    assert listed == there


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_option_is_in_a_group_of_the_help() -> None:
    for words, command, context in reference.commands():
        if words in ("table list", "table show", "table predict", "table validate", "table diff") or len(words.split()) > 1:
            continue
        ungrouped = [
            parameter.name
            for parameter in command.get_params(context)
            if parameter.param_type_name == "option" and parameter.name != "help" and not parameter.rich_help_panel
        ]
        assert ungrouped in ([], ["output"]), words


def test_the_reference_has_every_command_and_record() -> None:
    commands = reference.cli_page()
    for words, _, _ in reference.commands():
        assert f"## nar-hw {words}\n" in commands
    text = reference.files_page()
    for name in ("fixed_ms", "table_hash", "max_abs_error", "p50_ms", "warmup_paths", "label_smoothing"):
        assert f"| `{name}` |" in text
    assert "| `ms` | number |  | Milliseconds of one call. |" in text
    assert "UnknownNameError" in reference.errors_page()
