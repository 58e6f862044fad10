#pragma once
#include <type_traits>

#include "bottleneck.cuh"
#include "lanes.cuh"

// The depthwise convolution of inverted_bottleneck and its gradients, for images of float or bf16,
// 3 x 3 and 5 x 5 and channels that are multiples of 16. A block has 32 channels of a tile of
// pixels: what the tile reads lies in shared memory with its halo, normalised or turned as it is
// loaded, 128 bytes a pixel. Lane l of each of the 8 warps has channel l, so no two lanes meet in a
// bank, and a warp goes through the tile in strips of four neighbouring pixels: a row of the window
// is read once for the four, (4 - 1) stride + R values for 4 R products.
namespace cwkernels {

constexpr int kDepthwiseThreads = 256;
constexpr int kDepthwiseWarps = kDepthwiseThreads / kWarp;
constexpr int kDepthwiseChannels = kWarp;
constexpr int kStrip = 4;
// Most pixels that a tile reads: 48 KB, which leaves the number of blocks on a processor, but for
// 86, 89 and 120, to the registers: two of a convolution (112), one of its gradients (152). An 8 x
// 8 image under 5 x 5 reads 12 x 12, 18 KB.
constexpr int kDepthwiseSource = 384;
constexpr int kDepthwiseOutputs = 128;

// How images are cut into tiles, of columns in whole strips and rows of whole strides.
__host__ __device__ inline int round_to(int64_t size, int step) {
  return static_cast<int>((size + step - 1) / step) * step;
}

// What a tile of `outputs` in a row reads: of a convolution, and of its gradient, whose sources are
// the convolution's outputs.
inline int forward_reach(int outputs, int size, int stride) {
  return (outputs - 1) * stride + size;
}
inline int gradient_reach(int outputs, int size, int stride) {
  return (outputs - 1 + size / 2) / stride + size / 2 / stride + 1;
}

inline DepthwiseTiles depthwise_tiles(int64_t images, int64_t height, int64_t width, int size,
                                      int stride, int (*reach)(int, int, int)) {
  const auto least = [](int64_t a, int64_t b) { return static_cast<int>(a < b ? a : b); };
  DepthwiseTiles t{};
  t.columns = least(round_to(width, kStrip), 16);
  t.rows = least(round_to(height, 2), 8);
  const auto source = [&] { return reach(t.rows, size, stride) * reach(t.columns, size, stride); };
  if (source() > kDepthwiseSource) t.columns = 8;
  while (source() > kDepthwiseSource) t.rows -= 2;
  t.source_rows = reach(t.rows, size, stride);
  t.source_columns = reach(t.columns, size, stride);
  const int fitting = least(kDepthwiseOutputs / (t.rows * t.columns), kDepthwiseSource / source());
  t.images = least(images, fitting > 1 ? fitting : 1);
  t.across = static_cast<int>((width + t.columns - 1) / t.columns);
  t.down = static_cast<int>((height + t.rows - 1) / t.rows);
  t.count = (images + t.images - 1) / t.images * t.down * t.across;
  return t;
}

// Shared memory of a block.
struct DepthwiseShared {
  float *source, *table;
  Moments<float>* merged;
  int* last;

