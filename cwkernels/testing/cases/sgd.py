"""Cases of `cw.ops.sgd`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.optim import sgd as stock_sgd

from cwkernels import ops
from cwkernels.ops.sgd import WHOLE
from cwkernels.spaces.macro import HEAD, K5_E6, LAYERS, STEM, Convolution, convolutions
from cwkernels.testing.cases.call import Call
from cwkernels.testing.functions import Function, Tensors
from cwkernels.testing.inputs import dense_random

LR, MOMENTUM, DECAY = 0.025, 0.9, 3e-4
GROUPS = ("weight", "momentum", "grad")


@dataclass(frozen=True)
class Moved:
    """The last row of a bank, or a whole tensor.

    Attributes:
        shape: of a row, or of the tensor.
        sets: rows of the bank; 0 for a tensor that is moved whole.
    """

    shape: tuple[int, ...]
    sets: int = 0


@dataclass(frozen=True)
class Case:
    """One step of one architecture."""

    name: str
    moved: tuple[Moved, ...]


def inputs_of(case: Case) -> dict[str, Tensor]:
    """ "weight[i]", "momentum[i]" and "grad[i]" of what is moved."""
    return {
        f"{group}[{i}]": dense_random(*moved.shape, seed=3 * i + number)
        for i, moved in enumerate(case.moved)
        for number, group in enumerate(GROUPS)
    }


def run(case: Case) -> Function:
    """The operation, on the last rows of banks, which are written there at each call.

    What stock torch clones at each call. The banks are made at the first.
    """
    made: dict[torch.dtype, _Banks] = {}
    rows = [torch.tensor([own.sets - 1]) if own.sets else WHOLE for own in case.moved]

    def function(tensors: Tensors) -> Tensors:
        weights, momenta, grads = (_group(case, tensors, group) for group in GROUPS)
        like = weights[0]
        if like.dtype not in made:
            made[like.dtype] = _Banks(case, like)
        banks = made[like.dtype]
        torch._foreach_copy_(banks.moved_weights, weights)
        torch._foreach_copy_(banks.moved_momenta, momenta)
        ops.sgd(
            banks.weights,
            banks.momenta,
            [grad[None] if own.sets else grad for own, grad in zip(case.moved, grads, strict=True)],
            rows,
            lr=LR,
            momentum=MOMENTUM,
            weight_decay=DECAY,
        )
        return _named(banks.moved_weights, banks.moved_momenta)

    return function


class _Banks:
    """Banks of zeros and their momenta, and views of the rows that are moved."""

    def __init__(self, case: Case, like: Tensor) -> None:
        shapes = [(own.sets, *own.shape) if own.sets else own.shape for own in case.moved]
        self.weights = [like.new_zeros(shape) for shape in shapes]
        self.momenta = [like.new_zeros(shape) for shape in shapes]
        self.moved_weights = _last_rows(case, self.weights)
        self.moved_momenta = _last_rows(case, self.momenta)


def stock(case: Case) -> Function:
    """torch.optim.SGD's own function, on copies of the rows."""

    def function(tensors: Tensors) -> Tensors:
        weights, momenta, grads = (_group(case, tensors, group) for group in GROUPS)
        weights, momenta = [w.clone() for w in weights], [m.clone() for m in momenta]
        stock_sgd.sgd(
            weights,
            grads,
            [*momenta],
            has_sparse_grad=False,
            foreach=True,
            weight_decay=DECAY,
            momentum=MOMENTUM,
            lr=LR,
            dampening=0,
            nesterov=False,
            maximize=False,
        )
        return _named(weights, momenta)

    return function


def network_calls(images: int) -> list[Call]:
    """A cell's convolutions at numbers of sets that must not matter, and all that Macro moves."""
    cells = [
        Case(f"nb201_{sets}_sets", tuple(Moved(shape, sets) for shape in _CELLS))
        for sets in (1, 25, 625)
    ]
    return [_call(case) for case in (*cells, Case("macro", tuple(_macro())))]


_CELLS = ((16, 16, 3, 3), (16, 16, 1, 1), (32, 32, 3, 3), (32, 32, 1, 1))


def _macro() -> list[Moved]:
    moved = [Moved((10, HEAD.out_channels)), Moved((10,))]
    for conv in (STEM, HEAD):
        moved += _parameters(conv, 0)
    for number, layer in enumerate(LAYERS):
        for conv in convolutions(layer, K5_E6):
            moved += _parameters(conv, 3 if number else 1)
    return moved


def _parameters(conv: Convolution, sets: int) -> list[Moved]:
    size = conv.kernel_size
    weight = (conv.out_channels, conv.in_channels // conv.groups, size, size)
    return [Moved(shape, sets) for shape in (weight, (conv.out_channels,), (conv.out_channels,))]


def _call(case: Case) -> Call:
    return Call("sgd", case.name, run(case), stock(case), partial(inputs_of, case), dict, {"": 3})


def _group(case: Case, tensors: Tensors, group: str) -> list[Tensor]:
    return [tensors[f"{group}[{i}]"].detach() for i in range(len(case.moved))]


def _last_rows(case: Case, banks: list[Tensor]) -> list[Tensor]:
    return [bank[-1] if own.sets else bank for own, bank in zip(case.moved, banks, strict=True)]


def _named(weights: Sequence[Tensor], momenta: Sequence[Tensor]) -> dict[str, Tensor]:
    pairs = zip(GROUPS[:2], (weights, momenta), strict=True)
    return {f"{group}[{i}]": tensor for group, own in pairs for i, tensor in enumerate(own)}
