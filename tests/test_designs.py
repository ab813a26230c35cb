import itertools
import math
import random
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from nar_hw.latency.designs import contexts, d_optimal, held_out, latin, orthogonal, orthogonal_array
from nar_hw.space.space import SearchSpace


def space_of(*candidates: tuple[int, ...]) -> SearchSpace:
    """As much of a search space as a design needs."""
    slots = [SimpleNamespace(candidates=codes, incumbent=codes[0]) for codes in candidates]

    def sample(rng: random.Random) -> tuple[int, ...]:
        return tuple(rng.choice(codes) for codes in candidates)

    size = math.prod(len(codes) for codes in candidates)
    return cast(
        SearchSpace, SimpleNamespace(slots=slots, size=size, sample=sample, incumbent=tuple(codes[0] for codes in candidates))
    )


candidates = st.lists(st.integers(0, 16), min_size=1, max_size=6, unique=True).map(lambda codes: tuple(sorted(codes)))
spaces = st.lists(candidates, min_size=1, max_size=12).map(lambda slots: space_of(*slots))


@given(space=spaces, replicates=st.integers(1, 4), seed=st.integers(0, 99))
def test_each_latin_replicate_uses_every_candidate_of_every_slot(space: SearchSpace, replicates: int, seed: int) -> None:
    children = max(len(slot.candidates) for slot in space.slots)
    archs = latin(space, replicates=replicates, seed=seed)
    assert len(archs) == replicates * children
    for start in range(0, len(archs), children):
        for slot, column in zip(space.slots, zip(*archs[start : start + children], strict=True), strict=True):
            assert set(column) == set(slot.candidates)


@given(space=spaces, seed=st.integers(0, 99))
def test_latin_children_use_the_candidates_of_a_slot_equally_often_within_one(space: SearchSpace, seed: int) -> None:
    for column in zip(*latin(space, replicates=5, seed=seed), strict=True):
        counts = [column.count(code) for code in set(column)]
        assert max(counts) - min(counts) <= 1


def test_latin_orders_differ_between_slots_and_seeds() -> None:
    space = space_of(*[(0, 1, 2, 3)] * 16)
    columns = set(zip(*latin(space, seed=0), strict=True))
    assert len(columns) > 12
    assert latin(space, seed=0) == latin(space, seed=0) != latin(space, seed=1)


@given(space=spaces, seed=st.integers(0, 99))
def test_contexts_see_every_candidate_and_the_network_itself(space: SearchSpace, seed: int) -> None:
    archs = contexts(space, replicates=2, seed=seed)
    assert archs[0] == space.incumbent
    assert len(archs) == 1 + 2 * max(len(slot.candidates) for slot in space.slots)
    for slot, column in zip(space.slots, zip(*archs, strict=True), strict=True):
        assert set(column) == set(slot.candidates)


def test_the_last_contexts_are_half_the_network_itself() -> None:
    space = space_of(*[(0, 1, 2, 3)] * 100)
    *_, last = archs = contexts(space, replicates=3)
    assert len(archs) == 13
    for arch in archs[9:]:
        assert 50 < arch.count(0) < 75  # a half, and a quarter of the other half
    assert all(arch.count(0) < 50 for arch in archs[1:9])
    assert last != space.incumbent


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 7, 8, 9, 11])
@pytest.mark.parametrize("columns", [1, 2, 3, 7, 16, 24])
def test_orthogonal_array_shows_every_pair_of_levels_equally_often(levels: int, columns: int) -> None:
    array = orthogonal_array(levels, columns)
    assert array.shape[1] == columns
    for a, b in itertools.combinations(range(columns), 2):
        counts = np.bincount(array[:, a] * levels + array[:, b], minlength=levels**2)
        assert (counts == len(array) // levels**2).all()
        assert len(array) % levels**2 == 0


def test_orthogonal_array_sizes() -> None:
    """16 slots x 4 operators need 4^3 children, and a saturated array has (q^k - 1) / (q - 1) columns."""
    assert orthogonal_array(4, 16).shape == (64, 16)
    assert orthogonal_array(3, 13).shape == (27, 13)
    assert orthogonal_array(3, 14).shape == (81, 14)


def test_orthogonal_children_are_an_array_where_one_fits() -> None:
    codes = (0, 1, 2, 3)
    archs = orthogonal(space_of(*[codes] * 16, (5,)), seed=3)
    assert len(archs) == 64
    for a, b in itertools.combinations(range(16), 2):
        pairs = [(arch[a], arch[b]) for arch in archs]
        assert all(pairs.count(pair) == 4 for pair in itertools.product(codes, codes))
    assert all(arch[16] == 5 for arch in archs)


@settings(max_examples=40, deadline=None)
@given(space=spaces, seed=st.integers(0, 9))
def test_orthogonal_children_identify_every_operator(space: SearchSpace, seed: int) -> None:
    archs = orthogonal(space, seed=seed)
    effects = [
        [1.0, *(float(arch[s] == code) for s, slot in enumerate(space.slots) for code in slot.candidates[1:])] for arch in archs
    ]
    assert np.linalg.matrix_rank(np.array(effects)) == len(effects[0])


def test_d_optimal_beats_the_design_it_starts_from_and_stays_balanced() -> None:
    counts = [6, 5, 4, 3, 2, 6]
    start, better = d_optimal(counts, 40, exchanges=0), d_optimal(counts, 40)

    def information(design: np.ndarray) -> float:
        effects = [design[:, column, None] == np.arange(1, count) for column, count in enumerate(counts)]
        matrix = np.concatenate([np.ones((len(design), 1)), *effects], axis=1).astype(float)
        return float(np.linalg.slogdet(matrix.T @ matrix)[1])

    assert information(better) > information(start) + 1
    for column, count in enumerate(counts):
        uses = np.bincount(better[:, column], minlength=count)
        assert uses.max() - uses.min() <= 1


@given(space=spaces, children=st.integers(0, 30), seed=st.integers(0, 99))
def test_held_out_children_are_new_distinct_and_as_many_as_there_are(space: SearchSpace, children: int, seed: int) -> None:
    profiled = latin(space, replicates=1, seed=seed)
    archs = held_out(space, children, exclude=profiled, seed=seed)
    assert len(set(archs)) == len(archs) == min(children, space.size - len(set(profiled)))
    assert not set(archs) & set(profiled)
    assert all(code in slot.candidates for arch in archs for code, slot in zip(arch, space.slots, strict=True))


def test_every_second_held_out_child_is_half_the_network_itself() -> None:
    space = space_of(*[(0, 1, 2, 3)] * 100)
    archs = held_out(space, 20)
    for uniform, near in zip(archs[::2], archs[1::2], strict=True):
        assert uniform.count(0) < 45 < near.count(0) < 80
