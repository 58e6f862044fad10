"""norm_add: normalise a raw tensor, add a shortcut, rectify."""

from typing import Any

import torch
from torch import Tensor

from cwkernels.ops import _library  # noqa: F401
from cwkernels.ops._compact import first_order_only
from cwkernels.ops._images import in_channels_last
from cwkernels.ops._norm import (
    check_norm,
    normalize,
    normalize_backward,
    norms,
    per_architecture,
    reference_normalize,
    stack,
    sum_affine,
)
from cwkernels.ops.backend import current_backend


def norm_add(
    input: Tensor,
    statistics: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    shortcut: Tensor | None = None,
    *,
    relu: bool = False,
    training: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises a raw tensor by its statistics and adds a shortcut.

    Ends a stem, a reduction and a head. Equivalent to::

        y = F.batch_norm(input, None, None, scale, shift, training=True)
        y = y + shortcut   # if there is one
        return F.relu(y)   # if asked for

    Args:
        input: raw, [N, C, H, W] or, one batch for each architecture, [A, N, C, H, W].
        statistics: [2, C] or [A, 2, C], mean and biased variance: the input's own in training (its
            gradient is the whole one then, through them too), running ones otherwise.
        scale, shift: [C], the affine map of the normalisation, or None.
        shortcut: a tensor of the input's shape, or None.
        relu: rectify the sum.
        training: whether `statistics` are the input's own.
        eps: added to the variance.

    Returns:
        A tensor of the input's shape, channels-last in memory.

    Raises:
        ValueError: if shapes or dtypes do not fit together, or in training if a batch of one value
            a channel is to be normalised.
    """
    check_norm("norm_add", input, statistics, scale, shift, training)
    if shortcut is not None and (shortcut.shape, shortcut.dtype) != (input.shape, input.dtype):
        wanted, got = (f"{t.dtype} {list(t.shape)}" for t in (input, shortcut))
        raise ValueError(f"norm_add: shortcut: wanted {wanted}, got {got}")
    operation = (
        reference if current_backend() == "reference" else torch.ops.cwkernels.norm_add.default
    )
    images = in_channels_last(input)
    output: Tensor = operation(images, statistics, scale, shift, shortcut, relu, training, eps)
    return output


def reference(
    input: Tensor,
    statistics: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    shortcut: Tensor | None,
    relu: bool,
    training: bool,
    eps: float,
) -> Tensor:
    """The same in plain torch."""
    images = per_architecture(input)
    outputs = [
        own if norm is None else reference_normalize(own, norm, training, eps)
        for own, norm in zip(images, norms(images, statistics, scale, shift), strict=True)
    ]
    output = torch.stack(outputs).reshape(input.shape)
    output = output if shortcut is None else output + shortcut
    return output.relu() if relu else output


@torch.library.custom_op("cwkernels::norm_add", mutates_args=())
def _norm_add(
    input: Tensor,
    statistics: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    shortcut: Tensor | None,
    relu: bool,
    training: bool,
    eps: float,
) -> Tensor:
    images = per_architecture(input)
    outputs = [
        own if norm is None else normalize(own, norm, eps)
        for own, norm in zip(images, norms(images, statistics, scale, shift), strict=True)
    ]
    output = stack(outputs).reshape(input.shape)
    if shortcut is not None:
        output += shortcut
    return output.relu_() if relu else output


@_norm_add.register_fake
def _(input: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(input)


@torch.library.custom_op("cwkernels::norm_add_backward", mutates_args=())
def _norm_add_backward(
    grad: Tensor,
    input: Tensor,
    statistics: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    images = per_architecture(input)
    grads = grad.reshape(images.shape)
    gradients = [
        normalize_backward(own_grad, own, norm, training, eps)
        for own_grad, own, norm in zip(
            grads, images, norms(images, statistics, scale, shift), strict=True
        )
        if norm is not None
    ]
    grad_input = stack([gradient.input for gradient in gradients]).reshape(input.shape)
    return grad_input, *sum_affine(gradients, scale, input)


@_norm_add_backward.register_fake
def _(
    grad: Tensor, input: Tensor, statistics: Tensor, scale: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    affine = (0,) if scale is None else scale.shape
    return torch.empty_like(input), input.new_empty(affine), input.new_empty(affine)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, statistics, scale, shift, shortcut, ctx.relu, *ctx.options = inputs
    ctx.save_for_backward(input, statistics, scale, shift, output if ctx.relu else None)
    ctx.has_shortcut = shortcut is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    first_order_only("norm_add")
    input, statistics, scale, shift, output = ctx.saved_tensors
    if ctx.relu:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    grad_input, grad_scale, grad_shift = torch.ops.cwkernels.norm_add_backward(
        grad, input, statistics, scale, shift, *ctx.options
    )
    affine = (None, None) if scale is None else (grad_scale, grad_shift)
    return grad_input, None, *affine, grad if ctx.has_shortcut else None, None, None, None


_norm_add.register_autograd(_backward, setup_context=_setup_context)
