"""What a search shows while it runs."""

from collections.abc import Mapping, Sequence

from rich.progress import Progress

from nar_hw.search.budget import Cost


class Bar:
    """The progress of the epochs, with what the last one showed."""

    def __init__(self, progress: Progress | None, costs: Sequence[Cost], *, epochs: int, done: int) -> None:
        self._progress, self._costs = progress, costs
        self._task = None if progress is None else progress.add_task("search", total=epochs, completed=done)

    def __call__(self, log: Mapping[str, float]) -> None:
        """Show an epoch's item of the history."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=self._text(log), completed=log["epoch"])

    def _text(self, log: Mapping[str, float]) -> str:
        if log["warmup"]:
            return f"search: warm-up, loss {log['loss']:.3f}"
        load = f", load {log['load']:.2f}" if len(self._costs) > 1 else ""
        entropy = f", entropy {log['entropy']:.1f}" if "entropy" in log else ""
        latency = f", {log['latency_ms']:.4g} of {self._costs[0].target:.4g} ms" if "latency_ms" in log else ""
        return f"search: reward {log['reward']:.3f}, accuracy {100 * log['accuracy']:.1f} %{latency}{load}{entropy}"
