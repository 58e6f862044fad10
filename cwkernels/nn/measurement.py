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
        rows: int64 [A] on the CPU, the row of each architecture, -1 where it did not run.
        count: the values a channel that they were taken over.
    """

    target: RunningStatistics
    statistics: Tensor
    rows: Tensor
    count: int


def update_running(measurements: list[Measurement], momentum: float | None) -> None:
    """Writes all measurements with `cw.ops.update_statistics`."""
    # Fewer to hand over; a graph that is compiled for every architecture hands over all.
    compiling = torch.compiler.is_compiling()
    selected = [m for m in measurements if compiling or int(m.rows.max()) >= 0]
    if not selected:
        return
    update_statistics(
        [measured.target.running_mean for measured in selected],
        [measured.target.running_var for measured in selected],
        [measured.target.num_batches_tracked for measured in selected],
        [measured.statistics for measured in selected],
        torch.stack([measured.rows for measured in selected]),
        [measured.count for measured in selected],
        momentum=momentum,
    )
