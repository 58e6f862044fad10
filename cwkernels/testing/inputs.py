"""What operations are called with: small integers, random numbers, layouts."""

from typing import Protocol

import torch
from torch import Tensor

from cwkernels.ops._dtypes import parameter_dtype


def channels_last(images: Tensor) -> Tensor:
    """The same images [..., C, H, W], channels-last in memory."""
    return images.movedim(-3, -1).contiguous().movedim(-1, -3)


class Draw(Protocol):
    """Draws a float32 tensor of a shape."""

    def __call__(self, *shape: int, seed: int) -> Tensor:
        """The tensor, contiguous."""


def small_integers(*shape: int, seed: int = 0) -> Tensor:
    """-2, -1, 1 or 2, float32: sums of products are exact in any order, and no factor is zero."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.randint(1, 3, shape, generator=generator)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (magnitude * sign).float()


def dense_random(*shape: int, seed: int = 0, mean: float = 0.0, deviation: float = 1.0) -> Tensor:
    """Normal numbers, float32. A mean far from zero is where E[x²] - E[x]² goes wrong."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * deviation + mean


def statistics_of(images: Tensor) -> Tensor:
    """Mean and biased variance of each channel: [..., N, C, H, W] to [..., 2, C].

    Of images in bfloat16 they are float32.
    """
    doubles, pixels = images.detach().double(), (-4, -2, -1)
    mean = doubles.mean(pixels, keepdim=True)
    # Not torch.var_mean, which warns where there are no images.
    variance = (doubles - mean).square().mean(pixels)
    return torch.stack([mean[..., 0, :, 0, 0], variance], dim=-2).to(parameter_dtype(images.dtype))
