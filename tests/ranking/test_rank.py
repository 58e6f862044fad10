"""Scores: right, independent of each other, and bought without touching the network."""

import sys
from itertools import islice

import pytest
import torch
from network_cases import Network, assert_same_state, every_network, snapshot
from ranking_cases import archs_of, assert_same_scores, data, options, trained
from torch import Tensor, nn

import cwkernels as cw
from cwkernels.ranking import RankingOptions, evaluated_set, rank
from cwkernels.ranking.options import WAYS
from cwkernels.testing import assert_within, refused

pytestmark = pytest.mark.usefixtures("one_thread")

every_way = pytest.mark.parametrize("way", list(WAYS))


def alone(net: Network, archs: Tensor, chosen: RankingOptions) -> cw.ranking.Scores:
    """Each architecture by itself, in a process of its own as it were."""
    own = RankingOptions(chosen.recalibration, chosen.batches, chosen.images, 1, False)
    return rank(net, archs, data(), own, progress=False)


@every_network
@every_way
def test_a_score_does_not_depend_on_the_others(name: str, way: str) -> None:
    net = trained(name)
    archs = archs_of(net)
    chosen = options(recalibration=way, chunk=5, share_prefixes=False)
    together = rank(net, archs, data(), chosen, progress=False)
    assert_same_scores(together, alone(net, archs, chosen))
    assert len(together.loss.unique()) > 5


@every_network
@every_way
def test_the_network_is_left_as_it_is(name: str, way: str) -> None:
    net = trained(name)
    before, training = snapshot(net), [module.training for module in net.modules()]
    for share in (True, False):
        chosen = options(recalibration=way, share_prefixes=share)
        rank(net, archs_of(net, 3), data(), chosen, progress=False)
    assert_same_state(net.state_dict(), before)
    assert [module.training for module in net.modules()] == training
    assert net.statistics_momentum == 0.1
    assert all(parameter.grad is None for parameter in net.parameters())


def stock_logits(plain: nn.Module, way: str) -> Tensor:
    """What a stand-alone network in stock torch gives for the validation images."""
    norms = [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    batches = data().recalibration(3)
    if way == "reset":
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
    if way == "running":
        batches = islice(data().epoch(0), 3)
    with torch.no_grad():
        if way in ("reset", "running"):
            plain.train()
            for images, _ in batches:
                plain(images)
        plain.train(way == "batch")
        return torch.cat([plain(images) for images in validation_images()])


def validation_images() -> list[Tensor]:
    """The first 40 validation images, in batches of 16."""
    images = [images for images, _ in data().validation()]
    return [*images[:2], images[2][:8]]


@every_network
@every_way
def test_losses_are_those_of_stock_torch(name: str, way: str) -> None:
    net = trained(name)
    archs = archs_of(net, 4)[:4]
    chosen = options(recalibration=way, share_prefixes=False)
    scores = rank(net, archs, data(), chosen, progress=False)
    labels = torch.cat([labels for _, labels in data().validation()])[:40]
    for arch, loss, accuracy in zip(archs, scores.loss, scores.accuracy, strict=True):
        logits = stock_logits(net.standalone(arch), way)
        expected = nn.functional.cross_entropy(logits.double(), labels)
        assert_within("float32 network", "loss", loss, expected)
        assert float(accuracy) == 100 * float((logits.argmax(1) == labels).double().mean())


def test_every_way_gives_other_scores() -> None:
    net = trained("nb201")
    archs = archs_of(net, 2)[:1]
    losses = [
        float(rank(net, archs, data(), options(recalibration=way), progress=False).loss)
        for way in WAYS
    ]
    assert len(set(losses)) == len(WAYS)


def test_a_network_that_gives_nan_has_no_accuracy() -> None:
    net = trained("nb201")
    with torch.no_grad():
        net.classifier.bias[0] = torch.nan
    scores = rank(net, archs_of(net, 2), data(), options(), progress=False)
    assert scores.accuracy.isnan().all()


def test_all_validation_images_by_default() -> None:
    net = trained("nb201")
    archs = archs_of(net, 2)[:1]
    every = rank(net, archs, data(), RankingOptions(batches=3), progress=False)
    same = rank(net, archs, data(), options(images=48), progress=False)
    assert_same_scores(every, same)
    fewer = rank(net, archs, data(), options(images=16), progress=False)
    assert not torch.equal(fewer.loss, every.loss)


def test_wrong_architectures_are_refused() -> None:
    net = trained("nb201")

    def scored(archs: object) -> None:
        rank(net, archs, data(), options(), progress=False)  # type: ignore[arg-type]

    with refused(ValueError, "rank: archs: wanted int64 [M, 6], at least one, got [0, 6]"):
        scored(torch.zeros(0, 6, dtype=torch.int64))
    with refused(ValueError, "rank: archs: wanted int64 [M, 6], at least one, got [6]"):
        scored(torch.zeros(6, dtype=torch.int64))
    with refused(ValueError, "must be of shape [..., 6], got [1, 8]"):
        scored(cw.spaces.macro().sample(1))
    with refused(ValueError, "must be in 0..4 at [0, 2], got 5"):
        scored(torch.tensor([[0, 0, 5, 0, 0, 0]]))
    with refused(TypeError, "must be int64, got torch.float32"):
        scored(torch.zeros(1, 6))


def test_wrong_options_are_refused() -> None:
    with refused(ValueError, "RankingOptions: recalibration: wanted one of reset, running, batch"):
        options(recalibration="exact")
    for name in ("batches", "images", "chunk"):
        with refused(ValueError, f"RankingOptions: {name}: wanted at least 1, got 0"):
            options(**{name: 0})
    net = trained("nb201")
    archs = archs_of(net, 1)
    with refused(ValueError, "rank: images: wanted 1 … 48 validation images, got 49"):
        rank(net, archs, data(), options(images=49), progress=False)
    with refused(ValueError, "rank: batches: wanted at most 22, an epoch's, got 23"):
        rank(net, archs, data(), options(recalibration="running", batches=23), progress=False)
    with refused(ValueError, "Batches.recalibration: batches: wanted 1 … 22"):
        rank(net, archs, data(), options(batches=23), progress=False)


def test_the_evaluated_set_is_fixed() -> None:
    space = cw.spaces.macro()
    archs = evaluated_set(space)
    assert archs.shape == (1000, 8)
    assert torch.equal(archs, evaluated_set(space))
    index = space.index(archs)
    assert isinstance(index, Tensor)
    assert (index.diff() > 0).all()
    # One that a changed draw would change: recorded runs would not be comparable any more.
    assert index[:5].tolist() == [0, 5, 8, 9, 22]
    assert not torch.equal(archs, evaluated_set(space, seed=1))
    assert torch.equal(
        evaluated_set(cw.spaces.nb201("only_conv")), cw.spaces.nb201("only_conv").all()
    )
    assert len(evaluated_set(space, 3)) == 3
    with refused(ValueError, "evaluated_set: count must be an int >= 1, got 0"):
        evaluated_set(space, 0)


def test_tqdm_is_asked_for_by_name_and_only_for_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    net = trained("nb201")
    monkeypatch.setitem(sys.modules, "tqdm", None)
    archs = archs_of(net, 1)
    rank(net, archs, data(), options(batches=1, images=4), progress=False)
    with refused(ImportError, "rank: wanted the package tqdm, got none: pip install"):
        rank(net, archs, data(), options(batches=1, images=4), progress=True)
