"""The steps between files: what `nar-hw search` and `train` do, from Python."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.progress import Progress
from torch import nn

from nar_hw._version import versions
from nar_hw.bundles.children import child_names, named_child
from nar_hw.data import SplitName
from nar_hw.distributed import rank
from nar_hw.errors import ModelError, RunError, UserError
from nar_hw.latency.table import LatencyTable
from nar_hw.locks import one_writer
from nar_hw.models.info import ModelInfo
from nar_hw.models.weights import Loaded, load_fitting, load_weights
from nar_hw.records import replace
from nar_hw.search.folder import TABLE, WEIGHTS as SUPERNET
from nar_hw.search.record import load_run
from nar_hw.search.supernet import Supernet
from nar_hw.space.flops import Counts, SpaceCounts
from nar_hw.space.outputs import check_outputs
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import INCUMBENT, Arch, Manner
from nar_hw.steps.task import fitted_to, network_for
from nar_hw.tasks import ClassificationTask, Task
from nar_hw.training.child import Child
from nar_hw.training.loop import train
from nar_hw.training.memory import kept_memory
from nar_hw.training.phases import two_phase
from nar_hw.training.recipes import Recipe
from nar_hw.training.result import TrainResult
from nar_hw.training.seed import set_seed
from nar_hw.training.snapshots import score_ensemble, with_snapshots
from nar_hw.training.tensorboard import TensorBoard

HELD_OUT: tuple[SplitName, ...] = ("valid", "test")
"""Splits that a trained child is scored on."""


@one_writer()
def train_child(
    info: ModelInfo,
    arch: Sequence[str | int] | None,
    task: Task,
    *,
    out: Path,
    recipe: Recipe,
    seed: int = 0,
    baseline: Path | None = None,
    inherit: bool = True,
    fitted: Path | None = None,
    ensemble: int = 0,
    table: LatencyTable | None = None,
    target_ms: float | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> Child:
    """Train one child and write it to ``out``: child.json, weights.safetensors, history.json and a checkpoint.

    Several processes of torch.distributed train it together (see `nar_hw.training.loop.train`); the first of them writes.

    Args:
        arch: operator names or codes; None for the network itself.
        task: see `nar_hw.steps.task.load_task`.
        baseline: folder of a trained child, or a file of weights: the teacher of a recipe with ``distill``.
        inherit: the baseline's weights are inherited where they fit; without it or a baseline the child starts from scratch.
        fitted: folder of the search that fitted the candidates inside the baseline: the child begins with their weights.
        ensemble: how many snapshots of the training are kept and scored together on the test images.
        table, target_ms: kept in child.json with the table's prediction.
        tensorboard: scalars of each epoch are written to ``out``/tensorboard.

    Raises:
        SpaceError: the arch does not fit the space.
        ModelError: the network's outputs are not what can be trained (see `nar_hw.space.outputs.check_outputs`), or it fails.
        RunError: ``out`` cannot be resumed, or the baseline is of another network.
        TrainingError: the training diverged.
    """
    on_epoch = TensorBoard(out / "tensorboard") if tensorboard else None
    if ensemble and not isinstance(task, ClassificationTask):
        raise UserError(f"an ensemble is of classifiers, but {task.name!r} is none: leave it out")
    info = fitted_to(info, task)
    set_seed(seed)
    space = info.space()
    codes = space.incumbent if arch is None else space.parse(arch)
    child = space.build(codes)
    check_outputs(child, info.input_shape, info.num_classes, trained=True, structured=task.structured)
    trained, missing = (None, ()) if baseline is None else _trained(baseline, info)
    if missing and recipe.distill:
        raise RunError(
            f"{baseline} must hold all weights of a teacher, but {missing[0]!r} does not fit: train the baseline first"
        )
    run: Callable[..., TrainResult] = train
    init = "scratch"
    if trained is not None and fitted is not None:
        # All at once: nothing starts from scratch, and two phases were worse (benchmarks/bench_fitting.py recipes).
        init, child = "fitted", _fitted_child(fitted, info.space(trained), codes)
    elif trained is not None and inherit:
        init = "inherited"
        new = sorted({*space.inherit(child, trained), *missing} & child.state_dict().keys())
        run = partial(two_phase, new=new)
        if progress is not None and rank() == 0:
            parts = sorted({key.rpartition(".")[0] for key in new})
            what = f"all but {', '.join(parts)}" if parts else "everything"
            progress.console.print(f"inherited from {baseline}: {what}", highlight=False)
    run = partial(
        run,
        out=out,
        seed=seed,
        resume=resume,
        teacher=trained if recipe.distill else None,
        snapshots=ensemble,
        progress=progress,
        on_epoch=on_epoch,
    )
    result = run(child, task, recipe)
    found = replace(
        describe_child(info, space, codes, child, task, table=table, target_ms=target_ms), recipe=recipe, seed=seed, init=init
    )
    if rank() == 0:
        if ensemble and isinstance(task, ClassificationTask):
            members = ((network, task) for network in with_snapshots(child, out, result.snapshots))
            found = replace(found, ensemble={"epochs": result.snapshots, **asdict(score_ensemble(members, "test"))})
        found.save(out, child)
    return found


def describe_child(
    info: ModelInfo,
    space: SearchSpace,
    codes: Arch,
    child: nn.Module,
    task: Task,
    *,
    table: LatencyTable | None = None,
    target_ms: float | None = None,
) -> Child:
    """The record of a child whose weights are given: scored on the held-out splits, counted, predicted by ``table``."""
    counts, uncounted = _counts(space, codes)
    return Child(
        model=info,
        arch=space.names(codes),
        data=task.name,
        recipe=None,
        seed=0,
        init="given",
        accuracy={split: task.evaluate(child, split) for split in HELD_OUT},
        metric=task.metric,
        params=sum(parameter.numel() for parameter in child.parameters()),
        flops=None if counts is None else counts.flops,
        pool_ops=None if counts is None else counts.pool_ops,
        uncounted=uncounted,
        target_ms=target_ms,
        predicted_ms=None if table is None else table.predict(codes),
        table_hash=None if table is None else table.hash,
        fingerprint=None if table is None else table.fingerprint,
        preprocessing=task.preprocessing,
        versions=versions("torch"),
        record=task.record,
        top5={split: task.evaluate(child, split, k=5) for split in HELD_OUT}
        if isinstance(task, ClassificationTask) and task.num_classes > 5
        else {},
    )


@one_writer()
@kept_memory()
def load_given(info: ModelInfo, weights: Path, task: Task) -> tuple[nn.Module, Loaded]:
    """The network with given weights, on the CPU. Raises as `score_weights` does."""
    info = fitted_to(info, task)
    network = info.build()
    loaded = load_weights(network, weights, name=f"{info.name} with {info.num_classes} classes (those of {task.name})")
    check_outputs(network, info.input_shape, info.num_classes, trained=False, structured=task.structured)
    return network, loaded


def score_weights(info: ModelInfo, weights: Path, task: Task, *, out: Path | None = None) -> tuple[Child, Loaded]:
    """Score given weights as a trained network; with ``out`` they become a child folder, as if they had been trained here.

    Raises UserError when the images differ, ModelError when the weights are of another network, or of other classes.
    """
    network, loaded = load_given(info, weights, task)
    info = fitted_to(info, task)
    space = info.space(network)
    network.to(task.device)
    network.eval()
    child = describe_child(info, space, space.incumbent, network, task)
    if out is not None:
        child.save(out, network)
    return child, loaded


def _fitted_child(folder: Path, space: SearchSpace, codes: Arch) -> nn.Module:
    """A child with the weights that a search fitted."""
    supernet = Supernet(space)
    load_weights(supernet, folder / SUPERNET, name="the searched network")
    child = supernet.child(codes)
    child.train()
    return child


def _counts(space: SearchSpace, arch: Arch) -> tuple[Counts | None, str | None]:
    """What the child costs, or why that is not known: no reason not to train it."""
    try:
        return SpaceCounts(space).count(arch), None
    except ModelError as problem:
        return None, str(problem)


def _trained(baseline: Path, info: ModelInfo) -> tuple[nn.Module, tuple[str, ...]]:
    """The trained network in a folder, or with the weights of a file that fit, and the names of what has none.

    Raises RunError when the folder is of another network or for other images, ModelError for a file that does not fit.
    """
    if baseline.is_file():
        network = info.build()
        return network, load_fitting(network, baseline)
    trained = Child.load(baseline)
    if (trained.model.name, trained.model.input_shape, trained.model.num_classes) != (
        info.name,
        info.input_shape,
        info.num_classes,
    ):
        raise RunError(f"{baseline} must hold the trained {info.name} for the same images, but holds {trained.model}")
    return trained.network(baseline), ()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """An arch to be trained and, where a search found it, the table and the target."""

    info: ModelInfo
    arch: tuple[str, ...] | None
    """Operator names or codes; None for the network itself."""
    table: LatencyTable | None = None
    target_ms: float | None = None


def find_arch(
    text: str,
    *,
    model: str | None,
    task: Task,
    target_ms: float | None = None,
    manner: Manner = "conv",
    operators: tuple[str, ...] | None = None,
    slots: str | None = None,
    limit_params: bool = True,
) -> Wanted:
    """What --arch names: a search folder, a child that ships with nar_hw, "incumbent", or codes and names with commas.

    Of a search for several targets, ``target_ms`` says which, by default the first.

    Raises UserError when the network is not named, RunError for a folder without a finished search.
    """
    if Path(text).is_dir():
        found = load_run(Path(text))
        info = found.network
        if model not in (None, info.name):
            raise UserError(f"--model must be the searched network {info.name} or left out, but got {model}")
        outcome = found.outcome(target_ms)
        table = None if found.table_hash is None else LatencyTable.load(Path(text) / TABLE)
        return Wanted(info=info, arch=outcome.pick.arch, table=table, target_ms=outcome.target_ms)
    if text in child_names():
        named = named_child(text, model=model)
        return Wanted(info=replace(named.model, input_shape=task.input_shape), arch=named.arch)
    if model is None:
        raise UserError(
            f"--model must name the network unless --arch is a search folder, but {text!r} is no folder and none of the children "
            f"{', '.join(child_names())}"
        )
    choices = {"manner": manner, "operators": operators, "slots": slots, "limit_params": limit_params}
    info = network_for(task, model, **choices)
    return Wanted(info=info, arch=None if text == INCUMBENT else tuple(item.strip() for item in text.split(",")))
