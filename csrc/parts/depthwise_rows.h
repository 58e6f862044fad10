#pragma once
#include "conv_dense.h"
#include "measure.h"

// Depthwise convolutions of whole images, rows of pixels at a time: a block of an image's channels
// is loaded between zeros as planes, one vector of channels a pixel, so a plane of 20 x 20 pixels
// is 25 KB and stays in L1 (48 KB) while its rows are read once for each row of taps.
namespace cwkernels::CWK_ISA {

// Calls f(Index<R>) for a kernel size.
template <class F>
CWK_INLINE void with_kernel_size(int64_t size, const F& f) {
  switch (size) {
    case 1: return f(Index<1>{});
    case 3: return f(Index<3>{});
    case 5: return f(Index<5>{});
    case 7: return f(Index<7>{});
  }
}

// Pixels of a row in registers at once: 8 accumulators are what two FMA ports at a latency of 4
// need; beside them a row of taps and a source value. With 16 registers 7 taps leave room for 4.
template <int R>
constexpr int kRowPixels = 8 + R + 1 <= kVectorRegisters ? 8 : 4;
constexpr int kLeastRow = 4;

// An image between zeros: `border` rows and columns on each side, and columns up to where the last
// block of a row reads.
struct PlaneShape {
  int64_t height, width, border, rows, columns;

  CWK_INLINE PlaneShape(int64_t height, int64_t width, int64_t border, int64_t read_columns)
      : height(height),
        width(width),
        border(border),
        rows(height + 2 * border),
        columns(max(width + 2 * border, read_columns)) {}

  CWK_INLINE int64_t pixels() const { return rows * columns; }
  CWK_INLINE int64_t at(int64_t y, int64_t x) const { return (y + border) * columns + x + border; }
};

// Columns that blocks of at least kLeastRow of `count` target pixels read at a stride.
CWK_INLINE int64_t columns_read(int64_t count, int64_t stride, int64_t taps) {
  return (round_up(count, kLeastRow) - 1) * stride + taps;
}

// Vectors of channels of one image that are loaded together: 4 are 256 bytes a pixel with AVX-512,
// fewer where the planes of all would not stay in L2 (512 KB of 1 MB).
constexpr int64_t kPlaneBytes = 256 << 10;
template <class T>
CWK_INLINE int64_t block_vectors(int64_t plane_pixels, int64_t channels) {
  const int64_t fitting = kPlaneBytes / (plane_pixels * kVectorBytes);
  return max(min(min(fitting, 4), ceil_div(channels, kLanes<T>)), 1);
}

// How far ahead pixels are asked for: they lie a channel count apart, often on pages of their own,
// which stops the hardware's prefetcher. Images follow each other, so the last pixels of one ask
// for the first of the next, which is loaded next.
constexpr int64_t kPixelsAhead = 32;

// The inside of the planes, from the image whose first pixel begins at `image`: channels
// [first, first + vectors * lanes) of `channels`. The zeros around stay what they are.
template <class T, class Load>
CWK_FLATTEN inline void fill_planes(const Load& load, int64_t image, const PlaneShape& shape,
                                    int64_t first, int64_t vectors, int64_t channels, T* planes) {
  const int64_t height = shape.height, width = shape.width, ahead = kPixelsAhead * channels;
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t c = first + v * kLanes<T>;
      const auto value = load.channel(c, channels - c);
      T* to = planes + (v * shape.pixels() + shape.at(y, 0)) * kLanes<T>;
      int64_t from = image + y * width * channels;
      for (int64_t x = 0; x < width; ++x, from += channels, to += kLanes<T>) {
        load.prefetch(from + ahead + c);
        store(to, value(from));
      }
    }
  }
}

// X pixels of a row: each source vector is loaded once a row of taps for all pixels that see it.
template <class T, int R, int S, int X>
CWK_INLINE void row_block(const T* plane, int64_t columns, const T* weights, int64_t weight_stride,
                          T* target, int64_t count) {
  Vector<T> acc[X] = {};
  for (int64_t r = 0; r < R; ++r) {
    Vector<T> weight[R];
    unroll<R>([&](auto k) { weight[k] = load(weights + (r * R + k) * weight_stride); });
    const T* from = plane + r * columns * kLanes<T>;
    unroll<(X - 1) * S + R>([&](auto j) {
      const Vector<T> value = load(from + j * kLanes<T>);
      unroll<R>([&](auto k) {
        if constexpr (j >= k && (j - k) % S == 0 && (j - k) / S < X) {
          acc[(j - k) / S] += value * weight[k];
        }
      });
    });
  }
  unroll<X>([&](auto i) {
    if (i < count) store(target + i * kLanes<T>, acc[i]);
  });
}

