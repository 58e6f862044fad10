"""Scoring many architectures of a sequential network: what they have in common runs once.

A layer's output, and so the statistics of its batch norms, depends on the choices up to it alone:
on the *prefix*. The prefixes of a chunk of architectures are a tree. Each batch of images walks the
whole tree, depth first; the choices that may follow a prefix run side by side in one call, as their
input is the same. So a layer runs once a prefix and batch, and what is kept is three outputs a
depth and the statistics of every prefix: for the 6561 architectures of Macro 9840 of at most 27 kB
instead of 52,488 layers. A head belongs to its architecture alone.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from cwkernels.networks import MacroSuperNetwork
from cwkernels.networks.supernet import ConvNormLayer, Recorder
from cwkernels.nn import RunningStatistics
from cwkernels.nn.inverted_bottleneck import norm_rows
from cwkernels.nn.measurement import Measurement
from cwkernels.nn.moments import RunningMoments
from cwkernels.ops import update_statistics
from cwkernels.ranking.images import ScoringImages
from cwkernels.ranking.options import Way
from cwkernels.ranking.tally import Score, Tally


def layer_runs(archs: Tensor) -> int:
    """How many layers a batch runs for architectures ``[M, D]``: their prefixes of every length."""
    depths = range(1, archs.shape[1] + 1)
    return sum(len(torch.unique(archs[:, :depth], dim=0)) for depth in depths)


@torch.no_grad()
def score_by_prefix(
    net: MacroSuperNetwork, archs: Tensor, images: ScoringImages, way: Way
) -> list[Score]:
    """Scores architectures ``[M, 8]``, no two the same; the network is left alone."""
    tree = _Tree(copy.deepcopy(net), archs, way)
    tree.net.train()
    tree.recalibrate(images.recalibration)
    tree.net.train(way.batch_statistics)
    tallies = [Tally() for _ in archs]
    for batch, labels in images.validation:
        for number, logits in tree.logits(batch):
            tallies[number].add(logits, labels)
    return [tally.score() for tally in tallies]


def _own(statistics: RunningStatistics, way: Way, rows: int = 1, row: int = 0) -> RunningStatistics:
    """Statistics to recalibrate, each row a copy of one, or where nothing was tracked."""
    own = RunningStatistics(statistics.running_mean.shape[1], capacity=rows)
    own.to(statistics.running_mean)
    if not way.reset:
        for mine, stored in zip(own.buffers(), statistics.buffers(), strict=True):
            mine.copy_(stored[row].expand_as(mine))
    return own


class _LayerNorms:
    """The batch norms that a layer runs after one prefix, each in one of the choices."""

    def __init__(self) -> None:
        self._own: list[RunningStatistics] = []
        self._rows: Tensor  # which of the choices runs each batch norm: 0 where it does, else -1
        self._places: list[tuple[Tensor, Tensor]] = []  # where a layer reads, and what

    def take(self, measurements: list[Measurement], way: Way) -> None:
        """Adds what the layer has measured on a batch: the same batch norms each time."""
        if not measurements:
            return
        if not self._own:
            self._begin(measurements, way)
        update_statistics(
            [own.running_mean for own in self._own],
            [own.running_var for own in self._own],
            [own.num_batches_tracked for own in self._own],
            [m.statistics for m in measurements],
            self._rows,
            [m.count for m in measurements],
            momentum=way.momentum,
        )

    def _begin(self, measurements: list[Measurement], way: Way) -> None:
        self._rows = torch.stack([m.rows for m in measurements]).clamp(max=0)
        for m in measurements:
            row = int(m.rows.max())
            own = _own(m.target, way, row=row)
            self._own.append(own)
            self._places += [
                (m.target.running_mean[row], own.running_mean[0]),
                (m.target.running_var[row], own.running_var[0]),
            ]

    def put(self) -> None:
        """Lays the statistics where the layer reads them."""
        for place, own in self._places:
            place.copy_(own)


class _Fork:
    """The choices that follow a prefix, side by side.

    Attributes:
        numbers: for each choice, one of the architectures that have it.
        selection: int64 [A, 2], code and row of each choice.
        norm_rows: int64 [3, A], the rows of their batch norms.
        norms: those of the layer.
        forks: what follows each choice; nothing after the last layer.
    """

    def __init__(self, archs: Tensor, selections: Tensor, numbers: Tensor, depth: int = 0) -> None:
        choices = archs[numbers, depth]
        members = [numbers[choices == choice] for choice in choices.unique()]
        self.numbers = [int(own[0]) for own in members]
        self.selection = selections[self.numbers, depth]
        self.norm_rows = norm_rows(self.selection)
        self.norms = _LayerNorms()
        last = depth + 1 == archs.shape[1]
        self.forks = [] if last else [_Fork(archs, selections, own, depth + 1) for own in members]


class _Tree:
    """The prefixes of architectures [M, D], and the network that runs them."""

    def __init__(self, net: MacroSuperNetwork, archs: Tensor, way: Way) -> None:
        self.net = net
        self.way = way
        self.root = _Fork(archs, net.select(archs), torch.arange(len(archs)))
        self.stem = _own(net.stem.norm.statistics, way)
        self._stored = net.head.norm.statistics
        self._heads: dict[_Fork, RunningStatistics] = {}

    def recalibrate(self, batches: list[Tensor]) -> None:
        """Adds batches [N, 3, H, W] to the statistics of every prefix and every architecture."""
        moments: dict[RunningStatistics, RunningMoments] = {}
        for images in batches:
            for fork, output in self._outputs(images, recalibrate=True):
                recorder = self._at_head(fork)
                recorder.moments = moments
                self.net.head.measure(output, recorder)
                recorder.write()
        for own in moments.values():
            own.write()

    def logits(self, images: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Number and logits [N, K] of each architecture, for images [N, 3, H, W]."""
        for fork, output in self._outputs(images, recalibrate=False):
            logits = self.net.finish(output, self._at_head(fork))
            yield from zip(fork.numbers, logits, strict=True)

    def _outputs(self, images: Tensor, *, recalibrate: bool) -> Iterator[tuple[_Fork, Tensor]]:
        """The last layer's [A, N, C, H, W] after each prefix."""
        recorder = self._reading(self.net.stem, self.stem)
        value = self.net.stem(images, recorder)
        if recalibrate:
            recorder.write()
        yield from self._descend(0, self.root, value, recalibrate)

    def _descend(
        self, depth: int, fork: _Fork, value: Tensor, recalibrate: bool
    ) -> Iterator[tuple[_Fork, Tensor]]:
        if not recalibrate:
            fork.norms.put()
        output, measurements = self.net.layers[depth](value, fork.selection, fork.norm_rows)
        if recalibrate:
            fork.norms.take(measurements, self.way)
        if not fork.forks:
            yield fork, output
            return
        for behind, own in zip(fork.forks, output, strict=True):
            yield from self._descend(depth + 1, behind, own, recalibrate)

    def _at_head(self, fork: _Fork) -> Recorder:
        if fork not in self._heads:
            self._heads[fork] = _own(self._stored, self.way, rows=len(fork.numbers))
        return self._reading(self.net.head, self._heads[fork])

    def _reading(self, layer: ConvNormLayer, statistics: RunningStatistics) -> Recorder:
        """Lets a layer read other statistics, and records for these."""
        layer.norm.statistics = statistics
        rows = torch.zeros(len(statistics.running_mean), dtype=torch.int64, device="cpu")
        return Recorder(rows, self.way.momentum)
