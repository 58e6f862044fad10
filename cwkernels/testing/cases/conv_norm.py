"""Cases of `cw.ops.conv_norm`."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from cwkernels import ops
from cwkernels.ops._dtypes import parameter_dtype
from cwkernels.testing.cases.call import Call
from cwkernels.testing.functions import Function, Tensors
from cwkernels.testing.inputs import channels_last, dense_random, statistics_of


@dataclass(frozen=True)
class Case:
    """One call; `norm` is how the input is normalised."""

    name: str
    shape: tuple[int, ...] = (3, 5, 7, 9)
    out_channels: int = 6
    kernel_size: int = 3
    norm: str = "affine"
    relu: bool = True
    pool: bool = False
    stride: int = 1
    training: bool = True

    def __str__(self) -> str:
        """The name, for the ids of parametrised tests."""
        return self.name


def inputs_of(case: Case, mean: float = 0.0) -> dict[str, Tensor]:
    """Channels-last "input", "weight" and, of an affine normalisation, "scale" and "shift"."""
    channels, taps = case.shape[-3], (case.kernel_size, case.kernel_size)
    inputs = {
        "input": channels_last(dense_random(*case.shape, mean=mean)),
        "weight": dense_random(case.out_channels, channels, *taps, seed=1),
    }
    if case.norm == "affine":
        inputs["scale"] = dense_random(channels, seed=2, mean=1.0, deviation=0.5)
        inputs["shift"] = dense_random(channels, seed=3)
    return inputs


def statistics_for(case: Case, input: Tensor) -> Tensor:
    """The input's own in training, others in evaluation."""
    if case.training:
        return statistics_of(input)
    return running_of(case, input.dtype).to(input.device)


def running_of(case: Case, dtype: torch.dtype) -> Tensor:
    """Statistics that are not the input's own, for one of this dtype."""
    statistics = dense_random(*case.shape[:-4], 2, case.shape[-3], seed=4).abs().add(0.5)
    return statistics.to(parameter_dtype(dtype))


def run(case: Case) -> Function:
    """The operation; it normalises by "statistics" if they are given, else by the input's own."""

    def function(tensors: Tensors) -> Tensors:
        input = tensors["input"]
        statistics = tensors.get("statistics")
        if statistics is None and case.norm != "none":
            statistics = statistics_for(case, input)
        output, measured = ops.conv_norm(
            input,
            tensors["weight"],
            statistics,
            tensors.get("scale"),
            tensors.get("shift"),
            relu=case.relu,
            pool=case.pool,
            stride=case.stride,
            training=case.training,
        )
        assert not measured.requires_grad
        mean, variance = measured.unbind(-2)
        return {"output": output, "mean": mean, "variance": variance}

    return function


def stock(case: Case, *, statistics_too: bool = True) -> Function:
    """Stock torch, one architecture after the other; its statistics if asked for."""

    def one(images: Tensor, statistics: Tensor, tensors: Tensors) -> Tensor:
        if case.norm != "none":
            mean, variance = (None, None) if case.training else statistics
            affine = (tensors.get("scale"), tensors.get("shift"))
            images = F.batch_norm(images, mean, variance, *affine, training=case.training)
        images = F.relu(images) if case.relu else images
        images = F.avg_pool2d(images, 2) if case.pool else images
        padding = case.kernel_size // 2
        return F.conv2d(images, tensors["weight"], None, case.stride, padding)

    def function(tensors: Tensors) -> Tensors:
        input = tensors["input"]
        running = running_of(case, input.dtype)
        if input.dim() == 4:
            output = one(input, running, tensors)
        else:
            pairs = zip(input, running, strict=True)
            output = torch.stack([one(*pair, tensors) for pair in pairs])
        if not statistics_too:
            return {"output": output}
        mean, variance = statistics_of(output).unbind(-2)
        return {"output": output, "mean": mean, "variance": variance}

    return function


def cotangents_of(case: Case) -> dict[str, Tensor]:
    """The gradient of the output."""
    with torch.no_grad():
        output = stock(case, statistics_too=False)(inputs_of(case))["output"]
    return {"output": channels_last(dense_random(*output.shape, seed=5))}


def terms_of(case: Case) -> dict[str, int]:
    """How many products the output and, at most, a gradient sums."""
    channels = case.shape[-3]
    return {"output": channels * case.kernel_size**2, "": math.prod(case.shape) // channels}


def network_calls(images: int) -> list[Call]:
    """The stems, the second convolutions of the reductions and Macro's head."""
    cases = [
        Case("nb201_stem", (images, 3, 32, 32), 16, norm="none", relu=False),
        Case("macro_stem", (images, 3, 32, 32), 32, norm="none", relu=False),
        Case("macro_head", (images, 256, 4, 4), 1280, 1, norm="none", relu=False),
    ]
    cases += [
        Case(f"nb201_reduction_{channels}_b", (images, 2 * channels, half, half), 2 * channels)
        for channels, half in ((16, 16), (32, 8))
    ]
    return [_call(case) for case in cases]


def _call(case: Case) -> Call:
    def inputs() -> dict[str, Tensor]:
        inputs = inputs_of(case)
        if case.norm == "none":
            return inputs
        return inputs | {"statistics": statistics_for(case, inputs["input"])}

    plain = stock(case, statistics_too=False)
    cotangents = partial(cotangents_of, case)
    return Call("conv_norm", case.name, run(case), plain, inputs, cotangents, terms_of(case), 1)
