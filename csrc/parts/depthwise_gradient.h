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
    const int64_t first = block_first(block);
    Vector<T> sum[4] = {}, product[4] = {};
    for (int64_t y = 0; y < source_.height; ++y) {
      for (int64_t v = 0; v < vectors(block); ++v) {
        const int64_t c = first + v * kLanes<T>;
        const T* value = planes_ + w * (source_size() + target_size()) +
                         (v * source_.pixels() + source_.at(y, 0)) * kLanes<T>;
        const T* result =
            results_ + w * result_size() + (v * source_.height + y) * source_.width * kLanes<T>;
        pass_row(value, result, raw, load(mean + c), (image * source_.height + y) * source_.width,
                 c, source_gradient, sum[v], product[v]);
      }
    }
    for (int64_t v = 0; v < vectors(block); ++v) {
      T* partial = partials_ + image * 2 * padded_ + first + v * kLanes<T>;
      store(partial, sum[v]);
      store(partial + padded_, product[v]);
    }
  }

  // A row of one vector of channels, from pixel `begin` on; two sums of each kind, as additions
  // wait for each other.
  CWK_INLINE void pass_row(const T* value, const T* result, const T* raw, Vector<T> center,
                           int64_t begin, int64_t c, T* source_gradient, Vector<T>& sum,
                           Vector<T>& product) const {
    const int64_t left = channels_ - c;
    Vector<T> sums[2] = {}, products[2] = {};
    const auto pixel = [&](int64_t x, auto i) {
      const int64_t at = (begin + x) * channels_ + c;
      const Vector<T> passed =
          load(value + x * kLanes<T>) > Vector<T>{} ? load(result + x * kLanes<T>) : Vector<T>{};
      store_channels(source_gradient + at, passed, left);
      sums[i] += passed;
      products[i] += passed * (load_channels(raw + at, left) - center);
    };
    int64_t x = 0;
    for (; x + 2 <= source_.width; x += 2) unroll<2>([&](auto i) { pixel(x + i, i); });
    if (x < source_.width) pixel(x, Index<0>{});
    sum += sums[0] + sums[1];
    product += products[0] + products[1];
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
