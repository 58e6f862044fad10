#pragma once
#include "../parts/tile_weight.cuh"
#include "gather_conv.cuh"

// The gradient of gather_conv's weights for channels that are multiples of 16, in float32 and
// bf16 and for 1 x 1 and 3 x 3 taps: products of matrices by the tiles of parts/tile_weight.cuh.
namespace cwkernels {

struct GatherWeightParams {
  const void* input;
  const void* gradient;
  float* partials;  // [architectures of this launch, blocks, K, C, R, R]
  PixelStrides input_strides, gradient_strides;
  int input_height, input_width, inputs, outputs;
  int64_t values;  // of shared memory
  int64_t first, blocks;
  Window window;
  Tiles tiles;
};

// Grid: (blocks x chunks of outputs x chunks of inputs, architectures), 256 threads. A block goes
// through the tiles with its number, and leaves its sums in its place of the workspace. Shared
// memory for 32 x 32 channels and 3 x 3 taps: 128 gradients, 20.5 KB, 180 pixels, 28.8 KB, and the
// table. A warp's step of 8 pixels reads 4 + 36 values a lane for 18 mma: bound by shared memory,
// at half of what the matrix units do.
template <class Precision, class Split>
__global__ void __launch_bounds__(Split::kThreads, Split::resident(Precision::kProducts))
    gather_conv_weight_tile(GatherWeightParams p) {
  using Stored = typename Precision::Stored;
  wait_for_previous();
  allow_next();
  Shared shared;
  float* gradients = shared.take<float>(static_cast<size_t>(p.values));
  int* table = shared.take<int>(Split::kPixels);
  float* source = gradients + Split::gradient_values();
  const int input_chunks = p.inputs / Split::kInputs;
  const int output_chunks = p.outputs / Split::kOutputs;
  const int input = static_cast<int>(blockIdx.x % input_chunks) * Split::kInputs;
  const int output = static_cast<int>(blockIdx.x / input_chunks % output_chunks) * Split::kOutputs;
  const int64_t block = blockIdx.x / (input_chunks * output_chunks), a = blockIdx.y;
  const LoadPixel<Stored> load_input{
      static_cast<const Stored*>(p.input) + (p.first + a) * p.input_strides.architecture,
      p.input_strides};
  const LoadPixel<Stored> load_gradient{
      static_cast<const Stored*>(p.gradient) + (p.first + a) * p.gradient_strides.architecture,
      p.gradient_strides};
  fill_source_table<Split>(p.tiles, p.window, table);
  typename Split::Sums sums;
#pragma unroll
  for (int tap = 0; tap < Split::kTaps; ++tap) sums.taps[tap].clear();
  for (int64_t number = block; number < p.tiles.count; number += p.blocks) {
    const TilePlace tile = tile_place(p.tiles, number);
    sync_block();
    load_gradients<Precision, Split>(p.tiles, tile, output, load_gradient, gradients);
    load_inputs<Precision, Split>(p.tiles, p.window, tile, p.input_height, p.input_width, input,
                                  load_input, source);
    sync_block();
    multiply_weights<Precision, Split>(sums, p.tiles, table, gradients, source);
  }
  float* to = p.partials + (a * p.blocks + block) * p.outputs * p.inputs * Split::kTaps;
  merge_weights<Split>(sums, gradients, [&](int k, int c, int tap, float value) {
    to[(static_cast<int64_t>(output + k) * p.inputs + input + c) * Split::kTaps + tap] = value;
  });
}

// --- On the host ---------------------------------------------------------------------------------

static_assert(Weight32::values(180) * sizeof(float) == 20480 + 28800, "the prose above");

inline int64_t weight_values(const GatherConvParams& p) {
  return p.output_channels * p.input_channels * p.kernel_size * p.kernel_size;
}

inline bool gather_weight_is_tiled(const GatherConvParams& p) {
  return gather_conv_is_tiled(p) && p.kernel_size <= 3 &&
         weight_values(p) * static_cast<int64_t>(sizeof(float)) <= kWeightWorkspace;
}

// f(split) for the channels and taps of a call.
template <class F>
auto with_weight_split(const GatherConvParams& p, const F& f) {
  const bool wide = p.input_channels % 32 == 0 && p.output_channels % 32 == 0;
  if (p.kernel_size == 1) return wide ? f(Weight32Pointwise{}) : f(Weight16Pointwise{});
  return wide ? f(Weight32{}) : f(Weight16{});
}

// How the gradient is shared out. None of it depends on the architectures.
template <class Split>
GatherWeightParams make_gather_weight(const GatherConvParams& p) {
  GatherWeightParams t{};
  t.input = p.input;
  t.gradient = p.output;
  t.partials = static_cast<float*>(p.workspace);
  t.input_strides = p.input_strides;
  t.gradient_strides = p.output_strides;
  t.input_height = static_cast<int>(p.input_height);
  t.input_width = static_cast<int>(p.input_width);
  t.inputs = static_cast<int>(p.input_channels);
  t.outputs = static_cast<int>(p.output_channels);
  t.window = forward_window(static_cast<int>(p.kernel_size), static_cast<int>(p.stride));
  t.tiles = make_tiles(t.window, p.images, p.output_height, p.output_width, Split::kPixels,
                       kWeightSourceMost);
  t.values = Split::values(t.tiles.source_pixels());
  t.blocks =
      weight_blocks<Split>(p.output_channels, p.input_channels, t.tiles.count, weight_values(p));
  return t;
}

// Architectures of a launch: their partial results fit the workspace.
inline int64_t gather_weights_together(const GatherConvParams& p, int64_t blocks) {
  const int64_t bytes = blocks * weight_values(p) * static_cast<int64_t>(sizeof(float));
  return min(min(kWeightWorkspace / bytes, kWeightSumMost), p.architectures);
}

template <class Precision, class Split>
int launch_gather_weight(const GatherConvParams& p, void* stream) {
  GatherWeightParams t = make_gather_weight<Split>(p);
  const int64_t chunks = weight_chunks<Split>(p.output_channels, p.input_channels);
  const size_t shared =
      shared_bytes<float>(static_cast<size_t>(t.values)) + shared_bytes<int>(Split::kPixels);
  const int64_t together = gather_weights_together(p, t.blocks);
  for (t.first = 0; t.first < p.architectures; t.first += together) {
    const GatherConvLaunch part = gather_conv_part(p, t.first, together);
    if (const int error =
            launch(gather_conv_weight_tile<Precision, Split>, {t.blocks * chunks, part.count},
                   Split::kThreads, shared, stream, t)) {
      return error;
    }
    WeightSum<float> sum{};
    sum.partials = t.partials;
    sum.target = static_cast<float*>(p.weight_grad);
    sum.values = weight_values(p);
    sum.parts = t.blocks;
    sum.count = part.count;
    sum.opens = part.opens;
    for (int64_t a = 0; a < part.count; ++a) sum.slots[a] = part.chosen[a];
    if (const int error = launch_weight_sum(sum, stream)) return error;
  }
  return 0;
}

template <class Precision>
int launch_gather_weight(const GatherConvParams& p, void* stream) {
  return with_weight_split(
      p, [&](auto split) { return launch_gather_weight<Precision, decltype(split)>(p, stream); });
}

inline int64_t gather_weight_workspace(const GatherConvParams& p) {
  return with_weight_split(p, [&](auto split) {
    const int64_t blocks = make_gather_weight<decltype(split)>(p).blocks;
    return gather_weights_together(p, blocks) * blocks * weight_values(p) *
           static_cast<int64_t>(sizeof(float));
  });
}

}  // namespace cwkernels
