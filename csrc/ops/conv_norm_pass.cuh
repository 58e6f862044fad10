#pragma once
#include "../parts/lanes.cuh"
#include "../parts/normalize.cuh"
#include "conv_norm.h"

// What all kernels of conv_norm share: its sizes, how a value is loaded, and the passes over whole
// tensors that make statistics of an output, and a gradient of one that goes through its batch
// norm.
namespace cwkernels {

constexpr int kConvNormThreads = 256;

// The sizes behind normalisation, ReLU and average: what the convolution sees.
struct LoadedSize {
  int64_t divisor, height, width, output_height, output_width;
};
__host__ __device__ __forceinline__ LoadedSize loaded_size(const ConvNormParams& p) {
  const int64_t divisor = p.pool ? 2 : 1;
  const int64_t height = p.height / divisor, width = p.width / divisor;
  return {divisor, height, width, (height - 1) / p.stride + 1, (width - 1) / p.stride + 1};
}

// The statistics and affine map of one architecture's input.
template <class T>
__device__ __forceinline__ Channels<T> input_channels(const ConvNormParams& p, int64_t a) {
  const T* mean = static_cast<const T*>(p.statistics) + a * 2 * p.input_channels;
  return {mean, mean + p.input_channels, static_cast<const T*>(p.scale),
          static_cast<const T*>(p.shift), static_cast<T>(p.eps)};
}
template <class T>
__device__ __forceinline__ Norm<T> input_norm(const ConvNormParams& p, int64_t a, int64_t c) {
  return p.statistics ? input_channels<T>(p, a).norm(c) : Norm<T>{T(0), T(1), T(0)};
}

// One value of the input as it is, then normalised and rectified.
template <class T>
__device__ __forceinline__ T normalised(const ConvNormParams& p, const Norm<T>& norm, T raw) {
  const T value = p.statistics ? norm(raw) : raw;
  return p.relu ? rectify(value) : value;
}

// One value of what the convolution sees; `image` is that of all architectures.
template <class Stored, class T = Computed<Stored>>
__device__ __forceinline__ T loaded(const ConvNormParams& p, const Norm<T>& norm, int64_t image,
                                    int64_t y, int64_t x, int64_t c) {
  const int64_t row = p.width * p.input_channels, divisor = p.pool ? 2 : 1;
  const Stored* at = static_cast<const Stored*>(p.input) +
                     ((image * p.height + y * divisor) * p.width + x * divisor) * p.input_channels +
                     c;
  const T value = normalised(p, norm, load_stored(at));
  if (!p.pool) return value;
  const T right = normalised(p, norm, load_stored(at + p.input_channels));
  const T below = normalised(p, norm, load_stored(at + row));
  const T diagonal = normalised(p, norm, load_stored(at + row + p.input_channels));
  return ((value + right) + (below + diagonal)) * T(0.25);
}

// A pixel of a dense tensor [images, H, W, C] by the number of its element.
struct DenseElement {
  int64_t image, y, x, c;

  __device__ __forceinline__ DenseElement(int64_t number, int64_t height, int64_t width,
                                          int64_t channels) {
    c = number % channels;
    number /= channels;
    x = number % width;
    number /= width;
    y = number % height;
    image = number / height;
  }
};

__device__ __forceinline__ int64_t thread_number() {
  return static_cast<int64_t>(blockIdx.x) * kConvNormThreads + threadIdx.x;
}

// --- Passes over all pixels ----------------------------------------------------------------------

// How a pass is shared out: a block has 256 / columns rows of `columns` threads, each of which
// keeps to kLanes channels and goes from pixel to pixel. A run of columns x kLanes channels is a
// chunk; the grid has the blocks of a chunk, then the chunks, then the architectures.
template <class Stored, template <class> class Value>
struct ConvNormPass {
  ConvNormParams p;
  int64_t pixels, channels;  // of one architecture
  int64_t chunks, blocks;
  int columns;
  Partials<Value<Computed<Stored>>> partials;  // a slot for each chunk of each architecture
};

template <int kLanes>
struct PassPlace {
  int64_t slot, architecture, block;
  int64_t pixel, step, channel;
  bool live;

