#pragma once
#include "conv_dense_weight.h"
#include "pointwise.h"

// Gradients of 1 x 1 convolutions: those of source and weights share what a band loads. The wide
// side, hidden channels, is taken in blocks, so that patches stay in L2.
namespace cwkernels::CWK_ISA {

// 128 pixels x 128 channels are 72 KB, beside 136 KB for the narrow side's 256 channels.
constexpr int64_t kWideBlock = 128;

// sums[i][n] += over pixels of a[pixel][i] * b[pixel][n], for B rows i and V vectors n.
template <class T, int V, int B>
CWK_INLINE void outer_block(const T* a, int64_t a_pitch, const T* b, int64_t b_pitch,
                            int64_t pixels, T* sums, int64_t stride) {
  Vector<T> acc[B][V] = {};
  for (int64_t p = 0; p < pixels; ++p, a += a_pitch, b += b_pitch) {
    Vector<T> right[V];
    unroll<V>([&](auto v) { right[v] = load(b + v * kLanes<T>); });
    unroll<B>([&](auto i) {
      const Vector<T> left = broadcast(a[i]);
      unroll<V>([&](auto v) { acc[i][v] += left * right[v]; });
    });
  }
  unroll<B>([&](auto i) {
    unroll<V>([&](auto v) {
      T* sum = sums + i * stride + v * kLanes<T>;
      store(sum, load(sum) + acc[i][v]);
    });
  });
}

// Blocks of B rows, then what is left by blocks of half that, down to one.
template <class T, int V, int B = kRunBlock<V>>
CWK_INLINE void outer_rows(const T* a, int64_t a_pitch, int64_t rows, const T* b, int64_t b_pitch,
                           int64_t pixels, T* sums, int64_t stride) {
  int64_t i = 0;
  for (; i + B <= rows; i += B) {
    outer_block<T, V, B>(a + i, a_pitch, b, b_pitch, pixels, sums + i * stride, stride);
  }
  if constexpr (B > 1) {
    if (i < rows) {
      outer_rows<T, V, B / 2>(a + i, a_pitch, rows - i, b, b_pitch, pixels, sums + i * stride,
                              stride);
    }
  }
}

// All `rows` x `columns` (whole vectors) sums of a band.
template <class T>
CWK_FLATTEN inline void outer_product(const T* a, int64_t a_pitch, int64_t rows, const T* b,
                                      int64_t b_pitch, int64_t columns, int64_t pixels, T* sums,
                                      int64_t stride) {
  int64_t n = 0;
  for (; n + kPanelWidth<T> <= columns; n += kPanelWidth<T>) {
    outer_rows<T, kPanelVectors>(a, a_pitch, rows, b + n, b_pitch, pixels, sums + n, stride);
  }
  if (n < columns) outer_rows<T, 1>(a, a_pitch, rows, b + n, b_pitch, pixels, sums + n, stride);
}

// A gradient of weights [rows][columns], summed in pieces: a partial result for each chunk of
// tasks, chunks in order.
template <class T>
struct WeightSums {
  T* data;
  int64_t rows, columns, padded, chunks;

  WeightSums(int64_t rows, int64_t columns, const Parallel& parallel, int64_t tasks, Arena& arena)
      : rows(rows), columns(columns), padded(padded_channels<T>(columns)) {
    const int64_t fitting = kPartialBytes / (rows * padded * int64_t{sizeof(T)});
    chunks = min(workers_for(parallel, tasks), max(fitting, 1));
    data = arena.take<T>(chunks * rows * padded);
  }

  T* chunk(int64_t index) const { return data + index * rows * padded; }

  void begin(const Parallel& parallel) const {
    parallel_for(parallel, chunks, [&](int64_t index) { clear(chunk(index), rows * padded); });
  }

  // Adds to `grad` where an architecture before this one read the same row.
  void reduce(const Parallel& parallel, bool again, T* grad) const {
    constexpr int64_t kRows = 16;
    parallel_for(parallel, ceil_div(rows, kRows), [&](int64_t block) {
      for (int64_t r = block * kRows; r < min((block + 1) * kRows, rows); ++r) {
        reduce_row(data + r * padded, again, grad + r * columns);
      }
    });
  }

 private:
  CWK_FLATTEN void reduce_row(const T* sums, bool again, T* grad) const {
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      Vector<T> total = load(sums + c);
      for (int64_t chunk = 1; chunk < chunks; ++chunk) {
        total += load(sums + chunk * rows * padded + c);
      }
      if (again) total = load_channels(grad + c, columns - c) + total;
      store_channels(grad + c, total, columns - c);
    }
  }
};

