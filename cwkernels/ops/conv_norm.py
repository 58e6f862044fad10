"""conv_norm: a convolution that normalises its input on load and measures its output."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cwkernels.ops._autograd import Differentiable
from cwkernels.ops._compact import first_order_only
from cwkernels.ops._dtypes import autocast, parameter_dtype, run_reference
from cwkernels.ops._library import register_fake
from cwkernels.ops._norm import check_norm, norms, per_architecture, reference_normalize
from cwkernels.ops.backend import current_backend
from cwkernels.ops.precision import winograd_allowed

KERNEL_SIZES = (1, 3, 5, 7)


def conv_norm(
    input: Tensor,
    weight: Tensor,
    statistics: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    relu: bool = False,
    pool: bool = False,
    stride: int = 1,
    training: bool = True,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Convolves ``relu(batch_norm(input))``, averaged 2x2 if asked, and measures the output.

    The layers around the cells run on it: stem, reductions and head. The output is raw, to be
    normalised by the operation that reads it, with the statistics returned here. Equivalent to::

        x = F.batch_norm(input, None, None, scale, shift, training=True)  # if statistics are given
        x = F.avg_pool2d(F.relu(x), 2)                                    # each if asked for
        y = F.conv2d(x, weight, stride=stride, padding=R // 2)
        return y, torch.stack([y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)])

    Statistics belong to the tensor that they were measured on: in training its gradient is the
    whole one, through its statistics too, and the statistics themselves take none.

    Args:
        input: [N, C, H, W] or, one batch for each architecture, [A, N, C, H, W]. In bfloat16, on a
            GPU only, it is convolved as TF32 with all else in float32; inside `torch.autocast` to
            bfloat16, float32 is rounded to that.
        weight: [K, C, R, R], the same for all architectures; R in 1, 3, 5, 7.
        statistics: [2, C] or [A, 2, C], mean and biased variance by which the input is normalised:
            the batch's own in training, running ones otherwise. None: not normalised.
        scale, shift: [C], the affine map of the normalisation, or None.
        relu: rectify what was normalised (or the input itself).
        pool: average 2x2 after that; odd last rows and columns are dropped.
        stride: 1 or 2.
        training: whether `statistics` are the input's own.
        eps: added to the variance.

    Returns:
        The raw output [..., N, K, H', W'], in the input's dtype, and its statistics [..., 2, K],
        mean and biased variance; of an output in bfloat16 before or after it is rounded.

    Raises:
        ValueError: if ranks, shapes or dtypes do not fit together, for another R or stride, or in
            training if a batch of one value a channel is to be normalised.
        RuntimeError: for bfloat16 on the CPU.
    """
    input = autocast("conv_norm", input)
    check_norm("conv_norm", input, statistics, scale, shift, training)
    _check(input, weight, stride, pool)
    arguments = (weight, statistics, scale, shift, relu, pool, stride, training, eps)
    if current_backend() == "reference":
        output, measured = run_reference(reference, input, *arguments)
    else:
        output, measured = _conv_norm(input, *arguments, winograd_allowed())
    return output, measured


def _check(input: Tensor, weight: Tensor, stride: int, pool: bool) -> None:
    def fail(argument: str, wanted: str, got: object) -> ValueError:
        return ValueError(f"conv_norm: {argument}: wanted {wanted}, got {got}")

    shape, size = list(weight.shape), weight.shape[-1] if weight.dim() == 4 else 0
    if size not in KERNEL_SIZES or shape[1:] != [input.shape[-3], size, size]:
        raise fail("weight", f"[K, {input.shape[-3]}, R, R] with R in 1, 3, 5, 7", shape)
    dtype = parameter_dtype(input.dtype)
    if weight.dtype != dtype:
        raise fail("weight", str(dtype), weight.dtype)
    if stride not in (1, 2):
        raise fail("stride", "1 or 2", stride)
    if pool and min(input.shape[-2:]) < 2:
        raise fail("input", "at least 2 x 2 pixels to average", list(input.shape))


def reference(
    input: Tensor,
    weight: Tensor,
    statistics: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    pool: bool,
    stride: int,
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The same in plain torch."""
    images = per_architecture(input)
    outputs, measured = [], []
    for own, norm in zip(images, norms(images, statistics, scale, shift), strict=True):
        loaded = own if norm is None else reference_normalize(own, norm, training, eps)
        loaded = F.relu(loaded) if relu else loaded
        loaded = F.avg_pool2d(loaded, 2) if pool else loaded
        output = F.conv2d(loaded, weight, stride=stride, padding=weight.shape[-1] // 2)
        variance, mean = torch.var_mean(output.detach(), (0, 2, 3), correction=0)
        outputs.append(output)
        measured.append(torch.stack([mean, variance]))
    if input.dim() == 4:
        return outputs[0], measured[0]
    return torch.stack(outputs), torch.stack(measured)


@register_fake("conv_norm")
def _(
    input: Tensor,
    weight: Tensor,
    statistics: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    pool: bool,
    stride: int,
    training: bool,
    eps: float,
    winograd: bool,
) -> tuple[Tensor, Tensor]:
    *lead, n, _, height, width = input.shape
    divisor = 2 if pool else 1
    size = ((side // divisor - 1) // stride + 1 for side in (height, width))
    output = input.new_empty((*lead, n, *size, weight.shape[0])).movedim(-1, -3)
    return output, weight.new_empty((*lead, 2, weight.shape[0]))


@register_fake("conv_norm_backward")
def _(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    statistics: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    pool: bool,
    stride: int,
    training: bool,
    eps: float,
    winograd: bool,
    need_input: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    affine = (0,) if scale is None else scale.shape
    *lead, n, channels, height, width = input.shape
    size = (*lead, n, height, width, channels)
    skipped = not need_input and statistics is None
    return (
        input.new_empty(0) if skipped else input.new_empty(size).movedim(-1, -3),
        weight.new_empty(weight.shape),
        weight.new_empty(affine),
        weight.new_empty(affine),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, weight, statistics, scale, shift, *ctx.options = inputs
    ctx.save_for_backward(input, weight, statistics, scale, shift)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # zeros for the statistics would be a launch each


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    first_order_only("conv_norm")
    if grad is None:
        return (None,) * (5 + len(ctx.options))
    input, weight, statistics, scale, shift = ctx.saved_tensors
    grad_input, grad_weight, grad_scale, grad_shift = torch.ops.cwkernels.conv_norm_backward(
        grad, input, weight, statistics, scale, shift, *ctx.options, ctx.needs_input_grad[0]
    )
    affine = (None, None) if scale is None else (grad_scale, grad_shift)
    grad_input = grad_input if ctx.needs_input_grad[0] else None
    return grad_input, grad_weight, None, *affine, *[None] * len(ctx.options)


_conv_norm = Differentiable("conv_norm", _backward, _setup_context)
