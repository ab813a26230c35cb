"""Draw the pictures of README.md and docs/ from the result files: docs/pictures/claim.svg, the front of the demo over its seeds.

python benchmarks/pictures.py
"""

import io
import json
from pathlib import Path

from matplotlib import rcParams
from matplotlib.figure import Figure

HERE = Path(__file__).parent
OUT = HERE.parent / "docs" / "pictures"
COLOURS = ("#0067a8", "#c44f00", "#00694d", "#7b3fa0", "#59636f")


def claim() -> Figure:
    """Test accuracy against measured latency, both relative to the network that was refined: a line for each seed."""
    found = json.loads((HERE / "results" / "demo.json").read_text())
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for run, colour in zip(found["results"], COLOURS, strict=False):
        network, *children = run["networks"]
        front = [network, *sorted(children, key=lambda child: -child["measured_ms"])]
        xs = [100 * item["ratio"] for item in front]
        ys = [100 * (item["test_accuracy"] - network["test_accuracy"]) for item in front]
        axes.plot(xs, ys, "-", color=colour, linewidth=1.5, alpha=0.8)
        axes.plot(xs[1:], ys[1:], "o", color=colour, markersize=6, label=f"seed {run['seed']}")
    axes.plot(100, 0, "*", color="#1a1f26", markersize=16, label="your network", zorder=3)
    axes.set_xlim(102, min(axes.get_xlim()[0], 30))
    axes.set_ylim(min(axes.get_ylim()[0], -1.5), max(axes.get_ylim()[1], 0.5))
    axes.set_xlabel("measured latency, % of the network's (faster to the right)")
    axes.set_ylabel("test accuracy, points")
    axes.set_title("nar-hw demo: 8x8 digits, ONNX Runtime on one core of a CPU", fontsize=10)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="lower left", fontsize=9)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write an SVG that is the same to the byte from the same results."""
    rcParams["svg.hashsalt"] = "nar-hw"
    data = io.BytesIO()
    figure.savefig(data, format="svg", metadata={"Date": None})
    path.write_bytes(data.getvalue())


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    save(claim(), OUT / "claim.svg")
