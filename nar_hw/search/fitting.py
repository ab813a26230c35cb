"""Candidates fitted inside a trained network: each learns to put out what the operator it may replace puts out there.

Block-wise distillation (DNA, Li et al. 2020; LANA, Molchanov et al. 2022) for the operators of any network. The teacher is the
supernet's own path of incumbents. Where its forward pass comes by a site, the site's candidates learn at once from what went in
and came out, so that no more than one candidate's activations are ever kept.

Shape legend: B images, C channels, H height, W width; S slots, V codes.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.progress import Progress
from torch import Tensor, nn

from nar_hw.distributed import all_reduce_sum, average_buffers, average_gradients, broadcast, rank, ranks, share
from nar_hw.errors import RunError, SpaceError, TrainingError
from nar_hw.records import plain
from nar_hw.search.config import FitConfig
from nar_hw.search.randomness import generator_states, restore_generators, seeded
from nar_hw.search.supernet import Supernet, Switch
from nar_hw.space.space import Site
from nar_hw.tasks import Task
from nar_hw.training.checkpoints import load_state, save_state
from nar_hw.training.precision import autocast

STATE = "fit.pt"
FLOOR = 0.01
"""Least variance of a channel, as a share of the mean of all channels: dead ones must not outweigh the rest."""
TINY = 1e-12
"""A variance, so that nothing is divided by zero where all channels are constant."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FitResult:
    """How near the candidates have come to what they may replace."""

    errors: tuple[Mapping[int, float], ...]
    """Per slot: code -> mean squared error in the last epoch relative to the variance of the target, the mean over channels,
    sites and images: 0 is the same, 1 no better than a constant. Incumbents are 0."""
    history: tuple[Mapping[str, float], ...]
    """One item per epoch: its number, mean error, learning rate and seconds."""


def fit(
    supernet: Supernet,
    task: Task,
    config: FitConfig | None = None,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    on_epoch: Callable[[Mapping[str, float]], None] | None = None,
) -> FitResult:
    """Fit every candidate of ``supernet`` that is no incumbent to its site in the path of incumbents, in place.

    The supernet must have been made of a trained network; incumbents and everything outside the slots stay as they are, to the
    bit. On a CPU the same arguments give the same bits; a fitting that was stopped goes on from its last whole epoch.

    Args:
        supernet: moves to the task's device.
        task: training images, on the device to fit on; labels are not used.
        config: how.
        out: folder for ``fit.pt``, written after every epoch; None: nothing is written.
        resume: go on from ``out`` (from the start if it has nothing).
        progress: is given a bar.
        on_epoch: is called with each new item of the history.

    Raises:
        TrainingError: a candidate diverged, or the batch is larger than the training set or too small to be dealt out.
        RunError: ``out`` holds a fitting already and ``resume`` is not set, or one of another network or with other settings.
    """
    config = config or FitConfig()
    with seeded(config.seed):
        run = Fitting(supernet, task, config)
        path = None if out is None else out / STATE
        if path is not None and path.exists():
            if not resume:
                raise RunError(f"{out} holds a fitting already: resume it, or choose another folder")
            run.load_state_dict(load_state(path), path)
        bar = None if progress is None or rank() else progress.add_task("fitting", total=config.epochs, completed=run.epoch)
        while run.epoch < config.epochs:
            run.advance()
            if path is not None and rank() == 0:
                save_state(path, run.state_dict())
            if progress is not None and bar is not None:
                error = run.history[-1]["error"]
                progress.update(bar, description=f"fitting: mean error {error:.3f}", completed=run.epoch)
            if on_epoch is not None and rank() == 0:
                on_epoch(run.history[-1])
    return run.result()


