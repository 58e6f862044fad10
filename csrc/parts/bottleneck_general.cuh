#pragma once
#include "bottleneck.cuh"

// Forward kernels of inverted_bottleneck for every shape and for double, on plain CUDA cores. A
// block of 256 threads gives tiles of 32 pixels x 32 channels: lane l of warp w has channel l of
// pixels w, w + 8, w + 16 and w + 24. Blocks persist: block b of an architecture's n has the b-th
// n-th of its pixel tiles, and leaves one partial sum for them.
namespace cwkernels {

constexpr int kGeneralThreads = 256;
constexpr int kGeneralTile = 32;
constexpr int kGeneralRows = 8;
constexpr int kGeneralValues = kGeneralTile / kGeneralRows;
// Rows of a tile in shared memory are an odd number of words apart, so that a warp reads a column
// without conflicts.
constexpr int kGeneralPitch = kGeneralTile + 1;
static_assert(kGeneralTile == kWarp);
static_assert(kGeneralThreads == kGeneralRows * kWarp);

// The pixel tiles of this block.
template <class Stored>
__device__ Range general_tiles(const BottleneckShare<Stored>& share) {
  return share.tiles(ceil_div(share.choice.pixels(share.place), kGeneralTile));
}

// Shared memory of a block: two operands, what its rows of threads merge, and a flag.
template <class T>
struct GeneralShared {
  T *left, *right;
  Moments<T>* moments;
  int* last;

  __device__ GeneralShared() {
    Shared shared;
    left = shared.take<T>(kGeneralTile * kGeneralPitch);
    right = shared.take<T>(kGeneralTile * kGeneralPitch);
    moments = shared.take<Moments<T>>(kGeneralThreads);
    last = shared.take<int>(1);
  }
  static constexpr size_t bytes() {
    return 2 * shared_bytes<T>(kGeneralTile * kGeneralPitch) +
           shared_bytes<Moments<T>>(kGeneralThreads) + shared_bytes<int>(1);
  }
};
static_assert(GeneralShared<double>::bytes() == 16896 + 6144 + 128, "23 KB, half of it for float");

// tile[row][column] = of(column)(row), zero outside of the ranges.
template <class T, class Operand>
__device__ void fill_general(const Operand& of, Range rows, Range columns, T* tile) {
  const int64_t column = columns.begin + lane();
  const int first = static_cast<int>(threadIdx.x) / kWarp;
  T* to = tile + lane();
  for (int r = first; r < kGeneralTile; r += kGeneralRows) to[r * kGeneralPitch] = T(0);
  if (column >= columns.end) return;
  const auto value = of(column);
  for (int r = first; r < kGeneralTile; r += kGeneralRows) {
    if (rows.begin + r < rows.end) to[r * kGeneralPitch] = value(rows.begin + r);
  }
}

// sums[v] = sum over d in `depth` of left(i, d) right(d, j), for this thread's rows i of `rows` and
// column j of `columns`. An operand gives of(column)(row) of a matrix: left's rows are i and its
// columns d, or the other way round if kLeftByDepth; right's are j and d, or d and j.
template <bool kLeftByDepth, bool kRightByDepth, class T, class Left, class Right>
__device__ void multiply_general(const Left& left, const Right& right, Range rows, Range columns,
                                 Range depth, const GeneralShared<T>& shared,
                                 T (&sums)[kGeneralValues]) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  constexpr int kLeftRow = kLeftByDepth ? 1 : kGeneralPitch;
  constexpr int kLeftDepth = kLeftByDepth ? kGeneralPitch : 1;
  constexpr int kRightColumn = kRightByDepth ? 1 : kGeneralPitch;
  constexpr int kRightDepth = kRightByDepth ? kGeneralPitch : 1;
  for (T& sum : sums) sum = T(0);
  for (int64_t d = depth.begin; d < depth.end; d += kGeneralTile) {
    const Range own{d, depth.end};
    sync_block();
    fill_general(left, kLeftByDepth ? own : rows, kLeftByDepth ? rows : own, shared.left);
    fill_general(right, kRightByDepth ? own : columns, kRightByDepth ? columns : own, shared.right);
    sync_block();
    for (int k = 0; k < kGeneralTile; ++k) {
      const T factor = shared.right[lane() * kRightColumn + k * kRightDepth];
      for (int v = 0; v < kGeneralValues; ++v) {
        const int row = warp + v * kGeneralRows;
        sums[v] += shared.left[row * kLeftRow + k * kLeftDepth] * factor;
      }
    }
  }
}

