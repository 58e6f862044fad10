#pragma once
#include "lanes.cuh"
#include "mma.cuh"
#include "tile_plan.cuh"

// Convolutions as products of matrices, without a matrix of patches: a tile of output pixels times
// the channels that they read. The pixels that a tile reads lie in shared memory with their halo,
// so a tap of the window is an offset there, for any image size and stride; the gradient of an
// input is the same with the window turned round. What a kernel does to a value as it reads it is
// its Load, and where results go is up to its epilogue.
namespace cwkernels {

// Four channels of a pixel.
using Four = Lanes<float, 4>;

// --- Into shared memory --------------------------------------------------------------------------

// Loads are issued kBatch at a time, so that a thread waits for memory once for all of them; a Load
// of several values may say fewer, since they wait in registers.
constexpr int kBatch = 4;
template <class Load, class = void>
struct BatchOf {
  static constexpr int value = kBatch;
};
template <class Load>
struct BatchOf<Load, decltype(static_cast<void>(Load::kBatch))> {
  static constexpr int value = Load::kBatch;
};
template <class Load, int kMost>
constexpr int kBatchOf = BatchOf<Load>::value < kMost ? BatchOf<Load>::value : kMost;

// f(i) is a value for each i in [0, count) that this thread takes, then store(i, value).
template <class Value, int kCount, class F, class Store>
__device__ __forceinline__ void move_in_batches(int count, const F& f, const Store& store) {
  const int threads = static_cast<int>(blockDim.x);
  for (int first = static_cast<int>(threadIdx.x); first < count; first += kCount * threads) {
    Value batch[kCount];
#pragma unroll
    for (int b = 0; b < kCount; ++b) {
      if (first + b * threads < count) batch[b] = f(first + b * threads);
    }
#pragma unroll
    for (int b = 0; b < kCount; ++b) {
      if (first + b * threads < count) store(first + b * threads, batch[b]);
    }
  }
}

// The source pixels of a tile, kDepth channels of each from `channel` on, kStride values apart,
// zeros outside of the image. load(image, y, x, channel) is Four of them.
template <class Precision, int kDepth, int kStride, int kMost = kBatch, class Load>
__device__ __forceinline__ void load_source(const Tiles& t, const Window& window,
                                            const TilePlace& tile, int height, int width,
                                            int channel, const Load& load, float* to) {
  constexpr int kPieces = kDepth / 4;
  const auto read = [&](int i) {
    const InStack at = in_stack(t.source_rows, t.source_columns, i / kPieces);
    const int64_t image = tile.image + at.image;
    const int y = tile.y * window.step + at.y - window.top;
    const int x = tile.x * window.step + at.x - window.left;
    Four four{};
    if (image < t.all_images && y >= 0 && y < height && x >= 0 && x < width) {
      four = load(image, y, x, channel + i % kPieces * 4);
#pragma unroll
      for (int e = 0; e < 4; ++e) four[e] = Precision::hold(four[e]);
    }
    return four;
  };
  move_in_batches<Four, kBatchOf<Load, kMost>>(
      t.source_pixels() * kPieces, read, [&](int i, const Four& four) {
        store_lanes(to + i / kPieces * kStride + i % kPieces * 4, four);
      });
}

// Weights of a tile's outputs lie [tap][output][depth]; taps are 4 mod 32 values apart from a
// multiple of 32, so that neighbours in the bank, which are the taps of a channel, go to different
// banks.
template <int kOutputs, int kStride>
constexpr int kTapStride = kOutputs * kStride + 4;

// Those of outputs from `output` on and of the channels from `channel` on. `weight` is [K, C, R,
// R], `inner` its C. kTransposed: outputs are the convolution's inputs, and channels its outputs.
// Either way what is read of a row of the bank lies side by side.
template <class Precision, int kOutputs, int kDepth, int kStride, bool kTransposed>
struct WeightChunk {
  static constexpr int kInner = kTransposed ? kOutputs : kDepth;
  static constexpr int kRows = kTransposed ? kDepth : kOutputs;

  const float* first;
  int inner, left;  // C, and those behind `channel`: more are zeros
  float* to;

  __device__ __forceinline__ WeightChunk(const float* weight, int inner, int size, int output,
                                         int channel, float* to)
      : first(weight + (kTransposed ? static_cast<int64_t>(channel) * inner + output
                                    : static_cast<int64_t>(output) * inner + channel) *
                           size * size),
        inner(inner),
        left(kTransposed ? kOutputs : inner - channel),
        to(to) {}

  __device__ __forceinline__ void store(int tap, int in, int row, float value) const {
    const int output = kTransposed ? in : row, depth = kTransposed ? row : in;
    to[tap * kTapStride<kOutputs, kStride> + output * kStride + depth] = Precision::hold(value);
  }

