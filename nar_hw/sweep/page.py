"""The page of a sweep: fronts per device over all networks, and a table of all cells that sorts and filters."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nar_hw.files import write_text
from nar_hw.report import words
from nar_hw.report.charts import Chart, Point, Series, chart
from nar_hw.report.page import template
from nar_hw.search.pareto import pareto_front
from nar_hw.sweep.job import Cell, metric_of

SCRIPT = Path(__file__).parent / "sort.js.html"
FEW = 200
"""Cells to which a chart shows them as marks with titles."""
LABELS = {"met": "\N{CHECK MARK} met", "short": "\N{BALLOT X} fell short", "failed": "! failed"}
HEADS = {"setting": "device"}
AXES = ("network", "data", "setting", "target", "strategy", "seed")


def write_page(path: Path, cells: Sequence[Cell], *, refined: bool) -> None:
    """Write the page of ``cells``, which are in the order of the table; ``refined``: their children are trained."""
    script = SCRIPT.read_text()
    rows = [_row(cell, refined) for cell in cells]
    varying = [axis for axis in AXES if axis in ("network", "target") or len({row[axis] for row in rows}) > 1]
    text = template("sweep.html", Path(__file__).parent).render(
        rows=rows,
        axes=varying,
        same=[f"{HEADS.get(axis, axis)} {rows[0][axis]}" for axis in AXES if rows and axis not in varying],
        counts={status: sum(cell.status == status for cell in cells) for status in LABELS},
        labels=LABELS,
        heads=HEADS,
        charts=_charts(cells, refined),
        refined=refined,
        metric=metric_of(cells),
        capital=words.capital,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_text(path, text.encode("utf-8", "replace").decode())


def setting(cell: Cell) -> str:
    """The device of a cell and how networks run there."""
    parts = [cell.runtime, cell.precision, f"batch {cell.batch}", f"threads {cell.threads}"]
    return "unknown" if cell.runtime is None else f"{cell.device or 'this device'}, {' '.join(map(str, parts))}"


def _row(cell: Cell, refined: bool) -> dict[str, Any]:
    share = None if cell.ms is None or not cell.target_ms else cell.ms / cell.target_ms
    return {
        "network": cell.network,
        "data": cell.data,
        "setting": setting(cell),
        "target": cell.target,
        "strategy": cell.strategy,
        "seed": cell.seed,
        "status": cell.status,
        "reason": cell.reason,
        "ms": cell.ms,
        "latency": words.ms(cell.ms),
        "how": "" if cell.ms is None else "predicted" if cell.measured_ms is None else "measured",
        "share": share,
        "of_target": "" if share is None else f"{100 * share:.1f}{words.SPACE}% of the target",
        "metric": cell.metric,
        "accuracy": cell.accuracy,
        "accuracy_text": words.percent(cell.accuracy),
        "test": cell.test_accuracy,
        "test_text": words.percent(cell.test_accuracy),
        "arch": " ".join(cell.arch),
        "folder": cell.folder,
        "link": f"{cell.folder}/report.html" if refined and cell.folder and cell.status != "failed" else "",
    }


def _score(cell: Cell, refined: bool) -> float | None:
    return cell.test_accuracy if refined else cell.accuracy


def _charts(cells: Sequence[Cell], refined: bool) -> list[Chart]:
    """A front for each device and data set: the cells that no other of any network beats in accuracy and latency."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.ms is not None and _score(cell, refined) is not None:
            groups.setdefault((setting(cell), cell.data), []).append(cell)
    return [_chart(f"front{number}", *key, group, refined) for number, (key, group) in enumerate(groups.items())]


def _chart(name: str, where: str, data: str, cells: Sequence[Cell], refined: bool) -> Chart:
    points = [Point(cell.ms or 0.0, 100 * (_score(cell, refined) or 0.0), _title(cell, refined)) for cell in cells]
    best = set(pareto_front([point.x for point in points], [point.y for point in points]))
    front = sorted({points[index] for index in best})
    others = tuple(dict.fromkeys(point for index, point in enumerate(points) if index not in best))
    few = len(others) <= FEW
    how = {cell.measured_ms is None for cell in cells}
    latency = f"{'predicted' if True in how else 'measured'} latency" if len(how) == 1 else "latency, some predicted"
    score = f"{'test' if refined else 'validation'} {metric_of(cells)}"
    networks = len({cell.network for cell in cells})
    return chart(
        name,
        f"{where}; {data}",
        f"{score} against {latency}, cells of {networks} networks. Front: {'; '.join(point.title for point in front)}.",
        [
            Series(label=f"cells ({len(others)})", points=others, kind="scored", shape="dot" if few else "cloud"),
            Series(label="front over all networks", points=tuple(front), kind="front", shape="diamond", line=True),
        ],
        x_label=f"{latency} (ms)",
        y_label=f"{score} (%)",
        height=330,
        tips=few,
    )


def _title(cell: Cell, refined: bool) -> str:
    where = f"{cell.network} at {cell.target}, {cell.strategy}, seed {cell.seed}"
    return f"{where}: {words.ms(cell.ms)}, {words.percent(_score(cell, refined))}"
