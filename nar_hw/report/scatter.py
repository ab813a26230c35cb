"""A table's validation as a picture: predicted against measured latency."""

import io
from pathlib import Path

import numpy as np

from nar_hw.errors import TableError
from nar_hw.files import write_bytes
from nar_hw.latency.table import LatencyTable


def validation_png(table: LatencyTable, path: Path) -> None:
    """Write the scatter of ``table``'s held-out children to ``path``. Raises TableError where it has no validation."""
    from matplotlib.figure import Figure

    if table.validation is None:
        raise TableError("a plot needs a validated table, but this one is not: run nar-hw table validate")
    found = table.validation
    predicted = np.array([pair.predicted_ms for pair in found.pairs])
    measured = np.array([pair.measured_ms for pair in found.pairs])
    ends = np.array([min(predicted.min(), measured.min()), max(predicted.max(), measured.max())]) * (0.97, 1.03)
    figure = Figure(figsize=(6, 6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(ends, ends, color="0.3", linewidth=1, label="equal")
    axes.fill_between(ends, ends * 0.95, ends * 1.05, color="0.92", label="within 5 %")
    axes.scatter(predicted, measured, s=22, color="#2563eb", alpha=0.75, linewidths=0, label="held-out children", zorder=3)
    axes.set(xlim=ends, ylim=ends, aspect="equal", xlabel="predicted (ms)", ylabel="measured (ms)")
    config = table.config
    shape = "x".join(map(str, table.network.input_shape))
    axes.set_title(
        f"{table.network.name} {shape}, {config.runtime} {config.precision}, batch {config.batch}\n"
        f"{found.children} children: error {found.mape:.1f} % (noise {found.floor_mape:.1f} %), "
        f"rank correlation {found.spearman:.3f}",
        fontsize=10,
    )
    axes.legend(loc="upper left", frameon=False)
    axes.grid(color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    write_bytes(path, data.getvalue())
