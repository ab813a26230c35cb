"""Isolated profiles: each operator measured as a network of its own, then calibrated on whole children.

The classic table, and portable: it needs no per-layer times. Alone, operators find warm caches and pay for changes of
layout that a network makes once, so their plain sum is 5-30 % off; it is never used without the calibration.
"""

from collections.abc import Callable

import numpy as np
from torch import nn

from nar_hw.latency.children import Measured
from nar_hw.latency.estimate import Estimate, calibrate, half_width, mean_of_middle
from nar_hw.latency.record import Entry
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.runtimes.base import Runtime
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch, OpSpec


def operator_loader(space: SearchSpace, config: RuntimeConfig) -> tuple[list[OpSpec], Callable[[OpSpec, bool], Runtime]]:
    """All operator specs of a space, and what loads one, with its norm, as a network of its own."""
    places = {
        spec: (site, code)
        for slot in space.slots
        for code in slot.candidates
        for site in slot.sites
        for spec in space.site_specs(site, code)
    }

    def load(spec: OpSpec, profile: bool = False) -> Runtime:
        site, code = places[spec]
        norm = space.norm_for(site, code)
        module = nn.Sequential(space.module_for(site, code), *([] if norm is None else [norm])).eval()
        return runtime_class(config.runtime)(module, (spec.c_in, spec.h, spec.w), config, profile=profile)

    return list(places), load


def estimate(space: SearchSpace, operators: Measured[OpSpec], children: Measured[Arch]) -> Estimate:
    """Entries from operators alone, scaled so that they sum up to the whole children."""
    # Both were measured beside the network itself: its time shows how much slower the machine was the second time.
    speed = float(np.median(children.reference) / np.median(operators.reference))
    raw = {spec: speed * mean_of_middle(times.whole) for spec, times in operators.children.items()}
    used = [[spec for _, _, spec in space.specs(arch)] for arch in children.children]
    smallest = min(raw.values())
    fixed, scale, overhead = calibrate(
        np.array([np.median(times.whole) for times in children.children.values()]),
        np.array([sum(raw[spec] for spec in specs) for specs in used]),
        np.array([float(len(specs)) for specs in used]),
        slowdown=smallest,
        smallest=smallest,
    )
    entries = {}
    for spec, times in operators.children.items():
        ms = scale * raw[spec] - overhead
        p10, p90 = (max(scale * speed * float(value) - overhead, 0.1 * ms) for value in np.quantile(times.whole, (0.1, 0.9)))
        rel = half_width(list(scale * speed * times.whole), ms)
        entries[spec] = Entry(spec=spec, ms=ms, p10=min(p10, ms), p90=max(p90, ms), n=len(times.whole), rel=rel)
    return Estimate(entries=entries, fixed_ms=fixed, details={"scale": scale, "overhead_ms": overhead})
