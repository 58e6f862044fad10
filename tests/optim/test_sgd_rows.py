"""cw.optim.SGD on banks: a momentum for each row, sums, splits, and the recipes' two switches."""

import copy
import re
from typing import Any

import pytest
import torch
from optim_cases import DECAY, LR, MOMENTUM, HandSGD, Toy, row_gradient
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import cwkernels as cw
from cwkernels.nn import Bank
from cwkernels.ops._compact import slot_gradient
from cwkernels.testing import assert_within

# The rows that each step reads: lone, several, repeated, and none of a candidate's.
SCHEDULE: tuple[list[int], ...] = ([0], [2, 0], [1], [1, 1, 2], [], [0, 2, 0], [2], [1])


def gradients_by_row(bank: Bank, number: int, rows: list[int], seed: int) -> dict[int, Tensor]:
    """What `Toy.forward` gives, summed in order."""
    sums: dict[int, Tensor] = {}
    for place, row in enumerate(rows):
        own = row_gradient(bank, seed, number, place)
        sums[row] = sums[row] + own if row in sums else own
    return sums


def banks_of(net: Toy) -> tuple[tuple[Bank, float], ...]:
    """The banks and their weight decay."""
    return (net.weight, DECAY), (net.scale, 0.0)


def optimizer_of(net: Toy, **recipe: Any) -> cw.optim.SGD:
    return cw.optim.SGD(net, LR, MOMENTUM, DECAY, **recipe)


def backward(net: Toy, rows: list[int], seed: int) -> None:
    net(torch.tensor(rows, dtype=torch.int64), seed).backward()


def momentum_of(optimizer: cw.optim.SGD, bank: Bank) -> Tensor:
    buffer: Tensor = optimizer.state[bank.weight]["momentum_buffer"]
    return buffer


def assert_close(value: Tensor, wanted: Tensor) -> None:
    assert_within("float32 update", "value", value.detach(), wanted)


def test_each_set_is_a_parameter_with_a_stock_optimizer_of_its_own() -> None:
    net = Toy()
    optimizer = optimizer_of(net)
    sets = [
        [nn.Parameter(row.detach().clone()) for row in bank.weight] for bank, _ in banks_of(net)
    ]
    stock = [
        [torch.optim.SGD([one], LR, MOMENTUM, weight_decay=decay) for one in own]
        for own, (_, decay) in zip(sets, banks_of(net), strict=True)
    ]
    for seed, rows in enumerate(SCHEDULE):
        optimizer.zero_grad()
        backward(net, rows, seed)
        optimizer.step()
        for number, (bank, _) in enumerate(banks_of(net)):
            for row, gradient in gradients_by_row(bank, number, rows, seed).items():
                sets[number][row].grad = gradient
                stock[number][row].step()
            assert_close(bank.weight, torch.stack([one.detach() for one in sets[number]]))


def test_unselected_rows_and_momenta_stay_bitwise() -> None:
    net = Toy()
    optimizer = optimizer_of(net)
    backward(net, [0, 1, 2], 0)
    optimizer.step()
    for seed, rows in enumerate(SCHEDULE, start=1):
        before = [
            (bank.weight.detach().clone(), momentum_of(optimizer, bank).clone())
            for bank, _ in banks_of(net)
        ]
        optimizer.zero_grad()
        backward(net, rows, seed)
        optimizer.step()
        for (bank, _), (weight, momentum) in zip(banks_of(net), before, strict=True):
            for row in range(3):
                same = torch.equal(bank.weight[row], weight[row])
                assert same == (row not in rows)
                assert torch.equal(momentum_of(optimizer, bank)[row], momentum[row]) == same


BATCHES = (([0, 2], 1), ([2, 2], 2), ([0], 3), ([2], 4))


def compact(rows: list[int], values: Tensor, like: Tensor) -> Tensor:
    """A gradient as accumulation may leave it: rows in any order, repeated."""
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, like.shape, check_invariants=False)


@pytest.mark.parametrize("appended", [False, True])
def test_gradients_of_several_batches_are_summed(appended: bool) -> None:
    """In order: the sum rounds as adding one batch's gradient after another does."""
    net, other = Toy(), Toy()
    for rows, seed in BATCHES:
        backward(net, rows, seed)
    for number, ((bank, _), (twin, _)) in enumerate(
        zip(banks_of(net), banks_of(other), strict=True)
    ):
        batches = [gradients_by_row(bank, number, rows, seed) for rows, seed in BATCHES]
        total = torch.zeros_like(bank.weight)
        for batch in batches:
            for row, own in batch.items():
                total[row] += own
        twin.weight.grad = compact([0, 2], total[[0, 2]], bank.weight)
        if appended:
            rows = [row for batch in batches for row in batch]
            values = torch.stack([own for batch in batches for own in batch.values()])
            bank.weight.grad = compact(rows, values, bank.weight)
    optimizer_of(net).step()
    optimizer_of(other).step()
    for (bank, _), (twin, _) in zip(banks_of(net), banks_of(other), strict=True):
        assert torch.equal(bank.weight, twin.weight)


