"""Where latency tables stop to be sums, and what explains the rest: pairs of neighbouring operators, or the caches.

The demo's network is so small that its lighter children stay in a core's cache from run to run; the children of resnet18 are
larger than that, and their time can grow faster than their sum. Each case measures the children
of a profile and 200 held-out ones once, whole and in turn. "tables" is the table of the profile's children as nar_hw makes it and
as a sum, judged by the held-out children. "forms" fits each form to all children by ridge regression and judges it by those left
out (ten folds; of each form the best penalty of a few), with its gain over the sum and the standard error of that:

    families    a term for each two neighbours' kinds: dense, depthwise, pool
    operators   a term for each two neighbours' operators
    edges       a term for each two operators of each two neighbouring slots
    cache       a straight line in the parameters that bends once, at the best of a few places
    both        the cache and the operators

Result: results/cache.json; a minute
and a half for a case, and nothing else may run.

    OMP_NUM_THREADS=1 python benchmarks/bench_cache.py [--only TEXT] [--out benchmarks/results/cache.json]
"""

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.stats import spearmanr

from nar_hw.files import read_json, write_json
from nar_hw.latency import in_context, regression
from nar_hw.latency.children import measure
from nar_hw.latency.designs import contexts, held_out
from nar_hw.latency.device import fingerprint
from nar_hw.latency.estimate import Estimate
from nar_hw.latency.loader import ChildLoader, children_at_once
from nar_hw.models.info import ModelInfo
from nar_hw.runtimes import RuntimeConfig
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch
from nar_hw.steps.demo import MODEL

RESNET18 = ModelInfo(name="resnet18", input_shape=(3, 32, 32), num_classes=10)
CASES = {
    "demo, onnxruntime": (MODEL, "onnxruntime"),
    "demo, openvino": (MODEL, "openvino"),
    "demo, torch_eager": (MODEL, "torch_eager"),
    "resnet18, onnxruntime": (RESNET18, "onnxruntime"),
    "resnet18, openvino": (RESNET18, "openvino"),
    "resnet18, torch_eager": (RESNET18, "torch_eager"),
}
CHILDREN, ROUNDS = 200, 10
FOLDS, PENALTIES = 10, (1e-4, 1e-2, 1.0, 10.0, 100.0)


def examine(model: ModelInfo, runtime: str) -> dict[str, Any]:
    config = RuntimeConfig(runtime=runtime)
    space = model.space()
    designed = list(dict.fromkeys(contexts(space, replicates=7, seed=0)))
    first = designed[: 1 + max(len(slot.candidates) for slot in space.slots)]
    others = held_out(space, CHILDREN if space.size > 10**4 else 40, exclude=designed, seed=1)
    with ChildLoader(space, config) as load:
        at_once = children_at_once(space)
        profiled = measure(load, first, load.incumbent, at_once=at_once, rounds=20, profile=True, tolerance=0.01)
        found = measure(load, [*designed, *others], load.incumbent, at_once=at_once, rounds=ROUNDS)
    visits = {arch: times.whole for arch, times in found.children.items()}
    own = replace(found, children={arch: found.children[arch] for arch in designed})
    floor = np.mean([abs(np.median(visits[arch][1::2]) / np.median(visits[arch][::2]) - 1) for arch in others])
    times = {arch: float(np.median(values)) for arch, values in visits.items()}
    made = {"as made": in_context.estimate(space, profiled, own)}
    with mock.patch.object(regression, "limit", return_value=None), mock.patch.object(regression, "bend_of", return_value=None):
        made["as a sum"] = in_context.estimate(space, profiled, own)
    cache, bend = made["as made"].cache, made["as made"].bend
    sizes = params(space, list(times)) * 4 / 2**20
    ends = {"fastest": min(times.values()), "network": times[space.incumbent]}
    return {
        "network_ms": times[space.incumbent],
        "children": len(designed),
        "held_out": len(others),
        "weights_mib": [round(float(sizes.min()), 2), round(float(sizes.max()), 2)],
        "floor_mape": 100 * float(floor),
        "cache": None if cache is None else {"mib": cache.params * 4 / 2**20, "ms_per_mib": cache.ms_per_million * 2**20 / 4e6},
        "bend": None if bend is None else {name: round(bend.slope(float(bend.straight(ms))), 3) for name, ms in ends.items()},
        "tables": {name: judged(space, table, times, others) for name, table in made.items()},
        "forms": forms(space, times),
        "disturbed": list(found.doubts),
    }


