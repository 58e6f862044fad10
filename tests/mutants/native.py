"""Planted bugs of the kernels: chosen at run time, so all of them cost one build."""

from mutant import Mutant

_PLAN = "csrc/parts/conv_plan.h"
_DENSE = "csrc/parts/conv_dense.h"
_DENSE_WEIGHT = "csrc/parts/conv_dense_weight.h"
_WINOGRAD = "csrc/parts/winograd.h"
_WINOGRAD_TRANSFORM = "csrc/parts/winograd_transform.h"
_WINOGRAD_WEIGHT = "csrc/parts/winograd_weight.h"
_CONV_WINOGRAD = "csrc/parts/conv_winograd.h"
_DEPTHWISE = "csrc/parts/conv_depthwise.h"
_DEPTHWISE_WEIGHT = "csrc/parts/conv_depthwise_weight.h"
_ARENA = "csrc/binding/arena.cpp"
_ARENA_TESTS = ("tests/ops/test_workspace.py", "-k", "large or random_lives or release")
_NORM_ADD = "csrc/ops/norm_add_cpu.cpp"
_STATISTICS = "csrc/ops/update_statistics_cpu.cpp"
_STATISTICS_TESTS = ("tests/ops/test_update_statistics.py",)
_SGD = "csrc/ops/sgd_cpu.cpp"
_SGD_TESTS = ("tests/ops/test_sgd.py",)
_BATCH = "csrc/ops/batch_cpu.cpp"
_BATCH_TESTS = ("tests/ops/test_batch.py",)
_NORM_ADD_TESTS = ("tests/ops/test_norm_add.py",)
_BOTTLENECK = "csrc/parts/bottleneck.h"
_BOTTLENECK_BACKWARD = "csrc/parts/bottleneck_backward.h"
_LAYER = "tests/ops/test_inverted_bottleneck.py"
_CELL = "csrc/parts/cell.h"
_CELL_FORWARD = "csrc/ops/nb201_cell_cpu.cpp"
_CELL_BACKWARD = "csrc/ops/nb201_cell_backward_cpu.cpp"
_CELL_TESTS = ("tests/ops/test_nb201_cell.py", "-k", "several or precisions or summed")
_CONV_NORM = "csrc/ops/conv_norm_cpu.cpp"
_CONV_NORM_TESTS = ("tests/ops/test_conv_norm.py", "-k", "stock_torch")
_LAYER_EXACT = (_LAYER, "-k", "small_integers_are_exact")
_EXACT = ("tests/ops/test_gather_conv.py", "-k", "small_integers_are_exact")
_CLOSE = ("tests/ops/test_winograd.py", "-k", "error_is_within_the_table")

