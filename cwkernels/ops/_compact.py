"""Compact gradients of banks: only the rows that were read."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_rows(operation: str, rows: Tensor, num_rows: int) -> list[int]:
    """The rows as integers, refused as the kernels refuse them: Python would wrap -1 around."""
    values: list[int] = rows.tolist()
    for i, row in enumerate(values):
        if not 0 <= row < num_rows:
            raise RuntimeError(
                f"{operation}: rows[{i}]: wanted a row in [0, {num_rows}), got {row}"
            )
    return values


def first_order_only(operation: str) -> None:
    """Raises in a backward pass that is recorded: torch would take its own gradient for zero."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{operation}: backward: wanted create_graph=False, got True")


def sum_rows(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sums `values` [M, ...] of equal `rows` [M], in order: sorted unique rows and their sums."""
    unique, place = torch.unique(rows, return_inverse=True)
    sums = values.new_zeros((unique.shape[0], *values.shape[1:]))
    return unique, sums.index_add_(0, place, values)


def bank_gradient(rows: Tensor, values: Tensor, shape: Sequence[int], dense_grad: bool) -> Tensor:
    """The gradient of a bank of `shape` [S, ...] from unique sorted `rows` and their `values`.

    Compact: a sparse COO tensor with one sparse dimension. Dense: zeros elsewhere.
    """
    # Rows that were chosen on the host, of values that a GPU computed.
    rows = rows.to(values.device, non_blocking=True)
    if dense_grad:
        return values.new_zeros(shape).index_copy_(0, rows, values)
    return torch.sparse_coo_tensor(
        rows[None], values, tuple(shape), is_coalesced=True, check_invariants=False
    )


def slot_gradient(rows: Tensor, values: Tensor, shape: Sequence[int], dense_grad: bool) -> Tensor:
    """`bank_gradient` from as many slots as there are architectures, chosen on the device.

    Slot u of `values` [A, ...] is the gradient of row ``rows[u]``, where each row stands once, in
    any order; -1 for a slot that belongs to none and holds anything. Nothing waits for the device.
    """
    if dense_grad:
        beyond = shape[0]
        gradient = values.new_zeros((beyond + 1, *shape[1:]))
        return gradient.index_copy_(0, torch.where(rows < 0, beyond, rows), values)[:beyond]
    return torch.sparse_coo_tensor(rows[None], values, tuple(shape), check_invariants=False)


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
    selected: Tensor = _SelectRow.apply(bank, row)
    return selected


def bank_gradients(
    rows: Sequence[Tensor],
    values: Sequence[Tensor],
    banks: Sequence[Tensor],
    needed: Sequence[bool],
    dense_grad: bool,
) -> list[Tensor | None]:
    """`bank_gradient` of each bank that needs one and, if compact, was read."""

    def was_read(row: Tensor) -> bool:
        # While a graph is traced, how many rows there will be is not known: perhaps none.
        return isinstance(row.shape[0], torch.SymInt) or row.shape[0] > 0

    if values:
        rows = _beside(rows, values[0].device)
    return [
        bank_gradient(row, value, bank.shape, dense_grad)
        if need and (dense_grad or was_read(row))
        else None
        for need, row, value, bank in zip(needed, rows, values, banks, strict=True)
    ]


def _beside(rows: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Rows that the host chose, where the values lie: one copy for all of them, not awaited."""
    if device.type == "cpu" or torch.compiler.is_compiling():
        return rows
    sizes = [own.shape[0] for own in rows]
    moved: Sequence[Tensor] = torch.cat(list(rows)).to(device, non_blocking=True).split(sizes)
    return moved


def slot_gradients(
    rows: Tensor,
    values: Sequence[Tensor],
    banks: Sequence[Tensor],
    needed: Sequence[bool],
    dense_grad: bool,
) -> list[Tensor | None]:
    """`slot_gradient` of each bank that needs one, from all their `rows` [banks, A]."""
    return [
        slot_gradient(own, value, bank.shape, dense_grad) if need else None
        for need, own, value, bank in zip(needed, rows.unbind(), values, banks, strict=True)
    ]
