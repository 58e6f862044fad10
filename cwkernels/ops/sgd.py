"""sgd: one step of SGD with momentum, on the rows of many tensors that have a gradient."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cwkernels.ops._library import register_fake
from cwkernels.ops.backend import current_backend

WHOLE = torch.zeros(1, dtype=torch.int64, device="cpu")
"""The rows of a parameter that has no rows: all of it is row 0."""

_DTYPES = (torch.float32, torch.float64)
_WHOLE_SLOT = torch.zeros((), dtype=torch.int64, device="cpu")
"""How `sgd_slots` is told of a parameter that is moved whole."""
_HAS_CUDA_KERNEL = torch._C._dispatch_has_kernel_for_dispatch_key("cwkernels::sgd", "CUDA")


def sgd(
    weights: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    grads: Sequence[Tensor],
    rows: Sequence[Tensor],
    *,
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    """Moves the rows of many tensors that have a gradient, in one call, in place.

    Equivalent to one step of `torch.optim.SGD` on each row that is named::

        g = grad + weight_decay * weight[row]
        momentum_buffer[row] = momentum * momentum_buffer[row] + g
        weight[row] -= lr * momentum_buffer[row]

    Other rows are neither read nor written: the time does not depend on how many there are. Nothing
    is recorded for autograd.

    Args:
        weights: [S, ...] each, written; or tensors of any shape that are moved whole.
        momentum_buffers: of the shape of the weights, written; or [1, ...], one buffer for all
            rows, which take turns in ascending order.
        grads: [G, ...] each, the gradients of the first G of `rows`: those of a repeated row are
            summed, in order; a row without any has a gradient of zero. Of the weight's own shape
            for a tensor that is moved whole.
        rows: int64 [U] (or [1, U], as the indices of a sparse tensor lie) each, in any order; [0]
            for a tensor that is moved whole. Those on a GPU are not read on the host: one that does
            not exist, as -1, moves nothing.
        lr: a number, or one float64 on the device of the weights, which kernels of a GPU read there
            (and then all rows, too): a CUDA graph takes it as it is when the graph runs.
        momentum, weight_decay: as torch.optim.SGD's.

    Raises:
        RuntimeError: if lengths, shapes or dtypes do not fit together, or a row is out of range.
            Nothing is written then.
    """
    lists = (list(weights), list(momentum_buffers), list(grads), list(rows))
    if not any(lists):
        return
    with torch.no_grad():
        if current_backend() == "reference" or not _has_kernel(lists[0]):
            reference(*lists, lr, momentum, weight_decay)
            return
        if _by_pointer(lists[0], lists[3], lr):
            _move_slots(*lists, lr, momentum, weight_decay)
        else:
            torch.ops.cwkernels.sgd.default(*lists, float(lr), momentum, weight_decay)
    if not torch.compiler.is_compiling():
        # A graph that saved them for backward must not run.
        torch.autograd.graph.increment_version(lists[0])
        torch.autograd.graph.increment_version(lists[1])


def _by_pointer(weights: list[Tensor], rows: list[Tensor], lr: float | Tensor) -> bool:
    """Whether kernels read rows and learning rate where they lie."""
    if weights[0].is_cpu and not isinstance(lr, Tensor):
        return False
    key = "CPU" if weights[0].is_cpu else "CUDA"  # on the CPU only the emulator has a kernel
    return torch._C._dispatch_has_kernel_for_dispatch_key("cwkernels::sgd_slots", key) and (
        isinstance(lr, Tensor) or not all(own.is_cpu for own in rows)
    )


def _move_slots(
    weights: list[Tensor],
    momentum_buffers: list[Tensor],
    grads: list[Tensor],
    rows: list[Tensor],
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    slots = [
        _WHOLE_SLOT if own is WHOLE else own.to(weight.device, non_blocking=True)
        for own, weight in zip(rows, weights, strict=True)
    ]
    number, on_device = (0.0, lr) if isinstance(lr, Tensor) else (lr, None)
    torch.ops.cwkernels.sgd_slots.default(
        weights, momentum_buffers, grads, slots, number, on_device, momentum, weight_decay
    )


def _has_kernel(weights: list[Tensor]) -> bool:
    if not all(weight.dtype in _DTYPES for weight in weights):
        return False
    return all(weight.is_cpu for weight in weights) or (
        _HAS_CUDA_KERNEL and all(weight.is_cuda for weight in weights)
    )


class _Update(NamedTuple):
    """One row, or one whole tensor, to be moved: views of it and its momentum, its gradient."""

    weight: Tensor
    momentum: Tensor
    grad: Tensor


def reference(
    weights: list[Tensor],
    momentum_buffers: list[Tensor],
    grads: list[Tensor],
    rows: list[Tensor],
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    """The same in plain torch, on any device and in any dtype."""
    turns: list[list[_Update]] = []
    for i, buffer in enumerate(momentum_buffers):
        shared = buffer.shape != weights[i].shape
        exist = not isinstance(lr, Tensor) and rows[i].is_cpu
        for place, update in enumerate(_updates(i, weights[i], buffer, grads[i], rows[i], exist)):
            turn = place if shared else 0
            turns += [[] for _ in range(turn + 1 - len(turns))]
            turns[turn].append(update)
    for updates in turns:
        _move(updates, float(lr), momentum, weight_decay)


def _updates(
    number: int, weight: Tensor, buffer: Tensor, grad: Tensor, rows: Tensor, exist: bool
) -> Iterator[_Update]:
    """`exist`: rows that do not are refused, not passed over."""
    if (rows is WHOLE or exist) and rows.numel() == 1 and grad.shape == weight.shape:
        yield _Update(weight, buffer, grad)
        return
    places: dict[int, list[int]] = {}
    for place, row in enumerate(rows.flatten().tolist()):
        if not 0 <= row < weight.shape[0]:
            if not exist:
                continue
            wanted = f"rows in [0, {weight.shape[0]})"
            raise RuntimeError(f"sgd: rows[{number}]: wanted {wanted}, got {row}")
        places.setdefault(row, []).append(place)
    for row in sorted(places):
        own = [grad[place] for place in places[row] if place < grad.shape[0]]
        total = sum(own[1:], own[0]) if own else torch.zeros_like(weight[row])
        yield _Update(weight[row], buffer[row if buffer.shape == weight.shape else 0], total)


def _move(updates: list[_Update], lr: float, momentum: float, weight_decay: float) -> None:
    weights = [update.weight for update in updates]
    buffers = [update.momentum for update in updates]
    grads = [update.grad for update in updates]
    if weight_decay:
        grads = list(torch._foreach_add(grads, weights, alpha=weight_decay))
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, grads)
    torch._foreach_add_(weights, buffers, alpha=-lr)


@register_fake("sgd")
def _(
    weights: list[Tensor],
    momentum_buffers: list[Tensor],
    grads: list[Tensor],
    rows: list[Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    return None


@register_fake("sgd_slots")
def _(
    weights: list[Tensor],
    momentum_buffers: list[Tensor],
    grads: list[Tensor],
    rows: list[Tensor],
    lr: float,
    lr_on_device: Tensor | None,
    momentum: float,
    weight_decay: float,
) -> None:
    return None
