"""Record what a command prints in a terminal of 80 columns as an SVG.

    python docs/_hooks/record.py docs/pictures/demo.svg nar-hw demo

The command runs in this process, in the working folder; of a finished run this is the end of its output. Progress is left out.
"""

import io
import re
import shlex
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

FONTS = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)
"""Of rich's picture: addresses of fonts that would be fetched."""


def main() -> None:
    out, *words = sys.argv[1:]
    from nar_hw.cli.app import app, console

    console.record, console.width, console._force_terminal = True, 80, True
    console.file = io.StringIO()
    console.print(Text.assemble(("$ ", "green"), (shlex.join(words), "bold")))
    try:
        app(words[1:])
    except SystemExit as stop:
        if stop.code:
            raise
    picture = console.export_svg(
        title="nar-hw", theme=DIMMED_MONOKAI, code_format=FONTS.sub("", CONSOLE_SVG_FORMAT), unique_id=Path(out).stem
    )
    Path(out).write_text(picture)


if __name__ == "__main__":
    main()
