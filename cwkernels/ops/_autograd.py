"""Autograd of the operations: torch's registration, and a shorter way to the same in eager mode.

`torch.library.register_autograd` flattens lists of tensors and fills in defaults in Python at each
call, 100 microseconds, as much as a small operation. Graphs, transforms and `opcheck` take that
way; a plain call goes through one `torch.autograd.Function` with the same two formulas.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

SetupContext = Callable[[Any, tuple[Any, ...], Any], None]
Backward = Callable[..., Any]


class Differentiable:
    """An operation of the extension with its backward formula; called as the operation is.

    Args:
        name: of the operation, which is registered with torch, too.
        backward: takes `ctx` and the outputs' gradients, gives one for each argument: a list for a
            list of tensors, None for what has none.
        setup_context: takes `ctx`, all arguments and the output.
    """

    def __init__(self, name: str, backward: Backward, setup_context: SetupContext) -> None:
        self.backward = backward
        self.setup_context = setup_context
        self.overload = getattr(torch.ops.cwkernels, name).default
        torch.library.register_autograd(f"cwkernels::{name}", backward, setup_context=setup_context)

    def __call__(self, *arguments: Any) -> Any:
        """The operation's results."""
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return self.overload(*arguments)
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)):
            with torch._C._AutoDispatchBelowAutograd():
                return self.overload(*arguments)
        lengths = [len(a) if isinstance(a, list) else -1 for a in arguments]
        return _Eager.apply(self, lengths, *_flatten(arguments, lengths))


def _flatten(values: Sequence[Any], lengths: list[int]) -> list[Any]:
    flat: list[Any] = []
    for value, length in zip(values, lengths, strict=True):
        if length < 0:
            flat.append(value)
        else:
            flat += value
    return flat


def _unflatten(flat: Sequence[Any], lengths: list[int]) -> tuple[Any, ...]:
    values: list[Any] = []
    place = 0
    for length in lengths:
        if length < 0:
            values.append(flat[place])
            place += 1
        else:
            values.append(list(flat[place : place + length]))
            place += length
    return tuple(values)


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operation: Differentiable, lengths: list[int], *flat: Any) -> Any:
        arguments = _unflatten(flat, lengths)
        with torch._C._AutoDispatchBelowAutograd():
            output = operation.overload(*arguments)
        operation.setup_context(ctx, arguments, output)
        ctx.operation, ctx.lengths = operation, lengths
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        flat = ctx.needs_input_grad
        try:
            ctx.needs_input_grad = _unflatten(flat[2:], ctx.lengths)
            result = ctx.operation.backward(ctx, *grads)
        finally:
            ctx.needs_input_grad = flat
        return None, None, *_flatten(result, ctx.lengths)
