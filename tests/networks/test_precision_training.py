"""Winograd's rounding does not show in training: the loss curves of both precisions agree."""

from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import cwkernels as cw
from cwkernels.ops.precision import Precision

STEPS, BATCH, WINDOW = 300, 32, 50
SEEDS = range(5)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@cache
def images_and_labels() -> tuple[Tensor, Tensor]:
    """Generated images of 8x8 pixels: 128, 32 and 32 tiles of 4x4 a batch in the three stages."""
    data = cw.data.generate_cifar10(2000, 1)
    images = data.train_images[..., ::4, ::4].float()
    return (images - images.mean()) / images.std(), data.train_labels


@cache
def losses(seed: int, precision: Precision, factor: float = 1.0) -> Tensor:
    """The loss of each step; weights, batches and architectures are those of the seed.

    Args:
        seed: of everything.
        precision: of convolutions.
        factor: multiplies all gradients, as no right kernel does.
    """
    images, labels = images_and_labels()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = cw.networks.nb201(cw.spaces.nb201("full"), channels=16, cells_per_stage=1)
    # At 0.025 the two runs of a seed part, late, by half of what seeds do, as any two that round
    # differently: it would be the learning rate that the test sees.
    optimizer = cw.optim.SGD(net, lr=0.01)
    curve = torch.empty(STEPS)
    with cw.float32_conv_precision(precision):
        for step in range(STEPS):
            chosen = torch.randint(len(images), (BATCH,), generator=generator)
            arch = net.space.sample(1, generator=generator)[0]
            loss = F.cross_entropy(net(images[chosen], arch), labels[chosen])
            optimizer.zero_grad()
            (factor * loss).backward()
            optimizer.step()
            curve[step] = loss.detach()
    return curve


def smoothed(curve: Tensor) -> Tensor:
    """The mean of each window."""
    return curve.reshape(-1, WINDOW).mean(dim=1)


def spread() -> Tensor:
    """How far the seeds lie apart in each window, at "highest"."""
    curves = torch.stack([smoothed(losses(seed, "highest")) for seed in SEEDS])
    return curves.amax(dim=0) - curves.amin(dim=0)


def test_the_runs_differ_and_learn() -> None:
    high, highest = losses(0, "high"), losses(0, "highest")
    assert not torch.equal(high, highest)
    assert smoothed(highest)[-1] < smoothed(highest)[0] / 2
    assert smoothed(high)[-1] < smoothed(high)[0] / 2


@pytest.mark.parametrize("seed", SEEDS)
def test_loss_curves_are_equal_within_the_spread_of_seeds(seed: int) -> None:
    difference = smoothed(losses(seed, "high")) - smoothed(losses(seed, "highest"))
    assert (difference.abs() <= spread()).all(), (difference, spread())


def test_gradients_of_half_their_size_would_show() -> None:
    difference = smoothed(losses(0, "high", factor=0.5)) - smoothed(losses(0, "highest"))
    assert (difference.abs() > spread()).sum() >= 3, (difference, spread())
