"""How well a prediction orders architectures (paper section 3.4, appendix C).

Wherever predictions tie, every order of the tied is as good as another, and the metric is its mean
over all of them. A NaN predicts nothing: it ranks below every number, tied with the other NaNs.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cwkernels import requires

Array = npt.NDArray[np.float64]

TOP = (1, 5, 10)
"""How many selected architectures the paper averages over."""
PRECISION = (10, 50)
"""Sizes of the selections whose overlap with the best is counted."""
BEST = 50
"""How many of the best by ground truth the second tau is over."""


def metrics(prediction: Array, truth: Array) -> dict[str, float]:
    """Every metric of one prediction, by name.

    Args:
        prediction: float64 [M], greater is better; NaN is worst.
        truth: float64 [M], accuracies.

    Returns:
        ``tau`` and ``tau_best`` (the 50 best); for N of `TOP` ``top_N``, in units of the truth,
        and ``improvement_N``; for K of `PRECISION` ``precision_K``. What is undefined is NaN: a tau
        of a constant, an improvement where all architectures are equal.

    Raises:
        ValueError: for arrays of other shapes, of no architecture, or a truth that is not finite.
    """
    prediction, truth = _checked(prediction, truth)
    best = best_by(truth, BEST)
    top = sweep(prediction, truth)
    result = {"tau": tau(prediction, truth), "tau_best": tau(prediction[best], truth[best])}
    sizes = {n: min(n, len(truth)) for n in (*TOP, *PRECISION)}
    result |= {f"top_{n}": float(top[sizes[n] - 1]) for n in TOP}
    result |= {f"improvement_{n}": improvement(result[f"top_{n}"], truth) for n in TOP}
    return result | {f"precision_{k}": precision(prediction, truth, sizes[k]) for k in PRECISION}


def tau(prediction: Array, truth: Array) -> float:
    """Kendall's tau-b, scipy's; NaN if either is constant, or only one architecture."""
    if len(truth) < 2:
        return float("nan")
    stats = requires.module("scipy.stats", "evaluate")
    return float(stats.kendalltau(_numbers(prediction), truth).statistic)


def best_by(truth: Array, count: int) -> npt.NDArray[np.bool_]:
    """Which architectures are as good as the ``count``-th best: more than that many if it ties."""
    least = float(np.sort(truth)[-min(count, len(truth))])
    return np.greater_equal(truth, least)


def sweep(prediction: Array, truth: Array) -> Array:
    """Figure 4's curve: the mean truth of the N architectures predicted best, for N = 1 … M."""
    order, group = _groups(prediction)
    sums = np.bincount(group, weights=truth[order])
    means = (sums / np.bincount(group))[group]
    return np.cumsum(means) / np.arange(1, len(truth) + 1)


def improvement(selected: float, truth: Array) -> float:
    """Where a mean accuracy lies between that of all architectures, 0, and the best, 1."""
    span = truth.max() - truth.mean()
    return float((selected - truth.mean()) / span) if span > 0 else float("nan")


def precision(prediction: Array, truth: Array, k: int) -> float:
    """The share of the ``k`` predicted best that are among the ``k`` best."""
    return float(_membership(prediction, k) @ _membership(truth, k)) / k


def _membership(values: Array, k: int) -> Array:
    """The probability with which each is among the ``k`` greatest, ties broken at random."""
    order, group = _groups(values)
    size = np.bincount(group)
    before = np.cumsum(size) - size
    share = np.clip((k - before) / size, 0, 1)
    member = np.empty(len(values))
    member[order] = share[group]
    return member


def _groups(values: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The order from the greatest down, and the number of the tie that each place belongs to."""
    values = _numbers(values)
    order = np.argsort(-values, kind="stable")
    falls = values[order][1:] != values[order][:-1]
    return order, np.concatenate([[0], np.cumsum(falls)]).astype(np.int64)


def _numbers(values: Array) -> Array:
    """NaN made what it counts as: less than every number."""
    return np.where(np.isnan(values), -np.inf, values)


def _checked(prediction: Array, truth: Array) -> tuple[Array, Array]:
    if truth.ndim != 1 or prediction.shape != truth.shape or not len(truth):
        wanted = "one value for each of at least one architecture"
        got = f"{list(prediction.shape)} and {list(truth.shape)}"
        raise ValueError(f"metrics: prediction, truth: wanted {wanted}, got {got}")
    if not np.isfinite(truth).all():
        raise ValueError("metrics: truth: wanted finite accuracies, got others")
    return prediction.astype(np.float64), truth.astype(np.float64)


def mean_of(results: list[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over several predictions."""
    return {name: float(np.mean([result[name] for result in results])) for name in results[0]}
