"""Numbers as words with their units, and the headline rows that the page and the terminal share."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nar_hw.bench.rows import Comparison
from nar_hw.report.run import Network, Run, Standing, images, role, setting

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
SPACE = "\N{NO-BREAK SPACE}"
ABSENT = "\N{EN DASH}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quantity of the headline table."""

    name: str
    unit: str = ""
    """What is counted, where the value does not say it."""
    baseline: str
    child: str
    change: str = ""
    better: bool | None = None
    """Whether the child wins; None where neither does."""


def decimals(value: float, significant: int = 3) -> int:
    """How many decimals ``value`` needs to be written with ``significant`` digits."""
    if value == 0:
        return 0
    rounded = round(value, significant - 1 - math.floor(math.log10(abs(value))))
    return max(0, significant - 1 - math.floor(math.log10(abs(rounded))))


def digits(value: float, significant: int = 3) -> str:
    """``value`` with ``significant`` digits, thousands separated, never in scientific notation."""
    return f"{value:,.{decimals(value, significant)}f}".replace("-", MINUS)


def fixed(value: float | None, places: int) -> str:
    """``value`` with ``places`` decimals."""
    return ABSENT if value is None else f"{value:,.{places}f}".replace("-", MINUS)


def ms(value: float | None) -> str:
    """Milliseconds."""
    return ABSENT if value is None else f"{digits(value)}{SPACE}ms"


def capital(text: str) -> str:
    """With its first letter as at the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def percent(share: float | None) -> str:
    """A share in [0, 1] in %."""
    return ABSENT if share is None else f"{100 * share:.2f}{SPACE}%"


def amount(value: float | None) -> str:
    """A count with its thousands, millions or billions."""
    if value is None:
        return ABSENT
    for power, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{digits(value / power)}{SPACE}{suffix}"
    return digits(value)


def signed(value: float, decimals: int, unit: str) -> str:
    """``value`` with its sign; no sign on what rounds to zero."""
    text = f"{abs(value):.{decimals}f}"
    sign = "" if float(text) == 0 else MINUS if value < 0 else "+"
    return f"{sign}{text}{SPACE}{unit}"


def change(before: float | None, after: float | None) -> str:
    """How much more or less ``after`` is than ``before``, in percent."""
    return "" if not before or after is None else signed(100 * (after / before - 1), 1, "%")


def interval(after: float, before: float, images: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a difference of two shares of ``images`` each (Newcombe 1998, method 10).

    It takes them for independent: of two networks scored on the same images the difference is known better.
    """

    def wilson(share: float) -> tuple[float, float]:
        middle, half = share + z * z / (2 * images), z * math.sqrt(share * (1 - share) / images + z * z / (4 * images**2))
        return (middle - half) / (1 + z * z / images), (middle + half) / (1 + z * z / images)

    (low, high), (low_before, high_before) = wilson(after), wilson(before)
    difference = after - before
    return (
        difference - math.hypot(after - low, high_before - before),
        difference + math.hypot(high - after, before - low_before),
    )


def points(after: float, before: float, images: int | None) -> str:
    """A difference of accuracies in points, with its interval where the number of images is known."""
    text = signed(100 * (after - before), 2, "points")
    if images is None or not (0 <= after <= 1 and 0 <= before <= 1):
        return text
    low, high = (signed(100 * end, 2, "").rstrip() for end in interval(after, before, images))
    return f"{text} (95{SPACE}% interval {low} to {high})"


def _less(before: float | None, after: float | None) -> bool | None:
    return None if before is None or after is None or before == after else after < before


def _accuracy(name: str, before: float | None, after: float | None) -> Row:
    known = before is not None and after is not None
    points = 100 * ((after or 0.0) - (before or 0.0))
    return Row(
        name=name,
        baseline=percent(before),
        child=percent(after),
        change=signed(points, 2, "points") if known else "",
        better=points > 0 if known and abs(points) >= 0.005 else None,
    )


