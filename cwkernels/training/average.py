"""An average of a network's weights, kept beside them on its device."""

from typing import cast

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cwkernels.networks import SuperNetwork


def make_average(net: SuperNetwork, decay: float) -> AveragedModel | None:
    """An exponential moving average of a network's weights; None for a decay of 0."""
    if not decay:
        return None
    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay))


def averaged_network(average: AveragedModel) -> SuperNetwork:
    """The network whose weights are the average."""
    return cast(SuperNetwork, average.module)


def update_average(average: AveragedModel, net: SuperNetwork) -> None:
    """What ``average.update_parameters(net)`` does, without waiting for a GPU at each step.

    That one copies the number of updates to the device, which this kind of average ignores.
    """
    if average.n_averaged == 0:
        average.update_parameters(net)
        return
    own = averaged_network(average)
    assert average.multi_avg_fn is not None
    with torch.no_grad():
        average.multi_avg_fn(tuple(own.parameters()), tuple(net.parameters()), average.n_averaged)
        for buffer, theirs in zip(own.buffers(), net.buffers(), strict=True):
            buffer.copy_(theirs)
    average.n_averaged += 1
