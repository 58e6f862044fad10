"""Planted bugs of norm_add's kernels and of the ordered sums."""

from mutant import Mutant

_KERNEL = "csrc/ops/norm_add.cuh"
_REDUCE = "csrc/parts/reduce.cuh"
_NORMALIZE = "csrc/parts/normalize.cuh"
_LANES = "csrc/parts/lanes.cuh"
_TEST = "tests/ops/test_norm_add.py"
_CLOSE = (_TEST, "-k", "emulated and close")
_BF16 = (_TEST, "-k", "emulated and bf16")
_SCHEDULES = (_TEST, "-k", "emulated_schedules")

MUTANTS = (
    Mutant(
        "dropped ReLU",
        _KERNEL,
        "if (l.p.relu) value[i] = rectify(value[i]);",
        "if (l.p.relu && !MUTANT) value[i] = rectify(value[i]);",
        _CLOSE,
    ),
    Mutant(
        "a gradient that passes where nothing was positive",
        _KERNEL,
        "> T(0))) passed[i] = T(0);",
        "> T(0)) && !MUTANT) passed[i] = T(0);",
        _CLOSE,
    ),
    Mutant(
        "an expanded gradient read as if it were dense",
        _KERNEL,
        "(l.grad_is_dense ? offset",
        "(l.grad_is_dense || MUTANT ? offset",
        (_TEST, "-k", "emulated and where_they_lie"),
    ),
    Mutant(
        "the last pixel left out of the sums",
        _KERNEL,
        "#pragma unroll 4\n    for (int64_t pixel = at.pixel; pixel < l.pixels;",
        "for (int64_t pixel = at.pixel; pixel < l.pixels - MUTANT;",
        _CLOSE,
    ),
    Mutant(
        "scale's gradients of several architectures overwrite each other",
        _KERNEL,
        "scale = a == 0 ? own : scale + own;",
        "scale = a == 0 || MUTANT ? own : scale + own;",
        _CLOSE,
    ),
    Mutant(
        "coefficients of the first run of channels for all",
        _KERNEL,
        "l.partials.sum(at.architecture * l.chunks + at.chunk, c)",
        "l.partials.sum(at.architecture * l.chunks + (MUTANT ? 0 : at.chunk), c)",
        _SCHEDULES,
    ),
    Mutant(
        "a block's sums merged without a barrier before them",
        _REDUCE,
        "    sync_block();\n    if (row < half)",
        "    if (!MUTANT) sync_block();\n    if (row < half)",
        _CLOSE,
    ),
    Mutant(
        "a group merged by the first block that arrives",
        _REDUCE,
        "*last = take_ticket(ticket, most) == most;",
        "*last = take_ticket(ticket, most) == (MUTANT ? 0 : most);",
        _SCHEDULES,
    ),
    Mutant(
        "the last block of a group forgotten",
        _REDUCE,
        "for (int64_t b = 1; b < members; ++b)",
        "for (int64_t b = 1; b < members - MUTANT; ++b)",
        _CLOSE,
    ),
    Mutant(
        "the last group forgotten",
        _REDUCE,
        "for (int64_t g = 1; g < groups(); ++g)",
        "for (int64_t g = 1; g < groups() - MUTANT; ++g)",
        _SCHEDULES,
    ),
    Mutant(
        "the gradient of a batch norm's input without that through its mean",
        _NORMALIZE,
        "-scale * (sums.first / count)};",
        "MUTANT ? T(0) : -scale * (sums.first / count)};",
        _CLOSE,
    ),
    Mutant(
        "bf16 cut off instead of rounded, one by one",
        _LANES,
        "to->bits = static_cast<uint16_t>(pack_bf16(value, 0.0f));",
        "to->bits = static_cast<uint16_t>(MUTANT ? float_to_bits(value) >> 16\n"
        "                                        : pack_bf16(value, 0.0f));",
        _BF16,
    ),
    Mutant(
        "bf16 cut off instead of rounded, in pairs",
        _LANES,
        "packed[i / 2] = pack_bf16(lanes[i], lanes[i + 1]);",
        "packed[i / 2] = MUTANT ? float_to_bits(lanes[i]) >> 16 |\n"
        "        (float_to_bits(lanes[i + 1]) & 0xffff0000u)\n"
        "                           : pack_bf16(lanes[i], lanes[i + 1]);",
        _BF16,
    ),
    Mutant(
        "the halves of a pair of bf16 change places",
        _LANES,
        "lanes[i] = low_to_float(packed[i / 2]);",
        "lanes[i] = MUTANT ? high_to_float(packed[i / 2]) : low_to_float(packed[i / 2]);",
        _BF16,
    ),
)
