"""The metrics of face recognition against scikit-learn, brute force and cases by hand."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_curve
from sklearn.model_selection import KFold
from sklearn.neighbors import KNeighborsClassifier

from nar_hw.errors import DataError
from nar_hw.faces.metrics import balanced_accuracy, best_threshold, plot_roc, rank_1, roc, scores, tar_at_far, verification

VALUES = st.lists(st.tuples(st.integers(-5, 5).map(lambda n: n / 4), st.booleans()), min_size=2, max_size=30)


def arrays(pairs: list[tuple[float, bool]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return np.array([value for value, _ in pairs]), np.array([same for _, same in pairs])


def midpoints(values: NDArray[np.float64]) -> list[float]:
    distinct = sorted(set(values.tolist()))
    return [-np.inf, *((low + high) / 2 for low, high in pairwise(distinct)), np.inf]


class TestVerification:
    def test_by_hand(self) -> None:
        values = np.array([0.9, 0.1, 0.8, 0.2, 0.3, 0.7])
        same = np.array([True, False, True, False, True, False])
        found = verification(values, same, np.array([0, 0, 1, 1, 2, 2]))
        # Fold 2 is the wrong way round: the others are right with any threshold in between, it is not.
        assert found.thresholds[2] == pytest.approx(0.5)
        assert found.accuracy == pytest.approx((1 + 1 + 0) / 3)
        assert found.deviation == pytest.approx(np.std([1, 1, 0]))

    @settings(max_examples=40)
    @given(VALUES)
    def test_the_best_threshold_against_brute_force(self, pairs: list[tuple[float, bool]]) -> None:
        values, same = arrays(pairs)
        rights = {threshold: accuracy_score(same, values > threshold, normalize=False) for threshold in midpoints(values)}
        best = max(rights.values())
        assert best_threshold(values, same) == min(threshold for threshold, right in rights.items() if right == best)

    @pytest.mark.parametrize("seed", range(2))
    def test_against_scikit_learns_folds(self, seed: int) -> None:
        rng = np.random.RandomState(seed)
        same = np.tile([True, False], 150)
        values = np.round(rng.normal(same.astype(float), 0.7), 2)
        accuracies = []
        for train, test in KFold(10).split(values):
            rights = [accuracy_score(same[train], values[train] > threshold) for threshold in midpoints(values[train])]
            accuracies.append(accuracy_score(same[test], values[test] > midpoints(values[train])[int(np.argmax(rights))]))
        found = verification(values, same, np.repeat(np.arange(10), 30))
        assert found.accuracy == pytest.approx(np.mean(accuracies))
        assert found.deviation == pytest.approx(np.std(accuracies))

    def test_a_shift_or_a_stretch_of_all_scores_changes_nothing(self) -> None:
        rng = np.random.RandomState(0)
        same, folds = np.tile([True, False], 50), np.repeat(np.arange(10), 10)
        values = rng.normal(same.astype(float), 1)
        assert verification(values, same, folds).accuracy == verification(3 * values - 7, same, folds).accuracy

    def test_chance(self) -> None:
        rng = np.random.RandomState(0)
        same = np.tile([True, False], 3000)
        assert verification(rng.normal(size=6000), same, np.repeat(np.arange(10), 600)).accuracy == pytest.approx(0.5, abs=0.03)

    def test_one_fold(self) -> None:
        with pytest.raises(DataError, match="verification needs two or more folds, but got 1"):
            verification(np.zeros(4), np.ones(4, bool), np.zeros(4, np.int64))


class TestScores:
    def test_cosine_and_l2_by_hand(self) -> None:
        first, second = np.array([[3.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 4.0], [2.0, 2.0]])
        assert scores(first, second) == pytest.approx([0, 1])
        assert scores(first, second, "l2") == pytest.approx([-25, -2])

    def test_of_unit_embeddings_both_rank_alike(self) -> None:
        rng = np.random.RandomState(0)
        first, second = (item / np.linalg.norm(item, axis=1, keepdims=True) for item in rng.normal(size=(2, 50, 8)))
        assert scores(first, second, "l2") == pytest.approx(2 * scores(first, second) - 2)

    def test_an_embedding_of_zeros_is_like_nothing(self) -> None:
        assert scores(np.zeros((1, 3)), np.ones((1, 3))) == pytest.approx([0])


class TestTradeOff:
    def test_tar_at_far_by_hand(self) -> None:
        impostors = np.arange(100) / 100  # 0.00 .. 0.99
        genuine = np.array([0.895, 0.905, 0.985, 0.995])
        values, same = np.concatenate([impostors, genuine]), np.repeat([False, True], [100, 4])
        found = tar_at_far(values, same, (1.0, 0.1, 0.01, 0.001))
        # Ten of a hundred may be accepted: all above 0.89. One: all above 0.98. A thousandth cannot be told.
        assert found == {1.0: 1.0, 0.1: 1.0, 0.01: 0.5, 0.001: None}

    @settings(max_examples=40)
    @given(VALUES, st.sampled_from([0.1, 0.25, 0.5]))
    def test_tar_at_far_against_brute_force(self, pairs: list[tuple[float, bool]], far: float) -> None:
        values, same = arrays(pairs)
        if same.all() or not same.any() or far * (~same).sum() < 1:
            return
        allowed = [threshold for threshold in [-np.inf, *values] if (values[~same] > threshold).mean() <= far]
        assert tar_at_far(values, same, (far,))[far] == pytest.approx((values[same] > min(allowed)).mean())

    @settings(max_examples=40)
    @given(VALUES)
    def test_roc_against_scikit_learn(self, pairs: list[tuple[float, bool]]) -> None:
        values, same = arrays(pairs)
        if same.all() or not same.any():
            return
        far, tar = roc(values, same)
        expected_far, expected_tar, _ = roc_curve(same, values, drop_intermediate=False)
        assert far == pytest.approx(expected_far)
        assert tar == pytest.approx(expected_tar)

    @settings(max_examples=40)
    @given(VALUES)
    def test_balanced_accuracy_against_scikit_learn(self, pairs: list[tuple[float, bool]]) -> None:
        values, same = arrays(pairs)
        if same.all() or not same.any():
            assert np.isnan(balanced_accuracy(values, same))
            return
        expected = max(balanced_accuracy_score(same, values > threshold) for threshold in midpoints(values))
        assert balanced_accuracy(values, same) == pytest.approx(expected)

    def test_a_plot_is_a_picture(self, tmp_path: Path) -> None:
        rng = np.random.RandomState(0)
        same = np.tile([True, False], 200)
        plot_roc(tmp_path / "roc.png", {"good": roc(rng.normal(2 * same), same), "bad": roc(rng.normal(size=400), same)})
        assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")


class TestIdentification:
    @pytest.mark.parametrize("seed", range(3))
    def test_against_scikit_learn(self, seed: int) -> None:
        rng = np.random.RandomState(seed)
        gallery, identities = rng.normal(size=(40, 6)), rng.randint(8, size=40)
        probes, labels = rng.normal(size=(1500, 6)), rng.choice(identities, 1500)
        expected = KNeighborsClassifier(1, metric="cosine").fit(gallery, identities).score(probes, labels)
        assert rank_1(gallery, identities, probes, labels) == pytest.approx(expected)

    def test_length_does_not_count(self) -> None:
        gallery = np.array([[10.0, 0.0], [0.1, 0.1]])
        assert rank_1(gallery, np.array([0, 1]), np.array([[3.0, 2.9]]), np.array([1])) == 1

    def test_probes_of_strangers_are_counted(self) -> None:
        with pytest.raises(DataError, match="every probe's identity must be in the gallery, but 2 of 3 probes' are not"):
            rank_1(np.eye(2), np.array([0, 1]), np.ones((3, 2)), np.array([0, 5, 6]))
