"""An architecture reads, and training writes, the rows of its own combination and no other."""

from collections.abc import Iterator

import pytest
import torch
from network_cases import (
    ARCHS,
    Network,
    active,
    arch_of,
    built_split,
    changed_rows,
    every_network,
    images_for,
    row_read,
    snapshot,
    statistics_of,
)
from torch import Tensor

import cwkernels as cw

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 20
STATISTICS = ("running_mean", "running_var")

every_arch = pytest.mark.parametrize(
    ("name", "digits"), [(name, digits) for name in ARCHS for digits in ARCHS[name]]
)


def rows_of_tensors(net: Network, arch: Tensor) -> Iterator[tuple[str, Tensor, int | None]]:
    """Every tensor with a row for each weight set that evaluation reads, and the row it reads."""
    for name, bank in net.banks().items():
        yield name, bank.weight.detach(), row_read(net, bank, arch)
    for name, bank, statistics in statistics_of(net):
        for part in STATISTICS:
            yield f"{name}.{part}", statistics.get_buffer(part), row_read(net, bank, arch)


def perturb(tensor: Tensor) -> None:
    """Moves every value, upwards, so that a variance stays one."""
    tensor.mul_(1.5).add_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize(
    ("name", "digits", "options"),
    [("macro", digits, {}) for digits in ("12021201", "20112012")]
    + [("nb201", digits, {"skip_projection": True}) for digits in ARCHS["nb201"]],
)
def test_an_output_changes_with_every_row_that_is_read(
    name: str, digits: str, options: dict[str, bool]
) -> None:
    net, arch, images = built_split(name, **options).eval(), arch_of(digits), images_for(2)
    with torch.no_grad():
        before = net(images, arch)
        for key, tensor, row in rows_of_tensors(net, arch):
            if row is None:
                continue
            kept = tensor[row].clone()
            perturb(tensor[row])
            difference = (net(images, arch) - before).abs().max()
            assert difference > 1e-5 * before.abs().max(), key
            tensor[row].copy_(kept)
        assert torch.equal(net(images, arch), before)


@every_arch
@pytest.mark.parametrize("training", [False, True])
def test_an_output_changes_with_no_other_row(name: str, digits: str, training: bool) -> None:
    net, arch, images = built_split(name).train(training), arch_of(digits), images_for(2)
    with torch.no_grad():
        before = net(images, arch)
    for _, tensor, row in rows_of_tensors(net, arch):
        others = [tensor[number] for number in range(tensor.shape[0]) if number != row]
        for other in others:
            perturb(other)
    with torch.no_grad():
        assert torch.equal(net(images, arch), before)


def momenta(net: Network, optimizer: cw.optim.SGD) -> dict[str, Tensor]:
    return {
        name: optimizer.state[parameter]["momentum_buffer"].clone()
        for name, parameter in net.named_parameters()
        if parameter in optimizer.state
    }


@every_network
def test_twenty_steps_write_the_selected_rows_and_no_other(name: str) -> None:
    net = built_split(name)
    optimizer = cw.optim.SGD(net, lr=0.05, weight_decay=1e-3)
    archs = net.space.sample(STEPS, generator=torch.Generator().manual_seed(5))
    written: set[tuple[str, int]] = set()
    for number, arch in enumerate(archs):
        before, old_momenta = snapshot(net), momenta(net, optimizer)
        optimizer.zero_grad()
        net(images_for(seed=number), arch).square().mean().backward()
        optimizer.step()
        after, new_momenta = net.state_dict(), momenta(net, optimizer)
        for key, bank in net.banks().items():
            row = row_read(net, bank, arch)
            expected = [] if row is None else [row]
            weight = f"{key}.weight"
            changed = changed_rows(before[weight], after[weight])
            # A shift that only batch norms read has a gradient of zero, but for rounding.
            assert changed == expected or (bank.is_norm and not changed), weight
            if weight in new_momenta:
                old = old_momenta.get(weight, torch.zeros_like(new_momenta[weight]))
                assert changed_rows(old, new_momenta[weight]) == expected, weight
            else:
                assert row is None
            written.update((key, row) for row in expected)
        for key, bank, statistics in statistics_of(net):
            row = row_read(net, bank, arch)
            for part, _ in statistics.named_buffers():
                entry = f"{key}.statistics.{part}"
                expected = [] if row is None else [row]
                assert changed_rows(before[entry], after[entry]) == expected, entry
    assert len({row for _, row in written}) > 2


@every_network
def test_a_step_of_several_architectures_writes_the_rows_of_all_and_no_other(name: str) -> None:
    net = built_split(name)
    optimizer = cw.optim.SGD(net, lr=0.05, weight_decay=1e-3)
    archs = [arch_of(digits) for digits in ARCHS[name][:3]]
    before = snapshot(net)
    net(images_for(), torch.stack(archs)).square().mean().backward()
    optimizer.step()
    after, momentum = net.state_dict(), momenta(net, optimizer)
    for key, bank in net.banks().items():
        rows = {row_read(net, bank, arch) for arch in archs} - {None}
        weight = f"{key}.weight"
        changed = set(changed_rows(before[weight], after[weight]))
        assert changed == rows or (bank.is_norm and changed < rows), weight
        assert (weight in momentum) == bool(rows), weight
        if rows:
            moved = changed_rows(torch.zeros_like(momentum[weight]), momentum[weight])
            assert set(moved) == rows, weight


@every_network
def test_only_the_banks_that_are_read_get_gradients(name: str) -> None:
    net = built_split(name)
    for digits in ARCHS[name]:
        net.zero_grad()
        arch = arch_of(digits)
        net(images_for(), arch).sum().backward()
        for key, bank in net.banks().items():
            row = row_read(net, bank, arch)
            gradient = bank.weight.grad
            if row is None:
                assert gradient is None, key
                continue
            assert gradient is not None
            assert gradient.is_sparse
            assert gradient.sparse_dim() == 1
            assert gradient.shape == bank.weight.shape
            assert gradient._indices().tolist() == [[row]], key


def test_a_cell_that_nothing_crosses_still_trains_the_other_parts() -> None:
    net = built_split("nb201")
    net(images_for(), arch_of("000000")).square().sum().backward()
    assert not active(net, arch_of("000000")).any()
    trained = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"classifier.bias", "head_norm.bias"} <= trained
    assert not any("edge" in name for name in trained)