// Where the target is the wide side (expand, and a projection of the input): weights [wide][narrow]
// and the gradient of the source, a band at a time.
template <class T>
class ExpandGradient {
 public:
  ExpandGradient(const Parallel& parallel, int64_t pixels, int64_t narrow, int64_t wide,
                 Arena& arena)
      : parallel_(parallel),
        pixels_(pixels),
        panels_(wide, narrow, arena),
        weights_(wide, narrow, parallel, band_count(pixels), arena),
        pitch_(pitch_of<T>(narrow)) {
    source_ = arena.take<T>(weights_.chunks * kBandPixels * pitch_);
    result_ = arena.take<T>(weights_.chunks * kBandPixels * pitch_);
    gradient_ = arena.take<T>(weights_.chunks * kBandPixels * kBlockPitch);
  }

  // `gradient` and `source` load vectors, the source's from at(pixel); finish(band, values, pitch)
  // takes the gradient of the source. `grad` null: the weights need none.
  template <class Gradient, class Source, class At, class Finish>
  void run(const T* weight, const Gradient& gradient, const Source& source, const At& at,
           const Finish& finish, T* grad, bool again) const {
    panels_.pack(parallel_, weight, false);
    if (grad) weights_.begin(parallel_);
    run_tasks(parallel_, weights_.chunks, band_count(pixels_), [&](int64_t index, int64_t w) {
      const Band band(index, pixels_);
      T* from = source_ + w * kBandPixels * pitch_;
      T* result = result_ + w * kBandPixels * pitch_;
      if (grad) fill_rows<T>(source, at, band, 0, panels_.channels, from, pitch_);
      for (int64_t first = 0; first < panels_.depth; first += kWideBlock) {
        block(band, first, gradient, gradient_ + w * kBandPixels * kBlockPitch, from, result,
              grad ? weights_.chunk(w) : nullptr);
      }
      finish(band, result, pitch_);
    });
    if (grad) weights_.reduce(parallel_, again, grad);
  }

 private:
  static constexpr int64_t kBlockPitch = kWideBlock + kLanes<T>;

  template <class Gradient>
  void block(const Band& band, int64_t first, const Gradient& gradient, T* patch, const T* source,
             T* result, T* sums) const {
    const int64_t wide = panels_.depth, count = min(kWideBlock, wide - first);
    const int64_t channels = panels_.channels;
    fill_rows<T>(
        gradient, [&](int64_t p) { return p * wide; }, band, first, count, patch, kBlockPitch);
    for (int64_t panel = 0; panel < panels_.count(); ++panel) {
      const int64_t n = panel * kPanelWidth<T>;
      multiply(patch, kBlockPitch, band.pixels, count, panels_, panel, first, result + n, pitch_,
               first > 0);
    }
    if (sums) {
      outer_product(patch, kBlockPitch, count, source, pitch_, padded_channels<T>(channels),
                    band.pixels, sums + first * weights_.padded, weights_.padded);
    }
  }

  Parallel parallel_;
  int64_t pixels_;
  Panels<T> panels_;
  WeightSums<T> weights_;
  int64_t pitch_;
  T* source_;
  T* result_;
  T* gradient_;
};

// Where the source is the wide side (project): its values are rectified, so its gradient passes
// where they are positive, is written, and summed for the batch norm before it.
template <class T>
class ProjectGradient {
 public:
  ProjectGradient(const Parallel& parallel, int64_t pixels, int64_t wide, int64_t narrow,
                  Arena& arena)
      : parallel_(parallel),
        pixels_(pixels),
        panels_(narrow, wide, arena),
        weights_(narrow, wide, parallel, band_count(pixels), arena),
        pitch_(pitch_of<T>(narrow)) {
    gradient_ = arena.take<T>(weights_.chunks * kBandPixels * pitch_);
    source_ = arena.take<T>(weights_.chunks * kBandPixels * kBlockPitch);
    result_ = arena.take<T>(weights_.chunks * kBandPixels * kBlockPitch);
    partials_ = arena.take<T>(band_count(pixels) * 2 * panels_.padded);
  }

