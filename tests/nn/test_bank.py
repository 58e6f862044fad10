"""Bank and RunningStatistics: rows laid out anew in place, reserved, loaded."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cwkernels.nn import Bank, RunningStatistics, SetMap
from cwkernels.ops import copy_rows


def bank_of(capacity: int = 1, initial: Tensor | None = None) -> Bank:
    initial = torch.arange(6.0).reshape(2, 3) if initial is None else initial
    set_map = SetMap((4, 2))
    set_map.assign([0], torch.arange(4))
    return Bank(initial, set_map, 1, "conv", capacity=capacity)


def numbered(bank: Bank) -> Bank:
    """Row r holds r everywhere."""
    with torch.no_grad():
        for row, weight in enumerate(bank.weight):
            weight.fill_(row)
    return bank


def first_values(tensor: Tensor) -> list[float]:
    values: list[float] = tensor.detach().flatten(1)[:, 0].tolist()
    return values


@pytest.mark.parametrize("capacity", [1, 4])
def test_every_row_starts_as_the_initial_weights(capacity: int) -> None:
    initial = torch.randn(2, 3, requires_grad=True)
    bank = bank_of(capacity, initial)
    assert bank.weight.shape == (capacity, 2, 3)
    assert bank.weight.is_contiguous()
    assert bank.weight.is_leaf
    assert (bank.weight == initial).all()
    with torch.no_grad():
        bank.weight.zero_()
    assert initial.any()


@pytest.mark.parametrize("capacity", [1, 3, 4, 6])
def test_rows_are_copies_of_their_sources(capacity: int) -> None:
    bank = numbered(bank_of(capacity))
    parameter, memory = bank.weight, bank.weight.data_ptr()
    bank.weight.grad = torch.ones_like(bank.weight)
    sources = torch.tensor([2, 0, 1, 0]) % capacity
    bank.grow(sources)
    assert bank.weight is parameter
    assert bank.weight.grad is None
    assert first_values(bank.weight) == sources.tolist() + list(range(4, capacity))
    assert (bank.weight.data_ptr() == memory) == (capacity >= 4)
    assert bank.weight.is_contiguous()
    assert bank.splits == 1


def test_rows_may_change_places_in_the_reserved_memory() -> None:
    bank = numbered(bank_of(capacity=4))
    bank.grow(torch.tensor([3, 2, 1, 0]))
    assert first_values(bank.weight) == [3, 2, 1, 0]
    bank.grow(torch.tensor([1, 1]))
    assert first_values(bank.weight) == [2, 2, 1, 0]


@pytest.mark.parametrize("capacity", [1, 4])
def test_a_loss_from_before_raises_and_a_later_one_has_the_new_shape(capacity: int) -> None:
    bank = bank_of(capacity)
    old = copy_rows(bank.weight, torch.tensor([0])).sum()
    bank.grow(torch.tensor([0, 0, 0, 0]))
    new = copy_rows(bank.weight, torch.tensor([3])).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        old.backward()
    assert bank.weight.grad is None
    new.backward()
    gradient = bank.weight.grad
    assert gradient is not None
    assert gradient.to_dense().sum((1, 2)).tolist() == [0, 0, 0, 6]


def test_the_row_of_an_architecture() -> None:
    bank = bank_of(capacity=4)
    assert [bank.row(torch.tensor([choice, 1])) for choice in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arch", "error", "line"),
    [
        ([1, 1], TypeError, "an int64 tensor, got list"),
        (torch.tensor([1.0, 1.0]), TypeError, "int64, got torch.float32"),
        (torch.tensor([1, 1, 1]), ValueError, "of shape [..., 2], got [3]"),
        (torch.tensor([[1, 1]]), ValueError, "of shape [2], got [1, 2]"),
        (torch.tensor([4, 1]), ValueError, "in 0..3 at [0], got 4"),
        (torch.tensor([1, -1]), ValueError, "in 0..1 at [1], got -1"),
    ],
)
def test_other_architectures_have_no_row(arch: Any, error: type[Exception], line: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(f'bank.row: arch must be {line}')}$"):
        bank_of().row(arch)


@pytest.mark.parametrize(
    ("capacity", "error", "got"), [(0, ValueError, "0"), (1.5, TypeError, "1.5")]
)
def test_other_capacities(capacity: Any, error: type[Exception], got: str) -> None:
    line = f"Bank: capacity must be an int >= 1, got {got}"
    with pytest.raises(error, match=f"^{re.escape(line)}$"):
        bank_of(capacity)


@pytest.mark.parametrize("sources", [torch.tensor([0, 1]), torch.tensor([-1])])
def test_sources_that_are_not_there(sources: Tensor) -> None:
    bank = bank_of()
    with pytest.raises(RuntimeError, match=r"copy_rows: rows\[\d\]: wanted a row in \[0, 1\)"):
        bank.grow(sources)
    assert bank.weight.shape == (1, 2, 3)
    assert bank.splits == 0


@pytest.mark.parametrize("rows", [1, 3, 5])
@pytest.mark.parametrize("capacity", [1, 3])
def test_a_loaded_state_brings_its_rows(rows: int, capacity: int) -> None:
    """Fewer than were reserved leave the others allocated, and as they are."""
    source, target = numbered(bank_of(rows)), bank_of(capacity)
    parameter, memory = target.weight, target.weight.data_ptr()
    before = first_values(target.weight)
    state = source.state_dict()
    target.load_state_dict(state)
    assert target.weight is parameter
    assert first_values(target.weight) == list(range(rows)) + before[rows:]
    assert (target.weight.data_ptr() == memory) == (rows <= capacity)
    assert state["weight"].shape[0] == rows


@pytest.mark.parametrize("shape", [(1, 2, 4), (2, 3), (1, 2, 3, 1)])
def test_another_row_shape_is_refused(shape: tuple[int, ...]) -> None:
    bank = bank_of()
    with pytest.raises(RuntimeError, match=r"size mismatch for weight"):
        bank.load_state_dict({"weight": torch.zeros(shape)})
    assert bank.weight.shape == (1, 2, 3)


def statistics_of(rows: int) -> RunningStatistics:
    statistics = RunningStatistics(2, capacity=rows)
    for buffer in statistics.buffers():
        for row, values in enumerate(buffer):
            values.fill_(10 + row)
    return statistics


@pytest.mark.parametrize("rows", [2, 4])
def test_statistics_grow_like_banks(rows: int) -> None:
    statistics = statistics_of(rows)
    before = dict(statistics.named_buffers())
    statistics.grow(torch.tensor([1, 0, 1]))
    for name, buffer in statistics.named_buffers():
        assert buffer is before[name]
        assert (
            buffer.reshape(buffer.shape[0], -1)[:, 0].tolist() == [11, 10, 11, 13][: max(3, rows)]
        )


def test_statistics_start_and_are_reset_as_batch_norms() -> None:
    statistics, norm = statistics_of(3), nn.BatchNorm2d(2)
    statistics.reset()
    for fresh in (statistics, RunningStatistics(2, capacity=3)):
        for name, buffer in norm.named_buffers():
            assert (fresh.get_buffer(name) == buffer).all()
            assert fresh.get_buffer(name).dtype == buffer.dtype


def test_a_batch_norms_own_state_is_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for running_mean"):
        RunningStatistics(2).load_state_dict(nn.BatchNorm2d(2, affine=False).state_dict())