def judged(space: SearchSpace, table: Estimate, times: Mapping[Arch, float], archs: list[Arch]) -> dict[str, float]:
    sums = [table.fixed_ms + sum(table.entries[spec].ms for _, _, spec in space.specs(arch)) for arch in archs]
    saved = [0.0 if table.cache is None else table.cache.saved_by(space.names(arch)) for arch in archs]
    actual, predicted = np.array([times[arch] for arch in archs]), np.array(sums) - np.array(saved)
    if table.bend is not None:
        predicted = table.bend.bent(predicted)
    errors = np.abs(predicted / actual - 1)
    return {
        "mape": 100 * float(errors.mean()),
        "max_error": 100 * float(errors.max()),
        "within_10": float(np.mean(errors <= 0.1)),
        "spearman": float(spearmanr(predicted, actual).statistic),
    }


def params(space: SearchSpace, archs: list[Arch]) -> np.ndarray:
    fixed, slots = regression.parameters(space)
    return np.array([fixed + sum(row[name] for row, name in zip(slots, space.names(arch), strict=True)) for arch in archs])


def forms(space: SearchSpace, times: Mapping[Arch, float]) -> dict[str, dict[str, float]]:
    archs, actual = list(times), np.array(list(times.values()))
    specs = list({spec: None for arch in archs for _, _, spec in space.specs(arch)})
    calls = np.array([[[spec for _, _, spec in space.specs(arch)].count(spec) for spec in specs] for arch in archs])
    sums = np.hstack([calls, np.ones((len(archs), 1))])
    sizes = params(space, archs) / 1e6
    names = [space.names(arch) for arch in archs]
    bends = [[np.minimum(sizes, place)[:, None]] for place in np.quantile(sizes, np.linspace(0.04, 0.9, 18))]
    pairs = joint(names, lambda slot, name: name)
    columns = {
        "sum": [[]],
        "families": [[joint(names, lambda slot, name: family(name))]],
        "operators": [[pairs]],
        "edges": [[joint(names, lambda slot, name: (slot, name))]],
        "cache": bends,
        "both": [[*bend, pairs] for bend in bends],
    }
    errors = {name: min((left_out(sums, more, actual) for more in each), key=np.mean) for name, each in columns.items()}
    gains = {name: errors["sum"] - found for name, found in errors.items()}
    return {
        name: {
            "mape": 100 * float(found.mean()),
            "gain": 100 * float(gains[name].mean()),
            "gain_standard_error": 100 * float(gains[name].std(ddof=1)) / len(archs) ** 0.5,
        }
        for name, found in errors.items()
    }


def family(name: str) -> str:
    return "dense" if name.startswith("conv") else "depthwise" if name.startswith("dw") else "pool"


def joint(names: list[tuple[str, ...]], kind: Callable[[int, str], Any]) -> np.ndarray:
    """(archs, kinds of two neighbours) how often each comes."""
    found: dict[Any, np.ndarray] = {}
    for number, row in enumerate(names):
        for slot in range(len(row) - 1):
            key = kind(slot, row[slot]), kind(slot + 1, row[slot + 1])
            found.setdefault(key, np.zeros(len(names)))[number] += 1
    return np.stack(list(found.values()), axis=1)


def left_out(sums: np.ndarray, more: list[np.ndarray], actual: np.ndarray) -> np.ndarray:
    """(archs,) relative errors of ten folds at the best penalty of ``more``."""
    scaled = [column / column.std(axis=0) for column in more]
    rows = np.hstack([sums, *scaled])
    noise = np.sqrt(actual * actual.mean())
    fold = np.random.default_rng(0).permutation(len(actual)) % FOLDS
    found = []
    for penalty in PENALTIES if more else PENALTIES[:1]:
        ridge = np.sqrt(np.append(np.full(sums.shape[1], 1e-5), np.full(rows.shape[1] - sums.shape[1], penalty)))
        errors = np.zeros(len(actual))
        for number in range(FOLDS):
            out = fold == number
            left = np.vstack([rows[~out] / noise[~out, None], np.diag(ridge)])
            weights = np.linalg.lstsq(left, np.append(actual[~out] / noise[~out], np.zeros(len(ridge))), rcond=None)[0]
            errors[out] = np.abs(rows[out] @ weights / actual[out] - 1)
        found.append(errors)
    return min(found, key=np.mean)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cache.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = read_json(arguments.out) if arguments.out.exists() else {"cases": {}}
    result["command"] = "OMP_NUM_THREADS=1 python benchmarks/bench_cache.py"
    for name, (model, runtime) in CASES.items():
        if arguments.only in name:
            load = round(os.getloadavg()[0], 2)
            mark = fingerprint(RuntimeConfig(runtime=runtime))
            result["cases"][name] = {**examine(model, runtime), "load before": load, "fingerprint": mark}
            write_json(arguments.out, result)
            print(name, {key: result["cases"][name][key] for key in ("floor_mape", "cache", "tables", "forms")})


if __name__ == "__main__":
    main()
