"""The archs that no other arch beats in both accuracy and latency."""

from collections.abc import Sequence


def pareto_front(latency_ms: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    """Indices of the points that no other point dominates, by rising latency (and so by rising accuracy).

    A point dominates another when it is no slower and no less accurate, and better in one of the two. Of points equal in
    both, the first stands for all.
    """
    order = sorted(range(len(latency_ms)), key=lambda index: (latency_ms[index], -accuracies[index], index))
    front: list[int] = []
    for index in order:
        if not front or accuracies[index] > accuracies[front[-1]]:
            front.append(index)
    return front