// The statistics of a channel's pixels as a block goes through its tiles.
template <class T>
struct GeneralMoments {
  Moments<T> own = Moments<T>::nothing();

  __device__ void add(const T (&values)[kGeneralValues], unsigned live) {
    own = own.merged(moments_of(values, live));
  }
  // By all threads of the block, once.
  template <class Stored>
  __device__ void leave(const BottleneckShare<Stored>& share, const GeneralShared<T>& shared) {
    const Moments<T> all = merge_rows(own, shared.moments, kGeneralRows, kWarp);
    share.template leave<Moments<T>>(shared.last, [&](int64_t) { return all; });
  }
};

// f(pixel, value index) for those of a tile's pixels that are this thread's; returns which exist.
template <class F>
__device__ unsigned each_pixel(Range pixels, const F& f) {
  unsigned live = 0;
  for (int v = 0; v < kGeneralValues; ++v) {
    const int64_t pixel = pixels.begin + threadIdx.x / kWarp + v * kGeneralRows;
    if (pixel >= pixels.end) continue;
    live |= 1u << v;
    f(pixel, v);
  }
  return live;
}

template <class Stored>
__device__ Computed<Stored> residual_of(const BottleneckChoice<Stored>& choice, int64_t at) {
  return choice.passes_input() ? load_stored(choice.input() + at) : Computed<Stored>(0);
}

// A pointwise convolution's tiles, from an operand of pixels.
template <class Stored, class Source>
__device__ void run_pointwise(const BottleneckShare<Stored>& share, const Source& source) {
  using T = Computed<Stored>;
  const GeneralShared<T> shared;
  const BottleneckChoice<Stored>& choice = share.choice;
  const int place = share.place;
  const int64_t channels = choice.channels(place), depth = choice.depth(place);
  const int64_t first = share.first_channel(), channel = first + lane();
  const T* weight = choice.weight(place);
  const auto weights = [=](int64_t d) { return [=](int64_t j) { return weight[j * depth + d]; }; };
  Stored* raw = choice.raw(place);
  // By known statistics the last convolution's result is finished here.
  const bool finish = place == 2 && !choice.p.training && channel < channels;
  const Norm<T> norm = finish ? choice.norm(2, channel) : Norm<T>{};
  GeneralMoments<T> moments;
  const Range tiles = general_tiles(share);
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    const Range pixels{t * kGeneralTile, choice.pixels(place)};
    T sums[kGeneralValues];
    multiply_general<false, false>(source, weights, pixels, {first, channels}, {0, depth}, shared,
                                   sums);
    if (channel >= channels) continue;
    const unsigned live = each_pixel(pixels, [&](int64_t pixel, int v) {
      const int64_t at = pixel * channels + channel;
      store_stored(raw + at, sums[v]);
      if (finish) store_stored(choice.output() + at, norm(sums[v]) + residual_of(choice, at));
    });
    moments.add(sums, live);
  }
  allow_next();
  if (choice.launch.measure) moments.leave(share, shared);
}

// Grid: (shares, 1, architectures). Places 0 and 2.
template <class Stored, int kPlace>
__global__ void __launch_bounds__(kGeneralThreads, 1)
    bottleneck_pointwise_general(const __grid_constant__ BottleneckLaunch launch) {
  wait_for_previous();
  const BottleneckChoice<Stored> choice(launch, blockIdx.z);
  const BottleneckShare<Stored> share(choice, kPlace, kGeneralTile);
  if (!share.works()) return;
  const Stored* input = choice.input();
  const int64_t pitch = choice.p.input_channels;
  if (kPlace == 0) {
    run_pointwise(share, [=](int64_t channel) {
      return [=](int64_t pixel) { return load_stored(input + pixel * pitch + channel); };
    });
  } else if (choice.code == 0) {
    run_pointwise(share, [=, &choice](int64_t channel) {
      return [=, &choice](int64_t pixel) {
        return load_stored(input + choice.strided_pixel(pixel) * pitch + channel);
      };
    });
  } else {
    write_statistics_once(choice, 1);
    run_pointwise(share, choice.activated(1));
  }
}

