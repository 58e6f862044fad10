"""Cases and inputs: names are unique, shapes and sizes are what a call has."""

import pytest
import torch

from cwkernels.testing import ConvCase, dense_random, network_cases, small_integers, statistics_of


def test_small_integers_are_small_whole_and_never_zero() -> None:
    drawn = small_integers(50, 40, seed=3)
    assert drawn.dtype == torch.float32
    assert set(drawn.unique().tolist()) == {-2.0, -1.0, 1.0, 2.0}
    assert torch.equal(drawn, small_integers(50, 40, seed=3))
    assert not torch.equal(drawn, small_integers(50, 40, seed=4))


def test_dense_random_has_the_mean_and_deviation_asked_for() -> None:
    drawn = dense_random(200, 200, seed=3, mean=30.0, deviation=0.5)
    assert float(drawn.mean()) == pytest.approx(30.0, abs=0.02)
    assert float(drawn.std()) == pytest.approx(0.5, abs=0.02)


def test_statistics_are_those_of_each_channel() -> None:
    images = dense_random(2, 3, 5, 4, 6, mean=3.0).double()
    mean, variance = statistics_of(images).unbind(-2)
    torch.testing.assert_close(mean[1, 2], images[1, :, 2].mean())
    torch.testing.assert_close(variance[1, 2], images[1, :, 2].var(correction=0))


def test_names_of_cases_are_unique() -> None:
    names = [case.name for case in network_cases()]
    assert len(set(names)) == len(names) == 45


def test_terms_and_shapes_of_a_case() -> None:
    case = ConvCase("case", 3, 4, 5, 6, 3, stride=2, images=7, sets=9, rows=(8, 0, 8), shared=True)
    assert case.input_shape == (1, 7, 3, 5, 6)
    assert case.weight_shape == (9, 4, 3, 3, 3)
    assert case.output_shape == (3, 7, 4, 3, 3)
    assert case.terms == {
        "output": 27,
        "gradient of input": 4 * 9 * 3,
        "gradient of weight": 7 * 9 * 2,
    }
    drawn = case.tensors(small_integers)
    assert drawn["input"].movedim(-3, -1).is_contiguous()
    assert {name: tuple(tensor.shape) for name, tensor in drawn.items()} == {
        "input": case.input_shape,
        "weight": case.weight_shape,
        "rows": (3,),
        "cotangent": case.output_shape,
    }
