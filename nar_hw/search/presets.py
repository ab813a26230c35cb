"""Whole searches by name: those of the papers, setting by setting."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nar_hw.errors import unknown_name
from nar_hw.search.config import SearchConfig
from nar_hw.space.spec import Manner

ENAS_CONTROLLER: Mapping[str, Any] = {
    "update": "reinforce",
    "lr": 1e-3,
    "lstm_lr": 1e-3,
    "eps": 1e-3,
    "entropy_weight": 1e-4,
    "baseline_decay": 0.99,
    "hidden": 64,
    "temperature": 1.0,
    "tanh_constant": 1.5,
}
"""The controller of ENAS's macro search, whose operators are chosen layer by layer as NAR's are (its published script)."""

PAPER: Mapping[str, Any] = {
    "strategy": "reinforce",
    "strategy_options": ENAS_CONTROLLER,
    "reward": "accuracy",
    "warmup_epochs": 10,
    "warmup_paths": "uniform",
    "epochs": 140,
    "paths": "strategy",
    "batch": 128,
    "lr": 0.1,
    "lr_min": 1e-4,
    "t_0": 10,
    "t_mult": 2,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "updates": 50,
    "samples": 20,
    "valid_batch": 128,
}
"""NAR, sections 3.2 and 4.1.1: four cosines of 10, 20, 40 and 80 epochs, of which PreTrain ("few epochs") is the first. What NAR
does not print is ENAS's (controller, batch, updates, samples) or ArcFace's (momentum, weight decay)."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A search, and what is searched where no latency table says it."""

    settings: Mapping[str, Any] = field(default_factory=lambda: PAPER)
    """Of `SearchConfig`: what differs from its defaults."""
    manner: Manner = "conv"
    operators: tuple[str, ...] = ("conv3x3", "dwsep3x3", "max3x3", "avg3x3")
    """Codes 0 to 3 of the NAR paper's tables."""

    @property
    def search(self) -> SearchConfig:
        """The settings, checked."""
        return SearchConfig(**self.settings)


WITHOUT_PRETRAIN: Mapping[str, Any] = {"warmup_epochs": 0, "epochs": 150}
PRESETS: dict[str, Preset] = {
    "paper": Preset(),
    "paper-without-pretrain": Preset(settings={**PAPER, **WITHOUT_PRETRAIN}),
    # ArcFace's batch, one choice per residual block
    "paper-faces": Preset(settings={**PAPER, "batch": 512}, manner="block"),
    "paper-faces-without-pretrain": Preset(settings={**PAPER, **WITHOUT_PRETRAIN, "batch": 512}, manner="block"),
}


def preset_named(name: str) -> Preset:
    """The preset called ``name``. Raises UnknownNameError."""
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]
