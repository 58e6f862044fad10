"""Each switch of a recipe beside stock torch, step by step; `paper` beside the authors' way."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from stock_sets import StockSets
from torch import Tensor
from torch.nn import functional as F
from training_cases import tiny_data

import cwkernels as cw
from bench.contestants import stock_optimizer
from bench.stock_networks import AuthorsWay, StockNB201
from cwkernels.data import Batches, Draw
from cwkernels.networks import NB201SuperNetwork, SuperNetwork
from cwkernels.nn import NB201Cell
from cwkernels.optim import SGD
from cwkernels.training import RECIPES, Callback, EagerStep, Outcome, Recipe, Split, Trainer
from cwkernels.training.first_use import FirstUse

SWITCHES = {
    "unselected": ("untouched", "zero_grad"),
    "momentum_buffers": ("per_set", "per_candidate"),
    "new_sets": ("at_split", "on_first_use"),
}
"""Of each the recipe default's value, then the recipe paper's."""

pytestmark = pytest.mark.usefixtures("one_thread")

SPLIT_EPOCH = 4
SCHEDULE: dict[str, Any] = {
    "epochs": 9,
    "splits": (Split(SPLIT_EPOCH),),
    "lr": 0.05,
    "validate_every": 99,
}
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
CONVOLUTIONS = {"nor_conv_1x1": 1, "nor_conv_3x3": 2}
"""The weighted candidates of no_zero and their choices."""


class DoubleBatches(Batches):
    """Images in float64."""

    def make(self, draw: Draw) -> tuple[Tensor, Tensor]:
        images, labels = super().make(draw)
        return images.double(), labels


def networks() -> tuple[NB201SuperNetwork, StockNB201]:
    """Ours and stock's with the same weights. In no_zero no convolution is dead."""
    net = cw.networks.nb201(cw.spaces.nb201("no_zero"), channels=4, cells_per_stage=1).double()
    stock = StockNB201("no_zero", channels=4, cells_per_stage=1).double()
    with torch.no_grad():
        for ours, theirs in zip(net.parameters(), stock.parameters(), strict=True):
            theirs.copy_(ours.view_as(theirs))
    return net, stock


def assert_same(ours: Tensor, theirs: Tensor, name: str) -> None:
    wanted = pytest.approx(theirs.detach().numpy(), rel=1e-8, abs=1e-10)
    assert ours.detach().numpy() == wanted, name


def assert_same_fixed(net: NB201SuperNetwork, stock: StockNB201) -> None:
    theirs = dict(stock.named_parameters())
    assert_same(net.stem.conv.weight, theirs["stem.0.weight"], "stem")
    assert_same(net.head_norm.weight, theirs["head.0.weight"], "head")
    assert_same(net.classifier.bias, theirs["classifier.bias"], "classifier")


class Twin(EagerStep):
    """Steps both, and compares every weight set after each step."""

    def __init__(self, trainer: Trainer, stock: StockSets) -> None:
        super().__init__(trainer.net, trainer.optimizer, trainer.batches)
        self._stock = stock
        self.steps = 0

    def __call__(self, draw: Draw, archs: Tensor) -> Outcome:
        net, stock = self._net, self._stock
        outcome = super().__call__(draw, archs)
        lr = self._optimizer.param_groups[0]["lr"]
        loss = stock.step(*self._batches.make(draw), archs[0], lr)
        assert_same(outcome.loss, loss, "loss")
        assert isinstance(net, NB201SuperNetwork)
        assert_same_fixed(net, stock.net)
        banks = net.banks()
        cells = [i for i, cell in enumerate(net.cells) if isinstance(cell, NB201Cell)]
        for number, edge in enumerate(stock.edges):
            i, j = EDGES[edge.number]
            for name, choice in CONVOLUTIONS.items():
                bank = banks[f"cells.{cells[number // 6]}.edge_{i}_{j}.{name}.convolution"]
                assert bank.weight.shape[0] == len(edge.sets)
                for row, candidates in enumerate(edge.sets.values()):
                    theirs = candidates[choice].get_parameter("1.weight")
                    assert_same(bank.weight[row], theirs, f"edge {edge.number}, row {row}")
        self.steps += 1
        return outcome


class SplitToo(Callback):
    """Splits the other one when ours is split."""

    def __init__(self, other: StockSets | AuthorsWay) -> None:
        self._other = other

    def on_split(self, trainer: Trainer) -> None:
        self._other.split()


def recipe_of(*values: str) -> Recipe:
    """A recipe by its three switches."""
    switches: dict[str, Any] = dict(zip(SWITCHES, values, strict=True))
    return replace(RECIPES["default"], **SCHEDULE, **switches)


