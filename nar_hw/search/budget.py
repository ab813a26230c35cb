"""What an arch may cost — latency by one or more tables, energy, memory, FLOPs, parameters — as one number relative to the limit.

Shape legend: N archs, S slots, V operator codes, K costs, M limits, C choices of one sum of each cost.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nar_hw.errors import TableError, TargetError, UserError
from nar_hw.latency.cache import parameters
from nar_hw.search.config import SearchConfig
from nar_hw.search.feasible import ROUNDING, Feasible, Floats, Ints
from nar_hw.space.flops import SpaceCounts
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch
from nar_hw.space.sums import Sums

if TYPE_CHECKING:
    from nar_hw.latency.table import LatencyTable

Archs = Sequence[Arch] | Ints

DRAWS = 20
"""How often `Within.sample` draws before it walks."""
TOLERANCE = 2e-6
"""By how much the solver may break a limit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cost:
    """One cost of an arch, and what was asked of it."""

    name: str
    """With its unit, as in "FLOPs" and "ms on a CPU"."""
    sums: Sums
    target: float

    def of(self, archs: Archs) -> Floats:
        """(N,) costs of (N, S) archs."""
        return self.sums.of(archs)


@dataclass(frozen=True, kw_only=True, eq=False)
class Budget:
    """Everything that was asked of an arch's costs.

    The load of an arch is 1 where it costs what was asked and more where it costs too much: the largest of its costs relative
    to their targets, or of weighted means of them.
    """

    candidates: tuple[tuple[int, ...], ...]
    """Operator codes per slot."""
    costs: tuple[Cost, ...]
    """The latency by each table, then energy, memory, FLOPs and parameters where they have a limit; where nothing is asked, one
    that all meet."""
    mixes: Floats
    """(M, K): the weights of the costs in each limit; each row sums to 1."""
    timed: bool = True
    """Whether there is a table: the first cost is then a latency."""
    limited: bool = True
    """Whether anything is asked."""

    @classmethod
    def of(
        cls, space: SearchSpace, tables: "Sequence[LatencyTable]", targets_ms: Sequence[float], config: SearchConfig
    ) -> "Budget":
        """One target for all tables or one for each, and what ``config`` says of the rest.

        Raises:
            UserError: the numbers of tables, targets and weights do not fit together, or the reward weighs accuracy against
                nothing.
            MissingEntryError: a table has no entry for a candidate.
            TableError: energy or memory is limited, but the first table knows none.
        """
        count = len(tables)
        if not tables and targets_ms:
            raise UserError(f"a target of {targets_ms[0]:g} ms needs a latency table, but there is none: give one, or no target")
        if tables and len(targets_ms) not in (1, count):
            raise UserError(f"there must be one target, or one for each of {count} tables, but got {len(targets_ms)}")
        if len(config.weights) not in (0, count):
            raise UserError(f"there must be one weight for each of {count} tables, but got {len(config.weights)}")
        if config.combine == "mean" and not tables:
            raise UserError("combine=mean is of latency tables, but there are none: give tables and targets")
        targets = list(targets_ms) * (count // len(targets_ms)) if tables else []
        costs = [_latency(space, table, target) for table, target in zip(tables, targets, strict=True)]
        for name, limit, cost in (("energies", config.max_energy, _energy), ("memory", config.max_memory, _memory)):
            if limit is None:
                continue
            if not tables:
                field = "max_energy" if cost is _energy else "max_memory"
                raise UserError(f"{field} is of a latency table that knows {name}, but there is none: give one and a target")
            costs.append(cost(space, tables[0], limit))
        limited = bool(tables) or config.max_flops is not None or config.max_params is not None
        if config.max_flops is not None or config.max_params is not None:
            costs += _counts(space, config)
        if not limited and config.reward != "accuracy":
            raise UserError(
                f"reward {config.reward} weighs accuracy against a cost, but nothing limits one: give a latency table and a "
                "target, max_flops or max_params, or reward=accuracy"
            )
        costs = costs or [_nothing(space)]
        mixes = np.eye(len(costs))
        if config.combine == "mean":
            weights = np.array(config.weights or [1.0] * count)
            mixes[count - 1, :count] = weights / weights.sum()
            mixes = mixes[count - 1 :]
        return cls(
            candidates=tuple(slot.candidates for slot in space.slots),
            costs=tuple(costs),
            mixes=mixes,
            timed=bool(tables),
            limited=limited,
        )

    def latency_ms(self, archs: Archs) -> Floats:
        """(N,) milliseconds of (N, S) archs by the first table, which must exist."""
        assert self.timed
        return self.costs[0].of(archs)

    def loads(self, archs: Archs, measured_ms: Sequence[float] | None = None) -> Floats:
        """(N,) loads of (N, S) archs, with latencies that were measured in place of the first table's predictions."""
        ratios = np.stack([cost.of(archs) / cost.target for cost in self.costs])  # (K, N)
        if measured_ms is not None:
            ratios[0] = np.asarray(measured_ms) / self.costs[0].target
        return np.asarray((self.mixes @ ratios).max(axis=0))

    def tightened(self, factor: float) -> "Budget":
        """The budget for a device that is ``factor`` times as slow as the first table says."""
        first, *others = self.costs
        return replace(self, costs=(replace(first, target=first.target / factor), *others))

    @cached_property
    def feasible(self) -> Feasible:
        """The archs within the budget. Raises TargetError when there are none, naming what can be reached."""
        if len(self.costs) == 1:
            cost = self.costs[0]
            return Feasible(candidates=self.candidates, cost=cost.sums, target_ms=cost.target)
        if not all(cost.target > 0 for cost in self.costs):
            raise TargetError(f"targets must be more than 0, but got {', '.join(f'{cost.target:.4g}' for cost in self.costs)}")
        if self.loads([self.nearest])[0] > 1 + ROUNDING:
            needs = ", ".join(f"{cost.of([self.nearest])[0]:.4g} of {cost.target:.4g} {cost.name}" for cost in self.costs)
            least = ", ".join(f"{cost.sums.least:.4g}" for cost in self.costs)
            raise TargetError(
                f"one arch must meet all targets, but none does: the nearest takes {needs} (each alone goes down to {least}): "
                "raise one"
            )
        limits = len(self.mixes)
        weights = np.vstack([np.eye(limits), np.full(limits, 1 / limits)])
        return min((Within.relaxed(self, row) for row in weights), key=lambda item: item.count)

    @property
    def reach(self) -> str:
        """What the space reaches by the first table and how much of it is within the budget, in one line; where that cannot
        be counted exactly, the least upper bound known.

        Raises TargetError as `feasible` does.
        """
        first, limits = self.costs[0], self.feasible
        within, archs = _number(limits.count), _number(math.prod(map(len, self.candidates)))
        if not self.limited:
            return f"{archs} archs, none of them ruled out: nothing limits their costs"
        some = within if limits.counts_exactly else f"up to {within}"
        unit, by = ("ms", " by the table") if self.timed else (first.name, "")
        asked = f"take at most {first.target:.4g} {unit}" if len(self.costs) == 1 else "meet all targets"
        return f"{first.sums.least:.4g} to {first.sums.most:.4g} {unit}{by}; {some} of {archs} archs {asked}"

    @cached_property
    def nearest(self) -> Arch:
        """The arch with the least load."""
        cuts: list[Arch] = []
        while True:
            found = self._solve(np.zeros(self.admitted.shape), 1.0, np.inf, cuts=cuts)
            assert found is not None
            if not self._bends or found in cuts:
                return min((found, *cuts), key=lambda arch: self.loads([arch])[0])
            cuts.append(found)

    def best(self, scores: Floats, pairs: Floats | None = None) -> Arch:
        """The arch within the budget with the largest sum of ``scores`` (S, V) and ``pairs`` (S - 1, V, V)."""
        for load in (1 + ROUNDING, 1 - TOLERANCE):
            cuts: list[Arch] = []
            while (found := self._solve(scores, 0.0, load, pairs, cuts)) is not None and found not in cuts:
                if self.loads([found])[0] <= 1 + ROUNDING:
                    return found
                if not self._bends:
                    break
                cuts.append(found)
        return self.nearest

    @property
    def _bends(self) -> bool:
        """Whether a cost is no sum: then what is solved are the limits of `_tangents`, which are wider."""
        return any(cost.sums.bend is not None for cost in self.costs)

    @property
    def admitted(self) -> NDArray[np.bool_]:
        """(S, V) which codes are candidates."""
        return np.asarray(np.isfinite(self.costs[0].sums.entries[0]))

    @cached_property
    def relative(self) -> tuple[Floats, Floats]:
        """(C, M, S, V) entries, 0 for no candidates, and (C, M) fixed parts of the limits, relative to the targets.

        An arch is within the limits where it is by one choice of a sum of each cost; where costs are bent, such an arch may not
        be within a mean of several.
        """
        return self._tangents([cost.target for cost in self.costs])

    def _tangents(self, at: Sequence[float]) -> tuple[Floats, Floats]:
        """`relative` by tangents to the costs ``at`` (K,): they are the costs there, and no larger elsewhere."""
        entries, fixed = [], []
        # No sum has a latency that is too low
        places = [max(place, cost.sums.least) for cost, place in zip(self.costs, at, strict=True)]
        slopes = [cost.sums.slope(place) / cost.target for cost, place in zip(self.costs, places, strict=True)]
        starts = [
            place / cost.target - slope * cost.sums.limit(place)
            for cost, place, slope in zip(self.costs, places, slopes, strict=True)
        ]
        for choice in itertools.product(*(range(len(cost.sums)) for cost in self.costs)):
            chosen = list(zip(self.costs, choice, slopes, starts, strict=True))
            parts = [np.where(self.admitted, cost.sums.entries[number], 0) * slope for cost, number, slope, _ in chosen]
            entries.append(np.tensordot(self.mixes, np.stack(parts), 1))
            fixed.append(
                self.mixes @ np.array([start + cost.sums.fixed[number] * slope for cost, number, slope, start in chosen])
            )
        return np.stack(entries), np.stack(fixed)

    def _solve(
        self, scores: Floats, weight: float, most: float, pairs: Floats | None = None, cuts: Sequence[Arch] = ()
    ) -> Arch | None:
        """The arch with the largest sum of ``scores`` and ``pairs`` less ``weight`` times its load, which is at most ``most``.

        Loads are exact where no cost is bent and for each of ``cuts``, and no larger elsewhere (Kelley 1960).
        """
        known = [self.relative, *(self._tangents([float(cost.of([arch])[0]) for cost in self.costs]) for arch in cuts)]
        entries, fixed = (np.concatenate(parts, axis=1) for parts in zip(*known, strict=True))
        solved = (self._solve_one(*limits, scores, weight, most, pairs) for limits in zip(entries, fixed, strict=True))
        found = [item for item in solved if item is not None]
        return max(found, key=lambda item: item[0])[1] if found else None

    def _solve_one(
        self, entries: Floats, fixed: Floats, scores: Floats, weight: float, most: float, pairs: Floats | None
    ) -> tuple[float, Arch] | None:
        """`_solve` by one choice of sums, (M, S, V) and (M,), and what it is worth."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        slots, codes = np.array([(slot, code) for slot, row in enumerate(self.candidates) for code in row]).T
        first, second = np.nonzero((slots[:, None] + 1 == slots) & (pairs is not None))
        gains = np.zeros(0) if pairs is None else pairs[slots[first], codes[first], codes[second]]
        singles, joints = len(slots), len(first)

        def rows(of_singles: NDArray[Any], of_joints: NDArray[Any] | float = 0.0, of_load: float = 0.0) -> Floats:
            """Coefficients of a variable for each candidate, for each two candidates of neighbouring slots, and of the load."""
            count = len(of_singles)
            return np.hstack(
                [of_singles, np.broadcast_to(of_joints, (count, joints)), np.full((count, 1), of_load)], dtype=np.float64
            )

        each = np.arange(singles)[:, None]
        constraints = [
            LinearConstraint(rows(np.arange(len(self.candidates))[:, None] == slots), 1, 1),
            LinearConstraint(rows(entries[:, slots, codes], of_load=-1.0), -np.inf, -fixed),
        ]
        if joints:  # a candidate is chosen exactly where it is in a pair, with the slot behind and with the slot before
            behind = rows(-np.eye(singles), first == each)[slots < slots.max()]
            before = rows(-np.eye(singles), second == each)[slots > 0]
            constraints.append(LinearConstraint(np.vstack([behind, before]), 0, 0))
        found = milp(
            np.concatenate([-scores[slots, codes], -gains, [weight]]),
            integrality=np.append(np.ones(singles), np.zeros(joints + 1)),
            bounds=Bounds(0, np.append(np.ones(singles + joints), most)),
            constraints=constraints,
            options={"mip_rel_gap": 0},
        )
        return None if found.x is None else (-float(found.fun), tuple(map(int, codes[found.x[:singles] > 0.5])))


@dataclass(frozen=True, kw_only=True, eq=False)
class Within(Feasible):
    """The archs within several limits at once.

    What is inherited speaks of one relaxation of them, a weighted mean of the limits, and so of more archs; `meets`, `sample`
    and `best` are of the limits themselves.
    """

    budget: Budget

    @classmethod
    def relaxed(cls, budget: Budget, weights: Floats) -> "Within":
        """With the relaxation that has ``weights`` (M,)."""
        entries, fixed = budget.relative
        mixed = np.where(budget.admitted, np.tensordot(weights, entries, (0, 1)), np.inf)  # (C, S, V)
        cost = Sums(entries=mixed, fixed=fixed @ weights)
        return cls(candidates=budget.candidates, cost=cost, target_ms=min(1.0, cost.most), budget=budget)

    @property
    def counts_exactly(self) -> bool:
        """Not: `count` is of the relaxation."""
        return False

    def meets(self, archs: Archs) -> NDArray[np.bool_]:
        """(N,) whether archs are within every limit."""
        return np.asarray(self.budget.loads(archs) <= 1 + ROUNDING)

    def best(self, scores: Floats, pairs: Floats | None = None, *, states: int = 0) -> Arch:
        """The arch within every limit with the largest sum of ``scores`` (S, V) and ``pairs`` (S - 1, V, V)."""
        return self.budget.best(scores, pairs)

    def sample(self, n: int, rng: np.random.Generator) -> list[Arch]:
        """``n`` archs, each uniformly random among all within the limits; where few draws are, along a random walk."""
        found: list[Arch] = []
        for _ in range(DRAWS):
            archs = self._draw(n, rng)
            found += [tuple(map(int, arch)) for arch in archs[self.meets(archs)]]
            if len(found) >= n:
                return found[:n]
        arch = self.budget.nearest
        while len(found) < n:
            for position in rng.permutation(self.slots):
                changed = (*arch[:position], int(rng.choice(self.candidates[position])), *arch[position + 1 :])
                arch = changed if self.meets([changed])[0] else arch
            found.append(arch)
        return found


def _number(value: float) -> str:
    return f"{value:,.0f}" if value < 1e9 else f"{value:.3g}"


def _latency(space: SearchSpace, table: "LatencyTable", target_ms: float) -> Cost:
    known = Feasible.from_table(space, table, table.predict(space.incumbent))
    mark = table.fingerprint
    return Cost(
        name=f"ms on {mark.get('device')} ({mark.get('runtime')} {mark.get('precision')})",
        sums=known.cost,
        target=target_ms,
    )


def _energy(space: SearchSpace, table: "LatencyTable", limit: float) -> Cost:
    known = table.energies
    entries = np.full((len(known), len(space.slots), len(space.operators)), np.inf)
    for position, slot in enumerate(space.slots):
        codes = list(slot.candidates)
        entries[:, position, codes] = known.entries[:, position, codes]
    name = f"mJ an image on {table.fingerprint.get('device')} ({table.fingerprint.get('runtime')})"
    return Cost(name=name, sums=Sums(entries=entries, fixed=known.fixed), target=limit)


def _memory(space: SearchSpace, table: "LatencyTable", limit: float) -> Cost:
    """A network as it was measured: by a straight line in the parameters."""
    known = table.memory
    if known is None:
        raise TableError(
            "a limit of memory needs a table that knows memory, but this one does not: profile again where memory can be read"
        )
    fixed, slots = parameters(space)
    entries = np.full((len(space.slots), len(space.operators)), np.inf)
    for position, (slot, params) in enumerate(zip(space.slots, slots, strict=True)):
        for code in slot.candidates:
            entries[position, code] = known.mib_per_million * params[space.operators[code]] / 1e6
    name = f"MiB on {table.fingerprint.get('device')} ({table.fingerprint.get('runtime')})"
    return Cost(name=name, sums=Sums.one(entries, known.mib(fixed)), target=limit)


def _nothing(space: SearchSpace) -> Cost:
    """A cost that every arch meets exactly."""
    entries = np.full((len(space.slots), len(space.operators)), np.inf)
    for position, slot in enumerate(space.slots):
        entries[position, list(slot.candidates)] = 0.0
    return Cost(name="", sums=Sums.one(entries, 1.0), target=1.0)


def _counts(space: SearchSpace, config: SearchConfig) -> list[Cost]:
    """FLOPs and parameters, those of the two that have a limit. Raises UserError where slots share parameters."""
    counts = SpaceCounts(space)
    probes = [tuple(slot.candidates[turn % len(slot.candidates)] for slot in space.slots) for turn in range(8)]
    costs = []
    for name, field, limit in (("FLOPs", "flops", config.max_flops), ("parameters", "params", config.max_params)):
        if limit is None:
            continue
        entries = np.full((len(space.slots), len(space.operators)), np.inf)
        for position, slot in enumerate(space.slots):
            for code in slot.candidates:
                entries[position, code] = getattr(counts.candidate(position, code), field)
        cost = Cost(name=name, sums=Sums.one(entries, getattr(counts.fixed, field)), target=limit)
        if not np.array_equal(cost.of(probes), getattr(counts, field)(probes)):
            raise UserError(f"a limit of {name} needs slots that share none, but some here do: search without it")
        costs.append(cost)
    return costs
