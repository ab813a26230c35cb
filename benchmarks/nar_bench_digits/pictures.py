"""Pictures of what study.py found and of what it is measured by."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from yardstick import Yardstick

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PANELS = {
    "table": ("trained alone", ""),
    "checkpoint": ("one set of shared weights", ""),
    "search with": ("search, with PreTrain", ", with PreTrain"),
    "search fair": ("search, PreTrain, fair paths", ", with PreTrain, fair paths"),
    "search without": ("search, without PreTrain", ", without PreTrain"),
}


def draw(result: Path) -> None:
    """PNGs beside the result."""
    content = json.loads(result.read_text())
    regrets(content).savefig(result.with_name(f"{result.stem}_regret.png"), dpi=110)
    sharing(content).savefig(result.with_name(f"{result.stem}_sharing.png"), dpi=110)
    children().savefig(result.with_name(f"{result.stem}_children.png"), dpi=110)


def regrets(content: dict[str, Any]) -> Any:
    """Mean regret and its standard error against the number of evaluations."""
    figure, axes = plt.subplots(1, 5, figsize=(17, 3.6), sharey=True, layout="constrained")
    names = list(dict.fromkeys(name.split(",")[0] for name in content["search"]))
    for axis, (part, (title, suffix)) in zip(axes, PANELS.items(), strict=True):
        rows = content[part.split()[0]]
        for number, name in enumerate(names):
            if row := rows.get(f"{name}{suffix}"):
                curve(axis, row["regret"], name, f"C{number}")
        axis.set(title=title, xlabel="evaluations", xscale="log")
        axis.set_xticks([25, 50, 100, 200, 300], ["25", "50", "100", "200", "300"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="regret (points of accuracy)", ylim=(0, None))
    figure.legend(*axes[2].get_legend_handles_labels(), loc="outside right upper")
    return figure


def curve(axis: Axes, row: dict[str, list[float]], name: str, color: str) -> None:
    marks = np.array([int(mark) for mark in row])
    mean, error = np.array(list(row.values())).T
    axis.plot(marks, mean, label=name, color=color, marker="o", markersize=3)
    axis.fill_between(marks, mean - error, mean + error, color=color, alpha=0.15)


def sharing(content: dict[str, Any]) -> Any:
    """Rank correlation of shared weights with the truth."""
    figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
    rows = {name: row for name, row in content["supernet"].items() if name != "all"}
    mean, error = np.array([row["kendall"] for row in rows.values()]).T
    axis.barh(list(rows), mean, xerr=error, color=["C2", *["C7"] * (len(rows) - 1)])
    axis.axvline(
        content["truth"]["kendall of accuracies of two seeds"], color="k", linestyle=":", label="two seeds, trained alone"
    )
    axis.set(xlabel="Kendall's tau of shared scores and accuracies trained alone")
    figure.legend(loc="outside upper right")
    axis.invert_yaxis()
    return figure


def children() -> Any:
    """Every child by its latency and accuracy."""
    known = Yardstick.load()
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axis.scatter(known.latency_ms, 100 * known.quality, s=6)
    axis.set(xlabel="measured latency (ms)", ylabel="accuracy trained alone (%)")
    axis.grid(alpha=0.3)
    return figure
