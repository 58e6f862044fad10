"""Shared prefixes: the same scores by less work."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from ranking_cases import archs_of, assert_same_scores, data, options, trained
from torch import Tensor

import cwkernels as cw
from cwkernels.nn import MacroLayer
from cwkernels.ranking import rank
from cwkernels.ranking.options import WAYS
from cwkernels.ranking.prefix import layer_runs

pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many architectures each call of a layer ran."""
    calls: list[int] = []
    forward = MacroLayer.forward

    def counting(self: MacroLayer, input: Tensor, selection: Tensor, *rest: Tensor) -> Any:
        calls.append(1 if selection.dim() == 1 else len(selection))
        return forward(self, input, selection, *rest)

    with patch.object(MacroLayer, "forward", counting):
        yield calls


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("chunk", [1, 4, None])
def test_scores_are_bitwise_those_without(way: str, chunk: int | None) -> None:
    net = trained("macro")
    siblings = archs_of(net, 10)[0].repeat(3, 1)
    siblings[:, -1] = torch.arange(3)
    archs = torch.unique(torch.cat([archs_of(net, 10), siblings]), dim=0)
    shared = rank(net, archs, data(), options(recalibration=way, chunk=chunk), progress=False)
    plain = options(recalibration=way, share_prefixes=False)
    assert_same_scores(shared, rank(net, archs, data(), plain, progress=False))
    assert len(shared.loss.unique()) > 8


def test_recalibrated_statistics_depend_on_the_prefix_alone() -> None:
    """Two architectures that part at the last layer: all norms before it are the same, bitwise."""
    net = trained("macro")
    archs = torch.tensor([[1, 2, 0, 2, 1, 2, 0, 1], [1, 2, 0, 2, 1, 2, 0, 2]])
    own = net.separate(archs)
    own.statistics_momentum = None
    own.train()
    with torch.no_grad():
        for images, _ in data().recalibration(3):
            own(images, archs)
    state = own.state_dict()
    means = [key for key in state if key.endswith("running_mean")]
    before = [key for key in means if not key.startswith(("layers.7.", "head."))]
    same = [torch.equal(state[key][0], state[key][1]) for key in before]
    assert len(before) > 40
    assert all(same)
    assert not torch.equal(
        state["head.norm.statistics.running_mean"][0], state["head.norm.statistics.running_mean"][1]
    )


def test_all_of_macro_costs_9840_layer_runs() -> None:
    archs = cw.spaces.macro().all()
    assert layer_runs(archs) == sum(3**depth for depth in range(1, 9)) == 9840
    assert sum(layer_runs(chunk) for chunk in archs.split(243)) == 27 * (3 + 363) == 9882
    assert sum(layer_runs(arch[None]) for arch in archs) == 8 * 6561 == 52488


def test_a_batch_runs_each_prefix_once() -> None:
    """A subtree of 27: 5 layers in common, then 3 + 9 + 27 choices, for 3 + 3 batches."""
    net = trained("macro")
    archs = torch.cartesian_prod(*(torch.arange(3),) * 3)
    archs = torch.cat([torch.tensor([[1, 0, 2, 1, 2]]).expand(27, 5), archs], dim=1)
    with counted() as calls:
        rank(net, archs, data(), options(), progress=False)
    assert calls == ([1] * 5 + [3] + ([3] + [3] * 3) * 3) * 6
    assert sum(calls) == (5 + 39) * 6
    assert layer_runs(archs) == 44
    with counted() as calls:
        rank(net, archs, data(), options(share_prefixes=False), progress=False)
    assert sum(calls) == 8 * 27 * 6
