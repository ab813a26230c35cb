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
    predicted_ms: float | None
    """By the first table; None where there is none."""
    load: float
    """Costs relative to what was asked (nar_hw/search/budget.py), predicted or measured, the greater: at most 1 is met."""
    measured_ms: float | None = None
    """On the first table's device; None where it was not measured."""

    @property
    def cost(self) -> float:
        """Milliseconds, measured where they were measured, else predicted; without a table the load."""
        known = self.predicted_ms if self.measured_ms is None else self.measured_ms
        return self.load if known is None else known

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

    target_ms: float | None
    """By the first table; None where there is none."""
    pick: Scored
    """The most accurate finalist that meets all targets; where none does, the one that comes nearest."""
    others: tuple[Standing, ...] = ()
    """How the pick stands to the targets of the other tables, and to the limits of FLOPs and parameters, by prediction."""
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
        if target is None:
            asked = f"takes {beside}" if beside else "was asked for nothing but accuracy"
            return f"the pick {asked}: {100 * pick.accuracy:.2f} % of the validation images with shared weights"
        if self.met:
            how = "predicted" if pick.measured_ms is None else "measured"
            return (
                f"the pick takes {pick.cost:.4g} ms ({how}) of the {target:.4g} ms asked for{f' and {beside}' if beside else ''}"
            )
        return (
            f"none of the {len(self.finalists)} finalists meets {target:.4g} ms on the device: the nearest takes "
            f"{pick.cost:.4g} ms (predicted {pick.predicted_ms:.4g}): profile again or ask for {target**2 / pick.cost:.4g} ms"
        )


class SearchResult(Record, frozen=True, kw_only=True):
    """The outcome of `nar_hw.search`; what is said of one target is said of the first."""

    outcomes: tuple[Outcome, ...]
    """For each target, in the order asked."""
    pareto: tuple[Scored, ...]
    """Of everything scored, the archs that no other beats in accuracy and predicted latency (without a table: load), by rising
    latency."""
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
    def target_ms(self) -> float | None:
        """What was asked for, by the first table; None where there is none."""
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
        return max(meeting, key=lambda item: (item.accuracy, -item.cost))
    return min(finalists, key=lambda item: item.load)


def front(scored: Sequence[Scored]) -> tuple[Scored, ...]:
    """The Pareto front by predicted latency, or without a table by load, and accuracy."""
    costs = [item.load if item.predicted_ms is None else item.predicted_ms for item in scored]
    indices = pareto_front(costs, [item.accuracy for item in scored])
    return tuple(scored[index] for index in indices)