// The sum over the taps around an output pixel.
template <class T, class Stored, class Column>
__device__ T filter_pixel(const BottleneckChoice<Stored>& choice, const T* taps,
                          const Column& column, int64_t pixel) {
  const int64_t size = choice.kernel_size, width = choice.p.width, height = choice.p.height;
  const int64_t image = pixel / (choice.output_width * choice.output_height);
  const int64_t top =
      pixel / choice.output_width % choice.output_height * choice.p.stride - size / 2;
  const int64_t left = pixel % choice.output_width * choice.p.stride - size / 2;
  T sum = T(0);
  for (int64_t r = 0; r < size; ++r) {
    for (int64_t s = 0; s < size; ++s) {
      const int64_t y = top + r, x = left + s;
      if (y < 0 || y >= height || x < 0 || x >= width) continue;
      sum += taps[r * size + s] * column((image * height + y) * width + x);
    }
  }
  return sum;
}

// Grid: (shares, 1, architectures).
template <class Stored>
__global__ void __launch_bounds__(kGeneralThreads, 1)
    bottleneck_depthwise_general(const __grid_constant__ BottleneckLaunch launch) {
  using T = Computed<Stored>;
  wait_for_previous();
  const BottleneckChoice<Stored> choice(launch, blockIdx.z);
  const BottleneckShare<Stored> share(choice, 1, kGeneralTile);
  if (!share.works()) return;
  write_statistics_once(choice, 0);
  const GeneralShared<T> shared;
  const int64_t channels = choice.hidden, channel = share.first_channel() + lane();
  GeneralMoments<T> moments;
  if (channel < channels) {
    const auto column = choice.activated(0)(channel);
    const T* taps = choice.weight(1) + channel * choice.depth(1);
    const Range tiles = general_tiles(share);
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      T sums[kGeneralValues];
      const Range pixels{t * kGeneralTile, choice.output_pixels};
      const unsigned live = each_pixel(pixels, [&](int64_t pixel, int v) {
        sums[v] = filter_pixel(choice, taps, column, pixel);
        store_stored(choice.filtered() + pixel * channels + channel, sums[v]);
      });
      moments.add(sums, live);
    }
  }
  allow_next();
  if (launch.measure) moments.leave(share, shared);
}

// What the last convolution's epilogue could not do: its batch norm by the statistics that it
// measured itself, with the residual; and where nothing runs, the input or zeros. Grid: (blocks,
// runs of channels, architectures).
template <class Stored>
__global__ void __launch_bounds__(kGeneralThreads, 1)
    bottleneck_finish(const __grid_constant__ BottleneckLaunch launch) {
  using T = Computed<Stored>;
  wait_for_previous();
  allow_next();
  const BottleneckChoice<Stored> choice(launch, blockIdx.z);
  const int64_t channels = choice.p.output_channels;
  const int64_t channel = static_cast<int64_t>(blockIdx.y) * kGeneralTile + lane();
  const bool copies = !choice.runs(2);
  if (!copies && !launch.measure) return;
  if (!copies) write_statistics_once(choice, 2);
  if (channel >= channels) return;
  const Norm<T> norm = copies ? Norm<T>{} : choice.norm(2, channel);
  const Stored* raw = copies ? nullptr : choice.projected();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kGeneralTile;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kGeneralTile;
       first < choice.output_pixels; first += step) {
    each_pixel({first, choice.output_pixels}, [&](int64_t pixel, int) {
      const int64_t at = pixel * channels + channel;
      const T passed = residual_of(choice, at);
      store_stored(choice.output() + at, copies ? passed : norm(load_stored(raw + at)) + passed);
    });
  }
}

}  // namespace cwkernels
