"""Metrics against scipy, against every order of tied predictions, and by hand."""

import math
from collections.abc import Sequence
from itertools import pairwise, permutations

import numpy as np
import pytest
from scipy.stats import kendalltau

from cwkernels.ranking.metrics import (
    Array,
    best_by,
    improvement,
    metrics,
    precision,
    sweep,
    tau,
)
from cwkernels.testing import refused

NAN = math.nan


def array(*values: float) -> Array:
    return np.array(values, dtype=np.float64)


def random_case(size: int, seed: int) -> tuple[Array, Array]:
    """A prediction with many ties and a truth with some."""
    generator = np.random.default_rng(seed)
    truth = np.round(generator.normal(size=size), 1)
    prediction = np.round(truth + generator.normal(size=size), 0)
    return prediction, truth


def orders(prediction: Array) -> list[tuple[int, ...]]:
    """Every ranking, best first, that the prediction allows."""
    values = np.where(np.isnan(prediction), -np.inf, prediction)
    every = permutations(range(len(values)))
    return [o for o in every if all(values[a] >= values[b] for a, b in pairwise(o))]


def mean_over_orders(prediction: Array, truth: Array, n: int) -> float:
    return float(np.mean([truth[list(order[:n])].mean() for order in orders(prediction)]))


TIES = (
    (array(3, 3, 1, 1, 1), array(90, 80, 70, 60, 20)),
    (array(1, 1, 1, 1, 1), array(90, 80, 70, 60, 20)),
    (array(5, NAN, 2, NAN, 2), array(90, 80, 70, 60, 20)),
    (array(1, 2, 3, 4, 5), array(90, 80, 70, 60, 20)),
)


@pytest.mark.parametrize(("prediction", "truth"), TIES)
def test_a_selection_is_the_mean_over_all_orders_of_ties(prediction: Array, truth: Array) -> None:
    curve = sweep(prediction, truth)
    expected = [mean_over_orders(prediction, truth, n) for n in range(1, 6)]
    assert curve == pytest.approx(expected)


def overlap(first: Sequence[int], second: Sequence[int], k: int) -> float:
    return len(set(first[:k]) & set(second[:k])) / k


@pytest.mark.parametrize(("prediction", "truth"), [*TIES, (array(2, 1, 1, 0), array(9, 9, 7, 7))])
def test_precision_is_the_mean_over_all_orders_of_ties(prediction: Array, truth: Array) -> None:
    for k in range(1, len(truth) + 1):
        pairs = [overlap(a, b, k) for a in orders(prediction) for b in orders(truth)]
        assert precision(prediction, truth, k) == pytest.approx(np.mean(pairs), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_tau_is_scipys(seed: int) -> None:
    prediction, truth = random_case(200, seed)
    assert tau(prediction, truth) == kendalltau(prediction, truth, variant="b").statistic
    result = metrics(prediction, truth)
    best = truth >= np.sort(truth)[-50]
    assert result["tau"] == tau(prediction, truth)
    assert result["tau_best"] == kendalltau(prediction[best], truth[best]).statistic
    assert result["tau"] != pytest.approx(result["tau_best"], abs=0.05)


def test_tau_by_hand() -> None:
    """Pairs of (1, 1, 2) and (1, 2, 3): two concordant, one tied in the prediction."""
    assert tau(array(1, 1, 2), array(1, 2, 3)) == pytest.approx(2 / math.sqrt(2 * 3))
    assert tau(array(3, 2, 1), array(1, 2, 3)) == pytest.approx(-1)


def test_metrics_by_hand() -> None:
    truth = array(*range(1, 21))
    prediction = truth.copy()
    prediction[19] = 0  # the best is predicted worst
    result = metrics(prediction, truth)
    assert result["top_1"] == 19
    assert result["top_5"] == 17
    assert result["top_10"] == 14.5
    assert result["improvement_1"] == pytest.approx((19 - 10.5) / 9.5)
    assert result["improvement_10"] == pytest.approx(4 / 9.5)
    assert result["precision_10"] == pytest.approx(0.9)
    assert result["precision_50"] == 1  # of 20 there are 20 best
    assert result["tau"] == pytest.approx((171 - 19) / 190)


def test_a_constant_predicts_nothing() -> None:
    truth = array(*range(20))
    result = metrics(np.ones(20), truth)
    assert math.isnan(result["tau"])
    assert result["top_1"] == result["top_10"] == 9.5
    assert result["improvement_5"] == 0
    assert result["precision_10"] == pytest.approx(0.5)


def test_a_constant_truth_has_no_improvement() -> None:
    result = metrics(array(*range(20)), np.ones(20))
    assert math.isnan(result["improvement_1"])
    assert math.isnan(result["tau"])
    assert result["top_1"] == 1


def test_a_nan_ranks_last() -> None:
    truth = array(1, 2, 3, 4)
    assert tau(array(1, 2, 3, NAN), truth) == tau(array(1, 2, 3, -9), truth)
    assert sweep(array(1, 2, 3, NAN), truth)[0] == 3
    assert math.isnan(tau(array(NAN, NAN, NAN, NAN), truth))


def test_one_architecture() -> None:
    result = metrics(array(50), array(90))
    assert result["top_1"] == result["top_10"] == 90
    assert result["precision_10"] == 1
    assert math.isnan(result["tau"])


def test_the_best_are_more_where_they_tie() -> None:
    assert best_by(array(1, 2, 2, 3), 2).tolist() == [False, True, True, True]
    assert best_by(array(1, 2, 2, 3), 9).all()
    assert improvement(3, array(1, 3)) == 1


def test_wrong_arrays_are_refused() -> None:
    with refused(ValueError, "metrics: prediction, truth: wanted one value for each of at least"):
        metrics(array(1, 2), array(1))
    with refused(ValueError, "got [0] and [0]"):
        metrics(array(), array())
    with refused(ValueError, "metrics: truth: wanted finite accuracies, got others"):
        metrics(array(1), array(NAN))
