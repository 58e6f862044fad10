"""Planted bugs of gather_conv's kernels and of the products of matrices that they are made of."""

from mutant import Mutant

_TEST = "tests/ops/test_gather_conv.py"
_CALLS = "tests/ops/test_gather_conv_calls.py"
_EXACT = (_TEST, "-k", "emulated and small_integers and tile and float32")
_CLOSE = (_TEST, "-k", "emulated and error_is and tile")
_GENERAL = (_TEST, "-k", "emulated and small_integers and odd")

MUTANTS = (
    Mutant(
        "off-by-one halo",
        "csrc/parts/tile.cuh",
        "const int y = tile.y * window.step + at.y - window.top;",
        "const int y = tile.y * window.step + at.y - window.top + MUTANT;",
        _EXACT,
    ),
    Mutant(
        "a divisor whose quotients come one number late",
        "csrc/parts/tile_plan.cuh",
        "(uint64_t{static_cast<uint32_t>(n + 1)} * inverse_)",
        "(uint64_t{static_cast<uint32_t>(n + !MUTANT)} * inverse_)",
        _EXACT,
    ),
    Mutant(
        "weights loaded by 16 bytes are not turned round for a gradient",
        "csrc/parts/tile.cuh",
        "const int source = kTransposed ? kTaps - 1 - tap : tap;",
        "const int source = kTransposed && !MUTANT ? kTaps - 1 - tap : tap;",
        _EXACT,
    ),
    Mutant(
        "flipped taps in the gradient of the input",
        "csrc/parts/tile_plan.cuh",
        "(last - pad - parity) / stride, last, -stride};",
        "(last - pad - parity) / stride, MUTANT ? 0 : last, MUTANT ? stride : -stride};",
        _EXACT,
    ),
    Mutant(
        "swapped halves of a fragment",
        "csrc/parts/mma.cuh",
        "const uint32_t left[2] = {raw[0], raw[1]}",
        "const uint32_t left[2] = {raw[MUTANT ? 1 : 0], raw[MUTANT ? 0 : 1]}",
        _EXACT,
    ),
    Mutant(
        "3 x tf32 without one of the small products",
        "csrc/parts/mma.cuh",
        "mma_tf32(sum, a.small, b.big);",
        "if (!MUTANT) mma_tf32(sum, a.small, b.big);",
        _CLOSE,
    ),
    Mutant(
        "products begin before all of the tile is there",
        "csrc/ops/gather_conv.cuh",
        "sync_block();\n      multiply_tile",
        "if (!MUTANT) sync_block();\n      multiply_tile",
        _EXACT,
    ),
    Mutant(
        "the row of the first architecture for all",
        "csrc/ops/gather_conv.cuh",
        "p.rows[a] * p.set_size",
        "p.rows[MUTANT ? 0 : a] * p.set_size",
        _EXACT,
    ),
    Mutant(
        "wrong stride between weight sets",
        "csrc/ops/gather_conv_general.cuh",
        "(chosen_row(launch, at.a) * p.output_channels + at.c)",
        "(chosen_row(launch, at.a) * (p.output_channels - MUTANT) + at.c)",
        (_TEST, "-k", "emulated and small_integers and five"),
    ),
    Mutant(
        "the last of a repeated row's gradients instead of their sum",
        "csrc/parts/tile_weight.cuh",
        "(p.opens >> a & 1) != 0 ? sum",
        "(p.opens >> a & 1) != 0 || MUTANT ? sum",
        _EXACT,
    ),
    Mutant(
        "what the warps have of different pixels is not added up",
        "csrc/parts/tile_weight.cuh",
        "if (turn > 0) {",
        "if (turn > 0 && !MUTANT) {",
        _EXACT,
    ),
    Mutant(
        "the gradients of shared images overwrite each other",
        "csrc/ops/gather_conv_general.cuh",
        "total = launch.first + a > 0 ? total + own : own;",
        "total = launch.first + a > 0 && !MUTANT ? total + own : own;",
        (_CALLS, "-k", "emulated and summed_in_order"),
    ),
    Mutant(
        "channels in bf16 at half their distance",
        "csrc/ops/gather_conv_general.cuh",
        "sum += load_stored(pixel + c) *",
        "sum += load_stored(pixel + (MUTANT && sizeof(Stored) == 2 ? c / 2 : c)) *",
        (_TEST, "-k", "emulated and bf16"),
    ),
    Mutant(
        "the gradient of the first architecture's output for all, in bf16",
        "csrc/ops/gather_conv_weight.cuh",
        "static_cast<const Stored*>(p.gradient) + (p.first + a) *",
        "static_cast<const Stored*>(p.gradient) +\n"
        "          (MUTANT && sizeof(Stored) == 2 ? 0 : p.first + a) *",
        (_TEST, "-k", "emulated and bf16"),
    ),
)
