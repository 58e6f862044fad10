#pragma once
#include "conv_dense_weight.h"
#include "conv_depthwise.h"

// The gradient of depthwise weights: weight[c][tap] = sum over pixels of source[pixel + tap][c] *
// target[pixel][c], by chunks of images as for dense weights.
namespace cwkernels::CWK_ISA {

// All R x R taps are summed at once where they and two operands fit the registers, else one row.
template <int R>
constexpr int kTapRowsTogether = R * R + 2 <= kVectorRegisters ? R : 1;

template <class T, int R>
CWK_INLINE void depthwise_taps(const PixelList& list, const T* patch, int64_t patch_row,
                               int64_t patch_pixel, const T* target, T* partial,
                               int64_t partial_stride) {
  constexpr int kRows = kTapRowsTogether<R>;
  for (int64_t first = 0; first < R; first += kRows) {
    Vector<T> acc[kRows][R] = {};
    for (int64_t q = 0; q < list.count; ++q) {
      const T* from = patch + list.source[q] + first * patch_row;
      const Vector<T> gradient = load(target + list.target[q]);
      unroll<kRows>([&](auto r) {
        unroll<R>(
            [&](auto c) { acc[r][c] += load(from + r * patch_row + c * patch_pixel) * gradient; });
      });
    }
    unroll<kRows>([&](auto r) {
      unroll<R>([&](auto c) {
        T* sum = partial + ((first + r) * R + c) * partial_stride;
        store(sum, load(sum) + acc[r][c]);
      });
    });
  }
}

template <class T>
class DepthwiseWeightGradient {
 public:
  DepthwiseWeightGradient(const GatherConvParams& params, Arena& arena)
      : p_(params),
        plan_(make_plan<T>(p_)),
        bands_(make_bands(plan_.planes[0], plan_.source, 0, kChannelBlock<T>)),
        blocks_(ceil_div(p_.output_channels, kChannelBlock<T>)),
        padded_(round_up(p_.output_channels, kLanes<T>)),
        tasks_(p_.images * bands_.count),
        partial_size_(p_.kernel_size * p_.kernel_size * padded_) {
    const int64_t fitting = kPartialBytes / max(partial_size_ * int64_t{sizeof(T)}, 1);
    chunks_ = min(workers_for(p_.parallel, tasks_), max(fitting, 1));
    partial_ = arena.take<T>(chunks_ * partial_size_);
    patch_size_ = bands_.patch_rows * bands_.patch_columns * kChannelBlock<T>;
    tail_size_ = bands_.pixels * kChannelBlock<T>;
    patch_ = arena.take<T>(chunks_ * patch_size_);
    tail_ = arena.take<T>(chunks_ * tail_size_);
    offsets_ = arena.take<int64_t>(chunks_ * 3 * bands_.pixels);
  }

  void run() const {
    const int64_t kernel = p_.kernel_size * p_.kernel_size;
    for (int64_t a = 0; a < p_.architectures; ++a) {
      parallel_for(p_.parallel, chunks_, [&](int64_t chunk) { sum_chunk(a, chunk); });
      T* grad = static_cast<T*>(p_.weight_grad) + p_.slots[a] * p_.output_channels * kernel;
      bool again = false;
      for (int64_t earlier = 0; earlier < a; ++earlier) again |= p_.slots[earlier] == p_.slots[a];
      for (int64_t c = 0; c < p_.output_channels; ++c) {
        for (int64_t t = 0; t < kernel; ++t) {
          const T* sum = partial_ + t * padded_ + c;
          T total = sum[0];
          for (int64_t chunk = 1; chunk < chunks_; ++chunk) total += sum[chunk * partial_size_];
          grad[c * kernel + t] = again ? grad[c * kernel + t] + total : total;
        }
      }
    }
  }

 private:
  void sum_chunk(int64_t a, int64_t chunk) const {
    T* partial = partial_ + chunk * partial_size_;
    for (int64_t i = 0; i < partial_size_; ++i) partial[i] = T(0);
    for (int64_t task = chunk * tasks_ / chunks_; task < (chunk + 1) * tasks_ / chunks_; ++task) {
      for (int64_t block = 0; block < blocks_; ++block) {
        sum_band(a, chunk, task / bands_.count, task % bands_.count,
                 ChannelBlock<T>(block, p_.output_channels), partial);
      }
    }
  }

  void sum_band(int64_t a, int64_t chunk, int64_t image, int64_t band, const ChannelBlock<T>& block,
                T* partial) const {
    const Plane& plane = plan_.planes[0];
    int64_t* offsets = offsets_ + chunk * 3 * bands_.pixels;
    PixelList list{offsets, offsets + bands_.pixels, 0, 0};
    const Side<T>& source = plan_.source;
    const int64_t row = band_pixels(plane, bands_, source, plan_.target, block.padded, band, list);
    T* patch = patch_ + chunk * patch_size_;
    fill_patch(plane, bands_, source,
               source.data + a * source.strides.architecture + image * source.strides.image, row,
               block.first, block.count, block.padded, patch);
    const T* target = plan_.target.data + a * plan_.target.strides.architecture +
                      image * plan_.target.strides.image + block.first;
    if (block.count < block.padded) {
      int64_t* tail_offsets = offsets + 2 * bands_.pixels;
      target = copy_tail(list, target, block.count, block.padded, tail_ + chunk * tail_size_,
                         tail_offsets);
      list.target = tail_offsets;
    }
    for (int64_t v = 0; v < block.padded; v += kLanes<T>) {
      sum_taps(list, patch + v, bands_.patch_columns * block.padded, block.padded, target + v,
               partial + block.first + v);
    }
  }

  void sum_taps(const PixelList& list, const T* patch, int64_t patch_row, int64_t patch_pixel,
                const T* target, T* partial) const {
    switch (p_.kernel_size) {
      case 1:
        return depthwise_taps<T, 1>(list, patch, patch_row, patch_pixel, target, partial, padded_);
      case 3:
        return depthwise_taps<T, 3>(list, patch, patch_row, patch_pixel, target, partial, padded_);
      case 5:
        return depthwise_taps<T, 5>(list, patch, patch_row, patch_pixel, target, partial, padded_);
      case 7:
        return depthwise_taps<T, 7>(list, patch, patch_row, patch_pixel, target, partial, padded_);
    }
  }

  GatherConvParams p_;
  Plan<T> plan_;
  Bands bands_;
  int64_t blocks_, padded_, tasks_, partial_size_, chunks_, patch_size_, tail_size_;
  T* partial_;
  T* patch_;
  T* tail_;
  int64_t* offsets_;
};

}  // namespace cwkernels::CWK_ISA