def test_a_gradient_in_no_order_is_sorted() -> None:
    net, other = Toy(), Toy()
    values = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    for module, rows in ((net, [2, 0, 1]), (other, [0, 1, 2])):
        module.weight.weight.grad = compact(rows, values[rows], module.weight.weight)
        optimizer_of(module).step()
    assert torch.equal(net.weight.weight, other.weight.weight)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zeroed_gradients_select_nothing(set_to_none: bool) -> None:
    net = Toy()
    optimizer = optimizer_of(net)
    backward(net, [0, 1], 0)
    optimizer.step()
    before = [bank.weight.detach().clone() for bank, _ in banks_of(net)]
    optimizer.zero_grad(set_to_none=set_to_none)
    optimizer.step()
    for (bank, _), weight in zip(banks_of(net), before, strict=True):
        assert torch.equal(bank.weight, weight)


@pytest.mark.parametrize("capacity", [3, 6])
def test_momenta_grow_from_their_sources(capacity: int) -> None:
    net = Toy(rows=3, capacity=capacity)
    optimizer = optimizer_of(net)
    for seed, rows in enumerate(([0], [1, 2], [2])):
        optimizer.zero_grad()
        backward(net, rows, seed)
        optimizer.step()
    momenta = [momentum_of(optimizer, bank).clone() for bank, _ in banks_of(net)]
    first, second = torch.tensor([2, 0, 1, 1]), torch.tensor([3, 3, 0, 1, 2, 0])
    for bank, _ in banks_of(net):
        bank.grow(first)
        bank.grow(second)
    weights = [bank.weight.detach().clone() for bank, _ in banks_of(net)]
    optimizer.zero_grad()
    backward(net, [4], 9)
    optimizer.step()
    for number, (bank, decay) in enumerate(banks_of(net)):
        expected = momenta[number][first][second]
        assert momentum_of(optimizer, bank).shape == bank.weight.shape
        gradient = row_gradient(bank, 9, number, 0) + decay * weights[number][4]
        expected[4] = MOMENTUM * expected[4] + gradient
        assert_close(momentum_of(optimizer, bank), expected)
        weights[number][4] -= LR * expected[4]
        assert_close(bank.weight, weights[number])


def test_a_bank_that_never_trained_grows_too() -> None:
    net = Toy()
    optimizer = optimizer_of(net)
    net.weight.grow(torch.tensor([0, 1, 2, 0, 1]))
    net.scale.grow(torch.tensor([0, 1, 2, 0, 1]))
    backward(net, [4], 0)
    optimizer.step()
    assert momentum_of(optimizer, net.weight).shape == (5, 2, 3)


