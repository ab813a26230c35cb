"""What `nar-hw search` does, from Python."""

from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress
from torch import nn

from nar_hw.errors import RunError, SpaceError, UserError
from nar_hw.latency.children import says
from nar_hw.latency.contention import BUSY
from nar_hw.latency.device import here
from nar_hw.latency.measure import device_meter
from nar_hw.latency.table import LatencyTable
from nar_hw.models.info import ModelInfo
from nar_hw.models.weights import load_weights
from nar_hw.proxy.subset import ProxyIndex
from nar_hw.records import replace
from nar_hw.search.config import SearchConfig
from nar_hw.search.folder import TABLE, WEIGHTS
from nar_hw.search.loop import search
from nar_hw.search.record import load_run
from nar_hw.search.result import SearchResult
from nar_hw.search.supernet import Supernet
from nar_hw.space.outputs import check_outputs
from nar_hw.space.spec import Manner
from nar_hw.steps.task import fitted_to, load_task, network_for
from nar_hw.tasks import ClassificationTask
from nar_hw.training.child import WEIGHTS as CHILD_WEIGHTS, Child
from nar_hw.training.seed import set_seed
from nar_hw.training.tensorboard import TensorBoard


def search_run(
    model: str,
    data: str,
    table: LatencyTable | Sequence[LatencyTable] = (),
    *,
    target_ms: float | Sequence[float] = (),
    out: Path,
    config: SearchConfig,
    manner: Manner = "conv",
    operators: tuple[str, ...] | None = None,
    slots: str | None = None,
    limit_params: bool = True,
    data_root: Path | None = None,
    proxy: Path | None = None,
    device: str = "cpu",
    resume: bool = False,
    trained: Path | None = None,
    allow_mismatch: bool = False,
    tensorboard: bool = False,
    percentile: int = 50,
    progress: Progress | None = None,
) -> SearchResult:
    """Search the slots and operators of ``table`` in ``model`` and write ``out``/run.json.

    With several tables, slots and operators are the first's, and finalists are measured on its device. Without one,
    ``manner``, ``operators``, ``slots`` and ``limit_params`` say what is searched, as in `ModelInfo`.

    With ``tensorboard``, the scalars of each epoch are written to ``out``/tensorboard.

    With ``trained``, a file of weights or the folder of a trained network, shared weights begin with those, and ``config.fit``
    may fit the candidates inside it (`nar_hw.search.fitting`).

    With ``proxy``, an index file of `nar-hw proxy select`, the training images are those that it lists.

    ``target_ms`` and all latencies are of this ``percentile`` of single inferences: 50 or 90.

    Raises TargetError, TableError (a table that does not know the percentile), TableMismatchError (a table of another network, or
    of another device unless allowed), UserError (no TensorBoard), DataError (the proxy is of another data set) and what
    `nar_hw.search` raises.
    """
    on_epoch = TensorBoard(out / "tensorboard") if tensorboard else None
    task = load_task(data, root=data_root, device=device)
    if proxy is not None:
        if not isinstance(task, ClassificationTask):
            raise UserError(f"--proxy chooses images of classes, but {data!r} has faces: use nar-hw data faces-proxy")
        task = ClassificationTask(ProxyIndex.load(proxy).apply(task.data), device)
    tables = [item.at_percentile(percentile) for item in (table if isinstance(table, Sequence) else [table])]
    if tables:
        info = fitted_to(replace(tables[0].network, name=model), task)
    else:
        choices = {"manner": manner, "operators": operators, "slots": slots, "limit_params": limit_params}
        choices |= {} if config.skips == "fixed" else {"skips": True}
        info = network_for(task, model, **choices)
    set_seed(config.seed)
    if config.fit is not None and trained is None:
        raise UserError("candidates are fitted inside a trained network, but there is none: give --weights or --baseline")
    space = info.space(None if trained is None else trained_network(info, trained))
    if space.size == 1:
        why = next((f"{slot.name}: {slot.reason}" for slot in space.slots if slot.reason is not None), "")
        raise SpaceError(f"a search needs a slot with something to choose, but all are fixed ({why}): nar-hw space lists why")
    check_outputs(space.model, info.input_shape, info.num_classes, trained=True, structured=task.structured)
    allowed: list[str] = []
    for index, item in enumerate(tables):  # the devices of all but the first are elsewhere
        for note in item.notes:
            if BUSY in note:
                says(progress)(f"note: the latency table of {item.fingerprint['device']}: {note}")
        allowed += item.check(space, None if index else here(item.config), allow_mismatch=allow_mismatch)
    return search(
        space,
        task,
        tables,
        target_ms=target_ms,
        config=config,
        model=info,
        out=out,
        resume=resume,
        progress=progress,
        measure=device_meter(space, tables[0], progress) if tables else None,
        on_epoch=on_epoch,
        allowed_mismatch=allowed,
    )


def search_again(
    source: Path,
    *,
    target_ms: float | Sequence[float],
    out: Path,
    data_root: Path | None = None,
    device: str = "cpu",
    resume: bool = False,
    progress: Progress | None = None,
) -> SearchResult:
    """Choose for other targets with the shared weights of a finished search, which are scored as they are and not trained again.

    Raises RunError when ``source`` is no finished search, or its tables or weights are missing, and what `search_run` raises.
    """
    found = load_run(source)
    if found.table_hash is None:
        raise RunError(f"{source} was searched without a latency table, so that no target can be met: search with --table")
    tables = [LatencyTable.load(source / name) for name in found.tables or (TABLE,)]
    task = load_task(str(found.data), root=data_root, device=device)
    set_seed(found.seed)
    space = fitted_to(found.network, task).space()
    supernet = Supernet(space, task.new_head())
    load_weights(supernet, source / WEIGHTS, name="the searched network")
    return search(
        space,
        task,
        tables,
        target_ms=target_ms,
        config=replace(found.identity.config, fit=None, warmup_epochs=0),
        model=found.network,
        out=out,
        resume=resume,
        progress=progress,
        measure=device_meter(space, tables[0], progress),
        allowed_mismatch=found.allowed_mismatch,
        supernet=supernet.to(task.device),
    )


def trained_network(info: ModelInfo, source: Path) -> nn.Module:
    """The network with the weights of a file, or of a child folder that holds the network itself.

    Raises ModelError when the weights are of another network or of other classes, RunError for a folder of something else.
    """
    network = info.build()
    if source.is_dir():
        child = Child.load(source)
        space = child.space()
        if space.parse(child.arch) != space.incumbent:
            raise RunError(f"{source} must hold the trained network itself, but holds a child with other operators")
        source = source / CHILD_WEIGHTS
    load_weights(network, source, name=f"{info.name} with {info.num_classes} classes")
    return network
