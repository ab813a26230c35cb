"""Do chosen proxies rank children better than random ones? And what does an epoch of the mini-batch study cost?

digits: a sample of the children of nar_bench_digits, whose true quality is known (the mean of three trainings on all images), is
trained on proxies of a fifth of the images. cifar: the same network on 2,000 CIFAR-10 images at 16x16 pixels, the truth being
three trainings of each child on all of them. Every proxy is one seed: it decides the images, the initial weights and the order.
The row "all images" is a single training on all images against the mean of the other two: what no proxy can be asked to exceed.
cost: CPU time of an epoch of a study over that of the same training without it, in turn on one thread. Small batches are the hard
case: what a gradient costs to sketch does not depend on how many images it is of.

Every finished training is kept in bench_proxy.part; a run that was stopped goes on.

    OMP_NUM_THREADS=1 python benchmarks/bench_proxy.py [--stage digits|cifar|cost|write] [--cifar FOLDER] [--seeds 10]
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from nar_hw._version import versions
from nar_hw.data import ImageData, Split, SplitName, load_data
from nar_hw.files import write_json
from nar_hw.latency.device import fingerprint
from nar_hw.models import build_model
from nar_hw.proxy.ranking import Ranking
from nar_hw.proxy.select import select
from nar_hw.proxy.steps import Scorer
from nar_hw.proxy.study import study
from nar_hw.proxy.subset import subset
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch
from nar_hw.tasks import ClassificationTask
from nar_hw.training.loop import train
from nar_hw.training.recipes import Recipe

sys.path.insert(0, str(Path(__file__).parent / "nar_bench_digits"))
import yardstick
from yardstick import ARCHS, OPERATORS, Yardstick

HERE = Path(__file__).parent
JOURNAL, RESULT = HERE / "bench_proxy.part", HERE / "results" / "proxy.json"
METHODS = ("random", "stratified", "metric", "gradient")
CHILDREN = {"digits": 8, "cifar": 8}
SHARE = 5
"""Images in all for each in a proxy."""
RECIPES = {
    "digits": Recipe(epochs=15, t_0=15, batch=32, lr=0.1, nesterov=True),
    "cifar": Recipe(epochs=8, t_0=8, batch=32, lr=0.1, nesterov=True),
}
TRUTHS = 3


def coloured() -> nn.Module:
    """The yardstick's network for images with three channels."""
    network = yardstick.Network()
    network.stem[0] = nn.Conv2d(3, yardstick.WIDTH, 1, bias=False)
    return network


