"""What a split must not do silently: old losses, stale accumulators, an optimizer's old state."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from network_cases import (
    Network,
    arch_of,
    build,
    busy_arch,
    every_network,
    gradients,
    images_for,
    randomize,
    row_read,
    with_and_without_reserve,
)
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

import cwkernels as cw
from cwkernels.testing import assert_within

pytestmark = pytest.mark.usefixtures("one_thread")

MODIFIED = "modified by an inplace operation"

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]

STOCK: dict[str, MakeOptimizer] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters),
    "adamw": lambda parameters: torch.optim.AdamW(parameters),
}
every_stock_optimizer = pytest.mark.parametrize("make", STOCK.values(), ids=list(STOCK))


def loss_of(net: nn.Module, arch: Tensor) -> Tensor:
    loss: Tensor = net(images_for(), arch).square().mean()
    return loss


def step(net: nn.Module, optimizer: Optimizer, arch: Tensor) -> None:
    optimizer.zero_grad()
    loss_of(net, arch).backward()
    optimizer.step()


@every_network
@with_and_without_reserve
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dense_grad", [False, True])
@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_a_loss_built_before_the_split_raises(
    name: str, reserve: bool, training: bool, dense_grad: bool, backend: Any
) -> None:
    net = build(name, reserve=reserve, dense_grad=dense_grad).train(training)
    with cw.backend(backend):
        loss = loss_of(net, busy_arch(name))
    net.split()
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()
    for key, bank in net.banks().items():
        if bank.splits:
            assert bank.weight.grad is None, key


@pytest.mark.parametrize(
    ("name", "sample", "skip_projection"),
    [
        ("macro", ["12021201"], False),
        ("nb201", ["323232", "142314"], True),
    ],
)
@with_and_without_reserve
@pytest.mark.parametrize("training", [True, False])
def test_every_bank_is_saved_for_backward(
    name: str, sample: list[str], skip_projection: bool, reserve: bool, training: bool
) -> None:
    """One bank alone is laid out anew and asked for a gradient: no other one's check helps it."""
    net = (
        build(name, reserve=reserve, skip_projection=True)
        if skip_projection
        else build(name, reserve=reserve)
    )
    net.train(training).requires_grad_(False)
    refused = set()
    for arch in map(arch_of, sample):
        for key, bank in net.banks().items():
            if row_read(net, bank, arch) is None:
                continue
            bank.requires_grad_()
            loss = loss_of(net, arch)
            bank.grow(torch.arange(bank.weight.shape[0]))
            with pytest.raises(RuntimeError, match=MODIFIED):
                loss.backward()
            assert bank.weight.grad is None
            bank.requires_grad_(False)
            refused.add((bank.candidate, key.rpartition(".")[2]))
    assert refused == {
        (bank.candidate, key.rpartition(".")[2]) for key, bank in net.banks().items()
    }


@every_network
@with_and_without_reserve
def test_gradients_have_the_new_shape_while_an_old_loss_lives(name: str, reserve: bool) -> None:
    net, fresh = build(name, reserve=reserve), build(name, reserve=reserve)
    arch = busy_arch(name)
    loss_of(net, arch).backward()
    net.zero_grad()
    old_loss = loss_of(net, arch)
    net.split()
    fresh.load_state_dict(net.state_dict())
    for module in (net, fresh):
        loss_of(module, arch).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is None or parameter.grad.shape == parameter.shape, key
    expected = gradients(fresh)
    for key, gradient in gradients(net).items():
        assert torch.equal(gradient, expected[key]), key
    assert old_loss.isfinite()


REFUSED = (
    r"\.step: wanted state made after the last split of the bank of \w+ \(decision \d\), "
    r"got state from before: use cw\.optim\.SGD, whose buffers follow a split, "
    r"or make a new optimizer after it$"
)


@every_network
@with_and_without_reserve
@every_stock_optimizer
def test_a_stock_optimizer_with_state_is_refused_after_the_split(
    name: str, reserve: bool, make: MakeOptimizer
) -> None:
    net = build(name, reserve=reserve, dense_grad=True)
    optimizer = make(list(net.parameters()))
    step(net, optimizer, busy_arch(name))
    net.split(decisions=[2])
    before = [parameter.detach().clone() for parameter in net.parameters()]
    messages = set()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"^{type(optimizer).__name__}{REFUSED}") as refused:
            step(net, optimizer, busy_arch(name))
        messages.add(str(refused.value))
    assert len(messages) == 1
    for parameter, value in zip(net.parameters(), before, strict=True):
        assert torch.equal(parameter, value)

    anew = make(list(net.parameters()))
    for _ in range(2):
        step(net, anew, busy_arch(name))


