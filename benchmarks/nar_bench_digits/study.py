"""What strategies, rewards and ways of sharing weights are worth where the truth is known: every child was trained alone.

The target is the 25th percentile of the latencies; regret is the accuracy by which the best child under it beats the picked
one, both as trained alone (`Yardstick.quality`), in points. All parts repeat over the same seeds.

table: strategies are told each child's own accuracy on the validation images of a random minibatch, no shared weights.
supernet: shared weights trained with one path per step, then children scored on the validation images: rank correlation of the
  scores with the accuracies alone (of 256 children drawn once; "all" of all), with each of fair paths, a BatchNorm per operator
  and recalibration switched off; ``longer`` for four times the epochs.
checkpoint: strategies are told scores of these very weights, on minibatches.
search: `nar_hw.search` itself, weights and strategy in turn, at equal epochs and evaluations: with PreTrain, without, and with
  PreTrain and fair paths all the way.
rewards: as `table`, with the controller; which share of picks is within 2 % of the target, for two targets, drawing from archs
  under the target only (as the tool does) and from all.

Each finished piece is kept in a journal, and a run that was stopped goes on. Result: results/nar_bench_digits.json and the
pictures beside it.

    OMP_NUM_THREADS=1 python benchmarks/nar_bench_digits/study.py [table supernet checkpoint search rewards] [--seeds 20]
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pictures import draw
from rich.progress import track
from scipy.stats import kendalltau, spearmanr
from torch.nn.modules.batchnorm import _BatchNorm
from yardstick import ARCHS, FOLDER, Yardstick, space, task

from nar_hw._version import versions
from nar_hw.files import write_json
from nar_hw.latency.device import fingerprint
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.search.budget import Budget
from nar_hw.search.config import SearchConfig
from nar_hw.search.feasible import Feasible
from nar_hw.search.finals import conclude
from nar_hw.search.randomness import seeded
from nar_hw.search.reward import REWARDS
from nar_hw.search.run import SearchRun
from nar_hw.search.strategies import STRATEGIES, strategy_class
from nar_hw.search.supernet import Supernet, Switch
from nar_hw.space.spec import Arch
from nar_hw.tasks import ClassificationTask, evaluating

JOURNAL = FOLDER / "study.part"
RESULT = FOLDER.parent / "results" / "nar_bench_digits.json"
PERCENTILE = 25
EVALUATIONS, AT_ONCE, MINIBATCH, RESCORED = 300, 5, 128, 32
MARKS = (25, 50, 100, 200, 300)
NEAR = 0.02
EPOCHS = 60
"""Of shared weights alone."""
SEARCH_EPOCHS = 100
SEARCHES: dict[str, dict[str, Any]] = {
    "with PreTrain": {"warmup_epochs": 50},
    "without PreTrain": {"warmup_epochs": 0},
    "with PreTrain, fair paths": {"warmup_epochs": 50, "paths": "fair"},
}
FAIR = ("reinforce", "surrogate")
"""Strategies that are also tried with the last."""
SEARCH_MARKS = (60, 150, 300)
SOME = random.Random(0).sample(range(len(ARCHS)), 256)
INDEX = {arch: index for index, arch in enumerate(ARCHS)}
VARIANTS: dict[str, dict[str, Any]] = {
    "as nar_hw does": {},
    "uniform paths": {"fair": False},
    "one BatchNorm for all operators": {"own_norms": False},
    "no recalibration": {"recalibrate": False},
}
Scores = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""(N,) accuracies on a minibatch of (N,) children."""


@cache
def known() -> Yardstick:
    return Yardstick.load()


@cache
def shared_task() -> ClassificationTask:
    return task()


def target_ms(percentile: float = PERCENTILE) -> float:
    return float(np.percentile(known().predicted_ms, percentile))


def limits(target: float) -> Feasible:
    return Budget.of(space(), [known().table], [target], SearchConfig()).feasible


