#pragma once
#include "../parts/tile.cuh"
#include "gather_conv_general.cuh"

// gather_conv's output and the gradient of its input for channels that are multiples of 16, in
// float32 and bf16: products of matrices by the tiles of parts/tile.cuh.
namespace cwkernels {

struct GatherTileParams {
  const void* source;
  void* target;
  const float* weight;
  PixelStrides source_strides, target_strides;
  int64_t set_size;  // K C R R
  int source_height, source_width, depth, outputs;
  int inner, size;                       // C and R of the bank
  bool summed;                           // all architectures have one target
  int64_t source_values, weight_values;  // of shared memory
  ConvParts all;
  int64_t first, count;
  int64_t rows[kGatherConvMost];
};
static_assert(sizeof(GatherTileParams) <= 4096, "the parameters of a kernel end at 4 KB");

// Four channels of a pixel as they are.
template <class Stored>
struct LoadPixel {
  const Stored* from;
  PixelStrides strides;

  __device__ __forceinline__ Four operator()(int64_t image, int y, int x, int channel) const {
    return load_lanes<4>(from + conv_offset(strides, 0, image, y, x) + channel);
  }
};

// Writes pairs of channels, or adds them to what this thread wrote before.
template <class Stored>
struct StorePair {
  Stored* to;  // null: no output is there
  bool add;

