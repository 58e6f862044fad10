#pragma once
#include "../parts/by_dtype.cuh"
#include "../parts/tile_sums.cuh"
#include "../parts/tile_weight.cuh"
#include "conv_norm_load.cuh"

// conv_norm and the gradient of its input by the tiles of parts/tile.cuh, in float32 and bf16 and
// for channels that are multiples of 16. The stem's input, of at most 8 channels, has a tile of its
// own.
namespace cwkernels {

struct ConvNormTile {
  ConvNormParams p;
  ConvParts all;
  LoadedSize size;
  int depth, outputs;                    // channels of the product's source and target
  int64_t source_values, weight_values;  // of shared memory
  int64_t blocks;                        // of each chunk of outputs of each architecture
  void* partials;
};

// Where a block is of a grid (blocks x chunks of outputs, architectures), `number` its x.
template <class Split>
struct ConvNormPlace {
  int64_t block, architecture, chunks, chunk, slot;

  __device__ __forceinline__ ConvNormPlace(const ConvNormTile& t, int64_t number)
      : block(number % t.blocks),
        architecture(blockIdx.y),
        chunks(t.outputs / Split::kOutputs),
        chunk(number / t.blocks),
        slot(architecture * chunks + chunk) {}
};

// Adds the products of one tile, over all channels of the source. The weights of one step of
// channels stay for the next tile of the same part: `there`.
template <class Precision, class Split, bool kTransposed, class Load>
__device__ __forceinline__ void convolve_tile(typename Split::Sums& sums, const ConvNormTile& t,
                                              const ConvPart& part, const TilePlace& tile,
                                              int height, int width, int output, const Load& load,
                                              float* source, float* weights, bool there) {
  const SourceRows<Split> rows(part.tiles, part.window);
  const auto* weight = static_cast<const float*>(t.p.weight);
  for (int channel = 0; channel < t.depth; channel += Split::kDepth) {
    sync_block();
    load_source<Precision, Split::kDepth, Split::kStride>(part.tiles, part.window, tile, height,
                                                          width, channel, load, source);
    if (!there || t.depth > Split::kDepth) {
      load_weights<Precision, Split::kOutputs, Split::kDepth, Split::kStride, kTransposed>(
          part.window, weight, static_cast<int>(t.p.input_channels),
          static_cast<int>(t.p.kernel_size), output, channel, weights);
    }
    sync_block();
    multiply_tile<Precision, Split>(sums, part.tiles, part.window, rows, source, weights);
  }
}

// --- Kernels -------------------------------------------------------------------------------------

// Persistent blocks, at most two a processor for each architecture; each goes through the tiles
// with its number, measures what it wrote from its registers, and the last block of all has the
// statistics. The stem, 3 to 16 channels at 32 x 32, batch 256: reads 3.1 MB and writes 16.8 MB in
// 2,048 tiles, 8 by each of 264 blocks.
template <class Precision, class Split, class Load>
__device__ __forceinline__ void convolve_tiles(const ConvNormTile& t, int64_t block) {
  using Stored = typename Precision::Stored;
  const ConvNormPlace<Split> at(t, block);
  const int output = static_cast<int>(at.chunk) * Split::kOutputs;
  Shared shared;
  float* source = shared.take<float>(static_cast<size_t>(t.source_values));
  float* weights = shared.take<float>(static_cast<size_t>(t.weight_values));
  Moments<float>* values = shared.take<Moments<float>>(Split::kWarpsM * Split::kOutputs);
  int* last = shared.take<int>(1);
  const Coefficients coefficients(t.p, at.architecture, shared);
  const Load load(t.p, coefficients, at.architecture);
  Stored* target =
      static_cast<Stored*>(t.p.output) +
      at.architecture * t.p.images * t.size.output_height * t.size.output_width * t.outputs +
      output;
  const ConvPart& part = t.all.parts[0];
  LaneMoments<Split> moments;
  for (int64_t number = at.block; number < part.tiles.count; number += t.blocks) {
    const TilePlace tile = tile_place(part.tiles, number);
    typename Split::Sums sums;
    sums.clear();
    convolve_tile<Precision, Split, false>(sums, t, part, tile, static_cast<int>(t.size.height),
                                           static_cast<int>(t.size.width), output, load, source,
                                           weights, number != at.block);
    unsigned live = 0;
    int row = 0;  // of the lane's 2 kM, in hand_out's order
    hand_out<Split>(sums, [&](int pixel) {
      TilePlace own;
      const bool there = output_place(part.tiles, tile, pixel, &own);
      live |= static_cast<unsigned>(there) << row++;
      Stored* to =
          target +
          ((own.image * t.size.output_height + own.y) * t.size.output_width + own.x) * t.outputs;
      return [=](int /*fragment*/, int n, float left, float right) {
        if (there) store_pair(to + n, left, right);
      };
    });
    moments.add(sums, live);
  }
  merge_lanes<Split>(
      [&](int j, int e) {
        return Moments<float>{moments.count, moments.mean[j][e], moments.squares[j][e]};
      },
      values);
  const Partials<Moments<float>> partials{static_cast<Moments<float>*>(t.partials), t.p.tickets,
                                          t.blocks, Split::kOutputs};
  float* measured = static_cast<float*>(t.p.measured) + at.architecture * 2 * t.outputs + output;
  leave_partial(
      partials, at.slot, at.block, last, [&](int64_t c) { return values[c]; },
      [&](int64_t c, const Moments<float>& whole) {
        measured[c] = whole.mean;
        measured[t.outputs + c] = whole.variance();
      });
}

// Moments and a step's weights under way take the registers of as many sums again: two blocks on a
// processor only where that leaves room.
template <class Split, class Precision>
constexpr int kForwardResident = Split::resident(2 * Precision::kProducts);

template <class Precision, class Split, class Load>
__global__ void __launch_bounds__(Split::kThreads, kForwardResident<Split, Precision>)
    conv_norm_tile(const __grid_constant__ ConvNormTile t) {
  wait_for_previous();
  allow_next();
  convolve_tiles<Precision, Split, Load>(t, blockIdx.x);
}

// The gradient of a loaded pixel goes back through the ReLU, and adds to the sums of the batch
// norm's backward pass.
template <class Stored, class Split>
struct StoreMasked {
  const Stored* input;  // null: there is no such output
  Stored* gradient;
  const Norm<float>* norm;
  bool relu;
  Sums<float> (&gathered)[Split::kN][2];

