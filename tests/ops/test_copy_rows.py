"""copy_rows against indexing: values, gradients, autograd, bad input."""

import pytest
import torch
from torch import Tensor

from cwkernels import ops
from cwkernels.ops.backend import Backend
from cwkernels.testing import assert_bitwise, compact_rows, dense_random, refused, small_integers

OPERATION = "copy_rows"
pytestmark = pytest.mark.usefixtures("poisoned")

# The last is larger than the 64 KB that one thread copies at a time.
SHAPES = ((5,), (5, 7), (4, 3, 2, 3, 3), (4, 1, 1, 1, 1), (3, 64, 40, 3, 3))
ROWS: tuple[list[int], ...] = ([0], [2, 0], [2, 2, 0, 2, 1], [])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_copies_rows(shape: tuple[int, ...], rows: list[int], device: torch.device) -> None:
    bank, index = dense_random(*shape).to(device), torch.tensor(rows, dtype=torch.int64).to(device)
    copied = ops.copy_rows(bank, index)
    assert copied.is_contiguous()
    assert copied.data_ptr() != bank.data_ptr()
    if rows:
        assert_bitwise("copy", copied, bank[index])
    assert copied.shape == (len(rows), *shape[1:])


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool], ids=str
)
def test_copies_any_dtype(dtype: torch.dtype, device: torch.device) -> None:
    bank = small_integers(4, 3, 5).to(device, dtype)
    index = torch.tensor([3, 0, 3], device=device)
    assert torch.equal(ops.copy_rows(bank, index), bank[index])


def test_copies_from_a_slice_of_a_bank(device: torch.device) -> None:
    larger = torch.full((6, 7), torch.nan, device=device)
    larger[1:5] = dense_random(4, 7)
    index = torch.tensor([3, 0], device=device)
    assert_bitwise("copy", ops.copy_rows(larger[1:5], index), larger[[4, 1]])


def test_copies_to_any_number_of_threads(device: torch.device, threads: int) -> None:
    bank = dense_random(3, 64, 40, 3, 3).to(device)
    index = torch.tensor([2, 0, 2], device=device)
    assert_bitwise("copy", ops.copy_rows(bank, index), bank[index])


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)], ids=str)
def test_copies_nothing(shape: tuple[int, ...], device: torch.device) -> None:
    rows = list(range(shape[0]))
    index = torch.tensor(rows, dtype=torch.int64, device=device)
    copied = ops.copy_rows(torch.ones(shape, device=device), index)
    assert copied.shape == shape


def gradient(bank: Tensor, rows: Tensor, cotangent: Tensor, *, dense_grad: bool) -> Tensor:
    leaf = bank.detach().requires_grad_()
    ops.copy_rows(leaf, rows, dense_grad=dense_grad).backward(cotangent)
    assert leaf.grad is not None
    return leaf.grad


def test_gradient_is_compact_and_summed_in_order(device: torch.device) -> None:
    bank, rows = dense_random(5, 3, 7).to(device), torch.tensor([4, 1, 4, 4], device=device)
    cotangent = dense_random(4, 3, 7, seed=1).to(device)
    compact = gradient(bank, rows, cotangent, dense_grad=False)
    selected, values = compact_rows("gradient of bank", compact)
    assert selected == [1, 4]
    assert_bitwise("gradient of bank[1]", values[0], cotangent[1])
    assert_bitwise("gradient of bank[4]", values[1], cotangent[0] + cotangent[2] + cotangent[3])


@pytest.mark.parametrize("backend", ["kernels", "reference"])
@pytest.mark.parametrize("dense_grad", [True, False])
def test_gradient_is_that_of_indexing(
    dense_grad: bool, backend: Backend, device: torch.device
) -> None:
    bank, rows = dense_random(5, 3, 7).to(device), torch.tensor([4, 1, 4, 4], device=device)
    cotangent = small_integers(4, 3, 7).to(device)
    with ops.backend(backend):
        result = gradient(bank, rows, cotangent, dense_grad=dense_grad)
    indexed = bank.clone().requires_grad_()
    indexed[rows].backward(cotangent)
    assert indexed.grad is not None
    assert result.is_sparse != dense_grad
    assert_bitwise("gradient of bank", result.to_dense(), indexed.grad)


def test_compact_rows_are_sorted_and_unique(device: torch.device) -> None:
    bank, rows = dense_random(5, 3).to(device), torch.tensor([4, 1, 4, 0], device=device)
    compact = gradient(bank, rows, dense_random(4, 3, seed=1).to(device), dense_grad=False)
    assert compact_rows("gradient of bank", compact)[0] == [0, 1, 4]


