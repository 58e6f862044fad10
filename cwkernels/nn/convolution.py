"""Convolutions and batch norms, conditional and fixed, as holders of parameters."""

import torch
from torch import Tensor, nn

from cwkernels.nn.bank import Bank, RunningStatistics
from cwkernels.nn.set_map import SetMap


class ConditionalConv(nn.Module):
    """A candidate's convolution with a weight set per combination, and the batch norm behind it.

    Holds banks and running statistics; the cell or layer that it belongs to runs it, by
    `cw.ops.nb201_cell` or `cw.ops.inverted_bottleneck`. Every set starts as `torch.nn.Conv2d`'s and
    `torch.nn.BatchNorm2d`'s defaults.

    Args:
        in_channels, out_channels, kernel_size, groups: as `torch.nn.Conv2d`'s.
        set_map, decision, candidate, capacity: as `Bank`'s.
        norm: "none", "plain" (running statistics only) or "affine" (with scale and shift).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        set_map: SetMap,
        decision: int,
        candidate: str,
        *,
        groups: int = 1,
        capacity: int = 1,
        norm: str = "plain",
    ) -> None:
        super().__init__()
        self.groups = groups
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, groups=groups, bias=False)

        def bank(initial: Tensor, is_norm: bool) -> Bank:
            return Bank(initial, set_map, decision, candidate, capacity=capacity, is_norm=is_norm)

        self.convolution = bank(conv.weight, False)
        self.scale = bank(torch.ones(out_channels), True) if norm == "affine" else None
        self.shift = bank(torch.zeros(out_channels), True) if norm == "affine" else None
        self.statistics = (
            None if norm == "none" else RunningStatistics(out_channels, capacity=capacity)
        )


class FixedConv(nn.Module):
    """A convolution that every architecture shares; `weight` [K, C, R, R] starts as Conv2d's."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=False)
        self.weight = nn.Parameter(conv.weight.detach().clone())


class FixedNorm(nn.Module):
    """An affine batch norm that every architecture shares, each with its own batch statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.statistics = RunningStatistics(channels)

    def used(self, measured: Tensor) -> Tensor:
        """The statistics to normalise by: `measured` [..., 2, C] in training, else running ones.

        Where architectures have rows of their own (`SuperNetwork.separate`) but one batch, that of
        the shared images before the first decision, these rows are all the same.
        """
        if self.training:
            return measured
        running = torch.stack([self.statistics.running_mean, self.statistics.running_var], dim=1)
        return running.expand_as(measured) if measured.dim() > 2 else running[0]

    def affine(self, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
        """What the running statistics make of it in evaluation: [S, C] and [S, C], s and t of
        ``s * y + t``."""
        factors = self.weight * torch.rsqrt(self.statistics.running_var + eps)
        return factors, self.bias - self.statistics.running_mean * factors
