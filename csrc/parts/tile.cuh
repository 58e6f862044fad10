#pragma once
#include "lanes.cuh"
#include "mma.cuh"

// Convolutions as products of matrices, without a matrix of patches: a tile of output pixels times
// the channels that they read. The pixels that a tile reads lie in shared memory with their halo,
// so a tap of the window is an offset there, for any image size and stride; the gradient of an
// input is the same with the window turned round. What a kernel does to a value as it reads it is
// its Load, and where results go is up to its epilogue.
namespace cwkernels {

// Which source pixels and weights make an output: tap (i, j) of output (y, x) reads the source at
// (step y + i - top, step x + j - left) and the weight at (r + i r_step, s + j s_step).
struct Window {
  int rows, columns;
  int step, top, left;
  int r, r_step, s, s_step;

  __host__ __device__ int taps() const { return rows * columns; }
};

// How the outputs of an image stack are cut into tiles: `rows` x `columns` pixels of `images`
// images.
struct Tiles {
  int images, rows, columns;
  int source_rows, source_columns;  // that a tile reads of each image
  int across, down;                 // tiles of an image
  int64_t count;
  int64_t all_images;
  int height, width;  // outputs of an image

  __host__ __device__ int pixels() const { return images * rows * columns; }
  __host__ __device__ int source_pixels() const { return images * source_rows * source_columns; }
};

// Where a tile, or an output of it, is.
struct TilePlace {
  int64_t image;
  int y, x;
};

// Four channels of a pixel.
using Four = Lanes<float, 4>;

// --- On the host ---------------------------------------------------------------------------------

inline Window forward_window(int size, int stride) {
  return {size, size, stride, size / 2, size / 2, 0, 1, 0, 1};
}

// One axis of the gradient of the inputs 2 i + parity (or of all, if the stride is 1): input y gets
// output (y + pad - r) / stride for each r that leaves no rest.
struct WindowAxis {
  int taps, top, first, step;
};
inline WindowAxis gradient_axis(int size, int stride, int parity) {
  const int pad = size / 2;
  int last = size - 1;
  while (last >= 0 && (parity + pad - last) % stride != 0) --last;
  if (last < 0) return {0, 0, 0, 0};
  return {last / stride + 1, (last - pad - parity) / stride, last, -stride};
}
inline Window gradient_window(int size, int stride, int row_parity, int column_parity) {
  const WindowAxis y = gradient_axis(size, stride, row_parity);
  const WindowAxis x = gradient_axis(size, stride, column_parity);
  return {y.taps, x.taps, 1, y.top, x.top, y.first, y.step, x.first, x.step};
}

// Tiles of at most `pixels` outputs that read at most `source_pixels`: as square as the images
// allow, and of several images where those are small.
inline Tiles make_tiles(const Window& window, int64_t images, int64_t height, int64_t width,
                        int pixels, int source_pixels) {
  constexpr int64_t kWidest = 16;
  const auto even = [](int64_t size, int64_t most) {
    const int64_t parts = (size + most - 1) / most;
    return static_cast<int>((size + parts - 1) / parts);
  };
  Tiles t{};
  t.height = static_cast<int>(height);
  t.width = static_cast<int>(width);
  t.all_images = images;
  t.columns = even(width, kWidest);
  const auto reach = [&](int outputs, int taps) {
    return (outputs - 1) * window.step + max(taps, 1);
  };
  t.source_columns = reach(t.columns, window.columns);
  for (int64_t most = max(1, pixels / t.columns); most > 0; --most) {
    t.rows = even(height, most);
    t.source_rows = reach(t.rows, window.rows);
    if (t.source_rows * t.source_columns <= source_pixels) break;
  }
  const int fitting =
      min(pixels / (t.rows * t.columns), source_pixels / (t.source_rows * t.source_columns));
  t.images = static_cast<int>(min(static_cast<int64_t>(max(fitting, 1)), images));
  t.across = (t.width + t.columns - 1) / t.columns;
  t.down = (t.height + t.rows - 1) / t.rows;
  t.count = (images + t.images - 1) / t.images * t.down * t.across;
  return t;
}

// --- Places --------------------------------------------------------------------------------------

__device__ __forceinline__ TilePlace tile_place(const Tiles& t, int64_t number) {
  const int x = static_cast<int>(number % t.across) * t.columns;
  number /= t.across;
  const int y = static_cast<int>(number % t.down) * t.rows;
  return {number / t.down * t.images, y, x};
}

// Output `pixel` of a tile, or whether there is none.
__device__ __forceinline__ bool output_place(const Tiles& t, const TilePlace& tile, int pixel,
                                             TilePlace* place) {
  const int x = pixel % t.columns, y = pixel / t.columns % t.rows;
  const int image = pixel / (t.columns * t.rows);
  *place = {tile.image + image, tile.y + y, tile.x + x};
  return image < t.images && place->image < t.all_images && place->y < t.height &&
         place->x < t.width;
}

// The number of the source pixel, in the tile, of tap (0, 0) of an output. There may be more rows
// of a product than outputs; they read the first.
__device__ __forceinline__ int source_number(const Tiles& t, const Window& window, int pixel) {
  if (pixel >= t.pixels()) return 0;
  const int x = pixel % t.columns, y = pixel / t.columns % t.rows;
  const int image = pixel / (t.columns * t.rows);
  return (image * t.source_rows + y * window.step) * t.source_columns + x * window.step;
}

// --- Into shared memory --------------------------------------------------------------------------

// Loads are issued kBatch at a time, so that a thread waits for memory once for all of them.
constexpr int kBatch = 4;

// f(i) is a value for each i in [0, count) that this thread takes, then store(i, value).
template <class Value, class F, class Store>
__device__ __forceinline__ void move_in_batches(int count, const F& f, const Store& store) {
  const int threads = static_cast<int>(blockDim.x);
  for (int first = static_cast<int>(threadIdx.x); first < count; first += kBatch * threads) {
    Value batch[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (first + b * threads < count) batch[b] = f(first + b * threads);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (first + b * threads < count) store(first + b * threads, batch[b]);
    }
  }
}

// The source pixels of a tile, kDepth channels of each from `channel` on, kStride values apart,
// zeros outside of the image. load(image, y, x, channel) is Four of them.
template <class Precision, int kDepth, int kStride, class Load>
__device__ __forceinline__ void load_source(const Tiles& t, const Window& window,
                                            const TilePlace& tile, int height, int width,
                                            int channel, const Load& load, float* to) {
  constexpr int kPieces = kDepth / 4;
  const auto read = [&](int i) {
    const int pixel = i / kPieces;
    const int column = pixel % t.source_columns, row = pixel / t.source_columns % t.source_rows;
    const int64_t image = tile.image + pixel / (t.source_columns * t.source_rows);
    const int y = tile.y * window.step + row - window.top;
    const int x = tile.x * window.step + column - window.left;
    Four four{};
    if (image < t.all_images && y >= 0 && y < height && x >= 0 && x < width) {
      four = load(image, y, x, channel + i % kPieces * 4);
#pragma unroll
      for (int e = 0; e < 4; ++e) four[e] = Precision::hold(four[e]);
    }
    return four;
  };
  move_in_batches<Four>(t.source_pixels() * kPieces, read, [&](int i, const Four& four) {
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
// Either way neighbouring threads read neighbours.
template <class Precision, int kOutputs, int kDepth, int kStride, bool kTransposed>
__device__ __forceinline__ void load_weights(const Window& window, const float* weight, int inner,
                                             int size, int output, int channel, float* to) {
  constexpr int kInner = kTransposed ? kOutputs : kDepth;
  const int taps = window.taps();
  const float* first = weight + (kTransposed ? static_cast<int64_t>(channel) * inner + output
                                             : static_cast<int64_t>(output) * inner + channel) *
                                    size * size;
  const auto read = [&](int i) {
    const int tap = i % taps, in = i / taps % kInner, out = i / (taps * kInner);
    const int r = window.r + tap / window.columns * window.r_step;
    const int s = window.s + tap % window.columns * window.s_step;
    return load_constant(first + (static_cast<int64_t>(out) * inner + in) * size * size + r * size +
                         s);
  };
  move_in_batches<float>(taps * kOutputs * kDepth, read, [&](int i, float value) {
    const int tap = i % taps, in = i / taps % kInner, out = i / (taps * kInner);
    const int row = kTransposed ? in : out, depth = kTransposed ? out : in;
    to[tap * kTapStride<kOutputs, kStride> + row * kStride + depth] = Precision::hold(value);
  });
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

// Hands out the results: pixel(p) for output p of the tile gives a function of (n, value of output
// channel n, value of n + 1). Four lanes have eight neighbouring channels, 32 bytes, of a pixel.
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
        pair(n + j * kMmaColumns, values[0], values[1]);
      }
    }
  }
}

}  // namespace cwkernels