  __device__ __forceinline__ void operator()(int j, int n, float left, float right) const {
    if (!input) return;
    Lanes<float, 2> grad{{left, right}};
    if (norm || relu) {
      const Lanes<float, 2> raw = load_lanes<2>(input + n);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float value = norm ? norm[n + e](raw[e]) : raw[e];
        if (relu && value <= 0.0f) grad[e] = 0.0f;
        if (!norm) continue;
        Sums<float>& own = gathered[j][e];
        own = own.merged({grad[e], grad[e] * (raw[e] - norm[n + e].mean)});
      }
    }
    store_lanes(gradient + n, grad);
  }
};

// Or through the average, to the 2 x 2 pixels that it came from. Those of an odd last row or column
// came to nothing and get zeros from the last loaded pixel before them.
template <class Stored>
struct StoreSpread {
  Stored* gradient;   // of the first pixel
  int rows, columns;  // 0: there is no such output
  int64_t row;        // of the input, in values
  int channels;

  __device__ __forceinline__ void operator()(int /*fragment*/, int n, float left,
                                             float right) const {
    for (int y = 0; y < rows; ++y) {
      for (int x = 0; x < columns; ++x) {
        const float share = y < 2 && x < 2 ? 0.25f : 0.0f;
        store_lanes(gradient + y * row + x * channels + n,
                    Lanes<float, 2>{{left * share, right * share}});
      }
    }
  }
};

