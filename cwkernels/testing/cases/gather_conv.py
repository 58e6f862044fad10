"""Cases of `cw.ops.gather_conv`."""

from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from cwkernels import ops
from cwkernels.ops.precision import Precision
from cwkernels.spaces.macro import CANDIDATES, HEAD, LAYERS, STEM, Convolution, convolutions
from cwkernels.testing.functions import Expected, Function, Tensors, expect
from cwkernels.testing.inputs import Draw, channels_last, dense_random
from cwkernels.testing.tolerances import LEAST_NONZERO


@dataclass(frozen=True)
class ConvCase:
    """One call of `cw.ops.gather_conv`: a row of the bank for each architecture."""

    name: str
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel_size: int
    stride: int = 1
    depthwise: bool = False
    images: int = 2
    sets: int = 1
    rows: tuple[int, ...] = (0,)
    shared: bool = True
    """Whether all architectures see the same images."""

    def __str__(self) -> str:
        """The name, for the ids of parametrised tests."""
        return self.name

    @property
    def groups(self) -> int:
        """`gather_conv`'s argument."""
        return self.in_channels if self.depthwise else 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[A or 1, N, C, H, W]."""
        lead = 1 if self.shared else len(self.rows)
        return (lead, self.images, self.in_channels, self.height, self.width)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[S, K, C / groups, R, R]."""
        taps = (self.kernel_size, self.kernel_size)
        return (self.sets, self.out_channels, self.in_channels // self.groups, *taps)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[A, N, K, H', W']."""
        size = ((side - 1) // self.stride + 1 for side in (self.height, self.width))
        return (len(self.rows), self.images, self.out_channels, *size)

    @property
    def terms(self) -> dict[str, int]:
        """How many products each element of the output and of the gradients sums, at most."""
        taps = self.kernel_size**2
        sharing = len(self.rows) if self.shared else 1
        repeats = max(map(self.rows.count, self.rows))
        _, images, _, height, width = self.output_shape
        return {
            "output": self.in_channels // self.groups * taps,
            "gradient of input": self.out_channels // self.groups * taps * sharing,
            "gradient of weight": images * height * width * repeats,
        }

    @property
    def nonzero(self) -> float:
        """The share of elements that must not be zero: small images leave outer taps unread."""
        fraction = LEAST_NONZERO
        for side in (self.height, self.width):
            pad, pixels = self.kernel_size // 2, range(0, side, self.stride)
            reached = sum(
                any(0 <= pixel + tap - pad < side for pixel in pixels)
                for tap in range(self.kernel_size)
            )
            fraction *= reached / self.kernel_size
        return fraction

    def tensors(self, draw: "Draw", seed: int = 0) -> dict[str, Tensor]:
        """Channels-last "input", "weight", "rows", and a "cotangent" of the output, drawn."""
        return {
            "input": channels_last(draw(*self.input_shape, seed=seed)),
            "weight": draw(*self.weight_shape, seed=seed + 1),
            "rows": torch.tensor(self.rows, dtype=torch.int64),
            "cotangent": channels_last(draw(*self.output_shape, seed=seed + 2)),
        }


def run(case: ConvCase, precision: Precision = "highest") -> Function:
    """The operation."""

    def function(tensors: Tensors) -> Tensors:
        input, weight, rows = (tensors[name] for name in ("input", "weight", "rows"))
        with ops.float32_conv_precision(precision):
            output = ops.gather_conv(input, weight, rows, stride=case.stride, groups=case.groups)
        return {"output": output}

    return function


def stock(case: ConvCase) -> Function:
    """Stock convolutions, stacked."""

    def function(tensors: Tensors) -> Tensors:
        input, weight, rows = (tensors[name] for name in ("input", "weight", "rows"))
        padding = case.kernel_size // 2
        outputs = [
            F.conv2d(images, weight[row], None, case.stride, padding, groups=case.groups)
            for images, row in zip(input.expand(len(rows), *input.shape[1:]), rows, strict=True)
        ]
        return {"output": torch.stack(outputs)}

    return function


def network_cases(images: int = 2) -> tuple[ConvCase, ...]:
    """The convolutions of both networks, each shape once."""
    cases = _nb201_cases(images) + _macro_cases(images)
    unique = {(case.weight_shape, case.input_shape, case.stride): case for case in reversed(cases)}
    return tuple(case for case in cases if case in unique.values())


def _nb201_cases(images: int) -> list[ConvCase]:
    cases = [ConvCase("nb201_stem", 3, 16, 32, 32, 3, images=images)]
    for channels, side in ((16, 32), (32, 16), (64, 8)):
        for kernel_size in (3, 1):
            name = f"nb201_{kernel_size}x{kernel_size}_{channels}"
            cases.append(ConvCase(name, channels, channels, side, side, kernel_size, images=images))
    for channels, side in ((16, 32), (32, 16)):
        reduction = f"nb201_reduction_{channels}"
        shortcut = f"nb201_shortcut_{channels}"
        half = side // 2
        cases += [
            ConvCase(reduction, channels, 2 * channels, side, side, 3, stride=2, images=images),
            ConvCase(shortcut, channels, 2 * channels, half, half, 1, images=images),
        ]
    return cases


def _macro_cases(images: int) -> list[ConvCase]:
    cases = [_macro_case("macro_stem", STEM, STEM.output_size, images)]
    for i, layer in enumerate(LAYERS):
        for candidate in CANDIDATES:
            side = layer.input_size
            parts = convolutions(layer, candidate.code)
            names = ("expand", "depthwise", "project") if len(parts) == 3 else ("projection",)
            for part, convolution in zip(names, parts, strict=False):
                name = f"macro_{i}_{candidate.name}_{part}"
                cases.append(_macro_case(name, convolution, side, images))
                side = convolution.output_size
    cases.append(_macro_case("macro_head", HEAD, HEAD.output_size, images))
    return cases


def _macro_case(name: str, conv: Convolution, side: int, images: int) -> ConvCase:
    return ConvCase(
        name,
        conv.in_channels,
        conv.out_channels,
        side,
        side,
        conv.kernel_size,
        stride=side // conv.output_size,
        depthwise=conv.groups > 1,
        images=images,
    )


@cache
def random_inputs(case: ConvCase, mean: float) -> tuple[Tensors, Tensors]:
    """Random inputs and cotangent, both of this mean; drawn once."""
    tensors = case.tensors(partial(dense_random, mean=mean))
    return tensors, {"output": tensors.pop("cotangent")}


@cache
def random_expected(case: ConvCase, mean: float) -> Expected:
    """What stock torch gives for them; computed once."""
    return expect(stock(case), *random_inputs(case, mean))
