"""What a training step runs: our operations, both ways, no stock convolution or batch norm."""

from collections.abc import Callable

import pytest
import torch
from network_cases import build, busy_arch, every_network, images_for
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import cwkernels as cw


def operations(step: Callable[[], object]) -> set[str]:
    """The names of all operations that run, those inside other operations too."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    return {event.key for event in profiled.key_averages()}


def stock_layers(names: set[str]) -> set[str]:
    """Convolutions and batch norms of torch's own."""
    kinds = ("conv", "batch_norm")
    return {n for n in names if n.startswith("aten::") and any(kind in n for kind in kinds)}


def training_step(net: nn.Module, optimizer: torch.optim.Optimizer, arch: Tensor) -> None:
    optimizer.zero_grad()
    net(images_for(), arch).square().mean((-2, -1)).sum().backward()
    optimizer.step()


@pytest.mark.slow
@every_network
@pytest.mark.parametrize(("dense_grad", "several"), [(False, False), (True, True)])
def test_no_stock_convolution_or_batch_norm_runs(
    name: str, dense_grad: bool, several: bool
) -> None:
    net = build(name, dense_grad=dense_grad)
    net.split()
    optimizer = cw.optim.SGD(net)
    arch = busy_arch(name)
    arch = torch.stack([arch, arch.flip(0)]) if several else arch
    names = operations(lambda: training_step(net, optimizer, arch))
    units = ("inverted_bottleneck",) if name == "macro" else ("nb201_cell", "reduction_conv")
    ours = {f"cwkernels::{own}" for own in (*units, "conv_norm", "norm_add")}
    assert ours | {f"{own}_backward" for own in ours} <= names
    assert stock_layers(names) == set()


@pytest.mark.slow
@every_network
def test_the_profile_would_show_stock_convolutions(name: str) -> None:
    net = build(name)
    optimizer = cw.optim.SGD(net)
    with cw.backend("reference"):
        names = operations(lambda: training_step(net, optimizer, busy_arch(name)))
    assert {"aten::convolution", "aten::convolution_backward"} <= stock_layers(names)
    assert "cwkernels::conv_norm" not in names


@pytest.mark.slow
@every_network
def test_the_profile_would_show_stock_batch_norms(name: str) -> None:
    net = build(name).standalone(busy_arch(name))
    names = operations(lambda: net(images_for()).sum().backward())
    wanted = {"aten::batch_norm", "aten::native_batch_norm_backward", "aten::convolution"}
    assert wanted <= stock_layers(names)