def regret(arch: Arch, target: float) -> float:
    """Points of accuracy."""
    quality, meets = known().quality, known().predicted_ms <= target * (1 + 1e-9)
    return 100 * float(quality[meets].max() - quality[INDEX[arch]])


def played(
    strategy: str,
    feasible: Feasible,
    target: float,
    seed: int,
    score: Scores,
    full: NDArray[np.float64],
    reward: str = "accuracy",
) -> tuple[dict[int, float], Arch]:
    """Regret at each mark, and the last pick: of the 32 most promising archs, the best on the whole validation split."""
    player = strategy_class(strategy)(feasible, seed=seed)
    seen: dict[Arch, float] = {}
    regrets: dict[int, float] = {}
    pick: Arch = ()
    for evaluations in range(AT_ONCE, EVALUATIONS + 1, AT_ONCE):
        archs = player.ask(AT_ONCE)
        indices = np.array([INDEX[arch] for arch in archs])
        accuracies = score(indices)
        rewards = REWARDS[reward](accuracies, known().predicted_ms[indices], target)
        player.tell(archs, rewards.tolist())
        seen |= zip(archs, rewards.tolist(), strict=True)
        if evaluations in MARKS:
            own = player.best()
            hopefuls = list(dict.fromkeys([*([] if own is None else [own]), *sorted(seen, key=lambda arch: -seen[arch])]))[
                :RESCORED
            ]
            meeting = [arch for arch in hopefuls if known().predicted_ms[INDEX[arch]] <= target * (1 + 1e-9)] or hopefuls
            pick = max(meeting, key=lambda arch: full[INDEX[arch]])
            regrets[evaluations] = regret(pick, target)
    return regrets, pick


def alone(seed: int) -> Scores:
    """Of children trained alone: their validation accuracy, with the noise of a minibatch."""
    rng, accuracy, images = np.random.default_rng(seed), known().valid[0], known().images["valid"]
    spread = np.sqrt(accuracy * (1 - accuracy) * (1 / MINIBATCH - 1 / images))
    return lambda indices: np.asarray(accuracy[indices] + spread[indices] * rng.normal(size=len(indices)))


def shared(seed: int) -> Scores:
    """Of one set of shared weights: accuracies on random validation images, the same for all children of a call."""
    rng, right = np.random.default_rng(seed), correct(seed)
    return lambda indices: right[:, rng.permutation(right.shape[1])[:MINIBATCH]][indices].mean(axis=1)


def correct(seed: int) -> NDArray[np.bool_]:
    """(1024, images) which validation images each child gets right with the shared weights of ``seed``."""
    path = FOLDER / f"scores_{seed}.part"
    images = known().images["valid"]
    if not path.exists():
        with seeded(seed):
            supernet = trained(seed, fair=True, own_norms=True)
            path.write_bytes(np.packbits(scored(supernet, range(len(ARCHS)), seed, recalibrate=True), axis=1).tobytes())
    packed = np.frombuffer(path.read_bytes(), np.uint8).reshape(len(ARCHS), -1)
    return np.unpackbits(packed, axis=1, count=images).astype(bool)


def trained(seed: int, *, fair: bool, own_norms: bool, epochs: int = EPOCHS) -> Supernet:
    """Shared weights after PreTrain alone."""
    config = SearchConfig(
        seed=seed, warmup_epochs=epochs, epochs=1, warmup_paths="fair" if fair else "uniform", t_0=epochs, strategy="random"
    )
    run = SearchRun(space(seed), shared_task(), [Budget.of(space(), [known().table], [target_ms()], config)], config)
    if not own_norms:
        for module in run.supernet.modules():
            if isinstance(module, Switch) and isinstance(module.current(), _BatchNorm):
                one = module.current()
                module.choices = torch.nn.ModuleDict(dict.fromkeys(module.choices, one))
    for _ in range(epochs):
        run.advance()
    return run.supernet


