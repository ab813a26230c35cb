"""The five findings of Lasky et al. about mini-batches, tried on all 50,000 training images of CIFAR-10 with a small network.

    OMP_NUM_THREADS=1 python benchmarks/bench_minibatch.py --cifar FOLDER --lpips lpips.safetensors [--epochs 9] [--seeds 1]

As in the paper: 195 batches of 256 in the order of each of its four metrics (perceptual: LPIPS with its learned weights, which
examples/lpips/convert.py makes), SGD at 0.1, 0.01 and 0.001 for a third of the epochs each, no augmentation. What was cut: the
network (three strided convolutions for DPN-92), the epochs (9 for 150), and one training serves all four metrics, on batches
drawn at random (the paper trained once for each metric, on that metric's batches). Each seed is a training of its own; intervals
are over a training's batches, as `nar-hw proxy study` gives them, and a finding's verdict is that of all seeds where they agree.

"dpn92" is the paper's own study as one command, and what it would take: the CPU seconds of a few images forward and backward
times the images of its passes, 1 + 4 an epoch for 150 epochs; it has not been run.
A study that was stopped goes on (bench_minibatch.part), and --so-far writes what it says before its end. Result:
results/minibatch.json, of one seed and of the epochs that it names.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import nn

from nar_hw._version import versions
from nar_hw.files import write_json
from nar_hw.latency.device import fingerprint
from nar_hw.models import build_model
from nar_hw.proxy.sketch import WIDTH, Sketch
from nar_hw.proxy.steps import PAPER_METRICS, Scorer, load
from nar_hw.proxy.study import STATE, Study, paper_recipe, study
from nar_hw.records import plain
from nar_hw.runtimes.config import RuntimeConfig
from nar_hw.space.flops import count_module
from nar_hw.training.checkpoints import load_state
from nar_hw.training.recipes import Recipe

HERE = Path(__file__).parent
OUT, PART = HERE / "results" / "minibatch.json", HERE / "bench_minibatch.part"
BATCH, RATE = 256, 0.1
PAPER = (
    "nar-hw proxy study --model dpn92 --data cifar10 --all-train --metric all --backbone lpips "
    "--backbone-weights lpips.safetensors --device cuda --out runs/dpn92"
)


def build(num_classes: int) -> nn.Module:
    """16, 32 and 64 filters, each with stride 2; 25 thousand parameters."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


def values(scorer: Scorer, metric: str) -> NDArray[np.float64]:
    """The metric of each image, kept for a run that goes on."""
    kept = PART / f"{metric}.npy"
    if not kept.exists():
        PART.mkdir(exist_ok=True)
        np.save(kept, scorer.values(metric), allow_pickle=False)
    found: NDArray[np.float64] = np.load(kept)
    return found


def so_far(out: Path, recipe: Recipe) -> list[Study]:
    """What an unfinished study has, the phase in which it was stopped as far as it went."""
    rows = load_state(out / STATE)["distances"].numpy()  # (epochs, metrics, batches)
    ends = [*map(int, recipe.milestones), recipe.passes]
    starts = [0, *ends[:-1]]
    phases = tuple(range(start, min(end, len(rows))) for start, end in zip(starts, ends, strict=True) if start < len(rows))
    sizes = [parameter.numel() for parameter in build(10).parameters()]
    error = Sketch(sizes, width=WIDTH, seed=0, device="cpu").standard_error
    return [
        Study(metric=metric, distances=rows[:, place], standard_error=error, phases=phases)
        for place, metric in enumerate(PAPER_METRICS)
    ]


def verdict(verdicts: list[str]) -> str:
    """Of all seeds."""
    return verdicts[0] if len(set(verdicts)) == 1 else "undecided"


