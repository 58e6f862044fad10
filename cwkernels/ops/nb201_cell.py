"""nb201_cell: a NAS-Bench-201 cell, each edge running what its architecture chose."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cwkernels.ops._autograd import Differentiable
from cwkernels.ops._cell_plan import (
    AVG_POOL_3X3,
    CONVOLUTIONS,
    Edge,
    choices_of,
    edges_of,
    rows_of,
)
from cwkernels.ops._compact import (
    bank_gradients,
    first_order_only,
    select_row,
    slot_gradients,
)
from cwkernels.ops._dtypes import autocast, parameter_dtype, run_reference
from cwkernels.ops._images import batches_of, channels_last, images_of
from cwkernels.ops._library import register_fake
from cwkernels.ops._norm import Norm, check_batch, reference_normalize
from cwkernels.ops.backend import current_backend
from cwkernels.ops.nb201_plan import NB201Plan, nb201_plan
from cwkernels.ops.precision import winograd_allowed

_PLANNED_KEPT = 8
"""Image stacks that the kernels keep for each architecture whose choice lies on the device."""


def nb201_cell(
    input: Tensor,
    selection: Tensor | NB201Plan,
    weights: Sequence[Tensor],
    running_mean: Sequence[Tensor],
    running_var: Sequence[Tensor],
    *,
    training: bool,
    count_include_pad: bool = False,
    eps: float = 1e-5,
    dense_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a cell: 4 nodes, 6 edges 0→1, 0→2, 1→2, 0→3, 1→3, 2→3, a node the sum of its edges.

    An edge's operation code is 0 none, 1 skip, 2 ReLU-conv1x1-BN, 3 ReLU-conv3x3-BN, 4 average pool
    3x3 (NAS-Bench-201's candidates; batch norm without an affine map). Equivalent, for one
    architecture, to summing at each node what the incoming edges give, with an edge of code 2 or 3
    being ``F.batch_norm(F.conv2d(F.relu(x), weight[row], padding=R // 2), ...)``. Edges that cannot
    carry anything from the input to the output are not computed.

    Args:
        input: [N, C, H, W], shared by all architectures, or [A, N, C, H, W]. Float32, float64, or
            on a GPU bfloat16, as inside `torch.autocast` float32 becomes: then nodes, raw outputs
            and their gradients are rounded to bfloat16 wherever they are stored, statistics are
            those of raw outputs before that, and all other tensors are float32.
        selection: int64 [6, 2] or [A, 6, 2] on the CPU: the operation code of each edge and the row
            to read in its banks. Or int32 on the images' device, a GPU, or an `nb201_plan` of it
            for several cells: then nothing of the choice is read on the host, and what depends on
            it has its largest size. An edge with a code or a row out of range runs nothing.
        weights: the banks, [S, C, C, R, R] each, edge by edge: 1x1, 3x3 and, in networks with a
            skip projection, a 1x1 that a skip multiplies by.
        running_mean, running_var: [S, C] each, edge by edge: 1x1, 3x3; read in evaluation, and may
            be none in training.
        training: normalise by batch statistics (each architecture's own), else by running ones.
        count_include_pad: whether the average pool divides by 9 at the border too.
        eps: added to the variance.
        dense_grad: ordinary gradients of the banks instead of compact ones (`gather_conv`). With
            the choice on the device a compact gradient has a slot for each architecture, and
            indices of -1 for those that hold nothing.

    Returns:
        The output, of the input's dtype and shape with A in front if the selection has it,
        channels-last; the edges' statistics [..., 6, 2, C], mean and biased variance, zero where
        nothing was convolved; and the output's own statistics [..., 2, C], for a head that
        normalises it. In evaluation nothing is measured: both are zero.

    Raises:
        ValueError: if shapes or dtypes do not fit together, or a code or row on the CPU is out of
            range; inside an autocast to float16.
        RuntimeError: for images on the CPU and an int32 selection, or in bfloat16.
    """
    input = autocast("nb201_cell", input)
    plan = selection if isinstance(selection, NB201Plan) else None
    chosen = selection.selection if isinstance(selection, NB201Plan) else selection
    images, choices = _check(input, chosen, weights, running_mean, running_var, training)
    if training:
        check_batch("nb201_cell", input.shape)
    # In training they are not read: fewer tensors to pass, and free to be updated before backward.
    means = [] if training else list(running_mean)
    variances = [] if training else list(running_var)
    options = (training, count_include_pad, eps)
    groups = (list(weights), means, variances)
    if current_backend() == "reference":
        results = run_reference(reference, images, choices, *groups, *options, dense_grad)
    else:
        if chosen.dtype == torch.int32:
            choices = _table(plan, choices, weights)
        elif not torch.compiler.is_compiling():
            # A graph cannot read what the kernels then check.
            choices_of(choices, weights)
        results = _nb201_cell(
            images,
            choices,
            *groups,
            *options,
            winograd_allowed(),
            dense_grad,
            torch.is_grad_enabled(),
        )[:3]
    output, statistics, output_statistics = results
    if chosen.dim() == 2:
        # Not output[0], whose backward pass would write zeros first.
        return output.squeeze(0), statistics.squeeze(0), output_statistics.squeeze(0)
    return output, statistics, output_statistics


