"""What a NAS-Bench-Macro layer may run: its operation codes, and the shapes of its banks."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

IDENTITY, K3_E3, K5_E6 = range(3)
NUM_CODES = 3
PROJECTION = 6  # the place of a strided identity's bank, after three of each bottleneck


def bank_shapes(weights: Sequence[Tensor]) -> list[tuple[int, ...]]:
    """The shapes that go with sets, channels and kernel sizes of `weights`; 7 of them."""
    sets, _, in_channels = weights[0].shape[:3]
    out_channels = weights[2].shape[1]
    shapes: list[tuple[int, ...]] = []
    for expand, depthwise in ((weights[0], weights[1]), (weights[3], weights[4])):
        hidden, size = expand.shape[1], depthwise.shape[-1]
        shapes += [
            (sets, hidden, in_channels, 1, 1),
            (sets, hidden, 1, size, size),
            (sets, out_channels, hidden, 1, 1),
        ]
    return [*shapes, (sets, out_channels, in_channels, 1, 1)]


def statistics_slice(weights: Sequence[Tensor], bank: int) -> slice:
    """Where the statistics of a bank's output lie in the last dimension that the layer returns.

    The layout is [expanded | depthwise | projected], as wide as the largest candidate needs.
    """
    hidden = _hidden(weights)
    place = 2 if bank == PROJECTION else bank % 3
    return slice(place * hidden, place * hidden + weights[bank].shape[1])


@dataclass(frozen=True)
class Convolution:
    """One convolution of a candidate; `relu`: behind its batch norm."""

    bank: int
    stride: int
    groups: int
    relu: bool


def chain_of(code: int, weights: Sequence[Tensor], stride: int) -> list[Convolution]:
    """The convolutions that a choice runs; none for a plain identity."""
    if code == IDENTITY:
        return [Convolution(PROJECTION, stride, 1, False)] if len(weights) > PROJECTION else []
    first = (code - K3_E3) * 3
    return [
        Convolution(first, 1, 1, True),
        Convolution(first + 1, stride, weights[first + 1].shape[1], True),
        Convolution(first + 2, 1, 1, False),
    ]


def has_residual(code: int, weights: Sequence[Tensor], stride: int) -> bool:
    """Whether the input is added to the output: a bottleneck that keeps the shape."""
    return code != IDENTITY and stride == 1 and weights[2].shape[1] == weights[0].shape[2]


def statistics_width(weights: Sequence[Tensor]) -> int:
    """The last dimension of the statistics that the layer returns."""
    return 2 * _hidden(weights) + weights[2].shape[1]


def most_kept(shape: Sequence[int], weights: Sequence[Tensor], stride: int, recompute: bool) -> int:
    """The most elements that an architecture of images [A, N, C, H, W] keeps for backward."""
    _, n, _, height, width = shape
    output_pixels = n * ((height - 1) // stride + 1) * ((width - 1) // stride + 1)
    hidden_pixels = 0 if recompute else n * height * width + output_pixels
    return hidden_pixels * _hidden(weights) + output_pixels * weights[2].shape[1]


def _hidden(weights: Sequence[Tensor]) -> int:
    return max(weights[0].shape[1], weights[3].shape[1])
