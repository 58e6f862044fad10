#pragma once
#include "conv_dense_weight.h"
#include "depthwise_rows.h"

namespace cwkernels::CWK_ISA {

// The gradients of a depthwise convolution behind a rectified batch norm: of its weights, and of
// its source, which passes where the source is positive, is written, and summed for that batch
// norm's backward pass. An image's block of channels is loaded once for all of it.
template <class T>
class DepthwiseGradient {
 public:
  DepthwiseGradient(const Parallel& parallel, int64_t images, int64_t height, int64_t width,
                    int64_t stride, int64_t kernel_size, int64_t channels, Arena& arena)
      : parallel_(parallel),
        images_(images),
        stride_(stride),
        kernel_size_(kernel_size),
        channels_(channels),
        padded_(padded_channels<T>(channels)),
        source_(height, width, kernel_size / 2, 0),
        target_(
            (height - 1) / stride + 1, (width - 1) / stride + 1, kernel_size / 2,
            stride == 1 ? columns_read(width, 1, kernel_size) : columns_spread(width, kernel_size)),
        vectors_(block_vectors<T>(source_.pixels() + target_.pixels(), channels)),
        blocks_(ceil_div(channels, vectors_ * kLanes<T>)),
        chunks_(workers_for(parallel, images)) {
    weights_ = arena.take<T>(taps() * padded_);
    sums_ = arena.take<T>(chunks_ * taps() * padded_);
    planes_ = arena.take<T>(chunks_ * (source_size() + target_size()));
    results_ = arena.take<T>(chunks_ * result_size());
    partials_ = arena.take<T>(images * 2 * padded_);
  }

  // `gradient` and `source` load vectors; `raw` is what the source was normalised from, `mean` its
  // mean. Written: the source's gradient, both `sums` [2][channels] of the batch norm's backward
  // pass and `grad` [channels][taps], unless it is null.
  template <class Gradient, class Source>
  void run(const T* weight, const Gradient& gradient, const Source& source, const T* raw,
           const T* mean, T* source_gradient, double* sums, T* grad, bool again) const {
    pack_taps(weight, taps(), channels_, stride_ == 1, weights_);
    parallel_for(parallel_, chunks_, [&](int64_t w) {
      clear(planes_ + w * (source_size() + target_size()), source_size() + target_size());
      clear(sums_ + w * taps() * padded_, taps() * padded_);
      for (int64_t block = 0; block < blocks_; ++block) {
        for (int64_t i = w * images_ / chunks_; i < (w + 1) * images_ / chunks_; ++i) {
          filter(i, block, w, gradient, source, grad != nullptr);
          pass(i, block, w, raw, mean, source_gradient);
        }
      }
    });
    merge_gradients(partials_, images_, channels_, sums);
    if (grad) reduce(again, grad);
  }

 private:
  int64_t taps() const { return kernel_size_ * kernel_size_; }
  int64_t source_size() const { return vectors_ * source_.pixels() * kLanes<T>; }
  int64_t target_size() const { return vectors_ * target_.pixels() * kLanes<T>; }
  int64_t source_pixels() const { return source_.height * source_.width; }
  int64_t result_size() const { return vectors_ * source_pixels() * kLanes<T>; }
  int64_t block_first(int64_t block) const { return block * vectors_ * kLanes<T>; }
  int64_t vectors(int64_t block) const {
    return min(vectors_, (padded_ - block_first(block)) / kLanes<T>);
  }