def _check(
    input: Tensor,
    selection: Tensor,
    weights: Sequence[Tensor],
    running_mean: Sequence[Tensor],
    running_var: Sequence[Tensor],
    training: bool,
) -> tuple[Tensor, Tensor]:
    """The images [A or 1, N, C, H, W] and the selection [A, 6, 2]."""

    def fail(argument: str, wanted: str, got: object) -> ValueError:
        return ValueError(f"nb201_cell: {argument}: wanted {wanted}, got {got}")

    integers = selection.dtype in (torch.int64, torch.int32)
    if not integers or selection.shape[-2:] != (6, 2) or selection.dim() > 3:
        got = f"{selection.dtype} {list(selection.shape)}"
        raise fail("selection", "int64 or int32 [6, 2] or [A, 6, 2]", got)
    if selection.shape[0] == 0:
        raise fail("selection", "at least one architecture", list(selection.shape))
    several = selection.dim() == 3
    if input.dim() != 4 and not (
        several and input.dim() == 5 and input.shape[0] == selection.shape[0]
    ):
        wanted = "[N, C, H, W]" + (f" or [{selection.shape[0]}, N, C, H, W]" if several else "")
        raise fail("input", wanted, list(input.shape))
    lengths = len(weights), len(running_mean), len(running_var)
    unread = training and lengths[1:] == (0, 0)
    if lengths[0] not in (12, 18) or not (unread or lengths[1:] == (12, 12)):
        got = ", ".join(map(str, lengths))
        raise fail("weights, running_mean, running_var", "12 (or 18), 12, 12 tensors", got)
    channels, dtype = input.shape[-3], parameter_dtype(input.dtype)
    per_edge = len(weights) // 6
    rows = rows_of(weights)
    for i, weight in enumerate(weights):
        size = (1, 3, 1)[i % per_edge]
        shape = (rows[i // per_edge], channels, channels, size, size)
        if weight.shape != shape or weight.dtype != dtype:
            got = f"{weight.dtype} {list(weight.shape)}"
            raise fail(f"weights[{i}]", f"{dtype} {list(shape)}", got)
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        for i, tensor in enumerate(running):
            wanted_shape = (rows[i // 2], channels)
            if tensor.shape != wanted_shape or tensor.dtype != dtype:
                got = f"{tensor.dtype} {list(tensor.shape)}"
                raise fail(f"{name}[{i}]", f"{dtype} {list(wanted_shape)}", got)
    return batches_of(input), selection.reshape(-1, 6, 2)


def _table(plan: NB201Plan | None, selection: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """What the kernels read of a choice on the device, [A, 87]."""
    rows, per_edge = rows_of(weights), len(weights) // 6
    if plan is None or plan.table is None:
        plan = nb201_plan(selection, rows, per_edge)
    fits = all(own <= there for own, there in zip(plan.rows, rows, strict=True))
    if plan.per_edge != per_edge or not fits:
        wanted = f"a plan for {per_edge} banks an edge of {rows} rows"
        got = f"one for {plan.per_edge} of {list(plan.rows)}"
        raise ValueError(f"nb201_cell: selection: wanted {wanted}, got {got}")
    assert plan.table is not None
    return plan.table


def reference(
    images: Tensor,
    selection: Tensor,
    weights: list[Tensor],
    running_mean: list[Tensor],
    running_var: list[Tensor],
    training: bool,
    count_include_pad: bool,
    eps: float,
    dense_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain torch."""
    outputs, all_statistics = [], []
    running = _running_of(running_mean, running_var)
    per_edge = len(weights) // 6
    for a, choices in enumerate(choices_of(selection, weights)):
        nodes: dict[int, Tensor] = {0: images_of(images, a)}
        statistics = images.new_zeros((6, 2, images.shape[2]))
        for edge in edges_of(choices):
            value = nodes[edge.source]
            bank = edge.bank(per_edge)
            if edge.code in CONVOLUTIONS and bank is not None:
                weight = select_row(weights[bank], edge.row, dense_grad)
                raw = F.conv2d(F.relu(value), weight, padding=weight.shape[-1] // 2)
                if training:
                    variance, mean = torch.var_mean(raw.detach(), (0, 2, 3), correction=0)
                    statistics[edge.index] = torch.stack([mean, variance])
                own = statistics[edge.index] if training else running(edge)
                value = reference_normalize(raw, Norm(own, None, None), training, eps)
            elif edge.code == AVG_POOL_3X3:
                value = F.avg_pool2d(value, 3, 1, 1, count_include_pad=count_include_pad)
            elif bank is not None:
                value = F.conv2d(value, select_row(weights[bank], edge.row, dense_grad))
            nodes[edge.target] = nodes[edge.target] + value if edge.target in nodes else value
        # Zero that still has a gradient, zero too.
        outputs.append(nodes[3] if 3 in nodes else nodes[0] * 0)
        all_statistics.append(statistics)
    output = torch.stack(outputs)
    variance, mean = torch.var_mean(output.detach(), (1, 3, 4), correction=0)
    own_statistics = torch.stack([mean, variance], dim=1)
    if not training:
        own_statistics = torch.zeros_like(own_statistics)
    return output, torch.stack(all_statistics), own_statistics


def _running_of(running_mean: list[Tensor], running_var: list[Tensor]) -> Callable[[Edge], Tensor]:
    return lambda edge: torch.stack(
        [running_mean[edge.norm()][edge.row], running_var[edge.norm()][edge.row]]
    )


@register_fake("nb201_cell")
def _(
    images: Tensor,
    selection: Tensor,
    weights: list[Tensor],
    running_mean: list[Tensor],
    running_var: list[Tensor],
    training: bool,
    count_include_pad: bool,
    eps: float,
    winograd: bool,
    dense_grad: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, c, dtype = selection.shape[0], images.shape[2], parameter_dtype(images.dtype)
    rows: int | torch.SymInt = 0
    if keep and selection.dtype == torch.int32:
        rows = a * _PLANNED_KEPT
    elif keep:
        rows = torch.library.get_ctx().new_dynamic_size(min=0)
    return (
        channels_last(images, a),
        images.new_empty((a, 6, 2, c), dtype=dtype),
        images.new_empty((a, 2, c), dtype=dtype),
        channels_last(images, rows),
    )


@register_fake("nb201_cell_backward")
def _(
    grad: Tensor,
    images: Tensor,
    selection: Tensor,
    weights: list[Tensor],
    running_mean: list[Tensor],
    running_var: list[Tensor],
    statistics: Tensor,
    kept: Tensor,
    training: bool,
    count_include_pad: bool,
    eps: float,
    winograd: bool,
    need_weights: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    context = torch.library.get_ctx()
    if selection.dtype == torch.int32:
        a = selection.shape[0] if need_weights else 0
        slots = [images.new_empty((len(weights), a), dtype=torch.int64)]
        own = [weight.new_empty((a, *weight.shape[1:])) for weight in weights]
        return channels_last(images, images.shape[0]), slots, own
    counts = [context.new_dynamic_size(min=0) for _ in weights]
    rows = [selection.new_empty(count) for count in counts]
    values = [
        weight.new_empty((count, *weight.shape[1:]))
        for count, weight in zip(counts, weights, strict=True)
    ]
    return channels_last(images, images.shape[0]), rows, values


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    images, selection, weights, running_mean, running_var, *options = inputs
    *ctx.options, ctx.dense_grad, _ = options
    _, statistics, output_statistics, kept = output
    ctx.save_for_backward(
        images, selection, statistics, kept, *weights, *running_mean, *running_var
    )
    ctx.counts = [len(group) for group in (weights, running_mean, running_var)]
    ctx.mark_non_differentiable(statistics, output_statistics, kept)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    first_order_only("nb201_cell")
    images, selection, statistics, kept, *rest = ctx.saved_tensors
    groups = []
    for count in ctx.counts:
        groups.append(rest[:count])
        rest = rest[count:]
    weights, running_mean, running_var = groups
    needed = list(ctx.needs_input_grad[2])
    none = [None] * len(running_mean)
    if grad is None:
        return None, None, [None] * len(weights), none, none, *[None] * 6
    grad_images, rows, values = torch.ops.cwkernels.nb201_cell_backward(
        grad,
        images,
        selection,
        weights,
        running_mean,
        running_var,
        statistics,
        kept,
        *ctx.options,
        any(needed),
    )
    if selection.dtype == torch.int32:
        grad_weights = slot_gradients(rows[0], values, weights, needed, ctx.dense_grad)
    else:
        grad_weights = bank_gradients(rows, values, weights, needed, ctx.dense_grad)
    return grad_images, None, grad_weights, none, none, *[None] * 6


_nb201_cell = Differentiable("nb201_cell", _backward, _setup_context)