@every_network
def test_a_stock_optimizer_with_compact_momentum_is_refused_too(name: str) -> None:
    net = build(name, reserve=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    step(net, optimizer, busy_arch(name))
    net.split()
    with pytest.raises(RuntimeError, match=f"^SGD{REFUSED}"):
        step(net, optimizer, busy_arch(name))


@every_network
def test_a_second_split_is_seen_too(name: str) -> None:
    net = build(name, dense_grad=True)
    net.split(decisions=[2])
    optimizer = torch.optim.Adam(net.parameters())
    step(net, optimizer, busy_arch(name))
    net.split(decisions=[4])
    with pytest.raises(RuntimeError, match=f"^Adam{REFUSED}"):
        step(net, optimizer, busy_arch(name))


@every_network
def test_other_rows_that_were_loaded_are_seen_too(name: str) -> None:
    net, other = build(name, dense_grad=True), build(name)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    step(net, optimizer, busy_arch(name))
    net.load_state_dict(other.state_dict())
    step(net, optimizer, busy_arch(name))
    other.split()
    net.load_state_dict(other.state_dict())
    with pytest.raises(RuntimeError, match=f"^SGD{REFUSED}"):
        step(net, optimizer, busy_arch(name))


@every_network
@with_and_without_reserve
@pytest.mark.parametrize("dense_grad", [False, True])
def test_a_stock_optimizer_without_state_goes_on(
    name: str, reserve: bool, dense_grad: bool
) -> None:
    net = build(name, reserve=reserve, dense_grad=dense_grad)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    step(net, optimizer, busy_arch(name))
    net.split()
    before = {key: p.detach().clone() for key, p in net.named_parameters()}
    step(net, optimizer, busy_arch(name))
    for key, gradient in gradients(net).items():
        expected = before[key] - 0.1 * gradient
        assert_within("float32 update", key, net.get_parameter(key).detach(), expected)


@every_network
def test_an_optimizer_made_before_the_split_but_never_stepped_goes_on(name: str) -> None:
    net = build(name, dense_grad=True)
    optimizer = torch.optim.Adam(net.parameters())
    net.split()
    step(net, optimizer, busy_arch(name))


@every_network
@every_stock_optimizer
def test_an_optimizer_of_other_parameters_is_not_disturbed(name: str, make: MakeOptimizer) -> None:
    net = build(name, dense_grad=True)
    other = nn.Linear(3, 3)
    optimizer = make([*other.parameters(), *net.classifier.parameters()])
    for _ in range(2):
        optimizer.zero_grad()
        (other(torch.ones(2, 3)).sum() + loss_of(net, busy_arch(name))).backward()
        optimizer.step()
        net.split()


@every_network
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
    ids=["deepcopied", "pickled"],
)
@every_stock_optimizer
def test_copies_are_watched_too(
    name: str, copied: Callable[[Network], Network], make: MakeOptimizer
) -> None:
    net = copied(build(name, reserve=True, dense_grad=True))
    optimizer = make(list(net.parameters()))
    step(net, optimizer, busy_arch(name))
    net.split()
    with pytest.raises(RuntimeError, match=REFUSED):
        step(net, optimizer, busy_arch(name))


@every_network
def test_the_split_of_a_copy_leaves_the_originals_optimizer_alone(name: str) -> None:
    net = build(name, reserve=True, dense_grad=True)
    optimizer = torch.optim.Adam(net.parameters())
    step(net, optimizer, busy_arch(name))
    copy.deepcopy(net).split()
    step(net, optimizer, busy_arch(name))


@every_network
def test_our_optimizer_follows(name: str) -> None:
    net = build(name)
    randomize(net)
    optimizer = cw.optim.SGD(net)
    for decisions in ([2], [4], None):
        step(net, optimizer, busy_arch(name))
        net.split(decisions=decisions)
    step(net, optimizer, busy_arch(name))
