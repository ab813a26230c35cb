"""The mini-batch study of Lasky et al.: how far every mini-batch's gradient is from the full one, epoch by epoch.

Two networks run over the same batches in a fixed order. ``normal`` is trained; ``compare`` keeps the weights with which the epoch
began, so that its gradients g_k, k = 1..K, are all of one point, where the full gradient g is their mean. The paper wrote all
g_k to disk to get |g_k - g| at the end of the epoch. Here each g_k is reduced to a sketch (:mod:`nar_hw.proxy.sketch`) and
forgotten; since a sketch is linear, |sketch(g_k) - mean of sketches| estimates the distance with a known error. Without the
error, g_k must be computed twice: once for the mean and once for the distances (``exact``).

Memory beside the two networks: a gradient, half of one for the sketch's map, and K sketches; exact: two gradients.
Forward and backward passes over the data per epoch: two; exact: three. Of several metrics together, one network is trained (on
batches drawn once at random) and the batches of each metric are compared at its weights: 1 + M passes instead of 2 M.
"""

import hashlib
import io
from collections.abc import Generator, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import field
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn

from nar_hw.data import Augmentation, ImageData
from nar_hw.data.loader import Batch
from nar_hw.errors import RunError, TrainingError
from nar_hw.files import write_bytes
from nar_hw.locks import one_writer
from nar_hw.proxy.findings import LEAST_BATCHES, Finding, Quarter, findings, quarters
from nar_hw.proxy.page import write_pictures
from nar_hw.proxy.sketch import WIDTH, Sketch
from nar_hw.proxy.subset import fingerprint, subset
from nar_hw.records import Record, check_same, plain, write_record
from nar_hw.tasks import ClassificationTask
from nar_hw.training.checkpoints import load_state, save_state
from nar_hw.training.recipes import Recipe

STATE, RESULT, DISTANCES = "state.pt", "study.json", "distances.npy"
SCHEMA = 2


