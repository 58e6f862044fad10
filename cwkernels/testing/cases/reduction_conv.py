"""Cases of `cw.ops.reduction_conv`."""

import math
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from cwkernels import ops
from cwkernels.testing.cases.call import Call
from cwkernels.testing.functions import Function, Tensors
from cwkernels.testing.inputs import channels_last, dense_random, statistics_of


@dataclass(frozen=True)
class Case:
    """One call: images [..., N, C, H, W] and K output channels."""

    name: str
    shape: tuple[int, ...]
    out_channels: int

    def __str__(self) -> str:
        """The name, for the ids of parametrised tests."""
        return self.name


def inputs_of(case: Case, mean: float = 0.0) -> dict[str, Tensor]:
    """Channels-last "input", "weight" and "shortcut"."""
    channels = case.shape[-3]
    return {
        "input": channels_last(dense_random(*case.shape, mean=mean)),
        "weight": dense_random(case.out_channels, channels, 3, 3, seed=1),
        "shortcut": dense_random(case.out_channels, channels, 1, 1, seed=2),
    }


def run(tensors: Tensors) -> Tensors:
    """The operation."""
    output, measured, shortcut = ops.reduction_conv(
        tensors["input"], tensors["weight"], tensors["shortcut"]
    )
    assert not measured.requires_grad
    mean, variance = measured.unbind(-2)
    return {"output": output, "mean": mean, "variance": variance, "shortcut output": shortcut}


def stock(tensors: Tensors) -> Tensors:
    """Stock torch, all architectures as one batch."""
    outputs = convolutions(tensors)
    mean, variance = statistics_of(outputs["output"]).unbind(-2)
    return {**outputs, "mean": mean, "variance": variance}


def convolutions(tensors: Tensors) -> Tensors:
    """The same without the statistics."""
    input = tensors["input"]
    images = input.flatten(0, -4)
    output = F.conv2d(F.relu(images), tensors["weight"], stride=2, padding=1)
    shortcut = F.conv2d(F.avg_pool2d(images, 2), tensors["shortcut"])
    lead = input.shape[:-3]
    return {
        "output": output.unflatten(0, lead),
        "shortcut output": shortcut.unflatten(0, lead),
    }


def cotangents_of(case: Case) -> dict[str, Tensor]:
    """The gradients of both outputs."""
    *lead, _, height, width = case.shape
    size = (*lead, case.out_channels, height // 2, width // 2)
    names = ("output", "shortcut output")
    return {n: channels_last(dense_random(*size, seed=5 + i)) for i, n in enumerate(names)}


def terms_of(case: Case) -> dict[str, int]:
    """How many products an output and, at most, a gradient sums."""
    channels = case.shape[-3]
    return {"output": channels * 9, "": math.prod(case.shape) // channels}


def network_calls(images: int) -> list[Call]:
    """The two residual reductions of NAS-Bench-201."""
    shapes = ((16, 32), (32, 16))
    cases = [Case(f"nb201_reduction_{c}", (images, c, s, s), 2 * c) for c, s in shapes]
    return [_call(case) for case in cases]


def _call(case: Case) -> Call:
    inputs, cotangents = partial(inputs_of, case), partial(cotangents_of, case)
    function: Function = run
    return Call(
        "reduction_conv", case.name, function, convolutions, inputs, cotangents, terms_of(case), 1
    )