// For an output of a tile of gradients; `first` is where the architecture and its chunk begin.
template <class Stored, bool kPooled, class Split>
__device__ __forceinline__ auto store_gradient(const ConvNormTile& t, const ConvPart& part,
                                               const TilePlace& tile, int pixel, int64_t first,
                                               const Norm<float>* norm,
                                               Sums<float> (&gathered)[Split::kN][2]) {
  constexpr int kDivisor = kPooled ? 2 : 1;
  TilePlace own;
  const bool there = output_place(part.tiles, tile, pixel, &own);
  const int y = own.y * part.step + part.y, x = own.x * part.step + part.x;
  const int64_t row = t.p.width * t.outputs;
  const int64_t at = first + (own.image * t.p.height + y * kDivisor) * row +
                     static_cast<int64_t>(x) * kDivisor * t.outputs;
  Stored* gradient = static_cast<Stored*>(t.p.grad_input) + at;
  if constexpr (kPooled) {
    const int rows = y + 1 < t.size.height ? 2 : static_cast<int>(t.p.height) - 2 * y;
    const int columns = x + 1 < t.size.width ? 2 : static_cast<int>(t.p.width) - 2 * x;
    return StoreSpread<Stored>{gradient, there ? rows : 0, columns, row, t.outputs};
  } else {
    const Stored* input = static_cast<const Stored*>(t.p.input) + at;
    return StoreMasked<Stored, Split>{there ? input : nullptr, gradient, norm, t.p.relu, gathered};
  }
}

// A tile's launch that carries the sum of the weights' gradient, whose partial results the launch
// before it left, in blocks of its own behind those of the tiles.
struct ConvNormMasked {
  ConvNormTile tile;
  int64_t tile_blocks;
  WeightSum<float> sum;
};

// The gradient of the input up to its normalisation, with the two sums of the batch norm's backward
// pass; persistent blocks as above. The parameters, whose parts are indexed, stay where they are
// and are not copied to the stack of each thread.
template <class Precision, class Split, bool kPooled>
__global__ void __launch_bounds__(Split::kThreads, Split::resident(Precision::kProducts))
    conv_norm_masked_tile(const __grid_constant__ ConvNormMasked masked) {
  using Stored = typename Precision::Stored;
  wait_for_previous();
  allow_next();
  static_assert(Split::kThreads == kWeightSumThreads);
  if (blockIdx.x >= masked.tile_blocks) {
    if (blockIdx.y == 0) sum_weights(masked.sum, blockIdx.x - masked.tile_blocks);
    return;
  }
  const ConvNormTile& t = masked.tile;
  const ConvNormPlace<Split> at(t, blockIdx.x);
  const int output = static_cast<int>(at.chunk) * Split::kOutputs;
  Shared shared;
  float* source = shared.take<float>(static_cast<size_t>(t.source_values));
  float* weights = shared.take<float>(static_cast<size_t>(t.weight_values));
  Sums<float>* values = shared.take<Sums<float>>(Split::kWarpsM * Split::kOutputs);
  int* last = shared.take<int>(1);
  const Coefficients coefficients(t.p, at.architecture, shared);
  const LoadDense<Stored> load = gradient_of<Stored>(t.p, t.size, at.architecture);
  const int64_t first = at.architecture * t.p.images * t.p.height * t.p.width * t.outputs + output;
  const Norm<float>* norm = coefficients.of ? coefficients.of + output : nullptr;
  Sums<float> gathered[Split::kN][2] = {};
  const int64_t tiles = t.all.tiles();
  const ConvPart* before = nullptr;
  for (int64_t i = at.block; i < tiles; i += t.blocks) {
    int64_t number = i;
    const ConvPart& part = t.all.part_of(&number);
    const TilePlace tile = tile_place(part.tiles, number);
    typename Split::Sums sums;
    sums.clear();
    convolve_tile<Precision, Split, true>(
        sums, t, part, tile, static_cast<int>(t.size.output_height),
        static_cast<int>(t.size.output_width), output, load, source, weights, &part == before);
    before = &part;
    hand_out<Split>(sums, [&](int pixel) {
      return store_gradient<Stored, kPooled, Split>(t, part, tile, pixel, first, norm, gathered);
    });
  }
  if (!t.p.statistics) return;
  merge_lanes<Split>([&](int j, int e) { return gathered[j][e]; }, values);
  const Partials<Sums<float>> partials{static_cast<Sums<float>*>(t.partials), t.p.tickets, t.blocks,
                                       Split::kOutputs};
  leave_partial(partials, at.slot, at.block, last, [&](int64_t c) { return values[c]; });
}

