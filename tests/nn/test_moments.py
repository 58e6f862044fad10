"""Statistics of a 1x1 convolution that does not run, from the moments of its input."""

from unittest.mock import patch

import pytest
import torch
from network_cases import archs_of, built_split, images_for, snapshot
from torch import Tensor
from torch.nn import functional as F

import cwkernels as cw
from cwkernels import ops
from cwkernels.ops._moments import channel_moments, convolved_moments
from cwkernels.ops.backend import Backend
from cwkernels.testing.compare import assert_bitwise, assert_close_to_reference, assert_within

LARGE, SMALL = (16, 32), (4, 8)
"""Images and their size: Macro's head sees 256 pixels, and 4, of 64 channels that become 320."""


def direct(images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of the output [N, K, H, W]."""
    variance, mean = torch.var_mean(F.conv2d(images, weight), (0, 2, 3))
    return mean, variance


def correlated(offset: float) -> tuple[Tensor, Tensor]:
    """Images [2, N, C, H, W] whose channels depend on each other, and weights [K, C, 1, 1]."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 8, 5, 5, 48, generator=generator)
    images = pixels @ torch.randn(48, 48, generator=generator) / 7
    images += offset * torch.randn(48, generator=generator)
    return images.movedim(-1, -3), torch.randn(80, 48, 1, 1, generator=generator) / 7


@pytest.mark.parametrize("backend", ["kernels", "reference"])
@pytest.mark.parametrize("offset", [0.0, 3.0, 1000.0])
def test_against_float64(backend: Backend, offset: float) -> None:
    """Also with a mean far from zero, where the variance of the output itself loses digits."""
    images, weight = correlated(offset)
    with cw.backend(backend):
        moments = channel_moments(images)
    for own, mean, covariance in zip(images, *moments, strict=True):
        results = convolved_moments(weight.flatten(1), mean, covariance)
        stock, reference = direct(own, weight), direct(own.double(), weight.double())
        for name, *tensors in zip(("mean", "variance"), results, reference, stock, strict=True):
            assert_close_to_reference(name, *tensors, terms=8 * 5 * 5)


def test_an_architecture_has_the_moments_that_it_has_alone() -> None:
    images, _ = correlated(1.0)
    for together, alone in zip(channel_moments(images), channel_moments(images[1:]), strict=True):
        assert_bitwise("moments", together[1], alone[0])


def test_small_integers() -> None:
    """A mean of zero and 17 pixels: every sum is exact."""
    half = torch.randint(-3, 4, (8, 5), generator=torch.Generator().manual_seed(0)).double()
    pixels = torch.cat([half, -half, torch.zeros(1, 5).double()])
    mean, covariance = channel_moments(pixels.reshape(1, 1, 1, 17, 5).movedim(-1, -3))
    assert not mean.any()
    assert_bitwise("covariance", covariance[0], half.T @ half / 8)


@pytest.mark.parametrize("momentum", [None, 0.25])
@pytest.mark.parametrize("separate", [False, True])
def test_measuring_leaves_what_training_passes_do(momentum: float | None, separate: bool) -> None:
    """Running rows of the head, that all architectures share or that each has of its own."""
    archs = torch.stack(archs_of("macro"))[:3]
    nets = [built_split("macro").double() for _ in range(2)]
    nets = [net.separate(archs) for net in nets] if separate else nets
    count, size = LARGE
    batches = [images_for(count, seed=seed, size=size).double() for seed in range(3)]
    with torch.no_grad():
        for net in nets:
            net.statistics_momentum = momentum
        for images in batches:
            nets[0](images, archs)
        nets[1].measure(batches, archs)
    passes, measured = snapshot(nets[0]), snapshot(nets[1])
    heads = {name for name in passes if name.startswith("head.norm.statistics.running")}
    for name, tensor in passes.items():
        if name in heads:
            assert_within("float64 network", name, measured[name], tensor)
        else:
            assert torch.equal(measured[name], tensor), name
    assert not any(torch.equal(measured[name], passes[name]) for name in heads)


@pytest.mark.parametrize(("size", "calls"), [(LARGE, 1), (SMALL, 2)])
def test_the_head_runs_only_where_that_is_less_work(size: tuple[int, int], calls: int) -> None:
    net = built_split("macro")
    images = images_for(size[0], size=size[1])
    with patch.object(ops, "conv_norm", wraps=ops.conv_norm) as conv_norm:
        net.measure([images], archs_of("macro")[0])
    assert conv_norm.call_count == calls
