#pragma once
#include "tile.cuh"

// Gradients of a convolution's weights as products of matrices: output channels x input channels,
// for each tap, over the pixels of a tile. Both operands lie in shared memory pixel by pixel, so
// they are read across, value by value: there is no transposed ldmatrix for four bytes.
namespace cwkernels {

// How the warps of a block share out the weights of kOutputs x kInputs channels and kSize x kSize
// taps: kWarpsM x kWarpsN of them hold kM x kN fragments for each tap, and kWarpsP share out the
// pixels. Rows of 8 mod 16 values are what columns_of_a and _b read without conflicts.
template <int kWarpsM_, int kWarpsN_, int kWarpsP_, int kM_, int kN_, int kSize_>
struct WeightSplit {
  static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kWarpsP = kWarpsP_;
  static constexpr int kM = kM_, kN = kN_, kSize = kSize_, kTaps = kSize * kSize;
  static constexpr int kOutputs = kWarpsM * kM * kMmaRows, kInputs = kWarpsN * kN * kMmaColumns;
  static constexpr int kOutputStride = kOutputs + 8;
  static constexpr int kInputStride = kInputs % 16 == 0 ? kInputs + 8 : kInputs + 16;
  static constexpr int kPixels = 128;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarpsP * kWarp;
  static constexpr int kFragments = kTaps * kM * kN;
  // Blocks on a processor that the registers are to allow: 72 sums and split operands leave room
  // for one.
  static constexpr int resident(int products) { return kFragments >= 18 && products > 1 ? 1 : 2; }
  static_assert(kOutputStride % 16 == 8 && kInputStride % 16 == 8, "conflicts of banks");

  struct Sums {
    Accumulators<kM, kN> taps[kTaps];
  };

  // Of this warp.
  __device__ __forceinline__ static int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
  __device__ __forceinline__ static int output() { return warp() % kWarpsM * (kM * kMmaRows); }
  __device__ __forceinline__ static int input() {
    return warp() / kWarpsM % kWarpsN * (kN * kMmaColumns);
  }
  __device__ __forceinline__ static int share() { return warp() / (kWarpsM * kWarpsN); }

