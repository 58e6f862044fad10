"""Scoring several architectures side by side in one batch."""

import torch
from torch import Tensor

from cwkernels.networks import SuperNetwork
from cwkernels.nn import RunningStatistics
from cwkernels.ranking.images import ScoringImages
from cwkernels.ranking.options import Way
from cwkernels.ranking.tally import Score, Tally


@torch.no_grad()
def score_together(
    net: SuperNetwork, archs: Tensor, images: ScoringImages, way: Way
) -> list[Score]:
    """Scores architectures ``[A, D]``, no two the same, on shared images.

    They run on a copy of the network in which each has weight sets and statistics of its own, so
    that recalibrating one does not touch the others or the network.
    """
    own = net.separate(archs)
    if way.reset:
        for module in own.modules():
            if isinstance(module, RunningStatistics):
                module.reset()
    own.statistics_momentum = way.momentum
    own.train()
    own.measure(images.recalibration, archs)
    own.train(way.batch_statistics)
    tallies = [Tally() for _ in archs]
    for batch, labels in images.validation:
        for tally, logits in zip(tallies, own.predict(batch, archs), strict=True):
            tally.add(logits, labels)
    return [tally.score() for tally in tallies]
