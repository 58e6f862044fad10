"""SetMap: rows by combination, replaced as data, checked, kept apart from its copies."""

import copy
import pickle
import re
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cwkernels.nn import SetMap

SIZES = (2, 3, 4)


def every_arch() -> torch.Tensor:
    return torch.tensor(list(product(*map(range, SIZES))))


def test_it_starts_with_one_set() -> None:
    set_map = SetMap(SIZES)
    assert set_map.num_sets == 1
    assert torch.equal(set_map.rows(every_arch()), torch.zeros(24, dtype=torch.int64))
    assert {name: tuple(b.shape) for name, b in set_map.named_buffers()} == {
        "reads": (0,),
        "set_of": (1,),
    }


@given(st.lists(st.integers(0, 2), unique=True, max_size=3), st.randoms())
def test_rows_are_looked_up_by_the_mixed_radix_number(reads: list[int], random: Any) -> None:
    combinations = list(product(*(range(SIZES[decision]) for decision in reads)))
    table = [random.randrange(5) for _ in combinations]
    set_map = SetMap(SIZES)
    set_map.assign(reads, torch.tensor(table))
    wanted = dict(zip(combinations, table, strict=True))
    for arch, row in zip(every_arch().tolist(), set_map.rows(every_arch()).tolist(), strict=True):
        assert row == wanted[tuple(arch[decision] for decision in reads)]
    assert set_map.num_sets == max(table) + 1


def test_rows_of_any_number_of_architectures() -> None:
    set_map = SetMap(SIZES)
    set_map.assign([2, 0], torch.arange(8))
    archs = every_arch().reshape(4, 6, 3)
    assert set_map.rows(archs).shape == (4, 6)
    assert set_map.rows(archs[1, 2]) == set_map.rows(archs)[1, 2]
    assert set_map.rows(torch.tensor([1, 2, 3])) == 2 * 3 + 1


def test_the_table_is_copied() -> None:
    table = torch.arange(3)
    set_map = SetMap(SIZES)
    set_map.assign([1], table)
    table.zero_()
    assert set_map.rows(torch.tensor([0, 2, 0])) == 2
    assert set_map.set_of.tolist() == [0, 1, 2]


TABLE = "int64 [12] of rows, one for each combination"


@pytest.mark.parametrize(
    ("reads", "set_of", "fault"),
    [
        ([1, 3], torch.zeros(12), "reads: wanted decisions in [0, 3), got [1, 3]"),
        ([-1], torch.zeros(4), "reads: wanted decisions in [0, 3), got [-1]"),
        ([0.0], torch.zeros(2), "reads: wanted decisions in [0, 3), got [0.0]"),
        ([1, 2], torch.zeros(12), f"set_of: wanted {TABLE}, got torch.float32 [12]"),
        (
            [1, 2],
            torch.zeros(3, 4, dtype=torch.int64),
            f"set_of: wanted {TABLE}, got torch.int64 [3, 4]",
        ),
        ([1, 2], torch.arange(11), f"set_of: wanted {TABLE}, got torch.int64 [11]"),
        ([1, 2], [0] * 12, f"set_of: wanted {TABLE}, got list"),
        ([1, 2], torch.arange(12) - 2, "set_of: wanted rows of at least 0, got -2"),
    ],
)
def test_other_maps_are_refused(reads: Any, set_of: Any, fault: str) -> None:
    set_map = SetMap(SIZES)
    with pytest.raises(ValueError, match=f"^{re.escape(f'SetMap.assign: {fault}')}$"):
        set_map.assign(reads, set_of)
    assert set_map.num_sets == 1


@pytest.mark.parametrize(
    ("reads", "set_of", "fault"),
    [
        ([3], torch.arange(4), "reads: wanted decisions in [0, 3), got [3]"),
        ([1], torch.arange(4), "set_of: wanted int64 [3] of rows, one for each combination"),
        ([1], torch.arange(3.0), "set_of: wanted int64 [3] of rows, one for each combination"),
    ],
)
def test_other_maps_are_not_loaded(reads: list[int], set_of: torch.Tensor, fault: str) -> None:
    set_map = SetMap(SIZES)
    state = {"reads": torch.tensor(reads), "set_of": set_of}
    with pytest.raises(RuntimeError, match=re.escape(fault)):
        set_map.load_state_dict(state)
    assert set_map.num_sets == 1


def test_state_goes_both_ways() -> None:
    set_map, other = SetMap(SIZES), SetMap(SIZES)
    state = copy.deepcopy(set_map.state_dict())
    set_map.assign([1, 2], torch.arange(12))
    other.load_state_dict(set_map.state_dict())
    assert torch.equal(other.rows(every_arch()), set_map.rows(every_arch()))
    other.load_state_dict(state)
    assert other.num_sets == 1
    assert set_map.num_sets == 12


def test_copies_are_their_own() -> None:
    set_map = SetMap(SIZES)
    set_map.assign([1], torch.arange(3))
    for twin in (copy.deepcopy(set_map), pickle.loads(pickle.dumps(set_map))):
        assert torch.equal(twin.rows(every_arch()), set_map.rows(every_arch()))
        twin.assign([0], torch.tensor([1, 0]))
        twin.set_of.fill_(1)
        assert set_map.set_of.tolist() == [0, 1, 2]
