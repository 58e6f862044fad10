"""sgd against torch.optim.SGD, a stock optimizer for each row."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from cwkernels import ops
from cwkernels.ops.backend import Backend
from cwkernels.ops.sgd import WHOLE
from cwkernels.testing import (
    Call,
    assert_bitwise,
    assert_close_to_reference,
    dense_random,
    evaluate,
    refused,
    small_integers,
)
from cwkernels.testing.cases.sgd import network_calls
from cwkernels.testing.emulated import emulated, emulated_launches, why_not_emulated

OPERATION = "sgd"
pytestmark = pytest.mark.usefixtures("poisoned")

LR, MOMENTUM, DECAY = 0.1, 0.9, 0.02
CPU = torch.device("cpu")
BACKENDS = pytest.mark.parametrize("backend", ["kernels", "reference"])


@dataclass
class Bank:
    """A tensor to move, its gradients and which rows they are of; None to move it whole."""

    weight: Tensor
    grad: Tensor
    rows: list[int] | None
    shared: bool = False
    momentum: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.momentum = dense_random(*self.weight.shape, seed=77).to(self.weight.dtype)
        if self.shared:
            self.momentum = self.momentum[:1].clone()

    @property
    def index(self) -> Tensor:
        return WHOLE if self.rows is None else torch.tensor(self.rows, dtype=torch.int64)

    def turns(self) -> list[tuple[int, Tensor]]:
        """Each row that moves, in ascending order, and the sum of its gradients."""
        if self.rows is None:
            return [(0, self.grad)]
        turns = []
        for row in sorted(set(self.rows)):
            total = torch.zeros_like(self.weight[row])
            for own, gradient in zip(self.rows, self.grad, strict=False):
                if own == row:
                    total = total + gradient
            turns.append((row, total))
        return turns


# Sizes that fill no vector, several pieces of 4096, one piece and a bit.
SHAPES = ((3,), (2, 5, 3, 3), (16, 16), (64, 33, 3, 1), (4097,))


def banks(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Bank]:
    """One of every kind: whole, no row, one, several, repeated, without gradients, shared."""

    def draw(*shape: int, number: int) -> Tensor:
        return dense_random(*shape, seed=100 * seed + number).to(dtype)

    made = []
    for number, shape in enumerate(SHAPES):
        made.append(Bank(draw(*shape, number=number), draw(*shape, number=number + 10), None))
        for rows, given, shared in (
            ([], 0, False),
            ([3], 1, False),
            ([0, 2, 4], 3, False),
            ([4, 1, 4, 0, 4], 5, False),
            ([2, 0, 2, 3], 2, False),
            ([1], 0, False),
            ([3, 1, 3, 4], 4, True),
            ([2, 4, 0], 1, True),
        ):
            weight, grad = draw(5, *shape, number=number), draw(given, *shape, number=number + 20)
            made.append(Bank(weight, grad, rows, shared))
    return made


def moved_to(device: torch.device, own: list[Bank]) -> list[Bank]:
    for bank in own:
        for name in ("weight", "momentum", "grad"):
            setattr(bank, name, getattr(bank, name).to(device))
    return own


def move(
    own: list[Bank], lr: float = LR, momentum: float = MOMENTUM, weight_decay: float = DECAY
) -> None:
    lists = zip(*((b.weight, b.momentum, b.grad, b.index) for b in own), strict=True)
    ops.sgd(*map(list, lists), lr=lr, momentum=momentum, weight_decay=weight_decay)


def move_groups(groups: list[list[Bank]], options: list[tuple[float, float, float]]) -> None:
    """Each by a learning rate, a momentum and a weight decay of its own."""
    made = []
    for own, rates in zip(groups, options, strict=True):
        weights, momenta = [bank.weight for bank in own], [bank.momentum for bank in own]
        grads, rows = [bank.grad for bank in own], [bank.index for bank in own]
        made.append(ops.SGDGroup(weights, momenta, grads, rows, *rates))
    ops.sgd_groups(made)


def stock(own: Bank, lr: float, momentum: float, weight_decay: float) -> tuple[Tensor, Tensor]:
    """Weight and momentum after a stock optimizer has moved one row after the other."""
    weight, buffer = own.weight.clone(), own.momentum.clone()
    for row, gradient in own.turns():
        parameter = nn.Parameter(weight.clone() if own.rows is None else weight[row].clone())
        parameter.grad = gradient.clone()
        optimizer = torch.optim.SGD([parameter], lr, momentum, weight_decay=weight_decay)
        place = ... if own.rows is None else 0 if own.shared else row
        optimizer.state[parameter]["momentum_buffer"] = buffer[place].clone()
        optimizer.step()
        weight[... if own.rows is None else row] = parameter.detach()
        buffer[place] = optimizer.state[parameter]["momentum_buffer"]
    return weight, buffer


RATES = pytest.mark.parametrize(
    ("lr", "momentum", "weight_decay"), [(0.1, 0.9, 0.02), (0.025, 0.1, 3e-4), (1.0, 0.5, 0.0)]
)


@BACKENDS
@RATES
def test_is_as_close_as_torchs(
    lr: float, momentum: float, weight_decay: float, backend: Backend, device: torch.device
) -> None:
    ours, singles, doubles = moved_to(device, banks()), banks(), banks(torch.float64)
    with ops.backend(backend):
        move(ours, lr, momentum, weight_decay)
    for number, (own, single, double) in enumerate(zip(ours, singles, doubles, strict=True)):
        wanted, float_ = (stock(b, lr, momentum, weight_decay) for b in (double, single))
        for name, result, reference, theirs in zip(
            ("weight", "momentum"),
            (own.weight.cpu(), own.momentum.cpu()),
            wanted,
            float_,
            strict=True,
        ):
            assert_close_to_reference(f"{name}[{number}]", result, reference, theirs, terms=3)


@BACKENDS
def test_doubles(backend: Backend, device: torch.device) -> None:
    ours, theirs = moved_to(device, banks(torch.float64)), banks(torch.float64)
    with ops.backend(backend):
        move(ours)
    for own, their in zip(moved_to(CPU, ours), theirs, strict=True):
        weight, momentum = stock(their, LR, MOMENTUM, DECAY)
        assert_close_to_reference("weight", own.weight, weight, weight, terms=3)
        assert_close_to_reference("momentum", own.momentum, momentum, momentum, terms=3)


@BACKENDS
def test_small_integers_are_exact(backend: Backend, device: torch.device) -> None:
    """With rates that are powers of two nothing is rounded."""
    rates = (0.5, 0.25, 2.0)
    ours, theirs = banks(), banks()
    for own in (*ours, *theirs):
        for seed, tensor in enumerate((own.weight, own.momentum, own.grad)):
            tensor.copy_(small_integers(*tensor.shape, seed=seed))
    with ops.backend(backend):
        move(moved_to(device, ours), *rates)
    for own, their in zip(moved_to(CPU, ours), theirs, strict=True):
        weight, momentum = stock(their, *rates)
        assert_bitwise("weight", own.weight, weight, nonzero=0)
        assert_bitwise("momentum", own.momentum, momentum, nonzero=0)


@BACKENDS
def test_rows_that_are_not_named_are_not_even_read(backend: Backend, device: torch.device) -> None:
    """What lies there need not be a number: it would spread."""
    ours, untouched = banks(), banks()
    for own in (*ours, *untouched):
        if own.rows is None:
            continue
        for row in set(range(5)) - set(own.rows):
            own.weight[row] = torch.nan
            if not own.shared:
                own.momentum[row] = torch.nan
    with ops.backend(backend):
        move(moved_to(device, ours))
    for own, before in zip(moved_to(CPU, ours), untouched, strict=True):
        if own.rows is None:
            continue
        for row in range(5):
            changed = bool((own.weight[row] != before.weight[row]).any())
            assert bool(own.weight[row].isnan().all()) == (row not in own.rows)
            assert changed or row in own.rows


def test_the_momentum_of_a_row_that_is_not_finite_without_decay(device: torch.device) -> None:
    """As torch's: without weight decay the weight does not enter it."""
    own = Bank(torch.full((2, 5), torch.inf), torch.ones(1, 5), [1])
    own.momentum = torch.zeros(2, 5)
    move(moved_to(device, [own]), weight_decay=0.0)
    assert torch.equal(own.momentum.cpu(), torch.tensor([[0.0], [1.0]]).expand(2, 5))


