#pragma once
#include "conv_norm_pass.cuh"

// conv_norm for every valid shape, in each dtype: one thread, or one warp, for each result.
namespace cwkernels {

// One thread an output, neighbours in the channels: 128 bytes a warp.
template <class Stored>
__global__ void __launch_bounds__(kConvNormThreads) conv_norm_forward_general(ConvNormParams p) {
  using T = Computed<Stored>;
  wait_for_previous();
  allow_next();
  const LoadedSize size = loaded_size(p);
  const DenseElement at(thread_number(), size.output_height, size.output_width, p.output_channels);
  if (at.image >= p.architectures * p.images) return;
  const int64_t taps = p.kernel_size, pad = taps / 2;
  const T* weight = static_cast<const T*>(p.weight) + at.c * p.input_channels * taps * taps;
  T sum = 0;
  for (int64_t c = 0; c < p.input_channels; ++c) {
    const Norm<T> norm = input_norm<T>(p, at.image / p.images, c);
    for (int64_t r = 0; r < taps; ++r) {
      const int64_t y = at.y * p.stride + r - pad;
      if (y < 0 || y >= size.height) continue;
      for (int64_t s = 0; s < taps; ++s) {
        const int64_t x = at.x * p.stride + s - pad;
        if (x < 0 || x >= size.width) continue;
        sum += loaded<Stored>(p, norm, at.image, y, x, c) * weight[(c * taps + r) * taps + s];
      }
    }
  }
  store_stored(static_cast<Stored*>(p.output) + thread_number(), sum);
}

// The gradient of an input value up to the normalisation: through the convolution, the average and
// the ReLU. One thread an input value.
template <class Stored>
__global__ void __launch_bounds__(kConvNormThreads) conv_norm_masked_general(ConvNormParams p) {
  using T = Computed<Stored>;
  wait_for_previous();
  allow_next();
  const LoadedSize size = loaded_size(p);
  const DenseElement at(thread_number(), p.height, p.width, p.input_channels);
  if (at.image >= p.architectures * p.images) return;
  const int64_t taps = p.kernel_size, pad = taps / 2;
  const int64_t loaded_y = at.y / size.divisor, loaded_x = at.x / size.divisor;
  T sum = 0;
  if (loaded_y < size.height && loaded_x < size.width) {
    for (int64_t r = 0; r < taps; ++r) {
      const int64_t y = loaded_y + pad - r;
      if (y < 0 || y % p.stride != 0 || y / p.stride >= size.output_height) continue;
      for (int64_t s = 0; s < taps; ++s) {
        const int64_t x = loaded_x + pad - s;
        if (x < 0 || x % p.stride != 0 || x / p.stride >= size.output_width) continue;
        const Stored* grad =
            static_cast<const Stored*>(p.grad_output) +
            ((at.image * size.output_height + y / p.stride) * size.output_width + x / p.stride) *
                p.output_channels;
        const T* weight = static_cast<const T*>(p.weight) + (at.c * taps + r) * taps + s;
        for (int64_t k = 0; k < p.output_channels; ++k) {
          sum += load_stored(grad + k) * weight[k * p.input_channels * taps * taps];
        }
      }
    }
  }
  sum *= T(1) / static_cast<T>(size.divisor * size.divisor);
  const T raw = load_stored(static_cast<const Stored*>(p.input) + thread_number());
  const Norm<T> norm = input_norm<T>(p, at.image / p.images, at.c);
  if (p.relu && (p.statistics ? norm(raw) : raw) <= T(0)) sum = T(0);
  store_stored(static_cast<Stored*>(p.grad_input) + thread_number(), sum);
}

// One warp a weight, its lanes share out the pixels; the architectures follow each other.
template <class Stored>
__global__ void __launch_bounds__(kConvNormThreads) conv_norm_weight_general(ConvNormParams p) {
  using T = Computed<Stored>;
  wait_for_previous();
  allow_next();
  const LoadedSize size = loaded_size(p);
  const int64_t taps = p.kernel_size, pad = taps / 2;
  const int64_t weight = thread_number() / kWarp;
  if (weight >= p.output_channels * p.input_channels * taps * taps) return;
  const int64_t s = weight % taps, r = weight / taps % taps;
  const int64_t c = weight / (taps * taps) % p.input_channels;
  const int64_t k = weight / (taps * taps * p.input_channels);
  const int64_t pixels = p.images * size.output_height * size.output_width;
  const Stored* grad = static_cast<const Stored*>(p.grad_output) + k;
  T total = 0;
  for (int64_t a = 0; a < p.architectures; ++a) {
    const Norm<T> norm = input_norm<T>(p, a, c);
    T sum = 0;
    for (int64_t pixel = lane(); pixel < pixels; pixel += kWarp) {
      const DenseElement at(a * pixels + pixel, size.output_height, size.output_width, 1);
      const int64_t y = at.y * p.stride + r - pad, x = at.x * p.stride + s - pad;
      if (y < 0 || y >= size.height || x < 0 || x >= size.width) continue;
      sum += load_stored(grad + (a * pixels + pixel) * p.output_channels) *
             loaded<Stored>(p, norm, at.image, y, x, c);
    }
    for (int other = kWarp / 2; other > 0; other /= 2) sum += shuffle_xor(sum, other);
    total = a > 0 ? total + sum : sum;
  }
  if (lane() == 0) static_cast<T*>(p.grad_weight)[weight] = total;
}

// --- On the host ---------------------------------------------------------------------------------

inline int64_t conv_norm_blocks(int64_t work) {
  return (work + kConvNormThreads - 1) / kConvNormThreads;
}

template <class Stored>
int launch_forward_general(const ConvNormParams& p, void* stream) {
  const ConvNormPass<Stored, Moments> measure = measure_pass<Stored>(p);
  const int64_t outputs = p.architectures * measure.pixels * p.output_channels;
  if (const int error = launch(conv_norm_forward_general<Stored>, {conv_norm_blocks(outputs)},
                               kConvNormThreads, 0, stream, p)) {
    return error;
  }
  const size_t shared =
      shared_bytes<int>(1) + shared_bytes<Moments<Computed<Stored>>>(kConvNormThreads);
  return launch(conv_norm_measure<Stored>, {p.architectures * measure.chunks * measure.blocks},
                kConvNormThreads, shared, stream, measure);
}

template <class Stored>
int launch_input_gradient_general(const ConvNormParams& p, void* stream) {
  const int64_t inputs = p.architectures * p.images * p.height * p.width * p.input_channels;
  if (const int error = launch(conv_norm_masked_general<Stored>, {conv_norm_blocks(inputs)},
                               kConvNormThreads, 0, stream, p)) {
    return error;
  }
  if (!p.statistics) return 0;
  const ConvNormPass<Stored, Sums> sums = sums_pass<Stored>(p);
  const size_t shared =
      shared_bytes<int>(1) + shared_bytes<Sums<Computed<Stored>>>(kConvNormThreads);
  if (const int error =
          launch(conv_norm_sums<Stored>, {p.architectures * sums.chunks * sums.blocks},
                 kConvNormThreads, shared, stream, sums)) {
    return error;
  }
  return launch_norm_gradient<Stored, 1>(sums, stream);
}

template <class Stored>
int launch_weight_general(const ConvNormParams& p, void* stream) {
  const int64_t weights = p.output_channels * p.input_channels * p.kernel_size * p.kernel_size;
  return launch(conv_norm_weight_general<Stored>, {conv_norm_blocks(weights * kWarp)},
                kConvNormThreads, 0, stream, p);
}

}  // namespace cwkernels