// target[y][x] = sum over taps of plane[y * S + ky][x * S + kx] * weights[ky * R + kx], for one
// vector of channels; the target's pixels are dense.
template <class T, int R, int S>
CWK_FLATTEN inline void filter_plane(const T* plane, int64_t columns, const T* weights,
                                     int64_t weight_stride, int64_t height, int64_t width,
                                     T* target) {
  constexpr int kWide = kRowPixels<R>;
  for (int64_t y = 0; y < height; ++y) {
    const T* row = plane + y * S * columns * kLanes<T>;
    T* to = target + y * width * kLanes<T>;
    int64_t x = 0;
    for (; x + kLeastRow < width; x += kWide) {
      row_block<T, R, S, kWide>(row + x * S * kLanes<T>, columns, weights, weight_stride,
                                to + x * kLanes<T>, width - x);
    }
    if (x < width) {
      row_block<T, R, S, kLeastRow>(row + x * S * kLanes<T>, columns, weights, weight_stride,
                                    to + x * kLanes<T>, width - x);
    }
  }
}

// At stride 2 the gradient of a source pixel is the sum over the taps of its parity: 2 X pixels of
// a row of a given parity, tap kx of column parity q reads the target (q + border - kx) / 2 to the
// right.
template <class T, int R, int X>
CWK_INLINE void spread_block(const T* plane, int64_t columns, int64_t y, const T* weights,
                             int64_t weight_stride, T* target, int64_t count) {
  constexpr int kBorder = R / 2, kReach = (kBorder + 1) / 2;  // furthest target pixel either side
  Vector<T> acc[2][X] = {};
  for (int64_t r = (y + kBorder) % 2; r < R; r += 2) {
    const T* from = plane + ((y + kBorder - r + 2 * kBorder) / 2 * columns) * kLanes<T>;
    Vector<T> weight[R];
    unroll<R>([&](auto k) { weight[k] = load(weights + (r * R + k) * weight_stride); });
    unroll<X + 2 * kReach>([&](auto j) {
      const Vector<T> value = load(from + (kBorder - kReach + j) * kLanes<T>);
      unroll<R>([&](auto k) {
        constexpr int q = (k + kBorder) % 2;
        constexpr int i = j - kReach - (q + kBorder - k) / 2;
        if constexpr (i >= 0 && i < X) acc[q][i] += value * weight[k];
      });
    });
  }
  unroll<X>([&](auto i) {
    if (2 * i < count) store(target + 2 * i * kLanes<T>, acc[0][i]);
    if (2 * i + 1 < count) store(target + (2 * i + 1) * kLanes<T>, acc[1][i]);
  });
}

// Both directions of columns_read for spread_plane, in target pixels.
constexpr int kSpreadPixels = 4;
CWK_INLINE int64_t columns_spread(int64_t source_width, int64_t taps) {
  return round_up(ceil_div(source_width, 2), kSpreadPixels) + 2 * (taps / 2);
}

// source[y][x] = sum over the taps that reach it at stride 2, from a plane whose border is R / 2.
template <class T, int R>
CWK_FLATTEN inline void spread_plane(const T* plane, int64_t columns, const T* weights,
                                     int64_t weight_stride, int64_t height, int64_t width,
                                     T* source) {
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; x += 2 * kSpreadPixels) {
      spread_block<T, R, kSpreadPixels>(plane + x / 2 * kLanes<T>, columns, y, weights,
                                        weight_stride, source + (y * width + x) * kLanes<T>,
                                        width - x);
    }
  }
}

// All R x R taps are summed at once where they and two operands fit the registers, else one row.
template <int R>
constexpr int kTapRows = R * R + 2 <= kVectorRegisters ? R : 1;

// sums[ky * R + kx] += over pixels of plane[y * S + ky][x * S + kx] * grad[y][x], for one vector of
// channels.
template <class T, int R>
CWK_FLATTEN inline void sum_taps(const T* plane, int64_t columns, int64_t stride, const T* grad,
                                 const PlaneShape& grad_shape, T* sums, int64_t sum_stride) {
  constexpr int kRows = kTapRows<R>;
  for (int64_t first = 0; first < R; first += kRows) {
    Vector<T> acc[kRows][R] = {};
    for (int64_t y = 0; y < grad_shape.height; ++y) {
      const T* from = plane + (y * stride + first) * columns * kLanes<T>;
      const T* to = grad + grad_shape.at(y, 0) * kLanes<T>;
      for (int64_t x = 0; x < grad_shape.width; ++x) {
        const Vector<T> gradient = load(to + x * kLanes<T>);
        const T* pixel = from + x * stride * kLanes<T>;
        unroll<kRows>([&](auto r) {
          unroll<R>(
              [&](auto k) { acc[r][k] += load(pixel + (r * columns + k) * kLanes<T>) * gradient; });
        });
      }
    }
    unroll<kRows>([&](auto r) {
      unroll<R>([&](auto k) {
        T* sum = sums + ((first + r) * R + k) * sum_stride;
        store(sum, load(sum) + acc[r][k]);
      });
    });
  }
}