// --- On the host ---------------------------------------------------------------------------------

using TileNarrow = TileSplit<8, 1, 1, 2, 8>;
static_assert(32 * 32 * 256 / TileNarrow::kPixels == 2048, "the prose above conv_norm_tile");

// Coefficients of 12 bytes a channel lie in shared memory.
constexpr int64_t kConvNormMostChannels = 1536;

inline bool conv_norm_sides_are_wide(const ConvNormParams& p) {
  return !p.double_precision && p.output_channels % 16 == 0 && starts_wide(p.output) &&
         starts_wide(p.grad_output);
}
inline bool conv_norm_is_tiled(const ConvNormParams& p) {
  return conv_norm_sides_are_wide(p) && p.input_channels % 16 == 0 && starts_wide(p.input) &&
         starts_wide(p.grad_input) && p.input_channels <= kConvNormMostChannels;
}
inline bool conv_norm_is_narrow(const ConvNormParams& p) {
  return conv_norm_sides_are_wide(p) && p.input_channels <= TileNarrow::kDepth && !p.pool;
}

// What lies in shared memory beside source and weights, for either pass and any tile.
inline int64_t conv_norm_other_bytes(const ConvNormParams& p) {
  constexpr size_t kValues = Tile64::kWarpsM * Tile64::kOutputs;
  static_assert(Tile16::kWarpsM * Tile16::kOutputs <= kValues &&
                Tile32::kWarpsM * Tile32::kOutputs <= kValues);
  return static_cast<int64_t>(shared_bytes<Moments<float>>(kValues) + shared_bytes<int>(1)) +
         Coefficients::bytes(p);
}

inline ConvNormTile make_conv_norm_tile(const ConvNormParams& p, bool backward) {
  ConvNormTile t{};
  t.p = p;
  t.size = loaded_size(p);
  t.partials = p.workspace;
  t.depth = static_cast<int>(backward ? p.output_channels : p.input_channels);
  t.outputs = static_cast<int>(backward ? p.input_channels : p.output_channels);
  const int size = static_cast<int>(p.kernel_size), stride = static_cast<int>(p.stride);
  const int most = source_most(size * size, conv_norm_other_bytes(p));
  t.all = backward ? gradient_parts(size, stride, p.images, t.size.height, t.size.width,
                                    kTilePixels, most)
                   : forward_parts(size, stride, p.images, t.size.output_height,
                                   t.size.output_width, kTilePixels, most);
  return t;
}

// f(split) for the tile of a pass. It does not depend on the number of architectures.
template <class F>
auto with_conv_norm_tile(const ConvNormTile& t, const F& f) {
  return with_tile(t.all, t.outputs, t.all.tiles(), conv_norm_other_bytes(t.p), f);
}

template <class Split, class Value>
Partials<Value> conv_norm_partials(const ConvNormTile& t) {
  const int64_t blocks =
      sum_blocks(current_device().processors, t.outputs / Split::kOutputs, t.all.tiles());
  return {static_cast<Value*>(t.partials), t.p.tickets, blocks, Split::kOutputs};
}

// Completes a tile for its launch.
template <class Split, class Value>
void share_out(ConvNormTile* t) {
  t->source_values = Split::source_values(t->all.source_pixels());
  t->weight_values = Split::weight_values(t->all.taps());
  t->blocks = conv_norm_partials<Split, Value>(*t).blocks;
}
template <class Split>
int64_t tile_blocks(const ConvNormTile& t) {
  return t.blocks * (t.outputs / Split::kOutputs);
}
template <class Split, class Value>
size_t conv_norm_shared(const ConvNormTile& t) {
  return static_cast<size_t>(tile_bytes<Split>(t.all.source_pixels(), t.all.taps()) +
                             Coefficients::bytes(t.p)) +
         shared_bytes<Value>(Split::kWarpsM * Split::kOutputs) + shared_bytes<int>(1);
}