  __device__ __forceinline__ void operator()(int /*fragment*/, int n, float left,
                                             float right) const {
    if (!to) return;
    using Two = Lanes<float, 2>;
    Two pair{{left, right}};
    if (add) {
      const Two before = load_lanes<2>(to + n);
      pair = {{before[0] + left, before[1] + right}};
    }
    store_lanes(to + n, pair);
  }
};

// Grid: (tiles x chunks of kOutputs channels, architectures), 256 threads. Shared memory for a 3 x
// 3 window and 64 outputs: 180 source pixels of 8 x 16 outputs, 14.1 KB, and 9 taps, 45.2 KB, so
// that two blocks fit a processor, as the registers of tf32 let them. For every 16 channels a block
// reads 11.5 KB of pixels and 36.9 KB of weights (from L2: every tile reads the same) and makes
// 1,152 mma of 1,024 products, 128 x 64 x 144: 49 flop for each byte that comes from L2.
template <class Precision, class Split, bool kTransposed>
__global__ void __launch_bounds__(Split::kThreads, Split::kResident)
    gather_conv_tile(const __grid_constant__ GatherTileParams p) {
  using Stored = typename Precision::Stored;
  wait_for_previous();
  allow_next();
  const int chunks = p.outputs / Split::kOutputs;
  int64_t number = blockIdx.x / chunks;
  const ConvPart& part = p.all.part_of(&number);
  const int output = static_cast<int>(blockIdx.x % chunks) * Split::kOutputs;
  Shared shared;
  float* source = shared.take<float>(static_cast<size_t>(p.source_values));
  float* weights = shared.take<float>(static_cast<size_t>(p.weight_values));
  const TilePlace tile = tile_place(part.tiles, number);
  const SourceRows<Split> rows(part.tiles, part.window);
  const int64_t begin = p.summed ? 0 : blockIdx.y, end = p.summed ? p.count : begin + 1;
  for (int64_t a = begin; a < end; ++a) {
    typename Split::Sums sums;
    sums.clear();
    const LoadPixel<Stored> load{
        static_cast<const Stored*>(p.source) + (p.first + a) * p.source_strides.architecture,
        p.source_strides};
    const float* row = p.weight + p.rows[a] * p.set_size;
    for (int channel = 0; channel < p.depth; channel += Split::kDepth) {
      sync_block();
      load_source<Precision, Split::kDepth, Split::kStride>(
          part.tiles, part.window, tile, p.source_height, p.source_width, channel, load, source);
      load_weights<Precision, Split::kOutputs, Split::kDepth, Split::kStride, kTransposed>(
          part.window, row, p.inner, p.size, output, channel, weights);
      sync_block();
      multiply_tile<Precision, Split>(sums, part.tiles, part.window, rows, source, weights);
    }
    Stored* target =
        static_cast<Stored*>(p.target) + (p.first + a) * p.target_strides.architecture + output;
    hand_out<Split>(sums, [&](int pixel) {
      TilePlace at;
      const bool live = output_place(part.tiles, tile, pixel, &at);
      return StorePair<Stored>{
          live ? target + conv_offset(p.target_strides, 0, at.image, at.y * part.step + part.y,
                                      at.x * part.step + part.x)
               : nullptr,
          p.summed && p.first + a > 0};
    });
  }
}

// --- On the host ---------------------------------------------------------------------------------

inline bool tile_strides(const PixelStrides& s) {
  return s.architecture % 4 == 0 && s.image % 4 == 0 && s.row % 4 == 0 && s.column % 4 == 0;
}

// Whether the kernels of this file run a call: a pixel's channels are read four at a time.
inline bool gather_conv_is_tiled(const GatherConvParams& p) {
  return !p.depthwise && !p.double_precision && p.input_channels % 16 == 0 &&
         p.output_channels % 16 == 0 && starts_wide(p.input) && starts_wide(p.output) &&
         tile_strides(p.input_strides) && tile_strides(p.output_strides);
}

// What the prose above gather_conv_tile says.
static_assert(tile_bytes<Tile64>(180, 9) == 14464 + 46336);
static_assert(2 * (tile_bytes<Tile64>(180, 9) + 1024) <= 164 * 1024, "two blocks, on an A100 too");
static_assert(Tile64::kPixels * Tile64::kOutputs * 9 * Tile64::kDepth == 1152 * 1024);
static_assert(2 * 1152 * 1024 / (180 * 64 + 9 * 64 * 64) == 48, "48.8 flop a byte");

inline GatherTileParams make_gather_tile(const GatherConvLaunch& part) {
  const GatherConvParams& p = part.conv;
  const bool forward = p.pass == ConvPass::forward;
  const int size = static_cast<int>(p.kernel_size), stride = static_cast<int>(p.stride);
  const auto narrow = [](int64_t value) { return static_cast<int>(value); };
  GatherTileParams t{};
  t.source = forward ? p.input : p.output;
  t.target = forward ? p.output : p.input;
  t.weight = static_cast<const float*>(p.weight);
  t.source_strides = forward ? p.input_strides : p.output_strides;
  t.target_strides = forward ? p.output_strides : p.input_strides;
  t.set_size = p.output_channels * p.input_channels * p.kernel_size * p.kernel_size;
  t.source_height = narrow(forward ? p.input_height : p.output_height);
  t.source_width = narrow(forward ? p.input_width : p.output_width);
  t.depth = narrow(forward ? p.input_channels : p.output_channels);
  t.outputs = narrow(forward ? p.output_channels : p.input_channels);
  t.inner = narrow(p.input_channels);
  t.size = size;
  t.summed = !forward && p.input_strides.architecture == 0;
  t.first = part.first;
  t.count = part.count;
  for (int64_t a = 0; a < part.count; ++a) t.rows[a] = part.chosen[a];
  const int most = source_most(size * size, 0);
  t.all = forward ? forward_parts(size, stride, p.images, p.output_height, p.output_width,
                                  kTilePixels, most)
                  : gradient_parts(size, stride, p.images, p.input_height, p.input_width,
                                   kTilePixels, most);
  return t;
}

template <class Precision>
int launch_gather_tile(const GatherConvLaunch& part, void* stream) {
  GatherTileParams params = make_gather_tile(part);
  const bool transposed = part.conv.pass != ConvPass::forward;
  const int64_t copies = params.summed ? 1 : params.count, tiles = params.all.tiles();
  return with_tile(params.all, params.outputs, tiles * copies, 0, [&](auto split) {
    using Split = decltype(split);
    const int source_pixels = params.all.source_pixels(), taps = params.all.taps();
    params.source_values = Split::source_values(source_pixels);
    params.weight_values = Split::weight_values(taps);
    return launch(transposed ? gather_conv_tile<Precision, Split, true>
                             : gather_conv_tile<Precision, Split, false>,
                  {tiles * (params.outputs / Split::kOutputs), copies}, Split::kThreads,
                  static_cast<size_t>(tile_bytes<Split>(source_pixels, taps)), stream, params);
  });
}

}  // namespace cwkernels
