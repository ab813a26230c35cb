"""What a search takes beyond training its shared weights: proposals, scores, updates of the strategy and the final scoring.

Default settings, as many images as CIFAR-10 has (made ones: 45,000 for training, 5,000 for validation). An epoch of weights
and strategy in turn and the final scoring of a quarter of the archs are measured; the whole search, 10 epochs of warm-up and 140
of these, is computed from them.
Result: results/search_cost.json.

    OMP_NUM_THREADS=1 python benchmarks/bench_search_cost.py [--model resnet20_cifar] [--out benchmarks/results/search_cost.json]
"""

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nar_hw._version import versions
from nar_hw.data import Augmentation, ImageData, Split
from nar_hw.files import write_json
from nar_hw.latency.device import fingerprint
from nar_hw.latency.profiler import profile
from nar_hw.models import build_model
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.fake import FakeDevice, FakeRuntime
from nar_hw.search.budget import Budget
from nar_hw.search.config import SearchConfig
from nar_hw.search.finals import conclude
from nar_hw.search.run import SearchRun
from nar_hw.space.space import SearchSpace
from nar_hw.tasks import ClassificationTask

SHAPE = (3, 32, 32)
QUARTER = 4


def beyond_training(name: str) -> dict[str, Any]:
    """Seconds of a search on made images."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
        return Split(source="made", images=images, labels=np.arange(count) % 10, indices=np.arange(count))

    train, valid, test = split(45_000), split(5_000), split(10)
    data = ImageData(
        name="made",
        seed=0,
        train=train,
        valid=valid,
        test=test,
        classes=tuple("0123456789"),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        augmentation=Augmentation(crop_padding=4, flip=True),
    )
    space = SearchSpace.from_model(build_model(name, input_shape=SHAPE, num_classes=10), SHAPE)
    with FakeRuntime.on(FakeDevice()):
        table = profile(space, config=RuntimeConfig(runtime="fake"), model_name=name, validate=0)
    whole = SearchConfig()
    config = replace(whole, warmup_epochs=0, epochs=1, lr=1e-3, rescored=whole.rescored // QUARTER)
    run = SearchRun(space, ClassificationTask(data), [Budget.of(space, [table], [sum(table.bounds()) / 2], config)], config)
    while run.epoch < run.epochs:
        run.advance()
    start = time.perf_counter()
    conclude(run, None)
    final = QUARTER * (time.perf_counter() - start)
    (log,) = run.history
    training, strategy = log["train_s"], log["strategy_s"]
    ratio = (whole.epochs * strategy + final) / ((whole.warmup_epochs + whole.epochs) * training)
    return {
        "model": name,
        "strategy": config.strategy,
        "evaluations an epoch": config.updates * config.samples,
        "seconds an epoch": {"training": round(training, 1), "strategy": round(strategy, 1)},
        "seconds of the final scoring": round(final, 1),
        "beyond training": round(ratio, 4),
        "target <= 0.15 holds": ratio <= 0.15,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20_cifar")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "search_cost.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = beyond_training(arguments.model)
    write_json(
        arguments.out,
        {
            "command": f"OMP_NUM_THREADS=1 python benchmarks/bench_search_cost.py --model {arguments.model}",
            "versions": versions("torch"),
            "device": fingerprint(RuntimeConfig(runtime="torch_eager"))["device"],
            "system": platform.platform(),
            **result,
        },
    )
    print(f"beyond training: {100 * result['beyond training']:.1f} %")


if __name__ == "__main__":
    main()
