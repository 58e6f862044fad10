"""The NAS-Bench-201 super-network (paper section 3.3, appendix A)."""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from cwkernels import ops
from cwkernels.networks.standalone import NB201Network, cut_nb201
from cwkernels.networks.supernet import (
    ConvNormLayer,
    Recorder,
    Selection,
    SuperNetwork,
    pixel_count,
)
from cwkernels.nn import FixedNorm, NB201Cell, ResidualReduction
from cwkernels.spaces import checks
from cwkernels.spaces.nb201 import EDGES, NB201, NOR_CONV_1X1, NOR_CONV_3X3, SKIP_CONNECT, live

STAGES = 3


@dataclass(frozen=True)
class PlannedSelection(Selection):
    """A selection that only the device knows, resolved there once for all cells."""

    plan: ops.NB201Plan


class NB201SuperNetwork(SuperNetwork):
    """See `cw.networks.nb201`, which makes it."""

    def __init__(
        self,
        space: NB201,
        *,
        channels: int,
        cells_per_stage: int,
        num_classes: int,
        skip_projection: bool,
        count_include_pad: bool,
        reserve: bool,
        dense_grad: bool,
    ) -> None:
        kinds = [(d, code) for d in range(len(EDGES)) for code in (NOR_CONV_1X1, NOR_CONV_3X3)]
        super().__init__(space, reserve=reserve, norms=kinds, edges=EDGES)
        has_skip = any(c.code == SKIP_CONNECT for c in space.decisions[0].candidates)
        self.skip_projection = skip_projection and has_skip
        self.count_include_pad = count_include_pad
        self.stem = ConvNormLayer(3, channels, 3, relu=False)
        self.cells = nn.ModuleList()
        for stage in range(STAGES):
            width = channels << stage
            if stage:
                self.cells.append(ResidualReduction(width // 2, width))
            for _ in range(cells_per_stage):
                cell = NB201Cell(
                    width,
                    self._maps(),
                    self._capacities(),
                    skip_projection=self.skip_projection,
                    count_include_pad=count_include_pad,
                    dense_grad=dense_grad,
                )
                self.cells.append(cell)
        self.head_norm = FixedNorm(width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor, arch: Tensor | Selection) -> Tensor:
        """Logits of images for one architecture or several.

        Args:
            images: [N, 3, H, W], shared by all architectures, or [A, N, 3, H, W].
            arch: int64 [6] or [A, 6], on the CPU or on the device of the images; or what
                `select_on_device` made of it.

        Returns:
            [N, num_classes] or [A, N, num_classes]; inside `torch.autocast` to bfloat16, on a GPU,
            in bfloat16, as all that lies between images and logits is stored then.
        """
        selection, recorder = self._begin(images, arch)
        value, statistics = self._trunk(images, selection, recorder)
        if self.training:
            recorder.write()
        normalized = ops.norm_add(
            value,
            self.head_norm.used(statistics),
            self.head_norm.weight,
            self.head_norm.bias,
            relu=True,
            training=self.training,
        )
        return self.classify(normalized)

    def _measure(self, images: Tensor, selection: Selection, recorder: Recorder) -> None:
        self._trunk(images, selection, recorder)

    def _trunk(
        self, images: Tensor, selection: Selection, recorder: Recorder
    ) -> tuple[Tensor, Tensor]:
        """Stem and cells: the last one's output and its statistics."""
        choices = selection.plan if isinstance(selection, PlannedSelection) else selection.choices
        norm_rows = selection.norm_rows[:-1]
        value: Tensor = self.stem(images, recorder)
        statistics = value  # until a cell has run
        for cell in self.cells:
            if isinstance(cell, NB201Cell):
                value, statistics, measured = cell(value, choices, norm_rows)
                recorder.measurements += measured
            else:
                value, fixed = cell(value)
                for norm, own, count in fixed:
                    recorder.fixed(norm, own, count)
        recorder.fixed(self.head_norm, statistics, pixel_count(value))
        return value, statistics

    def _look_up(self, arch: Tensor) -> PlannedSelection:
        first = next(cell for cell in self.cells if isinstance(cell, NB201Cell))
        archs = arch.reshape(-1, arch.shape[-1])
        plan, norm_rows = first.select(archs, self.maps_on_device(), self._layout)
        choices = plan.selection.reshape(*arch.shape, 2)
        return PlannedSelection(choices, norm_rows, replace(plan, selection=choices))

    def _live(self, codes: Tensor) -> Tensor:
        return live(codes)

    def standalone(self, arch: Tensor) -> NB201Network:
        """A plain torch network of one architecture, with this network's weights.

        It holds no cwkernels inside: stock modules, dead convolutions left out, weights and running
        statistics copied from the rows that the architecture reads.

        Args:
            arch: int64 [6].
        """
        return cut_nb201(self, arch)


def nb201(
    space: NB201,
    *,
    channels: int = 16,
    cells_per_stage: int = 2,
    num_classes: int = 10,
    skip_projection: bool = False,
    count_include_pad: bool = False,
    reserve: bool = False,
    dense_grad: bool = False,
) -> NB201SuperNetwork:
    """The NAS-Bench-201 super-network of the paper (table 2): `net(images, arch)` gives logits.

    Stem conv3x3 and BN; three stages of cells at `channels`, twice and four times that; a fixed
    residual block of stride 2 between stages; BN, ReLU, global average, linear.

    Args:
        space: `cw.spaces.nb201(...)`.
        channels: of the first stage.
        cells_per_stage: 2 in the paper, 5 in the benchmark's own networks.
        num_classes: logits.
        skip_projection: give Skip a bias-free 1x1 convolution: table 2's 782,938 parameters,
            instead of the 718,426 of the paper's text.
        count_include_pad: average pools divide by 9 at the border too (the authors' code).
        reserve: allocate all rows at the start, so that no tensor changes size at a split.
        dense_grad: banks get ordinary gradients, zero for unselected sets, for gradcheck or any
            `torch.optim` optimizer; weight decay and momentum then move unselected sets too.

    Raises:
        TypeError: if `space` is not a NAS-Bench-201 space, or a size not an int.
        ValueError: for a size below 1.
    """
    if not isinstance(space, NB201):
        got = type(space).__name__
        raise TypeError(f"networks.nb201: space: wanted cw.spaces.nb201(...), got {got}")
    operation = "networks.nb201"
    return NB201SuperNetwork(
        space,
        channels=checks.integer(operation, "channels", channels, at_least=1),
        cells_per_stage=checks.integer(operation, "cells_per_stage", cells_per_stage, at_least=1),
        num_classes=checks.integer(operation, "num_classes", num_classes, at_least=1),
        skip_projection=skip_projection,
        count_include_pad=count_include_pad,
        reserve=reserve,
        dense_grad=dense_grad,
    )
