"""Names and paths with markup, line ends and terminal commands appear as text, wherever they are shown."""

import io
import json
from pathlib import Path

import pytest
from jinja2 import Environment

from nar_hw.bundles.readme import _plain
from nar_hw.cli.app import Plain
from nar_hw.errors import NarError, printable
from nar_hw.report.page import _printable
from tests.test_cli import Run, ok, refused, run

__all__ = ["run"]  # a fixture

EVIL = "a[bold]b[/bold] :smile: \x1b[31mred\x1b]0;title\x07 <script>"


def test_what_cannot_be_printed_is_written_out() -> None:
    assert printable("a\tb\nc\x1b[31m\x9b\u202e") == "a\\tb\\nc\\x1b[31m\\x9b\\u202e"
    assert printable("1\u00a0234 naïve 中") == "1\u00a0234 naïve 中"
    assert str(NarError("x\n\x1b[2J")) == "x\\n\\x1b[2J"


def test_terminals_are_told_text_only() -> None:
    console = Plain()
    console.file = io.StringIO()
    from rich.table import Table

    table = Table(EVIL)
    table.add_row(EVIL)
    console.print(EVIL, soft_wrap=True)
    console.print(table, width=200)
    text = console.file.getvalue()
    assert text.count("a[bold]b[/bold] :smile: \\x1b[31mred\\x1b]0;title\\x07 <script>") == 3
    assert "\x1b" not in text
    assert "\x07" not in text


def test_pages_are_told_text_only() -> None:
    template = Environment(autoescape=True, finalize=_printable).from_string("<p>{{ name }}</p>\n")
    assert template.render(name=EVIL) == ("<p>a[bold]b[/bold] :smile: \\x1b[31mred\\x1b]0;title\\x07 &lt;script&gt;</p>")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resnet_digits", "resnet_digits"),
        ("_a_ *b* `c`", r"\_a\_ \*b\* \`c\`"),
        ("a|b\n# c", r"a\|b\\n\# c"),
        ("[x](http://y) <b>&", r"\[x\](http://y) \<b\>\&"),
    ],
)
def test_markdown_is_told_text_only(name: str, text: str) -> None:
    assert _plain(name) == text


def test_a_file_with_such_a_name_goes_through_commands(run: Run, tmp_path: Path) -> None:
    name = "we[red]ird\x1b[31m.py"
    lines = "from torch import nn", "def net(num_classes=4):"
    body = (
        "    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.LazyLinear(4))"
    )
    (tmp_path / name).write_text("\n".join((*lines, body)))
    model = f"--model '{name}:net' --input 3x8x8"
    ok(run(f"profile {model} --runtime fake --rounds 2 --validate 0 -o table.json --json"))
    code, out, err = run(f"table list {tmp_path}")
    assert code == 0, err
    assert "we[red]ird\\x1b[31m.py:net 3x8x8" in out
    for line in (f"profile {model} --runtime fake --rounds 2 --validate 0 -o t.json", f"space {model}"):
        code, out, err = run(line)
        assert code == 0, err
        assert "\x1b[31m" not in out + err
    assert json.loads(run(f"count {model} --json")[1])["model"] == f"{name}:net"
    (tmp_path / name).write_text("1 / 0")
    assert "we[red]ird\\x1b[31m.py raised ZeroDivisionError" in refused(run(f"count {model}"))
