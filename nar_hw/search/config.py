"""Every setting of a search, as data."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Literal, get_args, get_origin

import msgspec

from nar_hw.errors import UserError, unknown_name
from nar_hw.records import Record, plain, shown
from nar_hw.search.reward import REWARDS
from nar_hw.search.strategies import STRATEGIES, strategy_class
from nar_hw.training.recipes import PRECISIONS, Precision, Recipe

Paths = Literal["strategy", "fair", "uniform"]
PATHS: tuple[Paths, ...] = ("strategy", "fair", "uniform")
Skips = Literal["fixed", "free", "alternate"]
SKIPS: tuple[Skips, ...] = ("fixed", "free", "alternate")
Combine = Literal["worst", "mean"]
COMBINE: tuple[Combine, ...] = ("worst", "mean")


FIT_WARMUP = 0.1
"""Share of the steps in which the learning rate rises; it falls by a cosine."""


class FitConfig(Record, frozen=True, kw_only=True):
    """How candidates are fitted."""

    epochs: int = 5
    batch: int = 128
    """Images that the teacher sees in a step."""
    deal: bool = True
    """Deal the images of a step out among the candidates of a slot; else each candidate sees all, at as many times the cost."""
    lr: float = 1e-2
    """Greatest learning rate of Adam."""
    seed: int = 0
    precision: Precision = "fp32"
    """Arithmetic of the forward passes; weights stay in fp32."""
    channels_last: bool = False
    """Store images and weights with the channels innermost."""

    def __post_init__(self) -> None:
        """Raises UserError for a value outside its range."""
        for rule, holds in (
            ("epochs >= 1", self.epochs >= 1),
            ("batch >= 1", self.batch >= 1),
            ("lr > 0", self.lr > 0),
            (f"precision in {PRECISIONS}", self.precision in PRECISIONS),
        ):
            if not holds:
                raise UserError(f"{rule} must hold for fitting, but got {plain(self)}")

    def learning_rate(self, progress: float) -> float:
        """The rate when ``progress``, in [0, 1), of the steps are done."""
        if progress < FIT_WARMUP:
            return self.lr * progress / FIT_WARMUP
        return self.lr * (1 + math.cos(math.pi * (progress - FIT_WARMUP) / (1 - FIT_WARMUP))) / 2


class SearchConfig(Record, frozen=True, kw_only=True):
    """Settings of `nar_hw.search`.

    The defaults are ours, measured to find more in less time (docs/benchmarks/search.md): a linear surrogate instead of the
    controller, fair paths instead of the policy's, a reward with latency in it, 4 updates of 10 archs an epoch, not 50 of 20.
    Of the NAR paper they keep the schedule of the shared weights: 150 epochs, SGDR with cosines of 10, 20, 40 and 80 epochs from
    0.1 to 1e-4. The paper's own search is a preset (`nar_hw.search.presets`, ``nar-hw search --preset paper``).
    """

    GROUPS: ClassVar[Mapping[str, str]] = {"controller": "strategy_options", "reward": "reward_options", "fit": "fit"}
    OPTIONS: ClassVar[Mapping[str, str]] = {
        "weights": "weight",
        **dict.fromkeys(("strategy_options", "reward_options", "lr", "lr_min", "t_0", "t_mult", "momentum", "weight_decay"), ""),
        **dict.fromkeys(("updates", "samples", "valid_batch", "recalibration_batches", "rescored", "finalists", "fit"), ""),
    }

    strategy: str = "surrogate"
    """Name in STRATEGIES."""
    strategy_options: Mapping[str, Any] = {}
    """Keyword arguments of the strategy; on the command line ``--set controller.NAME=VALUE``."""
    reward: str = "absolute"
    """Name in REWARDS."""
    reward_options: Mapping[str, float] = {}
    """Keyword arguments of the reward; on the command line ``--set reward.NAME=VALUE``."""
    combine: Combine = "worst"
    """Of several tables: every one has to meet its target, or the mean of latency / target has to be at most 1."""
    weights: tuple[float, ...] = ()
    """Of the tables in the mean; equal by default."""
    max_flops: int | None = None
    """Limit of an arch's FLOPs (multiply-adds of one image, pools free)."""
    max_params: int | None = None
    """Limit of an arch's parameters."""
    max_energy: float | None = None
    """Limit of an arch's energy by the first table, millijoules of one image on its device."""
    max_memory: float | None = None
    """Limit of the memory that an arch takes when it is loaded and run, by the first table, MiB."""
    seed: int = 0
    warmup_epochs: int = 10
    """PreTrain: epochs in which only the shared weights learn, before the strategy scores anything."""
    warmup_paths: Paths = "fair"
    """Which child each of these steps trains: "fair" deals the operators of a slot without replacement, "uniform" draws them."""
    epochs: int = 140
    """Epochs of shared weights and strategy in turn."""
    paths: Paths = "fair"
    """Which child each of these steps trains: as in the warm-up, or what the strategy's policy draws, where it has one (ENAS);
    that flatters what is trained most (benchmarks/nar_bench_digits: with the controller, 2.5 instead of 1.0 points of regret)."""
    skips: Skips = "fixed"
    """Whether the network keeps its skip connections (NAR), or which stay is searched: "free" together with the operators,
    "alternate" in turns of an epoch each, the others held as the best arch so far has them (NAR, section 5)."""
    batch: int = 128
    """Training images per step."""
    lr: float = 0.1
    """Greatest learning rate of the shared weights."""
    lr_min: float = 1e-4
    t_0: int = 10
    """Epochs of the first cosine (SGDR)."""
    t_mult: int = 2
    """Each cosine is this many times as long as the one before."""
    momentum: float = 0.9
    """Of Nesterov's kind where it is not 0."""
    weight_decay: float = 5e-4
    updates: int = 4
    """Times per epoch that the strategy asks for archs and is told their rewards."""
    samples: int = 10
    """Archs per update."""
    valid_batch: int = 128
    """Validation images per update: the reward's accuracy is of one minibatch, the same for all archs of an update."""
    recalibration_batches: int = 2
    """Training batches from which the BatchNorm statistics of an arch are estimated before it is scored."""
    rescored: int = 32
    """Archs that are scored on the whole validation split at the end."""
    finalists: int = 8
    """The best of these, which are measured on the device."""
    precision: Precision = "fp32"
    """Arithmetic of the forward passes; bf16 and fp16 keep weights in fp32 (autocast), fp16 scales the loss."""
    channels_last: bool = False
    """Store images and weights with the channels innermost."""
    fit: FitConfig | None = None
    """Candidates are fitted inside the trained network and then scored as they are: no epoch trains weights; None: all do."""

    def __post_init__(self) -> None:
        """Raises UnknownNameError for a name, UserError for a value outside its range."""
        if self.strategy not in STRATEGIES:
            raise unknown_name("strategy", self.strategy, STRATEGIES)
        if self.reward not in REWARDS:
            raise unknown_name("reward", self.reward, REWARDS)
        if self.strategy_options:
            made = strategy_class(self.strategy)
            _known_options(f"option of strategy {self.strategy}", self.strategy_options, made, but=("feasible", "seed"))
        reward = REWARDS[self.reward]
        _known_options(f"option of reward {self.reward}", self.reward_options, reward, but=("q", "latency_ms", "target_ms"))
        for paths in (self.warmup_paths, self.paths):
            if paths not in PATHS:
                raise unknown_name("paths", paths, PATHS)
        if self.skips not in SKIPS:
            raise unknown_name("skips", self.skips, SKIPS)
        if self.skips != "fixed":
            self._check_skips()
        if self.combine not in COMBINE:
            raise unknown_name("combine", self.combine, COMBINE)
        _require(self, "weights > 0, of a mean", all(weight > 0 for weight in self.weights), "weights")
        _require(self, "combine=mean with weights", self.combine == "mean" or not self.weights, "combine", "weights")
        for name in ("max_flops", "max_params"):
            limit = getattr(self, name)
            _require(self, f"{name} >= 1", limit is None or limit >= 1, name)
        for name in ("max_energy", "max_memory"):
            limit = getattr(self, name)
            _require(self, f"{name} > 0", limit is None or limit > 0, name)
        _require(self, "warmup_paths is fair or uniform", self.warmup_paths != "strategy", "warmup_paths")
        _require(self, "warmup_epochs >= 0", self.warmup_epochs >= 0, "warmup_epochs")
        for name in ("epochs", "updates", "samples", "valid_batch", "recalibration_batches"):
            _require(self, f"{name} >= 1", getattr(self, name) >= 1, name)
        _require(self, "1 <= finalists <= rescored", 1 <= self.finalists <= self.rescored, "finalists", "rescored")
        _ = self.recipe

    def _check_skips(self) -> None:
        made = strategy_class(self.strategy)
        if made.wants_slopes:
            raise UserError(
                f"strategy {self.strategy} learns from slopes in what runs, which a skip taken out has none of: use another "
                "strategy, or skips=fixed"
            )
        if self.skips == "alternate" and not made.off_policy:
            able = ", ".join(name for name in STRATEGIES if strategy_class(name).off_policy)
            raise UserError(
                f"skips=alternate needs a strategy that learns from archs it did not propose ({able}), but got {self.strategy}: "
                "use one of these, or skips=free"
            )
        if self.fit is not None:
            raise UserError("a skip has no weights to be fitted: search without trained weights, or with skips=fixed")

    @property
    def recipe(self) -> Recipe:
        """How the shared weights are trained. Raises TrainingError or UnknownNameError for a value outside its range."""
        return Recipe(
            epochs=self.warmup_epochs + self.epochs,
            batch=self.batch,
            lr=self.lr,
            lr_min=self.lr_min,
            t_0=self.t_0,
            t_mult=self.t_mult,
            momentum=self.momentum,
            nesterov=self.momentum > 0,
            weight_decay=self.weight_decay,
            precision=self.precision,
            channels_last=self.channels_last,
        )


