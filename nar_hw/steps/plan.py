"""How long a refinement will take, measured on a few steps before anything long starts."""

import math
import time
from itertools import islice

import torch

from nar_hw.latency.loader import ChildLoader
from nar_hw.latency.profiler import ROUNDS
from nar_hw.latency.timing import summarize
from nar_hw.records import Record
from nar_hw.space.network import in_float
from nar_hw.steps.refine import BASELINE, Refinement

FIT_COST, TWO_PHASE_COST = 2.0, 1.4
"""Cost of a step beside a plain training step: of fitting all candidates, and of fine-tuning beside a teacher."""
CHILDREN_PER_OPERATOR, HELD_OUT = 7, 40
"""Children that a profile visits: for each operator, and to validate the table."""


class Stage(Record, frozen=True, kw_only=True):
    """One stage of a refinement."""

    stage: str
    what: str
    seconds: float
    """0 where it is done."""
    done: bool = False


def estimate(refinement: Refinement) -> tuple[Stage, ...]:
    """The stages with their times: of a training step, of scoring a child and of loading one, each measured here."""
    config, task = refinement.config, refinement.task
    space = refinement.model.space()
    network = refinement.model.build().to(task.device)
    batch = config.recipe.batch
    step, forward = _step_seconds(refinement, network, batch)
    load, run = _child_seconds(refinement)
    operators = len({code for slot in space.slots for code in slot.candidates})
    children = CHILDREN_PER_OPERATOR * operators + HELD_OUT
    visits = max(run, 0.02) * ROUNDS
    held_out_images = task.size("valid") + task.size("test")
    held_out = held_out_images / batch * forward
    steps = math.ceil(task.train_size / batch)
    search, fit = config.search, config.search.fit
    archs = search.epochs * search.updates * search.samples
    score = (search.recalibration_batches * search.batch + search.valid_batch) / batch * forward
    finals = len(config.targets) * search.rescored * task.size("valid") / batch * forward
    fitting = 0.0 if fit is None else fit.epochs * math.ceil(task.train_size / fit.batch) * FIT_COST * step * fit.batch / batch
    times = {
        "baseline": (f"score the weights on {task.size('valid') + task.size('test'):,} images", held_out),
        "latency table": (
            (f"{children} children in {config.conditions.runtime}", children * (load + visits))
            if refinement.table is None
            else (f"given: {refinement.table}", 0.0)
        ),
        "search": (
            f"fit {sum(len(slot.candidates) - 1 for slot in space.slots)} candidates, score {archs} archs",
            fitting + archs * score + finals,
        ),
        **{
            f"train {name}": (f"{config.recipe.epochs} epochs", config.recipe.epochs * steps * TWO_PHASE_COST * step + held_out)
            for name in config.targets
        },
        **{f"export {name}": (", ".join(config.export.precisions), 4 * load + held_out) for name in (BASELINE, *config.targets)},
        "benchmark": (f"{1 + len(config.targets)} networks in turn", (1 + len(config.targets)) * (load + 30 * 0.02 + 3)),
    }
    return tuple(
        Stage(
            stage=name,
            what=what,
            seconds=0.0 if refinement.stages[name][0].exists() else seconds,
            done=refinement.stages[name][0].exists(),
        )
        for name, (what, seconds) in times.items()
    )


def _step_seconds(refinement: Refinement, network: torch.nn.Module, batch: int) -> tuple[float, float]:
    """Seconds of a training step, and of a forward pass, of one batch."""
    task = refinement.task
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    steps, forwards = [], []
    for images, targets in islice(task.train_batches(batch, torch.Generator().manual_seed(0)), 4):
        start = time.perf_counter()
        loss = task.loss(in_float(network.train()(images)), targets)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        steps.append(time.perf_counter() - start)
        start = time.perf_counter()
        with torch.no_grad():
            network.eval()(images)
        forwards.append(time.perf_counter() - start)
    return min(steps), min(forwards)


def _child_seconds(refinement: Refinement) -> tuple[float, float]:
    """Seconds to make and load the network in its runtime, and of one inference."""
    space = refinement.model.space()
    with ChildLoader(space, refinement.config.conditions) as load:
        start = time.perf_counter()
        with load(space.incumbent) as loaded:
            seconds = time.perf_counter() - start
            return seconds, summarize(loaded.time_ms(5)).ms / 1e3
