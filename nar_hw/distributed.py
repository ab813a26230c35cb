"""One training or search on several processes, started by torchrun: each does its share of a batch, or of the archs to score.

All draw the same random numbers (and hear the same rewards), so that orders, paths and proposals agree without a message.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nar_hw.errors import UserError
from nar_hw.space.spec import Arch

Items = TypeVar("Items", Tensor, range)
Measure = Callable[[list[Arch]], Sequence[float]]


@contextmanager
def launched(device: str) -> Iterator[str]:
    """The group of processes that torchrun has started, if it has; gives the device of this one: of several GPUs, its own.

    Raises UserError for a device that is not there.
    """
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"the device must be cpu or cuda, but got {device}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"the device {device} must be there, but torch {torch.__version__} finds no GPU: use cpu")
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield device
        return
    dist.init_process_group()
    try:
        yield f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" else device
    finally:
        dist.destroy_process_group()


def ranks() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 writes, prints and measures."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(items: Items) -> Items:
    """What this process does of what is to be done."""
    return items[rank() :: ranks()]


def all_reduce_sum(values: Tensor) -> Tensor:
    """``values``, now the sums over all processes."""
    if ranks() > 1:
        dist.all_reduce(values)
    return values


def barrier() -> None:
    """Wait until every process has come here."""
    all_reduce_sum(torch.zeros(1))


def broadcast(model: nn.Module) -> None:
    """Let every process have the weights of the first."""
    if ranks() > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, 0)


def average_gradients(model: nn.Module) -> None:
    """Let every process have the mean of the gradients; what has none, since it did not run, costs nothing."""
    if ranks() == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    means = all_reduce_sum(torch.cat([gradient.flatten() for gradient in gradients])) / ranks()
    for gradient, mean in zip(gradients, torch.split(means, [gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def average_buffers(model: nn.Module) -> None:
    """Let every process have the mean of the running statistics, which norms collect from their own process's images."""
    if ranks() == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            all_reduce_sum(buffer).div_(ranks())


def on_rank_zero(measure: Measure) -> Measure:
    """``measure`` in the first process, with its times in all."""

    def measured(archs: list[Arch]) -> Sequence[float]:
        if ranks() == 1:
            return measure(archs)
        times = torch.tensor(measure(archs) if rank() == 0 else [0.0] * len(archs), dtype=torch.float64)
        dist.broadcast(times, 0)
        return times.tolist()

    return measured
