"""Stages doctor and tables: what works here and how far two measurements of the same differ; latency tables."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.gpu.plan import COMPILED, Session, TableJob, called, short
from benchmarks.gpu.runner import Piece
from nar_hw.bench.benchmark import bench
from nar_hw.bench.rows import BenchFile, compare
from nar_hw.latency.device import device_slug
from nar_hw.latency.profiler import profile
from nar_hw.records import changes, plain
from nar_hw.runtimes import survey

LIMITS = {"mape": (2.0, "<="), "within_10": (1.0, ">="), "spearman": (0.995, ">=")}
"""What a table is asked for."""


def doctor(session: Session) -> list[Piece]:
    return [
        Piece("runtimes", lambda: {"runtimes": [item for item in survey() if item["name"] != "fake"]}),
        *(Piece(f"noise {called(config)}", lambda config=config: _noise(session, config)) for config in session.plan.noise),
    ]


def _noise(session: Session, config: Any) -> dict[str, Any]:
    """A network beside a copy of itself: the ratio of their times should be 1, and noise_floor is by how much halves differ."""
    torch.manual_seed(0)
    info = session.plan.network
    network = info.build()
    rows = bench(
        {"network": network, "copy": network}, input_shape=info.input_shape, configs=[config], rounds=session.plan.rounds
    )
    return {"network": short(info), **plain(BenchFile(rows=tuple(rows), comparisons=compare(rows[:1], rows[1:])))}


def tables(session: Session) -> list[Piece]:
    return [Piece(job.key, lambda job=job: _table(session, job)) for job in session.plan.tables]


def _table(session: Session, job: TableJob) -> dict[str, Any]:
    """Measured, validated and written beside the results; a profile that was stopped goes on from its journal."""
    torch.manual_seed(0)
    table = profile(
        job.network.space(),
        config=job.config,
        model_name=job.network.name,
        method=job.method,
        validate=session.plan.held_out,
        # What loads slowly takes more calls than one: it is never cut short, only stopped.
        budget_s=None if job.config.runtime in COMPILED else session.plan.table_s,
        journal=session.work / "profiles" / f"{re.sub('[^a-z0-9]+', '-', job.key)}.part",
        resume=True,
    )
    name = f"{device_slug(table.fingerprint)}__{job.stem}.json"
    table.save(session.out / "latency_tables" / name)
    assert table.validation is not None
    validation = {key: value for key, value in plain(table.validation).items() if key != "pairs"}
    return {
        "file": name,
        "incumbent_ms": table.incumbent_ms,
        "range_ms": list(table.bounds()),
        "method": plain(changes(table.method)),
        "validation": validation,
        "notes": list(table.notes),
        "targets": targets(validation),
    }


def targets(validation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Whether a table is as good as it was asked to be."""
    return {
        f"{name} {sign} {limit:g}": {
            "value": validation[name],
            "holds": validation[name] <= limit if sign == "<=" else validation[name] >= limit,
        }
        for name, (limit, sign) in LIMITS.items()
    }