def verdict(run: Run) -> tuple[str, bool] | None:
    """How the measured latencies compare with the targets, and whether all keep them; None when either is unknown."""
    children = [item for item in run.front if item.name != "baseline"]
    asked = [(item.name, target, item.measured_ms) for item in children if (target := item.trained.target_ms) is not None]
    if len(asked) > 1:
        missed = [f"{name} by {digits(100 * (time / target - 1), 2)}{SPACE}%" for name, target, time in asked if time > target]
        kept = f"{len(asked) - len(missed)} of {len(asked)} targets met, as measured"
        return f"{kept}; missed: {', '.join(missed)}" if missed else kept, not missed
    measured, target = run.child.measured_ms, run.search.target_ms
    if measured is None:
        return None
    over = 100 * (measured / target - 1)
    if over <= 0:
        return f"Target met: {ms(measured)} measured, {ms(target)} asked", True
    return f"Target missed by {digits(over, 2)}{SPACE}%: {ms(measured)} measured, {ms(target)} asked", False


def headline(run: Run) -> list[Row]:
    """Baseline against child, one row per quantity that at least one of them has."""
    baseline, child = run.baseline, run.child
    rows = [
        _accuracy(f"Test {run.metric}", baseline.accuracy("test"), child.accuracy("test")),
        _accuracy(f"Validation {run.metric}", baseline.accuracy("valid"), child.accuracy("valid")),
        *(
            Row(
                name=name,
                unit=unit,
                baseline=amount(before),
                child=amount(after),
                change=change(before, after),
                better=None if name == "Pool operations" else _less(before, after),
            )
            for name, unit, before, after in (
                ("Parameters", "", baseline.count("params"), child.count("params")),
                ("FLOPs", "multiply-adds per image", baseline.count("flops"), child.count("flops")),
                ("Pool operations", "comparisons and additions per image", baseline.count("pool_ops"), child.count("pool_ops")),
            )
        ),
        Row(name="Latency asked", baseline="", child=ms(run.search.target_ms)),
        *(
            Row(
                name=name,
                baseline=ms(before),
                child=ms(after),
                change=change(before, after),
                better=_less(before, after),
            )
            for name, before, after in (
                ("Latency predicted", baseline.predicted_ms, child.predicted_ms),
                ("Latency measured", baseline.measured_ms, child.measured_ms),
            )
        ),
        Row(
            name="Measured over predicted",
            baseline=change(baseline.predicted_ms, baseline.measured_ms) or ABSENT,
            child=change(child.predicted_ms, child.measured_ms) or ABSENT,
        ),
    ]
    return [row for row in rows if {row.baseline, row.child} - {ABSENT, ""}]


def front(run: Run) -> list[dict[str, str]]:
    """The table under the front: each network with its latency and what it costs in accuracy."""
    if len(run.front) < 2 or run.front[0].name != "baseline":
        return []
    first = run.front[0]
    rows = []
    for item in run.front:
        lost = ("", "") if item is first else _lost(item, first)
        rows.append(
            {
                "name": "your network" if item is first else f"target {item.name}" if item.trained.target_ms else item.name,
                "asked": ms(item.trained.target_ms) if item is not first else "",
                "measured": ms(item.measured_ms),
                "change": change(first.measured_ms, item.measured_ms) if item is not first else "",
                "met": _met(item.trained.target_ms, item.measured_ms) if item is not first else "",
                "accuracy": percent(item.trained.accuracy.get("test")),
                "points": lost[0],
                "interval": lost[1],
                "params": amount(item.trained.params),
                "flops": amount(item.trained.flops),
            }
        )
    return rows


def _lost(item: Standing, first: Standing) -> tuple[str, str]:
    """The difference of test accuracies in points, and its interval, as far as they are known."""
    after, before = item.trained.accuracy.get("test"), first.trained.accuracy.get("test")
    if after is None or before is None:
        return "", ""
    count = images(item.trained, "test")
    points = signed(100 * (after - before), 2, "").rstrip()
    if count is None or count != images(first.trained, "test") or not (0 <= after <= 1 and 0 <= before <= 1):
        return points, ""
    low, high = (signed(100 * end, 2, "").rstrip() for end in interval(after, before, count))
    return points, f"{low} to {high}"


def _met(asked: float | None, measured: float) -> str:
    return "" if asked is None else "yes" if measured <= asked else f"{digits(100 * (measured / asked - 1), 2)}{SPACE}% over"


