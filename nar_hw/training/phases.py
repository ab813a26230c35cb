"""Fine-tuning in two phases: what is new first, then everything."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.progress import Progress
from torch import nn

from nar_hw.errors import ModelError, RunError
from nar_hw.tasks import Task
from nar_hw.training.checkpoints import load_state
from nar_hw.training.loop import STATE, steps_of_epoch, train
from nar_hw.training.recipes import Recipe, fine_tuning
from nar_hw.training.result import TrainResult
from nar_hw.training.snapshots import snapshot_epochs


def two_phase(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    *,
    new: Sequence[str],
    head: str | None = None,
    out: Path | None = None,
    seed: int = 0,
    resume: bool = False,
    teacher: nn.Module | None = None,
    snapshots: int = 0,
    progress: Progress | None = None,
    on_epoch: Callable[[Mapping[str, float]], None] | None = None,
) -> TrainResult:
    """Fine-tune a network that inherited weights: first what is new and the head with the rest frozen, then everything.

    The recipes of the phases are those of :func:`fine_tuning`. The first phase keeps its checkpoints in ``out/first``. The recipe
    of the first phase cannot be changed on resume.

    Args:
        new: parameters or modules that start from scratch, such as :meth:`nar_hw.space.space.SearchSpace.inherit` returns.
        head: path of the classifier; by default the last linear layer, or the last convolution where there is none.
        out, seed, resume, teacher, progress, on_epoch: as in :func:`train`.
        snapshots: as in :func:`train`, of the second phase.

    Raises:
        ModelError: a name of ``new`` or ``head`` is not in the network.
        TrainingError, RunError: as :func:`train`.
    """
    first, then = fine_tuning(recipe)
    steps_of_epoch(then, task)  # here, not after the first phase
    snapshot_epochs(then, snapshots)
    learned = _below(model, (*new, _head(model) if head is None else head))
    if out is not None and (out / STATE).exists() and not resume:
        raise RunError(f"{out} holds a training already: resume it, or choose another folder")
    if out is not None and (out / "first" / STATE).exists():
        begun = load_state(out / "first" / STATE)["recipe"]["epochs"]
        if begun != first.epochs:
            raise RunError(
                f"the first of two phases cannot change its number of epochs, but {out} was started for {begun} and "
                f"{first.epochs} were asked for: ask for the same, or train anew"
            )
    frozen = [parameter for name, parameter in model.named_parameters() if parameter.requires_grad and name not in learned]
    for parameter in frozen:
        parameter.requires_grad_(False)
    run = partial(train, model, task, seed=seed, resume=resume, teacher=teacher, progress=progress, on_epoch=on_epoch)
    try:
        warm = run(first, out=None if out is None else out / "first")
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    return run(then, out=out, snapshots=snapshots, earlier=warm.history)


def _below(model: nn.Module, names: Sequence[str]) -> set[str]:
    """The parameters that ``names`` (of parameters, buffers or modules) mean or contain."""
    known = {*model.state_dict(), *dict(model.named_modules())}
    if missing := [name for name in names if name not in known]:
        raise ModelError(
            f"what is trained first must be in the network, but {missing[0]!r} is not: name parameters or modules of it"
        )
    return {
        parameter
        for parameter, _ in model.named_parameters()
        if any(parameter == name or parameter.startswith(f"{name}.") for name in names)
    }


def _head(model: nn.Module) -> str:
    for kind in (nn.Linear, nn.Conv2d):
        paths = [path for path, module in model.named_modules() if isinstance(module, kind)]
        if paths:
            return str(paths[-1])
    raise ModelError("a network must have a linear layer or a convolution as its head, but has neither: name the head")
