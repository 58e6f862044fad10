"""NAS-Bench-Macro (paper section 3.3, table 3): the space, its layers' shapes, counts."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from cwkernels.spaces import checks
from cwkernels.spaces.space import (
    Candidate,
    Decision,
    Space,
    check_architecture,
    check_one_architecture,
    check_string,
    sets_per_candidate,
)

IDENTITY, K3_E3, K5_E6 = range(3)

CANDIDATES = (
    Candidate("identity", weighted=False, code=IDENTITY),
    Candidate("k3_e3", weighted=True, code=K3_E3, kernel_area=1 + 9 + 1),
    Candidate("k5_e6", weighted=True, code=K5_E6, kernel_area=1 + 25 + 1),
)


@dataclass(frozen=True)
class Bottleneck:
    """The shape of an inverted bottleneck; ``expansion`` is hidden over input channels."""

    kernel_size: int
    expansion: int


BOTTLENECKS = MappingProxyType({K3_E3: Bottleneck(3, 3), K5_E6: Bottleneck(5, 6)})
"""The inverted bottlenecks by operation code."""


@dataclass(frozen=True)
class Layer:
    """The shape of one layer; ``input_size`` is the height and width of its input."""

    in_channels: int
    out_channels: int
    stride: int
    input_size: int

    @property
    def output_size(self) -> int:
        """Height and width of the output."""
        return self.input_size // self.stride

    @property
    def keeps_shape(self) -> bool:
        """Whether bottlenecks have a residual and Identity is free; else it is a projection."""
        return self.stride == 1 and self.in_channels == self.out_channels


LAYERS = (
    Layer(32, 64, stride=2, input_size=32),
    Layer(64, 64, stride=1, input_size=16),
    Layer(64, 128, stride=2, input_size=16),
    Layer(128, 128, stride=1, input_size=8),
    Layer(128, 128, stride=1, input_size=8),
    Layer(128, 256, stride=2, input_size=8),
    Layer(256, 256, stride=1, input_size=4),
    Layer(256, 256, stride=1, input_size=4),
)
"""The eight layers, one per decision."""


@dataclass(frozen=True)
class Convolution:
    """A bias-free convolution with the affine batch norm that follows it."""

    in_channels: int
    out_channels: int
    kernel_size: int
    output_size: int
    groups: int = 1

    @property
    def parameters(self) -> int:
        """Convolution weights, batch norm's scale and shift."""
        return self._weights + 2 * self.out_channels

    @property
    def flops(self) -> int:
        """Multiply-adds of the convolution."""
        return self._weights * self.output_size**2

    @property
    def _weights(self) -> int:
        return self.in_channels // self.groups * self.out_channels * self.kernel_size**2


STEM = Convolution(3, 32, kernel_size=3, output_size=32)
HEAD = Convolution(256, 1280, kernel_size=1, output_size=4)
"""The head's convolution; global average pooling and a linear layer with bias follow it."""


class Macro(Space):
    """The NAS-Bench-Macro space: 8 decisions, one per layer; each depends on the layer before.

    Identity is not a weighted candidate, although it is a 1x1 projection in the three strided
    layers: the projection has sets of its own there, which no count of weight sets includes.
    """

    def parse(self, string: str) -> Tensor:
        """The architecture of eight digits like ``"22212220"``, int64 ``[8]``; ValueError."""
        if re.fullmatch("[0-2]{8}", check_string(string, "space.parse")) is None:
            wanted = "eight digits of 0, 1, 2"
            raise ValueError(checks.message("space.parse", "string", wanted, repr(string)))
        return torch.tensor([int(digit) for digit in string], device="cpu")

    def format(self, arch: Tensor) -> str:
        """The eight digits of one architecture ``[8]``; inverse of ``parse``."""
        return "".join(map(str, check_one_architecture(self, arch, "space.format").tolist()))


