#pragma once
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
  float* partials;    // [architectures of this launch, blocks, K, C, R, R]
  unsigned* tickets;  // null: a later launch sums them
};

inline int64_t __host__ __device__ conv_norm_weights(const ConvNormParams& p) {
  return p.output_channels * p.input_channels * p.kernel_size * p.kernel_size;
}
__host__ __device__ inline Partials<Sum<float>> weight_partials(const ConvNormWeight& t) {
  return {reinterpret_cast<Sum<float>*>(t.partials), t.tickets, t.blocks, conv_norm_weights(t.p)};
}

// Grid: (blocks x chunks of outputs x chunks of inputs, architectures), 256 threads: what
// gather_conv_weight_tile is, with the normalised input.
template <class Precision, class Split, class Load>
__device__ __forceinline__ void multiply_weight_tiles(const ConvNormWeight& t, int64_t place) {
  using Stored = typename Precision::Stored;
  Shared shared;
  float* gradients = shared.take<float>(static_cast<size_t>(t.values));
  int* table = shared.take<int>(Split::kPixels);
  float* source = gradients + Split::gradient_values();
  const int inputs = static_cast<int>(t.p.input_channels);
  const int outputs = static_cast<int>(t.p.output_channels);
  const int input_chunks = (inputs + Split::kInputs - 1) / Split::kInputs;
  const int output_chunks = outputs / Split::kOutputs;
  const int input = static_cast<int>(place % input_chunks) * Split::kInputs;
  const int output = static_cast<int>(place / input_chunks % output_chunks) * Split::kOutputs;
  const int64_t block = place / (input_chunks * output_chunks), a = t.first + blockIdx.y;
  const Coefficients coefficients(t.p, a, shared);
  const Load load_input(t.p, coefficients, a);
  const LoadDense<Stored> load_gradient = gradient_of<Stored>(t.p, t.size, a);
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
  if (!t.tickets) return;
  const Partials<Sum<float>> partials = weight_partials(t);
  int* last = shared.take<int>(1);
  if (!merge_group(partials, 0, block, input_chunks * output_chunks, last)) return;
  auto* gradient = static_cast<float*>(t.p.grad_weight);
  merge_groups(partials, 0, last, [&](int64_t c, Sum<float> sum) { gradient[c] = sum.value; });
}

template <class Precision, class Split, class Load>
__global__ void __launch_bounds__(Split::kThreads, Split::resident(Precision::kProducts))
    conv_norm_weight_tile(ConvNormWeight t) {
  wait_for_previous();
  allow_next();
  multiply_weight_tiles<Precision, Split, Load>(t, blockIdx.x);
}

// --- On the host ---------------------------------------------------------------------------------

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

// Whether the last blocks sum the partial results, where no launch follows that could: those of the
// stem, 16 x 3 x 3 x 3 weights of 1.7 KB, are 16 x 1.7 = 28 KB for the last of a group to read.
constexpr int64_t kSummedByLast = 1024;
inline bool weights_sum_themselves(const ConvNormParams& p) {
  return !p.grad_input && p.architectures == 1 && conv_norm_weights(p) <= kSummedByLast;
}

// With the tickets of a gradient that sums itself.
inline CudaScratch weight_tile_scratch(const ConvNormParams& p) {
  return with_weight_split<float>(p, [&](auto split, auto /*load*/) {
    const ConvNormWeight t = make_conv_norm_weight<decltype(split)>(p, nullptr);
    if (weights_sum_themselves(p)) return weight_partials(t).scratch(1);
    return CudaScratch{conv_norm_weights_together(p, t.blocks) * t.blocks * conv_norm_weights(p) *
                           static_cast<int64_t>(sizeof(float)),
                       0};
  });
}

template <class Split>
size_t weight_tile_shared(const ConvNormWeight& t) {
  return shared_bytes<float>(static_cast<size_t>(t.values)) + shared_bytes<int>(Split::kPixels) +
         static_cast<size_t>(Coefficients::bytes(t.p)) + shared_bytes<int>(1);
}

// What `count` architectures from t.first on have left.
inline WeightSum<float> weight_sum_of(const ConvNormWeight& t, int64_t count) {
  WeightSum<float> sum{};
  sum.partials = t.partials;
  sum.target = static_cast<float*>(t.p.grad_weight);
  sum.values = conv_norm_weights(t.p);
  sum.parts = t.blocks;
  sum.count = count;
  sum.opens = t.first == 0 ? 1 : 0;
  return sum;
}

// Leaves the last sum to the launch that follows, in `rest`; one of none if it is made.
template <class Precision, class Split, class Load>
int launch_weight_tile(const ConvNormParams& p, float* partials, WeightSum<float>* rest,
                       void* stream) {
  ConvNormWeight t = make_conv_norm_weight<Split>(p, partials);
  if (weights_sum_themselves(p)) t.tickets = p.tickets;
  const int64_t chunks = weight_chunks<Split>(p.output_channels, p.input_channels);
  const int64_t together = conv_norm_weights_together(p, t.blocks);
  for (t.first = 0; t.first < p.architectures; t.first += together) {
    if (rest->count != 0) {
      if (const int error = launch_weight_sum(*rest, stream)) return error;
    }
    const int64_t count = min(together, p.architectures - t.first);
    const int error =
        launch(conv_norm_weight_tile<Precision, Split, Load>, {t.blocks * chunks, count},
               Split::kThreads, weight_tile_shared<Split>(t), stream, t);
    if (error != 0) return error;
    if (!t.tickets) *rest = weight_sum_of(t, count);
  }
  return 0;
}

template <class Precision>
int launch_weight_tile(const ConvNormParams& p, float* partials, WeightSum<float>* rest,
                       void* stream) {
  return with_weight_split<typename Precision::Stored>(p, [&](auto split, auto load) {
    using Load = typename decltype(load)::Type;
    return launch_weight_tile<Precision, decltype(split), Load>(p, partials, rest, stream);
  });
}

}  // namespace cwkernels
