"""What is compared: a super-network, its optimizer and one training step of both."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cwkernels as cw
from bench.stock_networks import (
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
"""Names of the contestants of `bench/overhead.py` and what the tables call them."""

PEERS: Mapping[str, str] = {
    "ours": "cwkernels",
    "ours_split": "cwkernels, split",
    "ours_highest": "cwkernels, precision highest",
    "ours_bf16": "cwkernels, bf16",
    "ours_graphed": "cwkernels, in one CUDA graph for all architectures",
    "ours_graphed_bf16": "cwkernels, bf16, in one CUDA graph for all architectures",
    "stock_nchw": "stock torch, NCHW",
    "stock_channels_last": "stock torch, channels-last",
    "stock_bf16": "stock torch, channels-last, bf16",
    "stock_compiled": "stock torch, candidates compiled",
    "stock_graphed": "stock torch, channels-last, in a CUDA graph for each architecture",
    "authors_split": "authors' way, split",
    "ours_recompute": "cwkernels, recompute",
}
"""Names of the contestants of `bench/peers.py` and what the tables call them."""

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
        context: what forward and loss run in: a precision, or autocast.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    memory_format: torch.memory_format = torch.channels_last
    keeps_gradients: bool = False
    context: Callable[[], AbstractContextManager[object]] = nullcontext

    def loss(self, images: Tensor, labels: Tensor, architecture: Tensor) -> Tensor:
        """Cross entropy of the forward pass."""
        with self.context():
            return F.cross_entropy(self.network(images, architecture), labels)

    def infer(self, images: Tensor, architecture: Tensor) -> Tensor:
        """The forward pass without gradients, in the mode that the network is in."""
        with torch.no_grad(), self.context():
            logits: Tensor = self.network(images, architecture)
        return logits

    def step(self, images: Tensor, labels: Tensor, architecture: Tensor) -> None:
        """One training step: forward, loss, backward, optimizer."""
        self.loss(images, labels, architecture).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.keeps_gradients)


def build(contestant: str, network: str, device: torch.device) -> Contestant:
    """The contestant of this name, in the state in which its steps are timed."""
    if contestant.startswith("ours"):
        ours = _ours(
            network,
            device,
            split=contestant == "ours_split",
            recompute=contestant == "ours_recompute",
        )
        if contestant.endswith("_bf16"):
            return replace(ours, context=partial(_bf16, device))
        return replace(ours, context=_highest) if contestant == "ours_highest" else ours
    if contestant.startswith("authors"):
        return _authors(network, device, split=contestant == "authors_split")
    nchw = contestant == "stock_nchw"
    stock = _stock(
        network,
        device,
        torch.contiguous_format if nchw else torch.channels_last,
        compiled=contestant == "stock_compiled",
    )
    return replace(stock, context=partial(_bf16, device)) if contestant == "stock_bf16" else stock


def runs_bf16(device: torch.device) -> bool:
    """Whether stock torch has bf16 convolutions there: on a GPU, and on some CPUs."""
    return device.type == "cuda" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def compile_candidates(network: StockNB201 | StockMacro) -> None:
    """`torch.compile`, in place, of every candidate; what is compiled is what is called."""
    # Candidates share the code of nn.Sequential: one graph for each kind, width and mode.
    torch._dynamo.config.recompile_limit = 1000
    torch._dynamo.config.accumulated_recompile_limit = 10_000
    for candidates in network.candidates():
        for candidate in candidates:
            candidate.compile()


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


def _highest() -> AbstractContextManager[object]:
    return cw.float32_conv_precision("highest")


def _bf16(device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16)


def _candidates(network: str) -> tuple[str, ...]:
    return MACRO_CANDIDATES if network == "macro" else NB201_CANDIDATES[network]


def _ours(network: str, device: torch.device, *, split: bool, recompute: bool) -> Contestant:
    net = (
        cw.networks.macro(recompute=recompute)
        if network == "macro"
        else cw.networks.nb201(cw.spaces.nb201(network))
    ).to(device)
    if split:
        net.split()
    optimizer = cw.optim.SGD(net, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    return Contestant(net, optimizer)


def _stock(
    network: str, device: torch.device, memory_format: torch.memory_format, *, compiled: bool
) -> Contestant:
    net = stock_network(network).to(device)
    net.to(memory_format=memory_format)
    if compiled:
        compile_candidates(net)
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
