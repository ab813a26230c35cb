"""The report of a run as one self-contained HTML page: no script, nothing fetched."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nar_hw.errors import printable
from nar_hw.files import write_text
from nar_hw.report import words
from nar_hw.report.figures import front, history, pareto, smoothing, training, validation
from nar_hw.report.run import Run, SlotCost, read_run, role, setting
from nar_hw.space.operators import PAPER_OPERATORS

if TYPE_CHECKING:
    from jinja2 import Template

COLOURS = 8
"""Colours for operators in the page's style; operators beyond share one more, grey."""


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the report of ``run_dir`` to ``out`` (default: report.html inside it) and return its path.

    Raises RunError when run.json is absent or a file of the run is damaged, TableError for a damaged table.
    """
    out = Path(run_dir) / "report.html" if out is None else Path(out)
    write_text(out, render(read_run(Path(run_dir))))
    return out


def render(run: Run) -> str:
    """The page as text."""
    rows = words.headline(run)
    tested, validated = f"Test {run.metric}", f"Validation {run.metric}"
    cards = ("Latency measured", "Latency predicted", tested, validated, "Parameters", "FLOPs")
    shown = {row.name: row for row in rows}
    if "Latency measured" in shown:
        shown.pop("Latency predicted", None)
    if tested in shown:
        shown.pop(validated, None)
    text = template("page.html").render(
        run=run,
        shape=words.shape(run.input_shape),
        sentence=words.sentence(run),
        metric=words.capital(run.metric),
        verdict=words.verdict(run),
        unknown_loss=words.unknown_loss(run),
        label=words.label,
        rows=rows,
        cards=[shown[name] for name in cards if name in shown],
        front=words.front(run),
        bench=_bench(run),
        bench_columns=[column for column, _, _ in _bench_columns(run)],
        comparisons=[words.comparison(item) for item in run.comparisons],
        charts={
            "front": front(run),
            "pareto": pareto(run),
            "history": history(run),
            "validation": validation(run),
            "training": training(run),
        },
        smoothing=smoothing(run),
        finalists=_finalists(run),
        finalists_measured=any(item.measured_ms is not None for item in run.search.finalists),
        why=_why(run),
        TIMES=words.TIMES,
        ABSENT=words.ABSENT,
    )
    # JSON may hold half a surrogate pair, which no encoding of a file can hold.
    return text.encode("utf-8", "replace").decode("utf-8")


def _printable(value: object) -> object:
    """Names of users as text: no terminal commands, no line ends. (Markup is our own.)"""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


@functools.cache
def template(name: str, folder: Path | None = None) -> "Template":
    """A page of ``folder`` (default: of reports), which may include the parts of reports."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = FileSystemLoader([Path(__file__).parent, *([] if folder is None else [folder])])
    return Environment(
        loader=here, autoescape=True, finalize=_printable, undefined=StrictUndefined, trim_blocks=True
    ).get_template(name)


def colour(operator: str, seen: Sequence[str]) -> int:
    """The number of an operator's colour: the paper's operators have their own, others follow in the order of ``seen``."""
    others = [name for name in dict.fromkeys(seen) if name not in PAPER_OPERATORS]
    order = [*PAPER_OPERATORS, *others]
    return min(order.index(operator), COLOURS)


def _operators(run: Run) -> list[str]:
    archs = [arch for arch in (run.baseline.arch, run.child.arch, *(item.trained.arch for item in run.front)) if arch]
    return list(dict.fromkeys(name for arch in archs for name in arch))


def _why(run: Run) -> list[dict[str, Any]]:
    """For each child what was changed, and what each change is worth."""
    children: list[tuple[str, tuple[str, ...], float | None]] = [
        (item.name, item.trained.arch, item.measured_ms) for item in run.front if item.name != "baseline"
    ]
    if len(children) < 2 and run.child.arch:
        children = [(run.first, run.child.arch, run.child.measured_ms)]
    return [{"name": name, **_strip(run, arch), **_slots(run, arch, measured)} for name, arch, measured in children]


def _strip(run: Run, arch: tuple[str, ...]) -> dict[str, Any]:
    before = run.baseline.arch
    names = _operators(run)
    known = before is not None and len(before) == len(arch)
    slots, cells = run.slots_of(arch), []
    for position, operator in enumerate(arch):
        was = before[position] if known and before else None
        slot = slots[position].name if len(slots) == len(arch) else f"slot {position}"
        changed = was is not None and was != operator
        cells.append(
            {
                "operator": operator,
                "slot": slot,
                "changed": changed or was is None,
                "colour": colour(operator, names),
                "title": f"slot {position} ({slot}): {operator}" + (f", was {was}" if changed else ", kept" if was else ""),
            }
        )
    uses = [{"name": name, "colour": colour(name, names), "uses": arch.count(name)} for name in names if name in arch]
    replaced = sum(bool(cell["changed"]) for cell in cells)
    note = f"{len(arch)} slots in the order of the forward pass."
    if known:
        note = f"{replaced} of {len(arch)} slots have another operator than the baseline (filled); the others keep it (outlined)."
    return {"strip": cells, "operators": uses, "strip_note": note}


