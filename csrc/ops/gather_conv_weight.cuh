#pragma once
#include "../parts/tile_weight.cuh"
#include "gather_conv.cuh"

// The gradient of gather_conv's weights for channels that are multiples of 16, in float32 and for
// 1 x 1 and 3 x 3 taps: products of matrices by the tiles of parts/tile_weight.cuh.
namespace cwkernels {

struct GatherWeightParams {
  const float* input;
  const float* gradient;
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
__global__ void __launch_bounds__(Split::kThreads, 2)
    gather_conv_weight_tile(GatherWeightParams p) {
  wait_for_previous();
  Shared shared;
  float* gradients = shared.take<float>(static_cast<size_t>(p.values));
  int* table = shared.take<int>(Split::kPixels);
  float* source = gradients + Split::gradient_values();
  const int input_chunks = p.inputs / Split::kInputs;
  const int output_chunks = p.outputs / Split::kOutputs;
  const int input = static_cast<int>(blockIdx.x % input_chunks) * Split::kInputs;
  const int output = static_cast<int>(blockIdx.x / input_chunks % output_chunks) * Split::kOutputs;
  const int64_t block = blockIdx.x / (input_chunks * output_chunks), a = blockIdx.y;
  const LoadPixel load_input{p.input + (p.first + a) * p.input_strides.architecture,
                             p.input_strides};
  const LoadPixel load_gradient{p.gradient + (p.first + a) * p.gradient_strides.architecture,
                                p.gradient_strides};
  fill_source_table<Split>(p.tiles, p.window, table);
  typename Split::Sums sums;
#pragma unroll
  for (int tap = 0; tap < Split::kTaps; ++tap) sums.taps[tap].clear();
  for (int64_t number = block; number < p.tiles.count; number += p.blocks) {
    const TilePlace tile = tile_place(p.tiles, number);
    sync_block();
    load_gradients<Precision, Split>(p.tiles, tile, output, load_gradient, gradients);
    load_source<Precision, Split::kInputs, Split::kInputStride>(
        p.tiles, p.window, tile, p.input_height, p.input_width, input, load_input, source);
    sync_block();
    multiply_weights<Precision, Split>(sums, p.tiles, table, gradients, source);
  }
  float* to = p.partials + (a * p.blocks + block) * p.outputs * p.inputs * Split::kTaps;
  merge_weights<Split>(sums, gradients, [&](int k, int c, int tap, float value) {
    to[(static_cast<int64_t>(output + k) * p.inputs + input + c) * Split::kTaps + tap] = value;
  });
}

// --- On the host ---------------------------------------------------------------------------------

// 9 x 33 source pixels of 4 x 16 outputs at stride 2; with 32 channels of each 47.5 KB.
constexpr int kWeightSourceMost = 320;
constexpr int64_t kWeightWorkspace = int64_t{32} << 20;

using Weight16 = WeightSplit<1, 1, 8, 1, 2, 3>;
using Weight32 = WeightSplit<2, 2, 2, 1, 2, 3>;
using Weight16Pointwise = WeightSplit<1, 1, 8, 1, 2, 1>;
using Weight32Pointwise = WeightSplit<1, 1, 8, 2, 4, 1>;
static_assert(Weight32::values(180) * sizeof(float) == 20480 + 28800, "the prose above");
static_assert(Weight32::values(kWeightSourceMost) * sizeof(float) + 512 <= kLeastShared);

inline int64_t weight_values(const GatherConvParams& p) {
  return p.output_channels * p.input_channels * p.kernel_size * p.kernel_size;
}

inline bool gather_weight_is_tiled(const GatherConvParams& p) {
  return gather_conv_is_tiled(p) && p.kernel_size <= 3 &&
         weight_values(p) * static_cast<int64_t>(sizeof(float)) <= kWeightWorkspace;
}

// How the gradient is shared out. None of it depends on the number of architectures, nor on which
// of them a launch has.
struct GatherWeightTile {
  GatherWeightParams params;
  bool wide;         // 32 x 32 channels a block, otherwise 16 x 16
  int64_t chunks;    // blocks for each tile
  int64_t together;  // architectures of a launch
};

inline GatherWeightTile make_weight_tile(const GatherConvParams& p) {
  GatherWeightTile tile{};
  GatherWeightParams& t = tile.params;
  t.input = static_cast<const float*>(p.input);
  t.gradient = static_cast<const float*>(p.output);
  t.partials = static_cast<float*>(p.workspace);
  t.input_strides = p.input_strides;
  t.gradient_strides = p.output_strides;
  t.input_height = static_cast<int>(p.input_height);
  t.input_width = static_cast<int>(p.input_width);
  t.inputs = static_cast<int>(p.input_channels);
  t.outputs = static_cast<int>(p.output_channels);
  t.window = forward_window(static_cast<int>(p.kernel_size), static_cast<int>(p.stride));
  t.tiles = make_tiles(t.window, p.images, p.output_height, p.output_width, Weight16::kPixels,
                       kWeightSourceMost);
  tile.wide = t.inputs % 32 == 0 && t.outputs % 32 == 0;
  const int side = tile.wide ? 32 : 16;
  tile.chunks = t.inputs / side * (t.outputs / side);
  const int64_t bytes = weight_values(p) * static_cast<int64_t>(sizeof(float));
  const int64_t resident = max(2 * current_device().processors / tile.chunks, int64_t{1});
  t.blocks = min(min(t.tiles.count, resident), kWeightWorkspace / bytes);
  tile.together = min(min(kWeightWorkspace / (t.blocks * bytes), kWeightSumMost), p.architectures);
  return tile;
}

template <class Precision, class Split>
int launch_weight_tile(const GatherWeightTile& tile, int64_t architectures, void* stream) {
  GatherWeightParams params = tile.params;
  params.values = Split::values(params.tiles.source_pixels());
  const size_t shared =
      shared_bytes<float>(static_cast<size_t>(params.values)) + shared_bytes<int>(Split::kPixels);
  return launch(gather_conv_weight_tile<Precision, Split>,
                {params.blocks * tile.chunks, architectures}, Split::kThreads, shared, stream,
                params);
}

template <class Precision>
int launch_weight_tile(const GatherConvParams& p, void* stream) {
  GatherWeightTile tile = make_weight_tile(p);
  for (int64_t first = 0; first < p.architectures; first += tile.together) {
    const GatherConvLaunch part = gather_conv_part(p, first, tile.together);
    tile.params.first = first;
    int error = 0;
    if (p.kernel_size == 1) {
      error = tile.wide
                  ? launch_weight_tile<Precision, Weight32Pointwise>(tile, part.count, stream)
                  : launch_weight_tile<Precision, Weight16Pointwise>(tile, part.count, stream);
    } else {
      error = tile.wide ? launch_weight_tile<Precision, Weight32>(tile, part.count, stream)
                        : launch_weight_tile<Precision, Weight16>(tile, part.count, stream);
    }
    if (error != 0) return error;
    WeightSum<float> sum{tile.params.partials,
                         static_cast<float*>(p.weight_grad),
                         weight_values(p),
                         tile.params.blocks,
                         part.count,
                         part.opens,
                         {}};
    for (int64_t a = 0; a < part.count; ++a) sum.slots[a] = part.chosen[a];
    if (const int failed = launch_weight_sum(sum, stream)) return failed;
  }
  return 0;
}

inline int64_t weight_tile_workspace(const GatherConvParams& p) {
  const GatherWeightTile tile = make_weight_tile(p);
  return tile.together * tile.params.blocks * weight_values(p) *
         static_cast<int64_t>(sizeof(float));
}

}  // namespace cwkernels
