"""The LSTM controller trained on the rewards of the archs it samples: the strategy that NAR describes."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nar_hw.search.controller import LSTMController
from nar_hw.search.feasible import Feasible, Floats
from nar_hw.search.strategies.base import Strategy
from nar_hw.space.spec import Arch

GRADIENT_NORM = 5.0


@dataclass(kw_only=True)
class Baseline:
    """Running mean and spread of rewards: exponential averages that start at the first batch's own values."""

    decay: float
    mean: float = 0.0
    variance: float = 0.0
    seen: int = 0

    def move(self, rewards: np.ndarray[Any, Any]) -> None:
        """Take in one batch of rewards."""
        keep = self.decay if self.seen else 0.0
        self.mean = keep * self.mean + (1 - keep) * float(rewards.mean())
        self.variance = keep * self.variance + (1 - keep) * float(((rewards - self.mean) ** 2).mean())
        self.seen += len(rewards)

    def advantages(self, rewards: np.ndarray[Any, Any], *, scaled: bool) -> np.ndarray[Any, Any]:
        """Rewards above the mean, in units of the spread when ``scaled``; zero while there is no spread."""
        above = rewards - self.mean
        if not scaled:
            return above
        spread = math.sqrt(self.variance)
        # equal rewards differ from their mean by rounding
        return above / spread if spread > 1e-9 * np.abs(rewards).max() else np.zeros_like(above)


class ReinforceStrategy(Strategy):
    """Policy gradients on an `LSTMController`.

    Args:
        update: "ppo" reuses each batch of rewards for several clipped steps (PPO, section 3) with advantages divided by
            their spread; "reinforce" takes one plain step per batch (ENAS, section 2.2).
        lr: learning rate of the logits' own biases, which learn each slot by itself; Adam, first momentum zero as in ENAS.
        lstm_lr: learning rate of everything else: what depends on the choices before.
        eps: what Adam adds to the root of its second moment (ENAS: 1e-3).
        entropy_weight: weight of the policy's entropy in the objective.
        baseline_decay: decay of the running mean (and spread) of the rewards, moved before the advantages are taken.
        clip: largest relative change of an arch's probability that a batch may ask for (ppo).
        steps: steps per batch of rewards (ppo).
        hidden, temperature, tanh_constant: of the controller.
    """

    def __init__(
        self,
        feasible: Feasible,
        *,
        seed: int,
        update: Literal["ppo", "reinforce"] = "ppo",
        lr: float = 2e-2,
        lstm_lr: float = 3e-4,
        eps: float = 1e-8,
        entropy_weight: float = 0.1,
        baseline_decay: float = 0.9,
        clip: float = 0.2,
        steps: int = 3,
        hidden: int = 64,
        temperature: float = 1.0,
        tanh_constant: float = 2.5,
    ) -> None:
        super().__init__(feasible, seed=seed)
        self.update = update
        self.entropy_weight = entropy_weight
        self.clip = clip
        self.steps = steps if update == "ppo" else 1
        self.controller = LSTMController(feasible, seed=seed, hidden=hidden, temperature=temperature, tanh_constant=tanh_constant)
        biases = self.controller.biases
        others = [parameter for name, parameter in self.controller.named_parameters() if name != "biases"]
        self.optimizer = torch.optim.Adam(
            [{"params": others, "lr": lstm_lr}, {"params": [biases], "lr": lr}], betas=(0.0, 0.999), eps=eps
        )
        self.generator = torch.Generator().manual_seed(seed)
        self.baseline = Baseline(decay=baseline_decay)
        self._entropy = float("nan")

    def ask(self, n: int) -> list[Arch]:
        """``n`` draws from the policy."""
        return _tuples(self.controller.sample(n, self.generator))

    def paths(self, n: int) -> list[Arch]:
        """Draws from the policy: the shared weights serve the archs that are being scored (ENAS, section 2.2)."""
        return self.ask(n)

    def best(self) -> Arch:
        """The arch of the most probable operators."""
        return _tuples(self.controller.greedy())[0]

    def learn(self, archs: list[Arch], rewards: Floats, slopes: Floats | None) -> None:
        """Move the policy towards the archs that beat the baseline."""
        self.baseline.move(rewards)
        above = self.baseline.advantages(rewards, scaled=self.update == "ppo")
        codes = torch.tensor(archs)
        advantages = torch.as_tensor(above, dtype=torch.float32)[:, None]  # (N, 1)
        with torch.no_grad():
            before = self.controller(codes).log_prob  # (N, S)
        for _ in range(self.steps):
            likelihood = self.controller(codes)
            if self.update == "ppo":
                ratio = (likelihood.log_prob - before).exp()
                gain = torch.minimum(ratio * advantages, ratio.clamp(1 - self.clip, 1 + self.clip) * advantages)
            else:
                gain = likelihood.log_prob * advantages
            objective = (gain + self.entropy_weight * likelihood.entropy).sum(dim=1).mean()
            self.optimizer.zero_grad()
            (-objective).backward()
            torch.nn.utils.clip_grad_norm_(self.controller.parameters(), GRADIENT_NORM)
            self.optimizer.step()
        self._entropy = float(likelihood.entropy.detach().sum(dim=1).mean())

    def scalars(self) -> dict[str, float]:
        """Baseline of the rewards and entropy of the last batch's archs."""
        return {"baseline": self.baseline.mean, "entropy": self._entropy} if self.baseline.seen else {}

    def state_dict(self) -> dict[str, Any]:
        """Controller, optimiser, baseline and generators."""
        return {
            **super().state_dict(),
            "controller": self.controller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "baseline": dataclasses.asdict(self.baseline),
            "entropy": self._entropy,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state)
        self.controller.load_state_dict(state["controller"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.baseline = Baseline(**state["baseline"])
        self._entropy = state["entropy"]


def _tuples(codes: Tensor) -> list[Arch]:
    return [tuple(arch) for arch in codes.tolist()]