  __device__ DepthwiseShared() {
    Shared shared;
    source = shared.take<float>(kDepthwiseSource * kDepthwiseChannels);
    table = shared.take<float>(4 * kDepthwiseChannels);
    merged = shared.take<Moments<float>>(kDepthwiseThreads);
    last = shared.take<int>(1);
  }
  static constexpr size_t bytes() {
    return shared_bytes<float>(kDepthwiseSource * kDepthwiseChannels) +
           shared_bytes<float>(4 * kDepthwiseChannels) +
           shared_bytes<Moments<float>>(kDepthwiseThreads) + shared_bytes<int>(1);
  }
};
static_assert(DepthwiseShared::bytes() == 49152 + 512 + 3072 + 128, "52 KB");

// Where a tile begins.
struct DepthwisePlace {
  int64_t image;
  int y, x;
};
__device__ inline DepthwisePlace depthwise_place(const DepthwiseTiles& t, int64_t number) {
  const int x = static_cast<int>(number % t.across) * t.columns;
  number /= t.across;
  return {number / t.down * t.images, static_cast<int>(number % t.down) * t.rows, x};
}

// The source of a tile from (y, x) of its images on: value(pixel) is four channels, made of what
// lies there; zeros outside of the images. A thread has the same four channels of all pixels.
template <class Value>
__device__ __forceinline__ void load_depthwise(const DepthwiseTiles& t, int64_t image,
                                               int64_t images, int y, int x, int height, int width,
                                               bool live, const Value& value, float* to) {
  constexpr int kPieces = kDepthwiseChannels / 4;
  const int piece = static_cast<int>(threadIdx.x) % kPieces;
  const int per_image = t.source_rows * t.source_columns;
  for (int i = static_cast<int>(threadIdx.x) / kPieces; i < t.images * per_image;
       i += kDepthwiseThreads / kPieces) {
    const int64_t own = image + i / per_image;
    const int row = y + i % per_image / t.source_columns, column = x + i % t.source_columns;
    Lanes<float, 4> four{};
    if (live && own < images && row >= 0 && row < height && column >= 0 && column < width) {
      four = value((own * height + row) * width + column);
    }
    store_lanes(to + i * kDepthwiseChannels + piece * 4, four);
  }
}

// The strips of a tile that are this warp's: f(image in the tile, row, first column).
template <class F>
__device__ __forceinline__ void each_strip(const DepthwiseTiles& t, const F& f) {
  const int strips = t.columns / kStrip;
  for (int i = static_cast<int>(threadIdx.x) / kWarp; i < t.images * t.rows * strips;
       i += kDepthwiseWarps) {
    f(i / (strips * t.rows), i / strips % t.rows, i % strips * kStrip);
  }
}

// This block's tiles, one after another.
template <class Stored, class F>
__device__ __forceinline__ void each_depthwise_tile(const BottleneckShare<Stored>& share,
                                                    const DepthwiseTiles& t, const F& f) {
  const Range tiles = share.tiles(t.count);
  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) f(depthwise_place(t, tile));
}

template <int kSize, class Stored>
__device__ __forceinline__ void load_taps(const BottleneckChoice<Stored>& choice, int64_t channel,
                                          float (&taps)[kSize * kSize]) {
  const float* from = choice.weight(1) + channel * kSize * kSize;
#pragma unroll
  for (int i = 0; i < kSize * kSize; ++i) taps[i] = load_global(from + i);
}

// --- Forward -------------------------------------------------------------------------------------

// R^2 taps and 4 sums in registers. A tile of 8 x 8 outputs of 5 x 5: 2 strips a warp, each of 40
// reads of shared memory and 100 products.
template <int kSize, int kStride, class Stored>
__device__ __forceinline__ void run_depthwise(const BottleneckShare<Stored>& share) {
  const BottleneckChoice<Stored>& choice = share.choice;
  const DepthwiseShared shared;
  const DepthwiseTiles& t = choice.launch.filter_tiles[choice.code - 1];
  const int64_t channels = choice.hidden;
  const int64_t first = share.first_channel();
  const int64_t channel = first + lane();
  const bool exists = channel < channels;
  float taps[kSize * kSize] = {};
  if (exists) load_taps<kSize>(choice, channel, taps);
  const int piece = static_cast<int>(threadIdx.x) % (kDepthwiseChannels / 4) * 4;
  fill_norms(choice, 0, first, kDepthwiseChannels, shared.table);
  const Stored* raw = choice.expanded() + first + piece;
  Stored* to = choice.filtered() + channel;
  const int height = static_cast<int>(choice.output_height);
  const int width = static_cast<int>(choice.output_width);
  Moments<float> all = Moments<float>::nothing();
  each_depthwise_tile(share, t, [&](const DepthwisePlace& at) {
    sync_block();
    load_depthwise(
        t, at.image, choice.p.images, at.y * kStride - kSize / 2, at.x * kStride - kSize / 2,
        static_cast<int>(choice.p.height), static_cast<int>(choice.p.width),
        first + piece < channels,
        [&](int64_t pixel) {
          return activated_lanes(load_lanes<4>(raw + pixel * channels), shared.table,
                                 kDepthwiseChannels, piece);
        },
        shared.source);
    sync_block();
    each_strip(t, [&](int image, int row, int column) {
      float sums[kStrip] = {};
#pragma unroll
      for (int r = 0; r < kSize; ++r) {
        const float* from =
            shared.source +
            ((image * t.source_rows + row * kStride + r) * t.source_columns + column * kStride) *
                kDepthwiseChannels +
            lane();
#pragma unroll
        for (int x = 0; x < (kStrip - 1) * kStride + kSize; ++x) {
          const float value = from[x * kDepthwiseChannels];
#pragma unroll
          for (int i = 0; i < kStrip; ++i) {
            const int s = x - i * kStride;
            if (s >= 0 && s < kSize) sums[i] += value * taps[r * kSize + s];
          }
        }
      }
      const int64_t own = at.image + image;
      const int y = at.y + row, x = at.x + column;
      if (!exists || own >= choice.p.images || y >= height) return;
      unsigned live = 0;
#pragma unroll
      for (int i = 0; i < kStrip; ++i) {
        if (x + i >= width) continue;
        live |= 1u << i;
        store_stored(to + ((own * height + y) * width + x + i) * channels, sums[i]);
      }
      if (choice.launch.measure) all = all.merged(moments_of(sums, live));
    });
  });
  allow_next();
  if (!choice.launch.measure) return;
  sync_block();
  const Moments<float> sum = merge_rows(all, shared.merged, kDepthwiseWarps, kWarp);
  share.template leave<Moments<float>>(shared.last, [&](int64_t) { return sum; });
}

