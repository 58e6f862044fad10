#pragma once
#include "load.h"

// Statistics of batch norms. A block of pixels is measured while it lies in cache: the mean, then
// the sum of squares about it (M2), never E[x^2] - E[x]^2. Blocks are merged in their order, in
// double, so the result depends on how the pixels were cut into blocks and on nothing else.
namespace cwkernels::CWK_ISA {

// Independent sums, for an addition a cycle and port.
constexpr int kSums = 4;

// f(value of pixel p, channels from c on) summed over `pixels` pixels, for one vector of channels.
template <class T, class F>
CWK_INLINE Vector<T> sum_pixels(int64_t pixels, const F& f) {
  Vector<T> sum[kSums] = {};
  int64_t p = 0;
  for (; p + kSums <= pixels; p += kSums) unroll<kSums>([&](auto i) { sum[i] += f(p + i); });
  for (; p < pixels; ++p) sum[0] += f(p);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// Mean and M2 of one vector of channels, value(p) for `pixels` pixels: the squares are taken about
// the mean of every fourth pixel, which no data can put further than sqrt(3) deviations from the
// mean of all, so what is taken out at the end is at most three quarters of the sum.
template <class T, class F>
CWK_INLINE void measure_vector(int64_t pixels, const F& value, T* mean, T* squares) {
  constexpr int64_t kStep = 4;
  const int64_t sample = (pixels + kStep - 1) / kStep;
  const Vector<T> count = broadcast(static_cast<T>(pixels));
  const Vector<T> center = sum_pixels<T>(sample, [&](int64_t p) { return value(p * kStep); }) /
                           broadcast(static_cast<T>(sample));
  Vector<T> sum[kSums] = {}, square[kSums] = {};
  const auto add = [&](int64_t p, auto i) {
    const Vector<T> d = value(p) - center;
    sum[i] += d;
    square[i] += d * d;
  };
  int64_t p = 0;
  for (; p + kSums <= pixels; p += kSums) unroll<kSums>([&](auto i) { add(p + i, i); });
  for (; p < pixels; ++p) add(p, Index<0>{});
  const Vector<T> rest = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  const Vector<T> total = (square[0] + square[1]) + (square[2] + square[3]);
  store(mean, center + rest / count);
  store(squares, total - rest * rest / count);
}

// Mean and M2 of each channel of `pixels` (at least 1) pixels, `stride` elements apart:
// partial[0][padded channels] and partial[1][padded channels].
template <class T>
CWK_FLATTEN inline void measure(const T* data, int64_t pixels, int64_t stride, int64_t channels,
                                T* partial) {
  const int64_t padded = padded_channels<T>(channels);
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    const int64_t left = channels - c;
    const T* from = data + c;
    T* mean = partial + c;
    if (left >= kLanes<T>) {
      measure_vector<T>(
          pixels, [=](int64_t p) { return load(from + p * stride); }, mean, mean + padded);
    } else {
      measure_vector<T>(
          pixels, [=](int64_t p) { return load_part(from + p * stride, left); }, mean,
          mean + padded);
    }
  }
}

// Merges what `measure` left for each block of pixels_of(block) pixels: mean and biased variance of
// `channels` channels, [2][channels].
template <class T, class Pixels>
inline void merge_measures(const T* partials, int64_t blocks, const Pixels& pixels_of,
                           int64_t channels, T* statistics) {
  // Channels that are merged at once: block after block is read as it lies.
  constexpr int64_t kTogether = 64;
  const int64_t padded = padded_channels<T>(channels);
  double total = 0;
  for (int64_t b = 0; b < blocks; ++b) total += static_cast<double>(pixels_of(b));
  for (int64_t first = 0; first < channels; first += kTogether) {
    const int64_t count = min(kTogether, channels - first);
    double mean[kTogether] = {}, squares[kTogether] = {};
    for (int64_t b = 0; b < blocks; ++b) {
      const double pixels = static_cast<double>(pixels_of(b));
      const T* own = partials + b * 2 * padded + first;
      for (int64_t c = 0; c < count; ++c) mean[c] += pixels * own[c];
    }
    for (int64_t c = 0; c < count; ++c) mean[c] = total > 0 ? mean[c] / total : 0;
    for (int64_t b = 0; b < blocks; ++b) {
      const double pixels = static_cast<double>(pixels_of(b));
      const T* own = partials + b * 2 * padded + first;
      for (int64_t c = 0; c < count; ++c) {
        const double apart = own[c] - mean[c];
        squares[c] += own[padded + c] + pixels * apart * apart;
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      statistics[first + c] = static_cast<T>(mean[c]);
      statistics[channels + first + c] = static_cast<T>(total > 0 ? squares[c] / total : 0);
    }
  }
}

// Coefficients of `Norm` from mean and variance, [channels] each; gamma and beta may be null.
// `out` is [3][padded channels]: mean, scale, shift.
template <class T>
inline Norm<T> make_norm(const T* mean, const T* variance, const T* gamma, const T* beta,
                         double eps, int64_t channels, T* out) {
  const int64_t padded = padded_channels<T>(channels);
  for (int64_t c = 0; c < padded; ++c) {
    const bool real = c < channels;
    const double deviation = real ? __builtin_sqrt(static_cast<double>(variance[c]) + eps) : 1;
    out[c] = real ? mean[c] : T(0);
    out[padded + c] = real ? static_cast<T>((gamma ? gamma[c] : 1) / deviation) : T(0);
    out[2 * padded + c] = real && beta ? beta[c] : T(0);
  }
  return {out, out + padded, out + 2 * padded};
}

// Both sums of a batch norm's backward pass over a block of pixels: of the gradient of the
// normalised values, and of that times (raw - mean). grad(p, c, left) and raw(p, c, left) give
// vectors; sums is [2][padded channels].
template <class T, class Grad, class Raw>
CWK_FLATTEN inline void sum_gradients(const Grad& grad, const Raw& raw, const T* mean,
                                      int64_t pixels, int64_t channels, T* sums) {
  const int64_t padded = padded_channels<T>(channels);
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    const int64_t left = channels - c;
    const Vector<T> center = load(mean + c);
    // Both in one loop: eight sums, and each value is loaded and rectified once.
    Vector<T> plain[kSums] = {}, product[kSums] = {};
    const auto add = [&](int64_t p, auto i) {
      const Vector<T> own = grad(p, c, left);
      plain[i] += own;
      product[i] += own * (raw(p, c, left) - center);
    };
    int64_t p = 0;
    for (; p + kSums <= pixels; p += kSums) unroll<kSums>([&](auto i) { add(p + i, i); });
    for (; p < pixels; ++p) add(p, Index<0>{});
    store(sums + c, (plain[0] + plain[1]) + (plain[2] + plain[3]));
    store(sums + padded + c, (product[0] + product[1]) + (product[2] + product[3]));
  }
}

// Adds up the blocks' sums in their order, in double: out is [2][channels] doubles.
template <class T>
inline void merge_gradients(const T* partials, int64_t blocks, int64_t channels, double* out) {
  const int64_t padded = padded_channels<T>(channels);
  for (int64_t i = 0; i < 2 * channels; ++i) out[i] = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t i = 0; i < 2; ++i) {
      const T* own = partials + (b * 2 + i) * padded;
      for (int64_t c = 0; c < channels; ++c) out[i * channels + c] += own[c];
    }
  }
}

