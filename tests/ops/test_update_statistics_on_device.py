"""update_statistics with rows that lie on the device: bit for bit as with rows on the host."""

import pytest
import torch
from torch import Tensor

from cwkernels import ops
from cwkernels.testing import assert_bitwise, dense_random, refused
from cwkernels.testing.emulated import emulated, emulated_launches, why_not_emulated

OPERATION = "update_statistics"
on_gpu = pytest.mark.parametrize("device", ["emulated", "cuda"], indirect=True)
SETS, CHANNELS, COUNTS = (4, 2, 1), (5, 300, 3), (24, 12, 1)
ROWS = torch.tensor([[2, 0, 2, 2], [1, -1, 1, 0], [-1, -1, -1, -1]])


class Running:
    """The running statistics of batch norms, and one batch of statistics for each."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        sets: tuple[int, ...] = SETS,
        channels: tuple[int, ...] = CHANNELS,
        architectures: int = 4,
    ) -> None:
        shapes = list(zip(sets, channels, strict=True))
        drawn = [dense_random(*shape, seed=i).to(device, dtype) for i, shape in enumerate(shapes)]
        self.mean, self.var = drawn, [tensor.abs() for tensor in drawn]
        self.batches = [torch.arange(5, 5 + own, device=device) for own in sets]
        self.measured = [
            dense_random(architectures, 2, own, seed=50 + i).to(device, dtype)
            for i, own in enumerate(channels)
        ]

    def update(
        self, rows: Tensor, momentum: float | None, counts: tuple[int, ...] = COUNTS
    ) -> None:
        ops.update_statistics(
            self.mean, self.var, self.batches, self.measured, rows, counts, momentum=momentum
        )

    def tensors(self) -> list[Tensor]:
        return [*self.mean, *self.var, *self.batches]


def assert_same(one: Running, other: Running) -> None:
    for number, (ours, theirs) in enumerate(zip(one.tensors(), other.tensors(), strict=True)):
        assert_bitwise(str(number), ours.cpu().double(), theirs.cpu().double())


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_is_as_by_value(dtype: torch.dtype, momentum: float | None, device: torch.device) -> None:
    by_value, by_pointer, reference = (Running(device, dtype) for _ in range(3))
    by_value.update(ROWS, momentum)
    by_pointer.update(ROWS.int().to(device), momentum)
    assert_same(by_pointer, by_value)
    with ops.backend("reference"):
        reference.update(ROWS.int().to(device), momentum)
    for ours, theirs in zip(by_pointer.tensors(), reference.tensors(), strict=True):
        torch.testing.assert_close(ours, theirs)


@on_gpu
def test_rows_that_do_not_exist_are_passed_over(device: torch.device) -> None:
    by_value, by_pointer = Running(device), Running(device)
    by_value.update(ROWS, 0.3)
    bad = ROWS.int()
    bad[1, 1], bad[2] = 2, torch.tensor([1, -7, 2**30, -(2**31)])
    by_pointer.update(bad.to(device), 0.3)
    assert_same(by_pointer, by_value)


@on_gpu
def test_more_than_fits_a_launch(device: torch.device) -> None:
    """100 batch norms are two launches, in which each must find its own row of `rows`."""
    sets, channels, counts = (3,) * 100, (2,) * 100, (24,) * 100
    rows = torch.randint(-1, 3, (100, 9), generator=torch.Generator().manual_seed(1))
    by_value, by_pointer = (
        Running(device, torch.float32, sets, channels, architectures=9) for _ in range(2)
    )
    by_value.update(rows, 0.3, counts)
    by_pointer.update(rows.int().to(device), 0.3, counts)
    assert_same(by_pointer, by_value)


@pytest.mark.skipif(why_not_emulated(OPERATION) is not None, reason=f"{OPERATION} is not emulated")
def test_all_batch_norms_of_a_network_are_one_launch() -> None:
    """12 a cell, and those of stem, reductions and head."""
    count = 6 * 12 + 6
    with emulated():
        running = Running(torch.device("cpu"), torch.float32, (2,) * count, (1,) * count)
        running.update(torch.zeros(count, 4, dtype=torch.int32), 0.1, (4,) * count)
        assert emulated_launches() == 1


def test_the_cpus_kernels_refuse_them() -> None:
    running, before = Running(torch.device("cpu")), Running(torch.device("cpu"))
    wanted = "int64 [L, A] on the CPU for CPU kernels, got int32"
    with refused(RuntimeError, f"update_statistics: rows: wanted {wanted}"):
        running.update(ROWS.int(), 0.3)
    assert_same(running, before)
