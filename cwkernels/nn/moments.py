"""Running statistics of a 1x1 convolution's output from its input's moments: it never runs."""

import torch
from torch import Tensor

from cwkernels.nn.bank import RunningStatistics
from cwkernels.ops._moments import channel_moments, convolved_moments


def saves_products(input: Tensor, weight: Tensor) -> bool:
    """Whether the output's statistics take fewer products than the output, where it is possible.

    With C channels in, K out and P pixels the moments of the input take C * C * P, their way
    through the weights K * C * C, and the convolution P * C * K.

    Args:
        input: [..., N, C, H, W].
        weight: [K, C, R, R].
    """
    k, c, *size = weight.shape
    possible = size == [1, 1] and input.is_cpu and input.dtype == weight.dtype
    pixels = input.shape[-4] * input.shape[-2] * input.shape[-1]
    return possible and c * c * pixels + k * c * c < pixels * c * k


class RunningMoments:
    """What batches would make of a batch norm's running rows, kept as moments of its input.

    Running statistics are averages over batches, and so linear in a batch's: averaged are mean and
    covariance of the input, which go through the weights once, by `write`.

    Args:
        target: running statistics of the convolution's output, [S, K].
        weight: its weights [K, C, 1, 1].
        momentum: weight of a new batch, or None for the exact average of all that were tracked.
    """

    def __init__(self, target: RunningStatistics, weight: Tensor, momentum: float | None) -> None:
        self._target = target
        self._weight = weight.detach().flatten(1)
        self._momentum = momentum
        rows, channels = len(target.running_mean), weight.shape[1]
        self._tracked: list[int] = target.num_batches_tracked.tolist()
        self._left = [1.0] * rows  # the weight of what the target holds
        self._mean = weight.new_zeros(rows, channels)
        self._covariance = weight.new_zeros(rows, channels, channels)

    @torch.no_grad()
    def update(self, input: Tensor, rows: list[int]) -> None:
        """Adds images [A or 1, N, C, H, W] of A architectures, each to its row, in order."""
        moments = (own.expand(len(rows), *own.shape[1:]) for own in channel_moments(input))
        for mean, covariance, row in zip(*moments, rows, strict=True):
            self._tracked[row] += 1
            factor = 1 / self._tracked[row] if self._momentum is None else self._momentum
            self._mean[row].lerp_(mean, factor)
            self._covariance[row].lerp_(covariance, factor)
            self._left[row] *= 1 - factor

    @torch.no_grad()
    def write(self) -> None:
        """Writes the running rows as all batches so far leave them; nothing may follow."""
        target = self._target
        for row, left in enumerate(self._left):
            mean, variance = convolved_moments(self._weight, self._mean[row], self._covariance[row])
            target.running_mean[row].mul_(left).add_(mean)
            target.running_var[row].mul_(left).add_(variance)
        target.num_batches_tracked.copy_(torch.tensor(self._tracked))
