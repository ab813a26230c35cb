"""The charts of a run."""

import math

from nar_hw.report import words
from nar_hw.report.charts import Chart, Guide, Point, Series, chart, smoothed
from nar_hw.report.run import Run, Scored


def pareto(run: Run) -> list[Chart]:
    """Accuracy against predicted latency of everything that the search scored, with its front and the child."""
    groups = {"scored": run.scored or run.finalists, "front": run.front}
    points = {
        name: tuple(
            Point(item.predicted_ms, 100 * item.accuracy, _scored_title(item)) for item in items if item.predicted_ms is not None
        )
        for name, items in groups.items()
    }
    pick = next((item for item in run.finalists if item.arch == run.child.arch), None) if run.child.arch else None
    pick = pick or next((item for item in run.front if item.arch is not None and item.arch == run.child.arch), None)
    if not any(points.values()):
        return []
    series = [
        Series(label=f"scored ({len(points['scored'])})", points=points["scored"], kind="scored", shape="cloud"),
        Series(label="front", points=tuple(sorted(points["front"])), kind="front", shape="diamond", line=True),
    ]
    if pick is not None and pick.predicted_ms is not None:
        star = Point(pick.predicted_ms, 100 * pick.accuracy, f"pick: {_scored_title(pick)}")
        series.append(Series(label="pick", points=(star,), kind="pick-mark", shape="star"))
    guides = []
    if run.baseline.predicted_ms is not None:
        at = run.baseline.predicted_ms
        guides.append(Guide(start=(at, math.inf), end=(at, -math.inf), kind="before", label="baseline"))
    if run.target_ms is not None:
        at = run.target_ms
        guides.append(Guide(start=(at, -math.inf), end=(at, math.inf), kind="target", label=f"target {words.ms(at)}"))
    summary = (
        f"Accuracy against predicted latency of {len(points['scored'])} scored children; the front has {len(points['front'])}."
    )
    if pick is not None:
        summary += f" The pick has {words.percent(pick.accuracy)} at {words.ms(pick.predicted_ms)} predicted."
    return [
        chart(
            "pareto",
            "Everything scored with shared weights",
            summary,
            series,
            x_label="predicted latency (ms)",
            y_label="accuracy (%)",
            guides=guides,
            height=330,
        )
    ]


KINDS = (
    ("reward", "Reward", "reward", 1.0),
    ("accuracy", "Accuracy of sampled children", "accuracy (%)", 100.0),
    ("latency_ms", "Latency of sampled children", "predicted latency (ms)", 1.0),
    ("entropy", "Entropy of the proposals", "entropy (nats)", 1.0),
    ("loss", "Loss of the shared weights", "loss", 1.0),
)
"""Of the search's history: key, title, axis, factor."""

LONG = 40
"""Epochs from which on a curve has no dots and a moving mean."""


def history(run: Run) -> list[Chart]:
    """Reward, accuracy, latency, entropy and loss of the search, epoch by epoch."""
    return [made for kind in KINDS if (made := _history(run, *kind))]


def smoothing(run: Run) -> str:
    """What the lines of `history` are; nothing for a short one."""
    return f"Thin: each epoch. Thick: mean of {_window(run)} epochs." if len(run.history) >= LONG else ""


def _window(run: Run) -> int:
    return len(run.history) // 10 | 1


