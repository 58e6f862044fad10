"""Networks of one architecture in stock torch modules, cut out of a super-network."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cwkernels.networks.supernet import ConvNormLayer
from cwkernels.nn import ConditionalConv, FixedNorm, MacroLayer, NB201Cell, ResidualReduction
from cwkernels.nn.bank import RunningStatistics
from cwkernels.spaces.macro import IDENTITY
from cwkernels.spaces.nb201 import (
    AVG_POOL_3X3,
    EDGES,
    NONE,
    SKIP_CONNECT,
    input_reaches,
    reaches_output,
)
from cwkernels.spaces.space import check_one_architecture

if TYPE_CHECKING:
    from cwkernels.networks.macro import MacroSuperNetwork
    from cwkernels.networks.nb201 import NB201SuperNetwork


class Cell(nn.Module):
    """A NAS-Bench-201 cell of stock modules; edges that cannot matter are left out."""

    def __init__(self, edges: Mapping[tuple[int, int], nn.Module]) -> None:
        super().__init__()
        self.edges = nn.ModuleDict({f"{i}_{j}": module for (i, j), module in edges.items()})

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] to the same."""
        nodes: dict[str, Tensor] = {"0": input}
        for name, module in self.edges.items():
            source, target = name.split("_")
            value = module(nodes[source])
            nodes[target] = nodes[target] + value if target in nodes else value
        # Zero that still has a gradient, zero too.
        return nodes["3"] if "3" in nodes else input * 0


class Reduction(nn.Module):
    """The residual block between stages."""

    def __init__(self, body: nn.Sequential, shortcut: nn.Sequential) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] to [N, 2 C, H / 2, W / 2]."""
        output: Tensor = self.body(input) + self.shortcut(input)
        return output


class InvertedBottleneck(nn.Module):
    """A MobileNet V2 block, with a residual where the shapes agree."""

    def __init__(self, body: nn.Sequential, residual: bool) -> None:
        super().__init__()
        self.body = body
        self.residual = residual

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] to [N, K, H', W']."""
        output: Tensor = self.body(input)
        return output + input if self.residual else output


class _Network(nn.Module):
    """Features, global average, linear."""

    def __init__(self, features: nn.Sequential, classifier: nn.Linear) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, num_classes]."""
        pooled = F.adaptive_avg_pool2d(self.features(images), 1).flatten(1)
        logits: Tensor = self.classifier(pooled)
        return logits


class NB201Network(_Network):
    """One NAS-Bench-201 architecture."""


class MacroNetwork(_Network):
    """One NAS-Bench-Macro architecture."""


def _conv(weight: Tensor, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    out_channels, in_channels, size, _ = weight.shape
    conv = nn.Conv2d(
        in_channels * groups,
        out_channels,
        size,
        stride=stride,
        padding=size // 2,
        groups=groups,
        bias=False,
        device=weight.device,
        dtype=weight.dtype,
    )
    with torch.no_grad():
        conv.weight.copy_(weight)
    return conv


def _norm(
    statistics: RunningStatistics, row: int, scale: Tensor | None, shift: Tensor | None
) -> nn.BatchNorm2d:
    mean = statistics.running_mean[row]
    norm = nn.BatchNorm2d(
        mean.shape[0], affine=scale is not None, device=mean.device, dtype=mean.dtype
    )
    state = {
        "running_mean": mean,
        "running_var": statistics.running_var[row],
        "num_batches_tracked": statistics.num_batches_tracked[row],
    }
    if scale is not None and shift is not None:
        state |= {"weight": scale, "bias": shift}
    norm.load_state_dict(state)
    return norm


def _fixed_norm(norm: FixedNorm) -> nn.BatchNorm2d:
    return _norm(norm.statistics, 0, norm.weight.detach(), norm.bias.detach())


def _fixed_layer(layer: ConvNormLayer) -> list[nn.Module]:
    modules: list[nn.Module] = [_conv(layer.conv.weight.detach()), _fixed_norm(layer.norm)]
    return [*modules, nn.ReLU()] if layer.relu else modules


def _conditional(conv: ConditionalConv, row: int, stride: int = 1) -> list[nn.Module]:
    """A candidate's convolution and the batch norm behind it, if there is one."""
    bank = conv.convolution.weight.detach()
    modules: list[nn.Module] = [_conv(bank[row], stride, conv.groups)]
    if conv.statistics is not None:
        scale, shift = (
            None if affine is None else affine.weight.detach()[row]
            for affine in (conv.scale, conv.shift)
        )
        modules.append(_norm(conv.statistics, row, scale, shift))
    return modules


