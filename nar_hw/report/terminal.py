"""The headline of a run as a table for the terminal."""

from pathlib import Path

from rich.table import Table
from rich.text import Text

from nar_hw.report import words
from nar_hw.report.run import read_run


def terminal_table(run_dir: Path) -> Table:
    """Baseline against child: accuracy, size, latency asked, predicted and measured. Raises RunError as `read_run` does."""
    run = read_run(Path(run_dir))
    outcome = words.verdict(run)
    caption = None if outcome is None else Text(outcome[0], style="green" if outcome[1] else "red")
    table = Table(title=Text(f"{run.model} {words.shape(run.input_shape)}"), caption=caption)
    table.add_column("Quantity")
    for name in ("Baseline", "Child", "Change"):
        table.add_column(name, justify="right")
    for row in words.headline(run):
        style = "" if row.better is None else "green" if row.better else "red"
        # Text, not markup: names from files may hold brackets.
        table.add_row(
            Text(f"{row.name} ({row.unit})" if row.unit else row.name),
            Text(row.baseline),
            Text(row.child),
            Text(row.change, style=style),
        )
    return table
