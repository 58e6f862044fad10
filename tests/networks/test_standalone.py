"""A network that is cut out: stock torch, the super-network's numbers, the benchmark's counts."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from network_cases import (
    ARCHS,
    Network,
    arch_of,
    archs_of,
    build,
    busy_arch,
    every_network,
    images_for,
    keys_by_value,
    logits_in_evaluation,
    logits_in_training,
    macro_ground_truth,
    randomize,
    snapshot,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import cwkernels as cw
from cwkernels.networks import standalone as stock
from cwkernels.nn import Bank
from cwkernels.testing import assert_within

pytestmark = pytest.mark.usefixtures("one_thread")

VARIANTS: list[tuple[str, str, dict[str, bool]]] = [
    ("macro", "full", {}),
    ("macro", "full", {"reserve": True, "recompute": True}),
    ("nb201", "full", {}),
    ("nb201", "full", {"skip_projection": True, "count_include_pad": True}),
    ("nb201", "no_zero", {"skip_projection": True, "reserve": True}),
    ("nb201", "only_conv", {}),
]
every_variant = pytest.mark.parametrize(("name", "subset", "options"), VARIANTS)


def sample(net: Network, name: str, subset: str) -> list[Tensor]:
    """Architectures of any of the spaces; in the full ones dead and empty cells among them."""
    drawn = list(net.space.sample(3, generator=torch.Generator().manual_seed(2)))
    return drawn + (archs_of(name) if subset == "full" else [])


@every_variant
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("run", [logits_in_training, logits_in_evaluation])
def test_it_equals_the_super_network(
    name: str, subset: str, options: dict[str, bool], split: bool, run: Callable[..., Tensor]
) -> None:
    net = build(name, subset=subset, **options)
    if split:
        net.split()
    randomize(net)
    images = images_for(size=16)
    for arch in sample(net, name, subset):
        expected = run(net, images, arch)
        alone = net.train(run is logits_in_training).standalone(arch)
        with torch.no_grad():
            assert_within("float32 network", f"logits of {arch}", alone(images), expected)


@every_variant
@pytest.mark.parametrize("training", [False, True])
def test_every_gradient_equals_its_own(
    name: str, subset: str, options: dict[str, bool], training: bool
) -> None:
    """In float64, parameter by parameter, found by value: so every weight is inherited, too."""
    net = build(name, subset=subset, **options).double().train(training)
    net.split()
    randomize(net)
    images = images_for().double()
    keys = keys_by_value(net)
    for arch in sample(net, name, subset):
        alone = net.standalone(arch)
        net.zero_grad()
        for module, logits in ((net, net(images, arch)), (alone, alone(images))):
            assert module.training == training
            logits.square().mean().backward()
        compared = set()
        for parameter in alone.parameters():
            key, row = keys[parameter.detach().numpy().tobytes()]
            gradient = net.get_parameter(key).grad
            assert gradient is not None, key
            own = gradient if row is None else gradient.to_dense()[row]
            assert parameter.grad is not None, key
            assert_within("float64 network", key, own, parameter.grad)
            compared.add(key)
        assert compared == {key for key, p in net.named_parameters() if p.grad is not None}


@every_network
def test_running_statistics_follow_alike(name: str) -> None:
    net = build(name)
    net.split()
    randomize(net)
    arch = busy_arch(name)
    alone = net.standalone(arch)
    images = [images_for(seed=seed) for seed in range(3)]
    for batch in images:
        net(batch, arch)
        alone(batch)
    logits, expected = net.eval()(images[0], arch), alone.eval()(images[0])
    assert_within("float32 network", "logits", logits, expected)
    again = net.standalone(arch)
    for key, tensor in alone.state_dict().items():
        assert_within("float32 network", key, again.state_dict()[key], tensor)


@every_network
def test_our_optimizer_trains_it_as_a_stock_one_trains_the_copy(name: str) -> None:
    net = build(name).double()
    net.split()
    randomize(net)
    arch = busy_arch(name)
    alone = net.standalone(arch)
    norms = [p for m in alone.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    others = [p for p in alone.parameters() if not any(p is norm for norm in norms)]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.01}, {"params": norms}]
    ours = cw.optim.SGD(net, lr=0.05, momentum=0.9, weight_decay=0.01)
    theirs = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    for seed in range(4):
        images = images_for(size=16, seed=seed).double()
        for optimizer, logits in ((ours, net(images, arch)), (theirs, alone(images))):
            optimizer.zero_grad()
            logits.square().mean().backward()
            optimizer.step()
    for key, tensor in net.standalone(arch).state_dict().items():
        assert_within("float64 network", key, tensor, alone.state_dict()[key])


class RefuseOurs(TorchDispatchMode):
    """Fails on every operation of cwkernels, forward and backward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        assert func.namespace != "cwkernels", func
        return func(*args, **(kwargs or {}))


