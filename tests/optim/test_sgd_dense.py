"""cw.optim.SGD on ordinary parameters: torch.optim.SGD, its schedulers, GradScaler, its state."""

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_cases import DECAY, LR, MOMENTUM, Toy, noise
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler
from torch.optim.optimizer import Optimizer

import cwkernels as cw
from cwkernels.testing import assert_within


def plain() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5), nn.LayerNorm(5)
        )


def stock(net: nn.Sequential, momentum: float, weight_decay: float) -> torch.optim.SGD:
    norms = [*net[1].parameters(), *net[4].parameters()]
    others = [*net[0].parameters(), *net[3].parameters()]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=LR, momentum=momentum, weight_decay=weight_decay)


def step(net: nn.Module, optimizer: Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    net(noise(6, 3, 4, 4, seed=seed)).square().mean().backward()
    optimizer.step()


def assert_equal(net: nn.Module, other: nn.Module) -> None:
    for (name, tensor), wanted in zip(net.named_parameters(), other.parameters(), strict=True):
        assert_within("float32 update", name, tensor, wanted)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_it_is_torchs_on_a_plain_module(momentum: float, weight_decay: float) -> None:
    net, other = plain(), plain()
    ours = cw.optim.SGD(net, lr=LR, momentum=momentum, weight_decay=weight_decay)
    theirs = stock(other, momentum, weight_decay)
    for seed in range(6):
        step(net, ours, seed)
        step(other, theirs, seed)
        assert_equal(net, other)


SCHEDULERS: list[Callable[[Optimizer], LRScheduler]] = [
    lambda optimizer: CosineAnnealingLR(optimizer, T_max=6, eta_min=1e-5),
    lambda optimizer: LambdaLR(optimizer, lambda number: 0.5**number),
]


@pytest.mark.parametrize("make", SCHEDULERS)
def test_schedulers_drive_it(make: Callable[[Optimizer], LRScheduler]) -> None:
    net, other = plain(), plain()
    optimizers = [cw.optim.SGD(net, LR, 0.9, 0.1), stock(other, 0.9, 0.1)]
    schedulers = [make(optimizer) for optimizer in optimizers]
    for seed in range(6):
        for module, optimizer, scheduler in zip((net, other), optimizers, schedulers, strict=True):
            step(module, optimizer, seed)
            scheduler.step()
        assert_equal(net, other)
    assert optimizers[0].param_groups[0]["lr"] < LR / 10


def names_of(net: nn.Module, parameters: list[Tensor]) -> set[str]:
    return {name for name, p in net.named_parameters() if any(p is one for one in parameters)}


def test_two_groups() -> None:
    net = Toy()
    decayed, norms = cw.optim.SGD(net, weight_decay=DECAY).param_groups
    assert names_of(net, decayed["params"]) == {"weight.weight", "linear.weight", "linear.bias"}
    assert names_of(net, norms["params"]) == {
        "scale.weight",
        "batch_norm.weight",
        "batch_norm.bias",
        "fixed_norm.weight",
        "fixed_norm.bias",
    }
    assert (decayed["weight_decay"], norms["weight_decay"]) == (DECAY, 0.0)


def test_the_groups_of_a_super_network() -> None:
    net = cw.networks.nb201(cw.spaces.nb201(), channels=4, cells_per_stage=1)
    decayed, norms = cw.optim.SGD(net).param_groups
    assert all("norm" in name for name in names_of(net, norms["params"]))
    banks = {f"{name}.weight" for name in net.banks()}
    assert banks | {"classifier.bias"} <= names_of(net, decayed["params"])
    assert len(decayed["params"]) + len(norms["params"]) == len(list(net.parameters()))


def test_a_module_without_norms_has_one_group() -> None:
    assert len(cw.optim.SGD(nn.Linear(2, 2)).param_groups) == 1


def test_a_closure() -> None:
    net = plain()
    optimizer = cw.optim.SGD(net, lr=LR)
    before = copy.deepcopy(net.state_dict())
    assert optimizer.step() is None
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())

    def closure() -> float:
        optimizer.zero_grad()
        loss: Tensor = net(noise(6, 3, 4, 4, seed=0)).square().mean()
        loss.backward()
        return loss.item()

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss > 0
    other = plain()
    step(other, cw.optim.SGD(other, lr=LR), 0)
    assert_equal(net, other)


def scaled_step(
    net: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler, loss: Tensor
) -> None:
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


