"""Scoring many architectures of a sequential network: what they have in common runs once.

A layer's output, and so the statistics of its batch norms, depends on the choices up to it alone:
on the *prefix*. The prefixes of a chunk of architectures are a tree. Each batch of images walks the
whole tree, depth first, so that a node's layer runs once a batch, and what is kept is one output a
depth and the statistics of every node: for the 6561 architectures of Macro 9840 nodes of at most
27 kB instead of 52,488 layers. A head belongs to its architecture alone.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from cwkernels.networks import MacroSuperNetwork
from cwkernels.networks.supernet import ConvNormLayer, Recorder
from cwkernels.nn import RunningStatistics
from cwkernels.nn.inverted_bottleneck import norm_rows
from cwkernels.nn.measurement import Measurement, update_running
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
    for batch in images.recalibration:
        for _ in tree.run(batch, recalibrate=True):
            pass
    tree.net.train(way.batch_statistics)
    tallies = [Tally() for _ in archs]
    for batch, labels in images.validation:
        for number, logits in tree.run(batch, recalibrate=False):
            tallies[number].add(logits, labels)
    return [tally.score() for tally in tallies]


class _Norms:
    """The batch norms that a part of the network runs after one prefix, and their statistics."""

    def __init__(self) -> None:
        self._own: dict[RunningStatistics, tuple[int, RunningStatistics]] = {}

    def take(self, measurements: list[Measurement], way: Way) -> None:
        """Adds what the part has measured on a batch of one architecture."""
        row = torch.zeros(1, dtype=torch.int64, device="cpu")
        update_running(
            [
                Measurement(self._of(m.target, int(m.rows), way), m.statistics, row, m.count)
                for m in measurements
            ],
            way.momentum,
        )

    def put(self) -> None:
        """Lays the statistics where the part reads them."""
        for target, (row, own) in self._own.items():
            target.running_mean[row] = own.running_mean[0]
            target.running_var[row] = own.running_var[0]

    def _of(self, target: RunningStatistics, row: int, way: Way) -> RunningStatistics:
        if target not in self._own:
            own = RunningStatistics(target.running_mean.shape[1]).to(target.running_mean)
            if not way.reset:
                for mine, stored in zip(own.buffers(), target.buffers(), strict=True):
                    mine[0] = stored[row]
            self._own[target] = row, own
        return self._own[target][1]


class _Node:
    """A prefix: the layer that ends it, int64 [2] of code and row, and what may follow."""

    def __init__(self, selection: Tensor) -> None:
        self.selection = selection
        self.norms = _Norms()
        self.children: dict[int, _Node] = {}


class _Leaf(_Node):
    """A whole architecture, with the head behind it."""

    def __init__(self, selection: Tensor, number: int) -> None:
        super().__init__(selection)
        self.number = number
        self.head = _Norms()


class _Tree:
    """The prefixes of architectures [M, D], and the network that runs them."""

    def __init__(self, net: MacroSuperNetwork, archs: Tensor, way: Way) -> None:
        self.net = net
        self.way = way
        self.stem = _Norms()
        self.children: dict[int, _Node] = {}
        for number, (arch, selection) in enumerate(zip(archs, net.select(archs), strict=True)):
            *choices, last = arch.tolist()
            children = self.children
            for choice, own in zip(choices, selection, strict=False):
                children = children.setdefault(choice, _Node(own)).children
            children[last] = _Leaf(selection[-1], number)

    def run(self, images: Tensor, *, recalibrate: bool) -> Iterator[tuple[int, Tensor]]:
        """Number and logits ``[N, K]`` of each architecture, for images ``[N, 3, H, W]``."""
        value = self._fixed(self.net.stem, images, self.stem, recalibrate)
        yield from self._descend(0, self.children, value, recalibrate)

    def _descend(
        self, depth: int, children: dict[int, _Node], value: Tensor, recalibrate: bool
    ) -> Iterator[tuple[int, Tensor]]:
        layer = self.net.layers[depth]
        for node in children.values():
            run = partial(layer, value, node.selection, norm_rows(node.selection))
            output = self._part(run, node.norms, recalibrate)
            if isinstance(node, _Leaf):
                features = self._fixed(self.net.head, output, node.head, recalibrate)
                yield node.number, self.net.classify(features)
            else:
                yield from self._descend(depth + 1, node.children, output, recalibrate)

    def _fixed(
        self, layer: ConvNormLayer, value: Tensor, norms: _Norms, recalibrate: bool
    ) -> Tensor:
        """Runs stem or head."""

        def run() -> tuple[Tensor, list[Measurement]]:
            recorder = Recorder(torch.zeros(1, dtype=torch.int64, device="cpu"))
            return layer(value, recorder), recorder.measurements

        return self._part(run, norms, recalibrate)

    def _part(
        self, run: Callable[[], tuple[Tensor, list[Measurement]]], norms: _Norms, recalibrate: bool
    ) -> Tensor:
        """Runs a part of the network with the statistics of a prefix, or measures them."""
        if not recalibrate:
            norms.put()
        output, measurements = run()
        if recalibrate:
            norms.take(measurements, self.way)
        return output
