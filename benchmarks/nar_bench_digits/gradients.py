"""Search by gradients where the truth is known: DARTS, ProxylessNAS and the Gumbel softmax with fair paths, beside others.

`nar_hw.search` itself, as in study.py's part "search" with PreTrain: 50 epochs of shared weights alone, 50 in turn with 6 archs
scored an epoch. The shared weights are trained by fair paths throughout, so that the gradients move the logits alone; "own paths"
is each strategy's own way: what its policy draws, and for DARTS the mixture of all operators. Regret is as in study.py; its
interval is a percentile bootstrap of the mean over seeds (95 %), of the difference from `random` over the same seeds. "beyond
training" is the time of the strategy's part over that of the shared weights.

Each finished piece is kept in a journal, and a run that was stopped goes on. Result: results/nar_bench_gradients.json.

    OMP_NUM_THREADS=1 python benchmarks/nar_bench_digits/gradients.py [--seeds 20] [--own-paths]
"""

import argparse
import copy
import json
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from study import EVALUATIONS, INDEX, RESCORED, SEARCH_EPOCHS, known, regret, shared_task, target_ms
from yardstick import FOLDER, space

from nar_hw._version import versions
from nar_hw.files import write_json
from nar_hw.latency.device import fingerprint
from nar_hw.runtimes import RuntimeConfig
from nar_hw.search.budget import Budget
from nar_hw.search.config import Paths, SearchConfig
from nar_hw.search.finals import conclude
from nar_hw.search.randomness import seeded
from nar_hw.search.run import SearchRun

JOURNAL = FOLDER / "gradients.part"
RESULT = FOLDER.parent / "results" / "nar_bench_gradients.json"
WARMUP = 50
KINDS: tuple[tuple[str, Paths], ...] = (
    ("random", "fair"),
    ("darts", "fair"),
    ("proxyless", "fair"),
    ("gradient", "fair"),
)
OWN: tuple[tuple[str, Paths], ...] = tuple((strategy, "strategy") for strategy, _ in KINDS[1:])
"""With ``--own-paths``."""


def named(strategy: str, paths: Paths) -> str:
    return f"{strategy}, {'fair paths' if paths == 'fair' else 'own paths'}"


@cache
def pretrained(seed: int) -> dict[str, Any]:
    """The state after PreTrain, which is the same for all: no strategy has been asked yet."""
    with seeded(seed):
        run = made("random", "fair", seed)
        while run.epoch < WARMUP:
            run.advance()
        return run.state_dict()


def made(strategy: str, paths: Paths, seed: int) -> SearchRun:
    config = SearchConfig(
        strategy=strategy,
        paths=paths,
        seed=seed,
        warmup_epochs=WARMUP,
        epochs=SEARCH_EPOCHS - WARMUP,
        t_0=SEARCH_EPOCHS,
        updates=1,
        samples=EVALUATIONS // (SEARCH_EPOCHS - WARMUP),
        rescored=RESCORED,
    )
    return SearchRun(space(seed), shared_task(), [Budget.of(space(), [known().table], [target_ms()], config)], config)


def searched(strategy: str, paths: Paths, seed: int) -> dict[str, float]:
    """What one search finds, in the end."""
    before = copy.deepcopy(pretrained(seed))
    with seeded(seed):
        run = made(strategy, paths, seed)
        run.load_state_dict({**before, "strategies": [run.players[0].strategy.state_dict()]})
        while run.epoch < run.epochs:
            run.advance()
        own = run.players[0].strategy.best()
        pick = conclude(run, None).pick.arch
    return {
        "regret": regret(pick, target_ms()),
        **({} if own is None else {"regret of its own choice": regret(own, target_ms())}),
        "latency / target": float(known().predicted_ms[INDEX[pick]]) / target_ms(),
        "beyond training": sum(row["strategy_s"] for row in run.history) / sum(row["train_s"] for row in run.history),
        **({"entropy": run.history[-1]["entropy"]} if "entropy" in run.history[-1] else {}),
    }


def journal() -> dict[tuple[str, int], dict[str, float]]:
    if not JOURNAL.exists():
        return {}
    return {(line["name"], line["seed"]): line["found"] for line in map(json.loads, JOURNAL.read_text().splitlines())}


def interval(values: NDArray[np.float64]) -> list[float]:
    """Mean and the 95 % percentile bootstrap of it."""
    drawn = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(axis=1)
    return [round(float(value), 3) for value in (values.mean(), *np.percentile(drawn, (2.5, 97.5)))]


def summary(seeds: int) -> dict[str, Any]:
    """Of the seeds that all kinds have done."""
    found = journal()
    names = [named(*kind) for kind in (*KINDS, *OWN) if (named(*kind), 0) in found]
    done = [seed for seed in range(seeds) if all((name, seed) in found for name in names)]
    rows: dict[str, Any] = {}
    for name in names:
        first = found[name, done[0]]
        values = {key: np.array([found[name, seed][key] for seed in done]) for key in first}
        against = values["regret"] - np.array([found[names[0], seed]["regret"] for seed in done])
        rows[name] = {key: interval(value) for key, value in values.items()}
        if name != names[0]:
            rows[name]["regret beyond random, same seeds"] = interval(against)
    return {
        "command": f"python benchmarks/nar_bench_digits/gradients.py --seeds {seeds}",
        "versions": versions("torch"),
        "device": fingerprint(RuntimeConfig(runtime="torch_eager"))["device"],
        "seeds": len(done),
        "numbers": "mean, 2.5 % and 97.5 % of its bootstrap over seeds; regret in points of accuracy",
        "search": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--own-paths", action="store_true", help="each strategy's own way beside fair paths")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done = journal()
    kinds = (*KINDS, *OWN) if arguments.own_paths else KINDS
    left = [(kind, seed) for seed in range(arguments.seeds) for kind in kinds if (named(*kind), seed) not in done]
    for kind, seed in track(left, description="gradients"):
        line = {"name": named(*kind), "seed": seed, "found": searched(*kind, seed)}
        with JOURNAL.open("a") as file:
            file.write(json.dumps(line) + "\n")
    write_json(RESULT, summary(arguments.seeds))


if __name__ == "__main__":
    main()
