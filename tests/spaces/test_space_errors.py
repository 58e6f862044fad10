"""Bad arguments of every method of a space: one line with operation, argument, wanted, got."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import cwkernels as cw

SPACE: Any = cw.spaces.nb201("full")  # Any, for the arguments here are wrong on purpose


class OnAnotherDevice(torch.Generator):
    device = torch.device("cuda")


ARCH = torch.zeros(6, dtype=torch.int64)
TOO_HIGH = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 5, 0, 0, 0, 0]])
OF_ARCH: dict[str, Callable[..., object]] = {
    "check": SPACE.check,
    "index": SPACE.index,
    "codes": SPACE.codes,
    "live": SPACE.live,
    "format": SPACE.format,
    "combination": lambda arch: SPACE.combination(arch, 2),
}


@pytest.mark.parametrize("name", OF_ARCH)
@pytest.mark.parametrize(
    ("arch", "error", "wanted_and_got"),
    [
        ([0] * 6, TypeError, "arch must be an int64 tensor, got list"),
        (ARCH.int(), TypeError, "arch must be int64, got torch.int32"),
        (ARCH.double(), TypeError, "arch must be int64, got torch.float64"),
        (ARCH[:5], ValueError, "arch must be of shape [..., 6], got [5]"),
        (ARCH.reshape(6, 1), ValueError, "arch must be of shape [..., 6], got [6, 1]"),
        (torch.tensor(0), ValueError, "arch must be of shape [..., 6], got []"),
        (TOO_HIGH, ValueError, "arch must be in 0..4 at [1, 1], got 5"),
        (ARCH - 1, ValueError, "arch must be in 0..4 at [0], got -1"),
    ],
)
def test_bad_architectures(
    name: str, arch: object, error: type[Exception], wanted_and_got: str
) -> None:
    with pytest.raises(error, match=re.escape(f"space.{name}: {wanted_and_got}")) as raised:
        OF_ARCH[name](arch)
    assert "\n" not in str(raised.value)


DECISIONS = "a bool or an iterable of decisions"


@pytest.mark.parametrize(
    ("call", "error", "line"),
    [
        (lambda: SPACE[15_625], IndexError, "space[i]: i must be in -15625..15624, got 15625"),
        (lambda: SPACE[-15_626], IndexError, "space[i]: i must be in -15625..15624, got -15626"),
        (lambda: SPACE[1.0], TypeError, "space[i]: i must be an int, got float"),
        (lambda: SPACE[0:2], TypeError, "space[i]: i must be an int, got slice"),
        (lambda: SPACE.sample(-1), ValueError, "space.sample: n must be an int >= 0, got -1"),
        (lambda: SPACE.sample(None), TypeError, "space.sample: n must be an int >= 0, got None"),
        (
            lambda: SPACE.sample(1, generator=7),
            TypeError,
            "space.sample: generator must be a torch.Generator or None, got int",
        ),
        (
            lambda: SPACE.sample(1, generator=OnAnotherDevice()),
            ValueError,
            "space.sample: generator must be on the CPU, got cuda",
        ),
        (
            lambda: SPACE.format(ARCH[None]),
            ValueError,
            "space.format: arch must be of shape [6], got [1, 6]",
        ),
        (
            lambda: SPACE.combinations(6),
            ValueError,
            "space.combinations: d must be a decision in 0..5, got 6",
        ),
        (
            lambda: SPACE.combination(ARCH, -1),
            ValueError,
            "space.combination: d must be an int >= 0, got -1",
        ),
        (
            lambda: SPACE.weight_sets(3),
            TypeError,
            f"space.weight_sets: split must be {DECISIONS}, got 3",
        ),
        (
            lambda: SPACE.weight_sets("24"),
            TypeError,
            f"space.weight_sets: split must be {DECISIONS}, got '24'",
        ),
        (
            lambda: SPACE.weight_sets([2, 6]),
            ValueError,
            "space.weight_sets: split must be a decision in 0..5, got 6",
        ),
        (
            lambda: SPACE.weight_sets([2.0]),
            TypeError,
            "space.weight_sets: split must be an int >= 0, got 2.0",
        ),
        (lambda: SPACE.parse(3), TypeError, "space.parse: string must be a str, got int"),
    ],
)
def test_other_bad_arguments(call: Callable[[], object], error: type[Exception], line: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(line)}$"):
        call()