NATIVE = (
    Mutant(
        "flipped tap",
        _PLAN,
        "plane.weight_index[t] = t;",
        "plane.weight_index[t] = MUTANT ? plane.taps() - 1 - t : t;",
        _EXACT,
    ),
    Mutant(
        "off-by-one halo",
        _PLAN,
        "plane.source_step + plane.first_row;",
        "plane.source_step + plane.first_row + MUTANT;",
        _EXACT,
    ),
    Mutant(
        "gradient of the input through taps that are not flipped",
        _PLAN,
        "const int64_t shift = parity + p.kernel_size / 2 - k;",
        "const int64_t shift = parity + (p.kernel_size / 2 - k) * (MUTANT ? -1 : 1);",
        _EXACT,
    ),
    Mutant(
        "wrong set stride",
        _DENSE,
        "p_.rows[a] * p_.output_channels * p_.input_channels * kernel;",
        "p_.rows[a] * (p_.output_channels * p_.input_channels * kernel - MUTANT);",
        _EXACT,
    ),
    Mutant(
        "wrong row of a repeated architecture",
        _DEPTHWISE,
        "p_.rows[a] * p_.output_channels * taps();",
        "p_.rows[MUTANT ? 0 : a] * p_.output_channels * taps();",
        _EXACT,
    ),
    Mutant(
        "gradients of shared images overwrite each other",
        _DENSE,
        "store(to, accumulate ? load(to) + acc[v] : acc[v]);",
        "store(to, accumulate && !MUTANT ? load(to) + acc[v] : acc[v]);",
        _EXACT,
    ),
    Mutant(
        "gradients of a repeated row overwrite each other",
        _DENSE_WEIGHT,
        "to[i] = again ? to[i]",
        "to[i] = again && !MUTANT ? to[i]",
        _EXACT,
    ),
    Mutant(
        "the last chunk of images forgotten",
        _DEPTHWISE_WEIGHT,
        "chunk < chunks_; ++chunk) total += sum",
        "chunk < chunks_ - MUTANT; ++chunk) total += sum",
        _EXACT,
    ),
    Mutant(
        "stale workspace",
        _DENSE_WEIGHT,
        "    clear(partial, partial_size_);",
        "    if (!MUTANT) clear(partial, partial_size_);",
        _EXACT,
    ),
    Mutant(
        "a tail that takes its channels from another",
        _DENSE_WEIGHT,
        "k < channels ? target[list.target[q] + k] : T(0);",
        "k < channels ? target[list.target[q] + (MUTANT ? 0 : k)] : T(0);",
        _EXACT,
    ),
    Mutant(
        "a tap of a row that takes its neighbour's weights",
        _DENSE,
        "weight[k][v] = load(panel + ((k * channels + c)",
        "weight[k][v] = load(panel + (((MUTANT ? 0 : int{k}) * channels + c)",
        _EXACT,
    ),
    Mutant(
        "the last pixels of a row forgotten",  # two, as the very last one is padding
        _DENSE_WEIGHT,
        "x < count + 2; ++x) edge(x);",
        "x < count + 2 - 2 * MUTANT; ++x) edge(x);",
        _EXACT,
    ),
    Mutant(
        "stride ignored",
        _PLAN,
        "plane.source_step = p.stride;",
        "plane.source_step = MUTANT ? 1 : p.stride;",
        _EXACT,
    ),
    Mutant(
        "an output interpolated with the other pair's square",
        _WINOGRAD_TRANSFORM,
        "second = sum_a * Points::a2",
        "second = sum_a * (MUTANT ? Points::b2 : Points::a2)",
        _CLOSE,
    ),
    Mutant(
        "the last row of a cut tile not written",
        _WINOGRAD,
        "if (i < rows && j < columns) write",
        "if (i < rows - MUTANT && j < columns) write",
        _CLOSE,
    ),
    Mutant(
        "transformed weights that are not flipped",
        _WINOGRAD,
        "transposed ? kWeightTaps - 1 - t : t",
        "transposed && !MUTANT ? kWeightTaps - 1 - t : t",
        _CLOSE,
    ),
    Mutant(
        "gradients of shared images overwrite each other in tiles",
        _WINOGRAD,
        "store(pixel, Accumulate ? load(pixel)",
        "store(pixel, Accumulate && !MUTANT ? load(pixel)",
        _CLOSE,
    ),
    Mutant(
        "the last tile of a block forgotten",
        _WINOGRAD_WEIGHT,
        "const int64_t count = min(tiles_, tiles - first);",
        "const int64_t count = min(tiles_, tiles - first) - MUTANT;",
        _CLOSE,
    ),
    Mutant(
        "a channel's sums written over another's weights",
        _WINOGRAD_WEIGHT,
        "store(square[c * kWeightTaps + t], v)",
        "store(square[(MUTANT ? c ^ 1 : c) * kWeightTaps + t], v)",
        _CLOSE,
    ),
    Mutant(
        "a band without its neighbours",
        _CONV_WINOGRAD,
        "const int64_t high = halo ?",
        "const int64_t high = halo && !MUTANT ?",
        _CLOSE,
    ),
    Mutant(
        "the gradient of a batch norm's input without that through its statistics",
        _NORM_ADD,
        "scale(), p_.eps, p_.training, sums_,",
        "scale(), p_.eps, p_.training && !MUTANT, sums_,",
        _NORM_ADD_TESTS,
    ),
    Mutant(
        "the shortcut's gradient not rectified",
        _NORM_ADD,
        "store_channels(grad_shortcut + at + c, passed, left);",
        "store_channels(grad_shortcut + at + c,"
        " MUTANT ? load_channels(gradient.grad + at + c, left) : passed, left);",
        _NORM_ADD_TESTS,
    ),
    Mutant(
        "the last block of pixels left out of a batch norm's sums",
        _NORM_ADD,
        "summed ? blocks_ : 0,",
        "summed ? blocks_ - MUTANT : 0,",
        _NORM_ADD_TESTS,
    ),
    Mutant(
        "scale's gradients of several architectures overwrite each other",
        _NORM_ADD,
        "grad_scale[c] = a == 0 ?",
        "grad_scale[c] = a == 0 || MUTANT ?",
        _NORM_ADD_TESTS,
    ),
    Mutant(
        "an expanded gradient read as if it were dense",
        _NORM_ADD,
        "if (!grad_is_dense())",
        "if (!grad_is_dense() && !MUTANT)",
        _NORM_ADD_TESTS,
    ),
    Mutant(
        "biased running variance in the kernel",
        _STATISTICS,
        "(measured[c] * scale - old)",
        "(measured[c] * (MUTANT ? 1 : scale) - old)",
        _STATISTICS_TESTS,
    ),
    Mutant(
        "the exact average of one batch too many",
        _STATISTICS,
        "1 / static_cast<double>(batches)",
        "1 / static_cast<double>(batches + MUTANT)",
        _STATISTICS_TESTS,
    ),
    Mutant(
        "statistics of the first architecture for all",
        _STATISTICS,
        "+ a * target.statistics_stride;",
        "+ (MUTANT ? 0 : a) * target.statistics_stride;",
        _STATISTICS_TESTS,
    ),
    Mutant(
        "statistics written to row 0 by the kernel",
        _STATISTICS,
        "const int64_t at = rows[a] * channels;",
        "const int64_t at = MUTANT ? 0 : rows[a] * channels;",
        _STATISTICS_TESTS,
    ),
    Mutant(
        "the last gradient of a repeated row forgotten",
        _SGD,
        "for (int64_t e = 1; e < count; ++e)",
        "for (int64_t e = 1; e < count - MUTANT; ++e)",
        _SGD_TESTS,
    ),
    Mutant(
        "a momentum for all rows that is not theirs",
        _SGD,
        "(target.shared_buffer ? 0 : at), begin, end);",
        "(target.shared_buffer || MUTANT ? 0 : at), begin, end);",
        _SGD_TESTS,
    ),
    Mutant(
        "the end of a row, less than a vector, not moved",
        _SGD,
        "if (i == end) return;",
        "if (i == end || MUTANT) return;",
        _SGD_TESTS,
    ),
    Mutant(
        "the options of the first group for all",
        "csrc/binding/sgd_item.h",
        "return options_[of(i)];",
        "return options_[MUTANT ? 0 : of(i)];",
        _SGD_TESTS,
    ),
    Mutant(
        "no weight decay",
        _SGD,
        "if (rates.weight_decay != 0)",
        "if (rates.weight_decay != 0 && !MUTANT)",
        _SGD_TESTS,
    ),
    Mutant(
        "mirrored images that are not shifted",
        _BATCH,
        "table[from[width - 1 + right - x]]",
        "table[from[width - 1 + (MUTANT ? 0 : right) - x]]",
        _BATCH_TESTS,
    ),
    Mutant(
        "black that is not normalised",
        _BATCH,
        "for (; x < begin; ++x) to[x * channels] = table[0];",
        "for (; x < begin; ++x) to[x * channels] = MUTANT ? 0.0f : table[0];",
        _BATCH_TESTS,
    ),
    Mutant(
        "the last images of a batch forgotten",
        _BATCH,
        "min((task + 1) * kTaskImages, p.count);",
        "min((task + 1) * kTaskImages, p.count - MUTANT);",
        _BATCH_TESTS,
    ),
    Mutant(
        "a bottleneck's row of a repeated architecture",
        _BOTTLENECK,
        "static_cast<const T*>(p.weights[bank(place)]) + row * weight_size(place);",
        "static_cast<const T*>(p.weights[bank(place)]) + (MUTANT ? 0 : row) * weight_size(place);",
        _LAYER_EXACT,
    ),
    Mutant(
        "gradient without the residual",
        _BOTTLENECK_BACKWARD,
        "if (choice.residual) value += load_channels(choice.grad_output()",
        "if (choice.residual && !MUTANT) value += load_channels(choice.grad_output()",
        _LAYER_EXACT,
    ),
    Mutant(
        "a gradient that passes where nothing was positive",
        "csrc/parts/depthwise_gradient.h",
        "load(value + v * value_plane) <= Vector<T>{}",
        "load(value + v * value_plane) <= Vector<T>{} - broadcast(static_cast<T>(MUTANT))",
        _LAYER_EXACT,
    ),
    Mutant(
        "a bottleneck's gradients of a repeated row overwrite each other",
        "csrc/parts/pointwise_gradient.h",
        "if (again) total = load_channels",
        "if (again && !MUTANT) total = load_channels",
        _LAYER_EXACT,
    ),
    Mutant(
        "taps of the other parity at stride 2",
        "csrc/parts/depthwise_rows.h",
        "for (int64_t r = (y + kBorder) % 2;",
        "for (int64_t r = (y + kBorder + MUTANT) % 2;",
        _LAYER_EXACT,
    ),
    Mutant(
        "dropped ReLU in evaluation",
        "csrc/parts/bottleneck_evaluation.h",
        "store(patch + p * pitch, rectify<T>(norm(load(tile + p * kLanes<T>))));",
        "const Vector<T> value = norm(load(tile + p * kLanes<T>));\n"
        "    store(patch + p * pitch, MUTANT ? value : rectify<T>(value));",
        (_LAYER, "-k", "without_gradients"),
    ),
    Mutant(
        "biased count in a batch norm's gradient",
        _BOTTLENECK_BACKWARD,
        "sums, static_cast<double>(pixels), channels,",
        "sums, static_cast<double>(pixels - MUTANT), channels,",
        (_LAYER, "-k", "one_architecture"),
    ),
    Mutant(
        "a variance about something else than the mean",
        "csrc/parts/measure.h",
        "total - rest * rest / count",
        "MUTANT ? total : total - rest * rest / count",
        (_LAYER, "-k", "one_architecture"),
    ),
    Mutant(
        "dropped ReLU",
        _CELL_FORWARD,
        "if constexpr (kRectified) {",
        "if (kRectified && !MUTANT) {",
        _CELL_TESTS,
    ),
    Mutant(
        "gradient not rectified",
        _CELL_BACKWARD,
        "mask(values.data, block, to);",
        "if (!MUTANT) mask(values.data, block, to);",
        _CELL_TESTS,
    ),
    Mutant(
        "wrong set stride in a cell",
        _CELL,
        "edge.row * p.channels * p.channels * taps;",
        "edge.row * (p.channels * p.channels * taps - MUTANT);",
        _CELL_TESTS,
    ),
    Mutant(
        "a cell's gradients of a repeated row overwrite each other",
        _CELL,
        "sums.reduce(task, edge.again, to)",
        "sums.reduce(task, edge.again && !MUTANT, to)",
        _CELL_TESTS,
    ),
    Mutant(
        "a cell's gradients of a repeated row overwrite each other by Winograd",
        _CELL,
        "all.finish(partial, worker_stride, workers, again, job, to);",
        "all.finish(partial, worker_stride, workers, again && !MUTANT, job, to);",
        _CELL_TESTS,
    ),
    Mutant(
        "a cell's gradient without that through the statistics",
        _CELL_BACKWARD,
        "nullptr, p_.eps, p_.training, merged_,",
        "nullptr, p_.eps, p_.training && !MUTANT, merged_,",
        _CELL_TESTS,
    ),
    Mutant(
        "an average pool that counts nine pixels everywhere",
        "csrc/parts/average_pool.h",
        "1 + (at > 0) + (at + 1 < size)",
        "1 + (MUTANT || at > 0) + (MUTANT || at + 1 < size)",
        _CELL_TESTS,
    ),
    Mutant(
        "an average over one row twice",
        "csrc/parts/load.h",
        "own(at + row) + own(at + row + column)",
        "own(at + row) + own(at + (MUTANT ? 0 : row) + column)",
        _CONV_NORM_TESTS,
    ),
    Mutant(
        "the last row of an average's gradient forgotten",
        _CONV_NORM,
        "const bool read = y < loading_.conv.height &&",
        "const bool read = y < loading_.conv.height - MUTANT &&",
        _CONV_NORM_TESTS,
    ),
    Mutant(
        "scale's gradients of several architectures overwrite each other in conv_norm",
        _CONV_NORM,
        "(a > 0 ? *scale : T(0))",
        "(a > 0 && !MUTANT ? *scale : T(0))",
        _CONV_NORM_TESTS,
    ),
    Mutant(
        "weights' gradients of several architectures overwrite each other",
        _CONV_NORM,
        "partials.reduce(task, add, to)",
        "partials.reduce(task, add && !MUTANT, to)",
        _CONV_NORM_TESTS,
    ),
    Mutant(
        "the shortcut's gradient of the input forgotten",
        "csrc/ops/reduction_conv_cpu.cpp",
        "if (p.conv.grad_input) add(p.conv, other);",
        "if (p.conv.grad_input && !MUTANT) add(p.conv, other);",
        ("tests/ops/test_reduction_conv.py", "-k", "stock_torch"),
    ),
    Mutant(
        "memory handed out twice",
        _ARENA,
        "best->used = true;",
        "best->used = !MUTANT;",
        _ARENA_TESTS,
    ),
    Mutant(
        "memory in pieces for ever",
        _ARENA,
        "if (!previous->used) {",
        "if (!previous->used && !MUTANT) {",
        _ARENA_TESTS,
    ),
    Mutant(
        "memory in use counted as idle",
        _ARENA,
        "bytes += block.used ? 0 : block.bytes;",
        "bytes += block.used && !MUTANT ? 0 : block.bytes;",
        _ARENA_TESTS,
    ),
)

_OPTIM = "cwkernels/optim.py"
