"""Memory is counted part by part; on tiny modules the answers are known."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench import memory
from bench.contestants import (
    CONTESTANTS,
    Contestant,
    build,
    every_choice,
    heaviest_architecture,
)
from bench.memory import MemoryUse, peak_allocation, replayed_peak, saved_bytes, storage_bytes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks on two images gain nothing from threads, and wait long where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_storage_counts_once() -> None:
    x = torch.zeros(10)
    assert storage_bytes([x, x[2:], x.view(2, 5), torch.zeros(3)]) == 4 * (10 + 3)


def test_saved_tensors_count_once_without_parameters_and_inputs() -> None:
    x, weight = torch.randn(8, 4), nn.Parameter(torch.randn(4, 4))

    def forward() -> Tensor:
        hidden = x @ weight  # saves x: the weight's gradient needs it
        return (hidden.sigmoid() * hidden.exp()).sum()  # saves both results, each used twice

    assert saved_bytes(forward, [x, weight]) == 2 * 8 * 4 * 4
    assert saved_bytes(forward, []) == 2 * 8 * 4 * 4 + storage_bytes([x])


def test_the_peak_is_the_highest_sum() -> None:
    assert replayed_peak([5, -5, 3, 4, -7, 2]) == 7
    assert replayed_peak([-4, 3]) == 0
    assert replayed_peak([]) == 0


def test_the_peak_counts_what_an_action_allocates_and_releases() -> None:
    def action() -> Tensor:
        temporary = torch.empty(3000, dtype=torch.float32)
        del temporary
        return torch.empty(1000, dtype=torch.float32)

    assert peak_allocation(action, CPU) == 12_000


class Tiny(nn.Module):
    """One weight, one buffer, one saved tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * 32 * 32, 10))
        self.register_buffer("running_mean", torch.zeros(10))
        self.register_buffer("set_of", torch.zeros(7))

    def forward(self, images: Tensor, architecture: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


def test_the_parts_of_a_tiny_network() -> None:
    net = Tiny()
    contestant = Contestant(
        net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), torch.contiguous_format
    )
    images, labels = torch.randn(5, 3, 32, 32), torch.arange(5)
    architecture = torch.zeros(1, dtype=torch.int64)
    used = memory.measure(contestant, images, labels, architecture, [])
    assert used.parameters == used.momentum == 4 * 3072 * 10
    assert used.running_statistics == 4 * 10
    assert used.gradients == 0
    assert used.inputs == 4 * 5 * 3072 + 8 * 5
    # log_softmax's output, and the scalar total weight that nll_loss keeps
    assert used.saved == 4 * 5 * 10 + 4
    # the gradient of the weight, at the least, is allocated in the step
    assert used.workspace + used.saved >= used.parameters
    assert used.peak == sum(
        (
            used.parameters,
            used.momentum,
            used.running_statistics,
            used.gradients,
            used.inputs,
            used.saved,
            used.workspace,
        )
    )
    assert used.pool == 0
    assert used.process is None


def measured(name: str, network: str) -> MemoryUse:
    images, labels = torch.randn(2, 3, 32, 32), torch.arange(2)
    return memory.measure(
        build(name, network, CPU),
        images,
        labels,
        heaviest_architecture(network),
        every_choice(network),
    )


@pytest.mark.parametrize(
    ("network", "before", "after"),
    [("full", 718_426, 4_159_066), ("macro", 4_221_386, 11_902_410)],
)
def test_weight_sets_cost_parameters_and_momentum(network: str, before: int, after: int) -> None:
    baseline, split = measured("ours", network), measured("ours_split", network)
    assert (baseline.parameters, baseline.momentum) == (4 * before, 4 * before)
    assert (split.parameters, split.momentum) == (4 * after, 4 * after)
    assert split.running_statistics > baseline.running_statistics
    assert split.saved == baseline.saved
    assert split.pool == baseline.pool > 0
    assert split.gradients == 0


def test_the_authors_way_stores_combinations_and_keeps_gradients() -> None:
    network = "only_conv"
    baseline, split = measured("authors", network), measured("authors_split", network)
    edge = 4 * 10 * (16**2 + 32**2 + 64**2) * 2
    assert split.parameters - baseline.parameters == (4 + 2 * 2) * edge
    assert split.momentum == baseline.momentum == baseline.parameters
    assert split.gradients == baseline.gradients == baseline.parameters
    assert split.saved == baseline.saved


def test_stock_parts_match_the_stock_network() -> None:
    used = measured("stock_channels_last", "full")
    assert used.parameters == used.momentum == 4 * 718_426
    assert used.saved == measured("stock_nchw", "full").saved
    assert used.pool == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours_split", "stock_nchw"])
def test_a_fresh_process_reports_its_resident_set(name: str) -> None:
    assert name in CONTESTANTS
    assert memory.process_bytes("only_conv", name, 2) > 50 * 2**20


@pytest.mark.slow
def test_the_child_wants_its_four_arguments() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "bench.memory", "--child", "full"],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert result.stderr.startswith("usage: python -m bench.memory --child")