def test_grad_scaler() -> None:
    net, other = Toy(), Toy()
    ours, unscaled = cw.optim.SGD(net, LR), cw.optim.SGD(other, LR)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed, rows in enumerate(([0], [2, 0], [2])):
        scaled_step(net, ours, scaler, net(torch.tensor(rows), seed))
        unscaled.zero_grad()
        other(torch.tensor(rows), seed).backward()
        unscaled.step()
        assert_equal(net, other)


def test_grad_scaler_skips_a_step_with_an_infinite_gradient() -> None:
    net = Toy()
    optimizer = cw.optim.SGD(net, LR)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled_step(net, optimizer, scaler, net(torch.tensor([1]), 0))
    before = copy.deepcopy((list(net.parameters()), optimizer.state_dict()["state"]))
    loss = net(torch.tensor([1]), 1) + float("inf") * net.weight.weight[1, 0, 0]
    scaled_step(net, optimizer, scaler, loss)
    after = (list(net.parameters()), optimizer.state_dict()["state"])
    assert scaler.get_scale() == 512.0
    for old, new in zip(before[0], after[0], strict=True):
        assert torch.equal(old, new)
    for number, state in before[1].items():
        assert torch.equal(state["momentum_buffer"], after[1][number]["momentum_buffer"])


def toy_step(net: Toy, optimizer: Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    net(torch.tensor([seed % 3, 1]), seed).backward()
    optimizer.step()


def assert_bitwise(net: nn.Module, other: nn.Module) -> None:
    for (name, tensor), wanted in zip(net.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(tensor, wanted), name


RECIPES: list[dict[str, Any]] = [
    {},
    {"unselected": "zero_grad"},
    {"momentum_buffers": "per_candidate"},
    {"unselected": "zero_grad", "momentum_buffers": "per_candidate"},
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_its_state_goes_on_bitwise(recipe: dict[str, Any]) -> None:
    net = Toy()
    optimizer = cw.optim.SGD(net, LR, MOMENTUM, DECAY, **recipe)
    for seed in range(3):
        toy_step(net, optimizer, seed)
    optimizer.param_groups[0]["lr"] = LR / 2
    other = Toy()
    other.load_state_dict(net.state_dict())
    resumed = cw.optim.SGD(other, **recipe)
    resumed.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    for seed in range(3, 6):
        toy_step(net, optimizer, seed)
        toy_step(other, resumed, seed)
        assert_bitwise(net, other)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))],
    ids=["deepcopied", "pickled"],
)
def test_a_copy_goes_on_bitwise(recipe: dict[str, Any], copied: Callable[..., Any]) -> None:
    net = Toy()
    optimizer = cw.optim.SGD(net, LR, MOMENTUM, DECAY, **recipe)
    for seed in range(3):
        toy_step(net, optimizer, seed)
    twin, its_optimizer = copied((net, optimizer))
    for seed in range(3, 6):
        toy_step(net, optimizer, seed)
        toy_step(twin, its_optimizer, seed)
        assert_bitwise(net, twin)
    assert twin.weight.weight is not net.weight.weight


@pytest.mark.parametrize(
    ("arguments", "error", "line"),
    [
        ({"lr": -0.1}, ValueError, "lr: wanted a number of at least 0, got -0.1"),
        ({"lr": float("nan")}, ValueError, "lr: wanted a number of at least 0, got nan"),
        ({"lr": "0.1"}, ValueError, "lr: wanted a number of at least 0, got '0.1'"),
        ({"momentum": 1.0}, ValueError, "momentum: wanted a number in [0, 1), got 1.0"),
        ({"momentum": -0.1}, ValueError, "momentum: wanted a number in [0, 1), got -0.1"),
        (
            {"weight_decay": -1},
            ValueError,
            "weight_decay: wanted a number of at least 0, got -1",
        ),
        (
            {"unselected": "decay"},
            ValueError,
            "unselected: wanted 'untouched' or 'zero_grad', got 'decay'",
        ),
        (
            {"momentum_buffers": None},
            ValueError,
            "momentum_buffers: wanted 'per_set' or 'per_candidate', got None",
        ),
        ({"net": [1]}, TypeError, "net: wanted a torch.nn.Module, got list"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], line: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(f'SGD: {line}')}$"):
        cw.optim.SGD(**({"net": nn.Linear(2, 2)} | arguments))
