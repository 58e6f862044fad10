"""Cases of `cw.ops.norm_add`."""

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
    """One call."""

    name: str
    shape: tuple[int, ...] = (3, 5, 7, 9)
    affine: bool = True
    shortcut: bool = True
    relu: bool = True
    training: bool = True
    eps: float = 1e-5

    def __str__(self) -> str:
        """The name, for the ids of parametrised tests."""
        return self.name


def inputs_of(case: Case, mean: float = 0.0) -> dict[str, Tensor]:
    """Channels-last "input" and what else the case has of "scale", "shift" and "shortcut"."""
    channels = case.shape[-3]
    inputs = {"input": channels_last(dense_random(*case.shape, mean=mean))}
    if case.affine:
        inputs["scale"] = dense_random(channels, seed=2, mean=1.0, deviation=0.5)
        inputs["shift"] = dense_random(channels, seed=3)
    if case.shortcut:
        inputs["shortcut"] = channels_last(dense_random(*case.shape, seed=4))
    return inputs


def cotangents_of(case: Case) -> dict[str, Tensor]:
    """The gradient of the output."""
    return {"output": channels_last(dense_random(*case.shape, seed=5))}


def statistics_for(case: Case, input: Tensor) -> Tensor:
    """The input's own in training, others in evaluation."""
    if case.training:
        return statistics_of(input)
    return running_of(case, input.dtype).to(input.device)


def running_of(case: Case, dtype: torch.dtype) -> Tensor:
    """Statistics that are not the input's own, for one of this dtype."""
    statistics = dense_random(*case.shape[:-4], 2, case.shape[-3], seed=6).abs().add(0.5)
    return statistics.to(parameter_dtype(dtype))


def run(case: Case) -> Function:
    """The operation; it normalises by "statistics" if they are given, else by the input's own."""

    def function(tensors: Tensors) -> Tensors:
        input, statistics = tensors["input"], tensors.get("statistics")
        others = (tensors.get(name) for name in ("scale", "shift", "shortcut"))
        output = ops.norm_add(
            input,
            statistics_for(case, input) if statistics is None else statistics,
            *others,
            relu=case.relu,
            training=case.training,
            eps=case.eps,
        )
        return {"output": output}

    return function


def stock(case: Case) -> Function:
    """Stock batch norm, one architecture after the other."""

    def one(images: Tensor, statistics: Tensor, tensors: Tensors) -> Tensor:
        mean, variance = (None, None) if case.training else statistics
        affine = (tensors.get("scale"), tensors.get("shift"))
        return F.batch_norm(images, mean, variance, *affine, training=case.training, eps=case.eps)

    def function(tensors: Tensors) -> Tensors:
        input = tensors["input"]
        running = running_of(case, input.dtype)
        if input.dim() == 4:
            output = one(input, running, tensors)
        else:
            pairs = zip(input, running, strict=True)
            output = torch.stack([one(*pair, tensors) for pair in pairs])
        output = output + tensors["shortcut"] if case.shortcut else output
        return {"output": F.relu(output) if case.relu else output}

    return function


def terms_of(case: Case) -> dict[str, int]:
    """How many products a gradient sums, at most."""
    return {"": math.prod(case.shape) // case.shape[-3]}


def network_calls(images: int) -> list[Call]:
    """The ends of the stems, the reductions and the heads."""
    cases = (
        Case("nb201_stem", (images, 16, 32, 32), shortcut=False, relu=False),
        Case("nb201_reduction_16", (images, 32, 16, 16), relu=False),
        Case("nb201_reduction_32", (images, 64, 8, 8), relu=False),
        Case("nb201_head", (images, 64, 8, 8), shortcut=False),
        Case("macro_stem", (images, 32, 32, 32), shortcut=False),
        Case("macro_head", (images, 1280, 4, 4), shortcut=False),
    )
    return [_call(case) for case in cases]


def _call(case: Case) -> Call:
    def inputs() -> dict[str, Tensor]:
        inputs = inputs_of(case)
        return inputs | {"statistics": statistics_for(case, inputs["input"])}

    cotangents = partial(cotangents_of, case)
    return Call("norm_add", case.name, run(case), stock(case), inputs, cotangents, terms_of(case))