// weight[c][tap] to packed[tap][padded channels]; `flip` for the gradient of the source at stride
// 1, which is a convolution with the taps reversed.
template <class T>
inline void pack_taps(const T* weight, int64_t taps, int64_t channels, bool flip, T* packed) {
  const int64_t padded = padded_channels<T>(channels);
  for (int64_t c = 0; c < padded; ++c) {
    for (int64_t t = 0; t < taps; ++t) {
      packed[(flip ? taps - 1 - t : t) * padded + c] = c < channels ? weight[c * taps + t] : T(0);
    }
  }
}

// A forward depthwise convolution, with the statistics of what it gives.
template <class T>
class DepthwiseForward {
 public:
  DepthwiseForward(const Parallel& parallel, int64_t images, int64_t height, int64_t width,
                   int64_t stride, int64_t kernel_size, int64_t channels, Arena& arena)
      : parallel_(parallel),
        images_(images),
        stride_(stride),
        kernel_size_(kernel_size),
        channels_(channels),
        padded_(padded_channels<T>(channels)),
        target_height_((height - 1) / stride + 1),
        target_width_((width - 1) / stride + 1),
        shape_(height, width, kernel_size / 2, columns_read(target_width_, stride, kernel_size)),
        vectors_(block_vectors<T>(shape_.pixels(), channels)),
        blocks_(ceil_div(channels, vectors_ * kLanes<T>)),
        workers_(workers_for(parallel, images * blocks_)) {
    weights_ = arena.take<T>(kernel_size * kernel_size * padded_);
    planes_ = arena.take<T>(workers_ * plane_size());
    targets_ = arena.take<T>(workers_ * target_size());
    partials_ = arena.take<T>(images * 2 * padded_);
  }

  // Mean and variance [2][channels] go to `statistics` unless that is null.
  template <class Load>
  void run(const T* weight, const Load& load, T* target, T* statistics) const {
    pack_taps(weight, kernel_size_ * kernel_size_, channels_, false, weights_);
    parallel_for(parallel_, workers_, [&](int64_t w) {
      clear(planes_ + w * plane_size(), plane_size());
      const int64_t tasks = images_ * blocks_;
      for (int64_t t = w * tasks / workers_; t < (w + 1) * tasks / workers_; ++t) {
        filter(t % images_, t / images_, w, load, target, statistics != nullptr);
      }
    });
    if (statistics) {
      merge_measures(
          partials_, images_, [&](int64_t) { return target_pixels(); }, channels_, statistics);
    }
  }

 private:
  int64_t plane_size() const { return vectors_ * shape_.pixels() * kLanes<T>; }
  int64_t target_pixels() const { return target_height_ * target_width_; }
  int64_t target_size() const { return vectors_ * target_pixels() * kLanes<T>; }

  template <class Load>
  void filter(int64_t image, int64_t block, int64_t worker, const Load& load, T* target,
              bool measured) const {
    const int64_t first = block * vectors_ * kLanes<T>;
    const int64_t vectors = min(vectors_, (padded_ - first) / kLanes<T>);
    T* planes = planes_ + worker * plane_size();
    T* targets = targets_ + worker * target_size();
    fill_planes(load, image * shape_.height * shape_.width * channels_, shape_, first, vectors,
                channels_, planes);
    for (int64_t v = 0; v < vectors; ++v) {
      const T* plane = planes + v * shape_.pixels() * kLanes<T>;
      const T* weights = weights_ + first + v * kLanes<T>;
      T* to = targets + v * target_pixels() * kLanes<T>;
      with_kernel_size(kernel_size_, [&](auto r) {
        (stride_ == 1 ? filter_plane<T, r.value, 1>
                      : filter_plane<T, r.value, 2>)(plane, shape_.columns, weights, padded_,
                                                     target_height_, target_width_, to);
      });
      if (measured) measure_plane(to, image, first + v * kLanes<T>);
    }
    write(targets, vectors, target + image * target_pixels() * channels_ + first,
          channels_ - first);
  }

  void measure_plane(const T* data, int64_t image, int64_t c) const {
    T measured[2 * kLanes<T>];
    measure(data, target_pixels(), kLanes<T>, kLanes<T>, measured);
    T* partial = partials_ + image * 2 * padded_ + c;
    store(partial, load(measured));
    store(partial + padded_, load(measured + kLanes<T>));
  }

  // The planes of a block back to pixels of channels.
  CWK_FLATTEN void write(const T* targets, int64_t vectors, T* to, int64_t left) const {
    const bool whole = streams(to, channels_, min(vectors * kLanes<T>, left));
    const int64_t pixels = target_pixels(), channels = channels_;
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t v = 0; v < vectors; ++v) {
        const Vector<T> value = load(targets + (v * pixels + p) * kLanes<T>);
        T* at = to + p * channels + v * kLanes<T>;
        whole ? stream(at, value) : store_channels(at, value, left - v * kLanes<T>);
      }
    }
    if (whole) drain();
  }

  Parallel parallel_;
  int64_t images_, stride_, kernel_size_, channels_, padded_, target_height_, target_width_;
  PlaneShape shape_;
  int64_t vectors_, blocks_, workers_;
  T* weights_;
  T* planes_;
  T* targets_;
  T* partials_;
};

}  // namespace cwkernels::CWK_ISA
