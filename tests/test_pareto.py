import itertools

from hypothesis import given, strategies as st

from nar_hw.search.pareto import pareto_front

COARSE = st.integers(0, 6).map(float)  # few values: many ties
POINTS = st.lists(st.tuples(COARSE, COARSE), max_size=30)


def dominated(point: tuple[float, float], others: list[tuple[float, float]]) -> bool:
    latency, accuracy = point
    return any(a <= latency and b >= accuracy and (a < latency or b > accuracy) for a, b in others)


@given(POINTS)
def test_agrees_with_comparing_every_pair(points: list[tuple[float, float]]) -> None:
    front = pareto_front([a for a, _ in points], [b for _, b in points])
    assert sorted({points[index] for index in front}) == sorted({point for point in points if not dominated(point, points)})


@given(POINTS)
def test_rises_in_both_and_keeps_the_first_of_equals(points: list[tuple[float, float]]) -> None:
    front = pareto_front([a for a, _ in points], [b for _, b in points])
    chosen = [points[index] for index in front]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(chosen))
    assert all(index == points.index(points[index]) for index in front)


@given(POINTS)
def test_the_front_of_the_front_is_itself(points: list[tuple[float, float]]) -> None:
    chosen = [points[index] for index in pareto_front([a for a, _ in points], [b for _, b in points])]
    assert pareto_front([a for a, _ in chosen], [b for _, b in chosen]) == list(range(len(chosen)))


def test_no_points_have_no_front() -> None:
    assert pareto_front([], []) == []


def test_an_example() -> None:
    #              slow+good  fast+bad  dominated  tie in latency  tie in accuracy
    latency = [3.0, 1.0, 2.5, 1.0, 3.5]
    accuracy = [0.9, 0.5, 0.4, 0.3, 0.9]
    assert pareto_front(latency, accuracy) == [1, 0]
