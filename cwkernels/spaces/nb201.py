"""NAS-Bench-201's cell (paper section 3.3, table 2): three spaces, strings, liveness, counts."""

import re
from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor

from cwkernels.spaces import checks
from cwkernels.spaces.space import (
    Candidate,
    Decision,
    Space,
    check_architecture,
    check_one_architecture,
    check_string,
    sets_per_candidate,
)

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""(source, target) of each decision's edge; node 0 is the cell's input, node 3 its output."""

PREDECESSORS = ((), (), (0,), (), (0,), (1, 2))
"""The decisions whose choices each decision's weights depend on."""

NONE, SKIP_CONNECT, NOR_CONV_1X1, NOR_CONV_3X3, AVG_POOL_3X3 = range(5)

CANDIDATES = (
    Candidate("none", weighted=False, code=NONE),
    Candidate("skip_connect", weighted=False, code=SKIP_CONNECT),
    Candidate("nor_conv_1x1", weighted=True, code=NOR_CONV_1X1, kernel_area=1),
    Candidate("nor_conv_3x3", weighted=True, code=NOR_CONV_3X3, kernel_area=9),
    Candidate("avg_pool_3x3", weighted=False, code=AVG_POOL_3X3),
)

_SUBSETS = {
    "full": CANDIDATES,
    "no_zero": tuple(c for c in CANDIDATES if c.code != NONE),
    "only_conv": tuple(c for c in CANDIDATES if c.weighted),
}
_STAGES = 3
_NODE_PATTERNS = (
    "".join(rf"\|([^|~+]+)~{source}" for source, target in EDGES if target == node) + r"\|"
    for node in (1, 2, 3)
)
_STRING = re.compile(r"\+".join(_NODE_PATTERNS))


class NB201(Space):
    """A NAS-Bench-201 space: 6 decisions, one per edge of the cell, in the order of ``EDGES``."""

    def parse(self, string: str) -> Tensor:
        """The architecture of a string like ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``, int64 [6].

        ValueError for another form or an operation that this space lacks.
        """
        match = _STRING.fullmatch(check_string(string, "space.parse"))
        if match is None:
            wanted = "like '|op~0|+|op~0|op~1|+|op~0|op~1|op~2|'"
            raise ValueError(checks.message("space.parse", "string", wanted, repr(string)))
        names = [candidate.name for candidate in self.decisions[0].candidates]
        for name in match.groups():
            if name not in names:
                wanted = f"of the operations {', '.join(names)}"
                raise ValueError(checks.message("space.parse", "string", wanted, repr(name)))
        return torch.tensor([names.index(name) for name in match.groups()], device="cpu")

    def format(self, arch: Tensor) -> str:
        """NAS-Bench-201's string for one architecture ``[6]``; inverse of ``parse``."""
        arch = check_one_architecture(self, arch, "space.format")
        nodes = {1: "|", 2: "|", 3: "|"}
        for choice, decision, (source, target) in zip(
            arch.tolist(), self.decisions, EDGES, strict=True
        ):
            nodes[target] += f"{decision.candidates[choice].name}~{source}|"
        return "+".join(nodes.values())

    def live(self, arch: Tensor) -> Tensor:
        """Where the choice is a convolution that is not dead, bool ``[..., 6]``; see ``live``."""
        return live(self._codes(check_architecture(self, arch, "space.live")))

    def unique_string(self, arch: Tensor) -> str:
        """What one architecture ``[6]`` computes, the same for isomorphic ones.

        It is the one by which the benchmark counts 6466 different cells: a node is the sorted sum
        of its edges, Skip is its source, an edge that carries nothing is ``#``. A sum keeps its
        zeros, so some cells that compute the same still have different strings.
        """
        codes = self._codes(check_one_architecture(self, arch, "space.unique_string")).tolist()
        nodes = ["0"]
        for node in (1, 2, 3):
            terms = []
            for code, (source, target) in zip(codes, EDGES, strict=True):
                if target != node:
                    continue
                if code == NONE or nodes[source] == "#":
                    terms.append("#")
                else:
                    own = nodes[source]
                    terms.append(own if code == SKIP_CONNECT else f"({own})@{code}")
            nodes.append("+".join(sorted(terms)))
        return nodes[3]


def nb201(subset: str = "full") -> NB201:
    """The NAS-Bench-201 space: ``"full"`` (15,625), ``"no_zero"`` (4096), ``"only_conv"`` (64).

    Candidates keep the order none, skip_connect, nor_conv_1x1, nor_conv_3x3, avg_pool_3x3, without
    those that the subset lacks. ValueError for another ``subset``.
    """
    if not isinstance(subset, str) or subset not in _SUBSETS:
        wanted = "one of " + ", ".join(map(repr, _SUBSETS))
        raise ValueError(checks.message("spaces.nb201", "subset", wanted, repr(subset)))
    decisions = tuple(
        Decision(f"edge_{source}_{target}", _SUBSETS[subset], predecessors)
        for (source, target), predecessors in zip(EDGES, PREDECESSORS, strict=True)
    )
    return NB201(f"nb201_{subset}", decisions)


