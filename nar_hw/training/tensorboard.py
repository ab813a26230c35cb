"""Scalars of each epoch for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nar_hw.errors import UserError


class TensorBoard:
    """Scalars of each epoch in a folder that TensorBoard reads; of a search, the latency relative to its target is ``load``."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError where TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as problem:
            raise UserError(
                f"TensorBoard scalars need the package tensorboard, but {problem}: pip install 'nar-hw[tensorboard]'"
            ) from problem
        self._make, self._folder = SummaryWriter, folder
        self._writer: Any = None

    def __call__(self, log: Mapping[str, float]) -> None:
        """Write an epoch's item of the history; what an interrupted run wrote of this and later epochs is void."""
        step = int(log["epoch"])
        self._writer = self._writer or self._make(str(self._folder), purge_step=step)
        for name, value in log.items():
            if name not in ("epoch", "warmup"):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()
