"""How a network is trained, as data: recipes by name and the learning rate at every moment."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

from nar_hw.errors import TrainingError, unknown_name
from nar_hw.files import read_json
from nar_hw.records import Record, as_record, replace, settings

Schedule = Literal["sgdr", "one-cycle", "step"]
Precision = Literal["fp32", "bf16", "fp16"]
SCHEDULES: tuple[Schedule, ...] = ("sgdr", "one-cycle", "step")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")


class Recipe(Record, frozen=True, kw_only=True):
    """One way to train with SGD. Epochs may be fractions: steps of a training set are named by them."""

    GROUPS: ClassVar[Mapping[str, str]] = {"first_phase": "first_phase"}

    epochs: int | float
    """Of a fraction the last epoch has fewer steps."""
    batch: int = 128
    """Images per step, whatever ``accumulate`` is."""
    accumulate: int = 1
    """Pieces that a batch is cut into to save memory; their gradients are averaged."""
    lr: float = 0.1
    """Greatest learning rate."""
    lr_min: float = 1e-4
    """Least learning rate of sgdr and one-cycle."""
    schedule: Schedule = "sgdr"
    t_0: int | float = 5
    """sgdr: epochs of the first cosine (SGDR paper, section 3)."""
    t_mult: int = 2
    """sgdr: each cosine is this many times as long as the one before."""
    warmup: float = 0.25
    """one-cycle: share of the training in which the learning rate rises in a line; it falls by a cosine."""
    milestones: tuple[int | float, ...] = ()
    """step: epochs after which the learning rate is multiplied by ``gamma``."""
    gamma: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_vectors: bool = True
    """Whether the weight decay also holds for biases and norms (parameters with fewer than two dimensions)."""
    label_smoothing: float = 0.0
    distill: float = 0.0
    """Weight of the divergence from a teacher's outputs in the loss, in [0, 1]; the labels' loss has the rest."""
    temperature: float = 4.0
    """By which both networks' logits are divided for that divergence."""
    auxiliary: float = 0.0
    """Weight of the loss of each auxiliary classifier of GoogLeNet (there 0.3) and Inception-v3; they are trained beside the
    network and no part of it. 0: there are none."""
    clip_norm: float | None = None
    """Greatest L2 norm of all gradients together; None: not clipped."""
    ema_decay: float | None = None
    """Score and keep a running average of the weights, renewed after every step with this decay; None: no average."""
    precision: Precision = "fp32"
    """Arithmetic of the forward pass; bf16 and fp16 keep weights in fp32 (autocast), fp16 scales the loss."""
    channels_last: bool = False
    """Store images and weights with the channels innermost, as tensor cores like them."""
    compile: bool = False
    """Run the network through torch.compile."""
    first_phase: "Recipe | None" = None
    """Of a fine-tuning in two phases: how the new parts and the head learn alone, before everything learns as the other fields
    say; None: see `nar_hw.training.recipes.fine_tuning`."""

    def __post_init__(self) -> None:
        """Raises TrainingError for a value outside its range, UnknownNameError for a schedule or precision."""
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule", self.schedule, SCHEDULES)
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        _require(self, "0 < epochs < 1e9", 0 < self.epochs < 1e9, "epochs")
        _require(self, "1 <= accumulate <= batch", 1 <= self.accumulate <= self.batch, "accumulate", "batch")
        _require(self, "0 <= lr_min <= lr <= 1e6 and lr > 0", 0 <= self.lr_min <= self.lr <= 1e6 and self.lr > 0, "lr_min", "lr")
        _require(self, "t_0 > 0 and t_mult >= 1", self.t_0 > 0 and self.t_mult >= 1, "t_0", "t_mult")
        _require(self, "0 <= warmup < 1", 0 <= self.warmup < 1, "warmup")
        _require(self, "milestones in ascending order", list(self.milestones) == sorted(set(self.milestones)), "milestones")
        _require(self, "0 < gamma <= 1", 0 < self.gamma <= 1, "gamma")
        _require(self, "0 <= momentum < 1", 0 <= self.momentum < 1, "momentum")
        _require(self, "momentum > 0 with nesterov", self.momentum > 0 or not self.nesterov, "momentum", "nesterov")
        _require(self, "weight_decay >= 0", self.weight_decay >= 0, "weight_decay")
        _require(self, "0 <= label_smoothing < 1", 0 <= self.label_smoothing < 1, "label_smoothing")
        _require(self, "0 <= distill <= 1", 0 <= self.distill <= 1, "distill")
        _require(self, "temperature > 0", self.temperature > 0, "temperature")
        _require(self, "auxiliary >= 0", self.auxiliary >= 0, "auxiliary")
        _require(self, "compile=False with auxiliary", not (self.auxiliary and self.compile), "auxiliary", "compile")
        _require(self, "clip_norm > 0", self.clip_norm is None or self.clip_norm > 0, "clip_norm")
        nested = self.first_phase is not None and self.first_phase.first_phase is not None
        _require(self, "no first phase of a first phase", not nested, "first_phase")
        _require(self, "0 < ema_decay < 1", self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay")

    def learning_rate(self, epoch: float) -> float:
        """The learning rate after ``epoch`` epochs, in [0, epochs); the loop asks for it before every step."""
        if self.schedule == "step":
            return self.lr * self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        if self.schedule == "one-cycle":
            rise = self.warmup * self.epochs
            if epoch < rise:
                return self.lr_min + (self.lr - self.lr_min) * epoch / rise
            return self._cosine((epoch - rise) / (self.epochs - rise))
        length = self.t_0
        while epoch >= length:
            epoch -= length
            length *= self.t_mult
        return self._cosine(epoch / length)

    def options(self, *, but: Iterable[str] = ()) -> list[str]:
        """--recipe and --set of `nar-hw train`: the nearest named recipe, and what differs from it."""
        name = min(RECIPES, key=lambda name: len(settings(self, RECIPES[name], but=but)))
        return ["--recipe", name, *settings(self, RECIPES[name], but=but)]

    @property
    def passes(self) -> int:
        """How often the training images are begun; each time a validation and a checkpoint follow."""
        return math.ceil(self.epochs)

    def steps(self, steps: int) -> int:
        """How many steps the training has where an epoch has ``steps``; every pass has one or more."""
        return max(round(self.epochs * steps), (self.passes - 1) * steps + 1)

    @property
    def one_cycle(self) -> bool:
        """Whether the learning rate falls once, however many epochs there are."""
        return self.schedule == "one-cycle" or (self.schedule == "sgdr" and self.t_0 == self.epochs)

    def cosine_ends(self) -> tuple[int, ...]:
        """sgdr: the epochs after which a cosine ends, and the last one; of other schedules only the last one."""
        ends, length = [self.t_0], self.t_0
        while self.schedule == "sgdr" and ends[-1] < self.epochs:
            length *= self.t_mult
            ends.append(ends[-1] + length)
        return (*(max(1, round(end)) for end in ends[:-1] if self.schedule == "sgdr"), self.passes)

    def _cosine(self, progress: float) -> float:
        return self.lr_min + (self.lr - self.lr_min) * (1 + math.cos(math.pi * progress)) / 2


def _require(recipe: Recipe, rule: str, holds: bool, *names: str) -> None:
    if not holds:
        values = ", ".join(f"{name}={getattr(recipe, name)}" for name in names)
        raise TrainingError(f"{rule} must hold in a recipe, but got ({values})")


RECIPES: dict[str, Recipe] = {
    # The NAR paper's retraining: three cosines of 5, 10 and 20 epochs. It does not print batch, momentum and weight decay.
    "paper": Recipe(epochs=35, t_0=5, t_mult=2, lr=0.1, lr_min=1e-4),
    # The same for faces, whose "hyper-parameter configuration is the same as ArcFace": its batch.
    "paper-faces": Recipe(epochs=35, t_0=5, t_mult=2, lr=0.1, lr_min=1e-4, batch=512),
    # Meant for 95 % with resnet18 on CIFAR-10 in 30 epochs on a GPU with bf16; not measured there yet.
    "fast": Recipe(
        epochs=30,
        schedule="one-cycle",
        batch=256,
        lr=0.2,
        nesterov=True,
        label_smoothing=0.1,
        decay_vectors=False,
        precision="bf16",
        channels_last=True,
    ),
    # A child that inherited trained and fitted weights, beside the teacher that it came from, all of it at once. For children of
    # nar_bench_digits at batch 64: 96.3 %, of 95.5 % after 15 epochs from scratch (benchmarks/bench_fitting.py recipes).
    "finetune": Recipe(epochs=10, schedule="one-cycle", warmup=0.1, lr=0.1, nesterov=True, distill=0.5),
    # For the digits and resnet_digits: 99.7, 99.4 and 99.2 % test accuracy (seeds 0 to 2), as with 15 or 35 epochs.
    "demo": Recipe(epochs=28, t_0=4, t_mult=2, batch=64, lr=0.1, lr_min=1e-4, nesterov=True, label_smoothing=0.1),
}


def recipe_named(name: str) -> Recipe:
    """The recipe called ``name``, or the one in a .json file. Raises UnknownNameError, RunError for a file that is none."""
    if name.endswith(".json"):
        return as_record(
            read_json(Path(name), what="recipe"),
            Recipe,
            where=f"recipe {name}",
            error=TrainingError,
            fix="see nar_hw.training.recipes",
        )
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]


