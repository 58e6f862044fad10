"""inverted_bottleneck: a NAS-Bench-Macro layer, running what its architecture chose."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cwkernels.ops import _library  # noqa: F401
from cwkernels.ops._bottleneck_plan import (
    NUM_CODES,
    PROJECTION,
    Convolution,
    bank_shapes,
    chain_of,
    has_residual,
    statistics_slice,
    statistics_width,
)
from cwkernels.ops._compact import (
    BankGradients,
    bank_gradients,
    first_order_only,
    one_row,
    select_row,
)
from cwkernels.ops._images import Slots, batches_of, channels_last, images_of, sum_shared
from cwkernels.ops._norm import (
    Norm,
    batch_statistics,
    check_batch,
    normalize,
    normalize_backward,
    reference_normalize,
    stack,
)
from cwkernels.ops.backend import current_backend

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
        input: [N, C, H, W], shared by all architectures, or [A, N, C, H, W].
        selection: int64 [2] or [A, 2] on the CPU: the operation's code and the row of its banks.
        weights: banks [S, ...]: expand [S, E, C, 1, 1], depthwise [S, E, 1, R, R], project
            [S, K, E, 1, 1] of code 1, the same of code 2 and, in a strided layer, the identity's
            projection [S, K, C, 1, 1].
        scales, shifts: the affine maps of the batch norms behind them, [S, channels] each.
        running_mean, running_var: [S, channels] each; read in evaluation.
        stride: of the depthwise convolution and the projection, 1 or 2.
        training: normalise by batch statistics (each architecture's own), else by running ones.
        eps: added to the variance.
        recompute: keep neither hidden tensor for backward but run both convolutions again.
        dense_grad: ordinary gradients of the banks instead of compact ones (`gather_conv`).

    Returns:
        The output, with A in front if the selection has it, channels-last; and the statistics
        [..., 2, width], mean and biased variance, laid out by `statistics_slice`, zero where
        nothing was convolved.

    Raises:
        ValueError: if shapes or dtypes do not fit together, for another stride, or if a code or row
            is out of range.
    """
    images, choices = _check(
        input, selection, stride, weights, scales, shifts, running_mean, running_var
    )
    if training:
        check_batch("inverted_bottleneck", input.shape, stride)
    # In training running statistics are not read, and free to be updated before backward.
    running = () if training else (running_mean, running_var)
    groups = [list(banks) for banks in (weights, scales, shifts, *running)]
    groups += [[] for _ in range(5 - len(groups))]
    if current_backend() == "reference":
        output, statistics = reference(images, choices, groups, stride, training, eps, dense_grad)
    else:
        output, statistics = torch.ops.cwkernels.inverted_bottleneck(
            images,
            choices,
            *groups,
            stride,
            training,
            eps,
            recompute,
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

    if selection.dtype != torch.int64 or selection.dim() > 2 or selection.shape[-1:] != (2,):
        raise fail("selection", "int64 [2] or [A, 2]", f"{selection.dtype} {list(selection.shape)}")
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
    for i, weight in enumerate(weights):
        if weight.dim() != 5 or weight.dtype != input.dtype:
            got = f"{weight.dtype} {list(weight.shape)}"
            raise fail(f"weights[{i}]", f"{input.dtype} [S, K, C / groups, R, R]", got)
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
    for name, tensors in zip(
        ("scales", "shifts", "running_mean", "running_var"), norms, strict=True
    ):
        got_shapes = [list(tensor.shape) for tensor in tensors]
        wanted_shapes = [list(weight.shape[:2]) for weight in weights]
        if got_shapes != wanted_shapes:
            raise fail(name, str(wanted_shapes), got_shapes)
        for i, tensor in enumerate(tensors):
            if tensor.dtype != input.dtype:
                raise fail(f"{name}[{i}]", str(input.dtype), tensor.dtype)
    return batches_of(input), selection.reshape(-1, 2)


def _choices(selection: Tensor, weights: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Codes and rows as integers, checked where they are read: a graph cannot read them."""
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
            variance, mean = torch.var_mean(raw.detach(), (0, 2, 3), correction=0)
            statistics[:, statistics_slice(weights, i)] = torch.stack([mean, variance])
            used = statistics[:, statistics_slice(weights, i)]
            if not training:
                used = torch.stack([running_mean[i][row], running_var[i][row]])
            value = reference_normalize(raw, Norm(used, scale, shift), training, eps)
            value = F.relu(value) if conv.relu else value
        outputs.append(value + own if has_residual(code, weights, stride) else value)
        all_statistics.append(statistics)
    return torch.stack(outputs), torch.stack(all_statistics)


def _convolve(images: Tensor, weights: list[Tensor], conv: Convolution, row: int) -> Tensor:
    output: Tensor = torch.ops.cwkernels.gather_conv(
        images[None],
        weights[conv.bank],
        one_row(row),
        conv.stride,
        conv.groups,
        False,
    )
    return output[0]


def _activate(raw: Tensor, norm: Norm, conv: Convolution, eps: float) -> Tensor:
    value = normalize(raw, norm, eps)
    return value.relu_() if conv.relu else value


class _Layer:
    """The banks of a layer and how it runs: what forward and backward share."""

    def __init__(
        self,
        weights: list[Tensor],
        scales: list[Tensor],
        shifts: list[Tensor],
        running_mean: list[Tensor],
        running_var: list[Tensor],
        stride: int,
        training: bool,
        eps: float,
    ) -> None:
        self.weights = weights
        self.scales = scales
        self.shifts = shifts
        self.running_mean = running_mean
        self.running_var = running_var
        self.stride = stride
        self.training = training
        self.eps = eps

    def norm(self, bank: int, row: int, measured: Tensor) -> Norm:
        """What normalises a bank's output: `measured` [2, width] in training."""
        if self.training:
            statistics = measured[:, statistics_slice(self.weights, bank)]
        else:
            statistics = torch.stack([self.running_mean[bank][row], self.running_var[bank][row]])
        return Norm(statistics, self.scales[bank][row], self.shifts[bank][row])

    def raw_shapes(self, shape: torch.Size, code: int) -> list[torch.Size]:
        """What each convolution of a choice gives for images of `shape`."""
        n, _, height, width = shape
        shapes = []
        for conv in chain_of(code, self.weights, self.stride):
            height, width = ((side - 1) // conv.stride + 1 for side in (height, width))
            shapes.append(torch.Size((n, self.weights[conv.bank].shape[1], height, width)))
        return shapes

    def kept_shapes(self, shape: torch.Size, code: int, recompute: bool) -> list[torch.Size]:
        """What is kept of those, the last ones."""
        shapes = self.raw_shapes(shape, code)
        return shapes[-1:] if recompute else shapes

    def forward(
        self, images: Tensor, code: int, row: int, kept: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Output and statistics [2, width]; the last raw tensors are copied into `kept`."""
        measured = images.new_zeros((2, statistics_width(self.weights)))
        value = images
        chain = chain_of(code, self.weights, self.stride)
        slots = [None] * (len(chain) - len(kept)) + kept
        for conv, slot in zip(chain, slots, strict=True):
            raw = _convolve(value, self.weights, conv, row)
            measured[:, statistics_slice(self.weights, conv.bank)] = batch_statistics(raw)
            value = _activate(raw, self.norm(conv.bank, row, measured), conv, self.eps)
            if slot is not None:
                slot.copy_(raw)
        if has_residual(code, self.weights, self.stride):
            value += images
        return value, measured

    def backward(
        self,
        grad: Tensor,
        images: Tensor,
        choice: tuple[int, int],
        measured: Tensor,
        kept: list[Tensor],
        gradients: tuple[BankGradients, BankGradients, BankGradients],
    ) -> Tensor:
        """The gradient of the images; those of the banks go into `gradients`."""
        code, row = choice
        chain = chain_of(code, self.weights, self.stride)
        norms = [self.norm(conv.bank, row, measured) for conv in chain]
        loaded, known = [images], []
        slots = [None] * (len(chain) - len(kept)) + kept
        for i, (conv, raw) in enumerate(zip(chain, slots, strict=True)):
            known.append(_convolve(loaded[i], self.weights, conv, row) if raw is None else raw)
            if i + 1 < len(chain):
                loaded.append(_activate(known[i], norms[i], conv, self.eps))
        incoming = grad.contiguous(memory_format=torch.channels_last)
        for i, conv in reversed(list(enumerate(chain))):
            if conv.relu:
                incoming = torch.ops.aten.threshold_backward(incoming, loaded[i + 1], 0)
            normed = normalize_backward(incoming, known[i], norms[i], self.training, self.eps)
            weight, scale, shift = gradients
            if normed.scale is not None and normed.shift is not None:
                scale.add(conv.bank, row, normed.scale[None])
                shift.add(conv.bank, row, normed.shift[None])
            weight.add_convolution(
                conv.bank, row, normed.input, loaded[i], conv.stride, conv.groups
            )
            incoming = torch.ops.cwkernels.gather_conv_backward_input(
                normed.input[None],
                self.weights[conv.bank],
                one_row(row),
                [1, *loaded[i].shape],
                conv.stride,
                conv.groups,
            )[0]
        return incoming + grad if has_residual(code, self.weights, self.stride) else incoming


@torch.library.custom_op("cwkernels::inverted_bottleneck", mutates_args=())
def _inverted_bottleneck(
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
    dense_grad: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    layer = _Layer(weights, scales, shifts, running_mean, running_var, stride, training, eps)
    choices = _choices(selection, weights)
    shapes = [
        layer.kept_shapes(images.shape[1:], code, recompute) if keep else [] for code, _ in choices
    ]
    kept = images.new_empty(sum(shape.numel() for own in shapes for shape in own))
    slots = Slots(kept)
    outputs, statistics = [], []
    for a, (code, row) in enumerate(choices):
        own = images_of(images, a)
        output, measured = layer.forward(own, code, row, [slots.next(s) for s in shapes[a]])
        # An output of the operation may not be one of its inputs.
        outputs.append(output.clone() if output is own else output)
        statistics.append(measured)
    return stack(outputs), torch.stack(statistics), kept


def _output_like(images: Tensor, a: int, weights: list[Tensor], stride: int) -> Tensor:
    _, n, _, height, width = images.shape
    size = (a, n, (height - 1) // stride + 1, (width - 1) // stride + 1, weights[2].shape[1])
    return images.new_empty(size).permute(0, 1, 4, 2, 3)


@_inverted_bottleneck.register_fake
def _(
    images: Tensor,
    selection: Tensor,
    weights: list[Tensor],
    scales: list[Tensor],
    shifts: list[Tensor],
    running_mean: list[Tensor],
    running_var: list[Tensor],
    stride: int,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    a = selection.shape[0]
    statistics = images.new_empty((a, 2, statistics_width(weights)))
    keep = options[-1]
    kept = images.new_empty(torch.library.get_ctx().new_dynamic_size(min=0) if keep else 0)
    return _output_like(images, a, weights, stride), statistics, kept


@torch.library.custom_op("cwkernels::inverted_bottleneck_backward", mutates_args=())
def _inverted_bottleneck_backward(
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
    need_weights: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    layer = _Layer(weights, scales, shifts, running_mean, running_var, stride, training, eps)
    gradients = (
        BankGradients(weights, need_weights),
        BankGradients(scales, True),
        BankGradients(shifts, True),
    )
    image_grads = []
    slots = Slots(kept)
    for a, (code, row) in enumerate(selection.tolist()):
        shapes = layer.kept_shapes(images.shape[1:], code, recompute)
        own_grad = layer.backward(
            grad[a],
            images_of(images, a),
            (code, row),
            statistics[a],
            [slots.next(shape) for shape in shapes],
            gradients,
        )
        image_grads.append(own_grad if shapes else own_grad.clone())
    rows, values = [], []
    for group in gradients:
        group_rows, group_values = group.results()
        rows += group_rows
        values += group_values
    return sum_shared(image_grads, images), rows, values


@_inverted_bottleneck_backward.register_fake
def _(
    grad: Tensor,
    images: Tensor,
    selection: Tensor,
    weights: list[Tensor],
    scales: list[Tensor],
    shifts: list[Tensor],
    *others: Any,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    context = torch.library.get_ctx()
    banks = [*weights, *scales, *shifts]
    counts = [context.new_dynamic_size(min=0) for _ in banks]
    rows = [selection.new_empty(count) for count in counts]
    values = [
        bank.new_empty((count, *bank.shape[1:])) for count, bank in zip(counts, banks, strict=True)
    ]
    return channels_last(images, images.shape[0]), rows, values


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    images, selection, *groups = inputs[:7]
    stride, training, eps, recompute, ctx.dense_grad, _ = inputs[7:]
    ctx.options = (stride, training, eps, recompute)
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
        return None, None, nothing, nothing, nothing, none, none, *[None] * 6
    grad_images, rows, values = torch.ops.cwkernels.inverted_bottleneck_backward(
        grad, images, selection, *groups, statistics, kept, *ctx.options, any(needed[2])
    )
    grads = []
    for i in range(3):
        own = slice(i * ctx.length, (i + 1) * ctx.length)
        grads.append(
            bank_gradients(rows[own], values[own], groups[i], needed[2 + i], ctx.dense_grad)
        )
    return grad_images, None, *grads, none, none, None, None, None, None, None, None


_inverted_bottleneck.register_autograd(_backward, setup_context=_setup_context)