  // Any window, value by value.
  __device__ __forceinline__ void load(const Window& window, int size) const {
    const int taps = window.taps();
    const auto read = [&](int i) {
      const int tap = i % taps, in = i / taps % kInner, row = i / (taps * kInner);
      if (in >= left) return 0.0f;
      const int r = window.r + tap / window.columns * window.r_step;
      const int s = window.s + tap % window.columns * window.s_step;
      return first[(static_cast<int64_t>(row) * inner + in) * size * size + r * size + s];
    };
    move_in_batches<float, kBatch>(taps * kOutputs * kDepth, read, [&](int i, float value) {
      store(i % taps, i / taps % kInner, i / (taps * kInner), value);
    });
  }

  // A window of all kTaps taps, turned round if transposed, by 16 bytes: a thread has all taps of
  // four channels, kTaps loads that are under way at once. Of 64 x 16 channels and 3 x 3 taps that
  // is one round of 256 threads, where value by value there are 36.
  template <int kTaps>
  __device__ __forceinline__ void load_whole() const {
    static_assert(kInner % 4 == 0);
    constexpr int kRuns = kInner / 4;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kRuns;
         i += static_cast<int>(blockDim.x)) {
      // Neighbours store to other banks: those of a row are 4 values apart, or 20.
      const int row = kTransposed ? i % kRows : i / kRuns;
      const int in = (kTransposed ? i / kRows : i % kRuns) * 4;
      const float* from = first + (static_cast<int64_t>(row) * inner + in) * kTaps;
      float values[4 * kTaps];
#pragma unroll
      for (int v = 0; v < kTaps; ++v) {
        const Four four = load_lanes<4>(from + v * 4);
#pragma unroll
        for (int e = 0; e < 4; ++e) values[v * 4 + e] = Precision::hold(four[e]);
      }
      float* own = to + (kTransposed ? in * kStride + row : row * kStride + in);
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap, own += kTapStride<kOutputs, kStride>) {
        const int source = kTransposed ? kTaps - 1 - tap : tap;
        Four four;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          four[c] = values[c * kTaps + source];
          if (kTransposed) own[c * kStride] = four[c];
        }
        if (!kTransposed) store_lanes(own, four);
      }
    }
  }
};

template <class Precision, int kOutputs, int kDepth, int kStride, bool kTransposed>
__device__ __forceinline__ void load_weights(const Window& window, const float* weight, int inner,
                                             int size, int output, int channel, float* to) {
  const WeightChunk<Precision, kOutputs, kDepth, kStride, kTransposed> chunk(weight, inner, size,
                                                                             output, channel, to);
  const bool whole = window.taps() == size * size && size <= 3 && inner % 4 == 0 &&
                     chunk.left >= chunk.kInner &&
                     reinterpret_cast<uintptr_t>(chunk.first) % sizeof(Four) == 0;
  if (!whole) {
    chunk.load(window, size);
  } else if (size == 3) {
    chunk.template load_whole<9>();
  } else {
    chunk.template load_whole<1>();
  }
}

// --- Products ------------------------------------------------------------------------------------

// How the warps of a block share out a tile: kWarpsM x kWarpsN of them, kM x kN fragments each, and
// kDepth channels at a time. Rows of kDepth + 4 values are what ldmatrix reads without conflicts.
template <int kWarpsM_, int kWarpsN_, int kM_, int kN_, int kDepth_>
struct TileSplit {
  static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kM = kM_, kN = kN_;
  static constexpr int kDepth = kDepth_, kStride = kDepth + 4;
  static constexpr int kPixels = kWarpsM * kM * kMmaRows;
  static constexpr int kOutputs = kWarpsN * kN * kMmaColumns;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarp;
  // Blocks on a processor that the registers are to allow.
  static constexpr int kResident = kM * kN > 4 ? 1 : 2;
  // With an epilogue that keeps sums, split operands leave room for one.
  static constexpr int resident(int products) { return kM * kN * products > 4 ? 1 : 2; }
  using Sums = Accumulators<kM, kN>;

  // Of this warp: the first pixel and the first output.
  __device__ __forceinline__ static int pixel() {
    return static_cast<int>(threadIdx.x) / kWarp % kWarpsM * (kM * kMmaRows);
  }
  __device__ __forceinline__ static int output() {
    return static_cast<int>(threadIdx.x) / kWarp / kWarpsM * (kN * kMmaColumns);
  }
  __host__ __device__ static constexpr int64_t source_values(int source_pixels) {
    return static_cast<int64_t>(source_pixels) * kStride;
  }
  __host__ __device__ static constexpr int64_t weight_values(int taps) {
    return static_cast<int64_t>(taps) * kTapStride<kOutputs, kStride>;
  }
};

