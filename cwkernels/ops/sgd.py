"""sgd: one step of SGD with momentum, on the rows of many tensors that have a gradient."""

from collections.abc import Iterable, Iterator, Sequence
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


class SGDGroup(NamedTuple):
    """Tensors that are moved by the same options: the arguments of `sgd`."""

    weights: Sequence[Tensor]
    momentum_buffers: Sequence[Tensor]
    grads: Sequence[Tensor]
    rows: Sequence[Tensor]
    lr: float | Tensor
    momentum: float
    weight_decay: float


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
    sgd_groups([SGDGroup(weights, momentum_buffers, grads, rows, lr, momentum, weight_decay)])


def sgd_groups(groups: Sequence[SGDGroup]) -> None:
    """Moves several groups of tensors in one call, each by its own options, in place.

    Equivalent to `sgd` for one group after the other; on a GPU one launch takes tensors of several
    groups. If the learning rate of any is a tensor, the rows of all are read on the device.

    Raises:
        RuntimeError: as `sgd`. Tensors are numbered through all groups, and nothing is written in
            any.
    """
    for group in groups:
        _check_lengths(group)
    lists = _Lists(
        [own for group in groups for own in group.weights],
        [own for group in groups for own in group.momentum_buffers],
        [own for group in groups for own in group.grads],
        [own for group in groups for own in group.rows],
    )
    if not lists.weights:
        return
    with torch.no_grad():
        if current_backend() == "reference" or not _has_kernel(lists.weights):
            reference(groups)
            return
        sizes = [len(group.weights) for group in groups]
        rates = [group.lr for group in groups]
        others = ([group.momentum for group in groups], [group.weight_decay for group in groups])
        if _by_pointer(lists, rates):
            _move_slots(lists, sizes, rates, *others)
        else:
            torch.ops.cwkernels.sgd.default(*lists, sizes, list(map(float, rates)), *others)
    if not torch.compiler.is_compiling():
        # A graph that saved them for backward must not run.
        torch.autograd.graph.increment_version(lists.weights)
        torch.autograd.graph.increment_version(lists.momentum_buffers)


class _Lists(NamedTuple):
    """The tensors of all groups."""

    weights: list[Tensor]
    momentum_buffers: list[Tensor]
    grads: list[Tensor]
    rows: list[Tensor]


def _check_lengths(group: SGDGroup) -> None:
    for name in ("momentum_buffers", "grads", "rows"):
        got = len(getattr(group, name))
        if got != len(group.weights):
            raise RuntimeError(f"sgd: {name}: wanted as many entries as weights, got {got}")


def _any_on_device(rates: Iterable[float | Tensor]) -> bool:
    return any(isinstance(lr, Tensor) for lr in rates)


def _by_pointer(lists: _Lists, rates: list[float | Tensor]) -> bool:
    """Whether kernels read rows and learning rates where they lie."""
    on_cpu, on_device = lists.weights[0].is_cpu, _any_on_device(rates)
    if on_cpu and not on_device:
        return False
    key = "CPU" if on_cpu else "CUDA"  # on the CPU only the emulator has a kernel
    return torch._C._dispatch_has_kernel_for_dispatch_key("cwkernels::sgd_slots", key) and (
        on_device or not all(own.is_cpu for own in lists.rows)
    )


def _move_slots(
    lists: _Lists,
    sizes: list[int],
    rates: list[float | Tensor],
    momentum: list[float],
    weight_decay: list[float],
) -> None:
    device = lists.weights[0].device
    slots = [
        _WHOLE_SLOT if own is WHOLE else own.to(weight.device, non_blocking=True)
        for own, weight in zip(lists.rows, lists.weights, strict=True)
    ]
    numbers = [0.0 if isinstance(lr, Tensor) else lr for lr in rates]
    on_device = [
        lr if isinstance(lr, Tensor) else torch.full((), lr, dtype=torch.float64, device=device)
        for lr in rates
        if _any_on_device(rates)
    ]
    torch.ops.cwkernels.sgd_slots.default(
        *lists[:3], slots, sizes, numbers, on_device, momentum, weight_decay
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


def reference(groups: Sequence[SGDGroup]) -> None:
    """The same in plain torch, on any device and in any dtype."""
    by_pointer = _any_on_device(group.lr for group in groups)
    turns, first = [], 0
    for group in groups:  # all rows are found before the first is moved
        turns.append(_turns(group, first, by_pointer))
        first += len(group.weights)
    for group, own in zip(groups, turns, strict=True):
        for updates in own:
            _move(updates, float(group.lr), group.momentum, group.weight_decay)


def _turns(group: SGDGroup, first: int, by_pointer: bool) -> list[list[_Update]]:
    """What may be moved at the same time; `first` is the number of the group's first tensor."""
    turns: list[list[_Update]] = []
    lists = zip(group.weights, group.momentum_buffers, group.grads, group.rows, strict=True)
    for number, (weight, buffer, grad, rows) in enumerate(lists, first):
        shared = buffer.shape != weight.shape
        exist = not by_pointer and rows.is_cpu
        for place, update in enumerate(_updates(number, weight, buffer, grad, rows, exist)):
            turn = place if shared else 0
            turns += [[] for _ in range(turn + 1 - len(turns))]
            turns[turn].append(update)
    return turns


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
    sizes: list[int],
    lr: list[float],
    momentum: list[float],
    weight_decay: list[float],
) -> None:
    return None


@register_fake("sgd_slots")
def _(
    weights: list[Tensor],
    momentum_buffers: list[Tensor],
    grads: list[Tensor],
    rows: list[Tensor],
    sizes: list[int],
    lr: list[float],
    lr_on_device: list[Tensor],
    momentum: list[float],
    weight_decay: list[float],
) -> None:
    return None
