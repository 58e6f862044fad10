"""Evaluations: what stands beside a ranking, how sure it is, and what is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from torch import Tensor

import cwkernels as cw
from cwkernels.groundtruth import GroundTruth
from cwkernels.ranking import Evaluation, Scores, evaluate, predictors, text
from cwkernels.spaces import Space
from cwkernels.testing import refused


def truth_of(space: Space, trials: int = 0) -> GroundTruth:
    """A ground truth that grows with the kernel area, with noise."""
    generator = torch.Generator().manual_seed(0)
    archs = space.all()
    signal = space.kernel_area(archs).sum(-1).double()
    count = max(trials, 1)
    noise = torch.randn(len(archs), count, generator=generator, dtype=torch.float64)
    runs = signal[:, None] + 10 * noise
    return GroundTruth(
        space,
        accuracy=runs.mean(1),
        parameters=signal.long() + 7,
        flops=(signal**2).long(),
        trials=runs if trials else None,
        source="made up",
    )


def scores_of(space: Space, archs: Tensor, accuracy: Tensor) -> Scores:
    return Scores(space, archs, accuracy.double(), -accuracy.double())


def noisy(truth: GroundTruth, archs: Tensor, noise: float, seed: int = 1) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    accuracy = truth.accuracy[truth.space.index(archs)]
    drawn = torch.randn(len(archs), generator=generator, dtype=torch.float64)
    return scores_of(truth.space, archs, accuracy + noise * drawn)


SPACE = cw.spaces.nb201("only_conv")
TRUTH = truth_of(SPACE)
ARCHS = SPACE.all()


def result(evaluation: Evaluation, name: str) -> float:
    return evaluation.results[name].metrics["tau"]


def test_all_predictors_stand_beside() -> None:
    evaluation = evaluate(noisy(TRUTH, ARCHS, 5.0), TRUTH, resamples=20)
    names = ["super-network", "super-network, by loss", "parameters", "FLOPs", "kernel area"]
    assert list(evaluation.results) == names
    for name, values in predictors(TRUTH, ARCHS).items():
        expected = kendalltau(values, TRUTH.accuracy.numpy()).statistic
        assert result(evaluation, name) == pytest.approx(expected)
    assert result(evaluation, "parameters") > 0.3
    assert evaluation.mean == pytest.approx(float(TRUTH.accuracy.mean()))
    assert evaluation.best == pytest.approx(float(TRUTH.accuracy.max()))


def test_the_kernel_area_counts_convolutions() -> None:
    space = cw.spaces.nb201("full")
    string = "|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|avg_pool_3x3~0|nor_conv_3x3~1|none~2|"
    found = predictors(truth_of(space), space.parse(string)[None])
    assert found["kernel area"].tolist() == [9 + 1 + 9]
    assert found["live kernel area"].tolist() == [9 + 9]  # 0→2 cannot reach the output
    macro = cw.spaces.macro()
    found = predictors(truth_of(macro), macro.parse("01200000")[None])
    assert found["kernel area"].tolist() == [(1 + 9 + 1) + (1 + 25 + 1)]
    assert "live kernel area" not in found


def test_a_real_gain_is_outside_its_interval_and_none_is_inside() -> None:
    macro = cw.spaces.macro()
    truth = truth_of(macro)
    archs = macro.all()[::7]
    good, blind = noisy(truth, archs, 1.0), noisy(truth, archs, 1e6)
    evaluation = evaluate(good, truth, untrained=blind, resamples=50)
    gain = evaluation.results["untrained super-network"].gain
    assert 0 < gain.low < gain.value < gain.high
    assert gain.value == result(evaluation, "super-network") - result(
        evaluation, "untrained super-network"
    )
    own = evaluation.results["super-network"]
    assert own.tau.low < own.tau.value < own.tau.high
    assert own.gain.low == own.gain.value == own.gain.high == 0
    nothing = evaluate(noisy(truth, archs, 1e6, seed=2), truth, untrained=blind, resamples=50)
    gain = nothing.results["untrained super-network"].gain
    assert gain.low < 0 < gain.high


def test_the_bootstrap_covers_the_truth() -> None:
    """In 95 % of samples from a space the interval should hold the tau of the whole space."""
    macro = cw.spaces.macro()
    truth = truth_of(macro)
    every = noisy(truth, macro.all(), 30.0)
    expected = kendalltau(every.accuracy.numpy(), truth.accuracy.numpy()).statistic
    held = []
    for seed in range(20):
        picked = torch.randperm(len(macro), generator=torch.Generator().manual_seed(seed))[:150]
        sample = scores_of(macro, every.archs[picked], every.accuracy[picked])
        tau = evaluate(sample, truth, resamples=100).results["super-network"].tau
        held.append(tau.low <= expected <= tau.high)
    assert sum(held) >= 16
    assert tau.high - tau.low < 0.3


def test_untrained_scores_may_come_in_any_order() -> None:
    blind = noisy(TRUTH, ARCHS, 50.0)
    turned = scores_of(SPACE, ARCHS.flip(0), blind.accuracy.flip(0))
    scores = noisy(TRUTH, ARCHS, 5.0)
    first = evaluate(scores, TRUTH, untrained=blind, resamples=5)
    assert evaluate(scores, TRUTH, untrained=turned, resamples=5) == first
    with refused(ValueError, "evaluate: untrained: wanted a score of |nor_conv_1x1~0|+"):
        evaluate(scores, TRUTH, untrained=scores_of(SPACE, ARCHS[1:], blind.accuracy[1:]))


def test_the_ceiling_is_one_training_against_the_others() -> None:
    truth = truth_of(SPACE, trials=3)
    assert truth.trials is not None
    trials = truth.trials.numpy()
    taus = [
        kendalltau(trials[:, t], trials[:, [u for u in range(3) if u != t]].mean(1)).statistic
        for t in range(3)
    ]
    ceiling = evaluate(noisy(truth, ARCHS, 5.0), truth, resamples=2).ceiling
    assert ceiling is not None
    assert ceiling["tau"] == pytest.approx(np.mean(taus))
    assert evaluate(noisy(TRUTH, ARCHS, 5.0), TRUTH, resamples=2).ceiling is None


def test_nan_and_duplicated_scores_are_counted() -> None:
    accuracy = torch.cat([torch.tensor([torch.nan] * 4), torch.tensor([50.0, 60.0] * 30)])
    evaluation = evaluate(scores_of(SPACE, ARCHS, accuracy), TRUTH, resamples=5)
    assert (evaluation.distinct, evaluation.nan) == (2, 4)
    assert "2 different scores, 4 NaN" in text(evaluation)


def test_constant_scores_have_no_tau() -> None:
    evaluation = evaluate(scores_of(SPACE, ARCHS, torch.ones(64)), TRUTH, resamples=5)
    tau = evaluation.results["super-network"].tau
    assert all(math.isnan(value) for value in (tau.value, tau.low, tau.high))
    plain = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert plain["results"]["super-network"]["tau"]["value"] is None
    assert plain["results"]["parameters"]["tau"]["value"] > 0.3
    assert "–" in text(evaluation)


def test_the_loss_ranks_too() -> None:
    scores = noisy(TRUTH, ARCHS, 5.0)
    coarse = replace(scores, accuracy=(scores.accuracy / 20).round())
    evaluation = evaluate(coarse, TRUTH, resamples=5)
    expected = kendalltau(scores.accuracy.numpy(), TRUTH.accuracy.numpy()).statistic
    assert result(evaluation, "super-network, by loss") == pytest.approx(expected)
    assert result(evaluation, "super-network") != pytest.approx(expected)


def test_the_sweep_is_of_the_super_network() -> None:
    scores = noisy(TRUTH, ARCHS, 5.0)
    curve = evaluate(scores, TRUTH, resamples=2).sweep
    order = scores.accuracy.argsort(descending=True)
    expected = TRUTH.accuracy[order].cumsum(0) / torch.arange(1, 65)
    assert curve == pytest.approx(expected.numpy())


def test_isomorphic_architectures_are_counted() -> None:
    space = cw.spaces.nb201("full")
    # Where node 1 is the input, an edge from either is the same; the third swaps what is not.
    nodes = ("nor_conv_3x3~0|skip_connect~1", "skip_connect~0|nor_conv_3x3~1", "none~0|none~1")
    strings = [f"|skip_connect~0|+|{node}|+|none~0|none~1|nor_conv_1x1~2|" for node in nodes]
    archs = torch.stack([space.parse(string) for string in strings])
    truth = truth_of(space)
    evaluation = evaluate(noisy(truth, archs, 1.0), truth, resamples=2)
    assert evaluation.isomorphic == 2
    assert "The benchmark counts 2 of them as different cells." in text(evaluation)
    macro = cw.spaces.macro()
    own = truth_of(macro)
    assert evaluate(noisy(own, macro.all()[:9], 1.0), own, resamples=2).isomorphic is None


def test_wrong_scores_are_refused() -> None:
    scores = noisy(TRUTH, ARCHS, 5.0)
    with refused(ValueError, "evaluate: scores: wanted nb201_only_conv, got macro"):
        evaluate(replace(scores, space=cw.spaces.macro()), TRUTH)
    with refused(ValueError, "evaluate: scores: wanted at least one architecture, got none"):
        evaluate(scores_of(SPACE, ARCHS[:0], torch.ones(0)), TRUTH)
    again = torch.cat([ARCHS, ARCHS[3:4]])
    with refused(ValueError, "wanted each architecture once, got |nor_conv_1x1~0|+|nor"):
        evaluate(scores_of(SPACE, again, torch.ones(65)), TRUTH)


def test_the_table_has_a_line_for_each_predictor() -> None:
    truth = truth_of(SPACE, trials=3)
    evaluation = evaluate(
        noisy(truth, ARCHS, 5.0), truth, untrained=noisy(truth, ARCHS, 50.0), resamples=5
    )
    lines = text(evaluation).splitlines()
    heads = [line.split("  ")[0] for line in lines[1:8]]
    assert heads == [*evaluation.results, "noise ceiling"]
    assert len({len(line) for line in lines[:8]}) == 1