// Grid: (shares, 1, architectures).
template <class Stored, int kStride>
__global__ void __launch_bounds__(kDepthwiseThreads, 1)
    bottleneck_depthwise(const __grid_constant__ BottleneckLaunch launch) {
  wait_for_previous();
  const BottleneckChoice<Stored> choice(launch, blockIdx.z);
  const BottleneckShare<Stored> share(choice, 1, kDepthwiseChannels);
  if (!share.works()) return;
  write_statistics_once(choice, 0);
  if (choice.kernel_size == 3) {
    run_depthwise<3, kStride>(share);
  } else {
    run_depthwise<5, kStride>(share);
  }
}

// --- Backward ------------------------------------------------------------------------------------

// Input pixel x gets output j by tap s = x - j stride + pad. For a strip from x = 0 on, outputs
// -(pad / stride) to (3 + pad) / stride; each is read once, for the input's gradient and, times the
// rectified input, for the weights'.
template <int kSize, int kStride>
struct GradientStrip {
  static constexpr int kPad = kSize / 2;
  static constexpr int kFirst = -(kPad / kStride), kLast = (kStrip - 1 + kPad) / kStride;

  // One row of the outputs, by row r of the window; `from` is output 0.
  template <int kRow>
  __device__ __forceinline__ static void add(const float* from, const float (&taps)[kSize * kSize],
                                             const float (&activated)[kStrip],
                                             float (&sums)[kStrip],
                                             float (&tap_sums)[kSize * kSize]) {
#pragma unroll
    for (int j = kFirst; j <= kLast; ++j) {
      const float value = from[j * kDepthwiseChannels];
#pragma unroll
      for (int i = 0; i < kStrip; ++i) {
        const int s = i - j * kStride + kPad;
        if (s < 0 || s >= kSize) continue;
        sums[i] += value * taps[kRow * kSize + s];
        tap_sums[kRow * kSize + s] += value * activated[i];
      }
    }
  }
};

// The rows of the window that reach input row y: all, or every other one.
template <int kSize, int kStride, int kRow, class F>
__device__ __forceinline__ void each_window_row(int parity, const F& f) {
  if constexpr (kRow < kSize) {
    if (kStride == 1 || kRow % kStride == parity) f(std::integral_constant<int, kRow>{});
    each_window_row<kSize, kStride, kRow + 1>(parity, f);
  }
}

