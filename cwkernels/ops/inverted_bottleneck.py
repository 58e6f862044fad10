"""inverted_bottleneck: a NAS-Bench-Macro layer, running what its architecture chose."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cwkernels.ops._autograd import Differentiable
from cwkernels.ops._bottleneck_plan import (
    NUM_CODES,
    PROJECTION,
    bank_shapes,
    chain_of,
    has_residual,
    most_kept,
    statistics_slice,
    statistics_width,
)
from cwkernels.ops._compact import bank_gradients, first_order_only, select_row, slot_gradients
from cwkernels.ops._dtypes import autocast, parameter_dtype, run_reference
from cwkernels.ops._images import batches_of, channels_last, images_of
from cwkernels.ops._library import register_fake
from cwkernels.ops._norm import Norm, check_batch, reference_normalize
from cwkernels.ops.backend import current_backend
from cwkernels.ops.precision import tf32_allowed

__all__ = ["inverted_bottleneck", "reference", "statistics_slice"]


def inverted_bottleneck(
    input: Tensor,
    selection: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    running_mean: Sequence[Tensor],
    running_var: Sequence[Tensor],
    *,
    stride: int = 1,
    training: bool,
    eps: float = 1e-5,
    recompute: bool = False,
    dense_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Runs a layer: 0 identity, 1 bottleneck k3 e3, 2 bottleneck k5 e6 (NAS-Bench-Macro).

    Equivalent, for one architecture that chose a bottleneck, to this with the row's weights::

        h = F.relu(bn(F.conv2d(x, expand)))
        h = F.relu(bn(F.conv2d(h, depthwise, stride=stride, padding=R // 2, groups=hidden)))
        y = bn(F.conv2d(h, project))
        return y + x  # where the shapes agree

    The identity is `x` itself, or ``bn(F.conv2d(x, projection, stride=stride))`` where the layer
    has that bank (a strided layer).

    Args:
        input: [N, C, H, W], shared by all architectures, or [A, N, C, H, W]. In bfloat16, on a
            GPU only, the hidden tensors, the output and the gradients of all these are stored so,
            with all else in float32: values are widened as they are loaded, convolved as TF32, and
            rounded as they are stored. Inside `torch.autocast` to bfloat16, float32 is rounded to
            that. The gradient of images that all architectures share is rounded behind each of
            them.
        selection: int64 [2] or [A, 2] on the CPU: the operation's code and the row of its banks.
            Or int32, the same on the device of the images, which the kernels read there and the
            host never (CUDA; not the CPU's kernels): every launch happens, of the largest size, so
            that a captured CUDA graph serves all choices. Gradients then have A slots for each
            bank, slot a with the row of architecture a, or with row -1 and values that mean nothing
            where it does not read the bank or one before it reads the same row. A code or row out
            of range is no error but an identity without weights, zeros in a strided layer.
        weights: banks [S, ...]: expand [S, E, C, 1, 1], depthwise [S, E, 1, R, R], project
            [S, K, E, 1, 1] of code 1, the same of code 2 and, in a strided layer, the identity's
            projection [S, K, C, 1, 1].
        scales, shifts: the affine maps of the batch norms behind them, [S, channels] each.
        running_mean, running_var: [S, channels] each; read in evaluation, and may be none in
            training.
        stride: of the depthwise convolution and the projection, 1 or 2.
        training: normalise by batch statistics (each architecture's own), else by running ones.
        eps: added to the variance.
        recompute: keep neither hidden tensor for backward but run both convolutions again.
        dense_grad: ordinary gradients of the banks instead of compact ones (`gather_conv`).

    Returns:
        The output, with A in front if the selection has it, channels-last; and the statistics
        [..., 2, width], mean and biased variance, laid out by `statistics_slice`, zero where
        nothing was convolved and in evaluation, which measures nothing. Of tensors in bfloat16 they
        are measured before these are rounded.

    Raises:
        ValueError: if shapes or dtypes do not fit together, for another stride, or if a code or row
            of an int64 selection is out of range.
        RuntimeError: for bfloat16 on the CPU.
    """
    input = autocast("inverted_bottleneck", input)
    # In training running statistics are not read, and may be none.
    running_groups = () if training and not running_mean else (running_mean, running_var)
    images, choices = _check(input, selection, stride, weights, scales, shifts, *running_groups)
    if training:
        check_batch("inverted_bottleneck", input.shape, stride)
    # In training running statistics are not read, and free to be updated before backward.
    running = () if training else (running_mean, running_var)
    groups = [list(banks) for banks in (weights, scales, shifts, *running)]
    groups += [[] for _ in range(5 - len(groups))]
    if current_backend() == "reference":
        output, statistics = run_reference(
            reference, images, choices, groups, stride, training, eps, dense_grad
        )
    else:
        # A graph cannot read what the kernels then check, and the host nothing on the device.
        if choices.dtype == torch.int64 and not torch.compiler.is_compiling():
            _choices(choices, weights)
        output, statistics = _inverted_bottleneck(
            images,
            choices,
            *groups,
            stride,
            training,
            eps,
            recompute,
            tf32_allowed(),
            dense_grad,
            torch.is_grad_enabled(),
        )[:2]
    if selection.dim() == 2:
        return output, statistics
    # Not output[0], whose backward pass would write zeros first.
    return output.squeeze(0), statistics.squeeze(0)


