"""The latency table's file: its parts, its older schemas, its layout. latency_tables/README.md describes it for its readers."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from msgspec import Meta

from nar_hw.latency.contention import Contention
from nar_hw.records import Record
from nar_hw.space.spec import INCUMBENT, OpSpec

SCHEMA = 6
"""The newest that is read. A table without what came later is written as schema 5 or 4, which it is to the byte."""

Milliseconds = Annotated[float, Meta(gt=0)]
Millijoules = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=0)]


class Entry(Record, frozen=True, kw_only=True):
    """What one operator spec costs inside this network."""

    spec: OpSpec
    ms: Milliseconds
    """Milliseconds of one call."""
    p10: Milliseconds
    """Tenth percentile over contexts and rounds, ms."""
    p90: Milliseconds
    """Ninetieth percentile, ms."""
    n: Count
    """How many measurements ``ms`` stands on."""
    rel: Annotated[float, Meta(ge=0)] | None
    """Half-width of the 95 % confidence interval of ``ms``, relative to it; None for a single context."""


class TableSlot(Record, frozen=True, kw_only=True):
    """One slot as the table knows it."""

    name: str
    incumbent: str
    """The operator that leaves the network as it is."""
    candidates: dict[str, Annotated[tuple[Count, ...], Meta(min_length=1)]]
    """Operator -> index of the entry of each of its calls (of all sites of the slot) in one forward pass."""


class Cache(Record, frozen=True, kw_only=True):
    """What small networks save: one with few enough parameters finds them in the processor's caches from run to run.

    Then the latency is not a sum over slots any more, but the lesser of two.
    """

    params: Annotated[int, Meta(gt=0)]
    """Networks with fewer parameters than this save."""
    ms_per_million: Milliseconds
    """What they save for each million parameters that they have less."""
    fixed: Count
    """Parameters outside the slots."""
    slots: tuple[dict[str, Count], ...]
    """Of each slot, operator -> parameters."""

    def saved_ms(self, params: float) -> float:
        """What a network with so many parameters saves."""
        return self.ms_per_million * max(0.0, self.params - params) / 1e6

    def saved_by(self, operators: Sequence[str]) -> float:
        """What the child with these operators, one per slot, saves in milliseconds."""
        return self.saved_ms(self.fixed + sum(slot[name] for slot, name in zip(self.slots, operators, strict=True)))


class Energy(Record, frozen=True, kw_only=True):
    """What inferences cost in energy, of the whole CPU or GPU: a sum like the latency."""

    fixed_mj: Annotated[float, Meta(ge=0)]
    """Millijoules of an image outside the slots."""
    incumbent_mj: Millijoules
    """The network itself, measured."""
    entries_mj: tuple[Millijoules, ...]
    """Of one call of each entry."""
    children: Count
    """Whole children measured."""
    held_out: Count
    """Children that were measured and not fitted."""
    mape: float | None
    """Mean absolute error of the predictions for these, percent; None without any."""


class Memory(Record, frozen=True, kw_only=True):
    """By how much the memory in use rises while a child is loaded and run: a straight line in its parameters."""

    fixed_mib: Annotated[float, Meta(ge=0)]
    """MiB that all children take."""
    mib_per_million: Annotated[float, Meta(gt=0)]
    """MiB for each million parameters."""
    incumbent_mib: Annotated[float, Meta(gt=0)]
    """The network itself, measured."""
    children: Count
    """Whole children measured."""
    mape: float
    """Mean absolute error of each when the others are fitted, percent."""

    def mib(self, params: float) -> float:
        """What a child with so many parameters takes."""
        return self.fixed_mib + self.mib_per_million * params / 1e6


class Filled(Record, frozen=True, kw_only=True):
    """Operators that were added to a table."""

    operators: tuple[str, ...]
    date: str
    children: Count
    rounds: Count
    seconds: float


class Method(Record, frozen=True, kw_only=True):
    """How a table was measured."""

    name: str
    """One of nar_hw.latency.profiler.METHODS."""
    children: Count
    """Whole children measured."""
    rounds: Count
    """Visits of each."""
    seconds: float
    seed: int
    """Decides the design."""
    clock: str | None = None
    """What the times were read from."""
    replicates: int | None = None
    """How often the Latin design is repeated, where there is one."""
    scale: float | None = None
    overhead_ms: float | None = None
    """What the profiler costs per node; see `nar_hw.latency.estimate.calibrate`."""
    residual_mape: float | None = None
    """What least squares left over, in percent."""
    filled: tuple[Filled, ...] = ()


class Pair(Record, frozen=True, kw_only=True):
    """A held-out child."""

    arch: tuple[str, ...]
    """Operator names, one per slot."""
    predicted_ms: Milliseconds
    measured_ms: Milliseconds
    p90_ms: Milliseconds | None = None
    """Measured 90th percentile of single runs."""


class Reloaded(Record, frozen=True, kw_only=True):
    """Held-out children that were loaded and measured a second time, after all others, beside the network itself loaded anew."""

    children: Count
    rounds: Count
    apart_s: float
    """Seconds between the two measurements."""
    mape: float
    """Percent between them: the noise that a user meets who measures again."""
    max_error: float
    """Percent."""


class Validation(Record, frozen=True, kw_only=True):
    """Predictions against measurements on children that the profile has not seen."""

    children: Count
    rounds: Count
    seed: int
    seconds: float
    floor_mape: float
    """Percent by which another measurement of so many rounds would differ, by the odd and the even rounds: no prediction is much
    better. Older tables say by how much these halves differ, 1.4 times as much."""
    floor_spearman: float
    mape: float
    """Mean absolute error of the predictions, percent."""
    max_error: float
    """Percent."""
    within_5: float
    """Share of the children that are predicted within 5 %."""
    within_10: float
    spearman: float
    """Rank correlation of predictions and measurements."""
    kendall: float
    speed: float
    """Time of the network itself / its time in the table."""
    pairs: tuple[Pair, ...]
    reloaded: Reloaded | None = None
    """The noise floor between separate sessions; None where it was not measured."""
    contention: Contention | None = None
    """What else the machine did."""
    p90_mape: float | None = None
    """Mean absolute error of the predicted 90th percentiles, percent."""


def upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """Older schemas as today's: schema 1 did not say what had been asked, schema 2 had the network's fields one by one."""
    schema = content.pop("schema")
    if schema == 1:
        # All its candidates had been asked for, of all convolutions, under the paper's rule.
        used = {name for slot in content.get("slots") or () if isinstance(slot, dict) for name in slot.get("candidates") or ()}
        operators = [name for name in content.get("operators") or () if name in used and name != INCUMBENT]
        content["choices"] = {"operators": operators, "slots": None, "limit_params": True}
    if schema < 3:
        moved = {new: content.pop(old) for new, old in MOVED.items() if old in content}
        choices = content.pop("choices", None)
        content["network"] = {**moved, **(choices if isinstance(choices, dict) else {"choices": choices})}
    return content


MOVED = {"name": "model", "input_shape": "input_shape", "num_classes": "num_classes", "manner": "manner"}
"""Field of the network -> its name in schema 2."""


def schema_2(content: Mapping[str, Any]) -> dict[str, Any]:
    """Today's content as schema 2, of which a table's hash is made: files that name a hash stay true."""
    choices = dict(content["network"])
    moved = {old: choices.pop(new) for new, old in MOVED.items()}
    kept = {
        key: value for key, value in content.items() if key not in ("network", *LATER) or (key in LATER and value is not None)
    }
    return {**kept, "schema": 2, **moved, "choices": choices}


NEW = (("bend",), ("cache", "energy", "memory"))
"""Fields of schemas 6 and 5."""


def oldest(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a table as schema 5 or 4 where it has nothing that was not in it."""
    for schema, names in zip((5, 4), NEW, strict=True):
        if any(content[name] is not None for name in names):
            break
        content = {key: value for key, value in {**content, "schema": schema}.items() if key not in names}
    return content


LATER = ("p90", "percentile", *NEW[0], *NEW[1])
"""Fields that predictions depend on and that older tables do not have."""


def to_text(content: Mapping[str, Any]) -> str:
    """``content`` as JSON with one slot, entry, validation pair or other item a line."""
    lines = [f" {json.dumps(key)}: {_block(value, 1)}" for key, value in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _block(value: Any, depth: int) -> str:
    pad = " " * (depth + 1)
    if isinstance(value, dict) and value and depth < 3 and len(_line(value)) >= 100:
        items = [f"{pad}{json.dumps(key)}: {_block(item, depth + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + " " * depth + "}"
    if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(pad + _line(item) for item in value) + "\n" + " " * depth + "]"
    return _line(value)


def _line(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)
