"""Operations and their oracles as functions of named tensors, and what to compare of them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cwkernels.ops import backend

Tensors = Mapping[str, Tensor]
Function = Callable[[Tensors], Tensors]


def evaluate(function: Function, inputs: Tensors, cotangents: Tensors) -> dict[str, Tensor | None]:
    """What `function` makes of `inputs`, and the gradient of each of them that is of floats.

    Args:
        function: named tensors to named tensors.
        inputs: its argument.
        cotangents: for each differentiable output that is differentiated, its gradient; none and
            there is no backward pass.

    Returns:
        The outputs by name and, as "gradient of NAME", the gradients; None where there is none.
    """
    leaves = {
        name: tensor.detach().requires_grad_(tensor.is_floating_point())
        for name, tensor in inputs.items()
    }
    outputs = function(leaves)
    if cotangents:
        torch.autograd.backward(
            [outputs[name] for name in cotangents],
            [cotangent.to(outputs[name].dtype) for name, cotangent in cotangents.items()],
        )
    results: dict[str, Tensor | None] = {name: out.detach() for name, out in outputs.items()}
    for name, leaf in leaves.items():
        if leaf.requires_grad:
            results[f"gradient of {name}"] = leaf.grad
    return results


def cast(tensors: Tensors, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same tensors, those of floats in `dtype`."""
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def stored_as_bf16(tensors: Tensors, *names: str) -> dict[str, Tensor]:
    """The same tensors, those of these names, which are activations, rounded to bfloat16."""
    return {
        name: tensor.bfloat16() if name in names else tensor for name, tensor in tensors.items()
    }


def in_autocast(function: Function) -> Function:
    """The same function inside `torch.autocast` of the CPU to bfloat16; float64 stays as it is."""

    def run(tensors: Tensors) -> Tensors:
        with torch.autocast("cpu", torch.bfloat16):
            return function(tensors)

    return run


def as_reference(function: Function) -> Function:
    """The same function, run by the plain-torch references of the operations."""

    def run(tensors: Tensors) -> Tensors:
        with backend("reference"):
            return function(tensors)

    return run


class _Moved(torch.autograd.Function):
    """`tensor.to(device)`, whose own backward pass refuses compact gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device) -> Tensor:
        ctx.device = tensor.device
        ctx.set_materialize_grads(False)
        return tensor.to(device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        return None if grad is None else grad.to(ctx.device), None


def on_device(function: Function, device: torch.device) -> Function:
    """The same function, computed on `device`: tensors of floats go there, the results back."""

    def run(tensors: Tensors) -> Tensors:
        moved = {
            name: _Moved.apply(tensor, device)
            if tensor.is_floating_point() and tensor.device.type != device.type
            else tensor
            for name, tensor in tensors.items()
        }
        return {name: result.cpu() for name, result in function(moved).items()}

    return run


Results = Mapping[str, Tensor | None]


class Expected(NamedTuple):
    """What an oracle gives: in float64, and in the inputs' dtypes with stock torch's error."""

    reference: Results
    stock: Results


def expect(oracle: Function, inputs: Tensors, cotangents: Tensors) -> Expected:
    """`evaluate` for an oracle, with `inputs` as they are and with the same in float64."""
    doubles = cast(inputs, torch.float64)
    return Expected(evaluate(oracle, doubles, cotangents), evaluate(oracle, inputs, cotangents))
