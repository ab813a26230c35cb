"""Tables for the terminal: words are wrapped where there is too little room, and nothing is ever cut or left out."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

GAP = 2
"""Columns between two columns, of which the box has one."""


class Grid:
    """Rows under titles; where not even single words fit side by side, each row is a paragraph of "title: value" lines."""

    def __init__(self, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.titles, self.rows = titles, rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """What rich prints."""
        widths = self.widths(options.max_width)
        if widths is None:
            yield from self._paragraphs()
            return
        table = Table(box=SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False)
        for title, width, numbers in zip(self.titles, widths, self._numbers(), strict=True):
            justify = "right" if numbers else "left"
            table.add_column(Text(title), width=width, overflow="fold", justify=justify)  # type: ignore[arg-type]
        for row in self.rows:
            table.add_row(*map(Text, row))
        yield table

    def widths(self, most: int) -> list[int] | None:
        """Columns of each cell: all that it needs or, where that is more than ``most`` in all, its longest word or number."""
        columns = list(zip(self.titles, *self.rows, strict=True))
        least = [max((cell_len(word) for cell in column for word in cell.split()), default=0) for column in columns]
        for position, (column, numbers) in enumerate(zip(columns, self._numbers(), strict=True)):
            if numbers:  # stay with their units
                least[position] = max(least[position], *map(cell_len, column[1:]))
        whole = [max(cell_len(line) for cell in column for line in (cell.split("\n") or [""])) for column in columns]
        left = most - GAP * len(columns) - sum(least)
        wanted = sum(whole) - sum(least)
        if wanted <= left:
            return whole
        if left < 0:
            return None
        return [low + left * (high - low) // wanted for low, high in zip(least, whole, strict=True)]

    def _numbers(self) -> list[bool]:
        """Which columns hold nothing but numbers, with their units."""
        return [
            all(cell[:1].isdigit() or cell[:1] in "+-" for cell in column if cell) and any(column)
            for column in zip(*self.rows, strict=True)
        ] or [False] * len(self.titles)

    def _paragraphs(self) -> Iterator[RenderableType]:
        width = max(map(cell_len, self.titles))
        for row in self.rows:
            for title, cell in zip(self.titles, row, strict=True):
                if cell:
                    yield Text(f"{title:>{width}}: {cell}" if title else cell, overflow="fold")
            yield Text("")