  template <class Gradient, class Source>
  void filter(int64_t image, int64_t block, int64_t w, const Gradient& gradient,
              const Source& source, bool weights_too) const {
    const int64_t first = block_first(block);
    T* planes = planes_ + w * (source_size() + target_size());
    T* gradients = planes + source_size();
    fill_planes(source, image * source_pixels() * channels_, source_, first, vectors(block),
                channels_, planes);
    fill_planes(gradient, image * target_.height * target_.width * channels_, target_, first,
                vectors(block), channels_, gradients);
    for (int64_t v = 0; v < vectors(block); ++v) {
      const T* grad = gradients + v * target_.pixels() * kLanes<T>;
      const T* weights = weights_ + first + v * kLanes<T>;
      T* result = results_ + w * result_size() + v * source_pixels() * kLanes<T>;
      with_kernel_size(kernel_size_, [&](auto r) {
        if (stride_ == 1) {
          filter_plane<T, r.value, 1>(grad, target_.columns, weights, padded_, source_.height,
                                      source_.width, result);
        } else {
          spread_plane<T, r.value>(grad, target_.columns, weights, padded_, source_.height,
                                   source_.width, result);
        }
        if (!weights_too) return;
        sum_taps<T, r.value>(planes + v * source_.pixels() * kLanes<T>, source_.columns, stride_,
                             grad, target_, sums_ + w * taps() * padded_ + first + v * kLanes<T>,
                             padded_);
      });
    }
  }

  CWK_FLATTEN void pass(int64_t image, int64_t block, int64_t w, const T* raw, const T* mean,
                        T* source_gradient) const {
    if (vectors(block) == 4 && block_first(block) + 4 * kLanes<T> <= channels_) {
      return pass_vectors<4>(image, block, 0, w, raw, mean, source_gradient);
    }
    for (int64_t v = 0; v < vectors(block); ++v) {
      pass_vectors<1>(image, block, v, w, raw, mean, source_gradient);
    }
  }

  // V vectors of channels of an image: as many sums of each kind in registers.
  template <int V>
  CWK_INLINE void pass_vectors(int64_t image, int64_t block, int64_t first, int64_t w, const T* raw,
                               const T* mean, T* source_gradient) const {
    const int64_t channels = channels_, c = block_first(block) + first * kLanes<T>;
    const int64_t left = channels - c, width = source_.width;
    const int64_t value_plane = source_.pixels() * kLanes<T>;
    const int64_t result_plane = source_pixels() * kLanes<T>;
    const bool whole = streams(source_gradient + c, channels, min(V * kLanes<T>, left));
    const T* result = results_ + w * result_size() + first * result_plane;
    int64_t at = image * source_pixels() * channels + c;
    Vector<T> sum[V] = {}, product[V] = {}, center[V];
    unroll<V>([&](auto v) { center[v] = load(mean + c + v * kLanes<T>); });
    for (int64_t y = 0; y < source_.height; ++y) {
      const T* value = planes_ + w * (source_size() + target_size()) + first * value_plane +
                       source_.at(y, 0) * kLanes<T>;
      for (int64_t x = 0; x < width; ++x) {
        unroll<V>([&](auto v) {
          const int64_t lane = v * kLanes<T>;
          const Vector<T> passed = load(value + v * value_plane) <= Vector<T>{}
                                       ? Vector<T>{}
                                       : load(result + v * result_plane);
          T* to = source_gradient + at + lane;
          whole ? stream(to, passed) : store_channels(to, passed, left - lane);
          sum[v] += passed;
          product[v] += passed * (load_channels(raw + at + lane, left - lane) - center[v]);
        });
        at += channels;
        value += kLanes<T>;
        result += kLanes<T>;
      }
    }
    unroll<V>([&](auto v) {
      T* partial = partials_ + image * 2 * padded_ + c + v * kLanes<T>;
      store(partial, sum[v]);
      store(partial + padded_, product[v]);
    });
    if (whole) drain();
  }

  // sums[tap][c], chunks in order, to grad[c][tap].
  void reduce(bool again, T* grad) const {
    for (int64_t c = 0; c < channels_; ++c) {
      for (int64_t t = 0; t < taps(); ++t) {
        const T* sum = sums_ + t * padded_ + c;
        T total = sum[0];
        for (int64_t chunk = 1; chunk < chunks_; ++chunk) total += sum[chunk * taps() * padded_];
        T* to = grad + c * taps() + t;
        *to = again ? *to + total : total;
      }
    }
  }

  Parallel parallel_;
  int64_t images_, stride_, kernel_size_, channels_, padded_;
  PlaneShape source_, target_;
  int64_t vectors_, blocks_, chunks_;
  T* weights_;
  T* sums_;
  T* planes_;
  T* results_;
  T* partials_;
};

}  // namespace cwkernels::CWK_ISA
