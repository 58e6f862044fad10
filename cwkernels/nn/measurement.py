"""What a forward pass measured, to be written into running rows in one call."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cwkernels.nn.bank import RunningStatistics
from cwkernels.ops import update_statistics


@dataclass(frozen=True)
class Measurement:
    """The batch statistics of one batch norm.

    Attributes:
        target: the running rows to update.
        statistics: [A, 2, C], mean and biased variance.
        rows: int64 [A] on the CPU, the row of each architecture, -1 where it did not run; or int32
            on the device, as for all of a forward pass.
        count: the values a channel that they were taken over.
    """

    target: RunningStatistics
    statistics: Tensor
    rows: Tensor
    count: int


def measured_norms(rows: Tensor) -> list[int]:
    """Which batch norms any architecture ran, from int64 [L, A], -1 where it did not.

    All of them if only the device knows, or in a graph that is compiled for every architecture.
    """
    if rows.dtype == torch.int32 or torch.compiler.is_compiling():
        return list(range(rows.shape[0]))
    return [i for i, own in enumerate(rows.tolist()) if max(own) >= 0]


def update_running(measurements: list[Measurement], momentum: float | None) -> None:
    """Writes all measurements with `cw.ops.update_statistics`."""
    if not measurements:
        return
    update_statistics(
        [measured.target.running_mean for measured in measurements],
        [measured.target.running_var for measured in measurements],
        [measured.target.num_batches_tracked for measured in measurements],
        [measured.statistics for measured in measurements],
        torch.stack([measured.rows for measured in measurements]),
        [measured.count for measured in measurements],
        momentum=momentum,
    )
