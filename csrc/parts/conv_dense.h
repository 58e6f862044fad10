#pragma once
#include "conv_plan.h"
#include "tasks.h"

// Dense convolutions on the CPU: a block of pixels times a panel of target channels, kept in
// registers over all taps and source channels; weights are packed into panels first.
namespace cwkernels::CWK_ISA {

// A block is 8 pixels x 2 vectors of channels: 16 accumulators, as two FMA ports at a latency of 4
// need 8 in flight, and each weight vector loaded serves 8 FMAs, each source value 2. With 16
// registers it is 6 x 2: 12 accumulators, 2 weights, 1 source value.
constexpr int kBlockPixels = kVectorRegisters == 32 ? 8 : 6;
constexpr int kPanelVectors = 2;
static_assert(kBlockPixels * kPanelVectors + kPanelVectors + 1 <= kVectorRegisters);

// Rows of three taps keep three weight vectors a panel vector beside the accumulators.
constexpr int kRowTaps = 3;
template <int V, int G>
constexpr bool kRowBlockFits = G * kBlockPixels * V + kRowTaps * V + 1 <= kVectorRegisters;

template <class T>
constexpr int64_t kPanelWidth = kPanelVectors * kLanes<T>;

// The rows of taps of a plane, each one run of source channels at an offset from a pixel's own.
struct TapRows {
  int64_t count, taps, channels;
  int64_t offsets[7];
};

// acc[g][i][v] = sum over rows of taps and their channels of pixel[i][g * group + ...] * panel[...]
template <class T, int V, int G>
CWK_INLINE void dense_block(const T* const (&pixel)[kBlockPixels], int64_t group,
                            const TapRows& rows, const T* panel,
                            Vector<T> (&acc)[G][kBlockPixels][V]) {
  for (int64_t r = 0; r < rows.count; ++r) {
    const T* at[kBlockPixels];
    unroll<kBlockPixels>([&](auto i) { at[i] = pixel[i] + rows.offsets[r]; });
    for (int64_t c = 0; c < rows.taps * rows.channels; ++c, panel += V * kLanes<T>) {
      Vector<T> weight[V];
      unroll<V>([&](auto v) { weight[v] = load(panel + v * kLanes<T>); });
      unroll<G>([&](auto g) {
        unroll<kBlockPixels>([&](auto i) {
          const Vector<T> value = broadcast(at[i][c + g * group]);
          unroll<V>([&](auto v) { acc[g][i][v] += value * weight[v]; });
        });
      });
    }
  }
}

// The same for pixels side by side under rows of three taps: a source value is broadcast once for
// the three target pixels that see it. With V = 1 that is 3 + 10 loads for 24 FMAs, where a
// broadcast for each FMA is bound by the two loads a cycle.
template <class T, int V, int G>
CWK_INLINE void dense_row_block(const T* pixel, int64_t group, const TapRows& rows, const T* panel,
                                Vector<T> (&acc)[G][kBlockPixels][V]) {
  const int64_t channels = rows.channels;
  for (int64_t r = 0; r < rows.count; ++r, panel += kRowTaps * channels * V * kLanes<T>) {
    const T* at = pixel + rows.offsets[r];
    for (int64_t c = 0; c < channels; ++c) {
      Vector<T> weight[kRowTaps][V];
      unroll<kRowTaps>([&](auto k) {
        unroll<V>(
            [&](auto v) { weight[k][v] = load(panel + ((k * channels + c) * V + v) * kLanes<T>); });
      });
      unroll<G>([&](auto g) {
        unroll<kBlockPixels + kRowTaps - 1>([&](auto x) {
          const Vector<T> value = broadcast(at[c + g * group + x * channels]);
          unroll<kRowTaps>([&](auto k) {
            if constexpr (x - k >= 0 && x - k < kBlockPixels) {
              unroll<V>([&](auto v) { acc[g][x - k][v] += value * weight[k][v]; });
            }
          });
        });
      });
    }
  }
}

template <class T, int V>
CWK_INLINE void store_pixel(T* target, Vector<T> (&acc)[V], int64_t channels, bool accumulate) {
  unroll<V>([&](auto v) {
    T* to = target + v * kLanes<T>;
    const int64_t left = channels - v * kLanes<T>;
    if (left >= kLanes<T>) {
      store(to, accumulate ? load(to) + acc[v] : acc[v]);
    } else if (accumulate) {
      for (int64_t i = 0; i < left; ++i) to[i] += acc[v][i];
    } else {
      store_part(to, acc[v], left);
    }
  });
}

// Whether `count` pixels from `begin` on lie `step` elements apart.
CWK_INLINE bool side_by_side(const PixelList& list, int64_t begin, int64_t count, int64_t step) {
  if (begin + count > list.count) return false;
  for (int64_t i = 1; i < count; ++i) {
    if (list.source[begin + i] - list.source[begin] != i * step) return false;
  }
  return true;
}

// G whole groups of pixels, where the pixels of the later ones lie like those of the first: `false`
// and nothing done where they do not.
template <class T, int V, int G, class Finish>
CWK_INLINE bool dense_groups(const PixelList& list, int64_t begin, const T* source,
                             const TapRows& rows, const T* panel, const Finish& finish) {
  if (begin + G * kBlockPixels > list.count) return false;
  const int64_t* at = list.source + begin;
  const bool rows_of_three = rows.taps == kRowTaps && kRowBlockFits<V, G>;
  bool alike = true, side_by_side = rows_of_three && list.step == rows.channels;
  if (list.step == 0) {
    side_by_side = rows_of_three;
    for (int64_t i = 1; i < kBlockPixels; ++i) {
      side_by_side &= at[i] - at[i - 1] == rows.channels;
      if constexpr (G == 2) alike &= at[kBlockPixels + i] - at[i] == at[kBlockPixels] - at[0];
    }
  }
  if (!alike) return false;
  const int64_t group = G == 2 ? at[kBlockPixels] - at[0] : 0;
  Vector<T> acc[G][kBlockPixels][V] = {};
  if (side_by_side) {
    dense_row_block<T, V, G>(source + at[0], group, rows, panel, acc);
  } else {
    const T* pixel[kBlockPixels];
    unroll<kBlockPixels>([&](auto i) { pixel[i] = source + at[i]; });
    dense_block<T, V, G>(pixel, group, rows, panel, acc);
  }
  unroll<G>([&](auto g) { finish(acc[g], begin + g * kBlockPixels); });
  return true;
}

// One band and one panel. `channels` of the panel are real, the rest are padding.
template <class T, int V, int G>
CWK_INLINE void dense_band(const PixelList& list, const T* source, T* target, const TapRows& rows,
                           const T* panel, int64_t channels, bool accumulate) {
  const auto finish = [&](auto& acc, int64_t first) {
    unroll<kBlockPixels>([&](auto i) {
      if (first + i < list.count) {
        store_pixel<T, V>(target + list.target[first + i], acc[i], channels, accumulate);
      }
    });
  };
  int64_t begin = 0;
  while (begin < list.count) {
    if (dense_groups<T, V, G>(list, begin, source, rows, panel, finish)) {
      begin += G * kBlockPixels;
      continue;
    }
    // Past the band's end the last pixel is computed again and not stored.
    const T* pixel[kBlockPixels];
    unroll<kBlockPixels>(
        [&](auto i) { pixel[i] = source + list.source[min(begin + i, list.count - 1)]; });
    Vector<T> acc[1][kBlockPixels][V] = {};
    dense_block<T, V, 1>(pixel, 0, rows, panel, acc);
    finish(acc[0], begin);
    begin += kBlockPixels;
  }
}

// The weights of one architecture and plane, as panels of [taps][source channels][panel width],
// target channels past the last are zero.
template <class T>
CWK_INLINE void pack_panel(const GatherConvParams& p, const Plane& plane, const T* weight,
                           int64_t source_channels, int64_t target_channels, int64_t first,
                           int64_t width, T* panel) {
  const int64_t kernel = p.kernel_size * p.kernel_size;
  const bool forward = p.pass == ConvPass::forward;
  // weight[target][source][tap] going forward, weight[source][target][tap] going back.
  const int64_t target_stride = forward ? source_channels * kernel : kernel;
  const int64_t source_stride = forward ? kernel : target_channels * kernel;
  // 64 source channels at a time: what is written, 64 x 32 floats = 8 KB, stays in L1.
  for (int64_t block = 0; block < source_channels; block += 64) {
    const int64_t end = min(block + 64, source_channels);
    for (int64_t t = 0; t < plane.taps(); ++t) {
      for (int64_t k = 0; k < width; ++k) {
        const T* from = weight + (first + k) * target_stride + plane.weight_index[t];
        const bool real = first + k < target_channels;
        for (int64_t c = block; c < end; ++c) {
          panel[(t * source_channels + c) * width + k] = real ? from[c * source_stride] : T(0);
        }
      }
    }
  }
}

// 32 pixels use a panel of weights from L2 four times.
constexpr int64_t kDirectPixels = 32;

// Forward and backward_input.
template <class T>
class DenseConvolution {
 public:
  DenseConvolution(const GatherConvParams& params, Arena& arena)
      : p_(flatten_pixels(params)), plan_(make_plan<T>(p_)) {
    const int64_t source_channels = plan_.source.channels;
    padded_ = round_up(plan_.target.channels, kLanes<T>);
    panels_ = ceil_div(padded_, kPanelWidth<T>);
    for (int i = 0; i < plan_.plane_count; ++i) {
      bands_[i] = make_bands(plan_.planes[i], plan_.source, kDirectPixels, source_channels);
      packed_offset_[i] = packed_size_;
      packed_size_ += plan_.planes[i].taps() * source_channels * padded_;
      bands_per_image_ += bands_[i].count;
      patch_size_ =
          max(patch_size_, bands_[i].patch_rows * bands_[i].patch_columns * source_channels);
      pixels_ = max(pixels_, bands_[i].pixels);
    }
    // The architectures that share a source or a target are taken in order within one task.
    together_ = (plan_.source.strides.architecture == 0 || plan_.target.strides.architecture == 0)
                    ? p_.architectures
                    : 1;
    tasks_ = p_.architectures / max(together_, 1) * p_.images * bands_per_image_;
    workers_ = workers_for(p_.parallel, tasks_);
    packed_ = arena.take<T>(p_.architectures * packed_size_);
    patch_ = arena.take<T>(workers_ * patch_size_);
    offsets_ = arena.take<int64_t>(workers_ * 2 * pixels_);
  }

