"""Several architectures in one batch: each as if it were alone, bit for bit."""

import copy

import pytest
import torch
from network_cases import (
    Network,
    archs_of,
    assert_same_state,
    built_split,
    dense,
    every_network,
    images_for,
)
from torch import Tensor

from cwkernels.testing import assert_within

shared_or_own = pytest.mark.parametrize("shared", [True, False])


def repeating(name: str) -> Tensor:
    """Architectures [A, D] that read rows in common, one of them twice."""
    archs = archs_of(name)
    return torch.stack([*archs, archs[0]])


def images_of(archs: Tensor, shared: bool) -> Tensor:
    lead = (4,) if shared else (len(archs), 4)
    return images_for(*lead, size=16)


def single(images: Tensor, number: int) -> Tensor:
    """The images of one architecture."""
    return images[number] if images.dim() == 5 else images


def loss_of(logits: Tensor) -> Tensor:
    """The mean over images, summed over architectures."""
    loss = logits.square().mean((-2, -1)).sum()
    return loss


@every_network
@shared_or_own
@pytest.mark.parametrize("training", [True, False])
def test_logits_are_those_of_single_runs(name: str, shared: bool, training: bool) -> None:
    net = built_split(name).train(training)
    archs = repeating(name)
    images = images_of(archs, shared)
    logits = net(images, archs)
    assert logits.shape == (len(archs), 4, 10)
    for number, arch in enumerate(archs):
        assert torch.equal(logits[number], net(single(images, number), arch)), number


@every_network
@shared_or_own
def test_running_statistics_get_every_update_in_order(name: str, shared: bool) -> None:
    net = built_split(name)
    alone = copy.deepcopy(net)
    archs = repeating(name)
    images = images_of(archs, shared)
    net(images, archs)
    for number, arch in enumerate(archs):
        alone(single(images, number), arch)
    assert_same_state(net.state_dict(), alone.state_dict())


@every_network
def test_the_exact_average_counts_every_architecture(name: str) -> None:
    net = built_split(name)
    net.statistics_momentum = None
    alone = copy.deepcopy(net)
    archs = repeating(name)
    images = images_of(archs, shared=False)
    net(images, archs)
    for number, arch in enumerate(archs):
        alone(images[number], arch)
    assert_same_state(net.state_dict(), alone.state_dict())


def summed_in_order(net: Network, images: Tensor, archs: Tensor) -> dict[str, Tensor]:
    """Each parameter's gradients of single runs, added up one after another."""
    total = {key: torch.zeros_like(p) for key, p in net.named_parameters()}
    for number, arch in enumerate(archs):
        net.zero_grad()
        loss_of(net(single(images, number), arch)).backward()
        for key, parameter in net.named_parameters():
            total[key] += dense(parameter.grad, parameter)
    return total


@every_network
@shared_or_own
@pytest.mark.parametrize("dense_grad", [True, False])
def test_gradients_are_the_sums_of_single_runs(name: str, shared: bool, dense_grad: bool) -> None:
    """Of a bank bit for bit; what all architectures share is summed in fewer, larger steps."""
    net = built_split(name, dense_grad=dense_grad)
    archs = repeating(name)
    images = images_of(archs, shared)
    expected = summed_in_order(net, images, archs)
    net.zero_grad()
    loss_of(net(images, archs)).backward()
    for key, bank in net.banks().items():
        gradient = bank.weight.grad
        assert torch.equal(dense(gradient, bank.weight), expected[f"{key}.weight"]), key
        if gradient is not None and not dense_grad:
            rows = gradient._indices()[0].tolist()
            assert rows == sorted(set(rows)), key
    for key, parameter in net.named_parameters():
        assert_within("float32 network", key, dense(parameter.grad, parameter), expected[key])


@every_network
@shared_or_own
def test_gradients_of_the_images(name: str, shared: bool) -> None:
    net = built_split(name).double()
    archs = repeating(name)
    images = images_of(archs, shared).double().requires_grad_()
    loss_of(net(images, archs)).backward()
    assert images.grad is not None
    expected = torch.zeros_like(images)
    for number, arch in enumerate(archs):
        own = single(images.detach(), number).clone().requires_grad_()
        loss_of(net(own, arch)).backward()
        assert own.grad is not None
        single(expected, number).add_(own.grad)
    assert_within("float64 network", "gradient of images", images.grad, expected)


@every_network
def test_a_batch_of_one_is_a_single_run(name: str) -> None:
    net = built_split(name)
    arch = archs_of(name)[0]
    logits = net(images_for(), arch[None])
    assert logits.shape == (1, 4, 10)
    assert torch.equal(logits[0], net(images_for(), arch))
    assert torch.equal(logits, net(images_for()[None], arch[None]))


@every_network
def test_the_rows_of_the_last_pass(name: str) -> None:
    net = built_split(name)
    archs = repeating(name)
    net(images_for(), archs)
    expected = torch.stack([net.space.combination(archs, d) for d in range(archs.shape[1])])
    assert net.last_rows is not None
    assert torch.equal(net.last_rows, expected)
    net.eval()(images_for(), archs[:1])
    assert torch.equal(net.last_rows, expected)
