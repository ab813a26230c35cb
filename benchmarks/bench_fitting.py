"""Fitting candidates inside a trained network: what a step costs, and what scores of fitted children are worth.

cost: a fitting step over all slots and candidates against a plain training step of the network, batch 128, SGD with momentum,
  fp32, by the CPU time of the process; both are timed in turn in every round, "ratio" is the median over rounds. Dealt: the
  images of a step are dealt out among the candidates of a slot (default); all: each candidate sees every image. Memory is
  how far the peak of the process rises from before the network is made to after three steps, each kind in a process of its own.
ranks: on nar_bench_digits, per seed: the network is trained as every child of the yardstick was; its children are then scored on
  the validation images in three ways: (a) fitted candidates, (b) these after some epochs of fair paths with the teacher's logits,
  (c) a supernet from scratch, trained with fair paths for as long as (a) and as long as (b) take. Kendall's tau of the scores
  with the yardstick's children trained from scratch (128 drawn once), and with 24 children fine-tuned alone from fitted weights.
  Seconds are CPU seconds of one process.

Result: results/fitting.json.

    OMP_NUM_THREADS=1 python benchmarks/bench_fitting.py [cost ranks] [--rounds 8] [--seeds 3]
"""

import argparse
import copy
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
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

from nar_hw.bench.meters import HostMemory
from nar_hw.data import load_data
from nar_hw.files import read_json, write_json
from nar_hw.latency.device import fingerprint
from nar_hw.models import build_model
from nar_hw.runtimes import RuntimeConfig
from nar_hw.search.config import SearchConfig
from nar_hw.search.fitting import FitConfig, Fitting, fit
from nar_hw.search.loop import optimizer_of
from nar_hw.search.scoring import Scorer
from nar_hw.search.supernet import FairPaths, Supernet
from nar_hw.space.space import SearchSpace
from nar_hw.tasks import ClassificationTask
from nar_hw.training.loop import train
from nar_hw.training.recipes import Recipe

RESULT = Path(__file__).parent / "results" / "fitting.json"
NETWORKS = {"resnet_digits": (1, 8, 8), "resnet20_cifar": (3, 32, 32)}
BATCH = 128
KINDS = ("plain", "dealt", "all")
FIT = FitConfig(epochs=6, batch=64)
FAIR_EPOCHS, FAIR_LR = 15, 0.03
ALONE = Recipe(epochs=8, batch=64, schedule="one-cycle", warmup=0.1, lr=0.1, nesterov=True, distill=0.5)
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


def ranks(seed: int) -> dict[str, Any]:
    made, known = task(), Yardstick.load()
    teacher = space(seed).build(space(seed).incumbent)
    train(teacher, made, RECIPE, seed=seed)
    trained = SearchSpace.from_model(teacher, INPUT_SHAPE, operators=OPERATORS)
    fitted = Supernet(trained)
    seconds = {"a": clocked(lambda: fit(fitted, made, FitConfig(epochs=FIT.epochs, batch=FIT.batch, seed=seed)))}
    children = random.Random(100 + seed).sample(range(len(ARCHS)), CHILDREN)
    alone = []
    for index in children:
        child = fitted.child(ARCHS[index])
        train(child, made, ALONE, seed=seed, teacher=teacher)
        alone.append((made.evaluate(child, "valid") + made.evaluate(child, "test")) / 2)
    both = copy.deepcopy(fitted)
    learn = clocked(lambda: fair(both, made, FAIR_EPOCHS, lr=FAIR_LR, seed=seed, teacher=teacher))
    seconds["b"] = seconds["a"] + learn
    nets = {"a": fitted, "b": both}
    for name, same in (("c, time of a", "a"), ("c, time of b", "b")):
        nets[name] = Supernet(space(seed))
        epochs = max(1, round(FAIR_EPOCHS * seconds[same] / learn))
        seconds[name] = clocked(lambda: fair(nets[name], made, epochs, lr=0.1, seed=seed, teacher=None))  # noqa: B023
    result: dict[str, Any] = {"seed": seed, "teacher": made.evaluate(teacher, "test"), "alone, mean": float(np.mean(alone))}
    for name, net in nets.items():
        all_scores = scored(net, made, SOME, seed)
        result[name] = {
            "seconds": round(seconds[name], 2),
            "tau, yardstick": round(float(kendalltau(all_scores, known.quality[SOME]).statistic), 4),
            "tau, fine-tuned alone": round(float(kendalltau(scored(net, made, children, seed), alone).statistic), 4),
            "accuracy, mean": round(float(np.mean(all_scores)), 4),
        }
    print(result, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["cost", "ranks"])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = read_json(RESULT) if RESULT.exists() else {}
    here = fingerprint(RuntimeConfig(runtime="torch_eager", device="cpu"))
    command = "python " + " ".join(["benchmarks/bench_fitting.py", *sys.argv[1:]])
    for part in arguments.parts:
        if part == "cost":
            found = {name: {"command": command, **rows} for name, rows in cost(arguments.rounds, arguments.networks).items()}
        else:
            found = {f"seed {seed}": {"command": command, **ranks(seed)} for seed in range(arguments.seeds)}
        result[part] = {**result.get(part, {}), **found}
        result |= {"device": here["device"], "torch": here["torch"], "note": "on a shared machine under load; CPU seconds"}
        write_json(RESULT, result)


if __name__ == "__main__":
    main()