  template <class Stored, template <class> class Value>
  __device__ __forceinline__ explicit PassPlace(const ConvNormPass<Stored, Value>& l) {
    slot = blockIdx.x / l.blocks;
    block = blockIdx.x % l.blocks;
    architecture = slot / l.chunks;
    const int rows = kConvNormThreads / l.columns, thread = static_cast<int>(threadIdx.x);
    pixel = block * rows + thread / l.columns;
    step = l.blocks * rows;
    channel = (slot % l.chunks * l.columns + thread % l.columns) * kLanes;
    live = channel < l.channels;
  }
};

// Statistics of the output, where no tile has measured it: eight values of a thread at a time.
template <class Stored>
__global__ void __launch_bounds__(kConvNormThreads)
    conv_norm_measure(ConvNormPass<Stored, Moments> l) {
  using T = Computed<Stored>;
  wait_for_previous();
  allow_next();
  constexpr int kValues = 8;
  Shared shared;
  int* last = shared.take<int>(1);
  Moments<T>* values = shared.take<Moments<T>>(kConvNormThreads);
  const PassPlace<1> at(l);
  const Stored* output =
      static_cast<const Stored*>(l.p.output) + at.architecture * l.pixels * l.channels + at.channel;
  Moments<T> own = Moments<T>::nothing();
  for (int64_t pixel = at.pixel; at.live && pixel < l.pixels; pixel += kValues * at.step) {
    T batch[kValues] = {};
    unsigned live = 0;
    for (int i = 0; i < kValues; ++i) {
      if (pixel + i * at.step >= l.pixels) continue;
      batch[i] = load_stored(output + (pixel + i * at.step) * l.channels);
      live |= 1u << i;
    }
    own = own.merged(moments_of(batch, live));
  }
  own = merge_rows(own, values, kConvNormThreads / l.columns, l.columns);
  if (static_cast<int>(threadIdx.x) < l.columns) values[threadIdx.x] = own;
  sync_block();
  const int64_t first = at.slot % l.chunks * l.columns;
  T* measured = static_cast<T*>(l.p.measured) + at.architecture * 2 * l.channels + first;
  leave_partial(
      l.partials, at.slot, at.block, last, [&](int64_t c) { return values[c]; },
      [&](int64_t c, const Moments<T>& whole) {
        if (first + c >= l.channels) return;
        measured[c] = whole.mean;
        measured[l.channels + c] = whole.variance();
      });
}

// The two sums of the batch norm's backward pass, where no tile has summed them.
template <class Stored>
__global__ void __launch_bounds__(kConvNormThreads) conv_norm_sums(ConvNormPass<Stored, Sums> l) {
  using T = Computed<Stored>;
  wait_for_previous();
  allow_next();
  Shared shared;
  int* last = shared.take<int>(1);
  Sums<T>* values = shared.take<Sums<T>>(kConvNormThreads);
  const PassPlace<1> at(l);
  Sums<T> own = Sums<T>::nothing();
  if (at.live) {
    const T mean = input_channels<T>(l.p, at.architecture).mean[at.channel];
    const int64_t first = at.architecture * l.pixels * l.channels + at.channel;
    const Stored* raw = static_cast<const Stored*>(l.p.input) + first;
    const Stored* masked = static_cast<const Stored*>(l.p.grad_input) + first;
#pragma unroll 4
    for (int64_t pixel = at.pixel; pixel < l.pixels; pixel += at.step) {
      const T grad = load_stored(masked + pixel * l.channels);
      own = own.merged({grad, grad * (load_stored(raw + pixel * l.channels) - mean)});
    }
  }
  own = merge_rows(own, values, kConvNormThreads / l.columns, l.columns);
  if (static_cast<int>(threadIdx.x) < l.columns) values[threadIdx.x] = own;
  sync_block();
  leave_partial(l.partials, at.slot, at.block, last, [&](int64_t c) { return values[c]; });
}

// The gradients of the affine map, added up over the architectures in order.
template <class Stored>
__device__ void affine_gradients(const ConvNormPass<Stored, Sums>& l, int64_t chunk, int64_t c,
                                 int64_t channel) {
  using T = Computed<Stored>;
  T scale = 0, shift = 0;
  for (int64_t a = 0; a < l.p.architectures; ++a) {
    const Sums<T> sums = l.partials.sum(a * l.chunks + chunk, c);
    const Channels<T> channels = input_channels<T>(l.p, a);
    const T own = channels.gamma_gradient(channel, sums);
    scale = a == 0 ? own : scale + own;
    shift = a == 0 ? channels.beta_gradient(sums) : shift + channels.beta_gradient(sums);
  }
  static_cast<T*>(l.p.grad_scale)[channel] = scale;
  static_cast<T*>(l.p.grad_shift)[channel] = shift;
}

// Back through the normalisation, in place. A block merges its chunk's groups of partial sums, at
// most 17 x 8 bytes a channel out of L2, and makes each channel's coefficients once.
template <class Stored, int kLanes>
__global__ void __launch_bounds__(kConvNormThreads, 2)
    conv_norm_gradient(ConvNormPass<Stored, Sums> l) {
  using T = Computed<Stored>;
  wait_for_previous();
  allow_next();
  Shared shared;
  const int width = l.columns * kLanes;
  NormBackward<T>* coefficients = shared.take<NormBackward<T>>(static_cast<size_t>(width));
  const PassPlace<kLanes> at(l);
  const int64_t chunk = at.slot % l.chunks;
  for (int64_t c = threadIdx.x; c < width; c += kConvNormThreads) {
    const int64_t channel = chunk * width + c;
    if (channel >= l.channels) break;
    coefficients[c] =
        input_channels<T>(l.p, at.architecture)
            .backward(channel, l.partials.sum(at.slot, c), static_cast<T>(l.pixels), l.p.training);
    if (l.p.grad_scale && at.architecture == 0 && at.block == 0) {
      affine_gradients(l, chunk, c, channel);
    }
  }
  sync_block();
  if (!at.live) return;
  NormBackward<T> backward[kLanes];
#pragma unroll
  for (int i = 0; i < kLanes; ++i) backward[i] = coefficients[at.channel - chunk * width + i];
  const int64_t first = at.architecture * l.pixels * l.channels + at.channel;
  const Stored* __restrict__ raw = static_cast<const Stored*>(l.p.input) + first;
  Stored* gradient = static_cast<Stored*>(l.p.grad_input) + first;
  for (int64_t pixel = at.pixel; pixel < l.pixels; pixel += at.step) {
    Lanes<T, kLanes> grad = load_lanes<kLanes>(gradient + pixel * l.channels);
    const Lanes<T, kLanes> own = load_lanes<kLanes>(raw + pixel * l.channels);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) grad[i] = backward[i](grad[i], own[i]);
    store_lanes(gradient + pixel * l.channels, grad);
  }
}

