"""state_dict both ways, deepcopy and pickle: the copy gives the same outputs and is its own."""

import copy
import io
import pickle
import re
from collections.abc import Callable

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

import cwkernels as cw

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same_outputs(net: Network, other: Network, name: str) -> None:
    archs = torch.stack(archs_of(name))
    for run in (logits_in_training, logits_in_evaluation):
        assert torch.equal(run(net, images_for(), archs), run(other, images_for(), archs))


def source(name: str, decisions: list[int] | None, reserve: bool) -> Network:
    net = build(name, reserve=reserve)
    net.split(decisions=decisions)
    randomize(net)
    return net


every_split = pytest.mark.parametrize("decisions", [[], [2, 4], None], ids=["none", "some", "all"])


@every_network
@every_split
@with_and_without_reserve
@pytest.mark.parametrize("reserve_target", [False, True])
def test_a_state_goes_into_a_fresh_network(
    name: str, decisions: list[int] | None, reserve: bool, reserve_target: bool
) -> None:
    net = source(name, decisions, reserve)
    target = build(name, seed=7, reserve=reserve_target)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    assert target.load_state_dict(torch.load(file)).missing_keys == []
    assert target.num_weight_sets == net.num_weight_sets
    assert_same_outputs(net, target, name)
    if reserve == reserve_target:
        assert_same_state(net.state_dict(), target.state_dict())
    for key, bank in target.banks().items():
        assert bank.row(busy_arch(name)) == net.banks()[key].row(busy_arch(name))


@every_network
@every_split
@with_and_without_reserve
def test_a_split_network_takes_any_state(
    name: str, decisions: list[int] | None, reserve: bool
) -> None:
    """It then is split as the state's network was, and splits on as that one does."""
    net, target = source(name, decisions, reserve=False), source(name, None, reserve)
    parameters = list(target.parameters())
    target(images_for(), busy_arch(name)).sum().backward()
    target.load_state_dict(net.state_dict())
    assert target.num_weight_sets == net.num_weight_sets
    assert all(a is b for a, b in zip(parameters, target.parameters(), strict=True))
    for parameter in parameters:
        assert parameter.grad is None or parameter.grad.shape == parameter.shape
    assert_same_outputs(net, target, name)
    net.split()
    target.split()
    assert target.num_weight_sets == net.num_weight_sets
    assert_same_outputs(net, target, name)
    assert_same_state(net.state_dict(), target.state_dict())


@every_network
def test_a_reserved_network_keeps_its_rows_when_it_loads_fewer(name: str) -> None:
    net, target = build(name), build(name, seed=7, reserve=True)
    randomize(net)
    memory = [parameter.data_ptr() for parameter in target.parameters()]
    target.load_state_dict(net.state_dict())
    target.split()
    net.split()
    assert [parameter.data_ptr() for parameter in target.parameters()] == memory
    assert_same_state(net.state_dict(), target.state_dict())


@every_network
def test_training_goes_on_bitwise_after_a_load(name: str) -> None:
    net = source(name, [2, 4], reserve=False)
    target = build(name, seed=7)
    target.load_state_dict(net.state_dict())
    for module in (net, target):
        optimizer = cw.optim.SGD(module, lr=0.05)
        for seed, arch in enumerate(archs_of(name)[:3]):
            optimizer.zero_grad()
            module(images_for(seed=seed), arch).square().mean().backward()
            optimizer.step()
            module.split()
    assert_same_state(net.state_dict(), target.state_dict())


def pickled(net: Network) -> Network:
    copied: Network = pickle.loads(pickle.dumps(net))
    return copied


def saved(net: Network) -> Network:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    copied: Network = torch.load(file, weights_only=False)
    return copied


COPIES: list[Callable[[Network], Network]] = [copy.deepcopy, pickled, saved]


@every_network
@every_split
@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_is_equal_and_its_own(
    name: str, decisions: list[int] | None, copied: Callable[[Network], Network]
) -> None:
    net = source(name, decisions, reserve=False)
    net(images_for(), busy_arch(name)).sum().backward()
    state, sets = snapshot(net), net.num_weight_sets
    twin = copied(net)
    assert_same_state(twin.state_dict(), state)
    assert_same_outputs(net, twin, name)
    twin.split()
    randomize(twin)
    twin(images_for(), busy_arch(name)).sum().backward()
    assert net.num_weight_sets == sets
    assert_same_state(net.state_dict(), state)
    assert all(bank.set_map in set(twin.set_maps) for bank in twin.banks().values())


def test_the_maps_of_another_space_are_refused() -> None:
    net, other = build("nb201"), build("nb201", subset="only_conv")
    net.split()
    for target, state, wanted, got in (
        (other, net.state_dict(), 2, 5),
        (build("nb201"), source_of_only_conv(), 5, 2),
    ):
        line = f"set_maps.2.set_of: wanted int64 [{wanted}] of rows, one for each combination, "
        with pytest.raises(RuntimeError, match=re.escape(f"{line}got torch.int64 [{got}]")):
            target.load_state_dict(state)


def source_of_only_conv() -> dict[str, torch.Tensor]:
    net = build("nb201", subset="only_conv")
    net.split()
    return net.state_dict()


def test_a_map_of_other_decisions_is_refused() -> None:
    net = build("nb201")
    state = net.state_dict() | {"set_maps.2.reads": torch.tensor([6])}
    with pytest.raises(
        RuntimeError, match=re.escape("set_maps.2.reads: wanted decisions in [0, 6)")
    ):
        net.load_state_dict(state)


@pytest.mark.parametrize(
    "key", ["set_maps.2.reads", "cells.0.edge_0_1.nor_conv_1x1.convolution.weight"]
)
def test_a_missing_entry_is_refused(key: str) -> None:
    net = build("nb201")
    state = net.state_dict()
    del state[key]
    with pytest.raises(RuntimeError, match=f'Missing key.*"{re.escape(key)}"'):
        net.load_state_dict(state)


def test_states_of_other_networks_are_refused() -> None:
    net = build("nb201")
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict(build("macro").state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        net.load_state_dict(build("nb201", skip_projection=True).state_dict())
    wider = cw.networks.nb201(cw.spaces.nb201("full"), channels=8, cells_per_stage=1)
    with pytest.raises(RuntimeError, match="size mismatch"):
        net.load_state_dict(wider.state_dict())
