"""What a NAS-Bench-Macro layer may run: its operation codes, and the shapes of its banks."""

from collections.abc import Sequence

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
