"""The one table of tolerances, with the reason for each row."""

from collections.abc import Mapping
from typing import NamedTuple

import torch


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
}
"""The one table of tolerances."""

LEAST_NONZERO = 0.1
"""A reference with a smaller share of elements that are not zero proves nothing."""
