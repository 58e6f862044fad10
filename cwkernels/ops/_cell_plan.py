"""What a NAS-Bench-201 cell runs: its edges' codes, which of them matter, what is read where."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
NONE, SKIP_CONNECT, CONV_1X1, CONV_3X3, AVG_POOL_3X3 = range(5)
NUM_CODES = 5
CONVOLUTIONS = (CONV_1X1, CONV_3X3)


@cache
def active_edges(codes: tuple[int, ...]) -> tuple[bool, ...]:
    """Which edges can carry anything from the cell's input to its output.

    A convolution on any other edge is dead: it is not computed, and gets no gradient and no
    statistics.
    """
    fed, reaches = {0}, {3}
    for (source, target), code in zip(EDGES, codes, strict=True):
        if code != NONE and source in fed:
            fed.add(target)
    for (source, target), code in zip(reversed(EDGES), reversed(codes), strict=True):
        if code != NONE and target in reaches:
            reaches.add(source)
    return tuple(
        code != NONE and source in fed and target in reaches
        for (source, target), code in zip(EDGES, codes, strict=True)
    )


@dataclass(frozen=True)
class Edge:
    """An active edge of one architecture."""

    index: int
    source: int
    target: int
    code: int
    row: int

    def bank(self, per_edge: int) -> int | None:
        """The place of the weights it reads, or None."""
        if self.code in CONVOLUTIONS:
            return self.index * per_edge + self.code - CONV_1X1
        return self.index * per_edge + 2 if self.code == SKIP_CONNECT and per_edge == 3 else None

    def norm(self) -> int:
        """The place of a convolution's running statistics."""
        return self.index * 2 + self.code - CONV_1X1


def edges_of(selection: list[list[int]]) -> list[Edge]:
    """The active edges of one architecture, from code and row of each edge, in their order."""
    active = active_edges(tuple(code for code, _ in selection))
    return [Edge(index, *EDGES[index], *selection[index]) for index in range(6) if active[index]]


def rows_of(weights: Sequence[Tensor]) -> list[int]:
    """How many rows the banks of each edge have."""
    return [weights[edge * len(weights) // 6].shape[0] for edge in range(6)]


def choices_of(selection: Tensor, weights: Sequence[Tensor]) -> list[list[list[int]]]:
    """Codes and rows [A, 6, 2] as integers, checked where they are read: a graph cannot read them.

    An int32 selection is one that kernels read on the device: as there, an edge that is out of
    range runs nothing.
    """
    choices: list[list[list[int]]] = selection.tolist()
    rows = rows_of(weights)
    for one in choices:
        for edge, (code, row) in enumerate(one):
            if 0 <= code < NUM_CODES and 0 <= row < rows[edge]:
                continue
            if selection.dtype == torch.int32:
                one[edge] = [NONE, 0]
                continue
            wanted, got = f"a row in [0, {rows[edge]})", row
            if not 0 <= code < NUM_CODES:
                wanted, got = f"a code in [0, {NUM_CODES})", code
            raise ValueError(f"nb201_cell: selection[{edge}]: wanted {wanted}, got {got}")
    return choices
