"""In-context profiles: the time of every operator inside real networks, from the runtime's per-layer times.

Nodes are joined to slots by module path. A node of no slot that is not in every child (an activation or addition that could
not be fused) is there because of the operator before it, and is charged to that one. So is a change of layout, but for those of
ONNX Runtime out of its blocked layout, which are there because of the operator behind: one that has no blocked form for so many
channels, as pools have for whole blocks only. Profiling slows each
node down by about the same amount and whole runs by a few percent more, so the entries are calibrated on the same children run
without it:

    whole run = fixed + scale * (sum of node times - overhead * number of nodes)

Shape legend: runs = (rounds * runs of a visit) of one child.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nar_hw.errors import MeasurementError
from nar_hw.latency.children import Measured
from nar_hw.latency.estimate import Estimate, calibrate, mean_of_middle
from nar_hw.latency.journal import ChildTimes
from nar_hw.latency.record import Entry
from nar_hw.latency.regression import Fit, bent_squares, contrast_errors, counted, least_squares, whole_ms
from nar_hw.space.space import SearchSpace, Site
from nar_hw.space.spec import Arch, OpSpec

Floats = npt.NDArray[np.float64]

SPREAD = 0.07
"""How far the network as a whole may move an entry, relative (one standard deviation)."""
NOISES = (0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16)
"""Relative errors of children, of which the likely one is taken."""


@dataclass(frozen=True, kw_only=True)
class _Context:
    """One operator call in one child."""

    ms: float
    """Sum of its nodes' interquartile means: single nodes are short enough to be disturbed seldom."""
    runs: Floats
    """(runs,) ms."""
    nodes: float
    """How many nodes of the profile it is made of."""


def estimate(space: SearchSpace, profiled: Measured[Arch], measured: Measured[Arch]) -> Estimate:
    """Entries per operator spec, pooled over slots and children.

    Args:
        profiled: some children, with their layers.
        measured: these and more children as wholes, without the profiler.

    Raises:
        MeasurementError: an operator has no node in the profile: its names do not join to module paths.
    """
    join = Join(space, profiled.children.values())
    contexts: dict[OpSpec, list[_Context]] = defaultdict(list)
    for arch, times in profiled.children.items():
        for spec, context in _contexts(space, arch, join.nodes(times)):
            contexts[spec].append(context)
    silent = [spec.operator for spec, found in contexts.items() if not all(context.nodes for context in found)]
    if silent:
        raise MeasurementError(
            f"the profile has no node for operator {silent[0]} (what runs within torch.autocast loses its name when exported, "
            "and a runtime may merge operators): use method regression, which needs no per-layer times"
        )
    raw = {spec: mean_of_middle([context.ms for context in found]) for spec, found in contexts.items()}
    nodes = {spec: float(np.mean([context.nodes for context in found])) for spec, found in contexts.items()}
    used = [[spec for _, _, spec in space.specs(arch)] for arch in profiled.children]
    whole = whole_ms(space, measured)
    _, scale, overhead = calibrate(
        np.array([whole[arch] for arch in profiled.children]),
        np.array([sum(raw[spec] for spec in specs) for specs in used]),
        np.array([sum(nodes[spec] for spec in specs) for specs in used]),
        slowdown=_slowdown(profiled, whole, float(np.median(measured.reference) / np.median(profiled.reference))),
        smallest=min(raw[spec] / nodes[spec] for spec in raw),
    )
    guess = {spec: scale * raw[spec] - overhead * nodes[spec] for spec in raw}

    def fitted(times: Mapping[Arch, float], cached: bool) -> Fit:
        cache = least_squares(space, times, guess, spread=SPREAD).cache if cached else None
        # Without what a cache saves children are sums again
        sums = times if cache is None else {arch: ms + cache.saved_by(space.names(arch)) for arch, ms in times.items()}
        noise = likely_noise(space, sums, guess)
        return least_squares(space, times, guess, spread=SPREAD, noise=noise, cached=cached)

    fit = bent_squares(space, whole, fitted)
    errors = contrast_errors(space, fit)
    entries = {
        spec: _entry(spec, ms, errors[spec], [context.runs * scale for context in contexts[spec]], ms - scale * raw[spec])
        for spec, ms in fit.ms.items()
    }
    details = {"scale": scale, "overhead_ms": overhead, "residual_mape": fit.residual_mape}
    return Estimate(entries=entries, fixed_ms=fit.fixed_ms, details=details, cache=fit.cache, bend=fit.bend)


def _slowdown(profiled: Measured[Arch], whole: Mapping[Arch, float], speed: float) -> float:
    """By how many ms the profiler slows a run down, per node; not less than nothing."""
    more = [(speed * np.median(times.whole) - whole[arch]) / len(times.layers) for arch, times in profiled.children.items()]
    return max(0.0, float(np.median(more)))


