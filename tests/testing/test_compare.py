"""The comparators themselves: what is wrong fails, and the message says what and by how much."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cwkernels.testing import (
    ALLOWANCES,
    assert_as_close,
    assert_bitwise,
    assert_close_to_reference,
    assert_within,
    compact_rows,
    dense_random,
    evaluate,
    expect,
    poisoned_memory,
    refused,
    relative_error,
)

EPSILON = torch.finfo(torch.float32).eps


def test_relative_error_is_of_norms() -> None:
    reference = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(torch.tensor([3.0, 4.5]), reference) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.tensor([1.0, 2.0, 4.0]), r"tensor: 1 of 3 elements differ, .* \[2\]: 4.0, wanted 3"),
        (torch.tensor([1.0, 2.0, 3.0000002]), "tensor: 1 of 3 elements differ"),
        (torch.tensor([1.0, 2.0, torch.nan]), "tensor: 1 of 3 elements are not finite"),
        (torch.tensor([1.0, 2.0]), r"tensor: shape \[2\], wanted \[3\]"),
        (torch.tensor([1.0, 2.0, 3.0]).double(), "tensor: torch.float64, wanted torch.float32"),
    ],
)
def test_a_bit_that_differs_fails(result: Tensor, message: str) -> None:
    expected = torch.tensor([1.0, 2.0, 3.0])
    assert_bitwise("tensor", expected.clone(), expected)
    with pytest.raises(AssertionError, match=message):
        assert_bitwise("tensor", result, expected)


def test_a_reference_of_zeros_proves_nothing() -> None:
    zeros, few = torch.zeros(100), torch.zeros(100)
    few[:9] = 1
    for reference in (zeros, few):
        with pytest.raises(AssertionError, match="the reference is zero but for"):
            assert_bitwise("tensor", reference, reference)
        with pytest.raises(AssertionError, match="the reference is zero but for"):
            assert_close_to_reference("tensor", reference, reference.double(), reference, terms=1)


def compare(error: float, stock_error: float, terms: int) -> None:
    """Compares a result and stock's of the given relative errors."""
    reference = dense_random(100).double()
    result, stock = ((reference * (1 + e)).float() for e in (error, stock_error))
    assert_close_to_reference("tensor", result, reference, stock, terms=terms)


def test_an_error_may_be_twice_stocks_or_the_floor() -> None:
    compare(error=1.9e-4, stock_error=1e-4, terms=1)
    compare(error=0.9 * EPSILON * 10, stock_error=0.0, terms=100)
    with pytest.raises(AssertionError, match=r"tensor: relative error 2\.10e-04, bound 2\.00e-04"):
        compare(error=2.1e-4, stock_error=1e-4, terms=1)
    with pytest.raises(AssertionError, match=r"floor for 100 terms 1\.19e-06"):
        compare(error=1.1 * EPSILON * 10, stock_error=0.0, terms=100)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_result_that_is_not_finite_fails(bad: float) -> None:
    reference = dense_random(10).double()
    result = reference.float()
    result[3] = bad
    with pytest.raises(AssertionError, match="1 of 10 elements are not finite"):
        assert_close_to_reference("tensor", result, reference, reference.float(), terms=10)


@pytest.mark.parametrize("row", ALLOWANCES)
def test_two_ways_may_differ_by_what_their_row_allows(row: str) -> None:
    dtype = torch.float64 if row.startswith("float64") else torch.float32
    expected = torch.tensor([0.0, 1.0, -2.0], dtype=dtype)
    allowed = ALLOWANCES[row].absolute + ALLOWANCES[row].relative * expected.abs()
    assert_within(row, "tensor", expected + 0.9 * allowed, expected)
    for place in range(3):
        result = expected + 0.9 * allowed
        result[place] += 0.5 * allowed[place]
        with pytest.raises(AssertionError, match=r"^tensor: .*not close"):
            assert_within(row, "tensor", result, expected)


@pytest.mark.parametrize(
    "result",
    [
        torch.tensor([1.0, torch.nan]),
        torch.tensor([1.0]),
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([1.0, 2.0]).double(),
    ],
    ids=["nan", "short", "shape", "dtype"],
)
def test_what_is_within_is_comparable(result: Tensor) -> None:
    with pytest.raises(AssertionError, match=r"^tensor: "):
        assert_within("float32 network", "tensor", result, torch.tensor([1.0, 2.0]))


def test_there_is_one_table_of_tolerances() -> None:
    root = Path(__file__).parents[2]
    elsewhere = [
        f"{path.relative_to(root)}: {line.strip()}"
        for folder in ("bench", "tests")
        for path in sorted((root / folder).rglob("*.py"))
        for line in path.read_text().splitlines()
        if re.search(r"\b[ra]tol=|allclose\(|\bTOLERANCE =", line) and path != Path(__file__)
    ]
    assert elsewhere == []


def sparse_rows(*rows: int) -> Tensor:
    indices, values = torch.tensor([rows]), torch.ones(len(rows), 2)
    return torch.sparse_coo_tensor(indices, values, (3, 2), check_invariants=True)


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (torch.ones(3, 2), "a dense gradient"),
        (torch.ones(3, 2).to_sparse(2), "2 sparse dimensions"),
        (sparse_rows(2, 0), "not sorted and unique"),
        (sparse_rows(1, 1), "not sorted and unique"),
    ],
    ids=["dense", "sparse_elements", "unsorted", "repeated"],
)
def test_a_gradient_that_is_not_compact_fails(gradient: Tensor, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        compact_rows("gradient", gradient)


def test_rows_and_missing_gradients_are_compared() -> None:
    bank = {"bank": dense_random(4, 3)}
    cotangent = {"output": dense_random(3, seed=1)}

    def read(row: int) -> dict[str, Tensor | None]:
        return evaluate(lambda tensors: {"output": tensors["bank"][row]}, bank, cotangent)

    expected = expect(lambda tensors: {"output": tensors["bank"][1]}, bank, cotangent)
    results = read(1)
    assert_as_close(results, expected, terms={"": 1})
    dense = results["gradient of bank"]
    assert dense is not None
    results["gradient of bank"] = dense.to_sparse(1)
    assert_as_close(results, expected, terms={"": 1})
    other = read(2)["gradient of bank"]
    assert other is not None
    for wrong, message in (
        (None, "gradient of bank: no gradient"),
        (other.to_sparse(1), r"gradient of bank: rows \[2\], wanted \[1\]"),
        (other, "gradient of bank: relative error"),
    ):
        results["gradient of bank"] = wrong
        with pytest.raises(AssertionError, match=message):
            assert_as_close(results, expected, terms={"": 1})


def test_what_is_not_written_shows() -> None:
    with poisoned_memory():
        assert torch.empty(5).isnan().all()
        assert torch.ones(3).new_empty(4, 2).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_only_the_error_that_is_wanted_is_refused() -> None:
    with refused(ValueError, "the words"):
        raise ValueError("op: the words")
    with pytest.raises(AssertionError, match="other words"), refused(ValueError, "the words"):
        raise ValueError("other words")
    with pytest.raises(AssertionError, match="RuntimeError"), refused(ValueError, "the words"):
        raise RuntimeError("the words")
    with pytest.raises(AssertionError, match="None, wanted"), refused(ValueError, "the words"):
        pass