  void run() const {
    if (tasks_ == 0) return;
    parallel_for(p_.parallel, p_.architectures * plan_.plane_count * panels_,
                 [&](int64_t job) { pack(job); });
    run_tasks(p_.parallel, workers_, tasks_, [&](int64_t t, int64_t w) { task(t, w); });
  }

 private:
  void pack(int64_t job) const {
    const int64_t panel = job % panels_;
    const int plane = static_cast<int>(job / panels_ % plan_.plane_count);
    const int64_t a = job / panels_ / plan_.plane_count;
    const int64_t kernel = p_.kernel_size * p_.kernel_size;
    const T* weight = static_cast<const T*>(p_.weight) +
                      p_.rows[a] * p_.output_channels * p_.input_channels * kernel;
    pack_panel(p_, plan_.planes[plane], weight, plan_.source.channels, plan_.target.channels,
               panel * kPanelWidth<T>, width(panel), packed(a, plane, panel));
  }

  int64_t width(int64_t panel) const {
    return min(kPanelWidth<T>, padded_ - panel * kPanelWidth<T>);
  }

  T* packed(int64_t a, int plane, int64_t panel) const {
    return packed_ + a * packed_size_ + packed_offset_[plane] +
           panel * kPanelWidth<T> * plan_.planes[plane].taps() * plan_.source.channels;
  }

