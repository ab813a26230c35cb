"""Fitting candidates inside a trained network: what a step costs, and what scores of fitted children are worth.

cost: a fitting step over all slots and candidates against a plain training step of the network, batch 128, SGD with momentum,
  fp32, by the CPU time of the process; both are timed in turn in every round, "ratio" is the median over rounds. Dealt: the
  images of a step are dealt out among the candidates of a slot (default); all: each candidate sees every image. Memory is
  how far the peak of the process rises from before the network is made to after three steps, each kind in a process of its own.
ranks: on nar_bench_digits, per seed: the network is trained as every child of the yardstick was; its children are then scored on
  the validation images in three ways: (a) fitted candidates, (b) these after some epochs of fair paths with the teacher's logits,
  (c) a supernet from scratch, trained with fair paths for as long as (a) and as long as (b) take. Kendall's tau of the scores
  with the yardstick's children trained from scratch (128 drawn once), and with 24 children fine-tuned alone from fitted weights.
  "picked" is the best child by each score under 0.7 of the network's latency, out of those that nar_hw.search scores: its test
  accuracy before any training as a share of the teacher's, and the share of the children under the target that are better.
recipes: per seed, 5 children drawn from those under that target inherit the fitted weights and are trained by several recipes,
  one-cycle unless it says SGDR, all at once or in two phases; the yardstick's are the same children after 15 epochs from scratch.
  Seconds are CPU seconds of one process.

Result: results/fitting.json. On one core of two of a Xeon, dealt: time 1.24 (resnet_digits) and 1.83 (resnet20_cifar) of a
plain step, memory 0.96 and 0.64. Kendall's tau, means of 3 seeds, yardstick / fine-tuned alone: (a) 0.70 / 0.81, (b) 0.70 / 0.75,
(c) 0.32 / 0.27 and 0.49 / 0.53; picks by (a) have 0.96 of the teacher's accuracy before any training. Best recipe of 10 epochs:
96.3 %, against 95.5 % from scratch.

    OMP_NUM_THREADS=1 python benchmarks/bench_fitting.py [cost ranks recipes] [--rounds 8] [--seeds 3]
"""

import argparse
import copy
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from torch import nn

sys.path.insert(0, str(Path(__file__).parent / "nar_bench_digits"))
from yardstick import ARCHS, INPUT_SHAPE, OPERATORS, RECIPE, Yardstick, space, task

from nar_hw.data import load_data
from nar_hw.files import read_json, write_json
from nar_hw.latency.device import fingerprint
from nar_hw.latency.meters import HostMemory
from nar_hw.models import build_model
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.search.config import FITTED, FitConfig, SearchConfig
from nar_hw.search.fitting import Fitting, fit
from nar_hw.search.loop import search
from nar_hw.search.run import optimizer_of
from nar_hw.search.scoring import Scorer
from nar_hw.search.supernet import FairPaths, Supernet
from nar_hw.space.space import SearchSpace
from nar_hw.tasks import ClassificationTask
from nar_hw.training.loop import train
from nar_hw.training.phases import two_phase
from nar_hw.training.recipes import Recipe

RESULT = Path(__file__).parent / "results" / "fitting.json"
NETWORKS = {"resnet_digits": (1, 8, 8), "resnet20_cifar": (3, 32, 32)}
BATCH = 128
KINDS = ("plain", "dealt", "all")
FIT = FitConfig(epochs=6, batch=64)
FAIR_EPOCHS, FAIR_LR = 15, 0.03
ALONE = Recipe(epochs=6, batch=64, schedule="one-cycle", warmup=0.1, lr=0.1, nesterov=True, distill=0.9)
RECIPES_TRIED = {
    "6 epochs, rate 0.1, distill 0.9": ALONE,
    "6 epochs, rate 0.1, distill 0.5": replace(ALONE, distill=0.5),
    "6 epochs, rate 0.03, distill 0.9": replace(ALONE, lr=0.03),
    "6 epochs, rate 0.1, labels only": replace(ALONE, distill=0.0),
    "10 epochs, rate 0.1, distill 0.5": replace(ALONE, distill=0.5, epochs=10),
    "15 epochs, rate 0.1, distill 0.5": replace(ALONE, distill=0.5, epochs=15),
    "10 epochs, SGDR, rate 0.05, distill 0.7": Recipe(
        epochs=10, batch=64, lr=0.05, nesterov=True, distill=0.7, decay_vectors=False
    ),
}
TWO_PHASES = ("10 epochs, SGDR, rate 0.05, distill 0.7", "6 epochs, rate 0.1, distill 0.5")
"""Of these, which are also tried in two phases."""
SHARE = 0.7
"""Of the network's latency: the target of the children whose recipes are compared."""
TRIED = 5
SOME = random.Random(0).sample(range(len(ARCHS)), 128)
CHILDREN = 24