def _linear(linear: nn.Linear) -> nn.Linear:
    copy = nn.Linear(
        linear.in_features,
        linear.out_features,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )
    copy.load_state_dict(linear.state_dict())
    return copy


def _cell(cell: NB201Cell, selection: Tensor) -> Cell:
    codes = selection[:, 0]
    active = (codes != NONE) & input_reaches(codes) & reaches_output(codes)
    edges: dict[tuple[int, int], nn.Module] = {}
    for d, edge in enumerate(EDGES):
        code, row = selection[d].tolist()
        if not active[d]:
            continue
        convolutions = cell.convolutions()[d]
        if code == AVG_POOL_3X3:
            include = cell.count_include_pad
            edges[edge] = nn.AvgPool2d(3, 1, 1, count_include_pad=include)
        elif code == SKIP_CONNECT:
            projection = convolutions[2:]
            edges[edge] = _conditional(projection[0], row)[0] if projection else nn.Identity()
        else:
            conv = convolutions[code - SKIP_CONNECT - 1]
            edges[edge] = nn.Sequential(nn.ReLU(), *_conditional(conv, row))
    return Cell(edges)


def _reduction(block: ResidualReduction) -> Reduction:
    body = nn.Sequential(
        nn.ReLU(),
        _conv(block.conv_a.weight.detach(), stride=2),
        _fixed_norm(block.norm_a),
        nn.ReLU(),
        _conv(block.conv_b.weight.detach()),
        _fixed_norm(block.norm_b),
    )
    return Reduction(body, nn.Sequential(nn.AvgPool2d(2), _conv(block.shortcut.weight.detach())))


def cut_nb201(net: "NB201SuperNetwork", arch: Tensor) -> NB201Network:
    """`NB201SuperNetwork.standalone`."""
    selection = _selection(net, arch)
    features = _fixed_layer(net.stem)
    for cell in net.cells:
        if isinstance(cell, NB201Cell):
            features.append(_cell(cell, selection))
        if isinstance(cell, ResidualReduction):
            features.append(_reduction(cell))
    features += [_fixed_norm(net.head_norm), nn.ReLU()]
    network = NB201Network(nn.Sequential(*features), _linear(net.classifier))
    return network.train(net.training)


def _macro_layer(layer: MacroLayer, code: int, row: int) -> nn.Module:
    convolutions = layer.convolutions()
    if code == IDENTITY:
        projection = convolutions[6:]
        if not projection:
            return nn.Identity()
        return nn.Sequential(*_conditional(projection[0], row, layer.stride))
    expand, depthwise, project = convolutions[3 * (code - 1) : 3 * code]
    body = nn.Sequential(
        *_conditional(expand, row),
        nn.ReLU(),
        *_conditional(depthwise, row, layer.stride),
        nn.ReLU(),
        *_conditional(project, row),
    )
    return InvertedBottleneck(body, residual=layer.keeps_shape)


def cut_macro(net: "MacroSuperNetwork", arch: Tensor) -> MacroNetwork:
    """`MacroSuperNetwork.standalone`."""
    selection = _selection(net, arch)
    features = _fixed_layer(net.stem)
    for layer, (code, row) in zip(net.layers, selection.tolist(), strict=True):
        if isinstance(layer, MacroLayer):
            features.append(_macro_layer(layer, code, row))
    features += _fixed_layer(net.head)
    network = MacroNetwork(nn.Sequential(*features), _linear(net.classifier))
    return network.train(net.training)


def _selection(net: "NB201SuperNetwork | MacroSuperNetwork", arch: Tensor) -> Tensor:
    """Code and row of each decision, [D, 2]."""
    return net.select(check_one_architecture(net.space, arch, "standalone"))
