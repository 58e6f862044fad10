"""Planted bugs of inverted_bottleneck's kernels."""

from mutant import Mutant

_CHOICE = "csrc/parts/bottleneck.cuh"
_PLAN = "csrc/parts/bottleneck_plan.cuh"
_PRODUCT = "csrc/parts/bottleneck_product.cuh"
_POINTWISE = "csrc/parts/bottleneck_pointwise.cuh"
_DEPTHWISE = "csrc/parts/bottleneck_depthwise.cuh"
_WEIGHTS = "csrc/parts/bottleneck_weights.cuh"
_GENERAL = "csrc/parts/bottleneck_general_backward.cuh"
_LAUNCHES = "csrc/ops/inverted_bottleneck.cuh"
_TEST = "tests/ops/test_inverted_bottleneck.py"
_ON_DEVICE = "tests/ops/test_inverted_bottleneck_on_device.py"
_BF16 = "tests/ops/test_inverted_bottleneck_bf16.py"
_MATRIX = (_TEST, "-k", "emulated and one_architecture and multiples_of_16")
_SEVERAL = (_TEST, "-k", "emulated and several_architectures and multiples_of_16-")
_IN_ORDER = (_TEST, "-k", "emulated and summed_in_order")

MUTANTS = (
    Mutant(
        "a set's stride four short",
        _CHOICE,
        "(p.weights[bank(place)]) + row * weight_size(place);",
        "(p.weights[bank(place)]) + row * (weight_size(place) - (MUTANT ? 4 : 0));",
        _MATRIX,
    ),
    Mutant(
        "statistics of another run of channels",
        _CHOICE,
        "sum(channel / run, channel % run)",
        "sum(MUTANT ? 0 : channel / run, channel % run)",
        _MATRIX,
    ),
    Mutant(
        "a row that an earlier group read begins anew",
        _PLAN,
        "own.again |= p.selection",
        "own.again |= !MUTANT && p.selection",
        (_TEST, "-k", "emulated and groups_of_architectures"),
    ),
    Mutant(
        "a gradient that passes where nothing was positive",
        _POINTWISE,
        "if (norm(own[k]) > 0) through",
        "if (MUTANT || norm(own[k]) > 0) through",
        _MATRIX,
    ),
    Mutant(
        "the residual's gradient left out",
        _POINTWISE,
        "const bool through = choice.passes_input();",
        "const bool through = choice.passes_input() && !MUTANT;",
        _MATRIX,
    ),
    Mutant(
        "shared images get the last architecture's gradient",
        _POINTWISE,
        "const bool add = choice.index > 0 &&",
        "const bool add = !MUTANT && choice.index > 0 &&",
        _SEVERAL,
    ),
    Mutant(
        "a variance without what lies between tiles",
        _PRODUCT,
        "squares + apart * apart * count * share;",
        "squares + (MUTANT ? 0 : apart * apart * count * share);",
        (_TEST, "-k", "emulated and one_architecture and multiples_of_16-"),
    ),
    Mutant(
        "a chunk multiplied before it is there",
        _PRODUCT,
        "    sync_block();\n    multiply_chunk<",
        "    if (!MUTANT) sync_block();\n    multiply_chunk<",
        _MATRIX,
    ),
    Mutant(
        "a column of a fragment swapped with the next",
        _PRODUCT,
        "+ lane() % 4 * 2 + c % 2;\n    if (lane() < 4)",
        "+ lane() % 4 * 2 + (MUTANT ? 1 - c % 2 : c % 2);\n    if (lane() < 4)",
        _MATRIX,
    ),
    Mutant(
        "off by one at the left halo",
        _DEPTHWISE,
        "at.x * kStride - kSize / 2,",
        "at.x * kStride - kSize / 2 + (MUTANT ? 1 : 0),",
        _MATRIX,
    ),
    Mutant(
        "a tap's gradient by the wrong row of the window",
        _DEPTHWISE,
        "tap_sums[kRow * kSize + s] += value",
        "tap_sums[(MUTANT ? kSize - 1 - kRow : kRow) * kSize + s] += value",
        _MATRIX,
    ),
    Mutant(
        "a tile loaded over one that is still read",
        _DEPTHWISE,
        "  Moments<float> all = Moments<float>::nothing();\n"
        "  each_depthwise_tile(share, t, [&](const DepthwisePlace& at) {\n    sync_block();",
        "  Moments<float> all = Moments<float>::nothing();\n"
        "  each_depthwise_tile(share, t, [&](const DepthwisePlace& at) {\n"
        "    if (!MUTANT) sync_block();",
        (_TEST, "-k", "emulated and multiples_of_16"),
    ),
    Mutant(
        "the last pixel of a range left out of the weights' gradient",
        _WEIGHTS,
        "return pixel + row < end &&",
        "return pixel + row < end - (MUTANT ? 1 : 0) &&",
        (_TEST, "-k", "emulated and one_architecture and multiples_of_16_evaluation"),
    ),
    Mutant(
        "repeated rows by code only",
        _CHOICE,
        "code == other.code && row == other.row;",
        "code == other.code && (MUTANT || row == other.row);",
        _IN_ORDER,
    ),
    Mutant(
        "the first of one row counted again for each",
        _GENERAL,
        "sum = add ? sum + total(a) : total(a);",
        "sum = add ? sum + total(MUTANT ? slot.first : a) : total(a);",
        _IN_ORDER,
    ),
    Mutant(
        "on the device: a later group runs the first one's choices",
        _CHOICE,
        "const int64_t index = launch.first + architecture;",
        "const int64_t index = (MUTANT ? 0 : launch.first) + architecture;",
        (_ON_DEVICE, "-k", "emulated and groups_of_architectures and 16"),
    ),
    Mutant(
        "on the device: what does not exist reads the first row",
        _CHOICE,
        "return {exists ? row : -1,",
        "return {exists ? row : MUTANT - 1,",
        (_ON_DEVICE, "-k", "emulated and does_not_exist and strided"),
    ),
    Mutant(
        "on the device: all that is kept in one place",
        _CHOICE,
        "index * launch.most_kept",
        "(MUTANT ? 0 : index) * launch.most_kept",
        (_ON_DEVICE, "-k", "emulated and equals_by_value and residual-six"),
    ),
    Mutant(
        "on the device: grids of the smaller bottleneck",
        _LAUNCHES,
        "known ? group_.picks[i].code : i",
        "known ? group_.picks[i].code : MUTANT ? 1 : i",
        (_ON_DEVICE, "-k", "emulated and equals_by_value and multiples_of_16_strided-six"),
    ),
    Mutant(
        "on the device: no launch for what nothing gives",
        _LAUNCHES,
        "group_.measure || group_.call.chosen;",
        "group_.measure || (group_.call.chosen && !MUTANT);",
        (_ON_DEVICE, "-k", "emulated and does_not_exist and strided-False"),
    ),
    Mutant(
        "on the device: a row in the slots of two architectures",
        _GENERAL,
        "live && reads ? choice.row",
        "(live || MUTANT) && reads ? choice.row",
        (_ON_DEVICE, "-k", "emulated and slots_of_no_row"),
    ),
    Mutant(
        "on the device: a row that an earlier group read begins anew",
        _GENERAL,
        "      again = true;",
        "      again = !MUTANT;",
        (_ON_DEVICE, "-k", "emulated and groups_of_architectures and 6-"),
    ),
    Mutant(
        "bf16: what is kept half as far apart",
        _CHOICE,
        "static_cast<Stored*>(p.kept) + kept_before;",
        "static_cast<Stored*>(p.kept) + kept_before * (MUTANT ? sizeof(Stored) : 4) / 4;",
        (_BF16, "-k", "emulated and as_close_as_stock and multiples_of_16-True"),
    ),
    Mutant(
        "bf16: the images' gradient rounded before the residual's is added, too",
        _POINTWISE,
        "if (through) add_pair(pair, choice.grad_output() + at);",
        "if (MUTANT) store_lanes(to, pair), pair = load_lanes<2>(to);\n"
        "    if (through) add_pair(pair, choice.grad_output() + at);",
        (_BF16, "-k", "emulated and small_integers and 16"),
    ),
)
