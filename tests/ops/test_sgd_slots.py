"""sgd with rows and a learning rate that lie on the device: bitwise as with those of the host."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from cwkernels import ops
from cwkernels.ops.sgd import WHOLE
from cwkernels.testing import assert_bitwise, dense_random, refused
from cwkernels.testing.emulated import emulated, emulated_launches, why_not_emulated

OPERATION = "sgd_slots"
pytestmark = pytest.mark.usefixtures("poisoned")
on_gpu = pytest.mark.parametrize("device", ["emulated", "cuda"], indirect=True)
LR, MOMENTUM, DECAY = 0.1, 0.9, 0.02
SHAPES = ((3,), (2, 5, 3, 3), (16, 16), (65, 33, 1, 1))
# Rows of slots: one, none, repeated, unsorted, some without a gradient, out of range.
SLOTS: tuple[tuple[tuple[int, ...], int], ...] = (
    ((3,), 1),
    ((-1, -1), 2),
    ((4, 1, 4, 0, 4), 5),
    ((2, -1, 2, 3), 2),
    ((-1, 1), 1),
    ((5, 0, -3, 4), 4),
)


@dataclass
class Bank:
    """A tensor, its momentum, the gradients of its first slots and their rows; None: all of it."""

    shape: tuple[int, ...]
    slots: tuple[int, ...] | None
    entries: int
    shared: bool
    device: torch.device
    dtype: torch.dtype
    weight: Tensor = field(init=False)
    momentum: Tensor = field(init=False)
    grad: Tensor = field(init=False)

    def __post_init__(self) -> None:
        def draw(*shape: int, seed: int) -> Tensor:
            return dense_random(*shape, seed=seed).to(self.device, self.dtype)

        rows = () if self.slots is None else (5,)
        given = () if self.slots is None else (self.entries,)
        self.weight = draw(*rows, *self.shape, seed=1)
        self.momentum = draw(*rows, *self.shape, seed=2)
        self.momentum = self.momentum[:1].clone() if self.shared else self.momentum
        self.grad = draw(*given, *self.shape, seed=3)
        for slot, row in enumerate(self.slots or ()):
            if slot < self.entries and not 0 <= row < 5:
                self.grad[slot] = torch.nan  # what no one wrote

    def on_device(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = WHOLE if self.slots is None else torch.tensor(self.slots, device=self.device)
        return self.weight, self.momentum, self.grad, rows

    def on_host(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same without slots that move nothing."""
        if self.slots is None:
            return self.weight, self.momentum, self.grad, WHOLE
        kept = [slot for slot, row in enumerate(self.slots) if 0 <= row < 5]
        rows = torch.tensor([self.slots[slot] for slot in kept], dtype=torch.int64)
        grads = self.grad[[slot for slot in kept if slot < self.entries]]
        return self.weight, self.momentum, grads, rows


def banks(device: torch.device, dtype: torch.dtype = torch.float32) -> list[Bank]:
    made = []
    for shape in SHAPES:
        made.append(Bank(shape, None, 0, False, device, dtype))
        for slots, entries in SLOTS:
            made += [Bank(shape, slots, entries, own, device, dtype) for own in (False, True)]
    return made


def move(
    tensors: Sequence[tuple[Tensor, ...]], lr: float | Tensor, weight_decay: float = DECAY
) -> None:
    lists = map(list, zip(*tensors, strict=True))
    ops.sgd(*lists, lr=lr, momentum=MOMENTUM, weight_decay=weight_decay)


def move_groups(
    groups: Sequence[Sequence[tuple[Tensor, ...]]],
    rates: Sequence[float | Tensor],
    decays: Sequence[float],
) -> None:
    ops.sgd_groups(
        [
            ops.SGDGroup(weights, momenta, grads, rows, lr, MOMENTUM, decay)
            for own, lr, decay in zip(groups, rates, decays, strict=True)
            for weights, momenta, grads, rows in [zip(*own, strict=True)]
        ]
    )


def rate(device: torch.device, value: float = LR) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device=device)


def assert_same(ours: list[Bank], theirs: list[Bank]) -> None:
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert_bitwise(f"weight[{number}]", one.weight.cpu(), other.weight.cpu())
        assert_bitwise(f"momentum[{number}]", one.momentum.cpu(), other.momentum.cpu())


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight_decay", [0.0, DECAY])
def test_is_as_by_value(dtype: torch.dtype, weight_decay: float, device: torch.device) -> None:
    by_value, by_pointer = banks(device, dtype), banks(device, dtype)
    move([bank.on_host() for bank in by_value], LR, weight_decay)
    move([bank.on_device() for bank in by_pointer], rate(device), weight_decay)
    assert_same(by_pointer, by_value)


@on_gpu
def test_the_reference_is_near(device: torch.device) -> None:
    ours, theirs = banks(device, torch.float64), banks(device, torch.float64)
    move([bank.on_device() for bank in ours], rate(device))
    with ops.backend("reference"):
        move([bank.on_device() for bank in theirs], rate(device))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.weight, other.weight)
        torch.testing.assert_close(one.momentum, other.momentum)


