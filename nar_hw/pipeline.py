"""The steps between files: what `nar-hw search` and `train` do, from Python."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import nn

from nar_hw import __version__
from nar_hw.benchmark import measure_children
from nar_hw.children import child_names, named_child
from nar_hw.data import FACES, SplitName, load_data
from nar_hw.data.faces import load_faces
from nar_hw.errors import RunError, RuntimeUnavailableError, UserError
from nar_hw.flops import SpaceCounts
from nar_hw.latency.device import fingerprint, same_device
from nar_hw.latency.table import LatencyTable
from nar_hw.latency.validate import config_of, validate, with_validation
from nar_hw.models import load_fitting
from nar_hw.operators import INCUMBENT
from nar_hw.proxy.subset import ProxyIndex
from nar_hw.ranks import rank
from nar_hw.runs import Child, ModelInfo, read_arch
from nar_hw.search.config import SearchConfig
from nar_hw.search.folder import TABLE
from nar_hw.search.loop import search
from nar_hw.search.result import SearchResult
from nar_hw.space import Arch, Manner, SearchSpace
from nar_hw.tasks import ClassificationTask, FacesTask, Task
from nar_hw.tensorboard import TensorBoard
from nar_hw.training import Recipe, TrainResult, score_ensemble, set_seed, train, two_phase

HELD_OUT: tuple[SplitName, ...] = ("valid", "test")
"""Splits that a trained child is scored on."""


def versions() -> dict[str, str]:
    """nar_hw, Python and torch."""
    return {"nar_hw": __version__, "python": platform.python_version(), "torch": torch.__version__}


def load_task(
    data: str, *, root: Path | None = None, device: str = "cpu", workers: int | None = None
) -> ClassificationTask | FacesTask:
    """A data set as a task. Raises UnknownNameError or DataError."""
    if data.startswith(FACES):
        return FacesTask(load_faces(data), device)
    return ClassificationTask(load_data(data, root=root), device, workers=workers)


def table_info(table: LatencyTable) -> ModelInfo:
    """The network and the choices that a table was measured on."""
    return ModelInfo(
        name=table.model,
        input_shape=table.input_shape,
        num_classes=table.num_classes,
        manner=table.manner,
        **asdict(table.choices),
    )


def revalidate(table: LatencyTable, *, children: int, seed: int, progress: Progress | None = None) -> LatencyTable:
    """``table`` with errors measured now. Raises TableMismatchError on another device."""
    space = table_info(table).space()
    table.check(space, fingerprint(config_of(table)))
    return with_validation(table, validate(table, space, children=children, seed=seed, progress=progress))


def _here(table: LatencyTable) -> dict[str, Any] | None:
    """This device's fingerprint under the table's conditions; None where its runtime is not installed."""
    try:
        return fingerprint(config_of(table))
    except RuntimeUnavailableError:
        return None


def device_meter(
    space: SearchSpace, table: LatencyTable, progress: Progress | None = None
) -> Callable[[Sequence[Arch]], list[float]] | None:
    """What measures archs under the table's conditions, in the table's own milliseconds; None where its device is not this one.

    The network itself is measured in the same rounds: dividing by its time and multiplying by the table's removes what the
    machine has become slower or faster since.
    """
    config, here = config_of(table), _here(table)
    if here is None or same_device(table.fingerprint, here):
        return None

    def measure(archs: Sequence[Arch]) -> list[float]:
        measured = measure_children(space, list(archs), config, progress=progress)
        return [ms * table.incumbent_ms / measured.incumbent_ms for ms in measured.ms]

    return measure


def search_run(
    model: str,
    data: str,
    table: LatencyTable | Sequence[LatencyTable],
    *,
    target_ms: float | Sequence[float],
    out: Path,
    config: SearchConfig,
    data_root: Path | None = None,
    proxy: Path | None = None,
    device: str = "cpu",
    resume: bool = False,
    allow_mismatch: bool = False,
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> SearchResult:
    """Search the space of ``table`` (of several, the first; finalists are measured on its device) and write ``out``/run.json.

    With ``tensorboard``, the scalars of each epoch are written to ``out``/tensorboard.

    With ``proxy``, an index file of `nar-hw proxy select`, the training images are those that it lists.

    Raises TargetError, TableMismatchError (another model, or another device unless allowed), UserError (no TensorBoard),
    DataError (the proxy is of another data set) and what `nar_hw.search` raises.
    """
    on_epoch = TensorBoard(out / "tensorboard") if tensorboard else None
    task = load_task(data, root=data_root, device=device)
    if proxy is not None:
        if not isinstance(task, ClassificationTask):
            raise UserError(f"--proxy chooses images of classes, but {data!r} has faces: use nar-hw data faces-proxy")
        task = ClassificationTask(ProxyIndex.load(proxy).apply(task.data), device)
    first, *others = table if isinstance(table, Sequence) else [table]
    info = _fitted(table_info(first), task)
    set_seed(config.seed)
    space = info.space()
    allowed = first.check(space, _here(first), model=model, allow_mismatch=allow_mismatch)
    for other in others:  # whose devices are elsewhere
        allowed += other.check(space, model=model, allow_mismatch=allow_mismatch)
    return search(
        space,
        task,
        table,
        target_ms=target_ms,
        config=config,
        model=info,
        out=out,
        resume=resume,
        progress=progress,
        measure=device_meter(space, first, progress),
        on_epoch=on_epoch,
        allowed_mismatch=allowed,
    )


def _fitted(info: ModelInfo, task: Task) -> ModelInfo:
    """``info`` with the data's number of classes. Raises UserError when the image shapes differ."""
    if info.input_shape != task.input_shape:
        asked, own = ("x".join(map(str, shape)) for shape in (info.input_shape, task.input_shape))
        raise UserError(f"the model's input must be the data's image shape, but got --input {asked} for images of {own}")
    return replace(info, num_classes=task.num_classes)


