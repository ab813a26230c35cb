"""Draw the pictures of README.md and docs/ from the result files: claim.svg (results/claim.json), demo.svg and peers.svg (ways to
predict latency) in docs/pictures.

python benchmarks/pictures.py
"""

import io
import json
from pathlib import Path

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure

HERE = Path(__file__).parent
OUT = HERE.parent / "docs" / "pictures"
COLOURS = ("#0067a8", "#c44f00", "#00694d", "#7b3fa0", "#59636f")


WAYS = {
    "refined": ("nar-hw refine", "o", "#0067a8"),
    "narrowed": ("narrowed uniformly", "s", "#59636f"),
    "pruned": ("torch-pruning, Taylor", "v", "#c44f00"),
    "fastnas": ("modelopt FastNAS", "^", "#7b3fa0"),
    "random": ("random child", "x", "#00694d"),
}
"""Method of claim.json -> its name in the picture, mark and colour."""


def claim() -> Figure:
    """CIFAR-10: test accuracy against measured latency of the network and what each method made of it."""
    found = json.loads((HERE / "results" / "claim.json").read_text())
    points = found["points"]
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for method, (label, mark, colour) in WAYS.items():
        mine = [item for name, item in points.items() if name.startswith(f"{method} ")]
        if not mine:
            continue
        xs, ys = [100 * item["share"] for item in mine], [100 * item["test"] for item in mine]
        axes.plot(xs, ys, mark, color=colour, markersize=8, label=label)
    axes.plot(100, 100 * points["network"]["test"], "*", color="#1a1f26", markersize=16, label="the published network", zorder=3)
    axes.set_xlabel("measured latency, % of the network's")
    axes.set_ylabel("test accuracy, %")
    axes.invert_xaxis()
    axes.set_title("ResNet-20, CIFAR-10: ONNX Runtime on one core of a CPU, all in one session", fontsize=10)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="lower left", fontsize=9)
    return figure


def demo() -> Figure:
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


def peers() -> Figure:
    """Predicted against measured latency of the held-out children, relative to the network: a panel for each way to predict."""
    found = json.loads((HERE / "results" / "peers.json").read_text())
    measured = 100 * np.array(found["sessions"][0]["relative"])
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    panels = figure.subplots(2, 4, sharex=True, sharey=True).ravel()
    low, high = 0.9 * measured.min(), 1.1 * measured.max()
    for axes, (name, method) in zip(panels, found["methods"].items(), strict=False):
        axes.plot([low, high], [low, high], color="0.6", linewidth=0.8)
        colour = COLOURS[0] if name == "our table" else COLOURS[1]
        axes.plot(measured, np.clip(100 * np.array(method["relative"]), low, high), "o", markersize=3.5, color=colour)
        axes.set_title(f"{name}\n{method['mape']:.1f} % off, rank {method['spearman']:.3f}", fontsize=9)
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
    for axes in panels[len(found["methods"]) :]:
        axes.axis("off")
    figure.supxlabel("measured latency, % of the network's", fontsize=9)
    figure.supylabel("predicted (cut at the edges)", fontsize=9)
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
    save(demo(), OUT / "demo.svg")
    save(peers(), OUT / "peers.svg")