  // `raw` is what the source was normalised from, `mean` its mean; `wide_gradient` [pixels][wide]
  // and both `sums` [2][wide] of the batch norm's backward pass are written.
  template <class Gradient, class Source>
  void run(const T* weight, const Gradient& gradient, const Source& source, const T* raw,
           const T* mean, T* wide_gradient, double* sums, T* grad, bool again) const {
    panels_.pack(parallel_, weight, false);
    if (grad) weights_.begin(parallel_);
    run_tasks(parallel_, weights_.chunks, band_count(pixels_), [&](int64_t index, int64_t w) {
      const int64_t narrow = panels_.depth;
      const Band band(index, pixels_);
      T* patch = gradient_ + w * kBandPixels * pitch_;
      fill_rows<T>(gradient, [&](int64_t p) { return p * narrow; }, band, 0, narrow, patch, pitch_);
      for (int64_t first = 0; first < panels_.channels; first += kWideBlock) {
        block(band, first, w, source, patch, grad ? weights_.chunk(w) : nullptr);
        pass(band, first, w, raw, mean, wide_gradient, partials_ + index * 2 * panels_.padded);
      }
    });
    merge_gradients(partials_, band_count(pixels_), panels_.channels, sums);
    if (grad) weights_.reduce(parallel_, again, grad);
  }

 private:
  static constexpr int64_t kBlockPitch = kWideBlock + kLanes<T>;

  template <class Source>
  void block(const Band& band, int64_t first, int64_t w, const Source& source, const T* patch,
             T* sums) const {
    const int64_t wide = panels_.channels, count = min(kWideBlock, wide - first);
    T* from = source_ + w * kBandPixels * kBlockPitch;
    T* result = result_ + w * kBandPixels * kBlockPitch;
    fill_rows<T>(
        source, [&](int64_t p) { return p * wide; }, band, first, count, from, kBlockPitch);
    for (int64_t n = 0; n < count; n += kPanelWidth<T>) {
      const int64_t panel = (first + n) / kPanelWidth<T>;
      multiply(patch, pitch_, band.pixels, panels_.depth, panels_, panel, 0, result + n,
               kBlockPitch, false);
    }
    if (sums) {
      outer_product(patch, pitch_, panels_.depth, from, kBlockPitch, padded_channels<T>(count),
                    band.pixels, sums + first, weights_.padded);
    }
  }

  CWK_FLATTEN void pass(const Band& band, int64_t first, int64_t w, const T* raw, const T* mean,
                        T* wide_gradient, T* partial) const {
    const int64_t count = min(kWideBlock, panels_.channels - first);
    int64_t c = 0;
    for (; c + 4 * kLanes<T> <= count; c += 4 * kLanes<T>) {
      pass_vectors<4>(band, first + c, c, w, raw, mean, wide_gradient, partial);
    }
    for (; c < count; c += kLanes<T>) {
      pass_vectors<1>(band, first + c, c, w, raw, mean, wide_gradient, partial);
    }
  }

  // V vectors of channels from `c` on, `own` in the block: as many sums of each kind in registers.
  template <int V>
  CWK_INLINE void pass_vectors(const Band& band, int64_t c, int64_t own, int64_t w, const T* raw,
                               const T* mean, T* wide_gradient, T* partial) const {
    const int64_t wide = panels_.channels;
    const bool whole = streams(wide_gradient + c, wide, min(V * kLanes<T>, wide - c));
    const T* values = source_ + w * kBandPixels * kBlockPitch + own;
    const T* results = result_ + w * kBandPixels * kBlockPitch + own;
    Vector<T> sum[V] = {}, product[V] = {}, center[V];
    unroll<V>([&](auto v) { center[v] = load(mean + c + v * kLanes<T>); });
    for (int64_t p = 0; p < band.pixels; ++p) {
      const int64_t at = (band.begin + p) * wide + c;
      unroll<V>([&](auto v) {
        const int64_t left = wide - c - v * kLanes<T>, lane = v * kLanes<T>;
        const Vector<T> value = load(values + p * kBlockPitch + lane);
        const Vector<T> result = load(results + p * kBlockPitch + lane);
        const Vector<T> passed = value <= Vector<T>{} ? Vector<T>{} : result;
        const Vector<T> from = V > 1 ? load(raw + at + lane) : load_channels(raw + at + lane, left);
        T* to = wide_gradient + at + lane;
        whole ? stream(to, passed) : store_channels(to, passed, left);
        sum[v] += passed;
        product[v] += passed * (from - center[v]);
      });
    }
    unroll<V>([&](auto v) {
      store(partial + c + v * kLanes<T>, sum[v]);
      store(partial + panels_.padded + c + v * kLanes<T>, product[v]);
    });
    if (whole) drain();
  }

  Parallel parallel_;
  int64_t pixels_;
  Panels<T> panels_;
  WeightSums<T> weights_;
  int64_t pitch_;
  T* gradient_;
  T* source_;
  T* result_;
  T* partials_;
};

}  // namespace cwkernels::CWK_ISA
