"""Small networks, data and architectures that the tests of the ranking share."""

from functools import cache
from typing import Any

import torch
from network_cases import Network, built_split
from torch import Tensor

import cwkernels as cw
from cwkernels.nn import RunningStatistics
from cwkernels.ranking import RankingOptions, Scores


@cache
def data() -> cw.data.Batches:
    """48 validation images, and training batches of 16."""
    images = cw.data.generate_cifar10(400, 10)
    return cw.data.Batches(images, seed=0, batch_size=16, validation=48)


def trained(name: str) -> Network:
    """A split network whose batch norms have seen batches, so that forgetting them matters."""
    net = built_split(name)
    for module in net.modules():
        if isinstance(module, RunningStatistics):
            module.num_batches_tracked.fill_(7)
    return net


def options(**changed: Any) -> RankingOptions:
    """Three batches and a last validation batch that is not full."""
    return RankingOptions(**{"batches": 3, "images": 40, **changed})


def archs_of(net: Any, count: int = 7) -> Tensor:
    """Random architectures, those of the network's own cases, and a repeated one."""
    generator = torch.Generator().manual_seed(1)
    drawn = net.space.sample(count, generator=generator)
    return torch.cat([drawn, drawn[:1]])


def assert_same_scores(scores: Scores, expected: Scores) -> None:
    """Bitwise: a loss has more digits than an accuracy, and shows more."""
    assert torch.equal(scores.archs, expected.archs)
    assert torch.equal(scores.loss, expected.loss)
    assert torch.equal(scores.accuracy, expected.accuracy)
