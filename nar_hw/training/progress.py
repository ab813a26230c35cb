"""What a training shows while it runs."""

from rich.progress import Progress

from nar_hw.training.result import EpochLog


class Bar:
    """One row of a progress display, or nothing."""

    def __init__(self, progress: Progress | None, *, steps: int, epochs: int, done: int) -> None:
        """``steps`` of each of ``epochs``, ``done`` of which are over."""
        self._progress, self._epochs = progress, epochs
        self._row = None if progress is None else progress.add_task("training", total=steps * epochs, completed=steps * done)

    def step(self) -> None:
        """One step is over."""
        if self._progress is not None and self._row is not None:
            self._progress.advance(self._row)

    def epoch(self, log: EpochLog, done: int) -> None:
        """An epoch is over, and with it ``done``."""
        if self._progress is not None and self._row is not None:
            text = f"training: epoch {done} of {self._epochs}, loss {log.loss:.3f}, valid {log.valid_accuracy:.2%}"
            self._progress.update(self._row, description=f"{text}, {log.images_per_s:,.0f} images/s")
