"""nb201_select: what architectures run, from choices on the device, planned for `nb201_cell`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cwkernels.ops._library import register_fake
from cwkernels.ops.backend import current_backend
from cwkernels.ops.device_faults import fault_of, raise_faults
from cwkernels.ops.nb201_plan import PLAN_INTS, NB201Plan, check_banks, nb201_plan
from cwkernels.ops.select import SelectLayout, check_arguments, select


def nb201_select(
    arch: Tensor,
    maps: Sequence[Tensor],
    layout: SelectLayout,
    rows: Sequence[int],
    per_edge: int,
) -> tuple[NB201Plan, Tensor]:
    """Looks up what architectures run, and resolves it for all cells, in one launch.

    Equivalent to these two, whose arguments it takes::

        selection, norm_rows = select(arch, maps, layout)
        plan = nb201_plan(selection, rows, per_edge)

    Args:
        arch: int64 [A, 6].
        maps, layout: as `select`'s.
        rows, per_edge: as `nb201_plan`'s.

    Returns:
        The plan, of a selection int32 [A, 6, 2]; and int32 [R, A], the row of each kind of batch
        norm, -1 where the architecture does not run it.

    Raises:
        ValueError, NotImplementedError: as those.
    """
    if current_backend() == "reference":
        selection, norm_rows = select(arch, maps, layout)
        return nb201_plan(selection, rows, per_edge), norm_rows
    check_arguments("nb201_select", arch, maps, layout)
    check_banks("nb201_select", rows, per_edge)
    fault = fault_of(arch.device)
    raise_faults(arch.device)
    selection, norm_rows, table = torch.ops.cwkernels.nb201_select.default(
        arch.contiguous(), list(maps), *layout.flat(), list(rows), per_edge, fault
    )
    return NB201Plan(selection, table, tuple(rows), per_edge), norm_rows


@register_fake("nb201_select")
def _(
    arch: Tensor,
    maps: list[Tensor],
    codes: list[int],
    edges: list[int],
    norms: list[int],
    rows: list[int],
    per_edge: int,
    fault: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    selection = arch.new_empty((*arch.shape, 2), dtype=torch.int32)
    norm_rows = selection.new_empty((len(norms) // 2, arch.shape[0]))
    return selection, norm_rows, selection.new_empty((arch.shape[0], PLAN_INTS))
