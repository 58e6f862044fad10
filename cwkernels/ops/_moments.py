"""Mean and covariance of an image's channels, and of what a 1x1 convolution makes of them."""

import torch
from torch import Tensor

from cwkernels.ops._images import in_channels_last
from cwkernels.ops.backend import current_backend


def channel_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased covariance of the channels over images and pixels.

    Equivalent, for each architecture, to::

        x = images.movedim(-3, -1).flatten(0, -2)  # [P, C]
        return x.mean(0), x.T.cov()

    The sum of products is the gradient of a 1x1 convolution's weights, C * C multiply-adds a pixel
    at the rate of its kernel; each architecture's is bitwise independent of the others.

    Args:
        images: [A, N, C, H, W], float32 or float64, on the CPU.

    Returns:
        [A, C] and [A, C, C]; the covariance of a single pixel is zero.
    """
    last = in_channels_last(images).movedim(-3, -1)
    pixels = last.flatten(1, -2)
    # One at a time: how a sum rounds may depend on what lies beside it.
    mean = torch.stack([own.mean(0) for own in pixels])
    centred = pixels - mean[:, None]
    if current_backend() == "reference":
        products = torch.stack([own.T @ own for own in centred])
    else:
        own = centred.view_as(last).movedim(-1, -3)
        rows = torch.arange(len(images), device="cpu")
        backward_weight = torch.ops.cwkernels.gather_conv_backward_weight
        products = backward_weight(own, own, rows, 1, 1, 1, False)[1].flatten(2)
    return mean, products / max(pixels.shape[1] - 1, 1)


def convolved_moments(weight: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [K] of what a 1x1 convolution makes of channels with these moments.

    Equivalent to ``x @ weight.T`` and its mean and unbiased variance over the pixels: the variance
    is the diagonal of ``weight @ covariance @ weight.T``. Rounding is as of the convolution: by a
    share of the largest products, not of what is left of them where they cancel.

    Args:
        weight: [K, C].
        mean, covariance: [C] and [C, C].
    """
    return weight @ mean, ((weight @ covariance) * weight).sum(1).clamp_min(0)
