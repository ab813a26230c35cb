"""A search as it goes: everything that changes from epoch to epoch."""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import entr
from torch import nn

from nar_hw.distributed import all_reduce_sum, average_gradients, ranks, share
from nar_hw.errors import TrainingError
from nar_hw.search.budget import Budget
from nar_hw.search.config import SearchConfig
from nar_hw.search.feasible import ROUNDING, Floats
from nar_hw.search.randomness import generator_states, restore_generators
from nar_hw.search.reward import REWARDS
from nar_hw.search.scoring import Scorer
from nar_hw.search.strategies import strategy_class
from nar_hw.search.strategies.base import Strategy
from nar_hw.search.supernet import FairPaths, Supernet
from nar_hw.space.network import in_float
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch
from nar_hw.tasks import Task
from nar_hw.training.precision import autocast

TRIES = 20
"""How often a strategy is asked again for archs within the budget."""


class Player(NamedTuple):
    """What was asked for one target, and the strategy that looks for it."""

    budget: Budget
    strategy: Strategy


class SearchRun:
    """Everything that changes in a search. Usually made by `search`.

    With several targets, the strategies take turns at the same shared weights. A score is of an arch and no target, so that
    strategies that can learn from any arch learn from all.
    """

    def __init__(
        self,
        space: SearchSpace,
        task: Task,
        budgets: Sequence[Budget],
        config: SearchConfig,
        supernet: Supernet | None = None,
    ) -> None:
        """``supernet``: weights that are scored as they are; by default fresh ones, which every epoch trains."""
        self.space, self.task, self.config = space, task, config
        self.epochs = config.recipe.passes
        self.steps = task.train_size // config.batch
        if self.steps == 0:
            raise TrainingError(
                f"batch <= training images must hold, but got (batch={config.batch}, images={task.train_size}): "
                "use a smaller batch"
            )
        if config.batch % ranks():
            raise TrainingError(f"batch must be a multiple of the {ranks()} processes, but got {config.batch}")
        self.fixed = supernet is not None
        self.supernet = (Supernet(space, task.new_head()) if supernet is None else supernet).to(task.device)
        if config.channels_last:
            self.supernet = self.supernet.to(memory_format=torch.channels_last)
        self.optimizer = optimizer_of(self.supernet, config)
        self.scaler = torch.amp.GradScaler(task.device.type, enabled=config.precision == "fp16")
        make = strategy_class(config.strategy)
        self.players = [Player(budget, make(budget.feasible, seed=config.seed, **config.strategy_options)) for budget in budgets]
        self.generator = torch.Generator().manual_seed(config.seed)
        self.rng = random.Random(config.seed)
        self.fair = FairPaths(space)
        self.scorer = Scorer(self.supernet, task, config, self.generator, {} if self.fixed else None)
        self.scores: dict[Arch, tuple[float, int]] = {}
        """Arch -> its last accuracy, and the epoch."""
        self.history: list[dict[str, float]] = []

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history)

    def advance(self) -> None:
        """One epoch: of shared weights, and after the warm-up of the strategy. Raises TrainingError when the weights diverged."""
        start = time.perf_counter()
        warmup = self.epoch < self.config.warmup_epochs
        log: dict[str, float] = {"epoch": self.epoch + 1, "warmup": int(warmup)}
        if not self.fixed:
            log |= self._train_weights()
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
        mixtures = self._mixtures()
        for step, (arch, (images, targets)) in enumerate(zip(self._paths(), batches, strict=True)):
            rate = recipe.learning_rate(self.epoch + step / self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.supernet.activate(arch)
            self.optimizer.zero_grad(set_to_none=True)  # what does not run is not moved
            mixed = self.supernet.mixed(mixtures[step % len(mixtures)]) if mixtures else nullcontext()
            with mixed, autocast(self.task.device, self.config.precision):
                output = self.supernet(self.scorer.laid_out(share(images)))
            loss = self.task.loss(in_float(output), share(targets))
            torch.autograd.backward(self.scaler.scale(loss))
            average_gradients(self.supernet)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            losses += loss.detach()
        mean = float(all_reduce_sum(losses)) / (ranks() * self.steps)
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
        each = [len(range(turn, self.steps, len(self.players))) for turn in range(len(self.players))]
        drawn = [self._within(player, player.strategy.paths, n) for player, n in zip(self.players, each, strict=True)]
        return [drawn[step % len(drawn)][step // len(drawn)] for step in range(self.steps)]

    def _mixtures(self) -> list[torch.Tensor]:
        """What trains the shared weights in turn instead of paths: (S, V) weights each, of strategies that mix operators."""
        if self.epoch < self.config.warmup_epochs or self.config.paths != "strategy":
            return []
        mixing = [player.strategy for player in self.players if player.strategy.wants_mixture]
        return [torch.tensor(item.mixture(), dtype=torch.float32, device=self.task.device) for item in mixing]

    def _within(self, player: Player, propose: Callable[[int], list[Arch]], n: int) -> list[Arch]:
        """``n`` proposals within a budget: of several limits, a strategy may know a relaxation only."""
        feasible = player.budget.feasible
        archs: list[Arch] = []
        for _ in range(TRIES):
            proposed = propose(n)
            archs += [arch for arch, meets in zip(proposed, feasible.meets(proposed), strict=True) if meets]
            if len(archs) >= n:
                return archs[:n]
        return archs + feasible.sample(n - len(archs), np.random.default_rng(self.rng.getrandbits(32)))

    def _proposed(self, player: Player, n: int) -> list[Arch]:
        """``n`` archs of a strategy; what has no turn in this epoch is as in the best arch so far."""
        archs = player.strategy.ask(n)
        held = self._held
        if not any(held):
            return archs
        best = self._best(player)
        return [tuple(own if kept else code for own, code, kept in zip(best, arch, held, strict=True)) for arch in archs]

    @property
    def _held(self) -> tuple[bool, ...]:
        """The slots that have no turn: of alternating searches the skips in the first epoch, the operators in the next."""
        skips = self.space.free_skips
        if self.config.skips != "alternate":
            return (False,) * len(skips)
        turn = bool((self.epoch - self.config.warmup_epochs) % 2)
        return tuple(skip != turn for skip in skips)

    def _best(self, player: Player) -> Arch:
        """The arch that a strategy believes in, else the best scored within its budget, else the one of the least load."""
        best = player.strategy.best()
        if best is not None and player.budget.loads([best])[0] <= 1 + ROUNDING:
            return best
        scored = [arch for arch in self.scores if player.budget.loads([arch])[0] <= 1 + ROUNDING]
        return max(scored, key=lambda arch: self.scores[arch][0], default=player.budget.nearest)

    def _skips_of(self, archs: Sequence[Arch]) -> dict[str, float]:
        """The share of skips kept, and how far from 0.5 the policy has moved, where skips have a turn.

        The Kullback-Leibler divergence of each skip's share among the archs proposed from 0.5, in nats, averaged over the skips
        (NAR, Figure 1): 0 to log 2; of N archs drawn at 0.5, about 1 / 2N.
        """
        positions = [
            position
            for position, (skip, held) in enumerate(zip(self.space.free_skips, self._held, strict=True))
            if skip and not held
        ]
        if not positions:
            return {}
        kept = np.array([[arch[position] == self.space.slots[position].incumbent for position in positions] for arch in archs])
        shares = kept.mean(axis=0)
        return {"skips": float(shares.mean()), "skip_kl": float((math.log(2) - entr(shares) - entr(1 - shares)).mean())}

    def rewards(self, budget: Budget, archs: Sequence[Arch], accuracies: Sequence[float] | Floats) -> Floats:
        """(N,) rewards of archs with these accuracies under a budget."""
        if not len(archs):
            return np.empty(0)
        reward = REWARDS[self.config.reward]
        return np.asarray(reward(np.asarray(accuracies), budget.loads(archs), 1.0, **self.config.reward_options))

    def _train_strategy(self) -> dict[str, float]:
        """Updates of the strategies at fixed weights, in turn; returns means over the archs of the epoch."""
        config = self.config
        timed = self.players[0].budget.timed
        rewards, accuracies, latencies, loads = (np.empty((config.updates, config.samples)) for _ in range(4))
        self.scorer.renew()
        before = (self.epoch - config.warmup_epochs) * config.updates
        proposed: list[Arch] = []
        for update in range(config.updates):
            turn = (before + update) % len(self.players)  # of more targets than updates, all have their turn
            player = self.players[turn]
            if player.strategy.wants_mixture:
                player.strategy.descend(self.scorer.with_mixture(player.strategy.mixture()))
            archs = self._within(player, partial(self._proposed, player), config.samples)
            proposed += archs
            slopes = None
            if player.strategy.wants_slopes:
                accuracies[update], slopes = self.scorer.with_slopes(archs)
            else:
                accuracies[update] = self.scorer.on_minibatch(archs)
            loads[update] = player.budget.loads(archs)
            if timed:
                latencies[update] = player.budget.latency_ms(archs)
            rewards[update] = self.rewards(player.budget, archs, accuracies[update])
            for other in self.players if player.strategy.off_policy else [player]:
                own = rewards[update] if other is player else self.rewards(other.budget, archs, accuracies[update])
                other.strategy.tell(archs, own.tolist(), slopes)
            for arch, reward, accuracy in zip(archs, rewards[update].tolist(), accuracies[update].tolist(), strict=True):
                if math.isfinite(reward):
                    self.scores[arch] = (accuracy, self.epoch + 1)
        finite = np.isfinite(rewards)  # at least one is in each update, else the strategy has raised
        scalars = [player.strategy.scalars() for player in self.players]
        return {
            "reward": float(rewards[finite].mean()),
            "accuracy": float(accuracies[finite].mean()),
            **({"latency_ms": float(latencies.mean())} if timed else {}),
            "load": float(loads.mean()),
            "best_reward": float(rewards[finite].max()),
            "dropped": int((~finite).sum()),
            **self._skips_of(proposed),
            **_means(scalars),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on; tensors, numbers, strings and containers of them."""
        archs = list(self.scores)
        return {
            "supernet": self.supernet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "strategies": [player.strategy.state_dict() for player in self.players],
            "generator": self.generator.get_state(),
            "rng": self.rng.getstate(),
            "fair": self.fair.state_dict(),
            "global": generator_states(),
            "archs": torch.tensor(archs, dtype=torch.int16).reshape(len(archs), len(self.space.slots)),
            "scores": torch.tensor([accuracy for accuracy, _ in self.scores.values()], dtype=torch.float64),
            "epochs": torch.tensor([epoch for _, epoch in self.scores.values()], dtype=torch.int64),
            "history": list(self.history),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, for a run made with the same arguments."""
        self.supernet.load_state_dict(state["supernet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for player, known in zip(self.players, state["strategies"], strict=True):
            player.strategy.load_state_dict(known)
        self.generator.set_state(state["generator"])
        version, numbers, gauss = state["rng"]
        self.rng.setstate((version, tuple(numbers), gauss))
        self.fair.load_state_dict(state["fair"])
        restore_generators(state["global"])
        archs = map(tuple, state["archs"].tolist())
        scores = zip(state["scores"].tolist(), state["epochs"].tolist(), strict=True)
        self.scores = dict(zip(archs, scores, strict=True))
        self.history = list(state["history"])


def _means(scalars: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number over the strategies that know it: one that had no turn yet lacks some, or has NaN."""
    names = dict.fromkeys(name for item in scalars for name in item)
    known = {name: [item[name] for item in scalars if math.isfinite(item.get(name, math.nan))] for name in names}
    return {name: float(np.mean(values)) for name, values in known.items() if values}


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
