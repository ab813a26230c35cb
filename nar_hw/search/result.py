"""What a search comes to."""

from collections.abc import Mapping, Sequence

from nar_hw.records import Record
from nar_hw.search.feasible import ROUNDING
from nar_hw.search.pareto import pareto_front
from nar_hw.space.spec import Arch


class Scored(Record, frozen=True, kw_only=True):
    """An arch with what is known of it."""

    arch: Arch
    accuracy: float
    """In [0, 1], with shared weights: of the whole validation split for a finalist, else of the last minibatch."""
    predicted_ms: float
    """By the first table."""
    load: float
    """Costs relative to what was asked (nar_hw/search/budget.py), predicted or measured, the greater: at most 1 is met."""
    measured_ms: float | None = None
    """On the first table's device; None where it was not measured."""

    @property
    def ms(self) -> float:
        """Measured where it was measured, else predicted."""
        return self.predicted_ms if self.measured_ms is None else self.measured_ms

    @property
    def met(self) -> bool:
        """Whether everything asked for holds."""
        return self.load <= 1 + ROUNDING


class Standing(Record, frozen=True, kw_only=True):
    """What an arch costs in one respect, and what was asked."""

    name: str
    """With its unit."""
    cost: float
    target: float


class Outcome(Record, frozen=True, kw_only=True):
    """What was found for one target."""

    target_ms: float
    """By the first table."""
    pick: Scored
    """The most accurate finalist that meets all targets; where none does, the one that comes nearest."""
    others: tuple[Standing, ...] = ()
    """How the pick stands to the targets of the other tables, of FLOPs and of parameters, by prediction."""
    finalists: tuple[Scored, ...]
    """By falling accuracy."""

    @property
    def met(self) -> bool:
        """Whether the pick meets all targets."""
        return self.pick.met

    @property
    def note(self) -> str:
        """The outcome in one line."""
        pick, target = self.pick, self.target_ms
        beside = ", ".join(f"{item.cost:.4g} of {item.target:.4g} {item.name}" for item in self.others)
        if self.met:
            how = "predicted" if pick.measured_ms is None else "measured"
            return f"the pick takes {pick.ms:.4g} ms ({how}) of the {target:.4g} ms asked for{f' and {beside}' if beside else ''}"
        return (
            f"none of the {len(self.finalists)} finalists meets {target:.4g} ms on the device: the nearest takes "
            f"{pick.ms:.4g} ms (predicted {pick.predicted_ms:.4g}): profile again or ask for {target**2 / pick.ms:.4g} ms"
        )


class SearchResult(Record, frozen=True, kw_only=True):
    """The outcome of `nar_hw.search`; what is said of one target is said of the first."""

    outcomes: tuple[Outcome, ...]
    """For each target, in the order asked."""
    pareto: tuple[Scored, ...]
    """Of everything scored, the archs that no other beats in accuracy and predicted latency, by rising latency."""
    scored: tuple[Scored, ...]
    """Everything scored, each arch once; loads are relative to the first target."""
    history: tuple[Mapping[str, float], ...]
    """One item per epoch."""
    allowed_mismatch: tuple[str, ...] = ()
    """What differs between the table's conditions and those here, where the user allowed it."""

    @property
    def pick(self) -> Scored:
        """The arch found, with what is known of it."""
        return self.outcomes[0].pick

    @property
    def arch(self) -> Arch:
        """The arch to be trained."""
        return self.pick.arch

    @property
    def target_ms(self) -> float:
        """What was asked for, by the first table."""
        return self.outcomes[0].target_ms

    @property
    def others(self) -> tuple[Standing, ...]:
        """How the pick stands to the other limits."""
        return self.outcomes[0].others

    @property
    def finalists(self) -> tuple[Scored, ...]:
        """By falling accuracy."""
        return self.outcomes[0].finalists

    @property
    def met(self) -> bool:
        """Whether the pick meets all limits."""
        return self.pick.met

    @property
    def note(self) -> str:
        """The outcome in one line."""
        notes = "; ".join(outcome.note for outcome in self.outcomes)
        return "; allowed: ".join([notes, *self.allowed_mismatch])


def choose(finalists: Sequence[Scored]) -> Scored:
    """The most accurate finalist that meets all targets, of equals the faster; where none does, the nearest."""
    meeting = [item for item in finalists if item.met]
    if meeting:
        return max(meeting, key=lambda item: (item.accuracy, -item.ms))
    return min(finalists, key=lambda item: item.load)


def front(scored: Sequence[Scored]) -> tuple[Scored, ...]:
    """The Pareto front by predicted latency and accuracy."""
    indices = pareto_front([item.predicted_ms for item in scored], [item.accuracy for item in scored])
    return tuple(scored[index] for index in indices)