// Coefficients of `NormBackward` from the merged sums over `count` values a channel. In training
// the gradient goes through mean and variance too; in evaluation they are constants. `out` is
// [4][padded channels]: mean, scale, slope, offset. gamma's gradient is
// sums[1][c] / sqrt(variance + eps), beta's is sums[0][c].
template <class T>
inline NormBackward<T> make_norm_backward(const T* mean, const T* variance, const T* gamma,
                                          double eps, bool training, const double* sums,
                                          double count, int64_t channels, T* out) {
  const int64_t padded = padded_channels<T>(channels);
  for (int64_t c = 0; c < padded; ++c) {
    const bool real = c < channels;
    const double rstd = real ? 1 / __builtin_sqrt(static_cast<double>(variance[c]) + eps) : 0;
    const double scale = rstd * (real && gamma ? gamma[c] : 1);
    const double slope = real && training ? -scale * rstd * rstd * sums[channels + c] / count : 0;
    const double offset = real && training ? -scale * sums[c] / count : 0;
    out[c] = real ? mean[c] : T(0);
    out[padded + c] = static_cast<T>(scale);
    out[2 * padded + c] = static_cast<T>(slope);
    out[3 * padded + c] = static_cast<T>(offset);
  }
  return {out, out + padded, out + 2 * padded, out + 3 * padded};
}

}  // namespace cwkernels::CWK_ISA
