"""The NAS-Bench-Macro layer: identity or an inverted bottleneck."""

import torch
from torch import Tensor, nn

from cwkernels import ops
from cwkernels.nn.convolution import ConditionalConv
from cwkernels.nn.measurement import Measurement, measured_norms
from cwkernels.nn.set_map import SetMap
from cwkernels.ops._bottleneck_plan import PROJECTION
from cwkernels.ops.inverted_bottleneck import statistics_slice
from cwkernels.spaces.macro import BOTTLENECKS, CANDIDATES, IDENTITY, Layer
from cwkernels.spaces.macro import Bottleneck as Shape


def norm_rows(selection: Tensor) -> Tensor:
    """The row of each code's batch norms, [3, A], -1 where another runs; of int64 [2] or [A, 2]."""
    codes, rows = selection.reshape(-1, 2).unbind(-1)
    kinds = torch.arange(len(CANDIDATES), device=codes.device)
    return rows.where(codes == kinds[:, None], -1)


class Bottleneck(nn.Module):
    """The banks of one inverted bottleneck: expand, depthwise, project, each with affine BN."""

    def __init__(
        self,
        layer: Layer,
        shape: Shape,
        set_map: SetMap,
        decision: int,
        candidate: str,
        capacity: int,
    ) -> None:
        super().__init__()
        hidden = layer.in_channels * shape.expansion

        def conv(in_channels: int, out_channels: int, size: int, groups: int) -> ConditionalConv:
            return ConditionalConv(
                in_channels,
                out_channels,
                size,
                set_map,
                decision,
                candidate,
                groups=groups,
                capacity=capacity,
                norm="affine",
            )

        self.expand = conv(layer.in_channels, hidden, 1, 1)
        self.depthwise = conv(hidden, hidden, shape.kernel_size, hidden)
        self.project = conv(hidden, layer.out_channels, 1, 1)


class MacroLayer(nn.Module):
    """One of the eight layers, run by `cw.ops.inverted_bottleneck`.

    Args:
        layer: channels and stride.
        set_map: the index map of this layer's decision.
        decision: its number.
        capacity: the rows to allocate.
        recompute: keep no hidden tensors for backward.
        dense_grad: ordinary gradients of the banks instead of compact ones.
    """

    def __init__(
        self,
        layer: Layer,
        set_map: SetMap,
        decision: int,
        *,
        capacity: int,
        recompute: bool,
        dense_grad: bool,
    ) -> None:
        super().__init__()
        self.stride = layer.stride
        self.recompute = recompute
        self.dense_grad = dense_grad
        for code, shape in BOTTLENECKS.items():
            name = CANDIDATES[code].name
            self.add_module(name, Bottleneck(layer, shape, set_map, decision, name, capacity))
        self.keeps_shape = layer.keeps_shape
        if not layer.keeps_shape:
            name = CANDIDATES[IDENTITY].name
            projection = ConditionalConv(
                layer.in_channels,
                layer.out_channels,
                1,
                set_map,
                decision,
                name,
                capacity=capacity,
                norm="affine",
            )
            self.add_module(name, projection)

        # Gathered once: a step would spend as long on it as on a small kernel.
        self._convolutions = [m for m in self.modules() if isinstance(m, ConditionalConv)]
        self._banks = [conv.convolution for conv in self._convolutions]
        self._scales = [conv.scale for conv in self._convolutions if conv.scale is not None]
        self._shifts = [conv.shift for conv in self._convolutions if conv.shift is not None]
        self._running = [
            conv.statistics for conv in self._convolutions if conv.statistics is not None
        ]
        weights = [bank.weight for bank in self._banks]
        self._slices = [statistics_slice(weights, i) for i in range(len(weights))]

    def convolutions(self) -> list[ConditionalConv]:
        """In the operation's order: three of each bottleneck, then the identity's projection."""
        return self._convolutions

    def forward(
        self, input: Tensor, selection: Tensor, rows: Tensor
    ) -> tuple[Tensor, list[Measurement]]:
        """Runs the layer.

        Args:
            input: [N, C, H, W] or [A, N, C, H, W].
            selection: int64 [2] or [A, 2]: operation code and row; or int32 on the device.
            rows: int64 [3, A], or int32 on the device: the row of each code's batch norms, -1 where
                the architecture does not run them.

        Returns:
            The output and what the batch norms measured.
        """
        read = [] if self.training else self._running
        output, statistics = ops.inverted_bottleneck(
            input,
            selection,
            [bank.weight for bank in self._banks],
            [scale.weight for scale in self._scales],
            [shift.weight for shift in self._shifts],
            [norm.running_mean for norm in read],
            [norm.running_var for norm in read],
            stride=self.stride,
            training=self.training,
            recompute=self.recompute,
            dense_grad=self.dense_grad,
        )
        if not self.training:
            return output, []
        return output, self._measured(input, output, rows, statistics)

    def _measured(
        self, input: Tensor, output: Tensor, rows: Tensor, statistics: Tensor
    ) -> list[Measurement]:
        by_arch = statistics.reshape(-1, *statistics.shape[-2:])
        run = measured_norms(rows)
        measurements = []
        for i, running in enumerate(self._running):
            code = 0 if i == PROJECTION else 1 + i // 3  # whose convolution it is
            if code not in run:
                continue
            expand = i < PROJECTION and i % 3 == 0
            shape = (input if expand else output).shape
            measurements.append(
                Measurement(
                    running,
                    by_arch[..., self._slices[i]],
                    rows[code],
                    shape[-4] * shape[-2] * shape[-1],
                )
            )
        return measurements