def _known(kind: str, given: Collection[str], known: Collection[str]) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise unknown_name(kind, unknown[0], known)


def _known_options(kind: str, given: Mapping[str, Any], maker: Callable[..., Any], *, but: tuple[str, ...]) -> None:
    parameters = inspect.signature(maker).parameters
    _known(kind, given, [name for name in parameters if name not in but])
    for name, value in given.items():
        wanted = parameters[name].annotation
        if wanted is inspect.Parameter.empty or isinstance(wanted, str):
            continue
        try:
            msgspec.convert(value, wanted)
        except msgspec.ValidationError:
            if get_origin(wanted) is Literal:
                raise unknown_name(f"{name} of {kind.removeprefix('option of ')}", str(value), get_args(wanted)) from None
            rule = f"{name} must be {getattr(wanted, '__name__', wanted)}, but is {shown(value)}"
            raise UserError(f"{rule}, as {kind}") from None


def _require(config: SearchConfig, rule: str, holds: bool, *names: str) -> None:
    if not holds:
        values = ", ".join(f"{name}={getattr(config, name)}" for name in names)
        raise UserError(f"{rule} must hold in a search, but got ({values})")


FITTED = SearchConfig(fit=FitConfig(), warmup_epochs=0, epochs=12, valid_batch=512)
"""Where the network is trained: the default of `nar-hw refine` and of `nar-hw search --weights`."""