// Where this lane reads the source pixels of its rows: made once for all channels and taps.
template <class Split>
struct SourceRows {
  int at[Split::kM];

  __device__ __forceinline__ SourceRows(const Tiles& t, const Window& window) {
#pragma unroll
    for (int i = 0; i < Split::kM; ++i) {
      const int pixel = Split::pixel() + i * kMmaRows + lane_row_of_a();
      at[i] = source_number(t, window, pixel) * Split::kStride + lane_depth_of_a();
    }
  }
};

// Adds the products of the channels that lie in shared memory, over the taps of a window.
template <class Precision, class Split>
__device__ __forceinline__ void multiply_tile(typename Split::Sums& sums, const Tiles& t,
                                              const Window& window, const SourceRows<Split>& rows,
                                              const float* source, const float* weights) {
  constexpr int kStride = Split::kStride;
  const float* columns =
      weights + (Split::output() + lane_row_of_b()) * kStride + lane_depth_of_b();
  for (int i = 0; i < window.rows; ++i) {
    for (int j = 0; j < window.columns; ++j) {
      const float* from = source + (i * t.source_columns + j) * kStride;
#pragma unroll
      for (int depth = 0; depth < Split::kDepth; depth += kMmaDepth) {
        const float* a[Split::kM];
#pragma unroll
        for (int m = 0; m < Split::kM; ++m) a[m] = from + rows.at[m] + depth;
        multiply_rows<Precision>(sums, a, columns + depth, kStride);
      }
      columns += kTapStride<Split::kOutputs, kStride>;
    }
  }
}

// Hands out the results: pixel(p) for output p of the tile gives a function of (j, n, value of
// output channel n, value of n + 1), j the fragment, a constant for the compiler. Four lanes have
// eight neighbouring channels, 32 bytes, of a pixel.
template <class Split, class Pixel>
__device__ __forceinline__ void hand_out(const typename Split::Sums& sums, const Pixel& pixel) {
  const int g = lane() / 4, n = Split::output() + lane() % 4 * 2;
#pragma unroll
  for (int i = 0; i < Split::kM; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto pair = pixel(Split::pixel() + i * kMmaRows + half * 8 + g);
#pragma unroll
      for (int j = 0; j < Split::kN; ++j) {
        const float* values = sums.values[i][j] + half * 2;
        pair(j, n + j * kMmaColumns, values[0], values[1]);
      }
    }
  }
}

// --- How large -----------------------------------------------------------------------------------

// The least shared memory of a block on any device, sm_86's, so that one choice serves all.
constexpr int64_t kLeastShared = 99 * 1024;
// 17 x 33 source pixels of 8 x 16 outputs at stride 2.
constexpr int64_t kSourceMost = 576;

// 128 pixels times 16, 32 or 64 outputs by 8 warps.
using Tile16 = TileSplit<8, 1, 1, 2, 16>;
using Tile32 = TileSplit<4, 2, 2, 2, 16>;
using Tile64 = TileSplit<4, 2, 2, 4, 16>;
constexpr int kTilePixels = 128;
static_assert(Tile16::kPixels == kTilePixels && Tile32::kPixels == kTilePixels &&
              Tile64::kPixels == kTilePixels);

// Of shared memory, for the source and the weights.
template <class Split>
constexpr int64_t tile_bytes(int source_pixels, int taps) {
  return static_cast<int64_t>(
      shared_bytes<float>(static_cast<size_t>(Split::source_values(source_pixels))) +
      shared_bytes<float>(static_cast<size_t>(Split::weight_values(taps))));
}

// The most source pixels of a tile beside the weights of 16 outputs and `other` bytes.
inline int source_most(int taps, int64_t other) {
  const int64_t pixel = Tile16::kStride * static_cast<int64_t>(sizeof(float));
  return static_cast<int>(
      min(kSourceMost, (kLeastShared - other - tile_bytes<Tile16>(0, taps)) / pixel - 2));
}

// f(Tile64{}), f(Tile32{}) or f(Tile16{}): as many outputs a block as the channels and shared
// memory allow, since each source pixel is read once for them, while every processor gets one of
// `tiles` times the chunks of outputs.
template <class F>
auto with_tile(const ConvParts& all, int outputs, int64_t tiles, int64_t other, const F& f) {
  const auto fits = [&](auto split) {
    using Split = decltype(split);
    return outputs % Split::kOutputs == 0 &&
           tiles * (outputs / Split::kOutputs) >= current_device().processors &&
           tile_bytes<Split>(all.source_pixels(), all.taps()) + other <= kLeastShared;
  };
  if (fits(Tile64{})) return f(Tile64{});
  if (fits(Tile32{})) return f(Tile32{});
  return f(Tile16{});
}

}  // namespace cwkernels
