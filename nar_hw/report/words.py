"""Numbers as words with their units, and the headline rows that the page and the terminal share."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from nar_hw.bench.rows import Comparison
from nar_hw.report.run import Network, Run, role, setting

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
    """``after`` as a multiple of ``before``."""
    return "" if not before or after is None else f"{digits(after / before)}{SPACE}{TIMES}"


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
    """How the measured latency of the child compares with the target, and whether it keeps it; None when either is unknown."""
    measured, asked = run.child.measured_ms, run.search.target_ms
    if measured is None:
        return None
    over = 100 * (measured / asked - 1)
    if over <= 0:
        return f"Target met: {ms(measured)} measured, {ms(asked)} asked", True
    return f"Target missed by {digits(over, 2)}{SPACE}%: {ms(measured)} measured, {ms(asked)} asked", False


def headline(run: Run) -> list[Row]:
    """Baseline against child, one row per quantity that at least one of them has."""
    baseline, child = run.baseline, run.child
    rows = [
        _accuracy("Test accuracy", baseline.accuracy("test"), child.accuracy("test")),
        _accuracy("Validation accuracy", baseline.accuracy("valid"), child.accuracy("valid")),
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
        accuracy, before = item.trained.accuracy.get("test"), first.trained.accuracy.get("test")
        points = None if accuracy is None or before is None or item is first else 100 * (accuracy - before)
        rows.append(
            {
                "name": item.name,
                "asked": ms(item.trained.target_ms) if item is not first else "",
                "measured": ms(item.measured_ms),
                "ratio": change(first.measured_ms, item.measured_ms) if item is not first else "",
                "accuracy": percent(accuracy),
                "points": "" if points is None else signed(points, 2, "").rstrip(),
                "params": amount(item.trained.params),
                "flops": amount(item.trained.flops),
            }
        )
    return rows


def sentence(run: Run) -> str:
    """The result of the run in one sentence."""
    baseline, child = run.baseline, run.child
    parts = []
    for name, before, after in (
        ("measured", baseline.measured_ms, child.measured_ms),
        ("predicted", baseline.predicted_ms, child.predicted_ms),
    ):
        if before and after:
            factor = digits(max(before / after, after / before))
            how = f"{factor}{SPACE}{TIMES} {'faster' if after < before else 'slower'} than" if factor != "1.00" else "as fast as"
            parts.append(f"{how} the baseline ({name}: {ms(after)} against {ms(before)})")
            break
    before, after = baseline.accuracy("test"), child.accuracy("test")
    if before is not None and after is not None:
        points = 100 * (after - before)
        parts.append(f"test accuracy {percent(after)} ({signed(points, 2, 'points')})")
    return ", ".join(parts)


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
