"""copy_rows: rows of a bank, copied into a tensor of their own."""

from typing import Any

import torch
from torch import Tensor

from cwkernels.ops._compact import bank_gradient, check_rows, first_order_only, select_row, sum_rows
from cwkernels.ops._library import register_fake
from cwkernels.ops.backend import current_backend


def copy_rows(bank: Tensor, rows: Tensor, *, dense_grad: bool = False) -> Tensor:
    """Copies the rows `rows` of `bank`; `split()` grows banks with it.

    Equivalent to ``bank[rows]`` (`torch.index_select`), but its gradient is compact: a sparse COO
    tensor that holds only the rows that were read, gradients of a repeated row summed in order.

    Args:
        bank: [S, ...], any dtype, contiguous.
        rows: int64 [M] in [0, S), repeats allowed, on the bank's device.
        dense_grad: give `bank` an ordinary gradient, zero in the rows that were not read. A stock
            optimizer with weight decay or momentum then moves those rows too.

    Returns:
        [M, ...], contiguous.

    Raises:
        RuntimeError: for a strided bank, rows of another shape or dtype, or (on the CPU) rows out
            of range.
    """
    if current_backend() == "reference":
        return reference(bank, rows, dense_grad=dense_grad)
    copied: Tensor = torch.ops.cwkernels.copy_rows(bank, rows, dense_grad)
    return copied


def reference(bank: Tensor, rows: Tensor, *, dense_grad: bool = False) -> Tensor:
    """The same in plain torch."""
    if not rows.numel():
        return bank[rows]
    selected = check_rows("copy_rows", rows, bank.shape[0])
    return torch.stack([select_row(bank, row, dense_grad) for row in selected])


@register_fake("copy_rows")
def _(bank: Tensor, rows: Tensor, dense_grad: bool) -> Tensor:
    return bank.new_empty((rows.shape[0], *bank.shape[1:]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    bank, rows, ctx.dense_grad = inputs
    # The bank is saved so that a loss older than a split is refused in backward.
    ctx.save_for_backward(bank, rows)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    first_order_only("copy_rows")
    bank, rows = ctx.saved_tensors
    return bank_gradient(*sum_rows(rows, grad), bank.shape, ctx.dense_grad), None, None


torch.library.register_autograd("cwkernels::copy_rows", _backward, setup_context=_setup_context)