def fine_tuning(recipe: Recipe) -> tuple[Recipe, Recipe]:
    """The recipes of the two phases: the recipe's ``first_phase`` and itself, each as it is written.

    Without a ``first_phase``, they take together as many epochs as ``recipe``: a fifth, then the rest at 0.3 of the rate, each
    with its schedule on a shorter scale: the milestones of a step schedule, the cycle of one-cycle; of sgdr, one cosine without
    a restart. (On 4,000 CIFAR-10 images a second rate of 0.1 of the first was clearly too low for five epochs.)

    Raises:
        TrainingError: a recipe of one epoch without a first phase.
    """
    if recipe.first_phase is not None:
        return recipe.first_phase, replace(recipe, first_phase=None)
    if recipe.epochs < 2:
        raise TrainingError(f"epochs >= 2 must hold for training in two phases, but got (epochs={recipe.epochs})")
    first = max(1, round(recipe.epochs / 5))
    rest = recipe.epochs - first
    return _part(recipe, first), replace(_part(recipe, rest), lr=0.3 * recipe.lr, lr_min=0.3 * recipe.lr_min)


def _part(recipe: Recipe, epochs: int | float) -> Recipe:
    """``recipe`` on the scale of ``epochs``."""
    milestones = tuple(milestone * epochs / recipe.epochs for milestone in recipe.milestones)
    return replace(recipe, epochs=epochs, milestones=milestones, t_0=epochs if recipe.schedule == "sgdr" else recipe.t_0)