def likely_noise(space: SearchSpace, whole: Mapping[Arch, float], guess: Mapping[OpSpec, float]) -> float:
    """By how much whole children (ms) differ from sums of entries, relative: the most likely of NOISES, for `least_squares`.

    It is the noise of their visits and what no sum explains; the larger it is, the less children may move the entries from
    their ``guess`` (ms). Restricted maximum likelihood (Patterson and Thompson 1971): nothing is known of the fixed part.
    """
    times, specs = np.array(list(whole.values())), list(guess)  # (children,)
    counts = [Counter(spec for _, _, spec in space.specs(arch)) for arch in whole]
    guessed = np.array([[count[spec] * guess[spec] for spec in specs] for count in counts])  # (children, specs)
    unexplained = times - guessed.sum(axis=1)
    entries = SPREAD**2 * guessed @ guessed.T

    def likelihood(noise: float) -> float:
        covariance = entries + np.diag(noise**2 * times * times.mean() / counted(space, whole))
        inverse = np.linalg.inv(covariance)
        fixed = inverse.sum(axis=0)
        inverse -= np.outer(fixed, fixed) / fixed.sum()
        return -float(np.linalg.slogdet(covariance)[1] + np.log(fixed.sum()) + unexplained @ inverse @ unexplained)

    return max(NOISES, key=likelihood)


class Join:
    """Which site a node of a profile belongs to."""

    def __init__(self, space: SearchSpace, children: Iterable[ChildTimes]) -> None:
        self._owners: dict[str, str] = {}
        for slot in space.slots:
            for site in slot.sites:
                for path in (site.conv, *site.aliases, *([site.norm] if site.norm else [])):
                    self._owners[path] = site.conv
        names = [set(times.layers) for times in children]
        self._everywhere = set.intersection(*names) if names else set()

    def site(self, node: str) -> str | None:
        """The site (its conv's path) whose operator or norm the node "<module path>/<operation>" is part of."""
        path = node.rpartition("/")[0]
        while path:
            if path in self._owners:
                return self._owners[path]
            path = path.rpartition(".")[0]
        return None

    def nodes(self, times: ChildTimes) -> dict[str, list[Floats]]:
        """Site -> times (runs,) of each of its nodes in one child."""
        found: dict[str, list[Floats]] = defaultdict(list)
        for node, runs in times.layers.items():
            site = self.site(node)
            if site is None and node not in self._everywhere:
                behind = self._behind(node, times.producers) if node.startswith("ReorderOutput") else None
                site = behind or self._before(node, times.producers)
            if site is not None:
                found[site].append(runs)
        return found

    def _behind(self, node: str, producers: Mapping[str, Sequence[str]]) -> str | None:
        """The site that reads what ``node`` gives, if one does so directly."""
        readers = (self.site(reader) for reader, sources in producers.items() if node in sources)
        return next((site for site in readers if site is not None), None)

    def _before(self, node: str, producers: Mapping[str, Sequence[str]]) -> str | None:
        """The nearest site whose output reaches ``node``."""
        seen, front = {node}, [node]
        while front:
            front = list(dict.fromkeys(source for name in front for source in producers.get(name, ()) if source not in seen))
            seen.update(front)
            for name in front:
                if (site := self.site(name)) is not None:
                    return site
        return None


def _contexts(space: SearchSpace, arch: Arch, nodes: Mapping[str, Sequence[Floats]]) -> Iterable[tuple[OpSpec, _Context]]:
    calls: dict[str, list[OpSpec]] = defaultdict(list)
    sites: dict[str, Site] = {}
    for _, site, spec in space.specs(arch):
        calls[site.conv].append(spec)
        sites[site.conv] = site
    for path, specs in calls.items():
        found = nodes.get(path, [])
        ms = sum(map(mean_of_middle, found))
        runs = np.sum(found, axis=0) if found else np.zeros(1)
        areas = [spec.h * spec.w for spec in specs]
        for spec, area in zip(specs, areas, strict=True):
            # A convolution that runs at several sizes has one time: it is shared out by the area of each call.
            share = area / sum(areas)
            yield spec, _Context(ms=ms * share, runs=runs * share, nodes=len(found) / len(specs))


def _entry(spec: OpSpec, ms: float, error: float, runs: Sequence[Floats], more: float) -> Entry:
    every = np.concatenate(runs) + more
    p10, p90 = (max(float(value), ms / 10) for value in np.quantile(every, (0.1, 0.9)))
    return Entry(spec=spec, ms=ms, p10=p10, p90=p90, n=len(every), rel=1.96 * error / ms)
