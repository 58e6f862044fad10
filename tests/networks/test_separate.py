"""A copy of a network in which each architecture has rows of its own."""

import torch
from network_cases import (
    archs_of,
    assert_same_state,
    built_split,
    every_network,
    images_for,
    snapshot,
)

from cwkernels.testing import refused


@every_network
def test_each_reads_a_copy_of_its_rows(name: str) -> None:
    net = built_split(name)
    archs = torch.stack(archs_of(name))
    own = net.separate(archs)
    for key, bank in own.banks().items():
        source = net.banks()[key]
        for number, arch in enumerate(archs):
            assert bank.row(arch) == number
            assert torch.equal(bank.weight[number], source.weight[source.row(arch)]), key


@every_network
def test_logits_are_those_of_the_network(name: str) -> None:
    net = built_split(name)
    archs = torch.stack(archs_of(name))
    for training in (True, False):
        own = net.separate(archs).train(training)
        logits = own(images_for(), archs)
        assert torch.equal(logits, net.train(training)(images_for(), archs))


@every_network
def test_running_statistics_are_those_of_one_alone(name: str) -> None:
    """Also of the batch norms that all architectures share."""
    net = built_split(name)
    archs = torch.stack(archs_of(name))
    own = net.separate(archs)
    own.train()(images_for(), archs)
    for number, arch in enumerate(archs):
        alone = net.separate(arch[None])
        alone.train()(images_for(), arch)
        assert torch.equal(
            own.eval()(images_for(seed=1), archs)[number],
            alone.eval()(images_for(seed=1), arch),
        )


@every_network
def test_the_network_is_not_touched(name: str) -> None:
    net = built_split(name)
    before = snapshot(net)
    archs = torch.stack(archs_of(name))
    own = net.separate(archs)
    own.train()(images_for(), archs).sum().backward()
    assert_same_state(net.state_dict(), before)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_repeated_and_single_architectures_are_refused() -> None:
    net = built_split("macro")
    arch = archs_of("macro")[0]
    with refused(ValueError, "separate: archs: wanted int64 [A, 8], no two the same, got [2, 8]"):
        net.separate(torch.stack([arch, arch]))
    with refused(ValueError, "separate: archs: wanted int64 [A, 8], no two the same, got [8]"):
        net.separate(arch)
