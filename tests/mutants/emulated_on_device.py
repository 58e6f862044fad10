"""Planted bugs of what reads choices and rows on the device."""

from mutant import Mutant

_SELECT = "csrc/parts/select.cuh"
_SELECT_TESTS = ("tests/ops/test_select.py", "-k", "emulated or reference")
_SLOTS = "csrc/ops/sgd_slots.cuh"
_SLOTS_TESTS = ("tests/ops/test_sgd_slots.py", "-k", "emulated")
_STATISTICS = "csrc/ops/update_statistics.cuh"
_STATISTICS_TESTS = ("tests/ops/test_update_statistics_on_device.py", "-k", "emulated")

MUTANTS = (
    Mutant(
        "a choice that another decision has",
        _SELECT,
        "choice < p.candidates[d]",
        "choice < (MUTANT ? p.candidates[p.decisions - 1] : p.candidates[d])",
        _SELECT_TESTS,
    ),
    Mutant(
        "a combination of another number",
        _SELECT,
        "shuffle(choice, e) * load_global(map + e)",
        "shuffle(choice, e) * (MUTANT ? (load_global(map + e) != 0) : load_global(map + e))",
        _SELECT_TESTS,
    ),
    Mutant(
        "a batch norm runs that the input does not reach",
        _SELECT,
        "if (passes && (reached >> p.sources[d] & 1u)) live",
        "if (passes && (MUTANT || (reached >> p.sources[d] & 1u))) live",
        _SELECT_TESTS,
    ),
    Mutant(
        "the batch norms of one candidate for all of a decision",
        _SELECT,
        "code == norm.code &&",
        "(code == norm.code || MUTANT) &&",
        _SELECT_TESTS,
    ),
    Mutant(
        "the fault of the last warp",
        _SELECT,
        "if (faults[w].architecture < first.architecture)",
        "if (MUTANT ? faults[w].architecture < p.architectures\n"
        "               : faults[w].architecture < first.architecture)",
        _SELECT_TESTS,
    ),
    Mutant(
        "a plan of what is not yet selected",
        _SELECT,
        "  sync_block();",
        "  if (!MUTANT) sync_block();",
        ("tests/ops/test_nb201_select.py", "-k", "emulated and is_select"),
    ),
    Mutant(
        "every slot moves its row",
        _SLOTS,
        "if (row_of_slot(s, k, before) == row) return false;",
        "if (row_of_slot(s, k, before) == row && !MUTANT) return false;",
        _SLOTS_TESTS,
    ),
    Mutant(
        "the gradients of a row's later slots forgotten",
        _SLOTS,
        "if (row_of_slot(s, k, u) != row) continue;",
        "if (row_of_slot(s, k, u) != row || (MUTANT && u > first)) continue;",
        _SLOTS_TESTS,
    ),
    Mutant(
        "the learning rate of the host",
        _SLOTS,
        "k.lr_on_device ? load_global",
        "k.lr_on_device && !MUTANT ? load_global",
        _SLOTS_TESTS,
    ),
    Mutant(
        "the options of another group, whose rows lie alike",
        _SLOTS,
        "return one.options == other.options &&",
        "return (MUTANT || one.options == other.options) &&",
        _SLOTS_TESTS,
    ),
    Mutant(
        "rows that share their momentum in the order of their slots",
        _SLOTS,
        "if (row > after && row < least)",
        "if (row > after && (row < least || MUTANT))",
        _SLOTS_TESTS,
    ),
    Mutant(
        "the rows of the first batch norm for all",
        _STATISTICS,
        "rows + norm.first * count + a",
        "rows + (MUTANT ? 0 : norm.first) * count + a",
        _STATISTICS_TESTS,
    ),
    Mutant(
        "a row that does not exist taken for the first",
        _STATISTICS,
        "return row < norm.count ? row : -1;",
        "return row < norm.count ? row : MUTANT ? 0 : -1;",
        _STATISTICS_TESTS,
    ),
    Mutant(
        "the batch norms of each launch counted anew",
        _STATISTICS,
        "statistics_norm<T>(target, 0, place, target.sets)",
        "statistics_norm<T>(target, 0, MUTANT ? place % kStatisticsSlots : place, target.sets)",
        _STATISTICS_TESTS,
    ),
)