def _check(
    input: Tensor,
    selection: Tensor,
    stride: int,
    weights: Sequence[Tensor],
    *norms: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """The images [A or 1, N, C, H, W] and the selection [A, 2]."""

    def fail(argument: str, wanted: str, got: object) -> ValueError:
        return ValueError(f"inverted_bottleneck: {argument}: wanted {wanted}, got {got}")

    known = selection.dtype in (torch.int64, torch.int32)
    if not known or selection.dim() > 2 or selection.shape[-1:] != (2,):
        wanted = "int64 or int32 [2] or [A, 2]"
        raise fail("selection", wanted, f"{selection.dtype} {list(selection.shape)}")
    if selection.shape[0] == 0:
        raise fail("selection", "at least one architecture", list(selection.shape))
    several = selection.dim() == 2
    if input.dim() != 4 and not (
        several and input.dim() == 5 and input.shape[0] == selection.shape[0]
    ):
        wanted = "[N, C, H, W]" + (f" or [{selection.shape[0]}, N, C, H, W]" if several else "")
        raise fail("input", wanted, list(input.shape))
    if stride not in (1, 2):
        raise fail("stride", "1 or 2", stride)
    dtype = parameter_dtype(input.dtype)
    for i, weight in enumerate(weights):
        if weight.dim() != 5 or weight.dtype != dtype:
            got = f"{weight.dtype} {list(weight.shape)}"
            raise fail(f"weights[{i}]", f"{dtype} [S, K, C / groups, R, R]", got)
    if len(weights) not in (PROJECTION, PROJECTION + 1):
        raise fail("weights", "6 banks, or 7 in a layer that changes the shape", len(weights))
    shapes = bank_shapes(weights)
    keeps_shape = stride == 1 and shapes[2][1] == shapes[0][2]
    if len(weights) != PROJECTION + (not keeps_shape):
        wanted = "6 banks" if keeps_shape else "7 banks, as the layer changes the shape"
        raise fail("weights", wanted, len(weights))
    if input.shape[-3] != shapes[0][2]:
        raise fail("input", f"{shapes[0][2]} channels", input.shape[-3])
    for i, (weight, shape) in enumerate(zip(weights, shapes, strict=False)):
        if weight.shape != shape:
            raise fail(f"weights[{i}]", str(list(shape)), list(weight.shape))
    wanted_shapes = [weight.shape[:2] for weight in weights]
    for name, tensors in zip(
        ("scales", "shifts", "running_mean", "running_var"), norms, strict=False
    ):
        got_shapes = [tensor.shape for tensor in tensors]
        if got_shapes != wanted_shapes:
            lists = [[list(own) for own in every] for every in (wanted_shapes, got_shapes)]
            raise fail(name, str(lists[0]), lists[1])
        for i, tensor in enumerate(tensors):
            if tensor.dtype != dtype:
                raise fail(f"{name}[{i}]", str(dtype), tensor.dtype)
    return batches_of(input), selection.reshape(-1, 2)


def _choices(selection: Tensor, weights: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Codes and rows as integers."""
    choices: list[tuple[int, int]] = [(code, row) for code, row in selection.tolist()]
    for code, row in choices:
        for name, value, end in (("code", code, NUM_CODES), ("row", row, weights[0].shape[0])):
            if not 0 <= value < end:
                wanted = f"a {name} in [0, {end})"
                raise ValueError(f"inverted_bottleneck: selection: wanted {wanted}, got {value}")
    return choices


def reference(
    images: Tensor,
    selection: Tensor,
    groups: list[list[Tensor]],
    stride: int,
    training: bool,
    eps: float,
    dense_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The same in plain torch; `groups`: weights, scales, shifts, running_mean, running_var."""
    weights, scales, shifts, running_mean, running_var = groups
    outputs, all_statistics = [], []
    for a, (code, row) in enumerate(_choices(selection, weights)):
        value = own = images_of(images, a)
        statistics = images.new_zeros((2, statistics_width(weights)))
        for conv in chain_of(code, weights, stride):
            i = conv.bank
            weight, scale, shift = (
                select_row(banks[i], row, dense_grad) for banks in (weights, scales, shifts)
            )
            padding = weight.shape[-1] // 2
            raw = F.conv2d(value, weight, None, conv.stride, padding, groups=conv.groups)
            if training:
                variance, mean = torch.var_mean(raw.detach(), (0, 2, 3), correction=0)
                used = torch.stack([mean, variance])
                statistics[:, statistics_slice(weights, i)] = used
            else:
                used = torch.stack([running_mean[i][row], running_var[i][row]])
            value = reference_normalize(raw, Norm(used, scale, shift), training, eps)
            value = F.relu(value) if conv.relu else value
        outputs.append(value + own if has_residual(code, weights, stride) else value)
        all_statistics.append(statistics)
    return torch.stack(outputs), torch.stack(all_statistics)


def _output_like(images: Tensor, a: int, weights: list[Tensor], stride: int) -> Tensor:
    _, n, _, height, width = images.shape
    size = (a, n, (height - 1) // stride + 1, (width - 1) // stride + 1, weights[2].shape[1])
    return images.new_empty(size).permute(0, 1, 4, 2, 3)


@register_fake("inverted_bottleneck")
def _(
    images: Tensor,
    selection: Tensor,
    weights: list[Tensor],
    scales: list[Tensor],
    shifts: list[Tensor],
    running_mean: list[Tensor],
    running_var: list[Tensor],
    stride: int,
    training: bool,
    eps: float,
    recompute: bool,
    tf32: bool,
    dense_grad: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    a = selection.shape[0]
    statistics = weights[0].new_empty((a, 2, statistics_width(weights)))
    size: int | torch.SymInt = 0
    if keep and selection.dtype == torch.int32:
        size = a * most_kept(images.shape, weights, stride, recompute)
    elif keep:
        size = torch.library.get_ctx().new_dynamic_size(min=0)
    kept = images.new_empty(size)
    return _output_like(images, a, weights, stride), statistics, kept


@register_fake("inverted_bottleneck_backward")
def _(
    grad: Tensor,
    images: Tensor,
    selection: Tensor,
    weights: list[Tensor],
    scales: list[Tensor],
    shifts: list[Tensor],
    running_mean: list[Tensor],
    running_var: list[Tensor],
    statistics: Tensor,
    kept: Tensor,
    stride: int,
    training: bool,
    eps: float,
    recompute: bool,
    tf32: bool,
    need_weights: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    banks = [*weights, *scales, *shifts]
    if selection.dtype == torch.int32:
        a = selection.shape[0]
        slots = [0 if bank.dim() > 2 and not need_weights else a for bank in banks]
        rows = [selection.new_empty((len(weights), a), dtype=torch.int64)]
        values = [
            bank.new_empty((count, *bank.shape[1:]))
            for count, bank in zip(slots, banks, strict=True)
        ]
        return channels_last(images, images.shape[0]), rows, values
    context = torch.library.get_ctx()
    counts = [context.new_dynamic_size(min=0) for _ in banks]
    rows = [selection.new_empty(count) for count in counts]
    values = [
        bank.new_empty((count, *bank.shape[1:])) for count, bank in zip(counts, banks, strict=True)
    ]
    return channels_last(images, images.shape[0]), rows, values


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    images, selection, *groups = inputs[:7]
    *options, ctx.dense_grad, _ = inputs[7:]
    ctx.options = tuple(options)
    _, statistics, kept = output
    ctx.length = len(groups[0])
    banks = [bank for group in groups for bank in group]
    ctx.save_for_backward(images, selection, statistics, kept, *banks)
    ctx.mark_non_differentiable(statistics, kept)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    first_order_only("inverted_bottleneck")
    images, selection, statistics, kept, *rest = ctx.saved_tensors
    groups = [rest[i * ctx.length : (i + 1) * ctx.length] for i in range(5)]
    needed = ctx.needs_input_grad
    none = [None] * len(groups[3])
    if grad is None:
        nothing = [None] * ctx.length
        return None, None, nothing, nothing, nothing, none, none, *[None] * 7
    grad_images, rows, values = torch.ops.cwkernels.inverted_bottleneck_backward(
        grad, images, selection, *groups, statistics, kept, *ctx.options, any(needed[2])
    )
    grads = []
    for i in range(3):
        own = slice(i * ctx.length, (i + 1) * ctx.length)
        banks = (values[own], groups[i], needed[2 + i], ctx.dense_grad)
        on_device = selection.dtype == torch.int32
        grads.append(
            slot_gradients(rows[0], *banks) if on_device else bank_gradients(rows[own], *banks)
        )
    return grad_images, None, *grads, none, none, *[None] * 7


_inverted_bottleneck = Differentiable("inverted_bottleneck", _backward, _setup_context)