def _history(run: Run, key: str, title: str, label: str, factor: float) -> Chart | None:
    items = [(item["epoch"], factor * item[key]) for item in run.history if "epoch" in item and key in item]
    if not items:
        return None
    guides = []
    if key == "latency_ms" and run.target_ms is not None:
        guides.append(Guide(start=(items[0][0], run.target_ms), end=(items[-1][0], run.target_ms), kind="target", label="target"))
    points = tuple(Point(x, y, f"epoch {x:g}: {words.digits(y, 4)}") for x, y in items)
    if len(run.history) < LONG:
        series = [Series(label="each epoch", points=points, kind="blue", shape="dot", line=True)]
    else:
        means = smoothed([y for _, y in items], _window(run))
        mean = tuple(Point(x, y) for (x, _), y in zip(items, means, strict=True))
        series = [
            Series(label="each epoch", points=points, kind="raw", shape=None, line=True, legend=False),
            Series(label="mean", points=mean, kind="blue", shape=None, line=True, legend=False),
        ]
    ends = [f"{words.digits(y, 4)} at epoch {x:g}" for x, y in (items[0], items[-1])]
    return chart(
        f"history-{key.replace('_', '-')}",
        title,
        f"{title} from {ends[0]} to {ends[1]}.",
        series,
        x_label="epoch",
        y_label=label,
        guides=guides,
        height=250,
        whole_x=True,
    )


def validation(run: Run) -> list[Chart]:
    """Predicted against measured latency of the table's held-out children."""
    known = run.validation
    if known is None or not known.predicted_ms:
        return []
    points = tuple(
        Point(predicted, measured, f"predicted {words.ms(predicted)}, measured {words.ms(measured)}")
        for predicted, measured in zip(known.predicted_ms, known.measured_ms, strict=True)
    )
    values = known.predicted_ms + known.measured_ms
    low, high = min(values), max(values)
    guides = [Guide(start=(low, low), end=(high, high), kind="even")]
    summary = f"Predicted against measured latency of {len(points)} held-out children."
    if (floor := known.floor_percent) is not None:
        guides += [
            Guide(start=(low, low * (1 + sign * floor / 100)), end=(high, high * (1 + sign * floor / 100)), kind="band")
            for sign in (-1, 1)
        ]
        summary += f" Measuring the same children twice differs by {words.digits(floor, 2)} %."
    title = "Predicted against measured, held-out children"
    if known.mape_percent is not None:
        title += f": {words.digits(known.mape_percent, 2)}{words.SPACE}% error"
        title += "" if known.floor_percent is None else f", {words.digits(known.floor_percent, 2)}{words.SPACE}% is noise"
    return [
        chart(
            "validation",
            title,
            summary,
            [Series(label="held-out children", points=points, kind="blue", legend=False)],
            x_label="predicted latency (ms)",
            y_label="measured latency (ms)",
            guides=guides,
            note="Solid: equal." if known.floor_percent is None else "Solid: equal. Dotted: equal up to the noise floor.",
            height=330,
            square=True,
        )
    ]


def training(run: Run) -> list[Chart]:
    """Validation accuracy and training loss of baseline and child."""
    charts = []
    for key, title, label, factor in (
        ("valid_accuracy", "Validation accuracy", "accuracy (%)", 100.0),
        ("loss", "Training loss", "loss", 1.0),
    ):
        series = []
        for (name, network), kind in zip(words.networks(run), ("grey dashed", "blue"), strict=True):
            items = [(number, factor * item[key]) for number, item in enumerate(network.curve, 1) if key in item]
            points = tuple(Point(x, y, f"{name}, epoch {x:g}: {words.digits(y, 4)}") for x, y in items)
            shape = "dot" if len(points) < LONG else None
            series.append(Series(label=name, points=points, kind=kind, shape=shape, line=True))
        ends = [f"{item.label} ends at {words.digits(item.points[-1].y, 4)}" for item in series if item.points]
        if ends:
            charts.append(
                chart(
                    f"training-{key.replace('_', '-')}",
                    title,
                    f"{title} by epoch: {', '.join(ends)}.",
                    series,
                    x_label="epoch",
                    y_label=label,
                    height=250,
                    whole_x=True,
                )
            )
    return charts


def _scored_title(item: Scored) -> str:
    parts = [words.percent(item.accuracy), f"{words.ms(item.predicted_ms)} predicted"]
    if item.measured_ms is not None:
        parts.append(f"{words.ms(item.measured_ms)} measured")
    return ", ".join([*parts, *([" ".join(item.arch)] if item.arch else [])])
