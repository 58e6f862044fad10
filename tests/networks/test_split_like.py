"""An averaged copy follows a split from rows of its own."""

import copy
import re

import pytest
import torch
from network_cases import (
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
    with_and_without_reserve,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import cwkernels as cw
from cwkernels.testing import assert_within

pytestmark = pytest.mark.usefixtures("one_thread")

DECAY = 0.75


def averaged(net: Network) -> tuple[AveragedModel, Network]:
    """An average, and the network inside it."""
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    assert isinstance(average.module, type(net))
    return average, average.module


def train(net: Network, average: AveragedModel, archs: list[torch.Tensor]) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for seed, arch in enumerate(archs):
        optimizer.zero_grad()
        net(images_for(seed=seed), arch).square().mean().backward()
        optimizer.step()
        average.update_parameters(net)


@every_network
@with_and_without_reserve
def test_an_average_follows(name: str, reserve: bool) -> None:
    net = build(name, reserve=reserve)
    average, ema = averaged(net)
    randomize(ema, seed=9)
    train(net, average, archs_of(name)[:2])
    own, parameters = snapshot(ema), list(ema.parameters())
    outputs = [logits_in_evaluation(ema, images_for(), arch) for arch in archs_of(name)]

    net.split(decisions=[2])
    net.split()
    ema.split_like(net)

    assert ema.num_weight_sets == net.num_weight_sets
    assert all(a is b for a, b in zip(parameters, ema.parameters(), strict=True))
    for key, bank in ema.banks().items():
        assert bank.weight.shape == net.banks()[key].weight.shape
        assert (bank.weight == own[f"{key}.weight"][:1]).all(), key
    for arch, before in zip(archs_of(name), outputs, strict=True):
        assert torch.equal(logits_in_evaluation(ema, images_for(), arch), before)

    before_update = snapshot(ema)
    average.update_parameters(net)
    for key, parameter in ema.named_parameters():
        expected = before_update[key].lerp(net.get_parameter(key), 1 - DECAY)
        assert_within("float32 update", key, parameter, expected)


@every_network
def test_rows_come_from_where_the_others_sources_stood(name: str) -> None:
    """One split after another, the copy trained between them."""
    net = build(name)
    twin = copy.deepcopy(net)
    for decisions in ([2], [4], None):
        net.split(decisions=decisions)
        twin.split_like(net)
        randomize(twin, seed=11)
        outputs = [logits_in_evaluation(twin, images_for(), arch) for arch in archs_of(name)]
        twin.split_like(net)
        for arch, before in zip(archs_of(name), outputs, strict=True):
            assert torch.equal(logits_in_evaluation(twin, images_for(), arch), before)
    net.load_state_dict(twin.state_dict())
    for arch in archs_of(name):
        for run in (logits_in_training, logits_in_evaluation):
            assert torch.equal(run(net, images_for(), arch), run(twin, images_for(), arch))


@every_network
def test_both_go_their_own_way_afterwards(name: str) -> None:
    net = build(name)
    twin = copy.deepcopy(net)
    net.split(decisions=[2])
    twin.split_like(net)
    state = snapshot(net)
    twin.split()
    for bank in twin.banks().values():
        bank.set_map.set_of.zero_()
    assert_same_state(net.state_dict(), state)


@every_network
@with_and_without_reserve
def test_an_optimizer_of_ours_follows_split_like(name: str, reserve: bool) -> None:
    net, twin = build(name, reserve=reserve), build(name, reserve=reserve)
    optimizers = [cw.optim.SGD(module) for module in (net, twin)]
    for decisions in ([2], [4], None):
        for module, optimizer in zip((net, twin), optimizers, strict=True):
            optimizer.zero_grad()
            module(images_for(), busy_arch(name)).square().mean().backward()
            optimizer.step()
        net.split(decisions=decisions)
        twin.split_like(net)
    assert_same_state(net.state_dict(), twin.state_dict())


def refused(net: Network, other: object, wanted: str, got: str) -> None:
    state = snapshot(net)
    with pytest.raises(
        ValueError, match=f"^{re.escape(f'split_like: other: wanted {wanted}, got {got}')}$"
    ):
        net.split_like(other)  # type: ignore[arg-type]
    assert_same_state(net.state_dict(), state)


def test_another_network_is_refused() -> None:
    net = build("nb201")
    wanted = "a network of the space nb201_full"
    refused(net, build("macro"), wanted, "macro")
    refused(net, build("nb201", subset="no_zero"), wanted, "nb201_no_zero")
    refused(net, torch.nn.Linear(2, 2), wanted, "Linear")
    refused(net, averaged(net)[0], wanted, "AveragedModel")
    other = build("nb201", skip_projection=True)
    other.split()
    refused(net, other, "a network with this one's 36 banks", "54 others")


@every_network
def test_splits_that_do_not_continue_are_refused(name: str) -> None:
    net, other = build(name), build(name)
    net.split(decisions=[2])
    wanted = "a network whose splits continue this one's"
    with pytest.raises(ValueError, match=f"^split_like: other: wanted {wanted}, got other splits"):
        net.split_like(other)
    other.split(decisions=[4])
    with pytest.raises(ValueError, match=f"^split_like: other: wanted {wanted}, got other splits"):
        net.split_like(other)


@every_network
@with_and_without_reserve
def test_rows_that_were_loaded_are_refused(name: str, reserve: bool) -> None:
    """Nothing says which rows they came from."""
    net, other = build(name, reserve=reserve), build(name, reserve=reserve)
    other.split()
    loaded = build(name, reserve=reserve)
    loaded.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match=r"^split_like: other: wanted .*, got other splits"):
        net.split_like(loaded)
