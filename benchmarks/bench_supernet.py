"""What weight sharing costs: a training step and the memory of a supernet against the same child trained plainly.

Batch 128, fp32, SGD with momentum as in the search. In each round one random arch is drawn; a step of the supernet on that
path (the step before ran another path, as in the search) and a step of the standalone child (the step before was its own, as in
a plain training) are timed in turn, each a few times, by the CPU time of the process; "ratio" is the median over rounds of the
quotient of their medians. Activations are what autograd keeps for the backward pass, parameters not counted.
Result: results/supernet.json. On one core of a shared two-core Xeon: resnet_digits 0.995 (95 % interval 0.975 to 1.005),
resnet20_cifar 0.997 (0.970 to 1.039); parameters of all operators, activations of one path to the byte.

    OMP_NUM_THREADS=1 python benchmarks/bench_supernet.py [--rounds 24] [--out benchmarks/results/supernet.json]
"""

import argparse
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nar_hw._version import versions
from nar_hw.files import write_json
from nar_hw.latency.device import fingerprint
from nar_hw.models import build_model
from nar_hw.runtimes import RuntimeConfig
from nar_hw.search.config import SearchConfig
from nar_hw.search.run import optimizer_of
from nar_hw.search.supernet import Supernet
from nar_hw.space.space import SearchSpace

# ResNet-18 on 3x32x32 takes seconds a step on one core.
NETWORKS = {"resnet_digits": (1, 8, 8), "resnet20_cifar": (3, 32, 32)}
BATCH = 128
STEPS = 3
"""Timed steps of each in a round."""


def step_of(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = optimizer_of(model, SearchConfig(lr=1e-3))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def timed(step: Callable[[], None]) -> float:
    """CPU milliseconds."""
    start = time.process_time()
    step()
    return 1e3 * (time.process_time() - start)


def activations(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Bytes kept for the backward pass."""
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = F.cross_entropy(model(images), labels)
    del loss
    return sum(kept.values())


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def measure(name: str, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    shape = NETWORKS[name]
    space = SearchSpace.from_model(build_model(name, input_shape=shape, num_classes=10), shape)
    images, labels = torch.randn(BATCH, *shape), torch.randint(10, (BATCH,))
    supernet = Supernet(space).train()
    shared_step = step_of(supernet, images, labels)
    rng = random.Random(0)
    times: dict[str, list[float]] = {"supernet": [], "child": []}
    kept: dict[str, list[int]] = {"supernet": [], "child": []}
    sizes = []
    for turn in range(rounds):
        arch = space.sample(rng)
        child = supernet.child(arch)
        child_step = step_of(child, images, labels)
        child_step()

        def on_supernet(arch: tuple[int, ...] = arch) -> float:
            supernet.activate(space.sample(rng))
            shared_step()
            supernet.activate(arch)
            return timed(shared_step)

        def on_child(step: Callable[[], None] = child_step) -> float:
            step()
            return timed(step)

        order = [("supernet", on_supernet), ("child", on_child)]
        visits: dict[str, list[float]] = {"supernet": [], "child": []}
        for repeat in range(STEPS):
            for who, visit in order[:: 1 if (turn + repeat) % 2 else -1]:
                visits[who].append(visit())
        for who, values in visits.items():
            times[who].append(statistics.median(values))
        sizes.append(parameters(child))
        for who, model in (("supernet", supernet), ("child", child)):
            kept[who].append(activations(model, images, labels))
    ratios = np.array(times["supernet"]) / np.array(times["child"])
    medians = np.median(np.random.default_rng(0).choice(ratios, (2000, rounds)), axis=1)
    return {
        "model": name,
        "input_shape": shape,
        "batch": BATCH,
        "slots": len(space.slots),
        "candidates": sum(len(slot.candidates) for slot in space.slots),
        "rounds": rounds,
        "steps a round": STEPS,
        "step_ms": {who: round(statistics.median(values), 3) for who, values in times.items()},
        "ratio": round(float(np.median(ratios)), 4),
        "ratio 95 %": [round(float(value), 4) for value in np.quantile(medians, (0.025, 0.975))],
        "target <= 1.02 holds": bool(np.median(ratios) <= 1.02),
        "parameters": {"supernet": parameters(supernet), "child (mean)": round(statistics.mean(sizes))},
        "activations_mib": {who: round(statistics.mean(values) / 2**20, 3) for who, values in kept.items()},
        "activations are those of one path": kept["supernet"] == kept["child"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "supernet.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before = os.getloadavg()
    rows = [measure(name, arguments.rounds) for name in NETWORKS]
    write_json(
        arguments.out,
        {
            "command": f"OMP_NUM_THREADS=1 python benchmarks/bench_supernet.py --rounds {arguments.rounds}",
            "versions": versions("torch"),
            "device": fingerprint(RuntimeConfig(runtime="torch_eager"))["device"],
            "cores": os.cpu_count(),
            "load before and after": [round(before[0], 2), round(os.getloadavg()[0], 2)],
            "system": platform.platform(),
            "results": rows,
        },
    )
    for row in rows:
        print(f"{row['model']}: {row['ratio']} of the child's step ({row['ratio 95 %'][0]} to {row['ratio 95 %'][1]})")


if __name__ == "__main__":
    main()
