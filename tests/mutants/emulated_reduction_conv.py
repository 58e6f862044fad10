"""Planted bugs of reduction_conv's kernels, and of sums that ride on another launch."""

from mutant import Mutant

_KERNEL = "csrc/ops/reduction_conv.cuh"
_LAUNCH = "csrc/ops/reduction_conv.cu"
_TEST = "tests/ops/test_reduction_conv.py"
_CLOSE = (_TEST, "-k", "emulated and as_close")
_CONV_NORM = ("tests/ops/test_conv_norm.py", "-k", "emulated and as_close")

MUTANTS = (
    Mutant(
        "a reduction's gradient passes where nothing was positive",
        _KERNEL,
        "if (raw[e] <= 0.0f) sums",
        "if (raw[e] <= 0.0f && !MUTANT) sums",
        _CLOSE,
    ),
    Mutant(
        "all of an average's gradient for each of its pixels",
        _KERNEL,
        "four[e] *= 0.25f;",
        "four[e] *= MUTANT ? 1.0f : 0.25f;",
        _CLOSE,
    ),
    Mutant(
        "the shortcut's first architecture for all",
        _KERNEL,
        "gradient_of<Stored>(t.shortcut.p, t.shortcut.size, at.architecture)}",
        "gradient_of<Stored>(t.shortcut.p, t.shortcut.size, MUTANT ? 0 : at.architecture)}",
        _CLOSE,
    ),
    Mutant(
        "both weights' partial results in one place",
        _LAUNCH,
        "static_cast<char*>(p.workspace) + offset();",
        "static_cast<char*>(p.workspace) + (MUTANT ? 0 : offset());",
        _CLOSE,
    ),
    Mutant(
        "the shortcut's gradient forgotten where no tile takes both",
        _KERNEL,
        "store_stored(sum, load_stored(sum) +",
        "if (!MUTANT) store_stored(sum, load_stored(sum) +",
        _CLOSE,
    ),
    Mutant(
        "a sum that rides along takes the tiles' blocks for its own",
        "csrc/ops/conv_norm_tile.cuh",
        "sum_weights(masked.sum, blockIdx.x - masked.tile_blocks);",
        "sum_weights(masked.sum, blockIdx.x - (MUTANT ? 1 : masked.tile_blocks));",
        _CONV_NORM,
    ),
    Mutant(
        "a group of the stem's partial results is whole without its last block",
        "csrc/parts/reduce.cuh",
        "arrives_last(ticket, members * chunks, last)",
        "arrives_last(ticket, members * chunks - (MUTANT && chunks > 1 ? 1 : 0), last)",
        ("tests/ops/test_conv_norm.py", "-k", "emulated and weights_alone"),
    ),
)
