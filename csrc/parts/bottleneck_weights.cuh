#pragma once
#include "bottleneck_product.cuh"

// Gradients of inverted_bottleneck's pointwise weights on matrix units: 64 channels of the gradient
// x 64 of what was read, summed over a range of pixels by each block.
namespace cwkernels {

// Both operands lie pixel by pixel, 32 pixels at a time, and are read across: rows of 72 floats, 8
// mod 32. 9 KB each. 8 warps of 32 x 16, 16 sums a thread.
constexpr int kWeightTile = 64;
constexpr int kWeightChunk = 32;
constexpr int kWeightStride = kWeightTile + 8;
constexpr int kWeightWarpsM = 2, kWeightM = 2, kWeightN = 2;
constexpr int kWeightPieces = kWeightTile / 4;
constexpr int kWeightFetches = kWeightChunk * kWeightPieces / kProductThreads;
static_assert(kWeightWarpsM * kWeightM * kMmaRows == kWeightTile && kWeightFetches == 2);
static_assert(kProductThreads / kWarp / kWeightWarpsM * kWeightN * kMmaColumns == kWeightTile);

struct WeightShared {
  float *gradient, *source, *gradient_table, *source_table;

  __device__ WeightShared() {
    Shared shared;
    gradient = shared.take<float>(kWeightChunk * kWeightStride);
    source = shared.take<float>(kWeightChunk * kWeightStride);
    gradient_table = shared.take<float>(4 * kWeightTile);
    source_table = shared.take<float>(3 * kWeightTile);
  }
  static constexpr size_t bytes() {
    return 2 * shared_bytes<float>(kWeightChunk * kWeightStride) +
           shared_bytes<float>(4 * kWeightTile) + shared_bytes<float>(3 * kWeightTile);
  }
};
static_assert(WeightShared::bytes() == 2 * 9216 + 1024 + 768, "20 KB");

// 32 pixels from `pixel` on, 64 channels from `first` on, by a source whose table is of those.
template <class Precision, class Source>
__device__ __forceinline__ void load_weight_operand(const Source& source, int64_t pixel,
                                                    int64_t end, int first, int channels,
                                                    float* to) {
  using Raw = typename Source::Raw;
  const auto exists = [&](int row, int column) {
    return pixel + row < end && first + column < channels;
  };
  load_chunk<Precision, Raw, kWeightPieces, kWeightFetches, kWeightStride>(
      [&](int row, int column) {
        return exists(row, column) ? source.fetch(pixel + row, first + column) : Raw{};
      },
      [&](const Raw& raw, int row, int column) {
        return exists(row, column) ? source.finish(raw, column) : Four{};
      },
      to);
}

template <class Precision>
__device__ __forceinline__ void multiply_pixels(Accumulators<kWeightM, kWeightN>& sums,
                                                const WeightShared& shared, int row, int column) {
#pragma unroll
  for (int p = 0; p < kWeightChunk; p += kMmaDepth) {
    const int near = (p + lane() % 4) * kWeightStride, far = near + 4 * kWeightStride;
    typename Precision::template Operand<4> rows[kWeightM];
#pragma unroll
    for (int i = 0; i < kWeightM; ++i) {
      const float* from = shared.gradient + row + i * kMmaRows;
      rows[i] = columns_of_a<Precision>(from + near, from + far);
    }
#pragma unroll
    for (int j = 0; j < kWeightN; ++j) {
      const float* from = shared.source + column + j * kMmaColumns;
      const auto own = columns_of_b<Precision>(from + near, from + far);
#pragma unroll
      for (int i = 0; i < kWeightM; ++i) Precision::multiply(sums.values[i][j], rows[i], own);
    }
  }
}

// A block's tile and range of pixels.
struct WeightPart {
  int row, column;
  int64_t begin, end, part;
};

template <class Precision, class Source, class Stored = typename Precision::Stored>
__device__ __forceinline__ void run_weights(const BottleneckChoice<Stored>& choice, int place,
                                            const Source& source, const WeightPart& own,
                                            const WeightShared& shared) {
  const int rows = static_cast<int>(choice.channels(place));
  const int columns = static_cast<int>(choice.depth(place));
  fill_norm_gradients(choice, place, own.row, kWeightTile, shared.gradient_table);
  const GradientSource<Stored, false> gradient(choice, place, shared.gradient_table, kWeightTile);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int row = warp % kWeightWarpsM * (kWeightM * kMmaRows);
  const int column = warp / kWeightWarpsM * (kWeightN * kMmaColumns);
  Accumulators<kWeightM, kWeightN> sums;
  sums.clear();
  for (int64_t pixel = own.begin; pixel < own.end; pixel += kWeightChunk) {
    sync_block();
    load_weight_operand<Precision>(gradient, pixel, own.end, own.row, rows, shared.gradient);
    load_weight_operand<Precision>(source, pixel, own.end, own.column, columns, shared.source);
    sync_block();
    multiply_pixels<Precision>(sums, shared, row, column);
  }
  float* to = choice.weight_partial(place, own.part);
#pragma unroll
  for (int i = 0; i < kWeightM; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int output = own.row + row + i * kMmaRows + half * 8 + lane() / 4;
#pragma unroll
      for (int j = 0; j < kWeightN; ++j) {
        const int input = own.column + column + j * kMmaColumns + lane() % 4 * 2;
        if (output >= rows || input >= columns) continue;
        store_lanes(to + output * columns + input,
                    Lanes<float, 2>{sums.values[i][j][half * 2], sums.values[i][j][half * 2 + 1]});
      }
    }
  }
}

// Grid: (tiles x parts, expand and project, architectures).
template <class Precision>
__global__ void __launch_bounds__(kProductThreads, kProductResident<Precision>)
    bottleneck_weight_gradients(const __grid_constant__ BottleneckLaunch launch) {
  using Stored = typename Precision::Stored;
  wait_for_previous();
  allow_next();
  const BottleneckChoice<Stored> choice(launch, blockIdx.z);
  const int place = blockIdx.y == 0 ? 0 : 2;
  if (!choice.runs(place)) return;
  const int across = static_cast<int>(ceil_div(choice.depth(place), kWeightTile));
  const int tiles = across * static_cast<int>(ceil_div(choice.channels(place), kWeightTile));
  const int tile = static_cast<int>(blockIdx.x) % tiles;
  const int64_t part = static_cast<int64_t>(blockIdx.x) / tiles;
  const int64_t parts = choice.weight_parts(place), pixels = choice.pixels(place);
  if (part >= parts) return;
  const WeightPart own{tile / across * kWeightTile, tile % across * kWeightTile,
                       pixels * part / parts, pixels * (part + 1) / parts, part};
  const WeightShared shared;
  if (place == 0) {
    run_weights<Precision>(choice, place, ImageSource<Stored, false>{choice}, own, shared);
  } else if (choice.code == 0) {
    run_weights<Precision>(choice, place, ImageSource<Stored, true>{choice}, own, shared);
  } else {
    fill_norms(choice, 1, own.column, kWeightTile, shared.source_table);
    run_weights<Precision>(
        choice, place,
        ActivatedSource<Stored>{choice.filtered(), static_cast<int>(choice.hidden),
                                shared.source_table, kWeightTile},
        own, shared);
  }
}

}  // namespace cwkernels
