"""Many searches or refinements from one plan."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nar_hw.cli.app import LONG, WHERE, DataRoot, Json, Out, Resume, app, console, emit, grid, progress_bar
from nar_hw.cli.values import whole
from nar_hw.errors import UserError
from nar_hw.records import plain

SHOWN = 40
"""Rows that the terminal shows."""


@app.command()
def sweep(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="A TOML file of networks, data, tables, targets, strategies, seeds.")
    ],
    out: Out,
    workers: Annotated[
        int | None,
        whole(
            "--workers",
            "Runs at once on this machine, more than 1 on Ray; default: as many as its CPUs allow, without Ray 1.",
            1,
            1024,
            panel=WHERE,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Of a Ray cluster that runs already, or auto.", rich_help_panel=WHERE),
    ] = None,
    check: Annotated[
        bool, typer.Option("--plan", help="Check the plan, print how much there is to do, and stop.", rich_help_panel=LONG)
    ] = False,
    data_root: DataRoot = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Search, or refine, every combination of networks, data, tables, targets, strategies and seeds in a plan.

    Example: nar-hw sweep plan.toml --out sweeps/x
    """
    from nar_hw.sweep.plan import read_plan

    asked = read_plan(plan)
    if workers is not None and address is not None:
        raise UserError(f"--workers are of this machine, but got --address {address}: the cluster says how many run at once")
    if check:
        counts = asked.counts
        line = f"{counts['cells']} cells in {counts['runs']} runs, {counts['profiles']} tables to measure"
        emit(as_json, counts, lambda: console.print(line))
        return
    from nar_hw.sweep.job import metric_of
    from nar_hw.sweep.run import CSV, PAGE, run_sweep
    from nar_hw.sweep.workers import chosen

    with progress_bar() as progress, chosen(asked.plan.resources, workers, address, progress.console.print) as execute:
        counts = asked.counts
        bar = progress.add_task("cells", total=counts["runs"] + counts["profiles"])
        outcome = run_sweep(
            asked, out, resume=resume, execute=execute, data_root=data_root, done=lambda job, answer: progress.advance(bar)
        )
    value: dict[str, Any] = {
        "out": str(out),
        "report": str(out / PAGE),
        "csv": str(out / CSV),
        **outcome.counts,
        "cells": plain(list(outcome.cells)),
    }

    def show() -> None:
        rows = [
            (
                cell.network,
                cell.data,
                " ".join(filter(None, (cell.device, cell.runtime, cell.precision))),
                cell.target,
                f"{cell.strategy} {cell.seed}",
                cell.status,
                "" if cell.ms is None else f"{cell.ms:.4g} ms",
                "" if cell.accuracy is None else f"{100 * cell.accuracy:.2f} %",
            )
            for cell in outcome.cells[:SHOWN]
        ]
        titles = ("network", "data", "device", "target", "strategy", "status", "latency", metric_of(outcome.cells))
        console.print(grid(titles, rows))
        for reason in dict.fromkeys(cell.reason for cell in outcome.cells[:SHOWN] if cell.status == "failed"):
            console.print(f"failed: {reason}", soft_wrap=True)
        more = len(outcome.cells) - SHOWN
        counts = ", ".join(f"{number} {status}" for status, number in outcome.counts.items())
        console.print(f"{counts}{f'; {more} more rows in {out / CSV}' if more > 0 else ''}", soft_wrap=True)
        console.print(f"report {out / PAGE}\ntable {out / CSV}", soft_wrap=True)

    emit(as_json, value, show)