def macro() -> Macro:
    """The NAS-Bench-Macro space: 6561 architectures of Identity, k3_e3 and k5_e6 in 8 layers."""
    return Macro(
        "macro",
        tuple(
            Decision(f"layer_{d}", CANDIDATES, predecessors=(d - 1,) if d else ())
            for d in range(len(LAYERS))
        ),
    )


def convolutions(layer: Layer, code: int) -> tuple[Convolution, ...]:
    """The convolutions that operation ``code`` is made of in ``layer``, in order.

    Identity: none where the layer keeps its shape, else a 1x1 projection with the layer's stride.
    Bottlenecks: expand, depthwise (which has the stride), project. ValueError for another code.
    """
    if code == IDENTITY:
        projection = Convolution(layer.in_channels, layer.out_channels, 1, layer.output_size)
        return () if layer.keeps_shape else (projection,)
    if code not in BOTTLENECKS:
        raise ValueError(checks.message("macro.convolutions", "code", "in 0..2", repr(code)))
    bottleneck = BOTTLENECKS[code]
    hidden = bottleneck.expansion * layer.in_channels
    return (
        Convolution(layer.in_channels, hidden, 1, layer.input_size),
        Convolution(hidden, hidden, bottleneck.kernel_size, layer.output_size, groups=hidden),
        Convolution(hidden, layer.out_channels, 1, layer.output_size),
    )


def parameters(arch: Tensor) -> Tensor:
    """The parameters of a stand-alone network for 10 classes, int64 ``[...]``.

    NAS-Bench-Macro's ``params``. ``arch`` is int64 ``[..., 8]``, else TypeError or ValueError.
    """
    arch = check_architecture(macro(), arch, "macro.parameters")
    fixed = STEM.parameters + HEAD.parameters + _linear_parameters(num_classes=10)
    return fixed + _sum_over_layers(arch, lambda convolution: convolution.parameters)


def flops(arch: Tensor) -> Tensor:
    """Multiply-adds of a stand-alone network's convolutions and linear layer, int64 ``[...]``.

    NAS-Bench-Macro's ``flops``: one 32x32 image, 10 classes. ``arch`` is int64 ``[..., 8]``, else
    TypeError or ValueError.
    """
    arch = check_architecture(macro(), arch, "macro.flops")
    fixed = STEM.flops + HEAD.flops + HEAD.out_channels * 10
    return fixed + _sum_over_layers(arch, lambda convolution: convolution.flops)


def supernet_parameters(
    split: bool | Iterable[int] = False, num_classes: int = 10
) -> dict[str, int]:
    """The super-network's parameters by part, as in table 3: ``"stem"``, ``"0"``, ..., ``"head"``.

    ``split`` is that of ``Space.weight_sets``; a strided layer's projection is split with its
    layer. TypeError and ValueError for other arguments.
    """
    operation = "macro.supernet_parameters"
    num_classes = checks.integer(operation, "num_classes", num_classes, at_least=1)
    sets = sets_per_candidate(macro(), split, operation)
    layers = {
        str(i): rows
        * sum(
            convolution.parameters
            for candidate in CANDIDATES
            for convolution in convolutions(layer, candidate.code)
        )
        for i, (rows, layer) in enumerate(zip(sets, LAYERS, strict=True))
    }
    head = HEAD.parameters + _linear_parameters(num_classes)
    return {"stem": STEM.parameters, **layers, "head": head}


def _linear_parameters(num_classes: int) -> int:
    return (HEAD.out_channels + 1) * num_classes


def _sum_over_layers(arch: Tensor, count: Callable[[Convolution], int]) -> Tensor:
    table = arch.new_tensor(
        [
            [sum(map(count, convolutions(layer, candidate.code))) for candidate in CANDIDATES]
            for layer in LAYERS
        ]
    )
    layers = torch.arange(len(LAYERS), device=arch.device)
    return table[layers, arch].sum(dim=-1)
