"""Comparators: each raises an AssertionError that says what differs and by how much."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from cwkernels.testing.devices import processor
from cwkernels.testing.functions import Expected, Results
from cwkernels.testing.tolerances import (
    ALLOWANCES,
    CONVOLUTION_ERRORS,
    FLIPPED_SHARE,
    LEAST_NONZERO,
    TOLERANCES,
    Rounding,
)


def relative_error(result: Tensor, reference: Tensor) -> float:
    """The norm of the difference over the norm of the reference, in float64."""
    reference = reference.double()
    return float((result.double() - reference).norm() / reference.norm())


def assert_close_to_reference(
    name: str,
    result: Tensor,
    reference: Tensor,
    stock: Tensor,
    *,
    terms: int,
    nonzero: float = LEAST_NONZERO,
    precision: Rounding = "highest",
    convolutions: int = 1,
    flips: int = 0,
) -> None:
    """Raises AssertionError unless `result` is as close to `reference` as the table asks.

    Args:
        name: of the tensor, for the message.
        result: what is tested.
        reference: the same, computed in float64 from the same inputs.
        stock: the same, computed by stock torch in `result`'s dtype.
        terms: how many products one element sums; of no account for bfloat16, which is summed in
            float32.
        nonzero: the share of the reference that must not be zero.
        precision: with which float32 was convolved, or "bf16" where activations are stored so.
        convolutions: how many of them follow each other, whose errors add up.
        flips: of a gradient, how many ReLUs of what they gave it goes through.
    """
    assert reference.dtype == torch.float64, f"{name}: the reference is {reference.dtype}"
    _assert_comparable(name, result, reference, nonzero)
    assert result.dtype == stock.dtype, f"{name}: {result.dtype}, stock's {stock.dtype}"
    tolerance = TOLERANCES[result.dtype]
    error, stock_error = relative_error(result, reference), relative_error(stock, reference)
    roundings = 1 if result.dtype == torch.bfloat16 else terms
    floor = tolerance.floor * torch.finfo(result.dtype).eps * roundings**0.5
    bound = max(tolerance.stock * stock_error, floor)
    if result.dtype != torch.float64:
        own = CONVOLUTION_ERRORS[processor(), precision]
        bound = max(bound, convolutions * own, (flips * FLIPPED_SHARE * own) ** 0.5)
    assert error <= bound, (
        f"{name}: relative error {error:.2e}, bound {bound:.2e} "
        f"(stock's error {stock_error:.2e}, floor for {terms} terms {floor:.2e})"
    )


def assert_bitwise(
    name: str, result: Tensor, expected: Tensor, *, nonzero: float = LEAST_NONZERO
) -> None:
    """Raises AssertionError unless both are the same, bit for bit (but for the sign of a zero)."""
    _assert_comparable(name, result, expected, nonzero)
    assert result.dtype == expected.dtype, f"{name}: {result.dtype}, wanted {expected.dtype}"
    different = (result != expected).nonzero()
    if len(different):
        place = tuple(different[0].tolist())
        raise AssertionError(
            f"{name}: {len(different)} of {expected.numel()} elements differ, the first at "
            f"{list(place)}: {result[place].item()!r}, wanted {expected[place].item()!r}"
        )


def _assert_comparable(name: str, result: Tensor, reference: Tensor, nonzero: float) -> None:
    got, wanted = list(result.shape), list(reference.shape)
    assert got == wanted, f"{name}: shape {got}, wanted {wanted}"
    assert torch.isfinite(reference).all(), f"{name}: the reference is not finite"
    share = int(reference.count_nonzero()) / max(reference.numel(), 1)
    assert share >= nonzero, f"{name}: the reference is zero but for {share:.1%} of its elements"
    bad = int((~torch.isfinite(result)).sum())
    assert bad == 0, f"{name}: {bad} of {result.numel()} elements are not finite"


def assert_within(row: str, name: str, result: Tensor, expected: Tensor) -> None:
    """Raises AssertionError unless all elements are as close as a row of `ALLOWANCES` says.

    Args:
        row: the name of the row.
        name: of the tensor, for the message.
        result: what is tested.
        expected: the same, in `result`'s dtype, computed another way.
    """
    allowed = ALLOWANCES[row]
    torch.testing.assert_close(
        result,
        expected,
        rtol=allowed.relative,
        atol=allowed.absolute,
        msg=lambda text: f"{name}: {text}",
    )


def compact_rows(name: str, gradient: Tensor) -> tuple[list[int], Tensor]:
    """The rows of a bank's compact gradient, and their values [U, ...].

    Raises AssertionError unless it is a sparse tensor whose rows are sorted and unique.
    """
    assert gradient.is_sparse, f"{name}: a dense gradient, wanted a compact one"
    assert gradient.sparse_dim() == 1, f"{name}: {gradient.sparse_dim()} sparse dimensions"
    rows: list[int] = gradient._indices()[0].tolist()
    assert rows == sorted(set(rows)), f"{name}: rows {rows} are not sorted and unique"
    return rows, gradient._values()


def assert_as_close(
    results: Results,
    expected: Expected,
    *,
    terms: Mapping[str, int],
    nonzero: Mapping[str, float] | None = None,
    precision: Rounding = "highest",
    convolutions: int = 1,
    flips: int = 0,
) -> None:
    """Raises AssertionError unless `results` are as close to the reference as stock torch's.

    Outputs and gradients are compared one by one. A compact gradient must hold exactly the rows in
    which the reference is not zero, and none must be where that is all zero.

    Args:
        results: from `evaluate`, for float32 inputs or bfloat16 activations.
        expected: from `expect`; what the oracle gives is compared.
        terms: by name of the output or gradient, see `assert_close_to_reference`; "" for others.
        nonzero: by name, the share of the reference that must not be zero.
        precision: with which float32 was convolved, or "bf16" where activations are stored so.
        convolutions: how many of them follow each other, whose errors add up.
        flips: how many ReLUs of what they gave the gradients go through.
    """
    for name, reference in expected.reference.items():
        compared = _comparable(name, results[name], reference, expected.stock[name])
        if compared is not None:
            least = (nonzero or {}).get(name, LEAST_NONZERO)
            size = terms[name] if name in terms else terms[""]
            assert_close_to_reference(
                name,
                *compared,
                terms=size,
                nonzero=least,
                precision=precision,
                convolutions=convolutions,
                flips=flips if name.startswith("gradient") else 0,
            )


def _comparable(
    name: str, result: Tensor | None, reference: Tensor | None, stock: Tensor | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """All three dense, for the rows that a compact result holds; None where nothing flows."""
    if reference is None or stock is None or not reference.to_dense().any():
        assert result is None or not result.is_sparse, f"{name}: a gradient where none flows"
        assert result is None or not result.any(), f"{name}: not zero where nothing flows"
        return None
    assert result is not None, f"{name}: no gradient"
    reference, stock = reference.to_dense(), stock.to_dense()
    if not result.is_sparse:
        return result, reference, stock
    rows, values = compact_rows(name, result)
    wanted = reference.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
    assert rows == wanted, f"{name}: rows {rows}, wanted {wanted}"
    return values, reference[rows], stock[rows]


@contextmanager
def refused(error: type[Exception], message: str) -> Iterator[None]:
    """Raises AssertionError unless exactly `error` is raised inside, with `message` in its text."""
    raised: Exception | None = None
    try:
        yield
    except Exception as caught:
        raised = caught
    assert type(raised) is error, f"{raised!r}, wanted {error.__name__}: {message}"
    assert message in str(raised), f"{str(raised)!r}, wanted {message!r}"
