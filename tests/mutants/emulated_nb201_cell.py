"""Planted bugs of nb201_cell's kernels."""

from mutant import Mutant

_CELL = "csrc/parts/cell.cuh"
_TILE = "csrc/parts/cell_tile.cuh"
_FORWARD = "csrc/ops/nb201_cell.cuh"
_BACKWARD = "csrc/ops/nb201_cell_backward.cuh"
_WEIGHTS = "csrc/parts/cell_weight.cuh"
_GENERAL = "csrc/ops/nb201_cell_general.cuh"
_GENERAL_BACKWARD = "csrc/ops/nb201_cell_general_backward.cuh"
_PLAN = "csrc/parts/cell_resolve.cuh"
_JOBS = "csrc/parts/cell_jobs.cuh"
_TEST = "tests/ops/test_nb201_cell.py"
_ON_DEVICE = "tests/ops/test_nb201_cell_on_device.py"
_EVERY = (_TEST, "-k", "emulated and every_kind and training")
_BF16 = "tests/ops/test_nb201_cell_bf16.py"
_SCHEDULES = ("tests/ops/test_nb201_cell_launches.py", "-k", "any_schedule")

MUTANTS = (
    Mutant(
        "a convolution reads its node without ReLU",
        _FORWARD,
        "rectified ? rectify(values[b][i]) : values[b][i];",
        "rectified && !MUTANT ? rectify(values[b][i]) : values[b][i];",
        _EVERY,
    ),
    Mutant(
        "the rim of a tile shifted by one",
        _TILE,
        "const int y = tile.y + at.y - 1, x = tile.x + at.x - 1;",
        "const int y = tile.y + at.y - 1 + MUTANT, x = tile.x + at.x - 1;",
        _EVERY,
    ),
    Mutant(
        "weights loaded while others still multiply by the ones before",
        _TILE,
        "if (!p.resident) {\n      sync_block();",
        "if (!p.resident) {\n      if (!MUTANT) sync_block();",
        (_TEST, "-k", "emulated and every_kind and two_vectors"),
    ),
    Mutant(
        "statistics of the first convolution for all that leave a node",
        _CELL,
        ".sum_at_once(slot, leaving_place(e) * l.p.channels + c);",
        ".sum_at_once(slot, (MUTANT ? 0 : leaving_place(e)) * l.p.channels + c);",
        _EVERY,
    ),
    Mutant(
        "each architecture reads the weights of row 0",
        _CELL,
        "edge(e).row * weight_size(e);",
        "(MUTANT ? 0 : edge(e).row) * weight_size(e);",
        _EVERY,
    ),
    Mutant(
        "in evaluation an edge overwrites what others gave to its node",
        _FORWARD,
        "const bool begins = cell_begins(cell.own, e), normed",
        "const bool begins = MUTANT || cell_begins(cell.own, e), normed",
        (_TEST, "-k", "emulated and keeps_nothing"),
    ),
    Mutant(
        "gradients pass a ReLU that was not positive",
        _BACKWARD,
        "pair[0] = value[0] <= 0 ? 0.0f : pair[0];",
        "pair[0] = value[0] <= 0 && !MUTANT ? 0.0f : pair[0];",
        _EVERY,
    ),
    Mutant(
        "the gradients of a row that several architectures read: the first one's alone",
        _WEIGHTS,
        "if (!(job.readers >> slot & 1)) continue;",
        "if (!(job.readers >> slot & 1) || (MUTANT && slot != job.first)) continue;",
        (_TEST, "-k", "emulated and summed_in_order"),
    ),
    Mutant(
        "images that architectures share get the gradient of the last one",
        _BACKWARD,
        "const bool add = p.l.p.shared && cell.a > 0;",
        "const bool add = p.l.p.shared && cell.a > 0 && !MUTANT;",
        _EVERY,
    ),
    Mutant(
        "the average pool divides by nine at the border",
        _CELL,
        "if (l.p.count_include_pad) return 9;",
        "if (l.p.count_include_pad || MUTANT) return 9;",
        _EVERY,
    ),
    Mutant(
        "the general kernel's convolution without its last channel",
        _GENERAL,
        "for (int64_t c = 0; c < channels; ++c) {\n      const T own",
        "for (int64_t c = 0; c < channels - MUTANT; ++c) {\n      const T own",
        _EVERY,
    ),
    Mutant(
        "a row out of range on the device is row 0",
        _PLAN,
        "plan.edges[e].code = valid ?",
        "plan.edges[e].code = valid || (MUTANT && code > 0 && code < 5) ?",
        (_ON_DEVICE, "-k", "emulated and out_of_range"),
    ),
    Mutant(
        "architectures on the device share what they store",
        _PLAN,
        "(kept ? a : a % kCellMost)",
        "(MUTANT ? 0 : kept ? a : a % kCellMost)",
        (_ON_DEVICE, "-k", "emulated and equals_by_value and general"),
    ),
    Mutant(
        "on the device the gradient of a row is that of its first reader's part",
        _CELL,
        "chosen ? slot * kCellEdges + e :",
        "chosen ? (MUTANT ? 0 : slot) * kCellEdges + e :",
        (_ON_DEVICE, "-k", "emulated and equals_by_value and tiles"),
    ),
    Mutant(
        "a row that two slots of a gradient name",
        _JOBS,
        "own.bank == bank % l.p.banks_per_edge && !own.again;",
        "own.bank == bank % l.p.banks_per_edge && (MUTANT || !own.again);",
        (_ON_DEVICE, "-k", "emulated and a_slot_for_each"),
    ),
    Mutant(
        "launches that the choice on the device makes empty are left out",
        _FORWARD,
        "bool works = l.chosen && (l.node < 3 || !is_fused(l.p));",
        "bool works = l.chosen && !MUTANT && (l.node < 3 || !is_fused(l.p));",
        (_ON_DEVICE, "-k", "launches_do_not_depend"),
    ),
    Mutant(
        "outputs in bfloat16 lose the bits that rounding would look at",
        _FORWARD,
        "store_pair(to + outputs.offsets[i] + n, own[0], own[1]);",
        "const uint32_t bits = float_to_bits(own[0]) & (MUTANT ? 0xffff0000u : 0xffffffffu);\n"
        "store_pair(to + outputs.offsets[i] + n, bits_to_float(bits), own[1]);",
        (_BF16, "-k", "rounded_once and 16"),
    ),
    Mutant(
        "so does the general kernel's gradient of the input",
        _GENERAL_BACKWARD,
        "load_stored(to) + own : own);",
        "load_stored(to) + own : MUTANT ? T(to_float(bf16{static_cast<uint16_t>(\n"
        "            float_to_bits(static_cast<float>(own)) >> 16)})) : own);",
        (_BF16, "-k", "rounded_once and 5"),
    ),
    Mutant(
        "the stride of what is kept counts floats where bfloat16 is stored",
        _CELL,
        "static_cast<Stored*>(p.kept) + place * size()",
        "static_cast<Stored*>(p.kept) + place * size() * (MUTANT ? sizeof(Stored) : 4) / 4",
        (_BF16, "-k", "emulated and as_close"),
    ),
)
