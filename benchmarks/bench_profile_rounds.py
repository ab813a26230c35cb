"""What exactness of a latency table costs: children, rounds, and how far children may move the entries.

One process loads resnet18's children all at once, visits them in turn for many rounds, and makes in-context tables of random
parts of what it saw: of fewer children, fewer rounds, with the error of children fixed at 1 % ("1 %") or taken as it is likely
to be ("likely", what `nar-hw profile` does). All are judged by the same held-out children in all rounds. "noise" is the
difference of their odd and even rounds, "visit" the spread of single visits, "within" the share of its variance that runs of a
visit do not have in common. Result: results/profile_rounds.json. Three minutes a case; let nothing else run.

    OMP_NUM_THREADS=1 python benchmarks/bench_profile_rounds.py [--size 32] [--runtime onnxruntime] [--rounds 16]
"""

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from bench_latency_table import CHILDREN, SEED, space_of

from nar_hw.device.visits import in_turn, normalised
from nar_hw.files import read_json, write_json
from nar_hw.latency import in_context
from nar_hw.latency.children import Layers, Measured, batch_of, clock_of, joined
from nar_hw.latency.designs import contexts, held_out
from nar_hw.latency.device import fingerprint
from nar_hw.latency.loader import ChildLoader
from nar_hw.runtimes import RuntimeConfig
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch

REPLICATES = 13
DESIGNS = [(28, 1.0), (28, 6), (28, 4), (28, 2), (20, 4), (12, 4), (12, 12)]
"""Children beside the network itself, and rounds; 1.0 for all."""
DRAWS = 10


class Raw:
    """All visits: runs (rounds, networks, repeats) ms, marks (rounds, visits, repeats) of the network itself, and layers."""

    def __init__(self, space: SearchSpace, config: RuntimeConfig, rounds: int) -> None:
        self.space, self.config = space, config
        self.seen = contexts(space, replicates=REPLICATES, seed=SEED)
        self.unseen = held_out(space, CHILDREN, exclude=self.seen, seed=SEED + 1)
        self.first = self.seen[: 1 + max(len(slot.candidates) for slot in space.slots)]
        with ChildLoader(space, config) as load, ExitStack() as stack:
            reference = stack.enter_context(load(space.incumbent))
            networks = [stack.enter_context(load(arch)) for arch in (*self.seen, *self.unseen)]
            profiled = [stack.enter_context(load(arch, True)) for arch in self.first]
            self.clock = clock_of(reference)
            self.repeats = self.clock.repeats(reference)
            self.layered = self._rounds(profiled, reference, rounds)
            self.layers = [Layers(item.layer_ms(), item.producers()) for item in profiled]
            self.runs, self.marks = self._rounds(networks, reference, rounds)

    def _rounds(self, networks: list[Any], reference: Any, rounds: int) -> tuple[np.ndarray, np.ndarray]:
        found = list(in_turn(networks, [reference], self.clock, repeats=self.repeats, rounds=rounds))
        return np.array([visit for visit, _ in found]), np.array([mark for _, mark in found])

    def measured(self, archs: list[Arch], rounds: np.ndarray) -> Measured[Arch]:
        """What a profile of these children in these rounds would have seen."""
        every = [*self.seen, *self.unseen]
        runs = self.runs[rounds][:, [every.index(arch) for arch in archs]]
        return joined([batch_of(self.config.runtime, archs, runs, self.marks[rounds], None)], archs, self.clock.name)

    def with_layers(self, rounds: int) -> Measured[Arch]:
        """The profiled children in their last ``rounds``."""
        runs, marks = (values[-rounds:] for values in self.layered)
        return joined([batch_of(self.config.runtime, self.first, runs, marks, self.layers)], self.first, self.clock.name)

    def predicted(self, archs: list[Arch], rounds: np.ndarray) -> np.ndarray:
        """Held-out children, and the network itself, beside the network itself."""
        measured = self.measured(archs, rounds)
        found = in_context.estimate(self.space, self.with_layers(len(rounds)), measured)
        times = [
            found.fixed_ms + sum(found.entries[spec].ms for _, _, spec in self.space.specs(arch))
            for arch in (*self.unseen, self.space.incumbent)
        ]
        return np.array(times) / np.median(measured.reference)


def resampled(raw: Raw) -> dict[str, Any]:
    """Errors of tables by design and way to fit."""
    rng, rounds = np.random.default_rng(SEED), len(raw.runs)
    judge = raw.measured(raw.unseen, np.arange(rounds))
    visits = np.array([judge.children[arch].whole for arch in raw.unseen])  # (children, rounds)
    actual = np.median(visits, axis=1) / np.median(judge.reference)
    halves = [np.median(visits[:, half::2], axis=1) for half in (0, 1)]
    latin, near = raw.seen[len(raw.first) : -len(raw.first) + 1], raw.seen[-len(raw.first) + 1 :]
    rows = []
    for children, share in DESIGNS:
        count = rounds if share == 1.0 else min(int(share), rounds)
        errors: dict[str, list[tuple[float, float]]] = {"1 %": [], "likely": []}
        for _ in range(DRAWS):
            some = rng.choice(rounds, count, replace=False)
            others = [latin[place] for place in rng.choice(len(latin), children - len(raw.first) + 1 - len(near), replace=False)]
            for fit, found in errors.items():
                fixed = mock.patch.object(in_context, "likely_noise", return_value=0.01)
                with fixed if fit == "1 %" else ExitStack():
                    predicted = raw.predicted([*raw.first, *others, *near], np.sort(some))
                found.append((float(np.mean(np.abs(predicted[:-1] / actual - 1))), float(predicted[-1] - 1)))
        row: dict[str, Any] = {"children": children, "rounds": count}
        for fit, found in errors.items():
            mape, network = (100 * np.mean(values) for values in zip(*found, strict=True))
            row[fit] = {"MAPE": round(float(mape), 2), "network": round(float(network), 2)}
        rows.append(row)
    return {
        "repeats": raw.repeats,
        "noise": round(100 * float(np.mean(np.abs(halves[1] / halves[0] - 1))), 2),
        **noise_of(raw.runs),
        "designs": rows,
    }


def noise_of(runs: np.ndarray) -> dict[str, float]:
    """Spread of visits (%), and the share of the variance of a visit's last runs that is not common to them."""
    single = [np.log(normalised(runs[..., [number]])[0]) for number in (-2, -1)]
    off = [np.clip(values - np.median(values, axis=0), -0.1, 0.1) for values in single]
    whole = np.log(normalised(runs)[0])
    spread = 1.4826 * float(np.median(np.abs(whole - np.median(whole, axis=0))))
    return {"visit": round(100 * spread, 2), "within": round(1 - float(np.corrcoef(off[0].ravel(), off[1].ravel())[0, 1]), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "profile_rounds.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = read_json(arguments.out) if arguments.out.exists() else {}
    result["command"] = "OMP_NUM_THREADS=1 python benchmarks/bench_profile_rounds.py"
    load = round(os.getloadavg()[0], 2)
    config = RuntimeConfig(runtime=arguments.runtime)
    raw = Raw(space_of("resnet18", arguments.size), config, arguments.rounds)
    name = f"resnet18 3x{arguments.size}x{arguments.size}, {arguments.runtime} fp32"
    result.setdefault("cases", {})[name] = {**resampled(raw), "load before": load, "fingerprint": fingerprint(config)}
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