def sentence(run: Run) -> str:
    """The result of the run in one sentence: what was lost, then what was gained."""
    children = [item for item in run.front if item.name != "baseline"]
    if len(children) > 1 and run.front[0].name == "baseline" and all("test" in item.trained.accuracy for item in run.front):
        return _range(run.metric, run.front[0], children)
    baseline, child = run.baseline, run.child
    parts = []
    before, after = baseline.accuracy("test"), child.accuracy("test")
    if after is not None:
        parts.append(f"Test {run.metric} {percent(after)}" + ("" if before is None else f" against {percent(before)}"))
    if before is not None and after is not None:
        count = child.images("test")
        parts[-1] += f": {points(after, before, count if count == baseline.images('test') else None)}"
    for name, before, after in (
        ("measured", baseline.measured_ms, child.measured_ms),
        ("predicted", baseline.predicted_ms, child.predicted_ms),
    ):
        if before and after:
            parts.append(f"{ms(after)} {name} against {ms(before)}: {change(before, after)}")
            break
    return "; ".join(parts)


def _range(metric: str, baseline: Standing, children: Sequence[Standing]) -> str:
    before = baseline.trained.accuracy["test"]
    lost = sorted(100 * (item.trained.accuracy["test"] - before) for item in children)
    faster = sorted(100 * (item.measured_ms / baseline.measured_ms - 1) for item in children)
    return (
        f"{len(children)} networks: test {metric} {signed(lost[0], 2, '').rstrip()} to {signed(lost[-1], 2, 'points')} "
        f"against {percent(before)}; measured latency {signed(faster[-1], 0, '').rstrip()} to {signed(faster[0], 0, '%')} "
        f"against {ms(baseline.measured_ms)}"
    )


def unknown_loss(run: Run) -> bool:
    """Whether nothing says what the child lost."""
    return run.baseline.accuracy("test") is None or run.child.accuracy("test") is None


def networks(run: Run) -> tuple[tuple[str, Network], ...]:
    """The two networks with their names on the page."""
    return (("baseline", run.baseline), ("child", run.child))


def shape(sizes: tuple[int, ...]) -> str:
    """An input shape."""
    return TIMES.join(map(str, sizes))


def comparison(item: Comparison) -> str:
    """The outcome of a comparison in one sentence."""
    kind = "no different" if item.low <= 1 <= item.high else "faster" if item.ratio < 1 else "slower"
    return (
        f"{role(item.subject)} takes {item.ratio:.3f}{SPACE}{TIMES} the time of {role(item.against)}: {kind} "
        f"(95{SPACE}% interval {item.low:.3f} to {item.high:.3f}; {setting(item)})"
    )


BENCH_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("p50", "p50_ms", ms),
    ("p90", "p90_ms", ms),
    ("p99", "p99_ms", ms),
    ("images/s", "images_per_s", digits),
    ("uncertain by", "rel", lambda value: f"\N{PLUS-MINUS SIGN}{digits(100 * value, 2)}{SPACE}%"),
    ("noise floor", "noise_floor", lambda value: f"{digits(100 * value, 2)}{SPACE}%"),
    ("runs", "n", lambda value: f"{value:,.0f}"),
    ("GPU memory", "gpu_memory_mib", lambda value: f"{value:,.0f}{SPACE}MiB"),
    ("energy/image", "energy_mj_per_image", lambda value: f"{digits(value)}{SPACE}mJ"),
    ("SM clock", "sm_clock_mhz", lambda value: f"{value:,.0f}{SPACE}MHz"),
)
"""Column title, field of a benchmark row, and how it is written."""

LABELS = {
    "mape": "mean error, %",
    "floor_mape": "noise, %",
    "residual_mape": "left over by least squares, %",
    "overhead_ms": "cost of the profiler per node, ms",
    "isa": "instruction sets",
    "target_ms": "target, ms",
    "fixed_ms": "outside the slots, ms",
    "lr": "learning rate",
    "lr_min": "least learning rate",
    "t_0": "epochs of the first cosine",
    "t_mult": "each cosine longer by",
    "ema_decay": "decay of averaged weights",
    "init": "begun from",
    "cpu": "CPU",
    "os": "system",
}
"""Field of a record -> what people call it."""


def label(field: str) -> str:
    """A field of a record in words."""
    return LABELS.get(field, field.replace("_", " "))