class Calls(TorchDispatchMode):
    """The names of the operations that are called inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [[1], [2, 0]])
def test_a_step_is_one_call(rows: list[int]) -> None:
    net = Toy()
    optimizer = optimizer_of(net)
    for seed in range(2):
        optimizer.zero_grad()
        backward(net, rows, seed)
        with Calls() as calls:
            optimizer.step()
    assert len(optimizer.param_groups) == 2
    assert calls.names.count("cwkernels::sgd") == 1
    others = {name for name in calls.names if name.startswith("aten::")}
    assert others <= {"aten::_indices", "aten::_values", "aten::_nnz", "aten::detach"}


RECIPES = [
    {"unselected": unselected, "momentum_buffers": buffers}
    for unselected in ("untouched", "zero_grad")
    for buffers in ("per_set", "per_candidate")
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_by_hand(recipe: dict[str, str]) -> None:
    """With a split in the middle; `live` rows are those of the last pass, read or not."""
    net = Toy()
    optimizer = optimizer_of(net, **recipe)
    shared = recipe["momentum_buffers"] == "per_candidate"
    by_hand = [
        HandSGD(bank.weight.detach().clone(), decay, shared, recipe["unselected"] == "zero_grad")
        for bank, decay in banks_of(net)
    ]
    sources = torch.tensor([0, 2, 1, 2])
    for seed, (rows, live) in enumerate(
        [
            ([], [1]),
            ([0], [0]),
            ([2, 1], [1, 2]),
            ([], [2, 2]),
            ([1], [1, 0]),
            ([], [3, 1]),
            ([3, 0], [0, 3]),
            ([], [3]),
        ]
    ):
        if seed == 5:
            for (bank, _), own in zip(banks_of(net), by_hand, strict=True):
                bank.grow(sources)
                own.weight = own.weight[sources]
                own.momentum = own.momentum if shared else own.momentum[sources]
        optimizer.zero_grad()
        backward(net, rows, seed)
        net.last_rows = torch.tensor([[0] * len(live), live])
        optimizer.step()
        for number, ((bank, _), own) in enumerate(zip(banks_of(net), by_hand, strict=True)):
            own.step(gradients_by_row(bank, number, rows, seed), live)
            assert_close(bank.weight, own.weight)


# Slots of two architectures, -1 where one has none, and the rows that the decision read.
SLOTS = (
    ([-1, -1], [1, 2]),
    ([0, -1], [0, 2]),
    ([-1, -1], [2, 2]),
    ([-1, 1], [2, 1]),
    ([2, 0], [2, 0]),
    ([-1, -1], [0, 1]),
)


def give_slots(net: Toy, slots: list[int], live: list[int], seed: int) -> None:
    """What a backward pass leaves behind whose architectures only the device knew."""
    for number, (bank, _) in enumerate(banks_of(net)):
        own = [row_gradient(bank, seed, number, place) for place in range(len(slots))]
        rows, shape = torch.tensor(slots), bank.weight.shape
        bank.weight.grad = slot_gradient(rows, torch.stack(own), shape, dense_grad=False)
    net.last_rows = torch.tensor([[0] * len(live), live], dtype=torch.int32)


def by_pointer(optimizer: cw.optim.SGD) -> cw.optim.SGD:
    """With the learning rate of a graph, which makes the reference pass over slots without rows."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(LR, dtype=torch.float64)
    return optimizer


@pytest.mark.parametrize("buffers", ["per_set", "per_candidate"])
def test_zero_gradients_of_rows_that_only_the_device_knows(buffers: str) -> None:
    """Whether the candidate was ever trained lies there too, through a saved state as well."""
    net = Toy()
    optimizer = by_pointer(optimizer_of(net, unselected="zero_grad", momentum_buffers=buffers))
    by_hand = [
        HandSGD(bank.weight.detach().clone(), decay, buffers == "per_candidate", zero_grad=True)
        for bank, decay in banks_of(net)
    ]
    for seed, (slots, live) in enumerate(SLOTS):
        give_slots(net, slots, live, seed)
        with cw.backend("reference"):
            optimizer.step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for number, ((bank, _), own) in enumerate(zip(banks_of(net), by_hand, strict=True)):
            gradients = gradients_by_row(bank, number, slots, seed)
            gradients.pop(-1, None)
            own.step(gradients, live)
            assert_close(bank.weight, own.weight)
            assert optimizer.has_trained(bank.weight) == own.used


def test_rows_of_the_host_and_of_the_device_may_alternate() -> None:
    net = Toy()
    optimizer = by_pointer(optimizer_of(net, unselected="zero_grad"))
    give_slots(net, [-1, -1], [0, 1], seed=0)
    with cw.backend("reference"):
        optimizer.step()
    for rows, live, moved in (([], [0], False), ([1], [1], True), ([], [0], True)):
        before = net.weight.weight.detach().clone()
        optimizer.zero_grad()
        backward(net, rows, 1)
        net.last_rows = torch.tensor([[0], live])
        optimizer.step()
        assert torch.equal(net.weight.weight[live], before[live]) is not moved
        assert optimizer.has_trained(net.weight.weight) is moved


def test_gradients_of_different_passes_are_refused() -> None:
    net = Toy()
    net.other = Bank(torch.ones(3), net.set_map, 1, "other", capacity=3)
    optimizer = optimizer_of(net, unselected="zero_grad")
    give_slots(net, [0, -1], [0, 1], seed=0)
    shape = net.other.weight.shape
    net.other.weight.grad = slot_gradient(torch.tensor([0]), torch.ones(1, 3), shape, False)
    line = "wanted gradients of the same passes in all banks, got [1, 2] slots"
    with pytest.raises(RuntimeError, match=re.escape(line)):
        optimizer.step()
    assert not optimizer.state