// R^2 taps and as many of their gradients in registers: 50 for 5 x 5.
template <int kSize, int kStride, class Stored>
__device__ __forceinline__ void run_depthwise_gradient(const BottleneckShare<Stored>& share) {
  const BottleneckChoice<Stored>& choice = share.choice;
  using Strip = GradientStrip<kSize, kStride>;
  constexpr int kTaps = kSize * kSize, kPad = kSize / 2;
  const DepthwiseShared shared;
  const DepthwiseTiles& t = choice.launch.gradient_tiles[choice.code - 1];
  const int64_t channels = choice.hidden;
  const int64_t first = share.first_channel();
  const int64_t channel = first + lane();
  const bool exists = channel < channels;
  float taps[kTaps] = {}, tap_sums[kTaps] = {};
  if (exists) load_taps<kSize>(choice, channel, taps);
  const Norm<float> norm = exists ? choice.norm(0, channel) : Norm<float>{};
  const int piece = static_cast<int>(threadIdx.x) % (kDepthwiseChannels / 4) * 4;
  fill_norm_gradients(choice, 1, first, kDepthwiseChannels, shared.table);
  const Stored* gradient = choice.hidden_gradient(1) + first + piece;
  const Stored* filtered = choice.filtered() + first + piece;
  const Stored* raw = choice.expanded() + channel;
  Stored* to = choice.hidden_gradient(0) + channel;
  const int height = static_cast<int>(choice.p.height), width = static_cast<int>(choice.p.width);
  Sums<float> all = Sums<float>::nothing();
  each_depthwise_tile(share, t, [&](const DepthwisePlace& at) {
    sync_block();
    load_depthwise(
        t, at.image, choice.p.images, at.y / kStride + Strip::kFirst,
        at.x / kStride + Strip::kFirst, static_cast<int>(choice.output_height),
        static_cast<int>(choice.output_width), first + piece < channels,
        [&](int64_t pixel) {
          return raw_gradient_lanes(load_lanes<4>(gradient + pixel * channels),
                                    load_lanes<4>(filtered + pixel * channels), shared.table,
                                    kDepthwiseChannels, piece);
        },
        shared.source);
    sync_block();
    each_strip(t, [&](int image, int row, int column) {
      const int64_t own_image = at.image + image;
      const int y = at.y + row, x = at.x + column;
      if (!exists || own_image >= choice.p.images || y >= height) return;
      const int64_t begin = ((own_image * height + y) * width + x) * channels;
      float own[kStrip], activated[kStrip], sums[kStrip] = {};
#pragma unroll
      for (int i = 0; i < kStrip; ++i) {
        own[i] = x + i < width ? load_stored(raw + begin + i * channels) : 0.0f;
        activated[i] = x + i < width ? rectify(norm(own[i])) : 0.0f;
      }
      // Output row 0 of the window's row r is (y + pad - r) / stride.
      each_window_row<kSize, kStride, 0>((row + kPad) % kStride, [&](auto r) {
        const int source_row = (row + kPad - r.value) / kStride - Strip::kFirst;
        const float* from = shared.source +
                            ((image * t.source_rows + source_row) * t.source_columns +
                             column / kStride - Strip::kFirst) *
                                kDepthwiseChannels +
                            lane();
        Strip::template add<r.value>(from, taps, activated, sums, tap_sums);
      });
#pragma unroll
      for (int i = 0; i < kStrip; ++i) {
        if (x + i >= width) continue;
        const float through = norm(own[i]) > 0 ? sums[i] : 0.0f;
        store_stored(to + begin + i * channels, through);
        all.first += through;
        all.second += through * (own[i] - norm.mean);
      }
    });
  });
  allow_next();
  // The warps' gradients of the taps, merged in their order.
  sync_block();
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) {
    shared.source[(tap * kDepthwiseWarps + threadIdx.x / kWarp) * kWarp + lane()] = tap_sums[tap];
  }
  sync_block();
  float* partial = choice.weight_partial(1, share.part);
  for (int i = static_cast<int>(threadIdx.x); i < kTaps * kWarp; i += kDepthwiseThreads) {
    const int tap = i / kWarp;
    float sum = 0;
    for (int w = 0; w < kDepthwiseWarps; ++w) {
      sum += shared.source[(tap * kDepthwiseWarps + w) * kWarp + lane()];
    }
    if (exists) partial[channel * kTaps + tap] = sum;
  }
  auto* merged = reinterpret_cast<Sums<float>*>(shared.merged);
  const Sums<float> sum = merge_rows(all, merged, kDepthwiseWarps, kWarp);
  share.template leave<Sums<float>>(shared.last, [&](int64_t) { return sum; });
}
static_assert(25 * kDepthwiseThreads <= kDepthwiseSource * kDepthwiseChannels,
              "the taps' gradients are merged in the source's place");

// To the gradient before the first rectifier, the sums of the first batch norm and the partial
// gradients of the taps, one part a block. Grid: (shares, 1, architectures).
template <class Stored, int kStride>
__global__ void __launch_bounds__(kDepthwiseThreads, 1)
    bottleneck_depthwise_gradient(const __grid_constant__ BottleneckLaunch launch) {
  wait_for_previous();
  const BottleneckChoice<Stored> choice(launch, blockIdx.z);
  const BottleneckShare<Stored> share(choice, 0, kDepthwiseChannels);
  if (!share.works()) return;
  if (choice.kernel_size == 3) {
    run_depthwise_gradient<3, kStride>(share);
  } else {
    run_depthwise_gradient<5, kStride>(share);
  }
}

}  // namespace cwkernels
