"""Compact gradients of banks: only the rows that were read."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def sum_rows(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sums `values` [M, ...] of equal `rows` [M], in order: sorted unique rows and their sums."""
    unique, place = torch.unique(rows, return_inverse=True)
    sums = values.new_zeros((unique.shape[0], *values.shape[1:]))
    return unique, sums.index_add_(0, place, values)


def bank_gradient(rows: Tensor, values: Tensor, shape: Sequence[int], dense_grad: bool) -> Tensor:
    """The gradient of a bank of `shape` [S, ...] from unique sorted `rows` and their `values`.

    Compact: a sparse COO tensor with one sparse dimension. Dense: zeros elsewhere.
    """
    if dense_grad:
        return values.new_zeros(shape).index_copy_(0, rows, values)
    return torch.sparse_coo_tensor(
        rows[None], values, tuple(shape), is_coalesced=True, check_invariants=False
    )


class _SelectRow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bank: Tensor, row: int) -> Tensor:
        ctx.save_for_backward(bank)
        ctx.row = row
        return bank[row].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (bank,) = ctx.saved_tensors
        rows = torch.tensor([ctx.row], device=grad.device)
        return bank_gradient(rows, grad[None], bank.shape, dense_grad=False), None


def select_row(bank: Tensor, row: int, dense_grad: bool) -> Tensor:
    """`bank[row]` for the references, with a compact gradient unless a dense one is asked for."""
    if dense_grad:
        return bank[row]
    selected: Tensor = _SelectRow.apply(bank, row)  # type: ignore[no-untyped-call]
    return selected
