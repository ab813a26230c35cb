"""The search: shared weights and strategy learn in turn, and the best archs under the target are measured."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from nar_hw.distributed import Measure, rank
from nar_hw.errors import UserError
from nar_hw.locks import one_writer
from nar_hw.models.weights import weights_hash
from nar_hw.records import replace
from nar_hw.search.budget import Budget
from nar_hw.search.config import SearchConfig
from nar_hw.search.finals import conclude
from nar_hw.search.fitting import fit
from nar_hw.search.folder import SearchFolder
from nar_hw.search.progress import Bar
from nar_hw.search.randomness import seeded
from nar_hw.search.result import SearchResult
from nar_hw.search.run import SearchRun
from nar_hw.search.supernet import Supernet
from nar_hw.space.space import SearchSpace
from nar_hw.tasks import Task
from nar_hw.training.memory import kept_memory

if TYPE_CHECKING:
    from nar_hw.latency.table import LatencyTable
    from nar_hw.models.info import ModelInfo


@one_writer()
@kept_memory()
def search(
    space: SearchSpace,
    task: Task,
    table: "LatencyTable | Sequence[LatencyTable]" = (),
    *,
    target_ms: float | Sequence[float] = (),
    config: SearchConfig | None = None,
    model: "ModelInfo | None" = None,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    measure: Measure | None = None,
    on_epoch: Callable[[Mapping[str, float]], None] | None = None,
    allowed_mismatch: Sequence[str] = (),
    supernet: Supernet | None = None,
) -> SearchResult:
    """The most accurate arch of ``space`` whose latency is at most ``target_ms`` and whose other costs are within their limits.

    In each epoch the shared weights of all archs are trained, one arch per step; after the warm-up, the strategy then
    proposes archs, which are scored by the accuracy on one validation minibatch and the latency by ``table``. At the end
    the best archs are scored on the whole validation split and, with ``measure``, timed on the device. On a CPU the same
    arguments give the same result to the last bit.

    Where torch.distributed is initialised, all its processes search together and each is given the same arguments; the batch
    is the whole of theirs, but norms see their own process's share of it.

    Args:
        space: its network's weights are where the incumbent operators start; with ``config.fit`` they must be trained.
        task: batches, loss and score, on the device to search on.
        table: latencies of the device to deploy on, or of several; a search needs no such device. Without one, archs are limited
            by FLOPs and parameters alone, or with the reward "accuracy" by nothing, as in the NAR paper.
        target_ms: the latency not to be exceeded; with one table, several find an arch each; with several tables one for all, or
            one for each.
        config: all other settings, among them the limits of FLOPs and parameters.
        model: how to build the space again, for run.json.
        out: folder for run.json and, after every epoch, a checkpoint; None: nothing is written.
        resume: go on from the last whole epoch in ``out`` (from the start if there is none); a finished search is read
            and not repeated.
        progress: is given a bar.
        measure: returns the latencies in ms of archs on the (first table's) device.
        on_epoch: is called with each new item of the history.
        allowed_mismatch: what `LatencyTable.check` found and the user allowed; kept in the result.
        supernet: weights that are scored as they are, such as fitted ones (`nar_hw.search.fitting.fit`); no epoch trains them.

    Raises:
        TargetError: the target is outside what the space reaches by the table, or no arch meets all targets; names the range.
        TableError: a table is of another space, or is not additive.
        UserError: there is not one target for each table, or not one weight; there is neither a table nor a limit, and the reward
            is not the accuracy.
        RunError: ``out`` holds a search already and ``resume`` is not set, or one with other settings.
        TrainingError: the shared weights diverged.
        MeasurementError: ``measure`` did not return a positive time for each arch.
    """
    config = config or SearchConfig()
    tables = table if isinstance(table, Sequence) else [table]
    targets_ms = target_ms if isinstance(target_ms, Sequence) else [target_ms]
    for item in tables:
        item.check(space)
    if (config.skips != "fixed") != any(space.free_skips):
        raise UserError(
            f"skips={config.skips} must be of a space {'with' if config.skips != 'fixed' else 'without'} free skips, but the "
            "space is another: make it with skips=True for free and alternate, without for fixed"
        )
    several = len(tables) == 1 < len(targets_ms)
    asked = [[target] for target in targets_ms] if several else [targets_ms]
    budgets = [Budget.of(space, tables, targets, config) for targets in asked]
    weights = weights_hash(space.model) if config.fit is not None else None if supernet is None else weights_hash(supernet)
    folder = (
        None
        if out is None
        else SearchFolder(out, space, task, tables, targets_ms=targets_ms, config=config, model=model, weights=weights)
    )
    if folder is not None:
        if not resume:
            folder.refuse_to_overwrite()
        folder.tidy()
        if (result := folder.finished()) is not None:
            return result
    if progress is not None and rank() == 0:
        for budget in budgets:
            progress.console.print(budget.reach, highlight=False, soft_wrap=True)
    if config.fit is not None:
        supernet = Supernet(space, task.new_head())
        fit(supernet, task, config.fit, out=None if folder is None else folder.path, resume=True, progress=progress)
    with seeded(config.seed):
        run = SearchRun(space, task, budgets, config, supernet)
        if folder is not None and (state := folder.checkpoint()) is not None:
            folder.restore(run.load_state_dict, state)
        bar = Bar(progress if rank() == 0 else None, budgets[0].costs, epochs=run.epochs, done=run.epoch)
        while run.epoch < run.epochs:
            run.advance()
            bar(run.history[-1])
            if on_epoch is not None and rank() == 0:
                on_epoch(run.history[-1])
            if folder is not None:
                folder.save(run.state_dict())
        result = replace(conclude(run, measure), allowed_mismatch=tuple(allowed_mismatch))
    if folder is not None:
        folder.finish(result, run.supernet)
    return result
