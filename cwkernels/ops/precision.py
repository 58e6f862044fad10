"""How precisely float32 convolutions are computed: by Winograd's algorithm, or directly."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from cwkernels.ops._switch import Switch

Precision = Literal["high", "highest"]

_precision: Switch[Precision] = Switch("precision", get_args(Precision))


def set_float32_conv_precision(precision: Precision) -> None:
    """Sets the process's default precision of float32 convolutions, "high" or "highest".

    In the manner of `torch.set_float32_matmul_precision`. "high", which is what a process begins
    with, lets 3x3 convolutions of stride 1 run by Winograd's F(4x4, 3x3) where that is faster: a
    third of the multiplications, and a relative error per tensor of at most 2e-5 against float64
    (about 1e-6 is usual; TF32, PyTorch's default for convolutions on CUDA, has 1e-3). "highest"
    computes every convolution directly: sums of small integers are exact, and the error is at most
    twice stock PyTorch's. Other convolutions, and float64, are the same in both.

    Raises:
        ValueError: for any other name.
    """
    _precision.set_default("set_float32_conv_precision", precision)


@contextmanager
def float32_conv_precision(precision: Precision) -> Iterator[None]:
    """Uses a precision within a block: ``with cw.float32_conv_precision("highest"): ...``.

    An operation reads the precision when it is called, and its backward pass keeps to it, in
    whatever thread it runs.

    Raises:
        ValueError: for any other name.
    """
    with _precision.use("float32_conv_precision", precision):
        yield


def current_float32_conv_precision() -> Precision:
    """The precision of an operation that is called now."""
    return _precision.current()


def winograd_allowed() -> bool:
    """The argument `winograd` of an operation that is called now."""
    return current_float32_conv_precision() == "high"


def tf32_allowed() -> bool:
    """The argument `tf32` of an operation that is called now."""
    return current_float32_conv_precision() == "high"
