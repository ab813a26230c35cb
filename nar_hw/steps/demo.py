"""`nar-hw refine` on data that comes with scikit-learn: the network is trained first, then refined for three targets."""

from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from nar_hw.models.info import ModelInfo
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.search.config import FITTED, FitConfig
from nar_hw.steps.refine import RefineConfig, refine
from nar_hw.training.recipes import RECIPES

MODEL = ModelInfo(name="resnet_digits", input_shape=(1, 8, 8), num_classes=10)
TARGETS = ("0.8", "0.6", "0.4")
"""Shares of the network's measured latency."""
SEARCH = replace(FITTED, batch=64, epochs=4, fit=FitConfig(epochs=3))
RECIPE = replace(RECIPES["finetune"], batch=64, epochs=5)
"""Fewer epochs than by default, for the digits are easy (benchmarks/bench_refine.py)."""


def run_demo(out: Path, *, seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Refine the digits' network in ``out``, resuming what is there; returns what came out, for JSON.

    Raises RunError when ``out`` holds a demo with another seed.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = RefineConfig(
        model=MODEL,
        data="digits",
        targets=TARGETS,
        conditions=RuntimeConfig(runtime="onnxruntime", device=device),
        search=SEARCH,
        recipe=RECIPE,
        seed=seed,
    )
    made = refine(
        config, out, from_scratch=RECIPES["demo"], device=device, command=("demo", "--seed", str(seed)), progress=progress
    )
    return {"out": str(out), "report": str(out / "report.html"), **made.outcome()}