@on_gpu
def test_the_learning_rate_is_read_when_it_runs(device: torch.device) -> None:
    first, second = banks(device), banks(device)
    lr = rate(device, 7.0)
    lr.fill_(0.03)
    move([bank.on_device() for bank in first], lr)
    move([bank.on_device() for bank in second], rate(device, 0.03))
    assert_same(first, second)
    lr.fill_(0.0)
    before = [bank.weight.clone() for bank in first]
    move([bank.on_device() for bank in first], lr)
    for bank, weight in zip(first, before, strict=True):
        assert torch.equal(bank.weight, weight)


@on_gpu
def test_each_group_has_its_own_options(device: torch.device) -> None:
    """Two read the same learning rate; one has a number, which is then read on the device, too."""
    rates, decays = (0.1, 0.03, 0.1), (0.0, DECAY, DECAY)
    by_value, by_pointer = ([banks(device)[:3] for _ in rates] for _ in "ab")
    for own, lr, decay in zip(by_value, rates, decays, strict=True):
        move([bank.on_host() for bank in own], lr, decay)
    read = rate(device, rates[0])
    groups = [[bank.on_device() for bank in own] for own in by_pointer]
    move_groups(groups, (read, rates[1], read), decays)
    for own, other in zip(by_pointer, by_value, strict=True):
        assert_same(own, other)


@on_gpu
def test_one_row_of_one_bank_is_no_whole_tensor(device: torch.device) -> None:
    """A bank of one set whose gradient no architecture wrote must stay as it is."""
    weight, momentum = torch.ones(1, 4, device=device), torch.ones(1, 4, device=device)
    grad = torch.full((1, 4), torch.nan, device=device)
    move([(weight, momentum, grad, torch.tensor([[-1]], device=device))], rate(device))
    assert torch.equal(weight, torch.ones_like(weight))
    assert torch.equal(momentum, torch.ones_like(momentum))


@on_gpu
def test_tensors_that_lie_otherwise(device: torch.device) -> None:
    """Parameters in channels-last beside gradients that are not."""
    one, other = (Bank((8, 6, 3, 3), None, 0, False, device, torch.float32) for _ in range(2))
    other.weight = other.weight.to(memory_format=torch.channels_last)
    for bank in (one, other):
        move([bank.on_device()], rate(device))
    assert_same([one], [other])


@contextmanager
def on_emulator() -> Iterator[None]:
    if (reason := why_not_emulated(OPERATION)) is not None:
        pytest.skip(reason)
    with emulated():
        yield


@pytest.mark.parametrize(("count", "launches"), [(94, 1), (95, 2)])
def test_all_tensors_of_a_network_are_one_launch(count: int, launches: int) -> None:
    """NAS-Bench-201 has 93: 12 a cell, 9 that all architectures share, 12 that do not decay."""
    cpu = torch.device("cpu")
    own = [Bank((2,), (1, 0), 2, False, cpu, torch.float32) for _ in range(count)]
    lists = [bank.on_device() for bank in own]
    with on_emulator():
        move_groups([lists[:12], lists[12:]], [rate(cpu), rate(cpu)], [0.0, DECAY])
        assert emulated_launches() == launches


@pytest.mark.parametrize(("count", "launches"), [(8, 1), (9, 2)])
def test_what_lies_in_many_ways_is_two_launches(count: int, launches: int) -> None:
    cpu = torch.device("cpu")
    ours, theirs = (
        [Bank((2,), (3, *(1,) * slots), 1, False, cpu, torch.float32) for slots in range(count)]
        for _ in "ab"
    )
    with on_emulator():
        move([bank.on_device() for bank in ours], rate(cpu))
        assert emulated_launches() == launches
        move([bank.on_host() for bank in theirs], LR)
    assert_same(ours, theirs)


def test_on_the_cpus_kernels_a_tensor_is_a_number() -> None:
    cpu = torch.device("cpu")
    one, other = (Bank((2, 3), (1, 0), 2, False, cpu, torch.float32) for _ in range(2))
    move([one.on_device()], rate(cpu))
    move([other.on_device()], LR)
    assert_same([one], [other])


@on_gpu
def test_bad_input_is_refused(device: torch.device) -> None:
    bank = Bank((2, 3), (1, 0), 2, False, device, torch.float32)
    weight, momentum, grad, rows = bank.on_device()
    wanted = "sgd_slots: lr_on_device[0]: wanted one float64 on the device of the weights, got"
    with refused(RuntimeError, f"{wanted} float32 []"):
        move([bank.on_device()], rate(device).float())
    with refused(RuntimeError, f"{wanted} float64 [2]"):
        move([bank.on_device()], rate(device).repeat(2))
    with refused(RuntimeError, "sgd_slots: rows[0]: wanted int64 [U] on the device of the weights"):
        move([(weight, momentum, grad, rows.int())], rate(device))
    with refused(RuntimeError, "sgd_slots: grads[0]: wanted rows of the weight's shape [5, 2, 3]"):
        move([(weight, momentum, grad[:, :1], rows)], rate(device))


def test_opcheck() -> None:
    cpu = torch.device("cpu")
    own = [Bank((2, 3), slots, 2, False, cpu, torch.float32) for slots in ((1, 0), None)]
    lists = list(map(list, zip(*(bank.on_device() for bank in own), strict=True)))
    lists[3][1] = torch.zeros((), dtype=torch.int64)
    arguments = (*lists, [2], [0.0], [rate(cpu)], [MOMENTUM], [DECAY])
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    with on_emulator():
        torch.library.opcheck(torch.ops.cwkernels.sgd_slots.default, arguments, test_utils=checks)