@pytest.mark.parametrize("shared", [False, True])
def test_more_gradients_than_fit_a_launch(shared: bool, device: torch.device) -> None:
    """With rates that are powers of two and small integers nothing is rounded."""
    rates = (0.5, 0.25, 2.0)
    ours, theirs = (
        [
            Bank(small_integers(5, 6, seed=i), small_integers(count, 6, seed=i + 9), rows, shared)
            for i, count, rows in (
                (0, 3, [4, 0, 4]),
                (1, 400, [2, 0] * 100 + [2, 3] * 100),
                (2, 145, [1] * 145),
                (3, 2, [0, 1]),
            )
        ]
        for _ in "ab"
    )
    for own in (*ours, *theirs):
        own.momentum = small_integers(*own.momentum.shape, seed=3)
    move(moved_to(device, ours), *rates)
    for own, their in zip(moved_to(CPU, ours), theirs, strict=True):
        weight, momentum = stock(their, *rates)
        assert_bitwise("weight", own.weight, weight, nonzero=0)
        assert_bitwise("momentum", own.momentum, momentum, nonzero=0)


# More than a launch has room for, and one without decay.
OPTIONS = [(0.5, 0.25, 2.0), (0.5, 0.25, 0.0), (0.25, 0.5, 2.0), (0.5, 0.25, 0.0)]


