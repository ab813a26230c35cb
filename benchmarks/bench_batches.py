"""Does training on chosen mini-batches converge sooner? The recommendation of Lasky et al. that they did not try.

    OMP_NUM_THREADS=1 python benchmarks/bench_batches.py

On the digits, a small network (small_cnn.py), a constant learning rate and batches of 32; of every choice and seed, how many
images were learned, in epochs of the whole training set, until the validation accuracy first reached each threshold
(interpolated). Differences from plain training are paired by seed, with Student's 95 % intervals. Seeds decide weights and order,
not the split.
Result of 8 seeds: results/batches.json. Leaving the outer tenths out by intensity is half an epoch later at 90 % (0.29 to 0.73)
and not told from plain training at 95 and 97 %; by edges it is later everywhere, and the brightest quarter alone does not learn
enough. Batches in a fixed order (keep-all) are later by edges at 90 %, else undecided. Nothing is sooner.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from small_cnn import build

from nar_hw._version import versions
from nar_hw.data import Augmentation, load_data
from nar_hw.latency.device import fingerprint
from nar_hw.proxy.batches import chosen_batches
from nar_hw.runtimes.config import RuntimeConfig
from nar_hw.tasks import ClassificationTask
from nar_hw.training.loop import train
from nar_hw.training.recipes import Recipe

OUT = Path(__file__).parent / "results" / "batches.json"
CHOICES = (
    "plain",
    "keep-all:intensity",
    "keep-middle:intensity",
    "keep-highest:intensity",
    "keep-all:edges",
    "keep-middle:edges",
)
THRESHOLDS = (0.90, 0.95, 0.97)
BATCH, EPOCHS, RATE = 32, 10, 0.003


def curve(choice: str, seed: int) -> list[tuple[float, float]]:
    """(epochs of the whole training set, validation accuracy) after every pass."""
    plain = ClassificationTask(load_data("digits"), augmentation=Augmentation())
    task = plain if choice == "plain" else chosen_batches(plain, choice, BATCH)
    share = (task.train_size // BATCH * BATCH) / plain.train_size
    passes = round(EPOCHS / share)
    recipe = Recipe(epochs=passes, batch=BATCH, schedule="step", lr=RATE, lr_min=0.0)
    torch.manual_seed(seed)
    result = train(build(task.num_classes), task, recipe, seed=seed)
    return [(log.epoch * share, log.valid_accuracy) for log in result.history]


def reached(points: list[tuple[float, float]], threshold: float) -> float | None:
    """When that accuracy is first reached, on a straight line between the passes and from chance at the beginning, or None."""
    for (before, low), (epoch, accuracy) in pairwise([(0.0, 0.1), *points]):
        if accuracy >= threshold:
            return before + (epoch - before) * (threshold - low) / (accuracy - low)
    return None


def interval(values: list[float]) -> dict[str, float]:
    """Mean and Student's 95 % interval."""
    margin = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return {"mean": float(np.mean(values)), "low": float(np.mean(values) - margin), "high": float(np.mean(values) + margin)}


def verdict(later: dict[str, float] | None) -> str | None:
    """Of an interval of differences from plain training; None where there is none."""
    if later is None:
        return None
    return "later" if later["low"] > 0 else "sooner" if later["high"] < 0 else "undecided"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    arguments = parser.parse_args()
    curves = {choice: [curve(choice, seed) for seed in range(arguments.seeds)] for choice in CHOICES}
    found = {}
    for choice, runs in curves.items():
        rows = {}
        for threshold in THRESHOLDS:
            epochs = [reached(run, threshold) for run in runs]
            plain = [reached(run, threshold) for run in curves["plain"]]
            pairs = [one - other for one, other in zip(epochs, plain, strict=True) if one is not None and other is not None]
            later = interval(pairs) if len(pairs) >= 5 and choice != "plain" else None
            rows[f"{threshold:.0%}"] = {
                "epochs": epochs,
                "not reached": epochs.count(None),
                "later than plain": later,
                "verdict": verdict(later),
            }
        best = [max(accuracy for _, accuracy in run) for run in runs]
        found[choice] = {"reached": rows, "best validation accuracy": interval(best)}
    result = {
        "what": "epochs of the whole training set until a validation accuracy is first reached; digits, small_cnn.py",
        "command": f"OMP_NUM_THREADS=1 python benchmarks/bench_batches.py --seeds {arguments.seeds}",
        "device": fingerprint(RuntimeConfig(runtime="torch_eager"))["device"],
        "versions": versions("torch"),
        "settings": {"batch": BATCH, "epochs": EPOCHS, "lr": RATE, "schedule": "constant", "seeds": arguments.seeds},
        "choices": found,
    }
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    for choice, item in found.items():
        print(choice, {name: (row["not reached"], row["verdict"]) for name, row in item["reached"].items()})


if __name__ == "__main__":
    main()
