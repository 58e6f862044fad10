"""Small networks, images and architectures that the tests of the super-networks share."""

import importlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import cwkernels as cw
from cwkernels.networks import MacroSuperNetwork, NB201SuperNetwork
from cwkernels.nn import Bank, RunningStatistics
from cwkernels.spaces.macro import HEAD, LAYERS, STEM, Convolution, Layer
from cwkernels.spaces.nb201 import NONE, input_reaches, reaches_output

Network = MacroSuperNetwork | NB201SuperNetwork

every_network = pytest.mark.parametrize("name", ["nb201", "macro"])
with_and_without_reserve = pytest.mark.parametrize("reserve", [False, True])

# Each with dead convolutions, lone skips and cells that nothing crosses among them.
ARCHS = {
    "nb201": ("323232", "331420", "033023", "142314", "300003", "111111", "000000"),
    "macro": ("12021201", "22222222", "11111111", "00000000"),
}
DECISIONS = {"nb201": 6, "macro": 8}
ROWS = {"nb201": (1, 1, 5, 1, 5, 25), "macro": (1, 3, 3, 3, 3, 3, 3, 3)}


def arch_of(digits: str) -> Tensor:
    """The architecture whose choices are the digits."""
    return torch.tensor([int(digit) for digit in digits])


def archs_of(name: str) -> list[Tensor]:
    """The sample of architectures of a network."""
    return [arch_of(digits) for digits in ARCHS[name]]


def busy_arch(name: str) -> Tensor:
    """An architecture with every kind of live convolution."""
    return archs_of(name)[0]


def images_for(*lead: int, seed: int = 0, size: int = 8) -> Tensor:
    """Random images [*lead, 3, size, size]; [4, 3, 8, 8] without a lead."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(lead or (4,)), 3, size, size, generator=generator)


def narrow(shape: Convolution | Layer) -> Any:
    """A fourth of the channels, but for the images' own."""
    channels = {name: getattr(shape, name) for name in ("in_channels", "out_channels")}
    return replace(shape, **{name: n // 4 if n > 3 else n for name, n in channels.items()})


def narrow_macro(**options: bool) -> MacroSuperNetwork:
    """Macro with an eighth of the work, its layers and decisions the same."""
    shapes = {
        "STEM": narrow(STEM),
        "LAYERS": tuple(narrow(layer) for layer in LAYERS),
        "HEAD": narrow(HEAD),
    }
    with patch.multiple(importlib.import_module("cwkernels.networks.macro"), **shapes):
        return cw.networks.macro(**options)


def build(name: str, *, subset: str = "full", seed: int = 0, **options: bool) -> Network:
    """A small NAS-Bench-201 or Macro super-network, from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name == "macro":
            return narrow_macro(**options)
        space = cw.spaces.nb201(subset)
        return cw.networks.nb201(space, channels=4, cells_per_stage=1, **options)


def randomize(net: nn.Module, seed: int = 1) -> None:
    """Makes every value of a network its own: rows differ, batch norms are not the identity."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 + 0.3 * normal(parameter)).add_(0.02 * normal(parameter))
        for module in net.modules():
            if isinstance(module, RunningStatistics):
                module.running_mean.add_(0.1 * normal(module.running_mean))
                module.running_var.mul_(1 + 0.5 * normal(module.running_var).tanh())


def built_split(name: str, **options: bool) -> Network:
    """A network after its split, each row with values of its own."""
    net = build(name, subset="full", **options)
    net.split()
    randomize(net)
    return net


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    """A copy of the state, to compare or to restore."""
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def assert_same_state(state: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bitwise."""
    assert list(state) == list(other)
    for name, tensor in state.items():
        assert torch.equal(tensor, other[name]), name


def dense(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A gradient, compact, ordinary or none, as an ordinary tensor."""
    if gradient is None:
        return torch.zeros_like(like)
    return gradient.to_dense() if gradient.is_sparse else gradient


def gradients(net: nn.Module) -> dict[str, Tensor]:
    """Every parameter's gradient as an ordinary tensor."""
    return {name: dense(p.grad, p).clone() for name, p in net.named_parameters()}


def keys_by_value(net: Network) -> dict[bytes, tuple[str, int | None]]:
    """Where each weight set and each shared parameter lies; their values are all different."""
    banks = {f"{name}.weight" for name in net.banks()}
    found: dict[bytes, tuple[str, int | None]] = {}
    for name, parameter in net.named_parameters():
        rows = list(enumerate(parameter)) if name in banks else [(None, parameter)]
        found |= {row.detach().numpy().tobytes(): (name, number) for number, row in rows}
    return found


def logits_in_training(net: Network, images: Tensor, arch: Tensor) -> Tensor:
    """A forward pass in training, without a graph, that leaves the network's state as it was."""
    state = snapshot(net)
    with torch.no_grad():
        logits: Tensor = net.train()(images, arch)
    net.load_state_dict(state)
    return logits


def logits_in_evaluation(net: Network, images: Tensor, arch: Tensor) -> Tensor:
    """A forward pass in evaluation, without a graph; the network is in training after it."""
    with torch.no_grad():
        logits: Tensor = net.eval()(images, arch)
    net.train()
    return logits


def active(net: Network, arch: Tensor) -> Tensor:
    """Which decisions run anything in an architecture, bool [D], by the space's own account."""
    if isinstance(net, MacroSuperNetwork):
        return torch.ones(8, dtype=torch.bool)
    codes = net.space.codes(arch)
    return (codes != NONE) & input_reaches(codes) & reaches_output(codes)


def row_read(net: Network, bank: Bank, arch: Tensor) -> int | None:
    """The row of a bank of a split network that an architecture reads, computed from the space."""
    decision = net.space.decisions[bank.decision]
    chosen = decision.candidates[int(arch[bank.decision])].name
    if chosen != bank.candidate or not bool(active(net, arch)[bank.decision]):
        return None
    return int(net.space.combination(arch, bank.decision))


def statistics_of(net: Network) -> Iterator[tuple[str, Bank, RunningStatistics]]:
    """The running statistics of conditional batch norms, each with the bank before it."""
    for name, module in net.named_modules():
        if isinstance(getattr(module, "statistics", None), RunningStatistics) and isinstance(
            getattr(module, "convolution", None), Bank
        ):
            bank, statistics = module.convolution, module.statistics
            assert isinstance(bank, Bank)
            assert isinstance(statistics, RunningStatistics)
            yield name, bank, statistics


def changed_rows(before: Tensor, after: Tensor) -> list[int]:
    """The rows that differ bitwise."""
    differs = (before != after).reshape(before.shape[0], -1).any(dim=1)
    rows: list[int] = differs.nonzero().flatten().tolist()
    return rows


def macro_ground_truth() -> dict[str, Any]:
    """NAS-Bench-Macro's own table; skips the test where the data are not at hand."""
    root = Path(__file__).resolve().parents[2]
    data = Path(os.environ.get("CWKERNELS_DATA", root.parent / "shared" / "data"))
    path = data / "groundtruth" / "nas-bench-macro_cifar10.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent; CWKERNELS_DATA names the folder of the real data")
    table: dict[str, Any] = json.loads(path.read_text())
    return table
