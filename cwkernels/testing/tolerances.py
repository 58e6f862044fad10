"""The one table of tolerances: no other file says how close is close enough."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch

from cwkernels.ops.precision import Precision
from cwkernels.testing.devices import Processor


class Tolerance(NamedTuple):
    """How far from the float64 reference a tensor may be: the larger of two bounds."""

    stock: float
    """Times stock torch's own error."""
    floor: float
    """Times the dtype's epsilon and the square root of the number of terms of a sum."""


TOLERANCES: Mapping[torch.dtype, Tolerance] = {
    torch.float32: Tolerance(stock=2.0, floor=1.0),
    # The reference rounds as much as what is compared with it.
    torch.float64: Tolerance(stock=2.0, floor=4.0),
    # Sums have float32's precision, and what is stored is rounded by at most 2^-8, half of epsilon:
    # the norm of that error is 1.6e-3 of the tensor's.
    torch.bfloat16: Tolerance(stock=2.0, floor=0.5),
}
"""An operation against the same in float64, beside stock torch: `assert_close_to_reference`."""

Rounding = Precision | Literal["bf16"]
"""How precisely a convolution computes: float32's precisions, or activations stored as bfloat16."""

CONVOLUTION_ERRORS: Mapping[tuple[Processor, Rounding], float] = {
    # Winograd's F(4x4, 3x3) adds and subtracts inputs and products with factors up to 3.4, which
    # enlarges rounding: 5e-7 to 1e-6 for 16 to 128 channels. The rest is room for other data.
    ("cpu", "high"): 2e-5,
    ("cpu", "highest"): 0.0,
    # tf32: both factors are rounded to 11 bits, 3e-4 of a sum of random products for any number of
    # channels.
    ("gpu", "high"): 1e-3,
    ("gpu", "highest"): 0.0,
    # What lies between two operations, or two passes of one, is rounded by 2^-8 at most, by 1.6e-3
    # of a tensor's norm, beside tf32's errors of normalised values and weights.
    ("gpu", "bf16"): 2**-8,
}
"""The relative error of a tensor that a convolution may have beyond `TOLERANCES`."""

FLIPPED_SHARE = 0.8
"""Of normal numbers, the share that changes sign by a relative error, for each unit of that error.

A ReLU passes a gradient where it should not, or the reverse, where what it rectified was nearer to
zero than its error: of 1e-3, 8e-4 of all elements, an error of the gradient's norm of 2.8e-2.
"""

CELL_CONVOLUTIONS = 6
"""A cell's longest path has three convolutions; a gradient goes through them forward and back."""


class Allowance(NamedTuple):
    """How far apart the elements of two results may be that nothing more exact is known of."""

    relative: float
    absolute: float


ALLOWANCES: Mapping[str, Allowance] = {
    # Two or three roundings of values around 1, which are 6e-8 each; a few updates in a row.
    "float32 update": Allowance(1e-6, 1e-6),
    # The same sums in another order, through every layer; batch norms of nearly constant channels
    # enlarge what a layer before them rounds.
    "float32 network": Allowance(1e-4, 1e-5),
    # The same again, where 2e9 times less is rounded, and four steps of an optimizer.
    "float64 network": Allowance(1e-8, 1e-11),
    # Values up to 2.7 are rounded by 1.2e-7; a conversion and two operations stay below this.
    "float32 images": Allowance(0.0, 1e-6),
}
"""Two ways to the same numbers, by what they compute: `assert_within`."""

LEAST_NONZERO = 0.1
"""A reference with a smaller share of elements that are not zero proves nothing."""