@BACKENDS
def test_each_group_has_its_own_options(backend: Backend, device: torch.device) -> None:
    ours, theirs = ([banks(seed=seed) for seed in range(len(OPTIONS))] for _ in "ab")
    with ops.backend(backend):
        move_groups([moved_to(device, own) for own in ours], OPTIONS)
        for own, rates in zip(theirs, OPTIONS, strict=True):
            move(moved_to(device, own), *rates)
    for one, other in zip(chain(*ours), chain(*theirs), strict=True):
        assert_bitwise("weight", one.weight.cpu(), other.weight.cpu())
        assert_bitwise("momentum", one.momentum.cpu(), other.momentum.cpu())


def test_any_number_of_threads_gives_the_same() -> None:
    before, results = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(banks())
        move(results[-1])
    torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.momentum, other.momentum)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def gapped(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, torch.full_like(tensor, 99)], -1)[..., 0]


@BACKENDS
@pytest.mark.parametrize("rows", [None, [2, 0]])
@pytest.mark.parametrize("moved", ["weight", "momentum", "grad", "all"])
@pytest.mark.parametrize("lay", [channels_last, transposed, gapped])
def test_any_layout(
    rows: list[int] | None, moved: str, lay: Callable[[Tensor], Tensor], backend: Backend
) -> None:
    def make() -> Bank:
        entries = 4 if rows is None else 2
        return Bank(dense_random(4, 6, 3, 5), dense_random(entries, 6, 3, 5, seed=1), rows)

    own, dense = make(), make()
    for name in ("weight", "momentum", "grad"):
        if moved in (name, "all"):
            setattr(own, name, lay(getattr(own, name)))
    strides = own.weight.stride(), own.momentum.stride()
    with ops.backend(backend):
        move([own])
        move([dense])
    assert torch.equal(own.weight, dense.weight)
    assert torch.equal(own.momentum, dense.momentum)
    assert (own.weight.stride(), own.momentum.stride()) == strides


