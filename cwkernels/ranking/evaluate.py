"""Whether to believe a ranking: its metrics beside those of what costs nothing."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cwkernels.groundtruth import GroundTruth
from cwkernels.ranking.metrics import Array, mean_of, metrics, sweep, tau
from cwkernels.ranking.rank import Scores
from cwkernels.spaces import NB201, Space

SUPER_NETWORK = "super-network"
BY_LOSS = "super-network, by loss"
UNTRAINED = "untrained super-network"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A value, and the 2.5 and 97.5 % quantiles of its bootstrap."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Result:
    """A predictor's results.

    Attributes:
        metrics: of `cw.ranking.metrics`.
        tau: with its interval, the architectures resampled.
        gain: the super-network's tau minus this one's, in the same resamples.
    """

    metrics: Mapping[str, float]
    tau: Interval
    gain: Interval


@dataclass(frozen=True)
class Evaluation:
    """A super-network's ranking beside the ground truth and beside simpler predictors.

    Attributes:
        space: its name.
        architectures: how many were ranked.
        isomorphic: how many of them the benchmark counts as different (NAS-Bench-201), else None.
        mean, best: of the ground truth over them, percent.
        distinct: how many different scores they got.
        nan: how many scores are NaN.
        results: by predictor, the super-network first.
        ceiling: the metrics that one training of each architecture reaches against the mean of its
            others, averaged over the trainings; None where the ground truth has no trainings.
        sweep: figure 4's curve of the super-network: the mean ground truth of the best N.
        truth: where the ground truth comes from.
    """

    space: str
    architectures: int
    isomorphic: int | None
    mean: float
    best: float
    distinct: int
    nan: int
    results: Mapping[str, Result]
    ceiling: Mapping[str, float] | None
    sweep: tuple[float, ...]
    truth: str

    def to_json(self) -> dict[str, Any]:
        """Plain types; NaN is None."""
        plain = _without_nan(asdict(self))
        assert isinstance(plain, dict)
        return plain


def evaluate(
    scores: Scores,
    truth: GroundTruth,
    *,
    untrained: Scores | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Compares a super-network's scores with a benchmark's ground truth.

    The ranking is by accuracy, as the paper's. Beside it stand the one by loss, which is finer
    where few images make accuracies coarse; parameters, FLOPs and the kernel area (9 for a 3x3
    convolution, 1 for a 1x1) as predictors; and, if given, the super-network before its training: a
    ranking that does not beat these has learnt nothing.

    Args:
        scores: of each architecture once, say of `cw.ranking.evaluated_set`.
        truth: of the same space.
        untrained: scores of the same architectures, in any order.
        resamples: of the bootstrap over architectures.
        seed: of it.

    Raises:
        ImportError: without scipy.
        ValueError: for scores of another space, none at all, a repeated architecture, or untrained
            scores that lack one.
    """
    index = _index(scores, truth.space)
    predictions = {SUPER_NETWORK: _array(scores.accuracy), BY_LOSS: -_array(scores.loss)}
    if untrained is not None:
        predictions[UNTRAINED] = _array(untrained.accuracy)[_places(untrained, index, truth.space)]
    predictions |= predictors(truth, scores.archs)
    accuracy = _array(truth.accuracy[index])
    own = predictions[SUPER_NETWORK]
    return Evaluation(
        space=truth.space.name,
        architectures=len(index),
        isomorphic=_isomorphic(truth.space, scores.archs),
        mean=float(accuracy.mean()),
        best=float(accuracy.max()),
        distinct=len(np.unique(own[~np.isnan(own)])),
        nan=int(np.isnan(own).sum()),
        results=_results(predictions, accuracy, resamples, seed),
        ceiling=None if truth.trials is None else _ceiling(_array(truth.trials[index])),
        sweep=tuple(sweep(own, accuracy).tolist()),
        truth=truth.source,
    )


def predictors(truth: GroundTruth, archs: Tensor) -> dict[str, Array]:
    """What can be said of architectures ``[M, D]`` without any training, by name.

    Dead convolutions count, as in the benchmark's parameters; where a space has them, a second
    kernel area leaves them out.
    """
    space, index = truth.space, truth.space.index(archs)
    area = space.kernel_area(archs)
    alive = (area * space.live(archs)).sum(-1)
    found = {
        "parameters": truth.parameters[index],
        "FLOPs": truth.flops[index],
        "kernel area": area.sum(-1),
    }
    if not torch.equal(alive, area.sum(-1)):
        found["live kernel area"] = alive
    return {name: _array(values) for name, values in found.items()}


def _results(
    predictions: Mapping[str, Array], accuracy: Array, resamples: int, seed: int
) -> dict[str, Result]:
    generator = np.random.default_rng(seed)
    draws: dict[str, list[float]] = {name: [] for name in predictions}
    for _ in range(resamples):
        picked = generator.integers(len(accuracy), size=len(accuracy))
        for name, prediction in predictions.items():
            draws[name].append(tau(prediction[picked], accuracy[picked]))
    own = np.array(draws[SUPER_NETWORK])
    found = {name: metrics(prediction, accuracy) for name, prediction in predictions.items()}
    best = found[SUPER_NETWORK]["tau"]
    return {
        name: Result(
            result,
            _interval(result["tau"], np.array(draws[name])),
            _interval(best - result["tau"], own - np.array(draws[name])),
        )
        for name, result in found.items()
    }


def _interval(value: float, draws: Array) -> Interval:
    """The quantiles of the draws; a resample may be constant, which says nothing."""
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Interval(value, math.nan, math.nan)
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [outside, 1 - outside])
    return Interval(value, float(low), float(high))


def _ceiling(trials: Array) -> dict[str, float]:
    """Each training against the mean of the others: [M, T]."""
    count = trials.shape[1]
    return mean_of(
        [metrics(trials[:, t], np.delete(trials, t, axis=1).mean(axis=1)) for t in range(count)]
    )


def _index(scores: Scores, space: Space) -> Tensor:
    """The places of the scored architectures in a table of the space."""
    if scores.space != space:
        raise ValueError(f"evaluate: scores: wanted {space.name}, got {scores.space.name}")
    index = space.index(scores.archs)
    if not isinstance(index, Tensor) or not len(index):
        raise ValueError("evaluate: scores: wanted at least one architecture, got none")
    values, counts = index.unique(return_counts=True)
    if len(values) < len(index):
        twice = space.format(space[int(values[counts > 1][0])])
        raise ValueError(f"evaluate: scores: wanted each architecture once, got {twice} again")
    return index


def _places(untrained: Scores, wanted: Tensor, space: Space) -> Tensor:
    """Where the untrained scores have the wanted architectures."""
    index = _index(untrained, space)
    place = torch.full((len(space),), -1)
    place[index] = torch.arange(len(index))
    missing = wanted[place[wanted] < 0]
    if len(missing):
        arch = space.format(space[int(missing[0])])
        raise ValueError(f"evaluate: untrained: wanted a score of {arch}, got none")
    return place[wanted]


def _isomorphic(space: Space, archs: Tensor) -> int | None:
    if not isinstance(space, NB201):
        return None
    return len({space.unique_string(arch) for arch in archs})


def _array(values: Tensor) -> Array:
    return values.double().cpu().numpy()


def _without_nan(value: Any) -> Any:
    """The same with None for what JSON cannot say."""
    if isinstance(value, dict):
        return {key: _without_nan(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
