"""nb201_plan: what `nb201_cell`'s kernels read of a choice that lies on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cwkernels.ops._library import register_fake
from cwkernels.ops.backend import current_backend

PLAN_INTS = 87
"""As csrc/ops/nb201_cell.h has it."""


@dataclass(frozen=True)
class NB201Plan:
    """A choice of architectures on the device, for all cells of a network: see `nb201_plan`."""

    selection: Tensor
    """int32 [6, 2] or [A, 6, 2]: the operation code of each edge and the row to read."""
    table: Tensor | None
    """int32 [A, 87], what kernels read of it; None if it was made for the reference backend."""
    rows: tuple[int, ...]
    """Of each edge's banks, at least."""
    per_edge: int
    """Banks of an edge."""


def nb201_plan(selection: Tensor, rows: Sequence[int], per_edge: int) -> NB201Plan:
    """Resolves a choice that lies on the device, once for all cells that run it.

    Equivalent to working out on the host which edges of each architecture can carry anything, what
    each reads and where results are kept. Nothing waits for the device: it is one small kernel, and
    all that depends on the choice stays there, so a CUDA graph that holds it runs any architecture.

    Args:
        selection: int32 [6, 2] or [A, 6, 2] on the device of the images: the operation code of each
            edge (`nb201_cell`'s) and the row to read in its banks. An edge with a code or a row out
            of range runs nothing, as code 0 does.
        rows: how many rows each of the six edges' banks have.
        per_edge: banks of an edge: 2, or 3 in networks with a skip projection.

    Returns:
        What `nb201_cell` takes in place of a selection.

    Raises:
        ValueError: if dtype, shapes or numbers do not fit together.
        RuntimeError: for a selection on the CPU, whose kernels take an int64 selection.
    """

    if selection.dtype != torch.int32 or selection.shape[-2:] != (6, 2) or selection.dim() > 3:
        got = f"{selection.dtype} {list(selection.shape)}"
        raise _fail("nb201_plan", "selection", "int32 [6, 2] or [A, 6, 2]", got)
    if selection.shape[0] == 0:
        got = str(list(selection.shape))
        raise _fail("nb201_plan", "selection", "at least one architecture", got)
    check_banks("nb201_plan", rows, per_edge)
    table = None
    if current_backend() != "reference":
        _check_kernel(selection)
        dense = selection.reshape(-1, 6, 2).contiguous()
        table = torch.ops.cwkernels.nb201_plan(dense, list(rows), per_edge)
    return NB201Plan(selection, table, tuple(rows), per_edge)


def check_banks(operation: str, rows: Sequence[int], per_edge: int) -> None:
    """Of `nb201_plan` and what does the same."""
    if len(rows) != 6:
        raise _fail(operation, "rows", "one for each of 6 edges", list(rows))
    if per_edge not in (2, 3):
        raise _fail(operation, "per_edge", "2 or 3", per_edge)


def _fail(operation: str, argument: str, wanted: str, got: object) -> ValueError:
    return ValueError(f"{operation}: {argument}: wanted {wanted}, got {got}")


def _check_kernel(selection: Tensor) -> None:
    """Of the CPU there is one on the emulator only."""
    if torch.compiler.is_compiling() or not selection.is_cpu:
        return
    if not torch._C._dispatch_has_kernel_for_dispatch_key("cwkernels::nb201_plan", "CPU"):
        wanted = "a tensor on a GPU, whose kernels read plans"
        raise RuntimeError(f"nb201_plan: selection: wanted {wanted}, got one on the CPU")


@register_fake("nb201_plan")
def _(selection: Tensor, rows: list[int], per_edge: int) -> Tensor:
    return selection.new_empty((selection.shape[0], PLAN_INTS))
