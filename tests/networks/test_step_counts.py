"""Counted, not timed: a split changes no call, no byte saved and no byte allocated in a step."""

from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

import pytest
import torch
from network_cases import (
    ARCHS,
    Network,
    arch_of,
    build,
    busy_arch,
    every_network,
    images_for,
)
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import cwkernels as cw
from bench.memory import allocations, saved_bytes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SPACES = ("full", "no_zero", "only_conv")
REDUCTIONS = 2


def one_each_way(forward: dict[str, int]) -> Counter[str]:
    """A step's calls: each operation's backward as often as itself, then what has none."""
    backward = {f"{name}_backward": count for name, count in forward.items()}
    # One for all batch norms, and one for all parameters.
    return Counter(forward | backward | {"update_statistics": 1, "sgd": 1})


def nb201_calls(cells_per_stage: int) -> Counter[str]:
    """Stem; cells; in a reduction two convolutions with a shortcut's, and their sum; head."""
    stem = head = 1
    return one_each_way(
        {
            "conv_norm": stem + REDUCTIONS,
            "reduction_conv": REDUCTIONS,
            "norm_add": stem + REDUCTIONS + head,
            "nb201_cell": 3 * cells_per_stage,
        }
    )


def macro_calls() -> Counter[str]:
    """Stem and head, and eight layers between them, whatever they run."""
    return one_each_way({"conv_norm": 2, "norm_add": 2, "inverted_bottleneck": 8})


def calls_of(step: Callable[[], object]) -> Counter[str]:
    """How often each operation of the extension is called."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    ours = "cwkernels::"
    return Counter(
        {
            event.key.removeprefix(ours): event.count
            for event in profiled.key_averages()
            if event.key.startswith(ours)
        }
    )


def step(net: Network, optimizer: cw.optim.SGD, images: Tensor, arch: Tensor) -> None:
    net(images, arch).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()  # last, so that what a step releases is what it allocated


NUMBER = 8
"""Bytes of a single int64: what the index arithmetic of a set map allocates."""


class Counts(NamedTuple):
    """What is counted in a step.

    Attributes:
        calls: of our operations.
        saved: bytes that autograd keeps for backward.
        allocated: the sizes of all allocations, sorted.
        scratch: bytes in the pool.
    """

    calls: Counter[str]
    saved: int
    allocated: list[int]
    scratch: int

    def tensors(self) -> list[int]:
        """The allocations but for single numbers."""
        return [size for size in self.allocated if size > NUMBER]


def counts(net: Network, optimizer: cw.optim.SGD, images: Tensor, arch: Tensor) -> Counts:
    """Of a step that is not the first with this architecture: all momentum is there."""

    def one() -> None:
        step(net, optimizer, images, arch)

    cw.release_workspace()
    one()
    known = chain(net.parameters(), net.buffers(), [images])
    return Counts(
        calls_of(one),
        saved_bytes(lambda: net(images, arch).square().sum(), known),
        sorted(change for change in allocations(one) if change > 0),
        cw.workspace_bytes(),
    )


def before_and_after_a_split(net: Network, arch: Tensor) -> tuple[Counts, Counts]:
    optimizer, images = cw.optim.SGD(net), images_for()
    before = counts(net, optimizer, images, arch)
    net.split()
    return before, counts(net, optimizer, images, arch)


def assert_equal_counts(net: Network, before: Counts, after: Counts) -> None:
    assert before.calls == after.calls
    assert before.saved == after.saved
    assert before.tensors() == after.tensors()
    assert before.scratch == after.scratch
    # A row's number is made of its predecessors' choices.
    assert sum(after.allocated) - sum(before.allocated) <= 4 * NUMBER * net.space.num_decisions


@pytest.mark.parametrize("subset", SPACES)
def test_steps_of_nb201_before_and_after_a_split(subset: str) -> None:
    net = build("nb201", subset=subset)
    before, after = before_and_after_a_split(
        net, net.space.sample(1, generator=torch.Generator().manual_seed(3))[0]
    )
    assert before.calls == nb201_calls(cells_per_stage=1)
    assert_equal_counts(net, before, after)
    assert net.num_weight_sets > 12


def test_steps_of_macro_before_and_after_a_split() -> None:
    net = build("macro")
    before, after = before_and_after_a_split(net, busy_arch("macro"))
    assert before.calls == macro_calls()
    assert_equal_counts(net, before, after)


def test_the_calls_grow_with_the_cells_only() -> None:
    net = cw.networks.nb201(cw.spaces.nb201("full"), channels=4, cells_per_stage=2)
    optimizer, arch = cw.optim.SGD(net), busy_arch("nb201")
    calls = calls_of(lambda: step(net, optimizer, images_for(), arch))
    assert calls == nb201_calls(cells_per_stage=2)


@every_network
@pytest.mark.parametrize("several", [False, True])
def test_every_architecture_makes_the_same_calls(name: str, several: bool) -> None:
    net = build(name)
    net.split()
    optimizer, images = cw.optim.SGD(net), images_for()
    expected = macro_calls() if name == "macro" else nb201_calls(cells_per_stage=1)
    archs = [arch_of(digits) for digits in ARCHS[name]]
    for arch in [torch.stack(archs)] if several else archs:
        calls = calls_of(lambda arch=arch: step(net, optimizer, images, arch))  # type: ignore[misc]
        assert calls == expected, arch


@every_network
def test_what_a_copy_of_a_bank_would_cost_shows(name: str) -> None:
    net = build(name)
    net.split()
    optimizer, images, arch = cw.optim.SGD(net), images_for(), busy_arch(name)
    plain = counts(net, optimizer, images, arch)
    weight = next(bank.weight for bank in net.banks().values() if bank.weight.shape[0] > 1)
    forward = net.forward

    def copying(images: Tensor, arch: Tensor | cw.networks.Selection) -> Tensor:
        copied = cw.ops.copy_rows(weight, torch.tensor([0]))
        return forward(images, arch) + 0 * copied.exp().sum()

    net.forward = copying  # type: ignore[method-assign]
    costly = counts(net, optimizer, images, arch)
    assert costly.calls - plain.calls == Counter({"copy_rows": 1})
    assert costly.saved > plain.saved
    assert costly.tensors() != plain.tensors()
