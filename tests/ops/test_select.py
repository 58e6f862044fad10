"""select: what architectures run, from choices that only the device knows."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import cwkernels as cw
from cwkernels import ops
from cwkernels.nn import SetMap
from cwkernels.ops.device_faults import fault_of
from cwkernels.ops.select import SelectLayout
from cwkernels.spaces.nb201 import EDGES, live
from cwkernels.testing import refused
from cwkernels.testing.emulated import emulated, emulated_launches, why_not_emulated

OPERATION = "select"
on_gpu = pytest.mark.parametrize("device", ["emulated", "cuda"], indirect=True)
CPU = torch.device("cpu")

SIZES = (2, 3, 4)
CHAIN = SelectLayout(
    codes=((0, 1), (5, 0, 7), (1, 2, 3, 4)),
    norms=((0, 1), (1, 5), (1, 7), (2, 3), (-1, 0)),
)
CELL = SelectLayout(
    codes=((0, 1, 2, 3, 4),) * 6,
    norms=(*product(range(6), (2, 3)), (-1, 0)),
    edges=EDGES,
)


def chain_maps() -> list[SetMap]:
    """Nothing read, one decision read, two read in an order that is not theirs."""
    maps = [SetMap(SIZES) for _ in SIZES]
    maps[1].assign([0], torch.tensor([3, 1]))
    maps[2].assign([1, 0], torch.tensor([9, 8, 7, 6, 5, 4]))
    return maps


def every_arch() -> Tensor:
    return torch.tensor(list(product(*map(range, SIZES))))


def tables(maps: list[SetMap], device: torch.device) -> list[Tensor]:
    return [set_map.to(device).on_device for set_map in maps]


@on_gpu
def test_codes_and_rows_are_those_of_the_host(device: torch.device) -> None:
    """24 architectures; 60 of them are more than the warps of the block."""
    arch = every_arch().repeat(3, 1)[:60]
    rows = torch.stack([own.rows(arch) for own in chain_maps()], -1)
    codes = torch.tensor([[CHAIN.codes[d][int(c)] for d, c in enumerate(one)] for one in arch])
    selection, norm_rows = ops.select(arch.to(device), tables(chain_maps(), device), CHAIN)
    assert selection.dtype == norm_rows.dtype == torch.int32
    assert torch.equal(selection.cpu(), torch.stack([codes, rows], -1).int())
    wanted = [
        rows[:, d].where(codes[:, d] == code, -1) if d >= 0 else torch.zeros(60, dtype=torch.int64)
        for d, code in CHAIN.norms
    ]
    assert torch.equal(norm_rows.cpu(), torch.stack(wanted).int())


@on_gpu
def test_a_batch_norm_that_carries_nothing_does_not_run(device: torch.device) -> None:
    space = cw.spaces.nb201("full")
    arch = torch.stack([space[i] for i in range(0, len(space), 61)])
    arch[0] = torch.tensor([3, 3, 3, 3, 3, 3])
    maps = [SetMap((5,) * 6) for _ in range(6)]
    _, norm_rows = ops.select(arch.to(device), tables(maps, device), CELL)
    alive = live(arch)
    wanted = torch.stack([(alive[:, d] & (arch[:, d] == code)) for d, code in CELL.norms[:-1]])
    assert torch.equal(norm_rows.cpu()[:-1], wanted.int() - 1)
    assert not norm_rows.cpu()[-1].any()


@pytest.mark.skipif(why_not_emulated(OPERATION) is not None, reason=f"{OPERATION} is not emulated")
@given(st.data())
@settings(max_examples=20, deadline=None)
def test_any_map_and_choices_are_as_the_reference(data: st.DataObject) -> None:
    maps = [SetMap(SIZES) for _ in SIZES]
    for own in maps:
        reads = data.draw(st.lists(st.integers(0, 2), unique=True, max_size=3))
        combinations = 1
        for decision in reads:
            combinations *= SIZES[decision]
        own.assign(reads, torch.randint(9, (combinations,)))
    arch = torch.tensor(data.draw(st.lists(st.tuples(*[st.integers(-1, 4)] * 3), min_size=1)))
    fault = fault_of(CPU)
    found = []
    for backend in ("kernels", "reference"):
        with emulated(), ops.backend(backend):
            results = ops.select(arch, tables(maps, CPU), CHAIN)
        found.append((*results, fault.clone()))
        fault.zero_()
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


@on_gpu
def test_the_first_choice_out_of_range_is_raised_once(device: torch.device) -> None:
    arch = every_arch()
    arch[5, 1], arch[5, 2], arch[17, 0] = -1, 99, 2
    selection, norm_rows = ops.select(arch.to(device), tables(chain_maps(), device), CHAIN)
    got = "(it ran as the operation of code 0, row 0)"
    with refused(ValueError, f"select: arch[5, 1]: wanted a choice of the decision, got -1 {got}"):
        cw.synchronize(device)
    cw.synchronize(device)
    assert selection[5].tolist()[1:] == [[0, 0], [0, 0]]
    assert selection[17].tolist()[0] == [0, 0]
    assert norm_rows[:4, 5].tolist()[1:] == [-1, -1, -1]
    # What reads the choice that is wrong takes it for choice 0.
    as_first = arch.clone()
    as_first[17, 0] = 0
    good, _ = ops.select(as_first[17:18].to(device), tables(chain_maps(), device), CHAIN)
    assert selection[17].tolist()[1:] == good[0].tolist()[1:]


@on_gpu
def test_a_later_call_raises_what_an_earlier_one_found(device: torch.device) -> None:
    maps = tables(chain_maps(), device)
    ops.select(torch.tensor([[0, 3, 0]], device=device), maps, CHAIN)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    with pytest.raises(ValueError, match=r"select: arch\[0, 1\]: wanted .*, got 3"):
        ops.select(torch.tensor([[0, 0, 0]], device=device), maps, CHAIN)
    ops.select(torch.tensor([[0, 0, 0]], device=device), maps, CHAIN)


@on_gpu
def test_a_map_is_written_in_place(device: torch.device) -> None:
    own = SetMap(SIZES, combinations=6).to(device)
    maps, arch = [own.on_device] * 3, every_arch().to(device)
    assert not ops.select(arch, maps, CHAIN)[0][..., 1].any()
    own.assign([1, 0], torch.arange(6))
    rows = ops.select(arch, maps, CHAIN)[0][:, 0, 1].cpu()
    assert torch.equal(rows, own.rows(every_arch()).int())
    other = SetMap(SIZES, combinations=6).to(device)
    other.load_state_dict(own.state_dict())
    assert torch.equal(other.on_device, own.on_device)


@pytest.mark.skipif(why_not_emulated(OPERATION) is not None, reason=f"{OPERATION} is not emulated")
def test_it_is_one_launch() -> None:
    with emulated():
        ops.select(every_arch().repeat(9, 1), tables(chain_maps(), CPU), CHAIN)
        assert emulated_launches() == 1


def test_the_reference_runs_anywhere() -> None:
    with ops.backend("reference"):
        selection, norm_rows = ops.select(every_arch(), tables(chain_maps(), CPU), CHAIN)
    assert selection.shape == (24, 3, 2)
    assert norm_rows.shape == (5, 24)


def test_opcheck() -> None:
    arguments = (every_arch(), tables(chain_maps(), CPU), *CHAIN.flat(), fault_of(CPU))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    reason = why_not_emulated(OPERATION)
    if reason is not None:
        pytest.skip(reason)
    with emulated():
        torch.library.opcheck(torch.ops.cwkernels.select.default, arguments, test_utils=checks)


@on_gpu
def test_bad_input_is_refused(device: torch.device) -> None:
    maps, arch = tables(chain_maps(), device), every_arch().to(device)
    wanted = "select: arch: wanted int64 [A, 3], got"
    with refused(ValueError, f"{wanted} torch.int32 [24, 3]"):
        ops.select(arch.int(), maps, CHAIN)
    with refused(ValueError, f"{wanted} torch.int64 [24, 2]"):
        ops.select(arch[:, :2], maps, CHAIN)
    with refused(ValueError, "select: maps: wanted 3, one a decision, got 2"):
        ops.select(arch, maps[:2], CHAIN)
    wanted = "select: maps[1]: wanted int32 [D + combinations] on the device of arch, got"
    with refused(RuntimeError, f"{wanted} int64 [9]"):
        ops.select(arch, [maps[0], maps[1].new_zeros(9).long(), maps[2]], CHAIN)
