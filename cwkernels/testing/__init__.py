"""What tests and benchmarks share: cases as data, inputs, comparators with one tolerance table.

A result is right if small integers give it bit for bit, and if on random numbers its error against
the same computation in float64 is that of stock torch.

`cases` has a module per operation. `fixtures`, `reproduction` and `sampling` are plugins of pytest,
which nothing else here needs.
"""

from cwkernels.testing.cases import network_calls
from cwkernels.testing.cases.call import Call
from cwkernels.testing.cases.gather_conv import ConvCase, network_cases
from cwkernels.testing.compare import (
    assert_as_close,
    assert_bitwise,
    assert_close_to_reference,
    assert_within,
    compact_rows,
    refused,
    relative_error,
)
from cwkernels.testing.devices import (
    cpu_isa,
    cpu_isas,
    poisoned_memory,
    processor,
    why_no_cuda,
)
from cwkernels.testing.functions import (
    Expected,
    Function,
    Results,
    Tensors,
    as_reference,
    cast,
    evaluate,
    expect,
    in_autocast,
    on_device,
    stored_as_bf16,
)
from cwkernels.testing.inputs import (
    Draw,
    channels_last,
    dense_random,
    small_integers,
    statistics_of,
)
from cwkernels.testing.tolerances import (
    ALLOWANCES,
    CELL_CONVOLUTIONS,
    LEAST_NONZERO,
    TOLERANCES,
    Allowance,
    Tolerance,
)

__all__ = [
    "ALLOWANCES",
    "CELL_CONVOLUTIONS",
    "LEAST_NONZERO",
    "TOLERANCES",
    "Allowance",
    "Call",
    "ConvCase",
    "Draw",
    "Expected",
    "Function",
    "Results",
    "Tensors",
    "Tolerance",
    "as_reference",
    "assert_as_close",
    "assert_bitwise",
    "assert_close_to_reference",
    "assert_within",
    "cast",
    "channels_last",
    "compact_rows",
    "cpu_isa",
    "cpu_isas",
    "dense_random",
    "evaluate",
    "expect",
    "in_autocast",
    "network_calls",
    "network_cases",
    "on_device",
    "poisoned_memory",
    "processor",
    "refused",
    "relative_error",
    "small_integers",
    "statistics_of",
    "stored_as_bf16",
    "why_no_cuda",
]