def train_child(
    info: ModelInfo,
    arch: Sequence[str | int] | None,
    data: str,
    *,
    out: Path,
    recipe: Recipe,
    seed: int = 0,
    baseline: Path | None = None,
    inherit: bool = True,
    ensemble: int = 0,
    data_root: Path | None = None,
    device: str = "cpu",
    workers: int | None = None,
    table: LatencyTable | None = None,
    target_ms: float | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> Child:
    """Train one child and write it to ``out``: child.json, weights.safetensors, history.json and a checkpoint.

    Several processes of torch.distributed train it together (see `nar_hw.training.train`); the first of them writes.

    Args:
        arch: operator names or codes; None for the network itself.
        baseline: folder of a trained child, or a file of weights: the teacher of a recipe with ``distill``.
        inherit: the baseline's weights are inherited where they fit; without it or a baseline the child starts from scratch.
        ensemble: how many snapshots of the training are kept and scored together on the test images.
        workers: processes that read images of a ``stream:`` data set.
        table, target_ms: kept in child.json with the table's prediction.
        tensorboard: scalars of each epoch are written to ``out``/tensorboard.

    Raises:
        SpaceError: the arch does not fit the space.
        RunError: ``out`` cannot be resumed, or the baseline is of another network.
        TrainingError: the training diverged.
    """
    on_epoch = TensorBoard(out / "tensorboard") if tensorboard else None
    task = load_task(data, root=data_root, device=device, workers=workers)
    if (ensemble or recipe.distill) and not isinstance(task, ClassificationTask):
        raise UserError(f"ensembles and distillation are of classifiers, but {data!r} is learned as embeddings: leave them out")
    info = _fitted(info, task)
    set_seed(seed)
    space = info.space()
    codes = space.incumbent if arch is None else space.parse(arch)
    child = space.build(codes)
    trained, missing = (None, ()) if baseline is None else _trained(baseline, info)
    if missing and recipe.distill:
        raise RunError(
            f"{baseline} must hold all weights of a teacher, but {missing[0]!r} does not fit: train the baseline first"
        )
    run: Callable[..., TrainResult] = train
    if trained is not None and inherit:
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
    counts = SpaceCounts(space).count(codes)
    found = Child(
        model=info,
        arch=space.names(codes),
        data=data,
        recipe=recipe.to_json(),
        seed=seed,
        init="scratch" if baseline is None or not inherit else "inherited",
        accuracy={split: task.evaluate(child, split) for split in HELD_OUT},
        params=counts.params,
        flops=counts.flops,
        pool_ops=counts.pool_ops,
        target_ms=target_ms,
        predicted_ms=None if table is None else table.predict(codes),
        table_hash=None if table is None else table.hash,
        fingerprint=None if table is None else table.fingerprint,
        mean=task.data.mean,
        std=task.data.std,
        classes=task.data.classes,
        versions=versions(),
        record=task.record,
        top5={split: task.evaluate(child, split, k=5) for split in HELD_OUT}
        if isinstance(task, ClassificationTask) and task.num_classes > 5
        else {},
    )
    if rank() == 0:
        if ensemble and isinstance(task, ClassificationTask):
            scored = score_ensemble(child, task, "test", out=out, epochs=result.snapshots)
            found = replace(found, ensemble=asdict(scored))
        found.save(out, child)
    return found


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
    data: str,
    manner: Manner = "conv",
    operators: tuple[str, ...] | None = None,
    slots: str | None = None,
    limit_params: bool = True,
    data_root: Path | None = None,
) -> Wanted:
    """What --arch names: a search folder, a child that ships with nar_hw, "incumbent", or codes and names separated by commas.

    Raises UserError when the network is not told, RunError for a folder without a finished search.
    """
    if Path(text).is_dir():
        info, arch, found = read_arch(Path(text))
        if model not in (None, info.name):
            raise UserError(f"--model must be the searched network {info.name} or left out, but got {model}")
        return Wanted(info=info, arch=arch, table=LatencyTable.load(Path(text) / TABLE), target_ms=found.get("target_ms"))
    if text in child_names():
        named = named_child(text)
        if model not in (None, named.model.name):
            raise UserError(f"--model must be {named.model.name}, of which {text} is a child, or left out, but got {model}")
        return Wanted(info=replace(named.model, input_shape=load_task(data, root=data_root).input_shape), arch=named.arch)
    if model is None:
        raise UserError(
            f"--model must name the network unless --arch is a search folder, but {text!r} is no folder and none of the children "
            f"{', '.join(child_names())}"
        )
    task = load_task(data, root=data_root)
    info = ModelInfo(
        name=model,
        input_shape=task.input_shape,
        num_classes=task.num_classes,
        manner=manner,
        operators=operators,
        slots=slots,
        limit_params=limit_params,
    )
    return Wanted(info=info, arch=None if text == INCUMBENT else tuple(item.strip() for item in text.split(",")))