  void task(int64_t index, int64_t worker) const {
    int64_t band = index % bands_per_image_;
    int plane = 0;
    while (band >= bands_[plane].count) band -= bands_[plane++].count;
    const int64_t image = index / bands_per_image_ % p_.images;
    const int64_t first = index / bands_per_image_ / p_.images * together_;
    int64_t* offsets = offsets_ + worker * 2 * pixels_;
    PixelList list{offsets, offsets + pixels_, 0, 0};
    T* patch = patch_ + worker * patch_size_;
    const Side<T>& source = plan_.source;
    const int64_t row = band_pixels(plan_.planes[plane], bands_[plane], source, plan_.target,
                                    source.channels, band, list);
    for (int64_t a = first; a < first + together_; ++a) {
      const T* from = source.data + a * source.strides.architecture + image * source.strides.image;
      if (!bands_[plane].direct) {
        if (a == first || source.strides.architecture != 0) {
          fill_patch(plan_.planes[plane], bands_[plane], source, from, row, 0, source.channels,
                     source.channels, patch);
        }
        from = patch;
      }
      convolve(a, plane, list, from,
               plan_.target.data + a * plan_.target.strides.architecture +
                   image * plan_.target.strides.image,
               a > first && plan_.target.strides.architecture == 0);
    }
  }

  CWK_FLATTEN void convolve(int64_t a, int plane_index, const PixelList& list, const T* from, T* to,
                            bool accumulate) const {
    const Plane& plane = plan_.planes[plane_index];
    TapRows rows{plane.tap_rows, plane.tap_columns, plan_.source.channels, {}};
    for (int64_t r = 0; r < rows.count; ++r) {
      rows.offsets[r] = tap_row_offset(plane, bands_[plane_index], plan_.source, rows.channels, r);
    }
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t first = panel * kPanelWidth<T>;
      const int64_t channels = min(plan_.target.channels - first, kPanelWidth<T>);
      const T* weights = packed(a, plane_index, panel);
      if (width(panel) == kPanelWidth<T>) {
        dense_band<T, kPanelVectors, 1>(list, from, to + first, rows, weights, channels,
                                        accumulate);
      } else {
        dense_band<T, 1, 2>(list, from, to + first, rows, weights, channels, accumulate);
      }
    }
  }

  GatherConvParams p_;
  Plan<T> plan_;
  Bands bands_[4];
  int64_t packed_offset_[4];
  int64_t packed_size_ = 0, bands_per_image_ = 0, patch_size_ = 0, pixels_ = 0;
  int64_t padded_, panels_, together_, tasks_, workers_;
  T* packed_;
  T* patch_;
  int64_t* offsets_;
};

}  // namespace cwkernels::CWK_ISA
