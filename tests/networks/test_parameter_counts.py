"""The super-networks have the parameters and weight sets that the paper counts, part by part."""

from itertools import permutations

import pytest
import torch
from network_cases import ROWS, build, every_network, with_and_without_reserve
from torch import nn

import cwkernels as cw
from cwkernels.networks import MacroSuperNetwork, NB201SuperNetwork
from cwkernels.spaces.macro import supernet_parameters as macro_parameters
from cwkernels.spaces.nb201 import supernet_parameters as nb201_parameters

SUBSETS = ("full", "no_zero", "only_conv")


def size(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def nb201_parts(net: NB201SuperNetwork) -> dict[str, int]:
    cells = {str(i): size(cell) for i, cell in enumerate(net.cells)}
    return {"stem": size(net.stem), **cells, "head": size(net.head_norm, net.classifier)}


def macro_parts(net: MacroSuperNetwork) -> dict[str, int]:
    layers = {str(i): size(layer) for i, layer in enumerate(net.layers)}
    return {"stem": size(net.stem), **layers, "head": size(net.head, net.classifier)}


@pytest.mark.parametrize(
    ("skip_projection", "before", "after"),
    [(False, 718_426, 4_159_066), (True, 782_938, 4_567_642)],
)
def test_nb201_cell_by_cell(skip_projection: bool, before: int, after: int) -> None:
    space = cw.spaces.nb201("full")
    net = cw.networks.nb201(space, skip_projection=skip_projection)
    assert nb201_parts(net) == nb201_parameters(space, skip_projection=skip_projection)
    assert size(net) == before
    net.split()
    assert nb201_parts(net) == nb201_parameters(space, True, skip_projection)
    assert size(net) == after


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("split", [False, [2, 4], [5], True])
def test_other_sizes_cell_by_cell(subset: str, split: bool | list[int]) -> None:
    space = cw.spaces.nb201(subset)
    net = cw.networks.nb201(
        space, channels=4, cells_per_stage=3, num_classes=7, skip_projection=True
    )
    net.split(decisions=range(6) if split is True else split or [])
    assert nb201_parts(net) == nb201_parameters(
        space, split, True, channels=4, cells_per_stage=3, num_classes=7
    )


def test_a_space_without_skip_has_no_projection() -> None:
    space = cw.spaces.nb201("only_conv")
    net = cw.networks.nb201(space, channels=4, skip_projection=True)
    assert {bank.candidate for bank in net.banks().values()} == {"nor_conv_1x1", "nor_conv_3x3"}


def test_macro_layer_by_layer() -> None:
    net = cw.networks.macro()
    assert macro_parts(net) == macro_parameters()
    assert size(net) == 4_221_386
    net.split(decisions=[3])
    assert macro_parts(net) == macro_parameters(split=[3])
    net.split()
    assert macro_parts(net) == macro_parameters(split=True)
    assert size(net) == 11_902_410


@with_and_without_reserve
@pytest.mark.parametrize(
    ("name", "subset", "before", "after"),
    [
        ("nb201", "full", 12, 76),
        ("nb201", "no_zero", 12, 54),
        ("nb201", "only_conv", 12, 22),
        ("macro", "full", 16, 44),
    ],
)
def test_weight_sets(name: str, subset: str, before: int, after: int, reserve: bool) -> None:
    net = build(name, subset=subset, reserve=reserve)
    assert net.num_weight_sets == before
    net.split()
    assert net.num_weight_sets == after


@with_and_without_reserve
def test_partial_splits_in_any_order_give_the_same_network(reserve: bool) -> None:
    states = []
    for order in permutations([2, 4, 5]):
        net = build("nb201", reserve=reserve)
        for decision in order:
            net.split(decisions=[decision])
        states.append(net.state_dict())
    for state in states[1:]:
        assert all(torch.equal(state[name], tensor) for name, tensor in states[0].items())
    assert build("nb201").num_weight_sets == 12
    assert net.num_weight_sets == 76


def test_a_partial_split_grows_its_decisions_only() -> None:
    net = build("nb201")
    net.split(decisions=[2, 4])
    rows = {bank.decision: bank.weight.shape[0] for bank in net.banks().values()}
    assert rows == {0: 1, 1: 1, 2: 5, 3: 1, 4: 5, 5: 1}
    assert net.num_weight_sets == 2 * (4 + 5 + 5)


@every_network
def test_reserve_allocates_every_row_at_the_start(name: str) -> None:
    net = build(name, reserve=True)
    assert {bank.decision: bank.weight.shape[0] for bank in net.banks().values()} == dict(
        enumerate(ROWS[name])
    )
    memory = {key: tensor.data_ptr() for key, tensor in net.named_parameters()}
    net.split()
    assert {key: tensor.data_ptr() for key, tensor in net.named_parameters()} == memory


@every_network
def test_rows_start_alike_and_contiguous(name: str) -> None:
    for bank in build(name, reserve=True).banks().values():
        assert bank.weight.is_contiguous()
        assert (bank.weight == bank.weight[:1]).all()
