"""Frozen banks, no graph, other layouts, dense gradients, recomputation, float64, scoring."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from network_cases import (
    archs_of,
    assert_same_state,
    build,
    built_split,
    busy_arch,
    dense,
    every_network,
    gradients,
    images_for,
    snapshot,
)
from torch import nn

import cwkernels as cw
from cwkernels.testing import assert_within, refused

pytestmark = pytest.mark.usefixtures("one_thread")

without_graph = pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])


@every_network
@pytest.mark.parametrize("dense_grad", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_frozen_banks_take_no_gradient(name: str, dense_grad: bool, training: bool) -> None:
    net = built_split(name, dense_grad=dense_grad).train(training)
    net(images_for(), busy_arch(name)).sum().backward()
    expected = gradients(net)
    net.zero_grad()
    for bank in net.banks().values():
        bank.requires_grad_(False)
    net(images_for(), busy_arch(name)).sum().backward()
    for key, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert_within("float32 network", key, parameter.grad, expected[key])
        else:
            assert parameter.grad is None, key


@every_network
def test_one_bank_alone_may_train(name: str) -> None:
    net = built_split(name)
    net(images_for(), busy_arch(name)).sum().backward()
    expected = gradients(net)
    for key, bank in net.banks().items():
        if not expected[f"{key}.weight"].any():
            continue
        net.zero_grad()
        net.requires_grad_(False)
        bank.requires_grad_()
        net(images_for(), busy_arch(name)).sum().backward()
        trained = {key for key, p in net.named_parameters() if p.grad is not None}
        assert trained == {f"{key}.weight"}
        gradient = dense(bank.weight.grad, bank.weight)
        assert_within("float32 network", key, gradient, expected[f"{key}.weight"])


@every_network
def test_a_frozen_network_gives_the_images_gradient(name: str) -> None:
    net = built_split(name).requires_grad_(False)
    images = images_for().requires_grad_()
    net(images, busy_arch(name)).sum().backward()
    assert images.grad is not None
    assert images.grad.any()
    assert not net(images_for(), busy_arch(name)).requires_grad


@every_network
@without_graph
@pytest.mark.parametrize("training", [False, True])
def test_without_a_graph(
    name: str, mode: Callable[[], AbstractContextManager[None]], training: bool
) -> None:
    net, other = (built_split(name).train(training) for _ in range(2))
    archs = torch.stack(archs_of(name))
    for arch in (archs[0], archs):
        expected = net(images_for(), arch).detach()
        with mode():
            logits = other(images_for(), arch)
        assert not logits.requires_grad
        assert torch.equal(logits, expected)
        assert_same_state(net.state_dict(), other.state_dict())
    other(images_for(), archs).sum().backward()


@every_network
@pytest.mark.parametrize("training", [False, True])
def test_layouts_of_the_images_are_alike(name: str, training: bool) -> None:
    net = built_split(name).train(training)
    images = images_for()
    archs = torch.stack(archs_of(name))
    many = images_for(len(archs), 4)
    apart = torch.randn(4, 6, 8, 8)[:, ::2].copy_(images)
    for arch, batches in (
        (archs[0], [images, images.contiguous(memory_format=torch.channels_last), apart]),
        (archs, [many, many.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)]),
    ):
        first, *others = [net(batch, arch) for batch in batches]
        for logits in others:
            assert torch.equal(logits, first)


@every_network
def test_a_dense_gradient_is_the_compact_one_with_zeros(name: str) -> None:
    compact, ordinary = built_split(name), built_split(name, dense_grad=True)
    archs = torch.stack([*archs_of(name)[:2], archs_of(name)[0]])
    for arch in (archs[0], archs):
        for net in (compact, ordinary):
            net.zero_grad()
            net(images_for(), arch).square().sum().backward()
        for key, parameter in ordinary.named_parameters():
            assert parameter.grad is not None, key
            assert not parameter.grad.is_sparse, key
        expected = gradients(compact)
        for key, gradient in gradients(ordinary).items():
            assert torch.equal(gradient, expected[key]), key


@every_network
@pytest.mark.parametrize("dense_grad", [False, True])
def test_gradients_accumulate_over_batches(name: str, dense_grad: bool) -> None:
    net = built_split(name, dense_grad=dense_grad)
    archs = [*archs_of(name)[:2], archs_of(name)[0]]
    total = {key: torch.zeros_like(p) for key, p in net.named_parameters()}
    for seed, arch in enumerate(archs):
        net.zero_grad()
        net(images_for(seed=seed), arch).square().sum().backward()
        for key, gradient in gradients(net).items():
            total[key] += gradient
    net.zero_grad()
    for seed, arch in enumerate(archs):
        net(images_for(seed=seed), arch).square().sum().backward()
    for key, gradient in gradients(net).items():
        assert_within("float32 update", key, gradient, total[key])


@every_network
def test_dense_gradients_drive_stock_sgd(name: str) -> None:
    net = built_split(name, dense_grad=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    before = {key: p.detach().clone() for key, p in net.named_parameters()}
    net(images_for(), busy_arch(name)).square().sum().backward()
    optimizer.step()
    for key, gradient in gradients(net).items():
        expected = before[key] - 0.1 * (gradient + 0.01 * before[key])
        assert_within("float32 update", key, net.get_parameter(key).detach(), expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dense_grad", [False, True])
def test_recomputation_changes_nothing(training: bool, dense_grad: bool) -> None:
    nets = [
        built_split("macro", recompute=recompute, dense_grad=dense_grad).train(training)
        for recompute in (False, True)
    ]
    archs = archs_of("macro")
    for arch in (*archs, torch.stack([*archs, archs[0]])):
        results = []
        for net in nets:
            net.zero_grad()
            images = images_for().requires_grad_()
            logits = net(images, arch)
            logits.square().sum().backward()
            results.append({"logits": logits, "images": images.grad, **gradients(net)})
        for key, tensor in results[0].items():
            assert torch.equal(tensor, results[1][key]), key
        assert_same_state(nets[0].state_dict(), nets[1].state_dict())


def saved_bytes(net: nn.Module, arch: torch.Tensor) -> int:
    sizes = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(images_for(), arch)
    return sum(sizes)


def test_recomputation_saves_less() -> None:
    arch = torch.full((8,), 2)
    kept, fewer = (saved_bytes(build("macro", recompute=r), arch) for r in (False, True))
    assert fewer < kept


@every_network
def test_float64(name: str) -> None:
    net, double = built_split(name), built_split(name).double()
    archs = torch.stack(archs_of(name))
    logits = double.eval()(images_for().double(), archs)
    assert logits.dtype == torch.float64
    single = net.eval()(images_for(), archs)
    assert_within("float32 network", "logits", single, logits.float())
    optimizer = cw.optim.SGD(double.train())
    double(images_for().double(), archs).sum().backward()
    optimizer.step()
    double.split()
    assert {p.dtype for p in double.parameters()} == {torch.float64}


@every_network
def test_scoring_changes_neither_the_network_nor_another_score(name: str) -> None:
    net = built_split(name).eval()
    state = snapshot(net)
    scores = [net(images_for(), arch) for arch in archs_of(name)]
    for arch, score in reversed(list(zip(archs_of(name), scores, strict=True))):
        score.sum().backward()
        assert torch.equal(net(images_for(), arch), score)
    assert_same_state(net.state_dict(), state)
    assert net.last_rows is None


def head_means(net: nn.Module) -> torch.Tensor:
    [mean] = [mean for key, mean in net.named_buffers() if "head" in key and "running_mean" in key]
    return mean


@every_network
def test_measuring_leaves_the_statistics_of_a_training_pass(name: str) -> None:
    net, other = built_split(name), built_split(name)
    archs = torch.stack(archs_of(name))
    with torch.no_grad():
        for arch in (archs, archs[0]):
            net(images_for(), arch)
            other.measure([images_for()], arch)
    assert_same_state(snapshot(net), snapshot(other))
    assert not torch.equal(head_means(net), head_means(built_split(name)))


def test_evaluation_has_nothing_to_measure() -> None:
    net = build("nb201").eval()
    with refused(RuntimeError, "measure: wanted a network in training mode, got evaluation mode"):
        net.measure([images_for()], busy_arch("nb201"))


@every_network
@pytest.mark.parametrize("training", [False, True])
def test_predictions_are_the_logits_of_a_call(name: str, training: bool) -> None:
    net, other = built_split(name).train(training), built_split(name).train(training)
    archs = torch.stack(archs_of(name))
    for arch in (archs, archs[0]):
        predicted = net.predict(images_for(), arch)
        assert not predicted.requires_grad
        assert_within("float32 network", "logits", predicted, other(images_for(), arch).detach())
    assert_same_state(snapshot(net), snapshot(other))


def test_a_prediction_does_not_depend_on_the_architectures_beside_it() -> None:
    net = built_split("macro").eval()
    archs = torch.stack(archs_of("macro"))
    together = net.predict(images_for(), archs)
    for arch, logits in zip(archs, together, strict=True):
        assert torch.equal(net.predict(images_for(), arch), logits)