def train_twins(recipe: Recipe, stock_recipe: Recipe) -> None:
    """Trains ours as one recipe says beside stock as another does."""
    net, plain = networks()
    stock = StockSets(plain, stock_recipe)
    twins: list[Twin] = []

    def make_step(trainer: Trainer) -> Twin:
        twins.append(Twin(trainer, stock))
        return twins[0]

    batches = DoubleBatches(tiny_data(), seed=1, batch_size=8, validation=10)
    trainer = Trainer(net, batches, recipe, callbacks=[SplitToo(stock)], make_step=make_step)
    trainer.fit()
    assert twins[0].steps == trainer.total_steps
    assert net.num_weight_sets == 54


@pytest.mark.parametrize("values", list(product(*SWITCHES.values())), ids="-".join)
def test_a_recipe_is_what_it_says_step_by_step(values: tuple[str, ...]) -> None:
    train_twins(recipe_of(*values), recipe_of(*values))


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_makes_a_difference(switch: str) -> None:
    """What the comparison above can tell apart."""
    ours = recipe_of("untouched", "per_set", "at_split")
    other: dict[str, Any] = {switch: SWITCHES[switch][1]}
    with pytest.raises(AssertionError):
        train_twins(ours, replace(ours, **other))


class AuthorsStep(EagerStep):
    """Steps the authors' way, too, and compares the loss and every set that it has."""

    def __init__(self, trainer: Trainer, authors: AuthorsWay) -> None:
        super().__init__(trainer.net, trainer.optimizer, trainer.batches)
        self._authors = authors
        self._stock_optimizer = stock_optimizer(authors)

    def __call__(self, draw: Draw, archs: Tensor) -> Outcome:
        outcome = super().__call__(draw, archs)
        images, labels = self._batches.make(draw)
        for group in self._stock_optimizer.param_groups:
            group["lr"] = self._optimizer.param_groups[0]["lr"]
        self._stock_optimizer.zero_grad(set_to_none=False)
        loss = F.cross_entropy(self._authors(images, archs[0]), labels)
        loss.backward()
        self._stock_optimizer.step()
        assert_same(outcome.loss, loss, "loss")
        if self._authors.is_split:
            assert_same_sets(self._net, self._authors)
        return outcome


def assert_same_sets(net: SuperNetwork, authors: AuthorsWay) -> None:
    """The live list and the stored ones of each edge, in weights and running statistics."""
    cells = [cell for cell in net.modules() if isinstance(cell, NB201Cell)]
    edges = [edge for cell in cells for edge in (cell.edge_1_2, cell.edge_1_3, cell.edge_2_3)]
    for edge, slot in zip(edges, authors._slots, strict=True):
        assert slot.live is not None
        states: dict[tuple[int, ...], Any] = dict(slot.store)
        states[slot.live] = slot.conditional.candidates.state_dict()
        for combination, state in states.items():
            row = 0
            for choice in combination:
                row = 4 * row + choice
            for name, choice in CONVOLUTIONS.items():
                own = getattr(edge, name)
                assert_same(own.convolution.weight[row], state[f"{choice}.1.weight"], name)
                mean = own.statistics.running_mean[row]
                assert_same(mean, state[f"{choice}.2.running_mean"], name)


def test_the_recipe_paper_is_the_authors_way() -> None:
    """Their exchange of state dicts, as `bench` has it, with gradients zeroed."""
    net, plain = networks()
    authors = AuthorsWay(plain)
    batches = DoubleBatches(tiny_data(), seed=1, batch_size=8, validation=10)
    Trainer(
        net,
        batches,
        replace(RECIPES["paper"], **SCHEDULE),
        callbacks=[SplitToo(authors)],
        make_step=lambda trainer: AuthorsStep(trainer, authors),
    ).fit()
    assert sum(len(slot.store) for slot in authors._slots) > 15


def test_a_new_set_is_what_was_used_last() -> None:
    """Several architectures of one batch visit in their order."""
    net, _ = networks()
    net.split([2])
    optimizer = SGD(net)
    first_use = FirstUse(net, optimizer)
    edge = net.banks()["cells.0.edge_1_2.nor_conv_3x3.convolution"].weight
    with torch.no_grad():
        edge.copy_(torch.arange(4.0, dtype=edge.dtype)[:, None, None, None, None].expand_as(edge))
    archs = torch.tensor([[choice, 0, 0, 0, 0, 0] for choice in (2, 0, 2, 3)])
    first_use.visit(archs)
    assert edge[:, 0, 0, 0, 0].tolist() == [2, 1, 2, 2]
    assert first_use.live.tolist() == [-1, -1, 3, -1, -1, -1]
    assert first_use.seen[2].nonzero().flatten().tolist() == [0, 2, 3]
    first_use.visit(archs.flip(0))
    assert edge[:, 0, 0, 0, 0].tolist() == [2, 1, 2, 2]
    assert not optimizer.state