def test_the_authors_way_in_a_super_network() -> None:
    """A candidate that was once used coasts in the row that its edge read last, and only there."""
    space = cw.spaces.nb201("full")
    net = cw.networks.nb201(space, channels=4, cells_per_stage=1)
    net.split()
    optimizer = cw.optim.SGD(net, LR, MOMENTUM, DECAY, unselected="zero_grad")
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    used: set[str] = set()
    for choices in ([3, 2, 3, 3, 2, 3], [2, 3, 0, 1, 4, 2], [1, 1, 1, 1, 1, 1]):
        arch = torch.tensor(choices)
        before = {name: bank.weight.detach().clone() for name, bank in net.banks().items()}
        optimizer.zero_grad()
        net(images, arch).square().mean().backward()
        optimizer.step()
        used |= {name for name, bank in net.banks().items() if bank.weight.grad is not None}
        for name, bank in net.banks().items():
            moved = (bank.weight != before[name]).flatten(1).any(dim=1).nonzero().flatten()
            assert moved.tolist() == ([bank.row(arch)] if name in used else []), name
    assert 0 < len(used) < len(net.banks())


@pytest.mark.parametrize("split", [False, True])
def test_its_state_goes_into_a_fresh_network_and_optimizer(split: bool) -> None:
    space = cw.spaces.nb201("full")
    archs = space.sample(6, generator=torch.Generator().manual_seed(1))
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def train(net: cw.networks.NB201SuperNetwork, optimizer: cw.optim.SGD, some: Tensor) -> None:
        for arch in some:
            optimizer.zero_grad()
            net(images, arch).square().mean().backward()
            optimizer.step()

    net, fresh = (cw.networks.nb201(space, channels=4, cells_per_stage=1) for _ in range(2))
    optimizer = cw.optim.SGD(net)
    train(net, optimizer, archs[:2])
    if split:
        net.split(decisions=[2])
        net.split()
    train(net, optimizer, archs[2:4])
    fresh.load_state_dict(net.state_dict())
    resumed = cw.optim.SGD(fresh)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for module, its_optimizer in ((net, optimizer), (fresh, resumed)):
        module.split()
        train(module, its_optimizer, archs[4:])
    for name, tensor in net.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name


def test_a_loaded_state_belongs_to_the_rows_as_they_are_now() -> None:
    """However often the rows were laid out anew before, here and where the state was saved."""
    net, fresh = Toy(rows=3), Toy(rows=3, capacity=1)
    optimizer = optimizer_of(net)
    for bank, _ in banks_of(net):
        bank.grow(torch.tensor([0, 1, 2, 0]))
        bank.grow(torch.tensor([3, 1, 2, 0, 1]))
    backward(net, [0, 4], 0)
    optimizer.step()
    fresh.load_state_dict(net.state_dict())
    resumed = optimizer_of(fresh)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for module, its_optimizer in ((net, optimizer), (fresh, resumed)):
        for bank, _ in banks_of(module):
            bank.grow(torch.tensor([4, 3, 2, 1, 0, 0]))
        its_optimizer.zero_grad()
        backward(module, [5, 0], 1)
        its_optimizer.step()
    for (bank, _), (twin, _) in zip(banks_of(net), banks_of(fresh), strict=True):
        assert torch.equal(bank.weight, twin.weight)
        assert torch.equal(momentum_of(optimizer, bank), momentum_of(resumed, twin))


def test_the_state_of_other_rows_is_refused() -> None:
    net, other = Toy(rows=3), Toy(rows=4)
    optimizer = optimizer_of(net)
    backward(net, [1], 0)
    optimizer.step()
    line = "SGD.load_state_dict: momentum of conv (decision 1): wanted [4, 2, 3], got [3, 2, 3]"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        optimizer_of(other).load_state_dict(optimizer.state_dict())


def test_rows_that_were_loaded_without_their_momenta_are_refused() -> None:
    net, other = Toy(rows=3, capacity=1), Toy(rows=3)
    optimizer = optimizer_of(net)
    backward(net, [0], 0)
    optimizer.step()
    net.load_state_dict(other.state_dict())
    backward(net, [2], 0)
    line = (
        "SGD.step: momentum of conv: wanted [3, 2, 3], the shape that load_state_dict gave the "
        "bank, got [1, 2, 3]: load the optimizer's state too"
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(line)}$"):
        optimizer.step()


def test_dense_gradients_move_every_row() -> None:
    net = Toy()
    other = nn.Parameter(net.weight.weight.detach().clone())
    stock = torch.optim.SGD([other], LR, MOMENTUM, weight_decay=DECAY)
    optimizer = optimizer_of(net)
    for seed in range(3):
        gradient = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(seed))
        net.weight.weight.grad, other.grad = gradient, gradient.clone()
        optimizer.step()
        stock.step()
        assert_close(net.weight.weight, other.detach())


def test_one_buffer_needs_compact_gradients() -> None:
    net = Toy()
    net.weight.weight.grad = torch.zeros_like(net.weight.weight)
    with pytest.raises(RuntimeError, match=r"^SGD.step: momentum_buffers='per_candidate': wanted"):
        optimizer_of(net, momentum_buffers="per_candidate").step()
