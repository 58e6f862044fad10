#pragma once
#include "conv_dense.h"

// The gradient of dense weights: weight[k][c][tap] = sum over pixels of source[pixel + tap][c] *
// target[pixel][k]. A block is some channels of a run of taps x a panel of k, in registers over the
// pixels of a band; bands are summed into one partial result for each chunk of images, chunks in
// order, so the result depends on the number of threads and on nothing else.
namespace cwkernels::CWK_ISA {

// 16 accumulators either way with 32 registers (8 with 16).
template <int V>
constexpr int kRunBlock = (kVectorRegisters == 32 ? 16 : 8) / V;

// A block adds its 16 vectors to the partial result once a band, so 128 pixels are 2048 FMAs for 16
// loads and stores of what lies in L2 or beyond (1.5 MB at 256 x 1536 channels).
constexpr int64_t kWeightPixels = 128;

// The partial results of all chunks take 32 MB at most.
constexpr int64_t kPartialBytes = 32 << 20;

template <class T, int V, int B>
CWK_INLINE void weight_block(const PixelList& list, const T* source, const T* target, T* partial,
                             int64_t partial_stride) {
  Vector<T> acc[B][V] = {};
  for (int64_t q = 0; q < list.count; ++q) {
    const T* from = source + list.source[q];
    const T* to = target + list.target[q];
    Vector<T> gradient[V];
    unroll<V>([&](auto v) { gradient[v] = load(to + v * kLanes<T>); });
    unroll<B>([&](auto b) {
      const Vector<T> value = broadcast(from[b]);
      unroll<V>([&](auto v) { acc[b][v] += value * gradient[v]; });
    });
  }
  unroll<B>([&](auto b) {
    unroll<V>([&](auto v) {
      T* sum = partial + b * partial_stride + v * kLanes<T>;
      store(sum, load(sum) + acc[b][v]);
    });
  });
}

// Under a row of three taps a source value is broadcast once for the three target pixels that see
// it: 24 accumulators, and 1 + 8 loads (V = 1) or 2 + 4 (V = 2) for 24 FMAs, where weight_block is
// bound by 17 loads for 16. With 16 registers there is no room for it.
constexpr bool kWeightRows = kVectorRegisters == 32;
template <int V>
constexpr int kRowChannels = 8 / V;
static_assert(!kWeightRows || (kRowTaps * (kRowChannels<1> + 1) + 1 <= kVectorRegisters &&
                               kRowTaps * (kRowChannels<2> + 1) * 2 + 1 <= kVectorRegisters));

// One row of `count` target pixels; its source pixels lie `step` elements apart.
template <class T, int V, int B>
CWK_INLINE void weight_row(const T* from, int64_t step, const T* target, const int64_t* offsets,
                           int64_t count, Vector<T> (&acc)[kRowTaps][B][V]) {
  // Source pixel x meets target pixel x - k under tap k: at the row's ends not every one exists.
  const auto edge = [&](int64_t x) {
    unroll<kRowTaps>([&](auto k) {
      if (x < k || x - k >= count) return;
      unroll<B>([&](auto b) {
        const Vector<T> value = broadcast(from[x * step + b]);
        unroll<V>(
            [&](auto v) { acc[k][b][v] += value * load(target + offsets[x - k] + v * kLanes<T>); });
      });
    });
  };
  edge(0);
  edge(1);
  if (count > 2) {
    Vector<T> gradient[kRowTaps][V];
    unroll<V>([&](auto v) {
      gradient[2][v] = load(target + offsets[0] + v * kLanes<T>);
      gradient[1][v] = load(target + offsets[1] + v * kLanes<T>);
    });
    for (int64_t x = 2; x < count; ++x) {
      unroll<V>([&](auto v) { gradient[0][v] = load(target + offsets[x] + v * kLanes<T>); });
      unroll<B>([&](auto b) {
        const Vector<T> value = broadcast(from[x * step + b]);
        unroll<kRowTaps>(
            [&](auto k) { unroll<V>([&](auto v) { acc[k][b][v] += value * gradient[k][v]; }); });
      });
      unroll<V>([&](auto v) {
        gradient[2][v] = gradient[1][v];
        gradient[1][v] = gradient[0][v];
      });
    }
  }
  for (int64_t x = max(count, 2); x < count + 2; ++x) edge(x);
}

// All rows of a band, blocks of B source channels, then what is left by blocks of half that.
template <class T, int V, int B = kRowChannels<V>>
CWK_INLINE void weight_rows(const PixelList& list, int64_t columns, const T* source,
                            const T* target, int64_t channels, int64_t step, T* partial,
                            int64_t partial_stride) {
  int64_t c = 0;
  for (; c + B <= channels; c += B) {
    Vector<T> acc[kRowTaps][B][V] = {};
    for (int64_t q = 0; q < list.count; q += columns) {
      weight_row<T, V, B>(source + c + list.source[q], step, target, list.target + q, columns, acc);
    }
    unroll<kRowTaps>([&](auto k) {
      unroll<B>([&](auto b) {
        unroll<V>([&](auto v) {
          T* sum = partial + (k * step + c + b) * partial_stride + v * kLanes<T>;
          store(sum, load(sum) + acc[k][b][v]);
        });
      });
    });
  }
  if constexpr (B > 1) {
    if (c < channels) {
      weight_rows<T, V, B / 2>(list, columns, source + c, target, channels - c, step,
                               partial + c * partial_stride, partial_stride);
    }
  }
}

// Values a row of the tile through which weight gradients are transposed.
constexpr int64_t kTileValues = 256;
static_assert(kTileValues >= kMaxTaps);

// A stem's run, 3 taps of 3 channels: as 8 + 1 its last block would wait for one FMA after another.
constexpr int kStemRun = 9;

// Blocks of B channels of the run, then what is left by blocks of half that, down to one.
template <class T, int V, int B = kRunBlock<V>>
CWK_INLINE void weight_run(const PixelList& list, const T* source, const T* target, int64_t run,
                           T* partial, int64_t partial_stride) {
  if constexpr (kStemRun * V + V + 1 <= kVectorRegisters) {
    if (run == kStemRun) {
      return weight_block<T, V, kStemRun>(list, source, target, partial, partial_stride);
    }
  }
  int64_t c = 0;
  for (; c + B <= run; c += B) {
    weight_block<T, V, B>(list, source + c, target, partial + c * partial_stride, partial_stride);
  }
  if constexpr (B > 1) {
    if (c < run) {
      weight_run<T, V, B / 2>(list, source + c, target, run - c, partial + c * partial_stride,
                              partial_stride);
    }
  }
}

// The target pixels of a band whose last vector the channels do not fill, between zeros: a plain
// load would read the next pixel's channels, or past the tensor's end.
template <class T>
CWK_INLINE const T* copy_tail(const PixelList& list, const T* target, int64_t channels,
                              int64_t width, T* tail, int64_t* tail_offsets) {
  for (int64_t q = 0; q < list.count; ++q) {
    tail_offsets[q] = q * width;
    for (int64_t k = 0; k < width; ++k) {
      tail[q * width + k] = k < channels ? target[list.target[q] + k] : T(0);
    }
  }
  return tail;
}

// What the chunks have summed, partial[tap][c][padded k] each, to be added up in their order.
template <class T>
struct WeightPartials {
  const T* data;
  int64_t chunks, chunk_stride, padded;
  int64_t input_channels, output_channels, kernel;

