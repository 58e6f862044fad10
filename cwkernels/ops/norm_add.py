"""norm_add: normalise a raw tensor, add a shortcut, rectify."""

from typing import Any

import torch
from torch import Tensor

from cwkernels.ops._autograd import Differentiable
from cwkernels.ops._compact import first_order_only
from cwkernels.ops._dtypes import parameter_dtype, run_reference
from cwkernels.ops._images import in_channels_last
from cwkernels.ops._library import register_fake
from cwkernels.ops._norm import check_norm, norms, per_architecture, reference_normalize
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
        input: raw, [N, C, H, W] or, one batch for each architecture, [A, N, C, H, W]. In bfloat16,
            on a GPU only, with all else but the shortcut in float32, in which it is computed.
        statistics: [2, C] or [A, 2, C], mean and biased variance: the input's own in training (its
            gradient is the whole one then, through them too), running ones otherwise.
        scale, shift: [C], the affine map of the normalisation, or None.
        shortcut: a tensor of the input's shape, or None.
        relu: rectify the sum.
        training: whether `statistics` are the input's own.
        eps: added to the variance.

    Returns:
        A tensor of the input's shape and dtype, channels-last in memory.

    Raises:
        ValueError: if shapes or dtypes do not fit together, or in training if a batch of one value
            a channel is to be normalised.
        RuntimeError: for bfloat16 on the CPU.
    """
    check_norm("norm_add", input, statistics, scale, shift, training)
    if shortcut is not None and (shortcut.shape, shortcut.dtype) != (input.shape, input.dtype):
        wanted, got = (f"{t.dtype} {list(t.shape)}" for t in (input, shortcut))
        raise ValueError(f"norm_add: shortcut: wanted {wanted}, got {got}")
    images = in_channels_last(input)
    arguments = (statistics, scale, shift, shortcut, relu, training, eps)
    if current_backend() == "reference":
        output: Tensor = run_reference(reference, images, *arguments)
    else:
        output = _norm_add(images, *arguments)
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


@register_fake("norm_add")
def _(
    input: Tensor,
    statistics: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    shortcut: Tensor | None,
    relu: bool,
    training: bool,
    eps: float,
) -> Tensor:
    return _new_like(input)


@register_fake("norm_add_backward")
def _(
    grad: Tensor,
    input: Tensor,
    statistics: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    output: Tensor | None,
    relu: bool,
    shortcut_grad: bool,
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    affine = (0,) if scale is None else scale.shape
    grad_shortcut = _new_like(input) if shortcut_grad else input.new_empty(0)
    dtype = parameter_dtype(input.dtype)
    grad_scale, grad_shift = (input.new_empty(affine, dtype=dtype) for _ in range(2))
    return _new_like(input), grad_scale, grad_shift, grad_shortcut


def _new_like(images: Tensor) -> Tensor:
    """Uninitialised, of the images' shape, channels-last in memory."""
    return images.new_empty(images.movedim(-3, -1).shape).movedim(-1, -3)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, statistics, scale, shift, shortcut, ctx.relu, *ctx.options = inputs
    ctx.has_shortcut = shortcut is not None
    # What was rectified is computed again from the input, unless something was added to it.
    saved = output if ctx.relu and ctx.has_shortcut else None
    ctx.save_for_backward(input, statistics, scale, shift, saved)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    first_order_only("norm_add")
    input, statistics, scale, shift, output = ctx.saved_tensors
    masked = ctx.relu and ctx.needs_input_grad[4]
    grad_input, grad_scale, grad_shift, grad_shortcut = torch.ops.cwkernels.norm_add_backward(
        grad, input, statistics, scale, shift, output, ctx.relu, masked, *ctx.options
    )
    affine = (None, None) if scale is None else (grad_scale, grad_shift)
    shortcut = (grad_shortcut if ctx.relu else grad) if ctx.needs_input_grad[4] else None
    return grad_input, None, *affine, shortcut, None, None, None


_norm_add = Differentiable("norm_add", _backward, _setup_context)