def test_the_guard_sees_our_operations() -> None:
    net = build("nb201")
    with pytest.raises(AssertionError, match="cwkernels"), RefuseOurs():
        net(images_for(), busy_arch("nb201"))


def modules_of(net: nn.Module) -> Iterator[type[nn.Module]]:
    return (type(module) for module in net.modules())


@every_network
def test_no_cwkernels_inside(name: str) -> None:
    net = build(name)
    net.split()
    for arch in archs_of(name):
        alone = net.standalone(arch)
        with RefuseOurs():
            alone(images_for()).sum().backward()
        for kind in modules_of(alone):
            assert kind.__module__.startswith("torch.nn.") or kind.__module__ == stock.__name__
        assert not any(isinstance(module, Bank) for module in alone.modules())
        assert all(type(parameter) is nn.Parameter for parameter in alone.parameters())


@every_network
def test_it_is_a_copy(name: str) -> None:
    net = build(name)
    state = snapshot(net)
    alone = net.standalone(busy_arch(name))
    ours = {parameter.data_ptr() for parameter in net.state_dict().values()}
    assert not ours & {tensor.data_ptr() for tensor in alone.state_dict().values()}
    randomize(alone)
    assert all(torch.equal(state[key], tensor) for key, tensor in net.state_dict().items())


def test_dead_convolutions_are_left_out() -> None:
    net = build("nb201")
    for digits in ARCHS["nb201"]:
        arch = arch_of(digits)
        convolutions = [m for m in net.standalone(arch).modules() if isinstance(m, nn.Conv2d)]
        fixed = 1 + 2 * 3
        assert len(convolutions) == fixed + 3 * int(net.space.live(arch).sum())


@pytest.mark.parametrize("digits", ["00000000", "11111111", "22222222", "02012100", "12021201"])
def test_macro_has_the_benchmarks_parameters_and_flops(digits: str) -> None:
    row = macro_ground_truth()[digits]
    net = cw.networks.macro()
    net.split()
    alone = net.standalone(net.space.parse(digits)).eval()
    assert sum(parameter.numel() for parameter in alone.parameters()) == row["params"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        alone(images_for(1, size=32))
    assert counter.get_total_flops() == 2 * row["flops"]  # torch counts a multiply-add twice


@every_network
def test_bad_architectures(name: str) -> None:
    net = build(name)
    arch = busy_arch(name)
    total = len(arch)
    cases: tuple[tuple[Any, type[Exception], str], ...] = (
        (arch.tolist(), TypeError, "an int64 tensor, got list"),
        (arch.float(), TypeError, "int64, got torch.float32"),
        (arch[None], ValueError, f"of shape [{total}], got [1, {total}]"),
        (arch[:5], ValueError, f"of shape [..., {total}], got [5]"),
    )
    for bad, error, line in cases:
        with pytest.raises(error, match=f"^{re.escape(f'standalone: arch must be {line}')}$"):
            net.standalone(bad)
