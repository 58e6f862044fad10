"""How precisely float32 convolutions are computed: by Winograd's algorithm, or directly."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

Precision = Literal["high", "highest"]

_default: Precision = "high"
_override: ContextVar[Precision | None] = ContextVar(
    "cwkernels_float32_conv_precision", default=None
)


def _checked(operation: str, name: str) -> Precision:
    if name not in get_args(Precision):
        wanted = " or ".join(repr(choice) for choice in get_args(Precision))
        raise ValueError(f"{operation}: precision: wanted {wanted}, got {name!r}")
    return name  # type: ignore[return-value]


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
    global _default
    _default = _checked("set_float32_conv_precision", precision)


@contextmanager
def float32_conv_precision(precision: Precision) -> Iterator[None]:
    """Uses a precision within a block: ``with cw.float32_conv_precision("highest"): ...``.

    An operation reads the precision when it is called, and its backward pass keeps to it, in
    whatever thread it runs.

    Raises:
        ValueError: for any other name.
    """
    token = _override.set(_checked("float32_conv_precision", precision))
    try:
        yield
    finally:
        _override.reset(token)


def current_float32_conv_precision() -> Precision:
    """The precision of an operation that is called now."""
    return _override.get() or _default


def winograd_allowed() -> bool:
    """The argument `winograd` of an operation that is called now."""
    return current_float32_conv_precision() == "high"