def told(studies: list[list[Study]]) -> list[dict[str, Any]]:
    """Each finding of the paper for each metric that it is about, over the seeds."""
    rows = [
        {
            "finding": findings[0].number,
            "text": findings[0].text,
            "metric": several[0].metric,
            "verdict": verdict([item.verdict for item in findings]),
            "of each seed": [
                {"verdict": item.verdict, "farther by, %": [plain(phase) for phase in item.differences]} for item in findings
            ],
        }
        for several in zip(*studies, strict=True)  # the studies of one metric
        for findings in zip(*(one.findings for one in several), strict=True)
        if findings[0].verdict != "not tested"
    ]
    return sorted(rows, key=lambda row: row["finding"])


def by_quarter(studies: list[list[Study]]) -> dict[str, Any]:
    """Metric -> phase -> how much farther than all batches each quarter is, in percent, mean of the seeds."""
    found: dict[str, Any] = {}
    for several in zip(*studies, strict=True):
        for quarters in zip(*(one.quarters for one in several), strict=True):
            mean = float(np.mean([item.difference.mean for item in quarters]))
            phases = found.setdefault(several[0].metric, {})
            phases.setdefault(f"phase {quarters[0].phase}", {})[quarters[0].quarter] = round(mean, 2)
    return found


def dpn92() -> dict[str, Any]:
    """What the paper's own study would take here."""
    network = build_model("dpn92", input_shape=(3, 32, 32), num_classes=10).train()
    few, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10

    def step() -> float:
        start = time.process_time()
        torch.autograd.backward(nn.functional.cross_entropy(network(few), labels))
        return (time.process_time() - start) / len(few)

    step()
    each = float(np.median([step() for _ in range(3)]))
    images = 150 * 5 * 195 * BATCH
    multiply_adds = 3 * count_module(network, (3, 32, 32)).flops * images  # backward is about two forwards
    return {
        "command": PAPER,
        "cpu seconds of an image, forward and backward": round(each, 3),
        "images": images,
        "multiply-adds": float(f"{multiply_adds:.2g}"),
        "days of one core, estimated": round(each * images / 86400),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True, help="folder with cifar-10-batches-py")
    parser.add_argument("--lpips", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--so-far", action="store_true", help="write what an unfinished study says")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    studies = []
    if not arguments.so_far:
        data = load("cifar10", arguments.cifar, all_train=True)
        scorer = Scorer("unused", data, backbone="lpips", backbone_weights=arguments.lpips)
        metrics = {metric: values(scorer, metric) for metric in PAPER_METRICS}
    for seed in range(arguments.seeds):
        torch.manual_seed(seed)
        recipe = paper_recipe(arguments.epochs, BATCH, RATE)
        out = PART / f"seed {seed}, {arguments.epochs} epochs"
        if arguments.so_far:
            studies.append(so_far(out, recipe))
            continue
        with Progress(disable=not sys.stderr.isatty()) as progress:
            studies.append(
                study(build(data.num_classes), data, metrics, recipe=recipe, seed=seed, out=out, resume=True, progress=progress)
            )
    write_json(
        OUT,
        {
            "what": "the findings of Lasky et al. on all 50,000 training images of CIFAR-10; see bench_minibatch.py",
            "command": "OMP_NUM_THREADS=1 python benchmarks/bench_minibatch.py --cifar FOLDER --lpips lpips.safetensors "
            f"--epochs {arguments.epochs} --seeds {arguments.seeds}{' --so-far' * arguments.so_far}",
            "versions": versions("torch"),
            "device": fingerprint(RuntimeConfig(runtime="torch_eager"))["device"],
            "settings": {
                "batches": studies[0][0].distances.shape[1],
                "batch": BATCH,
                "epochs": arguments.epochs,
                "epochs of each phase that were done": [len(phase) for phase in studies[0][0].phases],
                "seeds": arguments.seeds,
                "standard error of a distance": round(studies[0][0].standard_error, 4),
            },
            "findings": told(studies),
            "quarters, % from the mean": by_quarter(studies),
            "dpn92": dpn92(),
        },
    )


if __name__ == "__main__":
    main()
