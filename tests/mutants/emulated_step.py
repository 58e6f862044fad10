"""Planted bugs of the kernels around a step: update_statistics, sgd, batch."""

from mutant import Mutant

_STATISTICS = "csrc/ops/update_statistics.cuh"
_STATISTICS_TESTS = ("tests/ops/test_update_statistics.py", "-k", "emulated")
_SGD = "csrc/ops/sgd.cuh"
_MOMENTUM = "csrc/parts/momentum.cuh"
_SGD_TESTS = ("tests/ops/test_sgd.py", "-k", "emulated")
_BATCH = "csrc/ops/batch.cuh"
_BATCH_TESTS = ("tests/ops/test_batch.py", "-k", "emulated")

MUTANTS = (
    Mutant(
        "biased running variance",
        _STATISTICS,
        "factor, unbias);",
        "factor, MUTANT ? 1 : unbias);",
        _STATISTICS_TESTS,
    ),
    Mutant(
        "a counter written while others still read it",
        _STATISTICS,
        "+ 1;\n    sync_block();",
        "+ 1;\n    if (!MUTANT) sync_block();",
        _STATISTICS_TESTS,
    ),
    Mutant(
        "statistics of the first architecture for all",
        _STATISTICS,
        "measured += norm.statistics_stride",
        "measured += MUTANT ? 0 : norm.statistics_stride",
        _STATISTICS_TESTS,
    ),
    Mutant(
        "statistics of the first launch's architectures in the second",
        _STATISTICS,
        "(target.statistics) + architecture * target.statistics_stride",
        "(target.statistics) + (MUTANT ? 0 : architecture) * target.statistics_stride",
        _STATISTICS_TESTS,
    ),
    Mutant(
        "the last gradient of a repeated row forgotten",
        _SGD,
        "for (int e = 0; e < move.count; ++e) {",
        "for (int e = 0; e < move.count - (MUTANT && move.count > 1); ++e) {",
        _SGD_TESTS,
    ),
    Mutant(
        "the weight decay of the group beside it",
        _SGD,
        "static_cast<T>(own.weight_decay)});",
        "static_cast<T>(l.groups[MUTANT ? 1 - move.group : move.group].weight_decay)});",
        (*_SGD_TESTS[:2], "emulated and own_options"),
    ),
    Mutant(
        "rows that share their momentum moved at the same time",
        _SGD,
        "const bool follows = moves_ > 0 &&",
        "const bool follows = !MUTANT && moves_ > 0 &&",
        _SGD_TESTS,
    ),
    Mutant(
        "gradients of the launch before forgotten",
        _SGD,
        "move.continued = continued;",
        "move.continued = continued && !MUTANT;",
        _SGD_TESTS,
    ),
    Mutant(
        "weight decay without weight decay",
        _MOMENTUM,
        "if (rates.weight_decay != T(0))",
        "if (rates.weight_decay != T(0) || MUTANT)",
        _SGD_TESTS,
    ),
    Mutant(
        "mirrored images shifted to the other side",
        _BATCH,
        "flip ? p.width - 1 - column",
        "flip ? p.width - 1 - (MUTANT ? p.width - 1 - column : column)",
        _BATCH_TESTS,
    ),
    Mutant(
        "black that is not normalised",
        _BATCH,
        "values[k] = exists ? value",
        "values[k] = MUTANT && !inside ? 0 : exists ? value",
        _BATCH_TESTS,
    ),
    Mutant(
        "a wide store that does not see the end of a row",
        _BATCH,
        "if (++x == p.width) x = 0, ++y;",
        "if (++x == p.width + MUTANT) x = 0, ++y;",
        _BATCH_TESTS,
    ),
)
