"""A benchmark as a picture: the latency of every row, from its median to its 99th percentile."""

import io
from collections.abc import Sequence
from pathlib import Path

from nar_hw.bench.rows import BenchRow
from nar_hw.errors import MeasurementError
from nar_hw.files import write_bytes

COLORS = ("#2563eb", "#d97706", "#059669", "#7c3aed")


def bench_png(rows: Sequence[BenchRow], path: Path) -> None:
    """Write one line per row to ``path``: a dot at p50, a bar to p90, a thin one to p99. Raises MeasurementError without rows."""
    from matplotlib.figure import Figure

    if not rows:
        raise MeasurementError("a plot needs times, but there are none")
    subjects = list(dict.fromkeys(row.subject for row in rows))
    figure = Figure(figsize=(8, 1.3 + 0.3 * len(rows)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for position, row in enumerate(rows):
        color = COLORS[subjects.index(row.subject) % len(COLORS)]
        for end, width in ((row.p99_ms, 1), (row.p90_ms, 4)):
            if end is not None:
                axes.plot((row.p50_ms, end), (position, position), color=color, linewidth=width, alpha=0.5, solid_capstyle="butt")
        axes.plot(row.p50_ms, position, "o", color=color, markersize=6)
        axes.annotate(
            f"{row.p50_ms:.3g}", (row.p50_ms, position), (-7, 0), textcoords="offset points", ha="right", va="center", size=8
        )
    axes.set_yticks(range(len(rows)), [_label(row, len(subjects) > 1) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log" if max(row.p50_ms for row in rows) > 10 * min(row.p50_ms for row in rows) else "linear")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.12)
    if axes.get_xscale() == "linear":
        axes.set_xlim(left=0)
    axes.set_xlabel("latency of one batch (ms): median, 90th and 99th percentile")
    mark = rows[0].fingerprint
    axes.set_title(f"{mark.get('device')}, {rows[0].threads} thread{'' if rows[0].threads == 1 else 's'}", fontsize=10)
    axes.grid(axis="x", color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    write_bytes(path, data.getvalue())


def _label(row: BenchRow, several: bool) -> str:
    config = f"{row.runtime} {row.precision}, batch {row.batch}"
    return f"{row.subject}: {config}" if several else config