def test_gradient_of_a_sum(device: torch.device) -> None:
    bank = dense_random(5, 3).to(device).requires_grad_()
    ops.copy_rows(bank, torch.tensor([4, 1, 4], device=device)).sum().backward()
    assert bank.grad is not None
    expected = torch.tensor([0.0, 1.0, 0.0, 0.0, 2.0], device=device)
    assert_bitwise("gradient of bank", bank.grad.to_dense(), expected[:, None].expand(5, 3))


def test_gradients_accumulate_over_batches(device: torch.device) -> None:
    bank = dense_random(5, 3).to(device).requires_grad_()
    cotangents = dense_random(2, 2, 3, seed=1).to(device)
    for rows, cotangent in zip(([3, 1], [1, 0]), cotangents, strict=True):
        ops.copy_rows(bank, torch.tensor(rows, device=device)).backward(cotangent)
    assert bank.grad is not None
    summed = bank.grad.coalesce()
    assert summed.indices()[0].tolist() == [0, 1, 3]
    (third, first), (first_again, zeroth) = cotangents
    expected = torch.stack([zeroth, first + first_again, third])
    assert_bitwise("gradient of bank", summed.values(), expected)


def test_no_rows_give_an_empty_gradient() -> None:
    nothing = torch.tensor([], dtype=torch.int64)
    compact = gradient(dense_random(5, 3), nothing, torch.zeros(0, 3), dense_grad=False)
    assert compact_rows("gradient of bank", compact)[0] == []
    dense = gradient(dense_random(5, 3), nothing, torch.zeros(0, 3), dense_grad=True)
    assert torch.equal(dense, torch.zeros(5, 3))


@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_a_loss_older_than_a_change_of_the_bank_is_refused(backend: Backend) -> None:
    bank = dense_random(5, 3).requires_grad_()
    with ops.backend(backend):
        copied = ops.copy_rows(bank, torch.tensor([1, 2]))
    with torch.no_grad():
        bank[0] += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        copied.sum().backward()


def test_gradcheck() -> None:
    rows = torch.tensor([3, 1, 3])

    def run(bank: Tensor) -> Tensor:
        return ops.copy_rows(bank, rows, dense_grad=True)

    assert torch.autograd.gradcheck(run, dense_random(4, 2, 3).double().requires_grad_())


@pytest.mark.parametrize("dense_grad", [True, False])
def test_opcheck(dense_grad: bool) -> None:
    arguments = (dense_random(4, 2, 3).requires_grad_(), torch.tensor([3, 1, 3]), dense_grad)
    torch.library.opcheck(torch.ops.cwkernels.copy_rows.default, arguments)


BAD = {
    "bank: wanted a contiguous tensor [S, ...], got []": (torch.ones(()), torch.tensor([0])),
    "bank: wanted a contiguous tensor [S, ...], got [4, 3]": (
        torch.ones(3, 4).mT,
        torch.tensor([0]),
    ),
    "rows: wanted int64 [A], got int64 []": (torch.ones(3, 4), torch.tensor(0)),
    "rows: wanted int64 [A], got int64 [1, 1]": (torch.ones(3, 4), torch.tensor([[0]])),
    "rows: wanted int64 [A], got int32 [1]": (
        torch.ones(3, 4),
        torch.tensor([0], dtype=torch.int32),
    ),
    "rows: wanted int64 [A], got float32 [1]": (torch.ones(3, 4), torch.tensor([0.0])),
    "rows: wanted a contiguous tensor, got a strided one": (
        torch.ones(3, 4),
        torch.arange(3)[::2],
    ),
    "rows[1]: wanted a row in [0, 3), got 3": (torch.ones(3, 4), torch.tensor([0, 3])),
    "rows[0]: wanted a row in [0, 3), got -1": (torch.ones(3, 4), torch.tensor([-1, 0])),
    "rows[0]: wanted a row in [0, 0), got 0": (torch.ones(0, 4), torch.tensor([0])),
}


@pytest.mark.parametrize(("message", "arguments"), BAD.items(), ids=BAD)
def test_bad_input_is_refused(message: str, arguments: tuple[Tensor, Tensor]) -> None:
    with refused(RuntimeError, f"copy_rows: {message}"):
        ops.copy_rows(*arguments)