def _finalists(run: Run) -> list[dict[str, Any]]:
    rows = []
    before = run.baseline.arch
    for item in run.search.finalists:
        names = item.arch
        replaced = words.ABSENT
        if before is not None and len(before) == len(names):
            replaced = f"{sum(a != b for a, b in zip(names, before, strict=True))} of {len(names)}"
        rows.append(
            {
                "accuracy": words.percent(item.accuracy),
                "predicted": words.ms(item.predicted_ms),
                "measured": words.ms(item.measured_ms),
                "replaced": replaced,
                "title": " ".join(names),
                "pick": item.arch == run.search.arch,
            }
        )
    return rows


def _slots(run: Run, arch: tuple[str, ...], measured: float | None) -> dict[str, Any]:
    """Bars of every slot, and their sum: what the table predicts of this child against the network itself."""
    slots = run.slots_of(arch)
    costs = [cost for slot in slots for cost in (slot.incumbent_ms, slot.chosen_ms) if cost is not None]
    longest = max(costs, default=0.0)
    if longest <= 0:
        return {"slots": [], "sums": []}
    names = _operators(run)
    decimals = words.decimals(longest)
    rows = []
    for slot in slots:
        kept = slot.incumbent == slot.chosen
        rows.append(
            {
                "name": slot.name,
                "was": round(100 * max(slot.incumbent_ms or 0.0, 0.0) / longest, 1),
                "now": round(100 * max(slot.chosen_ms or 0.0, 0.0) / longest, 1),
                "colour": colour(slot.chosen, [*names, slot.chosen]),
                "text": "kept" if kept else _arrow(slot.incumbent_ms, slot.chosen_ms, decimals),
                "saved": "" if kept else _saved(slot.incumbent_ms, slot.chosen_ms, decimals),
                "title": f"{slot.name}: {slot.incumbent} {words.fixed(slot.incumbent_ms, decimals)} ms"
                + ("" if kept else f", chosen {slot.chosen} {words.fixed(slot.chosen_ms, decimals)} ms"),
            }
        )
    return {"slots": rows, "sums": _sums(run, slots, measured, decimals)}


def _sums(run: Run, slots: Sequence[SlotCost], measured: float | None, decimals: int) -> list[dict[str, str]]:
    if run.table is None or any(cost is None for slot in slots for cost in (slot.incumbent_ms, slot.chosen_ms)):
        return []
    before, after = (sum(getattr(slot, name) for slot in slots) for name in ("incumbent_ms", "chosen_ms"))
    lines = [("all slots", before, after)]
    known = [run.table.fixed_ms + total for total in (before, after)]
    if run.table.cache is not None:
        saved = [run.table.cache.saved_by([getattr(slot, name) for slot in slots]) for name in ("incumbent", "chosen")]
        if any(saved):
            lines.append(("saved in the caches", 0 - saved[0], 0 - saved[1]))
        known = [total - ms for total, ms in zip(known, saved, strict=True)]
    if (bend := run.table.bend) is not None:
        more = [bend.bent(total) - total for total in known]
        lines.append(("more than the sum", *more))
        known = [total + ms for total, ms in zip(known, more, strict=True)]
    lines.append(("with all else: predicted", *known))
    if measured is not None and run.measured.baseline is not None:
        lines.append(("measured", run.measured.baseline, measured))
    return [{"name": name, "text": _arrow(old, new, decimals), "saved": _saved(old, new, decimals)} for name, old, new in lines]


def _arrow(before: float | None, after: float | None, decimals: int) -> str:
    return f"{words.fixed(before, decimals)} \N{RIGHTWARDS ARROW} {words.fixed(after, decimals)}{words.SPACE}ms"


def _saved(before: float | None, after: float | None, decimals: int) -> str:
    return "" if before is None or after is None else words.signed(after - before, decimals, "ms")


def _bench_columns(run: Run) -> list[tuple[str, str, Any]]:
    return [column for column in words.BENCH_COLUMNS if any(getattr(row, column[1]) is not None for row in run.rows)]


def _bench(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Setting -> its rows."""
    columns = _bench_columns(run)
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in run.rows:
        values = [(getattr(row, key), show) for _, key, show in columns]
        cells = [words.ABSENT if value is None else show(value) for value, show in values]
        groups.setdefault(setting(row), []).append({"subject": role(row.subject), "cells": cells})
    return groups
