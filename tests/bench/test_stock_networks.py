"""The stock super-networks are the paper's, and the authors' way exchanges what it should."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import cwkernels as cw
from bench.contestants import heaviest_architecture, stock_network, stock_optimizer
from bench.stock_networks import (
    MACRO_CANDIDATES,
    NB201_CANDIDATES,
    NB201_EDGES,
    NB201_PREDECESSORS,
    AuthorsWay,
    NB201Cell,
    StockMacro,
    StockNB201,
    candidate_lists,
)

TABLE_3 = (36_896, 87_616, 133_184, 322_688, 322_688, 503_936, 1_235_200, 1_235_200)
GROUND_TRUTH = (
    Path(__file__).resolve().parents[3] / "shared/data/groundtruth/nas-bench-macro_cifar10.json"
)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("space", ["full", "no_zero", "only_conv"])
def test_nb201_has_the_parameters_of_table_2_without_the_skip_projection(space: str) -> None:
    network = StockNB201(space)
    parts = [count(network.stem), *map(count, network.body)]
    parts.append(count(network.head) + count(network.classifier))
    cells = [60 * channels**2 for channels in (16, 32, 64)]
    assert parts == [464, *2 * cells[:1], 14_464, *2 * cells[1:2], 57_600, *2 * cells[2:], 778]
    assert sum(parts) == count(network) == 718_426


def test_macro_has_the_parameters_of_table_3() -> None:
    network = StockMacro()
    assert tuple(map(count, network.layers)) == TABLE_3
    assert count(network.stem) == 928
    assert count(network.head) + count(network.classifier) == 343_050
    assert count(network) == 4_221_386


def test_a_macro_network_has_the_parameters_that_the_benchmark_lists() -> None:
    if not GROUND_TRUTH.exists():
        pytest.skip(f"no {GROUND_TRUTH}")
    network = StockMacro()
    fixed = count(network.stem) + count(network.head) + count(network.classifier)
    layers = [
        [count(candidate) for candidate in layer] for layer in candidate_lists(network.layers)
    ]
    for name, listed in json.loads(GROUND_TRUTH.read_text()).items():
        choices = map(int, name)
        assert (
            fixed + sum(layer[c] for layer, c in zip(layers, choices, strict=True))
            == (listed["params"])
        )


def test_the_spaces_are_those_of_the_library() -> None:
    for name, candidates in NB201_CANDIDATES.items():
        space = cw.spaces.nb201(name)
        assert tuple(c.name for c in space.decisions[0].candidates) == candidates
        assert tuple(d.predecessors for d in space.decisions) == NB201_PREDECESSORS
    assert len(cw.spaces.macro().decisions[0].candidates) == len(MACRO_CANDIDATES)


def test_a_cell_sums_its_edges_and_skips_zero() -> None:
    x = torch.randn(2, 4, 8, 8)
    cell = NB201Cell(NB201_CANDIDATES["full"], 4)
    none, skip, pool = 0, 1, 4
    # 0→1 skip, 1→2 pool, 0→3 skip, 2→3 skip; all else Zero
    pooled = nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    assert torch.equal(cell(x, [skip, none, pool, skip, none, skip]), x + pooled)
    assert torch.equal(cell(x, [none] * len(NB201_EDGES)), torch.zeros_like(x))


@pytest.mark.parametrize("network", ["full", "only_conv", "macro"])
def test_only_the_chosen_candidates_get_gradients(network: str) -> None:
    net = stock_network(network)
    net(images(), heaviest_architecture(network)).sum().backward()
    first = net.layers if isinstance(net, StockMacro) else net.body[0].edges
    assert isinstance(first, nn.ModuleList)
    for candidates in candidate_lists(first):
        touched = [
            any(p.grad is not None for p in candidate.parameters()) for candidate in candidates
        ]
        assert [i for i, t in enumerate(touched) if t] == [int(heaviest_architecture(network)[0])]


def test_batch_norms_of_the_stock_optimizer_do_not_decay() -> None:
    network = StockMacro()
    decayed, undecayed = stock_optimizer(network).param_groups
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert undecayed["weight_decay"] == 0
    assert len(undecayed["params"]) == 2 * len(norms)
    assert len(decayed["params"]) + 2 * len(norms) == len(list(network.parameters()))


def macro_architecture(first: int, second: int) -> Tensor:
    architecture = torch.zeros(8, dtype=torch.int64)
    architecture[0], architecture[1] = first, second
    return architecture


def second_layer(network: AuthorsWay) -> dict[str, Tensor]:
    (second, *_) = network.network.conditional_lists()  # the first layer has no predecessor
    return {name: t.clone() for name, t in second.candidates.state_dict().items()}


def test_two_combinations_train_apart_and_come_back_bitwise() -> None:
    network = AuthorsWay(StockMacro())
    optimizer = stock_optimizer(network)

    def train(architecture: Tensor) -> dict[str, Tensor]:
        network(images(), architecture).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return second_layer(network)

    after_0, after_1 = macro_architecture(0, 1), macro_architecture(1, 1)
    network.split()
    start = second_layer(network)
    trained_0 = train(after_0)
    network.select(after_1)
    unseen = second_layer(network)
    assert all(torch.equal(unseen[name], trained_0[name]) for name in start)
    trained_1 = train(after_1)
    weight = "1.layers.0.weight"
    statistics = "1.layers.1.running_mean"
    assert not torch.equal(trained_1[weight], trained_0[weight])
    assert not torch.equal(trained_1[statistics], trained_0[statistics])
    network.select(after_0)
    assert all(torch.equal(t, trained_0[name]) for name, t in second_layer(network).items())
    network.select(after_1)
    assert all(torch.equal(t, trained_1[name]) for name, t in second_layer(network).items())


def test_before_the_split_nothing_is_exchanged() -> None:
    network = AuthorsWay(StockNB201("full"))
    for architecture in cw.spaces.nb201("full").sample(
        3, generator=torch.Generator().manual_seed(0)
    ):
        network(images(), architecture)
    assert list(network.stored_tensors()) == []


def test_an_exchange_is_what_the_authors_code_does() -> None:
    """DESIGN section 1: 246 launches a step on average; here each list's two convolutions."""
    network = AuthorsWay(StockNB201("full"))
    lists = network.network.conditional_lists()
    assert len(lists) == 6 * 3  # cells × edges with predecessors
    tensors = sum(len(conditional.candidates.state_dict()) for conditional in lists) // 3
    by_depth = {1: 2 * tensors, 2: tensors}  # two edges read one decision, one reads two
    expected = sum(2 * n * (1 - 5.0**-depth) for depth, n in by_depth.items())
    assert round(expected) == 246


@pytest.mark.parametrize(
    ("network", "combinations"),
    [("full", 25 + 2 * 5), ("no_zero", 16 + 2 * 4), ("only_conv", 4 + 2 * 2)],
)
def test_the_store_fills_with_every_combination(network: str, combinations: int) -> None:
    authors = AuthorsWay(stock_network(network))
    authors.visit_all_combinations()
    edge = 10 * (16**2 + 32**2 + 64**2) * 2  # both convolutions of one edge in all six cells
    weights = sum(t.numel() for name, t in authors.stored_tensors() if name.endswith("weight"))
    assert weights == combinations * edge
