"""Planted bugs of nb201_cell's kernels."""

from mutant import Mutant

_TILE = "csrc/parts/cell_tile.cuh"
_FORWARD = "csrc/ops/nb201_cell.cuh"
_TEST = "tests/ops/test_nb201_cell.py"
_EVERY = (_TEST, "-k", "emulated and every_kind and training")

MUTANTS = (
    Mutant(
        "a convolution reads its node without ReLU",
        _FORWARD,
        "own[i] = rectified ? rectify(own[i]) : own[i];",
        "own[i] = rectified && !MUTANT ? rectify(own[i]) : own[i];",
        _EVERY,
    ),
    Mutant(
        "the rim of a tile shifted by one",
        _TILE,
        "const int y = tile.y + line % t.source_rows - 1,",
        "const int y = tile.y + line % t.source_rows - 1 + MUTANT,",
        _EVERY,
    ),
    Mutant(
        "weights loaded while others still multiply by the ones before",
        _TILE,
        "if (!p.resident) {\n      sync_block();",
        "if (!p.resident) {\n      if (!MUTANT) sync_block();",
        (_TEST, "-k", "emulated and every_kind and two_vectors"),
    ),
)
