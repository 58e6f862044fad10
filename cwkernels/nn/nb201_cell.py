"""The NAS-Bench-201 cell and the residual reduction between its stages."""

from collections.abc import Sequence

from torch import Tensor, nn

from cwkernels import ops
from cwkernels.nn.bank import RunningStatistics
from cwkernels.nn.convolution import ConditionalConv, FixedConv, FixedNorm
from cwkernels.nn.measurement import Measurement, measured_norms
from cwkernels.nn.set_map import SetMap
from cwkernels.spaces.nb201 import CANDIDATES, EDGES, NOR_CONV_1X1, NOR_CONV_3X3, SKIP_CONNECT

_CONVOLUTIONS = {NOR_CONV_1X1: 1, NOR_CONV_3X3: 3}


class MixedEdge(nn.Module):
    """The weighted candidates of one edge, by name: ReLU → convolution → batch norm, not affine."""

    def __init__(
        self,
        channels: int,
        set_map: SetMap,
        decision: int,
        *,
        skip_projection: bool,
        capacity: int,
    ) -> None:
        super().__init__()
        for code, kernel_size in _CONVOLUTIONS.items():
            name = CANDIDATES[code].name
            conv = ConditionalConv(
                channels, channels, kernel_size, set_map, decision, name, capacity=capacity
            )
            self.add_module(name, conv)
        if skip_projection:
            name = CANDIDATES[SKIP_CONNECT].name
            projection = ConditionalConv(
                channels, channels, 1, set_map, decision, name, capacity=capacity, norm="none"
            )
            self.add_module(name, projection)

    def convolutions(self) -> list[ConditionalConv]:
        """1x1, 3x3 and, if there is one, the skip's projection."""
        return [conv for conv in self.children() if isinstance(conv, ConditionalConv)]


class NB201Cell(nn.Module):
    """A cell of six mixed edges, run by `cw.ops.nb201_cell`.

    Args:
        channels: C, of input and output.
        set_maps: the index map of each decision.
        capacities: the rows to allocate for each decision.
        skip_projection: give Skip a bias-free 1x1 convolution (table 2 of the paper).
        count_include_pad: whether the average pool divides by 9 at the border too.
        dense_grad: ordinary gradients of the banks instead of compact ones.
    """

    def __init__(
        self,
        channels: int,
        set_maps: Sequence[SetMap],
        capacities: Sequence[int],
        *,
        skip_projection: bool,
        count_include_pad: bool,
        dense_grad: bool,
    ) -> None:
        super().__init__()
        self.count_include_pad = count_include_pad
        self.dense_grad = dense_grad
        for decision, (source, target) in enumerate(EDGES):
            edge = MixedEdge(
                channels,
                set_maps[decision],
                decision,
                skip_projection=skip_projection,
                capacity=capacities[decision],
            )
            self.add_module(f"edge_{source}_{target}", edge)
        # Gathered once: a step would spend as long on it as on a small kernel.
        self._convolutions = [
            edge.convolutions() for edge in self.children() if isinstance(edge, MixedEdge)
        ]
        self._banks = [conv.convolution for edge in self._convolutions for conv in edge]
        self._running = [
            conv.statistics
            for edge in self._convolutions
            for conv in edge
            if conv.statistics is not None
        ]

    def convolutions(self) -> list[list[ConditionalConv]]:
        """For each edge: 1x1, 3x3 and, if there is one, the skip's projection."""
        return self._convolutions

    def running_statistics(self) -> list[RunningStatistics]:
        """The batch norms edge by edge: 1x1, 3x3."""
        return self._running

    def select(
        self, arch: Tensor, maps: Sequence[Tensor], layout: ops.SelectLayout
    ) -> tuple[ops.NB201Plan, Tensor]:
        """What architectures on the device run: `ops.nb201_select` for all cells of this kind."""
        rows = [edge[0].convolution.weight.shape[0] for edge in self._convolutions]
        return ops.nb201_select(arch, maps, layout, rows, len(self._convolutions[0]))

    def forward(
        self, input: Tensor, selection: Tensor | ops.NB201Plan, rows: Tensor
    ) -> tuple[Tensor, Tensor, list[Measurement]]:
        """Runs the cell.

        Args:
            input: [N, C, H, W] or [A, N, C, H, W].
            selection: int64 [6, 2] or [A, 6, 2]: operation code and row of each edge; or the
                plan that `select` made.
            rows: int64 [12, A], or int32 on the device: the row of each batch norm that runs, else
                -1.

        Returns:
            The output, its statistics [..., 2, C], and what the batch norms measured in training.
        """
        read = [] if self.training else self._running
        output, statistics, output_statistics = ops.nb201_cell(
            input,
            selection,
            [bank.weight for bank in self._banks],
            [norm.running_mean for norm in read],
            [norm.running_var for norm in read],
            training=self.training,
            count_include_pad=self.count_include_pad,
            dense_grad=self.dense_grad,
        )
        if not self.training:
            return output, output_statistics, []
        by_edge = statistics.reshape(-1, *statistics.shape[-3:])
        count = input.shape[-4] * input.shape[-2] * input.shape[-1]
        measurements = [
            Measurement(self._running[i], by_edge[:, i // 2], rows[i], count)
            for i in measured_norms(rows)
        ]
        return output, output_statistics, measurements


class ResidualReduction(nn.Module):
    """The fixed block between stages: half the size, twice the channels.

    ReLU, conv3x3 of stride 2, BN, ReLU, conv3x3, BN; the shortcut from the raw input is an average
    pool 2x2 and a conv1x1. Batch norms are affine.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_a = FixedConv(in_channels, out_channels, 3)
        self.norm_a = FixedNorm(out_channels)
        self.conv_b = FixedConv(out_channels, out_channels, 3)
        self.norm_b = FixedNorm(out_channels)
        self.shortcut = FixedConv(in_channels, out_channels, 1)

    def forward(self, input: Tensor) -> tuple[Tensor, list[tuple[FixedNorm, Tensor, int]]]:
        """The output and, for each batch norm, what it measured over how many values."""
        a, measured_a, shortcut = ops.reduction_conv(
            input, self.conv_a.weight, self.shortcut.weight
        )
        b, measured_b = ops.conv_norm(
            a,
            self.conv_b.weight,
            self.norm_a.used(measured_a),
            self.norm_a.weight,
            self.norm_a.bias,
            relu=True,
            training=self.training,
        )
        output = ops.norm_add(
            b,
            self.norm_b.used(measured_b),
            self.norm_b.weight,
            self.norm_b.bias,
            shortcut,
            training=self.training,
        )
        count = b.shape[-4] * b.shape[-2] * b.shape[-1]
        return output, [(self.norm_a, measured_a, count), (self.norm_b, measured_b, count)]
