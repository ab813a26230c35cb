"""The loop: epochs of steps, a validation and a checkpoint after each."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nar_hw.distributed import all_reduce_sum, average_buffers, average_gradients, broadcast, rank, ranks
from nar_hw.errors import RunError, TrainingError
from nar_hw.locks import one_writer
from nar_hw.models.weights import save_weights
from nar_hw.records import plain
from nar_hw.space.network import detached, in_float
from nar_hw.tasks import Task
from nar_hw.training.auxiliary import AuxiliaryClassifiers
from nar_hw.training.checkpoints import SCHEMA, check_resumable, load_state, save_state
from nar_hw.training.filters import filters_of, keep_filters
from nar_hw.training.memory import kept_memory
from nar_hw.training.precision import autocast
from nar_hw.training.progress import Bar
from nar_hw.training.recipes import Recipe
from nar_hw.training.result import EpochLog, History, TrainResult
from nar_hw.training.snapshots import snapshot_epochs, snapshot_path
from nar_hw.userfile import user_code

STATE, LAST, BEST = "state.pt", "last.safetensors", "best.safetensors"


@one_writer()
@kept_memory()
def train(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    *,
    out: Path | None = None,
    seed: int = 0,
    resume: bool = False,
    teacher: nn.Module | None = None,
    snapshots: int = 0,
    progress: Progress | None = None,
    on_epoch: Callable[[Mapping[str, float]], None] | None = None,
    earlier: Sequence[EpochLog] = (),
) -> TrainResult:
    """Train the parameters of ``model`` that require a gradient; the model ends on the task's device, in eval mode.

    After every epoch ``out`` holds ``state.pt`` (to resume), ``last.safetensors``, ``best.safetensors`` and ``history.json``,
    and in ``filters`` those of the first convolution before the training, after epochs 1, 2, 4, 8, ... and after the last,
    each written atomically: a training that was stopped anywhere goes on from its last whole epoch, on a CPU to the same bits,
    and Ctrl-C needs no care. The global generators of PyTorch are left as they were; all randomness comes from ``seed``.

    Where torch.distributed is initialised, all its processes train together, each on its share of every batch, with the mean of
    their gradients; the first of them writes. Norms see their own process's share of a batch, and their running statistics are
    averaged after every epoch; without norms over the batch, and without dropout, the result is that of one process but for the
    order of sums.

    Args:
        model: changed in place.
        task: batches, loss and score, on the device to train on.
        recipe: how.
        out: folder for checkpoints; None: nothing is written.
        seed: decides the order and augmentation of the images, and dropout.
        resume: go on from the state in ``out`` (from the start if it has none). More epochs than before may be asked for,
            except of the one-cycle schedule, whose learning rates depend on their number.
        teacher: the network whose outputs are learned too, where the recipe says so (``distill``).
        snapshots: how many weights to keep in ``out/snapshots`` for an ensemble; when, see
            :func:`nar_hw.training.snapshots.snapshot_epochs`.
        progress: is given a bar.
        on_epoch: is called with the numbers of each new epoch.
        earlier: epochs of a first phase, with which the history begins; the best epoch is one of the second.

    Raises:
        TrainingError: the loss or a weight is no longer finite, the batch is larger than the training set or no multiple of the
            number of processes, one image does not fit in memory, or there is a teacher and no ``distill``, or the reverse.
        RunError: ``out`` has a training already and ``resume`` is not set, or one that cannot be resumed as asked.
    """
    devices = [task.device] if task.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        run = _Run(model, task, recipe, seed, teacher, snapshots, earlier)
        begun = None
        if out is not None and (out / STATE).exists():
            if not resume:
                raise RunError(f"{out} holds a training already: resume it, or choose another folder")
            run.restore(load_state(out / STATE), out)
            if rank() == 0:
                run.publish(out)
        elif out is not None and not earlier and rank() == 0:
            begun = filters_of(model)
        bar = Bar(progress if rank() == 0 else None, steps=run.steps, epochs=recipe.passes, done=len(run.history))
        while len(run.history) < recipe.passes:
            run.epoch(bar)
            if out is not None and rank() == 0:
                keep_filters(out, begun, 0)
                begun = None
                run.save(out)
            if on_epoch is not None and rank() == 0:
                on_epoch(plain(run.history[-1]))
    return run.result()


def steps_of_epoch(recipe: Recipe, task: Task) -> int:
    """How many batches the training images make. Raises TrainingError when there are too few for one."""
    if recipe.batch > task.train_size:
        raise TrainingError(
            f"batch <= training images must hold, but got (batch={recipe.batch}, images={task.train_size}): "
            "lower the recipe's field batch (train --recipe FILE.json, search --batch)"
        )
    return task.train_size // recipe.batch


class _Run:
    """Everything that changes from step to step."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        recipe: Recipe,
        seed: int,
        teacher: nn.Module | None,
        snapshots: int,
        earlier: Sequence[EpochLog],
    ) -> None:
        self.steps = steps_of_epoch(recipe, task)
        if recipe.first_phase is not None:
            raise TrainingError(
                "a recipe with a first_phase is of networks that inherit weights, but this one does not: use --init inherited, "
                "or a recipe without it"
            )
        if recipe.batch % ranks():
            raise TrainingError(f"batch must be a multiple of the {ranks()} processes, but got {recipe.batch}")
        if (recipe.distill > 0) != (teacher is not None):
            raise TrainingError(
                f"distill > 0 must hold exactly where there is a teacher, but got (distill={recipe.distill}, "
                f"teacher={'none' if teacher is None else 'given'}): give both or neither"
            )
        self.model, self.teacher = model, teacher
        self.model.to(task.device)
        if self.teacher is not None:
            self.teacher.to(task.device)
            self.teacher.eval()
        if recipe.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.task, self.recipe, self.seed = task, recipe, seed
        self.head = task.head if earlier else task.new_head()  # a second phase goes on with the first's
        self.auxiliary = AuxiliaryClassifiers(self.model).to(task.device) if recipe.auxiliary else None
        beside = [module for module in (self.head, self.auxiliary) if module is not None]
        self.trained = nn.ModuleList([self.model, *beside]) if beside else self.model
        broadcast(self.trained)
        self.forward = torch.compile(self.model) if recipe.compile else self.model
        self.optimizer = _optimizer(self.trained, recipe)
        self.scaler = torch.amp.GradScaler(task.device.type, enabled=recipe.precision == "fp16")
        self.average = None
        if recipe.ema_decay is not None:
            renew = cast(Any, get_ema_multi_avg_fn)(recipe.ema_decay)  # untyped in torch
            self.average = AveragedModel(self.model, multi_avg_fn=renew, use_buffers=True)
        self.generator = torch.Generator().manual_seed(seed)
        self.pieces = recipe.accumulate
        self.earlier = tuple(earlier)
        self.snapshots = {len(earlier) + epoch for epoch in snapshot_epochs(recipe, snapshots)}
        self.history: list[EpochLog] = []
        self.model.eval()

    @property
    def scored(self) -> nn.Module:
        """The network that is validated and kept."""
        return self.model if self.average is None else self.average.module

    def epoch(self, bar: Bar) -> None:
        """One pass over the training images, as far as the recipe goes, and a validation."""
        done, device, recipe = len(self.history), self.task.device, self.recipe
        steps = min(self.steps, recipe.steps(self.steps) - done * self.steps)
        losses = torch.zeros(steps, device=device)
        right = torch.zeros((), dtype=torch.float64, device=device)
        interval = _steps_between_checks(device)
        rate, checked = 0.0, 0
        self.model.train()
        start = time.perf_counter()
        batches = self.task.train_batches(recipe.batch, self.generator, shared=True)
        for step, (images, targets) in enumerate(islice(batches, steps)):
            rate = recipe.learning_rate(done + step / self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss, count = self._gradients(images, targets)
            self._update()
            losses[step] = loss
            right += count
            if step + 1 - checked >= interval or step + 1 == steps:
                self._check_losses(all_reduce_sum(losses[checked : step + 1]).div_(ranks()), done, checked)
                checked = step + 1
            bar.step()
        seconds = time.perf_counter() - start  # the last check has waited for the device
        self.model.eval()
        for network in (self.trained, self.scored):  # twice the same changes nothing
            average_buffers(network)
        self._check_weights(done, steps - 1)
        images_seen = steps * recipe.batch
        with self._autocast():
            valid_accuracy = self.task.evaluate(self.scored, "valid")
        log = EpochLog(
            epoch=len(self.earlier) + done + 1,
            loss=float(losses.mean()),
            train_accuracy=float(all_reduce_sum(right)) / images_seen,
            valid_accuracy=valid_accuracy,
            lr=rate,
            images_per_s=images_seen / seconds,
            pieces=self.pieces,
            phase=2 if self.earlier else 1,
        )
        self.history.append(log)
        bar.epoch(log, done + 1)

    def _gradients(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and number of right answers of a batch, whose gradient is then in the parameters."""
        while True:
            try:
                return self._accumulate(images, targets)
            except torch.OutOfMemoryError as problem:
                if self.pieces >= len(images):
                    raise TrainingError(
                        "a single image must fit in the device's memory, but does not: use a smaller network or input"
                    ) from problem
            # Outside the handler: the exception holds the frames that hold the memory.
            self.pieces = min(2 * self.pieces, len(images))
            self.optimizer.zero_grad()
            torch.cuda.empty_cache()
            warnings.warn(
                f"out of memory: batches of {len(images)} are now computed in {self.pieces} pieces (norms see one at a time)",
                stacklevel=2,
            )

    def _accumulate(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        losses: list[Tensor] = []
        counts = []
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        for some, their in zip(images.chunk(self.pieces), targets.chunk(self.pieces), strict=True):
            watching = nullcontext() if self.auxiliary is None else self.auxiliary.watching(self.model)
            with self._autocast(), watching, user_code("the network must train, but its forward pass"):
                output = self.forward(some)
            loss = self.task.loss(in_float(output), their, label_smoothing=self.recipe.label_smoothing)
            if self.teacher is not None:
                loss = (1 - self.recipe.distill) * loss + self.recipe.distill * self._imitation(some, in_float(output))
            if self.auxiliary is not None:
                loss = loss + self.recipe.auxiliary * self._auxiliary_loss(self.auxiliary, their)
            if len(some) < len(images):
                loss = loss * (len(some) / len(images))
            if not losses:
                # Not earlier, nor after an epoch: with gradients, a CPU's system takes back the memory of the activations too.
                self.optimizer.zero_grad()
            torch.autograd.backward(self.scaler.scale(loss))
            losses.append(loss.detach())
            counts.append(self.task.correct(detached(output), their))
        return (losses[0], counts[0]) if len(losses) == 1 else (torch.stack(losses).sum(), torch.stack(counts).sum())

    def _auxiliary_loss(self, auxiliary: AuxiliaryClassifiers, targets: Tensor) -> Tensor:
        with self._autocast():
            outputs = auxiliary()
        losses = [self.task.loss(item.float(), targets, label_smoothing=self.recipe.label_smoothing) for item in outputs]
        return torch.stack(losses).sum()

    def _imitation(self, images: Tensor, output: Any) -> Tensor:
        assert self.teacher is not None
        with torch.no_grad(), self._autocast():
            wanted = self.teacher(images)
        return self.task.imitation(output, in_float(wanted), self.recipe.temperature)

    def _update(self) -> None:
        average_gradients(self.trained)
        if self.recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            learned = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(learned, self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def _autocast(self) -> AbstractContextManager[None]:
        return autocast(self.task.device, self.recipe.precision)

    def _check_losses(self, losses: Tensor, done: int, first: int) -> None:
        for step, loss in enumerate(losses.tolist(), first):
            if not math.isfinite(loss):
                self._diverged(f"the loss is {loss}", done, step)

    def _check_weights(self, done: int, step: int) -> None:
        sums = torch.stack([parameter.detach().sum() for parameter in self.trained.parameters()])
        if not bool(sums.isfinite().all()):
            self._diverged("a weight is not finite", done, step)

    def _diverged(self, what: str, done: int, step: int) -> NoReturn:
        rate = self.recipe.learning_rate(done + step / self.steps)
        where = f"step {done * self.steps + step} (epoch {done + 1}, learning rate {rate:.3g})"
        more = ", precision='bf16'" if self.recipe.precision == "fp16" else ""
        raise TrainingError(
            f"a training must stay finite, but {what} at {where}: try lr={self.recipe.lr / 10:.3g}, clip_norm=1{more}"
        )

    def result(self) -> TrainResult:
        """The result, after the average, if any, has been put into the model."""
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        best = self._best()
        return TrainResult(
            history=(*self.earlier, *self.history),
            valid_accuracy=self.history[-1].valid_accuracy,
            best_epoch=best.epoch,
            best_valid_accuracy=best.valid_accuracy,
            snapshots=tuple(sorted(self.snapshots)),
        )

    def _best(self) -> EpochLog:
        return max(self.history, key=lambda log: (log.valid_accuracy, log.epoch))

    def save(self, out: Path) -> None:
        """Write the checkpoint of the last epoch."""
        epoch = self.history[-1].epoch
        if epoch & (epoch - 1) == 0 or len(self.history) == self.recipe.passes:  # a power of two, or the last
            keep_filters(out, filters_of(self.scored), epoch)
        # The state is what counts: the best weights are there before it, so that it never speaks of older ones.
        if self._best() is self.history[-1]:
            save_weights(out / BEST, self.scored)
        if self.history[-1].epoch in self.snapshots:
            save_weights(snapshot_path(out, self.history[-1].epoch), self.scored)
        save_state(
            out / STATE,
            {
                "schema": SCHEMA,
                "seed": self.seed,
                "recipe": plain(self.recipe),
                "task": self.task.record,
                "network": str(self.model),
                "history": plain(self.history),
                "pieces": self.pieces,
                "model": self.model.state_dict(),
                "head": None if self.head is None else self.head.state_dict(),
                "auxiliary": None if self.auxiliary is None else self.auxiliary.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "generator": self.generator.get_state(),
                "rng": torch.get_rng_state(),
                "device_rng": torch.cuda.get_rng_state(self.task.device) if self.task.device.type == "cuda" else None,
            },
        )
        self.publish(out)

    def publish(self, out: Path) -> None:
        """Write what others read of the last epoch."""
        save_weights(out / LAST, self.scored)
        History(epochs=(*self.earlier, *self.history)).save(out)

    def restore(self, state: dict[str, Any], out: Path) -> None:
        """Go on from ``state``. Raises RunError when it is of another training."""
        check_resumable(state, out, recipe=self.recipe, seed=self.seed, task=self.task.record)
        try:
            self.model.load_state_dict(state["model"])
            if self.head is not None:
                self.head.load_state_dict(state["head"])
            if self.auxiliary is not None:
                self.auxiliary.load_state_dict(state["auxiliary"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            if state.get("network") != str(self.model):
                raise ValueError("other layers with weights of the same shapes")
        except (RuntimeError, ValueError) as problem:
            reason = " ".join(str(problem).split())[:200]
            raise RunError(
                f"{out} must hold a training of the same network, but it does not fit ({reason}): choose another folder"
            ) from problem
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"])
        if self.task.device.type == "cuda" and state["device_rng"] is not None:
            torch.cuda.set_rng_state(state["device_rng"], self.task.device)
        self.pieces = state["pieces"]
        self.history = [EpochLog(**log) for log in state["history"]]
        self._require_snapshots(out)

    def _require_snapshots(self, out: Path) -> None:
        """Keep the last epoch's where it is wanted; raises RunError where an earlier one was not kept."""
        last = self.history[-1].epoch
        for epoch in sorted(epoch for epoch in self.snapshots if epoch <= last and not snapshot_path(out, epoch).exists()):
            if epoch < last:
                raise RunError(
                    f"{out} must hold the ensemble's snapshot of epoch {epoch}, but does not: ask for fewer, or train anew"
                )
            if rank() == 0:
                save_weights(snapshot_path(out, epoch), self.scored)


def _steps_between_checks(device: torch.device) -> int:
    """How often the losses are looked at: rarely where that makes the program wait for the device."""
    return 1 if device.type == "cpu" else 50


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learned:
        raise TrainingError("a network must have parameters that require a gradient, but all are frozen: unfreeze some")
    spared = [] if recipe.decay_vectors else [parameter for parameter in learned if parameter.ndim < 2]
    decayed = learned if recipe.decay_vectors else [parameter for parameter in learned if parameter.ndim >= 2]
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, recipe.weight_decay), (spared, 0.0))
        if parameters
    ]
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