  // Input channels a task of `reduce`: 16 where a tile holds as many.
  CWK_INLINE int64_t channels_per_task() const { return max(min(kTileValues / kernel, 16), 1); }

  CWK_INLINE int64_t tasks() const { return ceil_div(input_channels, channels_per_task()); }

  // Sums a task's channels into grad[k][c][tap], or adds them to it: read along k, as they lie, and
  // transposed in a tile in L1 (18 KB).
  void reduce(int64_t task, bool again, T* grad) const {
    const int64_t begin = task * channels_per_task();
    const int64_t channels = min(channels_per_task(), input_channels - begin);
    T tile[kLanes<T>][kTileValues + kLanes<T>];
    for (int64_t first = 0; first < output_channels; first += kLanes<T>) {
      for (int64_t t = 0; t < kernel; ++t) {
        for (int64_t c = 0; c < channels; ++c) {
          const T* sum = data + (t * input_channels + begin + c) * padded + first;
          Vector<T> total = load(sum);
          for (int64_t chunk = 1; chunk < chunks; ++chunk)
            total += load(sum + chunk * chunk_stride);
          unroll<kLanes<T>>([&](auto k) { tile[k][c * kernel + t] = total[int{k}]; });
        }
      }
      for (int64_t k = 0; k < min(kLanes<T>, output_channels - first); ++k) {
        T* to = grad + ((first + k) * input_channels + begin) * kernel;
        for (int64_t i = 0; i < channels * kernel; ++i) {
          to[i] = again ? to[i] + tile[k][i] : tile[k][i];
        }
      }
    }
  }
};

template <class T>
class DenseWeightGradient {
 public:
  DenseWeightGradient(const GatherConvParams& params, Arena& arena)
      : p_(flatten_pixels(params)),
        plan_(make_plan<T>(p_)),
        bands_(make_bands(plan_.planes[0], plan_.source, kWeightPixels, plan_.source.channels)),
        padded_(round_up(plan_.target.channels, kLanes<T>)),
        tasks_(p_.images * bands_.count) {
    partial_size_ = plan_.planes[0].taps() * plan_.source.channels * padded_;
    const int64_t fitting = kPartialBytes / max(partial_size_ * int64_t{sizeof(T)}, 1);
    chunks_ = min(workers_for(p_.parallel, tasks_), max(fitting, 1));
    partial_ = arena.take<T>(chunks_ * partial_size_);
    patch_size_ = round_up(bands_.patch_rows * bands_.patch_columns * plan_.source.channels, 16);
    tail_size_ = bands_.pixels * kPanelWidth<T>;
    patch_ = arena.take<T>(chunks_ * patch_size_);
    tail_ = arena.take<T>(chunks_ * tail_size_);
    offsets_ = arena.take<int64_t>(chunks_ * 3 * bands_.pixels);
  }

