"""What a training came to, epoch by epoch."""

from dataclasses import dataclass
from pathlib import Path

from nar_hw.records import Record, read_record, write_record

HISTORY = "history.json"
SCHEMA = 1


class EpochLog(Record, frozen=True, kw_only=True):
    """What one epoch did."""

    epoch: int
    """From 1."""
    loss: float
    """Mean over the training batches."""
    train_accuracy: float
    """In [0, 1], over the augmented training batches while they were learned."""
    valid_accuracy: float
    """In [0, 1], after the epoch."""
    lr: float
    """Learning rate of the last step."""
    images_per_s: float
    """Training images per second, validation and checkpoint not counted."""
    pieces: int
    """Pieces that each batch was cut into at the end of the epoch."""
    phase: int = 1
    """2 in the second phase of :func:`two_phase`."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training came to. The model holds the weights of the last epoch (their average where the recipe asks for it)."""

    history: tuple[EpochLog, ...]
    valid_accuracy: float
    """Of the last epoch, in [0, 1]."""
    best_epoch: int
    """The latest epoch with the best validation accuracy; its weights are in ``best.safetensors``."""
    best_valid_accuracy: float
    snapshots: tuple[int, ...] = ()
    """Epochs whose weights were kept for an ensemble."""


class History(Record, frozen=True, kw_only=True):
    """What history.json says: every epoch of a training, of both phases where it has two."""

    epochs: tuple[EpochLog, ...]

    def save(self, folder: Path) -> None:
        """Write history.json, atomically."""
        write_record(folder / HISTORY, self, schema=SCHEMA)

    @classmethod
    def load(cls, folder: Path) -> "History":
        """Read history.json. Raises RunError in one line."""
        return read_record(folder / HISTORY, cls, what="training history", schema=SCHEMA, fix="train again")
