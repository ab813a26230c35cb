"""What the NAR paper says of its own search, tried where searches take seconds: with and without PreTrain.

The paper's two searches (Table 1) replaced 5 operators of 24 without PreTrain and 8 with it. It concludes that sampling is biased
without, that PreTrain makes operators more diverse, and that deeper operators are replaced more. Each search here is the preset
"paper" on the five slots of this benchmark, as small as they are: 14 epochs in three cosines of 2, 4 and 8, of which PreTrain is
the first (the paper: 150 and 10), 10 updates of 6 archs an epoch, and a learning rate of the controller of 1e-2 (ENAS: 1e-3),
since it sees a small share of the paper's rewards.

"replaced": how many of the pick's five operators are not conv3x3; "kinds": how many kinds of operators it has; "entropy": of the
policy in the last epoch, relative to that of uniform draws; "depth": the rank correlation of a slot's place with how often it is
replaced over all seeds; "accuracy": what the pick has when trained alone, of 100. Intervals are 95 % of 10,000 bootstrap samples
of the seeds.
Result of 7 seeds: ../results/paper_claims.json. PreTrain leaves the policy more entropy (0.49 of uniform, without it 0.45;
difference 0.01 to 0.07), as the paper says of diversity; it does not replace more operators (1.1 and 1.7 of 5, difference -1.6 to
0.6), and here shallow operators are replaced more, not deep ones (depth -0.63 and -0.67, both intervals below 0).

    OMP_NUM_THREADS=1 python benchmarks/nar_bench_digits/claims.py [--seeds 20]

It goes on where it was stopped (claims.jsonl.part).
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from scipy.stats import spearmanr
from yardstick import ARCHS, OPERATORS, Yardstick, space, task

from nar_hw._version import versions
from nar_hw.files import write_json
from nar_hw.latency.device import fingerprint
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.search.loop import search
from nar_hw.search.presets import preset_named

FOLDER = Path(__file__).parent
RESULT, JOURNAL = FOLDER.parent / "results" / "paper_claims.json", FOLDER / "claims.jsonl.part"
EPOCHS, PRETRAIN = 14, 2
KINDS = {"with PreTrain": ("paper", PRETRAIN), "without PreTrain": ("paper-without-pretrain", 0)}
UNIFORM = 5 * math.log(len(OPERATORS))
SAMPLES = 10_000

Values = NDArray[np.float64]


def searched(kind: str, seed: int) -> dict[str, Any]:
    """One search."""
    name, pretrain = KINDS[kind]
    preset = preset_named(name).search
    config = replace(
        preset,
        strategy_options={**preset.strategy_options, "lr": 1e-2, "lstm_lr": 1e-2},
        seed=seed,
        warmup_epochs=pretrain,
        epochs=EPOCHS - pretrain,
        t_0=PRETRAIN,
        batch=64,
        updates=10,
        samples=6,
    )
    start = time.process_time()
    result = search(space(seed), task(), config=config)
    known = Yardstick.load()
    return {
        "kind": kind,
        "seed": seed,
        "arch": list(result.arch),
        "entropy": result.history[-1]["entropy"] / UNIFORM,
        "accuracy": 100 * float(known.quality[ARCHS.index(result.arch)]),
        "cpu_s": round(time.process_time() - start, 2),
    }


def interval(of: Callable[..., float], *samples: Values) -> dict[str, float]:
    """A statistic of one row per seed, paired over ``samples``, with its 95 % interval over seeds."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(samples[0]), (SAMPLES, len(samples[0])))
    values = np.array([of(*(sample[rows] for sample in samples)) for rows in drawn])
    low, high = np.nanquantile(values, (0.025, 0.975))
    return {"value": round(of(*samples), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def mean(values: Values) -> float:
    return float(values.mean())


def difference(first: Values, second: Values) -> float:
    return float(first.mean() - second.mean())


def depth(replaced: Values) -> float:
    """(seeds, slots) of zeros and ones -> rank correlation of the slots' places with their shares; nan where all are alike."""
    shares = replaced.mean(axis=0)
    if np.ptp(shares) == 0:
        return math.nan
    return float(spearmanr(np.arange(len(shares)), shares).statistic)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    of: dict[str, dict[str, Values]] = {}
    for kind in KINDS:
        mine = sorted((row for row in rows if row["kind"] == kind), key=lambda row: int(row["seed"]))
        archs = np.array([row["arch"] for row in mine])
        of[kind] = {
            "replaced": (archs > 0).sum(axis=1).astype(float),
            "kinds": np.array([len(set(arch)) for arch in archs.tolist()], float),
            "entropy": np.array([row["entropy"] for row in mine]),
            "accuracy": np.array([row["accuracy"] for row in mine]),
            "slots": (archs > 0).astype(float),
        }
    found: dict[str, Any] = {
        kind: {
            **{name: interval(mean, values[name]) for name in ("replaced", "kinds", "entropy", "accuracy")},
            "depth": interval(depth, values["slots"]),
            "replaced per slot": values["slots"].mean(axis=0).round(3).tolist(),
        }
        for kind, values in of.items()
    }
    first, second = of.values()
    found["with less without"] = {
        name: interval(difference, first[name], second[name]) for name in ("replaced", "kinds", "entropy", "accuracy")
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in JOURNAL.read_text().splitlines()] if JOURNAL.exists() else []
    done = {(row["kind"], row["seed"]) for row in rows}
    missing = [(kind, seed) for seed in range(arguments.seeds) for kind in KINDS if (kind, seed) not in done]
    for kind, seed in track(missing, description="searches"):
        rows.append(searched(kind, seed))
        with JOURNAL.open("a") as journal:
            journal.write(json.dumps(rows[-1]) + "\n")
    rows = [row for row in rows if row["seed"] < arguments.seeds]
    known = Yardstick.load()
    write_json(
        arguments.out,
        {
            "command": f"python benchmarks/nar_bench_digits/claims.py --seeds {arguments.seeds}",
            "versions": versions("torch"),
            "device": fingerprint(RuntimeConfig(runtime="torch_eager"))["device"],
            "seeds": arguments.seeds,
            "cpu seconds per search, median": float(np.median([row["cpu_s"] for row in rows])),
            "of a random child": {
                "replaced": 5 * (1 - 1 / len(OPERATORS)),
                "kinds": round(float(np.mean([len(set(arch)) for arch in ARCHS])), 4),
                "accuracy": round(100 * float(known.quality.mean()), 2),
                "best accuracy": round(100 * float(known.quality.max()), 2),
            },
            **summary(rows),
        },
    )


if __name__ == "__main__":
    main()
