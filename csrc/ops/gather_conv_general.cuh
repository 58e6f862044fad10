#pragma once
#include "../parts/lanes.cuh"
#include "gather_conv.h"

// gather_conv for every valid shape in each dtype: one thread, or one warp, for each result.
// gather_conv.cuh has the kernels for the shapes of the networks.
namespace cwkernels {

// Rows go to a kernel in its parameters. More architectures than these run in several launches.
constexpr int64_t kGatherConvMost = 64;

struct GatherConvLaunch {
  GatherConvParams conv;
  int64_t first, count;             // architectures of this launch
  uint64_t opens;                   // bit a: no architecture before it has its slot
  int64_t chosen[kGatherConvMost];  // their rows in the bank; slots for the gradient of weights
};
static_assert(sizeof(GatherConvLaunch) <= 4096, "the parameters of a kernel end at 4 KB");

// The row, or slot, of architecture `a` of this launch: the one place where it is read.
__device__ __forceinline__ int64_t chosen_row(const GatherConvLaunch& launch, int64_t a) {
  return launch.chosen[a];
}

// One element of a tensor [A, N, H, W, C] by its number, channels fastest.
struct ConvElement {
  int64_t a, n, y, x, c;

  __device__ __forceinline__ ConvElement(int64_t number, int64_t images, int64_t height,
                                         int64_t width, int64_t channels) {
    c = number % channels;
    number /= channels;
    x = number % width;
    number /= width;
    y = number % height;
    number /= height;
    n = number % images;
    a = number / images;
  }
};

__device__ __forceinline__ int64_t conv_offset(const PixelStrides& strides, int64_t a, int64_t n,
                                               int64_t y, int64_t x) {
  return a * strides.architecture + n * strides.image + y * strides.row + x * strides.column;
}

// Input channels of each output channel.
__host__ __device__ __forceinline__ int64_t conv_depth(const GatherConvParams& p) {
  return p.depthwise ? 1 : p.input_channels;
}

constexpr int kConvGeneralThreads = 256;

// One thread an output: consecutive threads have consecutive output channels, so that a warp writes
// 128 bytes at once and reads each input value as a broadcast. R R C multiply-adds, and as many
// reads of weights, R R C elements apart: bound by those reads, from L1 or L2.
template <class Stored>
__global__ void __launch_bounds__(kConvGeneralThreads)
    gather_conv_forward_general(GatherConvLaunch launch) {
  using T = Computed<Stored>;
  wait_for_previous();
  allow_next();
  const GatherConvParams& p = launch.conv;
  const int64_t number =
      static_cast<int64_t>(blockIdx.x) * kConvGeneralThreads + static_cast<int64_t>(threadIdx.x);
  const ConvElement at(number, p.images, p.output_height, p.output_width, p.output_channels);
  if (at.a >= launch.count) return;
  const int64_t size = p.kernel_size, pad = size / 2, depth = conv_depth(p);
  const T* weight = static_cast<const T*>(p.weight) +
                    (chosen_row(launch, at.a) * p.output_channels + at.c) * depth * size * size;
  const Stored* input = static_cast<const Stored*>(p.input) + (p.depthwise ? at.c : 0);
  T sum = 0;
  for (int64_t r = 0; r < size; ++r) {
    const int64_t y = at.y * p.stride + r - pad;
    if (y < 0 || y >= p.input_height) continue;
    for (int64_t s = 0; s < size; ++s) {
      const int64_t x = at.x * p.stride + s - pad;
      if (x < 0 || x >= p.input_width) continue;
      const Stored* pixel = input + conv_offset(p.input_strides, launch.first + at.a, at.n, y, x);
      const T* tap = weight + r * size + s;
      for (int64_t c = 0; c < depth; ++c) sum += load_stored(pixel + c) * tap[c * size * size];
    }
  }
  store_stored(static_cast<Stored*>(p.output) +
                   conv_offset(p.output_strides, launch.first + at.a, at.n, at.y, at.x) + at.c,
               sum);
}

// The part of architecture `a` in the gradient of one input value.
template <class Stored, class T = Computed<Stored>>
__device__ __forceinline__ T input_gradient(const GatherConvLaunch& launch, int64_t a,
                                            const ConvElement& at) {
  const GatherConvParams& p = launch.conv;
  const int64_t size = p.kernel_size, pad = size / 2, depth = conv_depth(p);
  const int64_t taps = size * size;
  const int64_t first = p.depthwise ? at.c : 0;
  const int64_t last = p.depthwise ? at.c + 1 : p.output_channels;
  const T* weight = static_cast<const T*>(p.weight) +
                    chosen_row(launch, a) * p.output_channels * depth * taps +
                    (p.depthwise ? 0 : at.c * taps);
  T sum = 0;
  for (int64_t r = 0; r < size; ++r) {
    const int64_t y = at.y + pad - r;
    if (y < 0 || y % p.stride != 0 || y / p.stride >= p.output_height) continue;
    for (int64_t s = 0; s < size; ++s) {
      const int64_t x = at.x + pad - s;
      if (x < 0 || x % p.stride != 0 || x / p.stride >= p.output_width) continue;
      const Stored* pixel =
          static_cast<const Stored*>(p.output) +
          conv_offset(p.output_strides, launch.first + a, at.n, y / p.stride, x / p.stride);
      const T* tap = weight + r * size + s;
      for (int64_t k = first; k < last; ++k) sum += load_stored(pixel + k) * tap[k * depth * taps];
    }
  }
  return sum;
}

// One thread an input value. Where architectures share their images it sums their gradients in
// order, each computed by itself first, so the sum is that of separate calls bit for bit.
template <class Stored>
__global__ void __launch_bounds__(kConvGeneralThreads)
    gather_conv_input_general(GatherConvLaunch launch) {
  using T = Computed<Stored>;
  wait_for_previous();
  allow_next();
  const GatherConvParams& p = launch.conv;
  const bool shared = p.input_strides.architecture == 0;
  const int64_t number =
      static_cast<int64_t>(blockIdx.x) * kConvGeneralThreads + static_cast<int64_t>(threadIdx.x);
  const ConvElement at(number, p.images, p.input_height, p.input_width, p.input_channels);
  if (at.a >= (shared ? 1 : launch.count)) return;
  Stored* gradient = static_cast<Stored*>(p.input) +
                     conv_offset(p.input_strides, launch.first + at.a, at.n, at.y, at.x) + at.c;
  if (!shared) {
    store_stored(gradient, input_gradient<Stored>(launch, at.a, at));
    return;
  }
  T total = launch.first > 0 ? load_stored(gradient) : T(0);
  for (int64_t a = 0; a < launch.count; ++a) {
    const T own = input_gradient<Stored>(launch, a, at);
    total = launch.first + a > 0 ? total + own : own;
  }
  store_stored(gradient, total);
}

// One warp a weight: its lanes share out the pixels, 32 at a time, and add up in a fixed order. The
// warps of a block have neighbouring weights and read the same lines. The sum of one architecture
// goes to its slot before the next begins.
template <class Stored>
__global__ void __launch_bounds__(kConvGeneralThreads)
    gather_conv_weight_general(GatherConvLaunch launch) {
  using T = Computed<Stored>;
  wait_for_previous();
  allow_next();
  constexpr int kWarps = kConvGeneralThreads / kWarp;
  const GatherConvParams& p = launch.conv;
  const int64_t size = p.kernel_size, pad = size / 2, depth = conv_depth(p);
  const int64_t weights = p.output_channels * depth * size * size;
  const int64_t weight = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (weight >= weights) return;
  const int64_t s = weight % size, r = weight / size % size;
  const int64_t k = weight / (size * size * depth);
  const int64_t c = p.depthwise ? k : weight / (size * size) % depth;
  const int64_t pixels = p.images * p.output_height * p.output_width;
  for (int64_t a = 0; a < launch.count; ++a) {
    const Stored* input = static_cast<const Stored*>(p.input) + c;
    const Stored* output = static_cast<const Stored*>(p.output) + k;
    T sum = 0;
    for (int64_t pixel = lane(); pixel < pixels; pixel += kWarp) {
      const ConvElement at(pixel, p.images, p.output_height, p.output_width, 1);
      const int64_t y = at.y * p.stride + r - pad, x = at.x * p.stride + s - pad;
      if (y < 0 || y >= p.input_height || x < 0 || x >= p.input_width) continue;
      sum +=
          load_stored(output + conv_offset(p.output_strides, launch.first + a, at.n, at.y, at.x)) *
          load_stored(input + conv_offset(p.input_strides, launch.first + a, at.n, y, x));
    }
    for (int other = kWarp / 2; other > 0; other /= 2) sum += shuffle_xor(sum, other);
    if (lane() == 0) {
      T* gradient = static_cast<T*>(p.weight_grad) + chosen_row(launch, a) * weights + weight;
      *gradient = (launch.opens >> a & 1) != 0 ? sum : *gradient + sum;
    }
  }
}

// The architectures of a call from `first` on, `most` of them.
inline GatherConvLaunch gather_conv_part(const GatherConvParams& p, int64_t first,
                                         int64_t most = kGatherConvMost) {
  GatherConvLaunch launch{p, first, min(p.architectures - first, most), 0, {}};
  const int64_t* chosen = p.pass == ConvPass::backward_weight ? p.slots : p.rows;
  for (int64_t a = 0; a < launch.count; ++a) {
    launch.chosen[a] = chosen[first + a];
    bool opens = true;
    for (int64_t before = 0; before < first + a; ++before) {
      opens = opens && chosen[before] != chosen[first + a];
    }
    launch.opens |= static_cast<uint64_t>(opens) << a;
  }
  return launch;
}

// Runs f for the architectures of one launch after the other; returns the first error.
template <class F>
int for_each_part(const GatherConvParams& params, const F& f) {
  for (int64_t first = 0; first < params.architectures; first += kGatherConvMost) {
    if (const int error = f(gather_conv_part(params, first))) return error;
  }
  return 0;
}

inline int64_t conv_blocks(int64_t work, int64_t per_block) {
  return (work + per_block - 1) / per_block;
}

template <class Stored>
int launch_gather_conv_general(const GatherConvLaunch& part, void* stream) {
  const GatherConvParams& p = part.conv;
  if (p.pass == ConvPass::forward) {
    const int64_t outputs =
        part.count * p.images * p.output_height * p.output_width * p.output_channels;
    return launch(gather_conv_forward_general<Stored>, {conv_blocks(outputs, kConvGeneralThreads)},
                  kConvGeneralThreads, 0, stream, part);
  }
  if (p.pass == ConvPass::backward_input) {
    const int64_t batches = p.input_strides.architecture == 0 ? 1 : part.count;
    const int64_t inputs = batches * p.images * p.input_height * p.input_width * p.input_channels;
    return launch(gather_conv_input_general<Stored>, {conv_blocks(inputs, kConvGeneralThreads)},
                  kConvGeneralThreads, 0, stream, part);
  }
  const int64_t weights = p.output_channels * conv_depth(p) * p.kernel_size * p.kernel_size;
  return launch(gather_conv_weight_general<Stored>,
                {conv_blocks(weights * kWarp, kConvGeneralThreads)}, kConvGeneralThreads, 0, stream,
                part);
}

}  // namespace cwkernels
