#pragma once
#include "conv_dense.h"

// Depthwise convolutions on the CPU: vectors of channels, no reduction over channels. One channel
// block of one image is copied between zeros and read R x R times from there.
namespace cwkernels::CWK_ISA {

// 4 vectors (64 floats of AVX-512): a pixel of the patch is 256 bytes, whole cache lines, and a
// 20 x 20 patch 102 KB.
template <class T>
constexpr int64_t kChannelBlock = 4 * kLanes<T>;

constexpr int kDepthwisePixels = 8;

// The channel blocks of `channels`: all full but the last, which is padded to whole vectors.
template <class T>
struct ChannelBlock {
  int64_t first, count, padded;

  ChannelBlock(int64_t index, int64_t channels)
      : first(index * kChannelBlock<T>),
        count(min(kChannelBlock<T>, channels - first)),
        padded(round_up(count, kLanes<T>)) {}
};

template <class T>
CWK_INLINE void depthwise_band(const PixelList& list, const T* patch, T* target,
                               const int64_t* tap_offsets, int64_t taps, const T* weights,
                               int64_t weight_stride, const ChannelBlock<T>& block,
                               bool accumulate) {
  for (int64_t v = 0; v < block.padded; v += kLanes<T>) {
    for (int64_t begin = 0; begin < list.count; begin += kDepthwisePixels) {
      const T* pixel[kDepthwisePixels];
      unroll<kDepthwisePixels>(
          [&](auto i) { pixel[i] = patch + list.source[min(begin + i, list.count - 1)] + v; });
      Vector<T> acc[kDepthwisePixels] = {};
      for (int64_t t = 0; t < taps; ++t) {
        const Vector<T> weight = load(weights + t * weight_stride + v);
        unroll<kDepthwisePixels>(
            [&](auto i) { acc[i] += load(pixel[i] + tap_offsets[t]) * weight; });
      }
      unroll<kDepthwisePixels>([&](auto i) {
        if (begin + i >= list.count) return;
        Vector<T> one[1] = {acc[i]};
        store_pixel<T, 1>(target + list.target[begin + i] + v, one, block.count - v, accumulate);
      });
    }
  }
}

// Forward and backward_input.
template <class T>
class DepthwiseConvolution {
 public:
  DepthwiseConvolution(const GatherConvParams& params, Arena& arena)
      : p_(params), plan_(make_plan<T>(p_)) {
    const int64_t channels = p_.output_channels;
    blocks_ = ceil_div(channels, kChannelBlock<T>);
    padded_ = round_up(channels, kLanes<T>);
    for (int i = 0; i < plan_.plane_count; ++i) {
      bands_[i] = make_bands(plan_.planes[i], plan_.source, 0, kChannelBlock<T>);
      bands_per_image_ += bands_[i].count;
      patch_size_ =
          max(patch_size_, bands_[i].patch_rows * bands_[i].patch_columns * kChannelBlock<T>);
      pixels_ = max(pixels_, bands_[i].pixels);
    }
    together_ = (plan_.source.strides.architecture == 0 || plan_.target.strides.architecture == 0)
                    ? p_.architectures
                    : 1;
    tasks_ = p_.architectures / max(together_, 1) * p_.images * blocks_ * bands_per_image_;
    workers_ = workers_for(p_.parallel, tasks_);
    packed_ = arena.take<T>(p_.architectures * taps() * padded_);
    patch_ = arena.take<T>(workers_ * patch_size_);
    offsets_ = arena.take<int64_t>(workers_ * 2 * pixels_);
  }

  void run() const {
    if (tasks_ == 0) return;
    parallel_for(p_.parallel, p_.architectures, [&](int64_t a) { pack(a); });
    run_tasks(p_.parallel, workers_, tasks_, [&](int64_t t, int64_t w) { task(t, w); });
  }

 private:
  int64_t taps() const { return p_.kernel_size * p_.kernel_size; }

  // weight[c][ky * R + kx] to packed[a][ky * R + kx][c]
  void pack(int64_t a) const {
    const T* weight = static_cast<const T*>(p_.weight) + p_.rows[a] * p_.output_channels * taps();
    T* packed = packed_ + a * taps() * padded_;
    for (int64_t c = 0; c < padded_; ++c) {
      for (int64_t t = 0; t < taps(); ++t) {
        packed[t * padded_ + c] = c < p_.output_channels ? weight[c * taps() + t] : T(0);
      }
    }
  }

  void task(int64_t index, int64_t worker) const {
    int64_t band = index % bands_per_image_;
    int i = 0;
    while (band >= bands_[i].count) band -= bands_[i++].count;
    const ChannelBlock<T> block(index / bands_per_image_ % blocks_, p_.output_channels);
    const int64_t image = index / bands_per_image_ / blocks_ % p_.images;
    const int64_t first = index / bands_per_image_ / blocks_ / p_.images * together_;
    int64_t* offsets = offsets_ + worker * 2 * pixels_;
    PixelList list{offsets, offsets + pixels_, 0, 0};
    T* patch = patch_ + worker * patch_size_;
    const Side<T>& source = plan_.source;
    const int64_t row =
        band_pixels(plan_.planes[i], bands_[i], source, plan_.target, block.padded, band, list);
    for (int64_t a = first; a < first + together_; ++a) {
      if (!bands_[i].direct && (a == first || source.strides.architecture != 0)) {
        const T* from =
            source.data + a * source.strides.architecture + image * source.strides.image;
        fill_patch(plan_.planes[i], bands_[i], source, from, row, block.first, block.count,
                   block.padded, patch);
      }
      T* to = plan_.target.data + a * plan_.target.strides.architecture +
              image * plan_.target.strides.image + block.first;
      convolve(a, i, list, block, patch, to, a > first && plan_.target.strides.architecture == 0);
    }
  }

  void convolve(int64_t a, int index, const PixelList& list, const ChannelBlock<T>& block,
                const T* patch, T* to, bool accumulate) const {
    const Plane& plane = plan_.planes[index];
    T weights[kMaxTaps * kChannelBlock<T>];
    int64_t tap_offsets[kMaxTaps];
    for (int64_t t = 0; t < plane.taps(); ++t) {
      tap_offsets[t] =
          (t / plane.tap_columns * bands_[index].patch_columns + t % plane.tap_columns) *
          block.padded;
      const T* from = packed_ + (a * taps() + plane.weight_index[t]) * padded_ + block.first;
      for (int64_t c = 0; c < block.padded; ++c) weights[t * kChannelBlock<T> + c] = from[c];
    }
    depthwise_band(list, patch, to, tap_offsets, plane.taps(), weights, kChannelBlock<T>, block,
                   accumulate);
  }

  GatherConvParams p_;
  Plan<T> plan_;
  Bands bands_[4];
  int64_t bands_per_image_ = 0, patch_size_ = 0, pixels_ = 0;
  int64_t blocks_, padded_, together_, tasks_, workers_;
  T* packed_;
  T* patch_;
  int64_t* offsets_;
};

}  // namespace cwkernels::CWK_ISA