def step_of(network: str, kind: str) -> Callable[[], None]:
    torch.manual_seed(0)
    shape = NETWORKS[network]
    model = build_model(network, input_shape=shape, num_classes=10)
    images, labels = torch.randn(BATCH, *shape), torch.randint(0, 10, (BATCH,))
    if kind == "plain":
        model.train()
        optimizer = optimizer_of(model, SearchConfig(lr=1e-3))

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()

        return step
    made = ClassificationTask(load_data(f"fake:{shape[0]}x{shape[1]}x{shape[2]}x10"))
    fitting = Fitting(Supernet(SearchSpace.from_model(model, shape)), made, FitConfig(batch=BATCH, deal=kind == "dealt"))

    def fitting_step() -> None:
        with fitting.prepared():
            fitting.step(images, 1e-3)

    return fitting_step


def peak_mib(network: str, kind: str) -> float:
    torch.set_num_threads(1)
    nn.Conv2d(1, 1, 1)(torch.zeros(1, 1, 2, 2)).sum().backward()  # what torch itself needs first
    memory = HostMemory()
    step = step_of(network, kind)
    for _ in range(3):
        step()
    return memory.peak_mib() or float("nan")


def cost(rounds: int, networks: Sequence[str]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for network in networks:
        steps = {kind: step_of(network, kind) for kind in KINDS}
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for turn in range(rounds + 1):
            for kind in KINDS:
                start = time.process_time()
                steps[kind]()
                if turn:
                    times[kind].append(1e3 * (time.process_time() - start))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            memory = {kind: pool.submit(peak_mib, network, kind).result() for kind in KINDS}
        ratios = {kind: [own / plain for own, plain in zip(times[kind], times["plain"], strict=True)] for kind in KINDS}
        results[network] = {
            kind: {
                "ms": round(statistics.median(times[kind]), 2),
                "time ratio": round(statistics.median(ratios[kind]), 3),
                "time ratio, range": [round(min(ratios[kind]), 3), round(max(ratios[kind]), 3)],
                "peak MiB": round(memory[kind], 1),
                "memory ratio": round(memory[kind] / memory["plain"], 3),
            }
            for kind in KINDS
        }
        print(network, results[network], flush=True)
    return results


def fair(supernet: Supernet, made: ClassificationTask, epochs: int, *, lr: float, seed: int, teacher: nn.Module | None) -> None:
    """Train shared weights with fair paths: on the teacher's logits, or on the labels where there is none."""
    config = SearchConfig(lr=lr, batch=64, seed=seed, warmup_epochs=epochs, epochs=1, t_0=epochs)
    optimizer, generator, rng = optimizer_of(supernet, config), torch.Generator().manual_seed(seed), random.Random(seed)
    paths, steps = FairPaths(supernet.space), made.train_size // config.batch
    supernet.train()
    for epoch in range(epochs):
        for step, (images, labels) in enumerate(made.train_batches(config.batch, generator)):
            for group in optimizer.param_groups:
                group["lr"] = config.recipe.learning_rate(epoch + step / steps)
            supernet.activate(paths.draw(rng))
            optimizer.zero_grad(set_to_none=True)
            output = supernet(images)
            if teacher is None:
                loss = F.cross_entropy(output, labels)
            else:
                with torch.no_grad():
                    wanted = F.log_softmax(teacher(images) / 4, dim=1)
                loss = 16 * F.kl_div(F.log_softmax(output / 4, dim=1), wanted, reduction="batchmean", log_target=True)
            torch.autograd.backward(loss)
            optimizer.step()


def scored(supernet: Supernet, made: ClassificationTask, children: Sequence[int], seed: int) -> list[float]:
    scorer = Scorer(supernet.eval(), made, SearchConfig(), torch.Generator().manual_seed(seed))
    scorer.renew()
    return scorer.on_all([ARCHS[index] for index in children])


def clocked(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def beginning(seed: int) -> tuple[ClassificationTask, nn.Module, Supernet, float]:
    """The data, the trained network, its fitted supernet and what fitting took."""
    made = task()
    teacher = space(seed).build(space(seed).incumbent)
    train(teacher, made, RECIPE, seed=seed)
    fitted = Supernet(SearchSpace.from_model(teacher, INPUT_SHAPE, operators=OPERATORS))
    return made, teacher, fitted, clocked(lambda: fit(fitted, made, replace(FIT, seed=seed)))


def picked(net: Supernet, made: ClassificationTask, teacher: nn.Module, seed: int) -> dict[str, float]:
    known = Yardstick.load()
    target = SHARE * known.table.incumbent_ms
    arch = search(net.space, made, known.table, target_ms=target, config=replace(FITTED, fit=None, seed=seed), supernet=net).arch
    scorer = Scorer(net, made, SearchConfig(), torch.Generator().manual_seed(seed))
    scorer.renew()
    scorer.on_all([arch])  # the statistics of its norms
    under = known.quality[known.predicted_ms <= target * (1 + 1e-9)]
    share = made.evaluate(net.child(arch), "test") / made.evaluate(teacher, "test")
    return {"assembled / teacher": round(share, 4), "better": round(float((under > known.quality[ARCHS.index(arch)]).mean()), 4)}


def recipes(seed: int) -> dict[str, Any]:
    made, teacher, fitted, _ = beginning(seed)
    known = Yardstick.load()
    under = np.flatnonzero(known.predicted_ms <= SHARE * known.table.incumbent_ms).tolist()
    children = random.Random(seed).sample(under, TRIED)
    result: dict[str, Any] = {"yardstick": round(float(known.quality[children].mean()), 4)}
    for name, recipe in RECIPES_TRIED.items():
        for phases in ("one phase", "two phases") if name in TWO_PHASES else ("one phase",):
            scores = []
            for index in children:
                child = fitted.child(ARCHS[index])
                guide = teacher if recipe.distill else None
                if phases == "one phase":
                    train(child, made, recipe, seed=seed, teacher=guide)
                else:
                    new = [
                        path
                        for code, slot in zip(ARCHS[index], fitted.space.slots, strict=True)
                        for site in slot.sites
                        for path in (site.conv, site.norm)
                        if code != slot.incumbent and path is not None
                    ]
                    two_phase(child, made, recipe, new=new, seed=seed, teacher=guide)
                scores.append((made.evaluate(child, "valid") + made.evaluate(child, "test")) / 2)
            result[f"{name}, {phases}"] = round(float(np.mean(scores)), 4)
    print(result, flush=True)
    return result


def ranks(seed: int) -> dict[str, Any]:
    made, teacher, fitted, fitting_s = beginning(seed)
    known, seconds = Yardstick.load(), {"a": fitting_s}
    children = random.Random(100 + seed).sample(range(len(ARCHS)), CHILDREN)
    alone = []
    for index in children:
        child = fitted.child(ARCHS[index])
        train(child, made, ALONE, seed=seed, teacher=teacher)
        alone.append((made.evaluate(child, "valid") + made.evaluate(child, "test")) / 2)
    both = copy.deepcopy(fitted)
    seconds["b"] = seconds["a"] + clocked(lambda: fair(both, made, FAIR_EPOCHS, lr=FAIR_LR, seed=seed, teacher=teacher))
    nets = {"a": fitted, "b": both}
    epoch_s = clocked(lambda: fair(Supernet(space(seed)), made, 5, lr=0.1, seed=seed, teacher=None)) / 5
    for name, same in (("c, time of a", "a"), ("c, time of b", "b")):
        net, epochs = Supernet(space(seed)), max(1, round(seconds[same] / epoch_s))
        seconds[name] = clocked(partial(fair, net, made, epochs, lr=0.1, seed=seed, teacher=None))
        nets[name] = net
    result: dict[str, Any] = {"seed": seed, "teacher": made.evaluate(teacher, "test"), "alone, mean": float(np.mean(alone))}
    for name, net in nets.items():
        all_scores = scored(net, made, SOME, seed)
        result[name] = {
            "seconds": round(seconds[name], 2),
            "tau, yardstick": round(float(kendalltau(all_scores, known.quality[SOME]).statistic), 4),
            "tau, fine-tuned alone": round(float(kendalltau(scored(net, made, children, seed), alone).statistic), 4),
            "accuracy, mean": round(float(np.mean(all_scores)), 4),
            **picked(net, made, teacher, seed),
        }
    print(result, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["cost", "ranks", "recipes"])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = read_json(RESULT) if RESULT.exists() else {}
    here = fingerprint(RuntimeConfig(runtime="torch_eager", device="cpu"))
    command = "python " + " ".join(["benchmarks/bench_fitting.py", *sys.argv[1:]])
    for part in arguments.parts:
        if part == "cost":
            found = {name: {"command": command, **rows} for name, rows in cost(arguments.rounds, arguments.networks).items()}
        else:
            study = {"ranks": ranks, "recipes": recipes}[part]
            found = {f"seed {seed}": {"command": command, **study(seed)} for seed in range(arguments.first, arguments.seeds)}
        result[part] = {**result.get(part, {}), **found}
        result |= {"device": here["device"], "torch": here["torch"], "note": "on a shared machine under load; CPU seconds"}
        write_json(RESULT, result)


if __name__ == "__main__":
    main()
