"""Results of benchmarks: what was measured of each network, and how two of them compare."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import structs

from nar_hw.errors import MeasurementError
from nar_hw.latency.contention import Contention
from nar_hw.records import Record, plain, read_record, write_record
from nar_hw.runtimes import RuntimeConfig

SCHEMA = 1
Floats = npt.NDArray[np.float64]
DRAWS = 2000
"""Of a bootstrap."""


class Conditions(Record, frozen=True, kw_only=True):
    """What a `RuntimeConfig` says, with nothing left to a default."""

    runtime: str
    precision: str
    batch: int
    threads: int
    device: str
    memory_format: str

    @property
    def config(self) -> RuntimeConfig:
        """As runtimes take it."""
        return RuntimeConfig(**{name: getattr(self, name) for name in RuntimeConfig.__struct_fields__})


class BenchRow(Conditions, frozen=True, kw_only=True):
    """One network under one runtime config."""

    subject: str
    p50_ms: float
    """Percentiles of single inferences of one batch, ms; without the first visit and the first run of each other visit."""
    p90_ms: float | None
    """None below 10 runs."""
    p99_ms: float | None
    """None below 100 runs."""
    n: int
    """Runs that the percentiles stand on."""
    images_per_s: float
    """Images per second: batch over the median."""
    rel: float | None
    """Half-width of the 95 % confidence interval of the median over rounds, relative to it."""
    noise_floor: float | None
    """Mean relative difference of two measurements with half of the rounds each; None below 4 rounds."""
    host_memory_mib: float | None = None
    """How far the process's memory rose at most while it was loaded and warmed up, MiB, the runtime's libraries included for the
    first of each runtime; None where the system does not tell."""
    gpu_memory_mib: float | None = None
    """GPU memory that loading and running it took, MiB, the runtime's libraries included for the first of each runtime; None on a
    CPU, or where the device does not tell (so all below)."""
    energy_mj_per_image: float | None = None
    """Energy of the whole device while it ran, mJ per image: of a GPU by NVML, of a CPU by RAPL where readable."""
    sm_clock_mhz: float | None = None
    round_ms: tuple[float, ...]
    """The median of each round, for comparisons."""
    windows: int = 1
    """Which window of rounds this is: those before were unstable (they drifted, or had two modes) and were thrown away."""
    contention: Contention | None = None
    """What else the machine did; None in older files and those of other devices."""
    session: str
    """Equal for all rows that were measured side by side."""
    fingerprint: Mapping[str, Any]
    """Device and conditions (latency/device.py)."""


class Comparison(Conditions, frozen=True, kw_only=True):
    """Two networks under one runtime config: the ratio of their times, round by round."""

    subject: str
    against: str
    ratio: float
    """Median over rounds of the subject's time over the other's; below 1 the subject is faster."""
    low: float
    """95 % interval of the ratio (bootstrap over rounds)."""
    high: float
    rounds: int


class LeftOut(Conditions, frozen=True, kw_only=True):
    """A runtime config that was asked for and could not be measured."""

    reason: str


class BenchFile(Record, frozen=True, kw_only=True):
    """bench.json."""

    rows: tuple[BenchRow, ...]
    comparisons: tuple[Comparison, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    def save(self, path: Path) -> None:
        """Write it, atomically."""
        write_record(path, self, schema=SCHEMA)

    @classmethod
    def load(cls, path: Path) -> "BenchFile":
        """Read it. Raises RunError in one line."""
        return read_record(path, cls, what="benchmark", schema=SCHEMA, fix="run nar-hw bench again")


def compare(rows: Sequence[BenchRow], against: Sequence[BenchRow], *, seed: int = 0) -> tuple[Comparison, ...]:
    """The ratio of ``rows`` (of one subject) to ``against`` (of another) under each config that both have.

    Raises MeasurementError when they share no config or were not measured side by side.
    """
    others = {row.config: row for row in against}
    pairs = [(row, others[row.config]) for row in rows if row.config in others]
    if not pairs:
        raise MeasurementError("networks must share a runtime config to be compared, but these share none: measure both together")
    if any(row.session != other.session for row, other in pairs):
        raise MeasurementError("times must be from one benchmark to be compared, but these are from two: measure both together")
    return tuple(_compared(row, other, seed) for row, other in pairs)


def to_csv(rows: Sequence[BenchRow]) -> str:
    """One line per row, with the device's name, the runtime's version and the date, and why the times are in doubt; empty where
    unknown."""
    names = [
        item.name for item in structs.fields(BenchRow) if item.name not in ("round_ms", "session", "fingerprint", "contention")
    ]
    known = {"device_name": "device", "runtime_version": "runtime_version", "driver": "driver", "date": "date"}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *known, "busy"])
    for row in rows:
        busy = "; ".join(row.contention.reasons) if row.contention else ""
        writer.writerow([*(getattr(row, name) for name in names), *(row.fingerprint.get(key) for key in known.values()), busy])
    return text.getvalue()


def noise_floor(round_ms: Floats, *, seed: int = 0) -> float | None:
    """How much two measurements of the same thing differ, relative: the mean over random halves of the rounds."""
    half = len(round_ms) // 2
    if half < 2:
        return None
    shuffled = np.random.default_rng(seed).permuted(np.tile(round_ms, (DRAWS, 1)), axis=1)  # (draws, rounds)
    first, second = np.median(shuffled[:, :half], axis=1), np.median(shuffled[:, half : 2 * half], axis=1)
    return float(np.mean(np.abs(first / second - 1)))


def _compared(row: BenchRow, other: BenchRow, seed: int) -> Comparison:
    ratios = np.array(row.round_ms) / np.array(other.round_ms)  # (rounds,)
    drawn = np.random.default_rng(seed).choice(ratios, (DRAWS, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return Comparison(
        subject=row.subject,
        against=other.subject,
        **plain(row.config),
        ratio=float(np.median(ratios)),
        low=float(low),
        high=float(high),
        rounds=len(ratios),
    )