// --- On the host ---------------------------------------------------------------------------------

// A pass over `channels` channels in chunks of up to 32, whose partial results, if it leaves any,
// lie in the call's workspace.
template <class Stored, template <class> class Value>
ConvNormPass<Stored, Value> conv_norm_pass(const ConvNormParams& p, int64_t pixels,
                                           int64_t channels) {
  ConvNormPass<Stored, Value> l{};
  l.p = p;
  l.pixels = pixels;
  l.channels = channels;
  l.columns = 1;
  while (l.columns < kWarp && l.columns < channels) l.columns *= 2;
  l.chunks = (channels + l.columns - 1) / l.columns;
  const int64_t rows = kConvNormThreads / l.columns;
  l.blocks = sum_blocks(current_device().processors, l.chunks, (pixels + rows - 1) / rows);
  l.partials = {static_cast<Value<Computed<Stored>>*>(p.workspace), p.tickets, l.blocks, l.columns};
  return l;
}

template <class Stored>
ConvNormPass<Stored, Moments> measure_pass(const ConvNormParams& p) {
  const LoadedSize size = loaded_size(p);
  return conv_norm_pass<Stored, Moments>(p, p.images * size.output_height * size.output_width,
                                         p.output_channels);
}
template <class Stored>
ConvNormPass<Stored, Sums> sums_pass(const ConvNormParams& p) {
  return conv_norm_pass<Stored, Sums>(p, p.images * p.height * p.width, p.input_channels);
}

// The last step of the input's gradient, once the sums are there. Enough blocks for every processor
// to have eight, and for a thread to have some pixels.
template <class Stored, int kLanes>
int launch_norm_gradient(ConvNormPass<Stored, Sums> l, void* stream) {
  const int64_t rows = kConvNormThreads / l.columns, enough = 4;
  l.blocks = max((l.pixels + rows * enough - 1) / (rows * enough), int64_t{1});
  const size_t shared =
      shared_bytes<NormBackward<Computed<Stored>>>(static_cast<size_t>(l.columns * kLanes));
  return launch(conv_norm_gradient<Stored, kLanes>, {l.p.architectures * l.chunks * l.blocks},
                kConvNormThreads, shared, stream, l);
}

}  // namespace cwkernels
