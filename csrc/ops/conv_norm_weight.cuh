#pragma once
#include "../parts/tile_weight.cuh"
#include "conv_norm_tile.cuh"

// The gradient of conv_norm's weights by the tiles of parts/tile_weight.cuh, in float32 and bf16,
// for 1 x 1 and 3 x 3 taps, channels that are multiples of 16, and the stem.
namespace cwkernels {

struct ConvNormWeight {
  ConvNormParams p;
  Window window;
  Tiles tiles;
  LoadedSize size;
  int64_t values;  // of shared memory
  int64_t first, blocks;
  float* partials;  // [architectures of this launch, blocks, K, C, R, R]
};

// Grid: (blocks x chunks of outputs x chunks of inputs, architectures), 256 threads: what
// gather_conv_weight_tile is, with the normalised input.
template <class Precision, class Split, class Load>
__global__ void __launch_bounds__(Split::kThreads, Split::resident(Precision::kProducts))
    conv_norm_weight_tile(ConvNormWeight t) {
  using Stored = typename Precision::Stored;
  wait_for_previous();
  allow_next();
  Shared shared;
  float* gradients = shared.take<float>(static_cast<size_t>(t.values));
  int* table = shared.take<int>(Split::kPixels);
  float* source = gradients + Split::gradient_values();
  const int inputs = static_cast<int>(t.p.input_channels);
  const int outputs = static_cast<int>(t.p.output_channels);
  const int input_chunks = (inputs + Split::kInputs - 1) / Split::kInputs;
  const int output_chunks = outputs / Split::kOutputs;
  const int input = static_cast<int>(blockIdx.x % input_chunks) * Split::kInputs;
  const int output = static_cast<int>(blockIdx.x / input_chunks % output_chunks) * Split::kOutputs;
  const int64_t block = blockIdx.x / (input_chunks * output_chunks), a = t.first + blockIdx.y;
  const Coefficients coefficients(t.p, a, shared);
  const Load load_input(t.p, coefficients, a);
  const LoadDense<Stored> load_gradient{
      static_cast<const Stored*>(t.p.grad_output) +
          a * t.p.images * t.size.output_height * t.size.output_width * outputs,
      t.size.output_height, t.size.output_width, outputs};
  fill_source_table<Split>(t.tiles, t.window, table);
  typename Split::Sums sums;
#pragma unroll
  for (int tap = 0; tap < Split::kTaps; ++tap) sums.taps[tap].clear();
  for (int64_t number = block; number < t.tiles.count; number += t.blocks) {
    const TilePlace tile = tile_place(t.tiles, number);
    sync_block();
    load_gradients<Precision, Split>(t.tiles, tile, output, load_gradient, gradients);
    load_inputs<Precision, Split>(t.tiles, t.window, tile, static_cast<int>(t.size.height),
                                  static_cast<int>(t.size.width), input, load_input, source);
    sync_block();
    multiply_weights<Precision, Split>(sums, t.tiles, table, gradients, source);
  }
  float* to = t.partials + (blockIdx.y * t.blocks + block) * outputs * inputs * Split::kTaps;
  merge_weights<Split>(sums, gradients, [&](int k, int c, int tap, float value) {
    if (input + c >= inputs) return;
    to[(static_cast<int64_t>(output + k) * inputs + input + c) * Split::kTaps + tap] = value;
  });
}

// --- On the host ---------------------------------------------------------------------------------

inline int64_t conv_norm_weights(const ConvNormParams& p) {
  return p.output_channels * p.input_channels * p.kernel_size * p.kernel_size;
}

// An average before several taps has no kernel here.
inline bool conv_norm_weight_is_tiled(const ConvNormParams& p) {
  const int64_t bytes = conv_norm_weights(p) * static_cast<int64_t>(sizeof(float));
  if (bytes > kWeightWorkspace || p.kernel_size > 3) return false;
  if (conv_norm_is_tiled(p)) return p.kernel_size == 1 || !p.pool;
  return conv_norm_is_narrow(p) && p.kernel_size == 3;
}

// f(split, load) for the channels and taps of a call.
template <class Stored, class F>
auto with_weight_split(const ConvNormParams& p, const F& f) {
  const bool wide = p.input_channels % 32 == 0 && p.output_channels % 32 == 0;
  if (p.input_channels % 16 != 0) return f(WeightNarrow{}, Of<LoadNarrow<Stored>>{});
  if (p.pool) {
    return wide ? f(Weight32Pointwise{}, Of<LoadPooled<Stored>>{})
                : f(Weight16Pointwise{}, Of<LoadPooled<Stored>>{});
  }
  if (p.kernel_size == 1) {
    return wide ? f(Weight32Pointwise{}, Of<LoadInput<Stored>>{})
                : f(Weight16Pointwise{}, Of<LoadInput<Stored>>{});
  }
  return wide ? f(Weight32{}, Of<LoadInput<Stored>>{}) : f(Weight16{}, Of<LoadInput<Stored>>{});
}

// How the gradient is shared out: none of it depends on the architectures, but how many of them a
// launch has.
template <class Split>
ConvNormWeight make_conv_norm_weight(const ConvNormParams& p, float* partials) {
  ConvNormWeight t{};
  t.p = p;
  t.size = loaded_size(p);
  t.partials = partials;
  t.window = forward_window(static_cast<int>(p.kernel_size), static_cast<int>(p.stride));
  t.tiles = make_tiles(t.window, p.images, t.size.output_height, t.size.output_width,
                       Split::kPixels, kWeightSourceMost);
  t.values = Split::values(t.tiles.source_pixels());
  t.blocks = weight_blocks<Split>(p.output_channels, p.input_channels, t.tiles.count,
                                  conv_norm_weights(p));
  return t;
}

// Architectures of a launch: their partial results fit the workspace.
inline int64_t conv_norm_weights_together(const ConvNormParams& p, int64_t blocks) {
  const int64_t bytes = blocks * conv_norm_weights(p) * static_cast<int64_t>(sizeof(float));
  return min(min(kWeightWorkspace / bytes, kWeightSumMost), p.architectures);
}

inline int64_t weight_tile_bytes(const ConvNormParams& p) {
  return with_weight_split<float>(p, [&](auto split, auto /*load*/) {
    const int64_t blocks = make_conv_norm_weight<decltype(split)>(p, nullptr).blocks;
    return conv_norm_weights_together(p, blocks) * blocks * conv_norm_weights(p) *
           static_cast<int64_t>(sizeof(float));
  });
}

template <class Precision, class Split, class Load>
int launch_weight_tile(const ConvNormParams& p, float* partials, void* stream) {
  ConvNormWeight t = make_conv_norm_weight<Split>(p, partials);
  const int64_t chunks = weight_chunks<Split>(p.output_channels, p.input_channels);
  const size_t shared = shared_bytes<float>(static_cast<size_t>(t.values)) +
                        shared_bytes<int>(Split::kPixels) +
                        static_cast<size_t>(Coefficients::bytes(p));
  const int64_t together = conv_norm_weights_together(p, t.blocks);
  for (t.first = 0; t.first < p.architectures; t.first += together) {
    const int64_t count = min(together, p.architectures - t.first);
    if (const int error = launch(conv_norm_weight_tile<Precision, Split, Load>,
                                 {t.blocks * chunks, count}, Split::kThreads, shared, stream, t)) {
      return error;
    }
    WeightSum<float> sum{};
    sum.partials = partials;
    sum.target = static_cast<float*>(p.grad_weight);
    sum.values = conv_norm_weights(p);
    sum.parts = t.blocks;
    sum.count = count;
    sum.opens = t.first == 0 ? 1 : 0;
    if (const int error = launch_weight_sum(sum, stream)) return error;
  }
  return 0;
}

template <class Precision>
int launch_weight_tile(const ConvNormParams& p, float* partials, void* stream) {
  return with_weight_split<typename Precision::Stored>(p, [&](auto split, auto load) {
    using Load = typename decltype(load)::Type;
    return launch_weight_tile<Precision, decltype(split), Load>(p, partials, stream);
  });
}

}  // namespace cwkernels