def test_expanded_gradients() -> None:
    own = Bank(dense_random(4, 6), dense_random(6, seed=1).expand(4, 6), None)
    dense = Bank(dense_random(4, 6), own.grad.contiguous(), None)
    move([own])
    move([dense])
    assert torch.equal(own.weight, dense.weight)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0)], ids=str)
def test_scalars_and_nothing(shape: tuple[int, ...]) -> None:
    own = Bank(dense_random(*shape), dense_random(*shape, seed=1), None)
    weight, momentum = stock(own, LR, MOMENTUM, DECAY)
    move([own])
    torch.testing.assert_close(own.weight, weight)
    torch.testing.assert_close(own.momentum, momentum)
    ops.sgd([], [], [], [], lr=LR, momentum=MOMENTUM, weight_decay=DECAY)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64], ids=str)
def test_other_dtypes_are_moved_as_the_reference_does(dtype: torch.dtype, backend: Backend) -> None:
    own, their = (Bank(dense_random(3, 4).to(dtype), torch.ones(1, 4).to(dtype), [2]) for _ in "ab")
    with ops.backend(backend):
        move([own])
    weight, momentum = stock(their, LR, MOMENTUM, DECAY)
    assert torch.equal(own.weight, weight)
    assert torch.equal(own.momentum, momentum)


@BACKENDS
def test_a_loss_older_than_a_step_is_refused(backend: Backend) -> None:
    own = Bank(dense_random(3, 4), dense_random(1, 4), [2])
    own.weight.requires_grad_()
    loss = own.weight.square().sum()
    with ops.backend(backend):
        move([own])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert own.weight.is_leaf


@pytest.mark.skipif(why_not_emulated(OPERATION) is not None, reason=f"{OPERATION} is not emulated")
@pytest.mark.parametrize("call", network_calls(2), ids=str)
def test_a_network_is_one_emulated_launch(call: Call) -> None:
    with emulated():
        evaluate(call.run, call.inputs(), {})
        assert emulated_launches() == 1


@pytest.mark.skipif(why_not_emulated(OPERATION) is not None, reason=f"{OPERATION} is not emulated")
@pytest.mark.parametrize(("count", "launches"), [(2, 1), (3, 2)])
def test_two_groups_are_one_emulated_launch(count: int, launches: int) -> None:
    with emulated():
        move_groups([banks()[:3] for _ in range(count)], OPTIONS[:count])
        assert emulated_launches() == launches


def test_opcheck() -> None:
    own = banks()
    lists = zip(*((b.weight, b.momentum, b.grad, b.index) for b in own), strict=True)
    sizes = [1, len(own) - 1]
    arguments = (*map(list, lists), sizes, [LR] * 2, [MOMENTUM] * 2, [DECAY, 0.0])
    torch.library.opcheck(torch.ops.cwkernels.sgd.default, arguments)


Lists = dict[str, list[Tensor]]
ROW = torch.tensor([1])
BAD: dict[str, Callable[[Lists], object]] = {
    "grads: wanted as many entries as weights, got 1": lambda lists: lists["grads"].pop(),
    "rows: wanted as many entries as weights, got 1": lambda lists: lists["rows"].pop(),
    "momentum_buffers: wanted as many entries as weights, got 1": (
        lambda lists: lists["momentum_buffers"].pop()
    ),
    "grads[1]: wanted rows of the weight's shape [3, 4], got [1, 5]": (
        lambda lists: lists["grads"].__setitem__(1, torch.ones(1, 5))
    ),
    "grads[1]: wanted rows of the weight's shape [3, 4], got [2, 4]": (
        lambda lists: lists["grads"].__setitem__(1, torch.ones(2, 4))
    ),
    "grads[1]: wanted float32 on the CPU, got float64": (
        lambda lists: lists["grads"].__setitem__(1, torch.ones(1, 4).double())
    ),
    "momentum_buffers[1]: wanted rows of the weight's shape [3, 4], got [2, 4]": (
        lambda lists: lists["momentum_buffers"].__setitem__(1, torch.ones(2, 4))
    ),
    "momentum_buffers[0]: wanted rows of the weight's shape [5], got [1]": (
        lambda lists: lists["momentum_buffers"].__setitem__(0, torch.ones(1))
    ),
    "rows[1]: wanted int64 [U] on the CPU, got float32 [1]": (
        lambda lists: lists["rows"].__setitem__(1, ROW.float())
    ),
    "rows[1]: wanted int64 [U] on the CPU, got int64 [2, 1]": (
        lambda lists: lists["rows"].__setitem__(1, torch.zeros((2, 1), dtype=torch.int64))
    ),
    "rows[1]: wanted rows in [0, 3), got 3": lambda lists: lists["rows"].__setitem__(1, ROW + 2),
    "rows[1]: wanted rows in [0, 3), got -1": lambda lists: lists["rows"].__setitem__(1, ROW - 2),
    "rows[0]: wanted rows in [0, 1), got 1": lambda lists: lists["rows"].__setitem__(0, ROW),
}