@cache
def full(name: str, cifar: Path) -> ClassificationTask:
    """All images."""
    if name == "digits":
        return yardstick.task()
    data = load_data("cifar10", root=cifar)
    rng = np.random.RandomState(0)
    parts: dict[str, Split] = {}
    for split in ("train", "valid"):
        chosen = part(data, split, np.sort(rng.permutation(len(data.split(split)))[:2000]))
        pooled = chosen.images.reshape(-1, 3, 16, 2, 16, 2).sum((3, 5), dtype=np.uint16)  # of 2x2 pixels
        parts[split] = replace(chosen, images=((pooled + 2) // 4).astype(np.uint8))
    return ClassificationTask(replace(data, train=parts["train"], valid=parts["valid"]))


@cache
def space(name: str, seed: int) -> SearchSpace:
    if name == "digits":
        return yardstick.space(seed)
    torch.manual_seed(seed)
    return SearchSpace.from_model(coloured(), (3, 16, 16), manner="conv", operators=OPERATORS)


def children(name: str) -> list[Arch]:
    """The first of those that the yardstick trained three times."""
    order = random.Random(0).sample(range(len(ARCHS)), len(ARCHS))
    return [ARCHS[index] for index in order[: CHILDREN[name]]]


@cache
def task(name: str, method: str, seed: int, cifar: Path) -> ClassificationTask:
    whole = full(name, cifar)
    if method == "all images":
        return quick(whole.data)
    network = "nar_bench_digits/yardstick.py:Network" if name == "digits" else "bench_proxy.py:coloured"
    scorer = Scorer(str(HERE / network), whole.data, seed=seed)
    index = select(
        whole.data,
        len(whole.data.train) // SHARE,
        method,
        seed=seed,
        values=lambda: scorer.values("intensity"),
        gradients=scorer.gradients,
    )
    return quick(subset(whole.data, np.sort(index.indices)))


def quick(data: ImageData) -> ClassificationTask:
    """With two validation images, for training scores the network after every epoch; here the last one matters."""
    return ClassificationTask(replace(data, valid=part(data, "valid", np.arange(2))))


def part(data: ImageData, split: SplitName, chosen: NDArray[np.int64]) -> Split:
    whole = data.split(split)
    assert isinstance(whole, Split)
    return replace(whole, images=whole.images[chosen], labels=whole.labels[chosen], indices=whole.indices[chosen])


def journal() -> dict[tuple[str, str, int, int], float]:
    if not JOURNAL.exists():
        return {}
    lines = [json.loads(line) for line in JOURNAL.read_text().splitlines()]
    return {(name, method, seed, child): value for name, method, seed, child, value in lines}


def train_children(name: str, seeds: int, cifar: Path) -> None:
    done = journal()
    wanted = [(method, seed) for seed in range(seeds) for method in METHODS]
    if name == "cifar":
        wanted = [("all images", 1000 + seed) for seed in range(TRUTHS)] + wanted
    with JOURNAL.open("a") as file:
        for method, seed in wanted:
            for number, arch in enumerate(children(name)):
                if (name, method, seed, number) in done:
                    continue
                child = space(name, seed).build(arch)
                train(child, task(name, method, seed, cifar), RECIPES[name], seed=seed)
                accuracy = full(name, cifar).evaluate(child, "valid")
                file.write(json.dumps([name, method, seed, number, accuracy]) + "\n")
                file.flush()
            print(name, method, seed, flush=True)


def truth(name: str) -> NDArray[np.float64]:
    """(trainings, children) accuracies on all images."""
    if name == "digits":
        known = Yardstick.load()
        index = [ARCHS.index(arch) for arch in children(name)]
        both: NDArray[np.float64] = ((known.valid + known.test) / 2)[:, index]
        return both
    done = journal()
    return np.array([[done[name, "all images", 1000 + seed, child] for child in range(CHILDREN[name])] for seed in range(TRUTHS)])


def interval(values: NDArray[np.float64]) -> dict[str, Any]:
    margin = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return {"mean": round(values.mean(), 4), "95 %": [round(values.mean() - margin, 4), round(values.mean() + margin, 4)]}


def ranked(name: str) -> dict[str, Any]:
    """Kendall's tau and regret (in points of accuracy) of every method, and their differences from random proxies."""
    done, known, archs = journal(), truth(name), tuple(children(name))
    seeds = sorted({seed for data, method, seed, _ in done if data == name and method != "all images"})
    seeds = [seed for seed in seeds if all((name, method, seed, len(archs) - 1) in done for method in METHODS)]
    found: dict[str, Any] = {}

    def both(full: NDArray[np.float64], proxy: NDArray[np.float64]) -> tuple[float, float]:
        ranking = Ranking(archs=archs, full=tuple(full), proxy=tuple(proxy))
        return ranking.kendall or 0.0, 100 * ranking.regret

    for method in METHODS:
        accuracies = [np.array([done[name, method, seed, child] for child in range(len(archs))]) for seed in seeds]
        pairs = np.array([both(known.mean(0), values) for values in accuracies])
        found[method] = {"accuracy": float(np.mean(accuracies)), "pairs": pairs}
    plain = found["random"]["pairs"]
    table: dict[str, dict[str, Any]] = {
        method: {
            "mean accuracy": round(row["accuracy"], 4),
            "kendall": interval(row["pairs"][:, 0]),
            "regret, points": interval(row["pairs"][:, 1]),
        }
        | (
            {
                "kendall - random's": interval(row["pairs"][:, 0] - plain[:, 0]),
                "regret - random's": interval(row["pairs"][:, 1] - plain[:, 1]),
            }
            if method != "random"
            else {}
        )
        for method, row in found.items()
    }
    single = np.array([both(np.delete(known, row, 0).mean(0), known[row]) for row in range(len(known))])
    table["all images"] = {
        "mean accuracy": round(known.mean(), 4),
        "kendall": round(single[:, 0].mean(), 4),
        "regret, points": round(single[:, 1].mean(), 4),
    }
    chance = 100 * (known.mean(0).max() - known.mean())
    return {
        "children": len(archs),
        "images": 899 if name == "digits" else 2000,
        "images in a proxy": (899 if name == "digits" else 2000) // SHARE,
        "seeds": len(seeds),
        "recipe": plain(RECIPES[name]),
        "regret of a child drawn at random, points": round(float(chance), 4),
        "methods": table,
    }


def cost(model: str, batch: int, rounds: int) -> dict[str, Any]:
    data = load_data("fake:3x32x32x10")
    values = np.arange(len(data.train), dtype=float)
    recipe = Recipe(epochs=1, batch=batch, lr=0.01, schedule="step")
    few = subset(data, np.arange(8 * batch))

    def network() -> nn.Module:
        torch.manual_seed(0)
        return build_model(model, input_shape=data.input_shape, num_classes=10).train()

    def plain() -> None:
        trained, images = network(), ClassificationTask(few)
        optimizer = torch.optim.SGD(trained.parameters(), 0.01, 0.9, weight_decay=5e-4)
        for _ in range(recipe.epochs):
            for inputs, labels in images.eval_batches("train", batch):
                torch.autograd.backward(images.loss(trained(inputs), labels))
                optimizer.step()
                optimizer.zero_grad()

    def seconds(what: Callable[[], object]) -> float:
        start = time.process_time()
        what()
        return time.process_time() - start

    taken = [
        [
            seconds(plain),
            seconds(lambda: study(network(), few, {"none": values[: 8 * batch]}, recipe=recipe)),
        ]
        for _ in range(rounds)
    ]
    times = np.array(taken)
    ratios = times[:, 1] / times[:, 0]
    return {
        "model": model,
        "batch": batch,
        "batches": 8,
        "rounds": rounds,
        "plain epoch, CPU seconds": round(float(np.median(times[:, 0])), 3),
        "study / plain": [round(value, 3) for value in np.sort(ratios).tolist()],
        "study / plain, median": round(float(np.median(ratios)), 3),
        "target <= 2.2 holds": bool(np.median(ratios) <= 2.2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("digits", "cifar", "cost", "write"), default="write")
    parser.add_argument("--cifar", type=Path, default=Path(".data"))
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.stage in RECIPES:
        train_children(arguments.stage, arguments.seeds, arguments.cifar)
    new = {"cost": [cost("resnet20_cifar", 32, 5), cost("resnet18", 8, 5)]} if arguments.stage == "cost" else {}
    old = json.loads(RESULT.read_text()) if RESULT.exists() else {"cost": []}
    measured = {name for name, method, *_ in journal() if method == "gradient"}
    write_json(
        RESULT,
        {
            "command": "OMP_NUM_THREADS=1 python benchmarks/bench_proxy.py --stage digits (then cifar, cost)",
            "versions": versions("torch"),
            "device": fingerprint(RuntimeConfig(runtime="torch_eager"))["device"],
            "ranking": {name: ranked(name) for name in RECIPES if name in measured},
            "cost": (old | new)["cost"],
        },
    )


if __name__ == "__main__":
    main()
