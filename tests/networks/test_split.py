"""The split: rows are copied in place, parameters stay, outputs stay bit for bit."""

import pytest
import torch
from network_cases import (
    ROWS,
    Network,
    archs_of,
    assert_same_state,
    build,
    busy_arch,
    every_network,
    images_for,
    logits_in_evaluation,
    logits_in_training,
    randomize,
    snapshot,
    statistics_of,
    with_and_without_reserve,
)

import cwkernels as cw


def train(net: Network, optimizer: torch.optim.Optimizer, archs: list[torch.Tensor]) -> list[float]:
    losses = []
    for step, arch in enumerate(archs):
        loss = net(images_for(seed=step), arch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@every_network
@with_and_without_reserve
def test_outputs_are_bit_equal_across_the_split(name: str, reserve: bool) -> None:
    net = build(name, reserve=reserve)
    randomize(net)
    images, archs = images_for(), archs_of(name)
    before = [run(net, images, arch) for run in RUNS for arch in archs]
    net.split()
    after = [run(net, images, arch) for run in RUNS for arch in archs]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old, new)


RUNS = (logits_in_training, logits_in_evaluation)


@every_network
@with_and_without_reserve
def test_parameters_stay_the_same_objects_and_lose_their_gradients(
    name: str, reserve: bool
) -> None:
    net = build(name, reserve=reserve)
    before = dict(net.named_parameters())
    net(images_for(), busy_arch(name)).sum().backward()
    grads = {key: parameter.grad for key, parameter in before.items()}
    net.split()
    after = dict(net.named_parameters())
    assert list(after) == list(before)
    assert all(after[key] is parameter for key, parameter in before.items())
    grown = {f"{key}.weight" for key, bank in net.banks().items() if ROWS[name][bank.decision] > 1}
    for key, parameter in after.items():
        assert parameter.grad is (None if key in grown else grads[key]), key


@every_network
@with_and_without_reserve
def test_every_row_is_a_copy_of_the_one_before(name: str, reserve: bool) -> None:
    net = build(name, reserve=reserve)
    randomize(net)
    before = snapshot(net)
    net.split()
    after = net.state_dict()
    for key, bank in net.banks().items():
        assert after[f"{key}.weight"].shape[0] == ROWS[name][bank.decision]
        assert (after[f"{key}.weight"] == before[f"{key}.weight"][:1]).all(), key
    for key, _, statistics in statistics_of(net):
        for part, buffer in statistics.named_buffers():
            assert (buffer == before[f"{key}.statistics.{part}"][:1]).all(), key


@every_network
@with_and_without_reserve
def test_splitting_twice_does_nothing(name: str, reserve: bool) -> None:
    net = build(name, reserve=reserve)
    net.split()
    randomize(net)
    net(images_for(), busy_arch(name)).sum().backward()
    state, splits = snapshot(net), [bank.splits for bank in net.banks().values()]
    grads = [parameter.grad for parameter in net.parameters()]
    net.split()
    net.split(decisions=[2, 2])
    assert_same_state(net.state_dict(), state)
    assert [bank.splits for bank in net.banks().values()] == splits
    assert all(p.grad is grad for p, grad in zip(net.parameters(), grads, strict=True))


def test_a_decision_without_predecessors_stays() -> None:
    net = build("nb201")
    net.split(decisions=[0, 1, 3])
    assert net.num_weight_sets == 12
    assert [bank.splits for bank in net.banks().values()] == [0] * len(net.banks())


def test_a_split_starts_from_the_clusters_of_another_map() -> None:
    """Few-shot sub-networks: path 3 had two sets, one for convolutions on path 1."""
    net = build("nb201")
    for key, bank in net.banks().items():
        if bank.decision == 2:
            bank.grow(torch.tensor([0, 0]))
            assert key.startswith("cells.")
    for _, bank, statistics in statistics_of(net):
        if bank.decision == 2:
            statistics.grow(torch.tensor([0, 0]))
    clusters = torch.tensor([0, 0, 1, 1, 0])
    net.banks()["cells.0.edge_1_2.nor_conv_3x3.convolution"].set_map.assign([0], clusters)
    assert net.num_weight_sets == 14
    randomize(net)
    images, archs = images_for(), archs_of("nb201")
    before = [logits_in_evaluation(net, images, arch) for arch in archs]
    weights = {key: bank.weight.detach().clone() for key, bank in net.banks().items()}
    net.split()
    assert net.num_weight_sets == 76
    for key, bank in net.banks().items():
        if bank.decision == 2:
            assert torch.equal(bank.weight, weights[key][clusters])
    for arch, old in zip(archs, before, strict=True):
        assert torch.equal(logits_in_evaluation(net, images, arch), old)


@every_network
def test_a_reserved_network_trains_bitwise_like_another(name: str) -> None:
    plain, reserved = build(name), build(name, reserve=True)
    archs = archs_of(name)[:3]
    losses = []
    for net in (plain, reserved):
        optimizer = cw.optim.SGD(net, lr=0.05)
        first = train(net, optimizer, archs)
        net.split()
        losses.append(first + train(net, optimizer, archs))
    assert losses[0] == losses[1]
    assert_same_state(plain.state_dict(), reserved.state_dict())


@pytest.mark.parametrize("decision", range(1, 8))
def test_a_layer_follows_the_choice_before_it(decision: int) -> None:
    net = build("macro")
    net.split(decisions=[decision])
    for bank in net.banks().values():
        arch = busy_arch("macro")
        for choice in range(3):
            arch[decision - 1] = choice
            assert bank.row(arch) == (choice if bank.decision == decision else 0)


def test_path_6_follows_paths_2_and_3() -> None:
    net = build("nb201")
    net.split()
    bank = next(bank for bank in net.banks().values() if bank.decision == 5)
    for second in range(5):
        for third in range(5):
            arch = torch.tensor([4, second, third, 3, 2, 1])
            assert bank.row(arch) == 5 * second + third