  // Of a block's shared memory: gradients, source pixels, then in their place what is merged.
  __host__ __device__ static constexpr int64_t gradient_values() {
    return int64_t{kPixels} * kOutputStride;
  }
  __host__ __device__ static constexpr int64_t values(int source_pixels) {
    constexpr int64_t merged = int64_t{kWarpsM} * kWarpsN * kFragments * kWarp * 4;
    const int64_t loaded = gradient_values() + int64_t{source_pixels} * kInputStride;
    return loaded > merged ? loaded : merged;
  }
};

// Loads under way of a thread: 72 sums in its registers leave no room for more.
constexpr int kWeightBatch = 2;

// Gradients of the outputs of a tile, kOutputs channels from `channel` on, zeros where there is no
// output. load(image, y, x, channel) is Four of them.
template <class Precision, class Split, class Load>
__device__ __forceinline__ void load_gradients(const Tiles& t, const TilePlace& tile, int channel,
                                               const Load& load, float* to) {
  constexpr int kPieces = Split::kOutputs / 4;
  const auto read = [&](int i) {
    TilePlace at;
    Four four{};
    if (output_place(t, tile, i / kPieces, &at)) {
      four = load(at.image, at.y, at.x, channel + i % kPieces * 4);
#pragma unroll
      for (int e = 0; e < 4; ++e) four[e] = Precision::hold(four[e]);
    }
    return four;
  };
  move_in_batches<Four, kBatchOf<Load, kWeightBatch>>(
      Split::kPixels * kPieces, read, [&](int i, const Four& four) {
        store_lanes(to + i / kPieces * Split::kOutputStride + i % kPieces * 4, four);
      });
}

// The source pixels of a tile, kInputs channels from `channel` on.
template <class Precision, class Split, class Load>
__device__ __forceinline__ void load_inputs(const Tiles& t, const Window& window,
                                            const TilePlace& tile, int height, int width,
                                            int channel, const Load& load, float* to) {
  load_source<Precision, Split::kInputs, Split::kInputStride, kWeightBatch>(
      t, window, tile, height, width, channel, load, to);
}

// Where the source pixel of tap (0, 0) of each output lies: made once, for all tiles.
template <class Split>
__device__ __forceinline__ void fill_source_table(const Tiles& t, const Window& window,
                                                  int* table) {
  for (int p = static_cast<int>(threadIdx.x); p < Split::kPixels; p += Split::kThreads) {
    table[p] = source_number(t, window, p) * Split::kInputStride;
  }
}

// Adds the products of the pixels that lie in shared memory.
template <class Precision, class Split>
__device__ __forceinline__ void multiply_weights(typename Split::Sums& sums, const Tiles& t,
                                                 const int* table, const float* gradients,
                                                 const float* source) {
  constexpr int kSteps = Split::kPixels / kMmaDepth;
  for (int step = Split::share(); step < kSteps; step += Split::kWarpsP) {
    const int near = step * kMmaDepth + lane() % 4, far = near + 4;
    typename Precision::template Operand<4> rows[Split::kM];
#pragma unroll
    for (int i = 0; i < Split::kM; ++i) {
      const float* from = gradients + Split::output() + i * kMmaRows;
      rows[i] = columns_of_a<Precision>(from + near * Split::kOutputStride,
                                        from + far * Split::kOutputStride);
    }
    const float* near_source = source + table[near] + Split::input();
    const float* far_source = source + table[far] + Split::input();
#pragma unroll
    for (int tap = 0; tap < Split::kTaps; ++tap) {
      const int at =
          (tap / Split::kSize * t.source_columns + tap % Split::kSize) * Split::kInputStride;
#pragma unroll
      for (int j = 0; j < Split::kN; ++j) {
        const auto column = columns_of_b<Precision>(near_source + at + j * kMmaColumns,
                                                    far_source + at + j * kMmaColumns);
#pragma unroll
        for (int i = 0; i < Split::kM; ++i) {
          Precision::multiply(sums.taps[tap].values[i][j], rows[i], column);
        }
      }
    }
  }
}

// Merges what the warps have of different pixels, in their order, and gives the sums to
// write(output, input, tap, value), each once. `merged` is shared memory that no one uses.
template <class Split, class Write>
__device__ __forceinline__ void merge_weights(const typename Split::Sums& sums, float* merged,
                                              const Write& write) {
  const int g = lane() / 4, t = lane() % 4;
  float* mine =
      merged +
      (Split::warp() % (Split::kWarpsM * Split::kWarpsN) * Split::kFragments * kWarp + lane()) * 4;
  for (int turn = 0; turn < Split::kWarpsP; ++turn) {
    sync_block();
    if (Split::share() != turn) continue;
#pragma unroll
    for (int f = 0; f < Split::kFragments; ++f) {
      const int tap = f / (Split::kM * Split::kN), i = f / Split::kN % Split::kM;
      const int j = f % Split::kN;
      Four own;
#pragma unroll
      for (int e = 0; e < 4; ++e) own[e] = sums.taps[tap].values[i][j][e];
      if (turn > 0) {
        const Four before = load_lanes<4>(mine + f * kWarp * 4);
#pragma unroll
        for (int e = 0; e < 4; ++e) own[e] = before[e] + own[e];
      }
      if (turn + 1 < Split::kWarpsP) {
        store_lanes(mine + f * kWarp * 4, own);
        continue;
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        write(Split::output() + i * kMmaRows + g + e / 2 * 8,
              Split::input() + j * kMmaColumns + t * 2 + e % 2, tap, own[e]);
      }
    }
  }
}

// --- Sums over blocks ----------------------------------------------------------------------------

// Most architectures of one launch.
constexpr int64_t kWeightSumMost = 64;

// What `parts` blocks have of the gradient of each of `count` architectures' weights is summed into
// the slots of a bank's gradient, or all into one.
template <class T>
struct WeightSum {
  const T* partials;  // [count, parts, values]
  T* target;          // [slots, values]
  int64_t values, parts, count;
  uint64_t opens;  // bit a: no architecture before it has its slot
  int64_t slots[kWeightSumMost];
};

constexpr int kWeightSumThreads = 256, kWeightSumSlices = 8;
constexpr int kWeightSumValues = kWeightSumThreads / kWeightSumSlices;

// A block has 32 weights: 8 threads sum an eighth of the parts of each, which are merged in their
// order. A warp reads 128 bytes at once. Bound by the partial results, which lie in L2: 264 of 9.2
// KB at 16 channels, 2.4 MB, are read by 72 blocks, 33 values a thread.
template <class T>
__device__ __forceinline__ void sum_weights(const WeightSum<T>& p, int64_t block) {
  Shared shared;
  T* slices = shared.take<T>(kWeightSumThreads);
  const int own = static_cast<int>(threadIdx.x) % kWeightSumValues;
  const int slice = static_cast<int>(threadIdx.x) / kWeightSumValues;
  const int64_t value = block * kWeightSumValues + own;
  for (int64_t a = 0; a < p.count; ++a) {
    T sum = 0;
    if (value < p.values) {
      const T* from = p.partials + a * p.parts * p.values + value;
      for (int64_t part = slice; part < p.parts; part += kWeightSumSlices) {
        sum += from[part * p.values];
      }
    }
    slices[threadIdx.x] = sum;
    sync_block();
    if (slice == 0 && value < p.values) {
      for (int s = 1; s < kWeightSumSlices; ++s) sum += slices[s * kWeightSumValues + own];
      T* to = p.target + p.slots[a] * p.values + value;
      *to = (p.opens >> a & 1) != 0 ? sum : *to + sum;
    }
    sync_block();
  }
}

template <class T>
__global__ void __launch_bounds__(kWeightSumThreads) weight_sum_kernel(WeightSum<T> p) {
  wait_for_previous();
  allow_next();
  sum_weights(p, blockIdx.x);
}

template <class T>
int64_t weight_sum_blocks(const WeightSum<T>& p) {
  return (p.values + kWeightSumValues - 1) / kWeightSumValues;
}
template <class T>
int launch_weight_sum(const WeightSum<T>& p, void* stream) {
  return launch(weight_sum_kernel<T>, {weight_sum_blocks(p)}, kWeightSumThreads,
                shared_bytes<T>(kWeightSumThreads), stream, p);
}

// --- How large -----------------------------------------------------------------------------------

// 9 x 33 source pixels of 4 x 16 outputs at stride 2; with 32 channels of each 47.5 KB.
constexpr int kWeightSourceMost = 320;
constexpr int64_t kWeightWorkspace = int64_t{32} << 20;

using Weight16 = WeightSplit<1, 1, 8, 1, 2, 3>;
using Weight32 = WeightSplit<2, 2, 2, 1, 2, 3>;
using WeightNarrow = WeightSplit<1, 1, 8, 1, 1, 3>;
using Weight16Pointwise = WeightSplit<1, 1, 8, 1, 2, 1>;
using Weight32Pointwise = WeightSplit<1, 1, 8, 2, 4, 1>;
static_assert(Weight32::values(kWeightSourceMost) * sizeof(float) + 20 * 1024 <= kLeastShared);

// Blocks that a tile's pixels are read by.
template <class Split>
int64_t weight_chunks(int64_t outputs, int64_t inputs) {
  return outputs / Split::kOutputs * ((inputs + Split::kInputs - 1) / Split::kInputs);
}

// Blocks that share out the tiles, for each chunk: two on a processor with the chunks, and partial
// results of `values` weights each that fit the workspace.
template <class Split>
int64_t weight_blocks(int64_t outputs, int64_t inputs, int64_t tiles, int64_t values) {
  const int64_t resident = 2 * current_device().processors / weight_chunks<Split>(outputs, inputs);
  const int64_t fitting = kWeightWorkspace / (values * static_cast<int64_t>(sizeof(float)));
  return max(min(min(tiles, resident), fitting), int64_t{1});
}

}  // namespace cwkernels
