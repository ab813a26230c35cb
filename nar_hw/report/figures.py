"""The charts of a run."""

import math

from nar_hw.report import words
from nar_hw.report.charts import Chart, Guide, Point, Series, chart, smoothed
from nar_hw.report.run import Run
from nar_hw.search.record import ScoredNames


def front(run: Run) -> list[Chart]:
    """Test accuracy against measured latency: the network and its children."""
    if len(run.front) < 2 or run.front[0].name != "baseline":
        return []
    points = {
        item.name: Point(
            item.measured_ms,
            100 * item.trained.accuracy["test"],
            f"{item.name}: {words.ms(item.measured_ms)}, {words.percent(item.trained.accuracy['test'])}",
        )
        for item in run.front
        if "test" in item.trained.accuracy
    }
    baseline, children = points["baseline"], [point for name, point in points.items() if name != "baseline"]
    told = "; ".join(point.title for point in points.values())
    return [
        chart(
            "front",
            f"Test {run.metric} against measured latency",
            f"{told}.",
            [
                Series(label="children", points=tuple(sorted(children)), kind="front", shape="diamond", line=True),
                Series(label="your network", points=(baseline,), kind="pick-mark", shape="star"),
            ],
            x_label="measured latency (ms)",
            y_label=f"test {run.metric} (%)",
            height=330,
            tips=True,
        )
    ]


def pareto(run: Run) -> list[Chart]:
    """Accuracy against predicted latency of everything that the search scored, with its front and the child."""
    pick, at = run.search.pick, run.search.target_ms
    if pick.predicted_ms is None or at is None:  # a search without a table
        return []
    groups = {"scored": run.search.scored, "front": run.search.pareto}
    points = {
        name: tuple(Point(item.predicted_ms, 100 * item.accuracy, _scored_title(item)) for item in items if item.predicted_ms)
        for name, items in groups.items()
    }
    star = Point(pick.predicted_ms, 100 * pick.accuracy, f"pick: {_scored_title(pick)}")
    series = [
        Series(label=f"scored ({len(points['scored'])})", points=points["scored"], kind="scored", shape="cloud"),
        Series(label="front", points=tuple(sorted(points["front"])), kind="front", shape="diamond", line=True),
        Series(label="pick", points=(star,), kind="pick-mark", shape="star"),
    ]
    guides = []
    if (before := run.baseline.predicted_ms) is not None:
        guides.append(Guide(start=(before, math.inf), end=(before, -math.inf), kind="before", label="baseline"))
    guides.append(Guide(start=(at, -math.inf), end=(at, math.inf), kind="target", label=f"target {words.ms(at)}"))
    counts = f"{len(points['scored'])} scored children; the front has {len(points['front'])}."
    summary = f"{words.capital(run.metric)} against predicted latency of {counts}"
    summary += f" The pick has {words.percent(pick.accuracy)} at {words.ms(pick.predicted_ms)} predicted."
    return [
        chart(
            "pareto",
            "Everything scored with shared weights",
            summary,
            series,
            x_label="predicted latency (ms)",
            y_label=f"{run.metric} (%)",
            guides=guides,
            height=330,
        )
    ]


KINDS = (
    ("reward", "Reward", "reward", 1.0),
    ("latency_ms", "Latency of sampled children", "predicted latency (ms)", 1.0),
    ("entropy", "Entropy of the proposals", "entropy (nats)", 1.0),
    ("skip_kl", "Skip policy", "divergence from 0.5 (nats)", 1.0),
    ("loss", "Loss of the shared weights", "loss", 1.0),
)
"""Of the search's history: key, title, axis, factor."""

LONG = 40
"""Epochs from which on a curve has no dots and a moving mean."""


def history(run: Run) -> list[Chart]:
    """Reward, accuracy, latency, entropy, skips and loss of the search, epoch by epoch."""
    named = (KINDS[0], ("accuracy", f"{words.capital(run.metric)} of sampled children", f"{run.metric} (%)", 100.0), *KINDS[1:])
    return [made for kind in named if (made := _history(run, *kind))]


def smoothing(run: Run) -> str:
    """What the lines of `history` are; nothing for a short one."""
    return f"Thin: each epoch. Thick: mean of {_window(run)} epochs." if len(run.search.history) >= LONG else ""


def _window(run: Run) -> int:
    return len(run.search.history) // 10 | 1


def _history(run: Run, key: str, title: str, label: str, factor: float) -> Chart | None:
    items = [(item["epoch"], factor * item[key]) for item in run.search.history if "epoch" in item and key in item]
    if not items:
        return None
    guides = []
    if key == "latency_ms" and (target := run.search.target_ms) is not None:
        guides.append(Guide(start=(items[0][0], target), end=(items[-1][0], target), kind="target", label="target"))
    points = tuple(Point(x, y, f"epoch {x:g}: {words.digits(y, 4)}") for x, y in items)
    if len(run.search.history) < LONG:
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
    known = None if run.table is None else run.table.validation
    if known is None or not known.pairs:
        return []
    points = tuple(
        Point(
            pair.predicted_ms,
            pair.measured_ms,
            f"predicted {words.ms(pair.predicted_ms)}, measured {words.ms(pair.measured_ms)}",
        )
        for pair in known.pairs
    )
    values = [value for point in points for value in (point.x, point.y)]
    low, high = min(values), max(values)
    guides = [Guide(start=(low, low), end=(high, high), kind="even")]
    summary = f"Predicted against measured latency of {len(points)} held-out children."
    floor = known.floor_mape
    guides += [
        Guide(start=(low, low * (1 + sign * floor / 100)), end=(high, high * (1 + sign * floor / 100)), kind="band")
        for sign in (-1, 1)
    ]
    summary += f" Measuring the same children twice differs by {words.digits(floor, 2)} %."
    title = (
        f"Predicted against measured, held-out children: {words.digits(known.mape, 2)}{words.SPACE}% error, "
        f"{words.digits(floor, 2)}{words.SPACE}% is noise"
    )
    return [
        chart(
            "validation",
            title,
            summary,
            [Series(label="held-out children", points=points, kind="blue", legend=False)],
            x_label="predicted latency (ms)",
            y_label="measured latency (ms)",
            guides=guides,
            note=f"Solid: equal. Dotted: equal up to the noise floor. Rank correlation {known.spearman:.3f}.",
            height=330,
            square=True,
        )
    ]


def training(run: Run) -> list[Chart]:
    """Validation accuracy and training loss of baseline and child."""
    charts = []
    for key, title, label, factor in (
        ("valid_accuracy", f"Validation {run.metric}", f"{run.metric} (%)", 100.0),
        ("loss", "Training loss", "loss", 1.0),
    ):
        series = []
        for (name, network), kind in zip(words.networks(run), ("grey dashed", "blue"), strict=True):
            items = [(log.epoch, factor * getattr(log, key)) for log in network.curve]
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


def _scored_title(item: ScoredNames) -> str:
    parts = [words.percent(item.accuracy)]
    if item.predicted_ms is not None:
        parts.append(f"{words.ms(item.predicted_ms)} predicted")
    if item.measured_ms is not None:
        parts.append(f"{words.ms(item.measured_ms)} measured")
    return ", ".join([*parts, " ".join(item.arch)])
