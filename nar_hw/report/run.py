"""What a report is made of: everything that the files of one run say.

An absent value is None, never zero. Accuracies are in [0, 1], times in ms, FLOPs are multiply-adds of one image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Network:
    """The baseline or the child; accuracies in [0, 1], FLOPs = multiply-adds of one image."""

    arch: tuple[str, ...] | None = None
    valid_accuracy: float | None = None
    test_accuracy: float | None = None
    params: float | None = None
    flops: float | None = None
    pool_ops: float | None = None
    predicted_ms: float | None = None
    measured_ms: float | None = None
    curve: tuple[dict[str, float], ...] = ()
    """One item per epoch of its training."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A child that the search scored."""

    arch: tuple[str, ...] | None
    accuracy: float
    predicted_ms: float | None
    measured_ms: float | None


@dataclass(frozen=True, kw_only=True)
class SlotCost:
    """What the operators of one slot cost in the latency table, in ms; None where the table has no entry."""

    name: str
    incumbent: str
    chosen: str
    incumbent_ms: float | None
    chosen_ms: float | None


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Held-out children of the table; the noise floor is the mean error in % of measuring the same children twice."""

    predicted_ms: tuple[float, ...] = ()
    measured_ms: tuple[float, ...] = ()
    floor_percent: float | None = None
    mape_percent: float | None = None
    spearman: float | None = None


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One row of a benchmark."""

    subject: str
    setting: str
    """Runtime, precision, batch and threads, in words."""
    values: Mapping[str, float]
    """By the names of the fields of `nar_hw.bench.benchmark.BenchRow`."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two subjects of one benchmark: the ratio of their latencies with its 95 % interval."""

    subject: str
    against: str
    setting: str
    ratio: float
    low: float
    high: float
    rounds: float | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that the files of one run folder say."""

    folder: Path
    model: str
    input_shape: tuple[int, ...]
    child: Network
    baseline: Network
    target_ms: float | None
    scored: tuple[Scored, ...] = ()
    finalists: tuple[Scored, ...] = ()
    front: tuple[Scored, ...] = ()
    history: tuple[dict[str, float], ...] = ()
    slots: tuple[SlotCost, ...] = ()
    validation: Validation | None = None
    bench: tuple[Bench, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    measured_by: str | None = None
    """Where the measured latencies come from."""
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Heading -> name -> value: device, versions, settings, bundle."""
    commands: tuple[str, ...] = ()
    """How to make this run again."""
    missing: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Part of the report -> what is not there, and the command that makes it."""