  void run() const {
    const int64_t kernel = p_.kernel_size * p_.kernel_size;
    const int64_t row_size = p_.output_channels * p_.input_channels * kernel;
    for (int64_t a = 0; a < p_.architectures; ++a) {
      parallel_for(p_.parallel, chunks_, [&](int64_t chunk) { sum_chunk(a, chunk); });
      T* grad = static_cast<T*>(p_.weight_grad) + p_.slots[a] * row_size;
      bool again = false;
      for (int64_t earlier = 0; earlier < a; ++earlier) again |= p_.slots[earlier] == p_.slots[a];
      const WeightPartials<T> partials{
          partial_, chunks_, partial_size_, padded_, p_.input_channels, p_.output_channels, kernel};
      parallel_for(p_.parallel, partials.tasks(),
                   [&](int64_t task) { partials.reduce(task, again, grad); });
    }
  }

 private:
  void sum_chunk(int64_t a, int64_t chunk) const {
    T* partial = partial_ + chunk * partial_size_;
    clear(partial, partial_size_);
    for (int64_t task = chunk * tasks_ / chunks_; task < (chunk + 1) * tasks_ / chunks_; ++task) {
      sum_band(a, chunk, task / bands_.count, task % bands_.count, partial);
    }
  }

  void sum_band(int64_t a, int64_t chunk, int64_t image, int64_t band, T* partial) const {
    const Plane& plane = plan_.planes[0];
    int64_t* offsets = offsets_ + chunk * 3 * bands_.pixels;
    PixelList list{offsets, offsets + bands_.pixels, 0, 0};
    const Side<T>& source = plan_.source;
    const int64_t row =
        band_pixels(plane, bands_, source, plan_.target, source.channels, band, list);
    const T* from = source.data + a * source.strides.architecture + image * source.strides.image;
    if (!bands_.direct) {
      T* patch = patch_ + chunk * patch_size_;
      fill_patch(plane, bands_, source, from, row, 0, source.channels, source.channels, patch);
      from = patch;
    }
    const T* target = plan_.target.data + a * plan_.target.strides.architecture +
                      image * plan_.target.strides.image;
    for (int64_t first = 0; first < padded_; first += kPanelWidth<T>) {
      PixelList own = list;
      const T* to = target + first;
      const int64_t channels = plan_.target.channels - first;
      const int64_t width = min(kPanelWidth<T>, padded_ - first);
      if (channels < width) {
        own.target = offsets + 2 * bands_.pixels;
        to = copy_tail(list, to, channels, width, tail_ + chunk * tail_size_, own.target);
      }
      sum_panel(own, from, to, width, partial + first);
    }
  }

  void sum_panel(const PixelList& list, const T* from, const T* to, int64_t width,
                 T* partial) const {
    const Plane& plane = plan_.planes[0];
    const int64_t run = plane.tap_columns * plan_.source.channels;
    for (int64_t r = 0; r < plane.tap_rows; ++r) {
      const T* start = from + tap_row_offset(plane, bands_, plan_.source, plan_.source.channels, r);
      T* sums = partial + r * run * padded_;
      if (width == kPanelWidth<T>) {
        sum_taps<kPanelVectors>(list, start, to, run, sums);
      } else {
        sum_taps<1>(list, start, to, run, sums);
      }
    }
  }

  template <int V>
  CWK_FLATTEN void sum_taps(const PixelList& list, const T* from, const T* to, int64_t run,
                            T* sums) const {
    const Plane& plane = plan_.planes[0];
    const int64_t channels = plan_.source.channels;
    // A band of a patch is whole rows.
    const bool rows = kWeightRows && !bands_.direct && plane.source_step == 1 &&
                      plane.tap_columns == kRowTaps && run != kStemRun;
    if (rows) {
      weight_rows<T, V>(list, plane.columns, from, to, channels, channels, sums, padded_);
    } else {
      weight_run<T, V>(list, from, to, run, sums, padded_);
    }
  }

  GatherConvParams p_;
  Plan<T> plan_;
  Bands bands_;
  int64_t padded_, tasks_, chunks_, partial_size_, patch_size_, tail_size_;
  T* partial_;
  T* patch_;
  T* tail_;
  int64_t* offsets_;
};

}  // namespace cwkernels::CWK_ISA