@torch.no_grad()
def scored(supernet: Supernet, children: Iterable[int], seed: int, *, recalibrate: bool) -> NDArray[np.bool_]:
    """(N, images) which validation images each of N children gets right."""
    generator = torch.Generator().manual_seed(seed)
    batches = [images for images, _ in shared_task().train_batches(128, generator, augment=False)][:2]
    (images, labels), *rest = shared_task().eval_batches("valid", known().images["valid"])
    assert not rest
    rows = []
    with evaluating(supernet):
        for index in children:
            supernet.activate(ARCHS[index])
            if recalibrate:
                supernet.recalibrate(batches)
            rows.append((supernet(images).argmax(1) == labels).numpy())
    return np.stack(rows)


def table_part(seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    feasible = limits(target_ms())
    for name in STRATEGIES:
        if not strategy_class(name).wants_slopes:
            yield name, {"regret": played(name, feasible, target_ms(), seed, alone(seed), known().valid[0])[0]}


def supernet_part(seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    under = known().predicted_ms <= target_ms()
    everything = correct(seed).mean(axis=1)
    yield (
        "all",
        {
            **correlations(everything, known().quality),
            "under the target": correlations(everything[under], known().quality[under]),
        },
    )
    weights: dict[tuple[bool, bool], Supernet] = {}
    for name, off in VARIANTS.items():
        choice = {"fair": True, "own_norms": True, "recalibrate": True, **off}
        key = (choice["fair"], choice["own_norms"])
        with seeded(seed):
            if key not in weights:
                weights[key] = trained(seed, fair=key[0], own_norms=key[1])
            score = scored(weights[key], SOME, seed, recalibrate=choice["recalibrate"]).mean(axis=1)
        yield name, {**correlations(score, known().quality[SOME]), "accuracy": float(score.mean())}


def longer_part(seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, own_norms in (("as nar_hw does", True), ("one BatchNorm for all operators", False)):
        with seeded(seed):
            supernet = trained(seed, fair=True, own_norms=own_norms, epochs=4 * EPOCHS)
            score = scored(supernet, SOME, seed, recalibrate=True).mean(axis=1)
        yield name, {**correlations(score, known().quality[SOME]), "accuracy": float(score.mean())}


def correlations(score: NDArray[np.float64], quality: NDArray[np.float64]) -> dict[str, float]:
    return {"kendall": float(kendalltau(score, quality).statistic), "spearman": float(spearmanr(score, quality).statistic)}


def checkpoint_part(seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    feasible = limits(target_ms())
    for name in STRATEGIES:
        if not strategy_class(name).wants_slopes:
            yield name, {"regret": played(name, feasible, target_ms(), seed, shared(seed), correct(seed).mean(axis=1))[0]}


def search_part(seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind, options in SEARCHES.items():
        for name in STRATEGIES if "paths" not in options else FAIR:
            warmup = options["warmup_epochs"]
            samples = EVALUATIONS // (SEARCH_EPOCHS - warmup)
            config = SearchConfig(
                strategy=name,
                seed=seed,
                epochs=SEARCH_EPOCHS - warmup,
                t_0=SEARCH_EPOCHS,
                updates=1,
                samples=samples,
                rescored=RESCORED,
                **options,
            )
            budget = Budget.of(space(), [known().table], [target_ms()], config)
            regrets = {}
            with seeded(seed):
                run = SearchRun(space(seed), shared_task(), [budget], config)
                while run.epoch < run.epochs:
                    run.advance()
                    evaluations = (run.epoch - warmup) * samples
                    if evaluations in SEARCH_MARKS:
                        state = run.state_dict()
                        pick = conclude(run, None).pick.arch
                        run.load_state_dict(state)
                        regrets[evaluations] = regret(pick, target_ms())
            yield (
                f"{name}, {kind}",
                {
                    "regret": regrets,
                    "latency / target": float(known().predicted_ms[INDEX[pick]]) / target_ms(),
                    "beyond training": sum(row["strategy_s"] for row in run.history) / sum(row["train_s"] for row in run.history),
                },
            )


def rewards_part(seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for percentile in (PERCENTILE, 60):
        target = target_ms(percentile)
        for masked in (True, False):
            feasible = limits(target)
            if not masked:
                feasible = replace(feasible, target_ms=feasible.bounds_ms[1])
            for reward in REWARDS:
                _, pick = played("reinforce", feasible, target, seed, alone(seed), known().valid[0], reward)
                ratio = float(known().predicted_ms[INDEX[pick]]) / target
                yield (
                    f"{reward}, percentile {percentile}, {'under the target only' if masked else 'all archs'}",
                    {
                        "regret": regret(pick, target),
                        "latency / target": ratio,
                        "near": abs(ratio - 1) <= NEAR,
                    },
                )


PARTS = {
    "table": table_part,
    "supernet": supernet_part,
    "longer": longer_part,
    "checkpoint": checkpoint_part,
    "search": search_part,
    "rewards": rewards_part,
}


def journal() -> dict[tuple[str, int], dict[str, Any]]:
    if not JOURNAL.exists():
        return {}
    lines = map(json.loads, JOURNAL.read_text().splitlines())
    return {(line["part"], line["seed"]): line["rows"] for line in lines}


def summary(seeds: int) -> dict[str, Any]:
    """Means over seeds, each with its standard error."""
    parts: dict[str, dict[str, Any]] = {}
    for part in PARTS:
        rows = [found for (name, seed), found in journal().items() if name == part and seed < seeds]
        names = rows[0] if len(rows) > 1 else ()
        parts[part] = {name: {"seeds": len(rows), **averaged([row[name] for row in rows])} for name in names}
    yard, index = known(), ~np.isnan(known().valid).any(axis=0)
    quality, under = yard.quality, yard.predicted_ms <= target_ms()
    return {
        "command": f"python benchmarks/nar_bench_digits/study.py --seeds {seeds}",
        "versions": versions("torch"),
        "device": fingerprint(RuntimeConfig(runtime="torch_eager"))["device"],
        "truth": {
            "children under the target": int(under.sum()),
            "best accuracy": round(100 * float(quality.max()), 2),
            "best accuracy under the target": round(100 * float(quality[under].max()), 2),
            "regret of a random child under the target": round(100 * float((quality[under].max() - quality[under]).mean()), 2),
            "accuracy of all children, mean and std": [round(100 * float(f(quality)), 2) for f in (np.mean, np.std)],
            "std over seeds of a child's validation accuracy": round(
                100 * float(yard.valid[:, index].std(axis=0, ddof=1).mean()), 2
            ),
            "kendall of accuracies of two seeds": round(
                float(kendalltau(yard.valid[0, index], yard.valid[1, index]).statistic), 3
            ),
            "kendall of validation and test accuracies": round(float(kendalltau(yard.valid[0], yard.test[0]).statistic), 3),
        },
        **parts,
    }


def averaged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard error of each number, also within dicts; of yes and no, how often yes."""
    result: dict[str, Any] = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if isinstance(first, dict):
            result[name] = averaged(values)
        elif isinstance(first, bool):
            result[name] = sum(values) / len(values)
        else:
            result[name] = [round(float(np.mean(values)), 4), round(float(np.std(values, ddof=1)) / len(values) ** 0.5, 4)]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=" ".join(PARTS))
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done = journal()
    left = [(part, seed) for part in arguments.parts for seed in range(arguments.seeds) if (part, seed) not in done]
    for part, seed in track(left, description="study"):
        rows = json.loads(json.dumps(dict(PARTS[part](seed))))
        with JOURNAL.open("a") as file:
            file.write(json.dumps({"part": part, "seed": seed, "rows": rows}) + "\n")
    write_json(RESULT, summary(arguments.seeds))
    draw(RESULT)


if __name__ == "__main__":
    main()
