"""reduction_conv: the two convolutions that read the input of a residual reduction."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cwkernels.ops._autograd import Differentiable
from cwkernels.ops._compact import first_order_only
from cwkernels.ops._dtypes import autocast, parameter_dtype, run_reference
from cwkernels.ops._library import register_fake
from cwkernels.ops._norm import check_norm, per_architecture
from cwkernels.ops.backend import current_backend
from cwkernels.ops.precision import winograd_allowed


def reduction_conv(
    input: Tensor, weight: Tensor, shortcut: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolves what a residual reduction rectifies and what its shortcut averages, together.

    The block between stages of NAS-Bench-201 begins with it (paper appendix A: half the size, twice
    the channels); `conv_norm` and `norm_add` go on. Equivalent to::

        y = F.conv2d(F.relu(input), weight, stride=2, padding=1)
        measured = torch.stack([y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)])
        return y, measured, F.conv2d(F.avg_pool2d(input, 2), shortcut)

    Each is a call of `conv_norm`. In one operation the input's two gradients are one tensor, and on
    a GPU each pass is one launch for both.

    Args:
        input: [N, C, H, W] or, one batch for each architecture, [A, N, C, H, W]; H and W even. In
            bfloat16, and inside `torch.autocast`, as `conv_norm`'s.
        weight: [K, C, 3, 3], the same for all architectures.
        shortcut: [K, C, 1, 1], likewise.

    Returns:
        The raw output [..., N, K, H / 2, W / 2], in the input's dtype; its statistics [..., 2, K],
        mean and biased variance, which take no gradient; and the shortcut's output, of the shape of
        the first.

    Raises:
        ValueError: if ranks, shapes or dtypes do not fit together.
        RuntimeError: for bfloat16 on the CPU.
    """
    input = autocast("reduction_conv", input)
    check_norm("reduction_conv", input, None, None, None, True)
    _check(input, weight, shortcut)
    if current_backend() == "reference":
        output, measured, other = run_reference(reference, input, weight, shortcut)
        return output, measured, other.to(output.dtype)
    output, measured, other = _reduction_conv(input, weight, shortcut, winograd_allowed())
    return output, measured, other


def _check(input: Tensor, weight: Tensor, shortcut: Tensor) -> None:
    def fail(argument: str, wanted: str, got: object) -> ValueError:
        return ValueError(f"reduction_conv: {argument}: wanted {wanted}, got {got}")

    if any(side % 2 for side in input.shape[-2:]):
        raise fail("input", "an even height and width", list(input.shape))
    dtype = parameter_dtype(input.dtype)
    outputs = weight.shape[0] if weight.dim() == 4 else 0
    for name, own, size in (("weight", weight, 3), ("shortcut", shortcut, 1)):
        shape = [outputs, input.shape[-3], size, size]
        if list(own.shape) != shape or not outputs:
            wanted = str(["K" if name == "weight" else outputs, *shape[1:]]).replace("'", "")
            raise fail(name, wanted, list(own.shape))
        if own.dtype != dtype:
            raise fail(name, str(dtype), own.dtype)


def reference(input: Tensor, weight: Tensor, shortcut: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain torch."""
    outputs, measured, others = [], [], []
    for images in per_architecture(input):
        output = F.conv2d(F.relu(images), weight, stride=2, padding=1)
        variance, mean = torch.var_mean(output.detach(), (0, 2, 3), correction=0)
        outputs.append(output)
        measured.append(torch.stack([mean, variance]))
        others.append(F.conv2d(F.avg_pool2d(images, 2), shortcut))
    if input.dim() == 4:
        return outputs[0], measured[0], others[0]
    return torch.stack(outputs), torch.stack(measured), torch.stack(others)


@register_fake("reduction_conv")
def _(
    input: Tensor, weight: Tensor, shortcut: Tensor, winograd: bool
) -> tuple[Tensor, Tensor, Tensor]:
    *lead, n, _, height, width = input.shape
    size = (*lead, n, height // 2, width // 2, weight.shape[0])
    output, other = (input.new_empty(size).movedim(-1, -3) for _ in range(2))
    return output, weight.new_empty((*lead, 2, weight.shape[0])), other


@register_fake("reduction_conv_backward")
def _(
    grad: Tensor,
    grad_shortcut: Tensor,
    input: Tensor,
    weight: Tensor,
    shortcut: Tensor,
    winograd: bool,
    need_input: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    *lead, channels, height, width = input.shape
    size = (*lead, height, width, channels)
    return (
        input.new_empty(size).movedim(-1, -3) if need_input else input.new_empty(0),
        weight.new_empty(weight.shape),
        shortcut.new_empty(shortcut.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.winograd = inputs
    ctx.save_for_backward(*tensors)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # zeros for the statistics would be a launch


def _backward(
    ctx: Any, grad: Tensor | None, _: Tensor | None, grad_shortcut: Tensor | None
) -> tuple[Tensor | None, ...]:
    first_order_only("reduction_conv")
    given = grad if grad is not None else grad_shortcut
    if given is None:
        return None, None, None, None
    grad = torch.zeros_like(given) if grad is None else grad
    grad_shortcut = torch.zeros_like(given) if grad_shortcut is None else grad_shortcut
    need_input = ctx.needs_input_grad[0]
    grad_input, grad_weight, grad_of_shortcut = torch.ops.cwkernels.reduction_conv_backward(
        grad, grad_shortcut, *ctx.saved_tensors, ctx.winograd, need_input
    )
    return grad_input if need_input else None, grad_weight, grad_of_shortcut, None


_reduction_conv = Differentiable("reduction_conv", _backward, _setup_context)