// f(split, load) for the forward pass: an averaged input is read by few channels only.
template <class Stored, class F>
auto with_forward_tile(const ConvNormTile& t, const F& f) {
  if (conv_norm_is_narrow(t.p)) return f(TileNarrow{}, Of<LoadNarrow<Stored>>{});
  if (!t.p.pool) {
    return with_conv_norm_tile(t, [&](auto split) { return f(split, Of<LoadInput<Stored>>{}); });
  }
  return t.outputs % Tile32::kOutputs == 0 ? f(Tile32{}, Of<LoadPooled<Stored>>{})
                                           : f(Tile16{}, Of<LoadPooled<Stored>>{});
}

template <class Precision>
int launch_forward_tile(const ConvNormParams& p, void* stream) {
  ConvNormTile t = make_conv_norm_tile(p, false);
  return with_forward_tile<typename Precision::Stored>(t, [&](auto split, auto load) {
    using Split = decltype(split);
    using Load = typename decltype(load)::Type;
    share_out<Split, Moments<float>>(&t);
    return launch(conv_norm_tile<Precision, Split, Load>, {tile_blocks<Split>(t), p.architectures},
                  Split::kThreads, conv_norm_shared<Split, Moments<float>>(t), stream, t);
  });
}

inline CudaScratch forward_tile_scratch(const ConvNormParams& p) {
  const ConvNormTile t = make_conv_norm_tile(p, false);
  return with_forward_tile<float>(t, [&](auto split, auto /*load*/) {
    using Split = decltype(split);
    return conv_norm_partials<Split, Moments<float>>(t).scratch(p.architectures *
                                                                (t.outputs / Split::kOutputs));
  });
}

// An average is not normalised or rectified before.
inline bool input_gradient_is_tiled(const ConvNormParams& p) {
  return conv_norm_is_tiled(p) && (!p.pool || (!p.relu && !p.statistics));
}

template <class Precision, class Split, bool kPooled>
int launch_masked_tile(const ConvNormTile& tile, const WeightSum<float>& sum, void* stream) {
  ConvNormMasked t{tile, 0, sum};
  share_out<Split, Sums<float>>(&t.tile);
  t.tile_blocks = tile_blocks<Split>(t.tile);
  return launch(conv_norm_masked_tile<Precision, Split, kPooled>,
                {t.tile_blocks + weight_sum_blocks(sum), tile.p.architectures}, Split::kThreads,
                conv_norm_shared<Split, Sums<float>>(t.tile), stream, t);
}

// With a sum of weights that is still to be made, or one of none.
template <class Precision>
int launch_input_gradient_tile(const ConvNormParams& p, const WeightSum<float>& sum, void* stream) {
  const ConvNormTile t = make_conv_norm_tile(p, true);
  if (p.pool) return launch_masked_tile<Precision, Tile16, true>(t, sum, stream);
  return with_conv_norm_tile(t, [&](auto split) {
    using Split = decltype(split);
    const int error = launch_masked_tile<Precision, Split, false>(t, sum, stream);
    if (error != 0 || !p.statistics) return error;
    const Partials<Sums<float>> partials = conv_norm_partials<Split, Sums<float>>(t);
    const ConvNormPass<typename Precision::Stored, Sums> pass{p,
                                                              p.images * p.height * p.width,
                                                              p.input_channels,
                                                              p.input_channels / Split::kOutputs,
                                                              partials.blocks,
                                                              Split::kOutputs / 4,
                                                              partials};
    return launch_norm_gradient<typename Precision::Stored, 4>(pass, stream);
  });
}

inline CudaScratch input_gradient_tile_scratch(const ConvNormParams& p) {
  const ConvNormTile t = make_conv_norm_tile(p, true);
  return with_conv_norm_tile(t, [&](auto split) {
    using Split = decltype(split);
    return conv_norm_partials<Split, Sums<float>>(t).scratch(p.architectures *
                                                             (t.outputs / Split::kOutputs));
  });
}

}  // namespace cwkernels