class Fitting:
    """Everything that changes while candidates are fitted. Usually made by `fit`."""

    def __init__(self, supernet: Supernet, task: Task, config: FitConfig) -> None:
        self.supernet, self.task, self.config = supernet.to(task.device), task, config
        if config.channels_last:
            self.supernet = self.supernet.to(memory_format=torch.channels_last)
        self.space = supernet.space
        self.steps = task.train_size // config.batch
        if self.steps == 0:
            raise TrainingError(
                f"batch <= training images must hold, but got (batch={config.batch}, images={task.train_size}): lower the batch"
            )
        most = max(len(slot.candidates) - 1 for slot in self.space.slots)
        if config.batch < 2 * ranks() * (most if config.deal else 1):
            raise TrainingError(f"a batch must have two images for each of {most} candidates, but has {config.batch}: raise it")
        broadcast(self.supernet)
        self.rivals = nn.ModuleList(module for slot, site in self._sites() for module in self._rivals(slot, site))
        self.norms = {
            site.norm: copy.deepcopy(self._switch(site.norm).choices[str(self.space.slots[slot].incumbent)]).train()
            for slot, site in self._sites()
            if site.norm is not None
        }
        """The teacher's, to be run on the very images that a candidate's norm sees: both then normalise alike."""
        self.optimizer = torch.optim.Adam([{"params": list(self.rivals.parameters())}], lr=config.lr, fused=True)
        self.scaler = torch.amp.GradScaler(task.device.type, enabled=config.precision == "fp16")
        self.generator = torch.Generator().manual_seed(config.seed)
        shape = len(self.space.slots), len(self.space.operators)
        self.errors = torch.zeros(shape, dtype=torch.float64, device=task.device)  # (S, V)
        self.history: list[dict[str, float]] = []

    def _sites(self) -> Iterator[tuple[int, Site]]:
        for index, slot in enumerate(self.space.slots):
            for site in slot.sites:
                yield index, site

    def _switch(self, path: str) -> Switch:
        return cast(Switch, self.supernet.network.get_submodule(path))

    def _codes(self, slot: int) -> list[int]:
        """The candidates of a slot that are fitted."""
        return [code for code in self.space.slots[slot].candidates if code != self.space.slots[slot].incumbent]

    def _rivals(self, slot: int, site: Site) -> Iterator[nn.Module]:
        for code in self._codes(slot):
            for path in filter(None, (site.conv, site.norm)):
                yield self._switch(path).choices[str(code)]

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history)

    def advance(self) -> None:
        """One epoch. Raises TrainingError when a candidate diverged."""
        start = time.perf_counter()
        self.errors.zero_()
        rate = 0.0
        with self.prepared():
            for step, (images, _) in enumerate(self.task.train_batches(self.config.batch, self.generator)):
                rate = self.config.learning_rate((self.epoch + step / self.steps) / self.config.epochs)
                self.step(images, rate)
        average_buffers(self.rivals)
        all_reduce_sum(self.errors).div_(ranks() * self.steps)
        for slot in range(len(self.errors)):
            for code in self._codes(slot):
                if not math.isfinite(float(self.errors[slot, code])):
                    name = self.space.slots[slot].name
                    raise TrainingError(
                        f"the error of {self.space.operators[code]} at {name} must be finite, but was not in epoch "
                        f"{self.epoch + 1}: lower the learning rate, now {self.config.lr:g}"
                    )
        fitted = [float(self.errors[slot, code]) for slot in range(len(self.errors)) for code in self._codes(slot)]
        error = sum(fitted) / max(1, len(fitted))
        self.history.append({"epoch": self.epoch + 1, "error": error, "lr": rate, "seconds": time.perf_counter() - start})

    def step(self, images: Tensor, rate: float) -> None:
        """One pass of the teacher on (B, C, H, W) images, within which every candidate learns."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), autocast(self.task.device, self.config.precision):
            self.supernet(share(images))
        average_gradients(self.rivals)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Within it the teacher is the active path, in eval mode, and candidates in training mode learn where it comes by."""
        modes = [(module, module.training) for module in self.supernet.modules()]
        before = self.supernet.arch
        self.supernet.activate(self.space.incumbent)
        self.supernet.eval()
        self.rivals.train()
        hooks = [self._switch(site.conv).register_forward_hook(partial(self._learn, slot, site)) for slot, site in self._sites()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.supernet.activate(before)
            for module, training in modes:
                module.training = training

    def _learn(self, slot: int, site: Site, switch: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Gradients of every candidate of a site for what goes into the teacher's convolution and what comes out."""
        inputs, codes = args[0], self._codes(slot)
        pieces = len(codes) if self.config.deal else 1
        parts = list(zip(inputs.tensor_split(pieces), output.tensor_split(pieces), strict=True))
        share_of_error = 1 / sum(len(item.calls) for item in self.space.slots[slot].sites)
        version = inputs._version
        for position, code in enumerate(codes):
            some, wanted = parts[position % pieces]
            if site.norm is not None:
                wanted = self.norms[site.norm](wanted)
            with torch.enable_grad():
                found = self._switch(site.conv).choices[str(code)](some)
                if site.norm is not None:
                    found = self._switch(site.norm).choices[str(code)](found)
            error, gradient = relative_error(found.detach().float(), wanted.float())
            if found.requires_grad:
                torch.autograd.backward(found, self.scaler.scale(gradient).to(found.dtype))
            self.errors[slot, code] += share_of_error * error
            if inputs._version != version:
                raise SpaceError(
                    f"operator {self.space.operators[code]!r} must not change its input, but does: let it work on a copy"
                )

    def result(self) -> FitResult:
        """What came of it."""
        return FitResult(
            errors=tuple(
                {code: 0.0 if code == slot.incumbent else float(self.errors[index, code]) for code in slot.candidates}
                for index, slot in enumerate(self.space.slots)
            ),
            history=tuple(self.history),
        )

    def _identity(self) -> dict[str, Any]:
        slots = [[slot.name, [self.space.operators[code] for code in slot.candidates]] for slot in self.space.slots]
        return {"config": plain(self.config), "task": self.task.record, "slots": slots}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on."""
        return {
            "identity": self._identity(),
            "supernet": self.supernet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generator": self.generator.get_state(),
            "global": generator_states(),
            "errors": self.errors,
            "history": list(self.history),
        }

    def load_state_dict(self, state: dict[str, Any], path: Path) -> None:
        """The inverse of `state_dict`. Raises RunError when it is of another fitting."""
        mine = self._identity()
        theirs = state.get("identity", {})
        if different := [name for name in mine if theirs.get(name) != mine[name]]:
            raise RunError(f"{path} must be of the same fitting, but has another {different[0]}: choose another folder")
        learned = {id(tensor) for tensor in self.rivals.state_dict(keep_vars=True).values()}
        for name, tensor in self.supernet.state_dict(keep_vars=True).items():
            if id(tensor) not in learned and not torch.equal(tensor.detach().cpu(), state["supernet"][name]):
                raise RunError(f"{path} must be of the same trained weights, but {name} differs: choose another folder")
        self.supernet.load_state_dict(state["supernet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        restore_generators(state["global"])
        self.errors.copy_(state["errors"])
        self.history = list(state["history"])


def relative_error(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error relative to the target's variance, each channel's by its own, the mean over channels; its gradient.

    Two (B, C, H, W) -> a scalar and (B, C, H, W): autograd would pass over the pixels twice as often.
    """
    pixels = (0, 2, 3)
    variance = (target - target.mean(pixels, keepdim=True)).square().mean(pixels)  # (C,); torch.var is slow on a CPU
    weight = 1 / (variance.clamp(min=FLOOR * variance.mean() + TINY) * len(variance))
    difference = output - target
    error = (difference.square().mean(pixels) * weight).sum()
    per_pixel = 2 * weight * len(variance) / target.numel()
    return error, difference.mul_(per_pixel.view(-1, 1, 1))
