"""A search as it goes: everything that changes from epoch to epoch."""

import math
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from nar_hw.distributed import average_gradients, ranks, share, total
from nar_hw.errors import TrainingError
from nar_hw.search.budget import Budget
from nar_hw.search.config import SearchConfig
from nar_hw.search.randomness import generator_states, restore_generators
from nar_hw.search.reward import REWARDS
from nar_hw.search.scoring import Scorer
from nar_hw.search.strategies import STRATEGIES
from nar_hw.search.supernet import FairPaths, Supernet
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch
from nar_hw.tasks import Task
from nar_hw.training.precision import autocast

if TYPE_CHECKING:
    pass

TRIES = 20
"""How often a strategy is asked again for archs within the budget."""


class SearchRun:
    """Everything that changes in a search. Usually made by `search`."""

    def __init__(self, space: SearchSpace, task: Task, budget: Budget, config: SearchConfig) -> None:
        self.space, self.task, self.budget, self.config = space, task, budget, config
        self.epochs = config.recipe.epochs
        self.steps = task.train_size // config.batch
        if self.steps == 0:
            raise TrainingError(
                f"batch <= training images must hold, but got (batch={config.batch}, images={task.train_size}): "
                "use a smaller batch"
            )
        if config.batch % ranks():
            raise TrainingError(f"batch must be a multiple of the {ranks()} processes, but got {config.batch}")
        self.supernet = Supernet(space, task.new_head()).to(task.device)
        if config.channels_last:
            self.supernet = self.supernet.to(memory_format=torch.channels_last)
        self.optimizer = optimizer_of(self.supernet, config)
        self.scaler = torch.amp.GradScaler(task.device.type, enabled=config.precision == "fp16")
        self.strategy = STRATEGIES[config.strategy](budget.feasible, seed=config.seed, **config.strategy_options)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.rng = random.Random(config.seed)
        self.fair = FairPaths(space)
        self.scorer = Scorer(self.supernet, task, config, self.generator)
        self.scores: dict[Arch, tuple[float, float, int]] = {}
        """Arch -> its last reward and accuracy, and the epoch."""
        self.history: list[dict[str, float]] = []

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history)

    def advance(self) -> None:
        """One epoch: of shared weights, and after the warm-up of the strategy. Raises TrainingError when the weights diverged."""
        start = time.perf_counter()
        warmup = self.epoch < self.config.warmup_epochs
        log: dict[str, float] = {"epoch": self.epoch + 1, "warmup": int(warmup), **self._train_weights()}
        trained = time.perf_counter()
        if not warmup:
            log |= self._train_strategy()
        self.history.append({**log, "train_s": trained - start, "strategy_s": time.perf_counter() - trained})

    def _train_weights(self) -> dict[str, float]:
        recipe = self.config.recipe
        losses = torch.zeros((), device=self.task.device)
        rate = 0.0
        self.supernet.train()
        batches = self.task.train_batches(self.config.batch, self.generator)
        for step, (arch, (images, targets)) in enumerate(zip(self._paths(), batches, strict=True)):
            rate = recipe.learning_rate(self.epoch + step / self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.supernet.activate(arch)
            self.optimizer.zero_grad(set_to_none=True)  # what does not run is not moved
            with autocast(self.task.device, self.config.precision):
                output = self.supernet(self.scorer.laid_out(share(images)))
            loss = self.task.loss(output.float(), share(targets))
            torch.autograd.backward(self.scaler.scale(loss))
            average_gradients(self.supernet)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            losses += loss.detach()
        mean = float(total(losses)) / (ranks() * self.steps)
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss of the shared weights must be finite, but was {mean} in epoch {self.epoch + 1}: "
                f"lower the learning rate, now {self.config.lr:g}"
            )
        return {"loss": mean, "lr": rate}

    def _paths(self) -> list[Arch]:
        """One arch for each step of an epoch."""
        config = self.config
        kind = config.warmup_paths if self.epoch < config.warmup_epochs else config.paths
        if kind == "fair":
            return [self.fair.draw(self.rng) for _ in range(self.steps)]
        if kind == "uniform":
            return [self.space.sample(self.rng) for _ in range(self.steps)]
        return self._within(self.strategy.paths, self.steps)

    def _within(self, propose: Callable[[int], list[Arch]], n: int) -> list[Arch]:
        """``n`` proposals within the budget: of several limits, a strategy may know a relaxation only."""
        archs: list[Arch] = []
        for _ in range(TRIES):
            proposed = propose(n)
            archs += [arch for arch, meets in zip(proposed, self.budget.feasible.meets(proposed), strict=True) if meets]
            if len(archs) >= n:
                return archs[:n]
        return archs + self.budget.feasible.sample(n - len(archs), np.random.default_rng(self.rng.getrandbits(32)))

    def _train_strategy(self) -> dict[str, float]:
        """Updates of the strategy at fixed weights; returns means over the archs of the epoch."""
        config = self.config
        rewards, accuracies, latencies, loads = (np.empty((config.updates, config.samples)) for _ in range(4))
        self.scorer.renew()
        for update in range(config.updates):
            archs = self._within(self.strategy.ask, config.samples)
            slopes = None
            if self.strategy.wants_slopes:
                accuracies[update], slopes = self.scorer.with_slopes(archs)
            else:
                accuracies[update] = self.scorer.on_minibatch(archs)
            latencies[update], loads[update] = self.budget.latency_ms(archs), self.budget.loads(archs)
            rewards[update] = REWARDS[config.reward](accuracies[update], loads[update], 1.0, **config.reward_options)
            self.strategy.tell(archs, rewards[update].tolist(), slopes)
            for arch, reward, accuracy in zip(archs, rewards[update].tolist(), accuracies[update].tolist(), strict=True):
                if math.isfinite(reward):
                    self.scores[arch] = (reward, accuracy, self.epoch + 1)
        told = np.isfinite(rewards)  # at least one is in each update, else the strategy has raised
        return {
            "reward": float(rewards[told].mean()),
            "accuracy": float(accuracies[told].mean()),
            "latency_ms": float(latencies.mean()),
            "load": float(loads.mean()),
            "best_reward": float(rewards[told].max()),
            "dropped": int((~told).sum()),
            **self.strategy.scalars(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on; tensors, numbers, strings and containers of them."""
        archs = list(self.scores)
        return {
            "supernet": self.supernet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "strategy": self.strategy.state_dict(),
            "generator": self.generator.get_state(),
            "rng": self.rng.getstate(),
            "fair": self.fair.state_dict(),
            "global": generator_states(),
            "archs": torch.tensor(archs, dtype=torch.int16).reshape(len(archs), len(self.space.slots)),
            "scores": torch.tensor([score[:2] for score in self.scores.values()], dtype=torch.float64).reshape(-1, 2),
            "epochs": torch.tensor([score[2] for score in self.scores.values()], dtype=torch.int64),
            "history": list(self.history),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, for a run made with the same arguments."""
        self.supernet.load_state_dict(state["supernet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.strategy.load_state_dict(state["strategy"])
        self.generator.set_state(state["generator"])
        version, numbers, gauss = state["rng"]
        self.rng.setstate((version, tuple(numbers), gauss))
        self.fair.load_state_dict(state["fair"])
        restore_generators(state["global"])
        archs = map(tuple, state["archs"].tolist())
        scores = zip(state["scores"].tolist(), state["epochs"].tolist(), strict=True)
        self.scores = {arch: (reward, accuracy, epoch) for arch, ((reward, accuracy), epoch) in zip(archs, scores, strict=True)}
        self.history = list(state["history"])


def optimizer_of(model: nn.Module, config: SearchConfig) -> torch.optim.SGD:
    """SGD of all parameters as ``config`` says; what has no gradient in a step is not moved by it."""
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=True,
    )
    if config.momentum:
        for parameter in model.parameters():
            # The fused step cannot begin the momentum of one operator beside that of others; zero begins it all the same.
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