def paper_recipe(epochs: int = 150, batch: int = 256, lr: float = 0.1) -> Recipe:
    """SGD whose learning rate is divided by 10 after each third of the epochs. Raises TrainingError for fewer than 3 epochs."""
    if epochs < 3:
        raise TrainingError(f"a study has three phases, so epochs >= 3 must hold, but got {epochs}")
    return Recipe(epochs=epochs, batch=batch, lr=lr, lr_min=0.0, schedule="step", milestones=(epochs // 3, 2 * epochs // 3))


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """What a study found."""

    metric: str
    distances: NDArray[np.float64]
    """(epochs, batches): |g_k - g|, the batches in ascending order of the metric."""
    standard_error: float
    """Relative, of each distance; 0 where they are exact."""
    phases: tuple[range, ...]
    """Epochs, from 0, with the same learning rate."""

    @property
    def quarters(self) -> list[Quarter]:
        """The quarters of the metric in every phase."""
        return quarters(self.distances, self.phases)

    @property
    def findings(self) -> list[Finding]:
        """The paper's findings and what this run says about them."""
        return findings(self.metric, self.distances, self.phases)


class StudyIdentity(Record, frozen=True, kw_only=True):
    """What must be equal for a study to be resumed."""

    metric: str
    data: str
    data_sha256: str = field(name="data sha256")
    """`nar_hw.proxy.subset.fingerprint` of the training images."""
    order_sha256: str = field(name="order sha256")
    """SHA-256 of the order of the images by the metric."""
    network: str
    """SHA-256 of its text."""
    recipe: Recipe
    exact: bool
    width: int
    seed: int


class StudyFile(Record, frozen=True, kw_only=True):
    """What study.json says; see `Study`."""

    identity: StudyIdentity
    epochs: int
    batches: int
    standard_error: float
    phases: tuple[tuple[int, int], ...]
    quarters: Mapping[str, tuple[Quarter, ...]]
    """Metric -> its quarters in every phase."""
    findings: Mapping[str, tuple[Finding, ...]]


@one_writer()
def study(
    network: nn.Module,
    data: ImageData,
    values: Mapping[str, NDArray[np.float64]],
    *,
    recipe: Recipe,
    device: str | torch.device = "cpu",
    exact: bool = False,
    width: int = WIDTH,
    seed: int = 0,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> list[Study]:
    """Train ``network`` on the training images in ascending order of a metric and compare gradients on the way.

    Of several metrics, the network is trained on batches in a random order, the same in every epoch, and at the beginning of each
    the gradients of every metric's batches are compared; the study of a metric is in a folder of its name then.

    No image is augmented, and what is left of the images after the last whole batch is not used. After every epoch ``out`` holds
    a state to resume from (on a CPU to the same bits); at the end study.json, distances.npy, a heat map of each phase and
    study.html.

    Args:
        network: changed in place; it ends trained.
        values: metrics of each training image by name, (N,).
        recipe: batch, epochs, learning rates, momentum and weight decay (the rest is not used).
        exact: distances without the sketch's error, for three passes over the data per epoch instead of two.
        width: numbers in a sketch, at most 2**14.
        seed: decides dropout and the sketch.
        progress: is given a bar.

    Raises:
        TrainingError: there are too few images for this batch, or the training diverged.
        RunError: ``out`` has a study already and ``resume`` is not set, or one with other settings.
    """
    count = len(data.train)
    batches = count // recipe.batch
    if batches < LEAST_BATCHES:
        raise TrainingError(
            f"a study compares {LEAST_BATCHES} batches or more, so {LEAST_BATCHES} * batch <= training images must hold, but got "
            f"(batch={recipe.batch}, images={count}): lower the batch"
        )
    orders = {name: np.argsort(items, kind="stable") for name, items in values.items()}
    digests = [hashlib.sha256(order.astype("<i8").tobytes()).hexdigest() for order in orders.values()]
    identity = StudyIdentity(
        metric=",".join(values),
        data=data.name,
        data_sha256=fingerprint(data),
        order_sha256=",".join(digests),
        network=hashlib.sha256(str(network).encode()).hexdigest(),
        recipe=recipe,
        exact=exact,
        width=width,
        seed=seed,
    )
    if out is not None and not resume and (found := [name for name in (RESULT, STATE) if (out / name).exists()]):
        raise RunError(f"{out} holds a study already ({found[0]}): resume it, or choose another folder")

    def task_of(order: NDArray[np.int64]) -> ClassificationTask:
        return ClassificationTask(subset(data, order[: batches * recipe.batch]), device, augmentation=Augmentation())

    compared = [task_of(order) for order in orders.values()]
    trained = compared[0] if len(compared) == 1 else task_of(np.random.RandomState(seed).permutation(count))
    with torch.random.fork_rng(devices=[trained.device] if trained.device.type == "cuda" else []):
        run = _Run(network, trained, compared, recipe, batches, exact=exact, width=width, seed=seed)
        if out is not None and (out / STATE).exists():
            run.restore(load_state(out / STATE), identity, out)
        bar = progress or Progress(disable=True)
        row = bar.add_task("study", total=recipe.passes * run.passes, completed=len(run.rows) * run.passes)
        while len(run.rows) < recipe.passes:
            for _ in run.epoch():
                bar.advance(row)
            bar.update(row, description=f"study: epoch {len(run.rows)} of {recipe.passes}, loss {run.loss:.3f}")
            if out is not None:
                save_state(out / STATE, {"identity": plain(identity), **run.state_dict()})
    results = [
        Study(
            metric=metric,
            distances=torch.stack([row[place] for row in run.rows]).numpy(),
            standard_error=0.0 if exact else run.sketch.standard_error,
            phases=_phases(recipe),
        )
        for place, metric in enumerate(values)
    ]
    if out is not None:
        for result in results:
            _write(out if len(results) == 1 else out / result.metric, result, identity)
        if len(results) > 1:
            _write_record(out, results, identity)
    return results


class _Run:
    """Two networks, and the distances so far."""

    def __init__(
        self,
        network: nn.Module,
        task: ClassificationTask,
        compared: Sequence[ClassificationTask],
        recipe: Recipe,
        batches: int,
        *,
        exact: bool,
        width: int,
        seed: int,
    ) -> None:
        self.normal = network.to(task.device).train()
        self.compare = deepcopy(self.normal)
        self.task, self.recipe, self.batches, self.exact, self.seed = task, recipe, batches, exact, seed
        self.compared = compared
        self.passes = batches * (1 + len(compared))
        """Steps of an epoch."""
        self.optimizer = torch.optim.SGD(
            self.normal.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
        )
        self.parameters = [parameter for parameter in self.compare.parameters() if parameter.requires_grad]
        if not exact:
            sizes = [parameter.numel() for parameter in self.parameters]
            self.sketch = Sketch(sizes, width=width, seed=seed, device=task.device)
        self.rows: list[Tensor] = []
        """The distances (metrics, K) of each epoch, float64 on the CPU."""
        self.loss = float("nan")
        """Mean over the last epoch."""

    def epoch(self) -> Iterator[None]:
        """Add an epoch's distances, then train for it; yields after every batch."""
        self.compare.load_state_dict(self.normal.state_dict())
        rate = self.recipe.learning_rate(len(self.rows))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rows: list[Tensor] = []
        for task in self.compared:
            rows.append((yield from self._distances(task)))  # noqa: PERF401  # a comprehension cannot yield
        losses = []
        for number, batch in enumerate(self.task.eval_batches("train", self.recipe.batch)):
            losses.append(self._backward(self.normal, number, batch))
            self.optimizer.step()
            self.optimizer.zero_grad()
            yield
        row = torch.stack(rows)
        self.loss = float(torch.stack(losses).mean())
        if not (np.isfinite(self.loss) and bool(row.isfinite().all())):
            raise TrainingError(
                f"a study's training must stay finite, but diverged in epoch {len(self.rows) + 1} (learning rate {rate:.3g}): "
                f"try --lr {rate / 10:.3g}"
            )
        self.rows.append(row)

    def _distances(self, task: ClassificationTask) -> Generator[None, None, Tensor]:
        """The distance of each of its batches from the mean of all, (K,); yields after every batch."""
        kept: list[Tensor] = []
        mean = [torch.zeros_like(parameter) for parameter in self.parameters] if self.exact else []
        for number, batch in enumerate(task.eval_batches("train", self.recipe.batch)):
            gradients = self._gradients(number, batch)
            if self.exact:
                for total, gradient in zip(mean, gradients, strict=True):
                    if gradient is not None:
                        total.add_(gradient, alpha=1 / self.batches)
            else:
                kept.append(self.sketch(gradients))
            yield
        return self._from(task, mean) if self.exact else _lengths(torch.stack(kept))

    def _from(self, task: ClassificationTask, mean: Sequence[Tensor]) -> Tensor:
        """The distance of each batch's gradient, computed again, from ``mean``."""
        squares = []
        for number, batch in enumerate(task.eval_batches("train", self.recipe.batch)):
            gradients = self._gradients(number, batch)
            parts = [
                (whole if gradient is None else gradient - whole).double().square().sum()
                for gradient, whole in zip(gradients, mean, strict=True)
            ]
            squares.append(torch.stack(parts).sum())
        return torch.stack(squares).sqrt().cpu()

    def _gradients(self, number: int, batch: Batch) -> list[Tensor | None]:
        """Gradients of a batch's mean loss, at the weights with which the epoch began."""
        self.compare.zero_grad()
        self._backward(self.compare, number, batch)
        return [parameter.grad for parameter in self.parameters]

    def _backward(self, network: nn.Module, number: int, batch: Batch) -> Tensor:
        # So both networks drop the same, an exact second pass too, and a resumed study has no state of generators to restore.
        torch.manual_seed((self.seed * 1_000_003 + len(self.rows)) * 1_000_003 + number)
        loss = self.task.loss(network(batch[0]), batch[1])
        torch.autograd.backward(loss)
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch needs."""
        rows = torch.stack(self.rows)  # (E, metrics, K); of one metric (E, K)
        rows = rows[:, 0] if len(self.compared) == 1 else rows
        return {"network": self.normal.state_dict(), "optimizer": self.optimizer.state_dict(), "distances": rows}

    def restore(self, state: dict[str, Any], identity: StudyIdentity, out: Path) -> None:
        """Go on from :meth:`state_dict`. Raises RunError for the state of another study."""
        check_same(state.get("identity"), identity, where=str(out))
        self.normal.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        rows = state["distances"]
        self.rows = list(rows[:, None] if len(self.compared) == 1 else rows)


def _lengths(sketches: Tensor) -> Tensor:
    """Distance of each row (K, width) from the mean row: (K,)."""
    sketches = sketches.double()
    distances: Tensor = torch.linalg.vector_norm(sketches - sketches.mean(0), dim=1)
    return distances.cpu()


def _phases(recipe: Recipe) -> tuple[range, ...]:
    bounds = [0, *map(int, recipe.milestones), recipe.passes]
    return tuple(range(start, end) for start, end in pairwise(bounds))


def _write(out: Path, result: Study, identity: StudyIdentity) -> None:
    matrix = io.BytesIO()
    np.save(matrix, result.distances, allow_pickle=False)
    write_bytes(out / DISTANCES, matrix.getvalue())
    write_pictures(
        out,
        metric=result.metric,
        title=f"{identity.data}, batches of {identity.recipe.batch} ordered by {result.metric}",
        distances=result.distances,
        phases=result.phases,
        rates=[identity.recipe.learning_rate(phase.start) for phase in result.phases],
        standard_error=result.standard_error,
        quarters=result.quarters,
        findings=result.findings,
    )
    _write_record(out, [result], identity)


def _write_record(out: Path, results: Sequence[Study], identity: StudyIdentity) -> None:
    """study.json; of several metrics, with the quarters and findings of all."""
    first = results[0]
    file = StudyFile(
        identity=identity,
        epochs=first.distances.shape[0],
        batches=first.distances.shape[1],
        standard_error=first.standard_error,
        phases=tuple((phase.start, phase.stop) for phase in first.phases),
        quarters={result.metric: tuple(result.quarters) for result in results},
        findings={result.metric: tuple(result.findings) for result in results},
    )
    write_record(out / RESULT, file, schema=SCHEMA)
