"""Cases of `cw.ops.copy_rows`."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cwkernels import ops
from cwkernels.testing.cases.call import Call
from cwkernels.testing.functions import Function, Tensors
from cwkernels.testing.inputs import dense_random


@dataclass(frozen=True)
class Case:
    """One call."""

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, ...]

    def __str__(self) -> str:
        """The name, for the ids of parametrised tests."""
        return self.name


def inputs_of(case: Case) -> dict[str, Tensor]:
    """The "bank"."""
    return {"bank": dense_random(*case.shape)}


def cotangents_of(case: Case) -> dict[str, Tensor]:
    """The gradient of the copied rows."""
    return {"copied": dense_random(len(case.rows), *case.shape[1:], seed=1)}


def run(case: Case) -> Function:
    """The operation."""
    rows = torch.tensor(case.rows)

    def function(tensors: Tensors) -> Tensors:
        return {"copied": ops.copy_rows(tensors["bank"], rows.to(tensors["bank"].device))}

    return function


def stock(case: Case) -> Function:
    """Advanced indexing."""
    rows = torch.tensor(case.rows)

    def function(tensors: Tensors) -> Tensors:
        return {"copied": tensors["bank"][rows.to(tensors["bank"].device)]}

    return function


def network_calls(images: int) -> list[Call]:
    """What splits copy: one row to 25 of a cell's 3x3, and to 3 of Macro's widest bank."""
    return [
        _call(Case("nb201_split_3x3_64", (1, 64, 64, 3, 3), (0,) * 25)),
        _call(Case("macro_split_6_project", (1, 256, 1536, 1, 1), (0,) * 3)),
    ]


def _call(case: Case) -> Call:
    inputs, cotangents = partial(inputs_of, case), partial(cotangents_of, case)
    terms = {"": len(case.rows)}
    return Call("copy_rows", case.name, run(case), stock(case), inputs, cotangents, terms)
