"""Checks of arguments, each failing in one line: operation, argument, wanted, got."""

import operator
from collections.abc import Iterable

import torch
from torch import Tensor


def message(operation: str, argument: str, wanted: str, got: object) -> str:
    """The one line that every error of the spaces consists of."""
    return f"{operation}: {argument} must be {wanted}, got {got}"


def integer(operation: str, argument: str, value: object, at_least: int) -> int:
    """``value`` as an int that is not below ``at_least``; TypeError or ValueError."""
    wanted = f"an int >= {at_least}"
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(message(operation, argument, wanted, repr(value))) from None
    if number < at_least:
        raise ValueError(message(operation, argument, wanted, number))
    return number


def decision(operation: str, argument: str, value: object, num_decisions: int) -> int:
    """``value`` as a decision, an int in ``0 .. num_decisions - 1``; TypeError or ValueError."""
    number = integer(operation, argument, value, at_least=0)
    if number >= num_decisions:
        wanted = f"a decision in 0..{num_decisions - 1}"
        raise ValueError(message(operation, argument, wanted, number))
    return number


def split_decisions(operation: str, split: object, num_decisions: int) -> frozenset[int]:
    """The decisions that ``split`` names: True all, False none, an iterable those in it."""
    if isinstance(split, bool):
        return frozenset(range(num_decisions) if split else ())
    if isinstance(split, str) or not isinstance(split, Iterable):
        wanted = "a bool or an iterable of decisions"
        raise TypeError(message(operation, "split", wanted, repr(split)))
    return frozenset(decision(operation, "split", d, num_decisions) for d in split)


def choices(operation: str, argument: str, value: object, sizes: tuple[int, ...]) -> Tensor:
    """``value`` as an int64 tensor ``[..., D]``, entry d in ``0 .. sizes[d] - 1``.

    Reads the values, so it waits for a tensor that lies on a device. TypeError for what is not an
    int64 tensor, ValueError for a wrong last dimension or range.
    """
    if not isinstance(value, Tensor):
        raise TypeError(message(operation, argument, "an int64 tensor", type(value).__name__))
    if value.dtype != torch.int64:
        raise TypeError(message(operation, argument, "int64", value.dtype))
    if value.ndim == 0 or value.shape[-1] != len(sizes):
        raise ValueError(
            message(operation, argument, f"of shape [..., {len(sizes)}]", list(value.shape))
        )
    outside = (value < 0) | (value >= value.new_tensor(sizes))
    if torch.compiler.is_compiling():  # a graph cannot branch on values, but it can stop
        wanted = f"in range for {sizes} candidates"
        torch._assert_async(~outside.any(), message(operation, argument, wanted, "another choice"))
    elif outside.any():
        position = outside.nonzero()[0].tolist()
        wanted = f"in 0..{sizes[position[-1]] - 1} at {position}"
        raise ValueError(message(operation, argument, wanted, int(value[tuple(position)])))
    return value