def input_reaches(codes: Tensor) -> Tensor:
    """Which edges' source node the cell's input reaches, bool ``[..., 6]``.

    ``codes`` are operation codes, int64 ``[..., 6]``, else TypeError or ValueError. Where the
    result is False nothing but Zero feeds the edge: its input is identically zero.
    """
    return _input_reaches(_check_codes(codes, "nb201.input_reaches"))


def reaches_output(codes: Tensor) -> Tensor:
    """Which edges' target node reaches the cell's output, bool ``[..., 6]``.

    ``codes`` are operation codes, int64 ``[..., 6]``, else TypeError or ValueError. Where the
    result is False whatever the edge computes is lost.
    """
    return _reaches_output(_check_codes(codes, "nb201.reaches_output"))


def live(codes: Tensor) -> Tensor:
    """Which edges are convolutions that are not dead, bool ``[..., 6]``.

    ``codes`` are operation codes, int64 ``[..., 6]``, else TypeError or ValueError. A convolution
    is dead if ``reaches_output`` or ``input_reaches`` is False for its edge.
    """
    codes = _check_codes(codes, "nb201.live")
    convolution = (codes == NOR_CONV_1X1) | (codes == NOR_CONV_3X3)
    return convolution & _input_reaches(codes) & _reaches_output(codes)


def supernet_parameters(
    space: NB201,
    split: bool | Iterable[int] = False,
    skip_projection: bool = False,
    channels: int = 16,
    cells_per_stage: int = 2,
    num_classes: int = 10,
) -> dict[str, int]:
    """The super-network's parameters by part: ``"stem"``, ``"0"``, ``"1"``, ..., ``"head"``.

    Cells and the two fixed reductions count on together, as in table 2, which has
    ``skip_projection=True``: a bias-free channels x channels projection for skip_connect, split
    with its decision. ``split`` is that of ``Space.weight_sets``.
    """
    operation = "nb201.supernet_parameters"
    if not isinstance(space, NB201):
        got = type(space).__name__
        raise TypeError(checks.message(operation, "space", "a NAS-Bench-201 space", got))
    channels = checks.integer(operation, "channels", channels, at_least=1)
    cells_per_stage = checks.integer(operation, "cells_per_stage", cells_per_stage, at_least=1)
    num_classes = checks.integer(operation, "num_classes", num_classes, at_least=1)
    sets = sets_per_candidate(space, split, operation)

    kernel_area = {NOR_CONV_1X1: 1, NOR_CONV_3X3: 9, SKIP_CONNECT: int(skip_projection)}
    cell = sum(
        rows * kernel_area.get(candidate.code, 0)
        for rows, decision in zip(sets, space.decisions, strict=True)
        for candidate in decision.candidates
    )
    widths = [channels * 2**stage for stage in range(_STAGES)]
    parts = [cell * widths[0] ** 2] * cells_per_stage
    for narrow, wide in pairwise(widths):
        parts += [_reduction(narrow, wide), *[cell * wide**2] * cells_per_stage]
    stem = 3 * 9 * channels + 2 * channels
    head = 2 * widths[-1] + (widths[-1] + 1) * num_classes
    return {"stem": stem, **{str(i): part for i, part in enumerate(parts)}, "head": head}


def _reduction(narrow: int, wide: int) -> int:
    # two 3x3 convolutions, each with its affine batch norm, and the shortcut's 1x1
    return 9 * narrow * wide + 2 * wide + 9 * wide * wide + 2 * wide + narrow * wide


def _check_codes(codes: object, operation: str) -> Tensor:
    return checks.choices(operation, "codes", codes, (len(CANDIDATES),) * len(EDGES))


def _input_reaches(codes: Tensor) -> Tensor:
    nothing = torch.zeros_like(codes[..., 0], dtype=torch.bool)
    reached = [~nothing, nothing, nothing, nothing]
    # edges come sorted by target, so a node is complete before an edge leaves it
    for edge, (source, target) in enumerate(EDGES):
        reached[target] = reached[target] | (reached[source] & (codes[..., edge] != NONE))
    return torch.stack([reached[source] for source, _ in EDGES], dim=-1)


def _reaches_output(codes: Tensor) -> Tensor:
    nothing = torch.zeros_like(codes[..., 0], dtype=torch.bool)
    reaches = [nothing, nothing, nothing, ~nothing]
    for edge, (source, target) in reversed(list(enumerate(EDGES))):
        reaches[source] = reaches[source] | (reaches[target] & (codes[..., edge] != NONE))
    return torch.stack([reaches[target] for _, target in EDGES], dim=-1)
