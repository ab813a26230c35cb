"""The latency table: what each operator of each slot costs on one device, and the predictions made from it.

Shape legend: an arch holds one operator code per slot; a batch of archs is (N, slots); a matrix is (slots, codes); a latency is
the least of R sums: one, or two where small networks stay in the caches.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, overload

import numpy as np
import numpy.typing as npt
from msgspec import Meta, structs

from nar_hw._version import __version__
from nar_hw.errors import MissingEntryError, SpaceError, TableError, TableMismatchError, UserError, unknown_name
from nar_hw.files import write_text
from nar_hw.latency.contention import Contention
from nar_hw.latency.record import (
    SCHEMA,
    Cache,
    Energy,
    Entry,
    Memory,
    Method,
    Milliseconds,
    TableSlot,
    Validation,
    oldest,
    schema_2,
    to_text,
    upgraded,
)
from nar_hw.models.info import ModelInfo
from nar_hw.records import Record, as_record, changes, command, is_whole, plain, read_record, replace
from nar_hw.runtimes.config import RuntimeConfig
from nar_hw.space.spec import INCUMBENT, Arch
from nar_hw.space.sums import Bend, Sums
from nar_hw.userfile import is_file_name

if TYPE_CHECKING:
    from torch import Tensor

    from nar_hw.space.space import SearchSpace

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[Any]

PERCENTILES = (50, 90)
_AGAIN = "measure it again with nar-hw profile"
_CHUNK = 1 << 15  # archs predicted at a time: their codes stay in the cache


class LatencyTable(Record, frozen=True, kw_only=True, dict=True):
    """Latency of every child of one search space: ``fixed_ms`` plus one entry per operator call, less what a cache saves, or bent
    where times grow faster than that."""

    nar_hw: str = __version__
    """Version that measured it."""
    network: ModelInfo
    """What was measured: the network (its head is part of ``fixed_ms``) and what was asked of its space."""
    operators: tuple[str, ...]
    """Code -> name, as in the space that was profiled."""
    fingerprint: dict[str, Any]
    """Device, runtime and conditions (latency/device.py)."""
    method: Method
    fixed_ms: float
    """Everything outside the slots."""
    incumbent_ms: Milliseconds
    """The network itself, measured end to end."""
    slots: tuple[TableSlot, ...]
    entries: tuple[Entry, ...]
    cache: Cache | None = None
    """What small networks save; None where no cache shows in the times."""
    bend: Bend | None = None
    """How much faster than sums the latencies grow; None where that does not show in the times."""
    energy: Energy | None = None
    """What inferences cost in energy (latency/energy.py); None where that was not measured."""
    memory: Memory | None = None
    """What children take of the memory (latency/memory.py); None where that cannot be read."""
    validation: Validation | None = None
    notes: tuple[str, ...] = ()
    contention: Contention | None = None
    """What else the machine did during the profile; None in older tables and those of other devices."""
    p90: Annotated[float, Meta(ge=1)] | None = None
    """90th percentile of a network's runs over their median: the median over the children; None in older tables."""
    percentile: Literal[90] | None = None
    """Which percentile of single runs its milliseconds are; None for the median, which is what is measured."""

    def __post_init__(self) -> None:
        """Raises TableError where the parts do not fit together."""
        names = [slot.name for slot in self.slots]
        if not names or len(set(names)) < len(names):
            raise TableError(f"slots must be a list of slots with distinct names, but got {names}: {_AGAIN}")
        if len(set(self.operators)) < len(self.operators):
            raise TableError(f"operators must be distinct names, but got {list(self.operators)}: {_AGAIN}")
        for slot in self.slots:
            for name, calls in slot.candidates.items():
                if name not in self.operators:
                    raise TableError(f"a candidate of slot {slot.name} must be one of the operators, but got {name!r}: {_AGAIN}")
                if max(calls) >= len(self.entries):
                    raise TableError(
                        f"calls of {name} in slot {slot.name} must be indices of the {len(self.entries)} entries, but got "
                        f"{list(calls)}: {_AGAIN}"
                    )
            if slot.incumbent not in slot.candidates:
                raise TableError(
                    f"the incumbent of slot {slot.name} must be one of its candidates ({', '.join(slot.candidates)}), but got "
                    f"{slot.incumbent!r}: {_AGAIN}"
                )
        known = None if self.cache is None else [set(slot) for slot in self.cache.slots]
        if known is not None and known != [set(slot.candidates) for slot in self.slots]:
            raise TableError(f"the cache must know the parameters of each slot's candidates, but knows others: {_AGAIN}")
        if self.energy is not None and (count := len(self.energy.entries_mj)) != len(self.entries):
            raise TableError(f"energies must be those of the {len(self.entries)} entries, but there are {count}: {_AGAIN}")
        if self.bend is not None and (least := float(self._known.fixed[0] + self._known.reserve[0, 0])) < self.bend.lowest_ms:
            raise TableError(
                f"latencies must grow with their sums, which begin at {least:.4g} ms, but the bend says so from "
                f"{self.bend.lowest_ms:.4g} ms on only: {_AGAIN}"
            )
        if self.bend is not None and self.cache is not None:
            raise TableError(f"a table must have a cache or a bend, but has both: {_AGAIN}")
        if (fastest := self.bounds()[0]) <= 0:
            raise TableError(f"the fastest arch must take more than 0 ms, but takes {fastest:.4g} ms: {_AGAIN}")

    @classmethod
    def load(cls, path: Path | str) -> "LatencyTable":
        """Read a table. Raises TableError, in one line, for a file that is not a whole and valid table."""
        return read_record(Path(path), cls, what="latency table", schema=SCHEMA, error=TableError, fix=_AGAIN, upgrade=upgraded)

    def save(self, path: Path | str) -> None:
        """Write the table atomically, one entry a line."""
        write_text(Path(path), to_text(self.content()))

    def content(self) -> dict[str, Any]:
        """What the file says, as JSON values."""
        entries = [{**plain(entry), "spec": changes(entry.spec)} for entry in self.entries]
        return oldest({"schema": SCHEMA, **plain(self), "method": plain(changes(self.method)), "entries": entries})

    def at_percentile(self, percentile: int) -> "LatencyTable":
        """This table with 50th or 90th percentiles of single runs as its milliseconds.

        Raises TableError where it does not know them, and UserError for another percentile.
        """
        if percentile not in PERCENTILES:
            raise UserError(f"percentile must be one of {', '.join(map(str, PERCENTILES))}, but got {percentile}")
        if percentile == (self.percentile or 50):
            return self
        self.require_medians()
        if self.p90 is None:
            raise TableError(
                f"the latency table must say how far the 90th percentile is above the median, but does not: {_AGAIN}"
            )
        factor = self.p90
        times = ("ms", "p10", "p90")
        return replace(
            self,
            percentile=90,
            fixed_ms=factor * self.fixed_ms,
            incumbent_ms=factor * self.incumbent_ms,
            entries=tuple(replace(entry, **{name: factor * getattr(entry, name) for name in times}) for entry in self.entries),
            cache=None if self.cache is None else replace(self.cache, ms_per_million=factor * self.cache.ms_per_million),
            bend=None if self.bend is None else Bend(per_ms=self.bend.per_ms / factor, at_ms=self.bend.at_ms * factor),
            validation=None,
        )

    def require_medians(self) -> None:
        """Raises TableError for a table of other percentiles."""
        if self.percentile is not None:
            raise TableError(
                f"a table of medians is needed, but this one holds {self.percentile}th percentiles: take the table it was made of"
            )

    @property
    def config(self) -> RuntimeConfig:
        """The conditions under which it was measured. Raises TableError where the fingerprint does not say them."""
        mark = self.fingerprint
        fields = [field.name for field in structs.fields(RuntimeConfig) if field.name != "device" and field.name in mark]
        value = {**{name: mark[name] for name in fields}, "device": "cuda" if mark.get("kind") == "cuda" else "cpu"}
        return as_record(value, RuntimeConfig, where="fingerprint", error=TableError, fix=_AGAIN)

    @property
    def incumbent(self) -> Arch:
        """The arch that is the network itself."""
        return tuple(self.operators.index(slot.incumbent) for slot in self.slots)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of all that predictions and their conditions depend on: all but validation, notes and contention."""
        content = {
            key: value for key, value in schema_2(self.content()).items() if key not in ("validation", "notes", "contention")
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def matrix(self) -> Floats:
        """(slots, codes) milliseconds, without cache and bend; NaN where the table has no entry."""
        return self._matrix([entry.ms for entry in self.entries])

    def _matrix(self, costs: Sequence[float]) -> Floats:
        """(slots, codes) sums of what each entry costs."""
        matrix = np.full((len(self.slots), len(self.operators)), np.nan)
        for row, slot in enumerate(self.slots):
            for operator, calls in slot.candidates.items():
                matrix[row, self.operators.index(operator)] = sum(costs[index] for index in calls)
        matrix.setflags(write=False)
        return matrix

    @property
    def energies(self) -> Sums:
        """Millijoules of an image as a sum: NaN where the table has no entry. Raises TableError where it knows no energies."""
        if self.energy is None:
            raise TableError(
                "a limit of energy needs a table that knows energies, but this one does not: "
                "measure them with nar-hw table energy"
            )
        return Sums.one(self._matrix(self.energy.entries_mj), self.energy.fixed_mj)

    @cached_property
    def sums(self) -> Sums:
        """The latency as the least of R sums, (R, slots, codes): NaN where the table has no entry."""
        if self.cache is None:
            return Sums(entries=self.matrix[None], fixed=np.array([self.fixed_ms]), bend=self.bend)
        # fixed + entries - rate * max(0, limit - params) is the lesser of fixed + entries and of this plus rate * params
        params = np.full_like(self.matrix, np.nan)
        for row, slot in zip(params, self.cache.slots, strict=True):
            for operator, count in slot.items():
                row[self.operators.index(operator)] = count
        rate = self.cache.ms_per_million / 1e6
        cached = self.fixed_ms - rate * (self.cache.params - self.cache.fixed)
        return Sums(entries=np.stack([self.matrix, self.matrix + rate * params]), fixed=np.array([self.fixed_ms, cached]))

    @overload
    def predict(self, archs: "Tensor") -> "Tensor": ...
    @overload
    def predict(self, archs: Codes | Sequence[Sequence[int]]) -> Floats: ...
    @overload
    def predict(self, archs: Sequence[int]) -> float: ...
    def predict(self, archs: "Tensor | Codes | Sequence[Sequence[int]] | Sequence[int]") -> "Tensor | Floats | float":
        """Milliseconds of one arch (a float) or of a batch (N, slots) (an array (N,), or a tensor for a tensor).

        Raises:
            SpaceError: wrong number of codes, or a code that is not in the vocabulary.
            MissingEntryError: the table has no entry for an operator that is used.
        """
        if type(archs).__module__.partition(".")[0] == "torch":  # arrays and lists need no torch
            import torch

            assert isinstance(archs, torch.Tensor)
            return torch.from_numpy(np.asarray(self.predict(archs.detach().cpu().numpy()))).to(archs.device)
        codes: Codes = np.asarray(archs)
        if codes.ndim not in (1, 2) or codes.shape[-1] != len(self.slots):
            raise SpaceError(f"archs must be (slots,) or (N, slots) with {len(self.slots)} slots, but got shape {codes.shape}")
        if codes.dtype.kind not in "iu":
            raise SpaceError(f"archs must hold integer codes, but got {codes.dtype}")
        predicted = self._predicted(np.atleast_2d(codes))
        return float(predicted[0]) if codes.ndim == 1 else predicted

    def _predicted(self, codes: Codes) -> Floats:
        vocabulary = len(self.operators)
        if codes.size and not (codes.min() >= 0 and codes.max() < vocabulary):
            wrong = codes[(codes < 0) | (codes >= vocabulary)][0]
            raise SpaceError(f"operator codes must lie between 0 and {vocabulary - 1}, but got {wrong}")
        predicted: Floats = np.empty(len(codes))
        flat = self.sums.entries.reshape(len(self.sums), -1)
        rows = np.arange(len(self.slots), dtype=np.intp) * vocabulary
        for start in range(0, len(codes), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            places = codes[chunk] + rows
            sums = [own.take(places).sum(axis=1) + fixed for own, fixed in zip(flat, self.sums.fixed, strict=True)]
            predicted[chunk] = self.sums.bent(np.minimum.reduce(sums))  # (n, slots) -> (n,)
        if np.isnan(predicted).any():
            cells = np.isnan(self.matrix)
            used = np.zeros_like(cells)
            used[np.broadcast_to(np.arange(len(self.slots)), codes.shape), codes] = True
            raise self.missing(used & cells)
        return predicted

    def missing(self, cells: npt.NDArray[np.bool_]) -> MissingEntryError:
        """The error that lists the entries wanted at ``cells`` (slots, codes) and the command that measures them."""
        wanted = {
            slot.name: [self.operators[code] for code in np.flatnonzero(row)]
            for slot, row in zip(self.slots, cells, strict=True)
            if row.any()
        }
        return self._missing(wanted)

    def _missing(self, wanted: Mapping[str, Sequence[str]]) -> MissingEntryError:
        listed = "; ".join(f"{slot}: {', '.join(names)}" for slot, names in wanted.items())
        names = dict.fromkeys(name for slot in self.slots for name in slot.candidates)
        names.update(dict.fromkeys(name for missing in wanted.values() for name in missing))
        count = sum(map(len, wanted.values()))
        line = self.profile_command(sorted(names, key=lambda name: self.operators.index(name) if name in self.operators else -1))
        return MissingEntryError(
            f"the latency table has no entry for {count} operator{'s' * (count > 1)} ({listed}): measure with `{line}`"
        )

    def profile_command(self, operators: Iterable[str]) -> str:
        """The command that adds ``operators`` to this table; where it is no sum alone, the one that measures all anew."""
        own = {name.rpartition(":")[2]: name for name in self.network.operators or () if is_file_name(name)}
        asked = tuple(own.get(name, name) for name in operators if name != INCUMBENT)
        words = [*replace(self.network, operators=asked).options(), *self.config.options()]
        fill = ["--fill"] if self.additive else []
        return command("profile", *words, *fill, "-o", "table.json")

    def parse(self, text: str) -> Arch:
        """An arch from operator codes or names, separated by commas; "incumbent" is the network itself.

        Raises UnknownNameError.
        """
        if text == INCUMBENT:
            return self.incumbent
        codes = []
        for item in (item.strip() for item in text.split(",")):
            if not is_whole(item) and item not in self.operators:
                raise unknown_name("operator", item, self.operators)
            codes.append(int(item) if is_whole(item) else self.operators.index(item))
        return tuple(codes)

    @property
    def additive(self) -> bool:
        """Whether its latencies are sums, with neither cache nor bend."""
        return self.cache is None and self.bend is None

    def bounds(self) -> tuple[float, float]:
        """(fastest, slowest) milliseconds of any arch; exact, since the latency is the least of sums over slots, or bent."""
        return self._known.least, self._known.most

    @property
    def _known(self) -> Sums:
        """`sums`, infinite where the table has no entry."""
        return dataclasses.replace(self.sums, entries=np.where(np.isnan(self.sums.entries), np.inf, self.sums.entries))

    def ties(self) -> dict[str, list[tuple[str, str]]]:
        """Slot -> pairs of operators that are equal within noise: they differ by less than their 95 % intervals together.

        Where there is a cache they must be equal in networks that stay in it too.
        """
        tied: dict[str, list[tuple[str, str]]] = {}
        for row, slot in enumerate(self.slots):
            calls = {name: [self.entries[index] for index in indices] for name, indices in slot.candidates.items()}
            # The calls of one operator may share an entry, so their errors add up.
            width = {name: sum((entry.rel or 0.0) * entry.ms for entry in entries) for name, entries in calls.items()}
            costs = {name: self.sums.entries[:, row, self.operators.index(name)] for name in calls}  # (R,)
            pairs = [
                (a, b) for a, b in combinations(calls, 2) if np.abs(costs[a] - costs[b]).max() <= math.hypot(width[a], width[b])
            ]
            if pairs:
                tied[slot.name] = pairs
        return tied

    def check(
        self,
        space: "SearchSpace",
        fingerprint: Mapping[str, Any] | None = None,
        *,
        model: str | None = None,
        allow_mismatch: bool = False,
    ) -> list[str]:
        """Whether the table speaks of ``space`` and, where given, of this device and model; it may hold more operators.

        Args:
            space: the search space that is to be predicted.
            fingerprint: of the device and conditions at hand (latency/device.py).
            model: the model's name.
            allow_mismatch: return differences of device, conditions and model instead of raising them.

        Returns:
            The differences that were allowed and what could not be compared, one text each.

        Raises:
            TableMismatchError: names every field that differs, with both values.
            MissingEntryError: the space has operators for which the table has no entry.
        """
        if lacking := self.lacking(space):
            raise self._missing(lacking)
        differences = [] if model in (None, self.network.name) else [f"model is {self.network.name} in the table, {model} here"]
        return self.check_conditions(fingerprint, differences, allow_mismatch=allow_mismatch)

    def check_conditions(
        self, fingerprint: Mapping[str, Any] | None, differences: Sequence[str] = (), *, allow_mismatch: bool = False
    ) -> list[str]:
        """The part of `check` that is about the device and its conditions; ``differences`` are added to what it finds."""
        found, unknown = list(differences), []
        if fingerprint is not None:
            from nar_hw.latency.device import differing

            for name in differing(self.fingerprint, fingerprint):
                there, here = self.fingerprint.get(name), fingerprint.get(name)
                if name == "runtime_version" and here is None:
                    unknown.append(f"{name} is {there} in the table and cannot be compared: the runtime is not installed here")
                else:
                    found.append(f"{name} is {there} in the table, {here} here")
        if found and not allow_mismatch:
            raise TableMismatchError(
                f"the latency table was measured under other conditions: {'; '.join(found + unknown)}: "
                "measure a table here with nar-hw profile, or pass --allow-mismatch"
            )
        return found + unknown

    def lacking(self, space: "SearchSpace") -> dict[str, list[str]]:
        """Slot -> operators of ``space`` for which the table has no entry. Raises TableMismatchError for another network."""
        structure = self._structure(space)
        if structure:
            raise TableMismatchError(
                f"the latency table was measured for another search space: {'; '.join(structure)}: "
                "use the table's model and slots, or measure this one with nar-hw profile"
            )
        wanted = {
            slot.name: [space.operators[code] for code in slot.candidates if space.operators[code] not in own.candidates]
            for slot, own in zip(space.slots, self.slots, strict=True)
        }
        return {slot: names for slot, names in wanted.items() if names}

    def _structure(self, space: "SearchSpace") -> list[str]:
        differences = [
            f"{name} is {mine} in the table, {theirs} here"
            for name, mine, theirs in (
                ("input", "x".join(map(str, self.network.input_shape)), "x".join(map(str, space.input_shape))),
                ("number of classes", self.network.num_classes, space.num_classes),
                ("manner", self.network.manner, space.manner),
                ("skips", "fixed", "free" if any(space.free_skips) else "fixed"),
                ("number of slots", len(self.slots), len(space.slots)),
            )
            if mine != theirs
        ]
        for own, slot in zip(self.slots, space.slots, strict=False):
            if own.name != slot.name:
                differences.append(f"slot is {own.name} in the table, {slot.name} here")
                break
            for code in slot.candidates:
                name = space.operators[code]
                if name not in own.candidates:
                    continue
                if self.operators.index(name) != code:
                    differences.append(f"code of operator {name} is {self.operators.index(name)} in the table, {code} here")
                    break
                mine = [self.entries[index].spec for index in own.candidates[name]]
                theirs = [spec for site in slot.sites for spec in space.site_specs(site, code)]
                if mine != theirs:
                    shown = [" ".join(json.dumps(changes(spec)) for spec in specs) for specs in (mine, theirs)]
                    differences.append(f"{name} in {slot.name} is {shown[0]} in the table, {shown[1]} here")
                    break
            if len(differences) > 3:
                break
        return differences


def shipped_tables() -> list[Path]:
    """The tables that come with nar_hw."""
    folder = files("nar_hw.latency_tables")
    return sorted(Path(str(item)) for item in folder.iterdir() if item.name.endswith(".json"))
