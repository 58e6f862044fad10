"""nb201_select beside select and nb201_plan, whose work it does in one launch."""

from itertools import product

import pytest
import torch
from torch import Tensor

import cwkernels as cw
from cwkernels import ops
from cwkernels.nn import SetMap
from cwkernels.ops.device_faults import fault_of
from cwkernels.spaces.nb201 import EDGES
from cwkernels.testing import refused
from cwkernels.testing.emulated import emulated, emulated_launches, why_not_emulated

OPERATION = "nb201_select"
on_gpu = pytest.mark.parametrize("device", ["emulated", "cuda"], indirect=True)
on_emulator = pytest.mark.skipif(
    why_not_emulated(OPERATION) is not None, reason=f"{OPERATION} is not emulated"
)
LAYOUT = ops.SelectLayout(
    codes=((0, 1, 2, 3, 4),) * 6,
    norms=(*product(range(6), (2, 3)), (-1, 0)),
    edges=EDGES,
)
ROWS = (1, 1, 5, 1, 5, 25)


def maps(device: torch.device) -> list[Tensor]:
    """Those of the space after its split: decision 5 reads two."""
    made = [SetMap((5,) * 6, combinations=rows) for rows in ROWS]
    for decision, reads in ((2, [0]), (4, [0]), (5, [1, 2])):
        made[decision].assign(reads, torch.arange(ROWS[decision]))
    return [own.to(device).on_device for own in made]


def archs(count: int) -> Tensor:
    return torch.randint(5, (count, 6), generator=torch.Generator().manual_seed(count))


def apart(
    arch: Tensor, own: list[Tensor], rows: tuple[int, ...] = ROWS, per_edge: int = 2
) -> tuple[ops.NB201Plan, Tensor]:
    selection, norm_rows = ops.select(arch, own, LAYOUT)
    return ops.nb201_plan(selection, rows, per_edge), norm_rows


def assert_same(ours: tuple[ops.NB201Plan, Tensor], theirs: tuple[ops.NB201Plan, Tensor]) -> None:
    (plan, norm_rows), (other, other_rows) = ours, theirs
    assert torch.equal(norm_rows, other_rows)
    assert torch.equal(plan.selection, other.selection)
    assert plan.table is not None
    assert other.table is not None
    assert torch.equal(plan.table, other.table)
    assert (plan.rows, plan.per_edge) == (other.rows, other.per_edge)


@on_gpu
@pytest.mark.parametrize("per_edge", [2, 3])
@pytest.mark.parametrize("count", [1, 5, 70])
def test_is_select_and_plan(count: int, per_edge: int, device: torch.device) -> None:
    """70 architectures are more than the warps of the block."""
    arch, own = archs(count).to(device), maps(device)
    ours = ops.nb201_select(arch, own, LAYOUT, ROWS, per_edge)
    assert_same(ours, apart(arch, own, ROWS, per_edge))


@on_gpu
def test_a_choice_out_of_range_is_raised_and_runs_nothing(device: torch.device) -> None:
    arch, own = archs(40), maps(device)
    arch[3, 0], arch[3, 5], arch[17, 2] = 5, -1, 2**40
    arch = arch.to(device)
    ours = ops.nb201_select(arch, own, LAYOUT, ROWS, 2)
    with refused(ValueError, "select: arch[3, 0]: wanted a choice of the decision, got 5"):
        cw.synchronize(device)
    assert ours[0].selection[3, 0].tolist() == ours[0].selection[17, 2].tolist() == [0, 0]
    theirs = apart(arch, own)
    fault_of(device).zero_()
    assert_same(ours, theirs)


@on_gpu
def test_a_row_that_its_bank_lacks_runs_nothing(device: torch.device) -> None:
    """A map that is ahead of the banks: no kernel may read what is not there."""
    arch, own = archs(40).to(device), maps(device)
    fewer = (1, 1, 2, 1, 1, 7)
    assert_same(ops.nb201_select(arch, own, LAYOUT, fewer, 2), apart(arch, own, fewer))


@on_emulator
def test_it_is_one_launch() -> None:
    cpu = torch.device("cpu")
    with emulated():
        ops.nb201_select(archs(3), maps(cpu), LAYOUT, ROWS, 2)
        assert emulated_launches() == 1


def test_the_reference_makes_no_table() -> None:
    with ops.backend("reference"):
        plan, norm_rows = ops.nb201_select(archs(4), maps(torch.device("cpu")), LAYOUT, ROWS, 2)
    assert plan.table is None
    assert plan.selection.shape == (4, 6, 2)
    assert norm_rows.shape == (13, 4)


@on_emulator
def test_opcheck() -> None:
    cpu = torch.device("cpu")
    arguments = (archs(2), maps(cpu), *LAYOUT.flat(), list(ROWS), 2, fault_of(cpu))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    with emulated():
        operation = torch.ops.cwkernels.nb201_select.default
        torch.library.opcheck(operation, arguments, test_utils=checks)


@on_gpu
def test_bad_input_is_refused(device: torch.device) -> None:
    arch, own = archs(2).to(device), maps(device)
    with refused(ValueError, "nb201_select: arch: wanted int64 [A, 6], got torch.int32 [2, 6]"):
        ops.nb201_select(arch.int(), own, LAYOUT, ROWS, 2)
    with refused(ValueError, "nb201_select: maps: wanted 6, one a decision, got 5"):
        ops.nb201_select(arch, own[:5], LAYOUT, ROWS, 2)
    with refused(ValueError, "nb201_select: rows: wanted one for each of 6 edges, got [1, 1]"):
        ops.nb201_select(arch, own, LAYOUT, ROWS[:2], 2)
    with refused(ValueError, "nb201_select: per_edge: wanted 2 or 3, got 4"):
        ops.nb201_select(arch, own, LAYOUT, ROWS, 4)
