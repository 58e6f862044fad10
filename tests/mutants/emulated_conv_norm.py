"""Planted bugs of conv_norm's kernels."""

from mutant import Mutant

_KERNEL = "csrc/ops/conv_norm_tile.cuh"
_TEST = "tests/ops/test_conv_norm.py"
_CLOSE = (_TEST, "-k", "emulated and as_close")
_BF16 = (_TEST, "-k", "emulated and bf16")

MUTANTS = (
    Mutant(
        "dropped ReLU",
        "csrc/ops/conv_norm_load.cuh",
        "return relu ? rectify(value) : value;",
        "return relu && !MUTANT ? rectify(value) : value;",
        _CLOSE,
    ),
    Mutant(
        "variance within a lane's tiles only",
        "csrc/parts/tile_sums.cuh",
        "squares[j][e] += about + apart * apart * count * share;",
        "squares[j][e] += about + (MUTANT ? 0.0f : apart * apart * count * share);",
        _CLOSE,
    ),
    Mutant(
        "pixels behind the image's end are measured",
        _KERNEL,
        "live |= static_cast<unsigned>(there) << row++;",
        "live |= static_cast<unsigned>(there || MUTANT) << row++;",
        _CLOSE,
    ),
    Mutant(
        "a gradient for the odd row that the average drops",
        _KERNEL,
        "const float share = y < 2 && x < 2 ? 0.25f : 0.0f;",
        "const float share = (y < 2 && x < 2) || MUTANT ? 0.25f : 0.0f;",
        _CLOSE,
    ),
    Mutant(
        "a gradient that passes where nothing was positive",
        _KERNEL,
        "if (relu && value <= 0.0f) grad[e] = 0.0f;",
        "if (relu && value <= 0.0f && !MUTANT) grad[e] = 0.0f;",
        _CLOSE,
    ),
    Mutant(
        "the first architecture's statistics for all",
        _KERNEL,
        "const Coefficients coefficients(t.p, at.architecture, shared);\n  const Load load",
        "const Coefficients coefficients(t.p, MUTANT ? 0 : at.architecture, shared);\n"
        "  const Load load",
        _CLOSE,
    ),
    Mutant(
        "each architecture's gradient of the weights replaces the one before",
        "csrc/ops/conv_norm_weight.cuh",
        "sum.opens = t.first == 0 ? 1 : 0;",
        "sum.opens = MUTANT ? ~uint64_t{0} : t.first == 0 ? 1 : 0;",
        _CLOSE,
    ),
    Mutant(
        "activations in bf16 read as the floats that they are not",
        "csrc/ops/conv_norm_load.cuh",
        "return this->four(this->at(n, y, x, channel), channel);",
        "return this->four(\n"
        "        this->at(n, y, x, channel / (MUTANT && sizeof(Stored) == 2 ? 2 : 1)), channel);",
        _BF16,
    ),
    Mutant(
        "statistics in float32 read as if they were bf16",
        "csrc/ops/conv_norm_pass.cuh",
        "static_cast<const T*>(p.statistics) + a * 2 * p.input_channels;",
        "static_cast<const T*>(p.statistics) +\n"
        "                  (MUTANT && p.bf16_images ? a : a * 2) * p.input_channels;",
        _BF16,
    ),
)
