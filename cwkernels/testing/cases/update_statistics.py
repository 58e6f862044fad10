"""Cases of `cw.ops.update_statistics`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cwkernels import ops
from cwkernels.spaces.macro import HEAD, K5_E6, LAYERS, STEM, convolutions
from cwkernels.testing.cases.call import Call
from cwkernels.testing.functions import Function, Tensors
from cwkernels.testing.inputs import dense_random

MOMENTUM = 0.1
GROUPS = ("running_mean", "running_var", "statistics")


@dataclass(frozen=True)
class Norm:
    """The running statistics of one batch norm, and the row that an architecture updates.

    Attributes:
        sets: rows.
        channels: of each row.
        row: the one that is updated.
        count: values a channel that were averaged.
    """

    sets: int
    channels: int
    row: int
    count: int


@dataclass(frozen=True)
class Case:
    """One step of one architecture."""

    name: str
    norms: tuple[Norm, ...]

    @property
    def rows(self) -> Tensor:
        """[norms, 1]."""
        return torch.tensor([[norm.row] for norm in self.norms])

    @property
    def counts(self) -> list[int]:
        """Of each batch norm."""
        return [norm.count for norm in self.norms]


def inputs_of(case: Case) -> dict[str, Tensor]:
    """ "running_mean[i]", "running_var[i]" and "statistics[i]", none of them near zero."""
    inputs = {}
    for i, norm in enumerate(case.norms):
        shapes = ((norm.sets, norm.channels), (norm.sets, norm.channels), (1, 2, norm.channels))
        for number, (group, shape) in enumerate(zip(GROUPS, shapes, strict=True)):
            inputs[f"{group}[{i}]"] = dense_random(*shape, seed=3 * i + number).abs() + 0.5
    return inputs


def run(case: Case) -> Function:
    """The operation, on copies of the running statistics."""

    def function(tensors: Tensors) -> Tensors:
        means, variances, statistics = (_group(case, tensors, group) for group in GROUPS)
        batches = [torch.ones(norm.sets, dtype=torch.int64) for norm in case.norms]
        ops.update_statistics(
            *(means, variances, batches, statistics),
            case.rows,
            case.counts,
            momentum=MOMENTUM,
        )
        return _named(means, variances)

    return function


def stock(case: Case) -> Function:
    """What `BatchNorm2d` does, with stock torch, batch norm by batch norm, on copies, too."""

    def function(tensors: Tensors) -> Tensors:
        means, variances, statistics = (_group(case, tensors, group) for group in GROUPS)
        for norm, mean, variance, measured in zip(
            case.norms, means, variances, statistics, strict=True
        ):
            mean[norm.row].lerp_(measured[0, 0], MOMENTUM)
            unbiased = measured[0, 1] * (norm.count / (norm.count - 1))
            variance[norm.row].lerp_(unbiased, MOMENTUM)
        return _named(means, variances)

    return function


def network_calls(images: int) -> list[Call]:
    """All batch norms of one split network, in an architecture that runs as many as it can."""
    return [
        _call(Case("nb201", tuple(_nb201(images)))),
        _call(Case("macro", tuple(_macro(images)))),
    ]


def _nb201(images: int) -> list[Norm]:
    norms = [Norm(1, 16, 0, images * 32 * 32), Norm(1, 64, 0, images * 8 * 8)]
    for channels, side in ((16, 32), (32, 16), (64, 8)):
        count = images * side * side
        cell = [Norm(sets, channels, sets - 1, count) for sets in (1, 1, 5, 1, 5, 25)]
        reduction = [Norm(1, channels, 0, count)] * 2 if channels > 16 else []
        norms += [*cell, *cell, *reduction]
    return norms


def _macro(images: int) -> list[Norm]:
    norms = [Norm(1, c.out_channels, 0, images * c.output_size**2) for c in (STEM, HEAD)]
    for number, layer in enumerate(LAYERS):
        sets = 3 if number else 1
        for conv in convolutions(layer, K5_E6):
            norms.append(Norm(sets, conv.out_channels, sets - 1, images * conv.output_size**2))
    return norms


def _call(case: Case) -> Call:
    inputs = partial(inputs_of, case)
    return Call("update_statistics", case.name, run(case), stock(case), inputs, dict, {"": 1})


def _group(case: Case, tensors: Tensors, group: str) -> list[Tensor]:
    return [tensors[f"{group}[{i}]"].detach().clone() for i in range(len(case.norms))]


def _named(means: Sequence[Tensor], variances: Sequence[Tensor]) -> dict[str, Tensor]:
    pairs = zip(GROUPS[:2], (means, variances), strict=True)
    return {f"{group}[{i}]": tensor for group, own in pairs for i, tensor in enumerate(own)}
