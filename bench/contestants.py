"""What is compared: a super-network, its optimizer and one training step of both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cwkernels as cw
from bench.peers import (
    MACRO_CANDIDATES,
    MACRO_LAYERS,
    NB201_CANDIDATES,
    NB201_EDGES,
    AuthorsWay,
    StockMacro,
    StockNB201,
)
from cwkernels.spaces import Space

CONTESTANTS: Mapping[str, str] = {
    "ours": "cwkernels",
    "ours_split": "cwkernels, split",
    "authors": "authors' way",
    "authors_split": "authors' way, split",
    "stock_nchw": "stock torch, NCHW",
    "stock_channels_last": "stock torch, channels-last",
}
"""Names of the contestants and what the tables call them."""

LEARNING_RATE = 0.025
MOMENTUM = 0.9
WEIGHT_DECAY = 3e-4


@dataclass(frozen=True)
class Contestant:
    """A super-network in training.

    Attributes:
        network: called with images and one architecture.
        optimizer: of the network's parameters.
        memory_format: the layout in which it takes images.
        keeps_gradients: gradients are zeroed between steps, not dropped.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    memory_format: torch.memory_format = torch.channels_last
    keeps_gradients: bool = False

    def loss(self, images: Tensor, labels: Tensor, architecture: Tensor) -> Tensor:
        """Cross entropy of the forward pass."""
        return F.cross_entropy(self.network(images, architecture), labels)

    def step(self, images: Tensor, labels: Tensor, architecture: Tensor) -> None:
        """One training step: forward, loss, backward, optimizer."""
        self.loss(images, labels, architecture).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.keeps_gradients)


def build(contestant: str, network: str, device: torch.device) -> Contestant:
    """The contestant of this name, in the state in which its steps are timed."""
    if contestant.startswith("ours"):
        return _ours(network, device, split=contestant == "ours_split")
    if contestant.startswith("authors"):
        return _authors(network, device, split=contestant == "authors_split")
    nchw = contestant == "stock_nchw"
    return _stock(network, device, torch.contiguous_format if nchw else torch.channels_last)


def space_of(network: str) -> Space:
    """The space whose architectures a network takes."""
    return cw.spaces.macro() if network == "macro" else cw.spaces.nb201(network)


def heaviest_architecture(network: str) -> Tensor:
    """The architecture that keeps most for backward: 3×3 on every edge, k5 e6 in every layer."""
    heaviest = "k5_e6" if network == "macro" else "nor_conv_3x3"
    return every_choice(network)[_candidates(network).index(heaviest)]


def every_choice(network: str) -> list[Tensor]:
    """One architecture for each choice, the same choice everywhere: together, every candidate."""
    decisions = len(MACRO_LAYERS if network == "macro" else NB201_EDGES)
    return [torch.full((decisions,), choice) for choice in range(len(_candidates(network)))]


def stock_network(network: str) -> StockNB201 | StockMacro:
    """The plain super-network in stock PyTorch."""
    return StockMacro() if network == "macro" else StockNB201(network)


def stock_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """SGD with two groups, weight decay on all but batch norm."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    undecayed = {id(p) for norm in norms for p in norm.parameters()}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in network.parameters() if id(p) not in undecayed]},
        {"params": [p for p in network.parameters() if id(p) in undecayed], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        groups, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, foreach=True
    )


def _candidates(network: str) -> tuple[str, ...]:
    return MACRO_CANDIDATES if network == "macro" else NB201_CANDIDATES[network]


def _ours(network: str, device: torch.device, *, split: bool) -> Contestant:
    net = (
        cw.networks.macro() if network == "macro" else cw.networks.nb201(cw.spaces.nb201(network))
    ).to(device)
    if split:
        net.split()
    optimizer = cw.optim.SGD(net, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    return Contestant(net, optimizer)


def _stock(network: str, device: torch.device, memory_format: torch.memory_format) -> Contestant:
    net = stock_network(network).to(device)
    net.to(memory_format=memory_format)
    return Contestant(net, stock_optimizer(net), memory_format)


def _authors(network: str, device: torch.device, *, split: bool) -> Contestant:
    """The authors' way late in a run: all gradients exist, all combinations are stored."""
    net = AuthorsWay(stock_network(network)).to(device)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if split:
        net.split()
        net.visit_all_combinations()
    return Contestant(net, stock_optimizer(net), torch.contiguous_format, keeps_gradients=True)