@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD)
def test_bad_input_is_refused_and_changes_nothing(
    message: str, change: Callable[[Lists], object]
) -> None:
    lists: Lists = {
        "weights": [torch.ones(5), torch.ones(3, 4)],
        "momentum_buffers": [torch.ones(5), torch.ones(3, 4)],
        "grads": [torch.ones(5), torch.ones(1, 4)],
        "rows": [WHOLE, ROW],
    }
    change(lists)
    with refused(RuntimeError, f"sgd: {message}"):
        ops.sgd(**lists, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    for tensor in (*lists["weights"], *lists["momentum_buffers"]):
        assert torch.equal(tensor, torch.ones_like(tensor))


@BACKENDS
def test_a_bad_group_is_refused_and_changes_no_group(backend: Backend) -> None:
    def groups(row: int) -> list[list[Bank]]:
        own = [Bank(torch.ones(3, 4), torch.ones(1, 4), [place]) for place in (1, 2, row)]
        return [own[:2], own[2:]]

    ours = groups(3)
    with ops.backend(backend):
        with refused(RuntimeError, "sgd: rows[2]: wanted rows in [0, 3), got 3"):
            move_groups(ours, OPTIONS[:2])
        # What one lacks the other has too many of.
        lists = ([torch.ones(2)], [torch.ones(2)] * 2)
        uneven = [
            ops.SGDGroup(lists[i], lists[i], lists[1 - i], [WHOLE], 0.1, 0.0, 0.0) for i in (0, 1)
        ]
        with refused(RuntimeError, "sgd: grads: wanted as many entries as weights, got 2"):
            ops.sgd_groups(uneven)
    for own in chain(*ours):
        assert torch.equal(own.weight, torch.ones_like(own.weight))


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([1, 2], "sizes[1]: wanted at most the 1 tensors that are left, got 2"),
        ([1, -1], "sizes[1]: wanted at most the 1 tensors that are left, got -1"),
        ([1, 0], "sizes: wanted all 2 tensors, got 1"),
        ([2], "lr: wanted as many entries as sizes, got 2"),
    ],
)
def test_groups_that_are_not_the_tensors_are_refused(sizes: list[int], wanted: str) -> None:
    ones = [torch.ones(2), torch.ones(2)]
    with refused(RuntimeError, f"sgd: {wanted}"):
        torch.ops.cwkernels.sgd(ones, ones, ones, [WHOLE] * 2, sizes, *[[0.0, 0.0]] * 3)


def test_the_reference_refuses_rows_too() -> None:
    own = [Bank(torch.ones(3, 4), torch.ones(1, 4), [row]) for row in (1, 3)]
    line = "sgd: rows[1]: wanted rows in [0, 3), got 3"
    with ops.backend("reference"), pytest.raises(RuntimeError, match=f"^{re.escape(line)}$"):
        move(own)
    assert torch.equal(own[0].weight, torch.ones(3, 4))
