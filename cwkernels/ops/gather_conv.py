"""gather_conv: a convolution whose weight set is a row of a bank, chosen per architecture."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cwkernels.ops._autograd import Differentiable
from cwkernels.ops._compact import bank_gradient, check_rows, first_order_only, select_row
from cwkernels.ops._dtypes import autocast, parameter_dtype, run_reference
from cwkernels.ops._library import register_fake
from cwkernels.ops.backend import current_backend
from cwkernels.ops.precision import winograd_allowed


def gather_conv(
    input: Tensor,
    weight: Tensor,
    rows: Tensor,
    *,
    stride: int = 1,
    groups: int = 1,
    dense_grad: bool = False,
) -> Tensor:
    """Convolves images with the weight set of each architecture, read where it lies in the bank.

    Equivalent to ``F.conv2d(input, weight[row], stride=stride, padding=R // 2, groups=groups)`` for
    one architecture, and to a stack of those for several; no weights are copied. How precisely
    float32 is computed, `cw.set_float32_conv_precision` says.

    Args:
        input: images [N, C, H, W], shared by all architectures, or [A, N, C, H, W], float32 or
            float64, or on a GPU bfloat16 beside a bank in float32; inside `torch.autocast` to
            bfloat16, float32 is rounded to that. Channels-last memory is read in place, any other
            is copied first.
        weight: the bank, [S, K, C / groups, R, R] contiguous, R in 1, 3, 5, 7.
        rows: int64 [] for one architecture or [A], each in [0, S); on the CPU.
        stride: 1 or 2.
        groups: 1 (dense) or C = K (depthwise).
        dense_grad: give `weight` an ordinary gradient, zero in the rows that were not read, instead
            of a compact one (a sparse COO tensor of the rows that were). A stock optimizer with
            weight decay or momentum then moves those rows too.

    Returns:
        [N, K, H', W'] for rows [], else [A, N, K, H', W'], in the input's dtype and channels-last
        in memory, H' = (H - 1) // stride + 1. Gradients of a repeated row, and of shared images,
        are summed over the architectures in order.

    Raises:
        ValueError: if the ranks of input and rows do not fit together.
        RuntimeError: for any other shape, dtype, stride, groups or row that is not as above.
    """
    if rows.dim() > 1:
        raise ValueError(f"gather_conv: rows: wanted int64 [] or [A], got {list(rows.shape)}")
    if input.dim() not in (4, 5) or (input.dim() == 5 and rows.dim() == 0):
        wanted = "[N, C, H, W]" + (" or [A, N, C, H, W]" if rows.dim() else "")
        raise ValueError(f"gather_conv: input: wanted {wanted}, got {list(input.shape)}")
    images = autocast("gather_conv", input if input.dim() == 5 else input.unsqueeze(0))
    if current_backend() == "reference":
        output: Tensor = run_reference(
            reference, images, weight, rows.reshape(-1), stride, groups, dense_grad
        )
    else:
        output = _gather_conv(
            images, weight, rows.reshape(-1), stride, groups, dense_grad, winograd_allowed()
        )
    # Not output[0], whose backward pass would write zeros first.
    return output if rows.dim() else output.squeeze(0)


def reference(
    images: Tensor, weight: Tensor, rows: Tensor, stride: int, groups: int, dense_grad: bool
) -> Tensor:
    """The same in plain torch, for images [A or 1, N, C, H, W] and rows [A]."""
    outputs = [
        F.conv2d(
            images[a if images.shape[0] > 1 else 0],
            select_row(weight, row, dense_grad),
            stride=stride,
            padding=weight.shape[-1] // 2,
            groups=groups,
        )
        for a, row in enumerate(check_rows("gather_conv", rows, weight.shape[0]))
    ]
    return torch.stack(outputs) if outputs else _empty_output(images, weight, rows, stride)


def _empty_output(images: Tensor, weight: Tensor, rows: Tensor, stride: int) -> Tensor:
    """An uninitialised output [A, N, K, H', W'], channels-last in memory."""
    _, n, _, height, width = images.shape
    size = (
        rows.shape[0],
        n,
        (height - 1) // stride + 1,
        (width - 1) // stride + 1,
        weight.shape[1],
    )
    return images.new_empty(size).permute(0, 1, 4, 2, 3)


@register_fake("gather_conv")
def _(
    images: Tensor,
    weight: Tensor,
    rows: Tensor,
    stride: int,
    groups: int,
    dense_grad: bool,
    winograd: bool = False,
) -> Tensor:
    return _empty_output(images, weight, rows, stride)


@register_fake("gather_conv_backward_input")
def _(
    grad: Tensor,
    weight: Tensor,
    rows: Tensor,
    input_shape: Sequence[int],
    stride: int,
    groups: int,
    winograd: bool = False,
) -> Tensor:
    a, n, c, height, width = input_shape
    return grad.new_empty((a, n, height, width, c)).permute(0, 1, 4, 2, 3)


@register_fake("gather_conv_backward_weight")
def _(
    grad: Tensor,
    images: Tensor,
    rows: Tensor,
    kernel_size: int,
    stride: int,
    groups: int,
    winograd: bool = False,
) -> tuple[Tensor, Tensor]:
    distinct = torch.library.get_ctx().new_dynamic_size(min=0)
    shape = (distinct, grad.shape[2], images.shape[2] // groups, kernel_size, kernel_size)
    return rows.new_empty(distinct), grad.new_empty(shape, dtype=parameter_dtype(grad.dtype))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, weight, rows, ctx.stride, ctx.groups, ctx.dense_grad, ctx.winograd = inputs
    ctx.save_for_backward(images, weight, rows)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    first_order_only("gather_conv")
    images, weight, rows = ctx.saved_tensors
    grad_images = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_images = torch.ops.cwkernels.gather_conv_backward_input(
            grad, weight, rows, images.shape, ctx.stride, ctx.groups, ctx.winograd
        )
    if ctx.needs_input_grad[1]:
        unique, values = torch.ops.cwkernels.gather_conv_backward_weight(
            grad, images, rows, weight.shape[-1], ctx.stride, ctx.groups, ctx.winograd
        )
        grad_weight = bank_gradient(unique, values, weight.shape, ctx.dense_grad)
    return grad_images, grad_weight, None, None, None, None, None


_gather_conv = Differentiable("gather_conv", _backward, _setup_context)
